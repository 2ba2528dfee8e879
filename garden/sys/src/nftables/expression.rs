//! The expressions that rules are made of: small steps over registers, as the kernel runs them. Data, and its encoding.

use super::Family;
use crate::netlink::message::Message;

const LIST_ITEM: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const VERDICT_REGISTER: u32 = 0;

/// A register of 32 bits, by its place in the row; longer values fill the ones that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    const FIRST_NUMBER: u32 = 8;
    pub const FIRST: Self = Self(0);

    fn number(self) -> u32 {
        Self::FIRST_NUMBER + self.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(String),
    /// Without coming back.
    Goto(String),
}

impl Verdict {
    pub(super) fn encode(&self, data: &mut Message) {
        const DROP: u32 = 0;
        const ACCEPT: u32 = 1;
        const JUMP: u32 = -3i32 as u32;
        const GOTO: u32 = -4i32 as u32;
        data.nested(DATA_VERDICT, |verdict| match self {
            Verdict::Accept => _ = verdict.network_u32(VERDICT_CODE, ACCEPT),
            Verdict::Drop => _ = verdict.network_u32(VERDICT_CODE, DROP),
            Verdict::Jump(chain) => _ = verdict.network_u32(VERDICT_CODE, JUMP).text(VERDICT_CHAIN, chain),
            Verdict::Goto(chain) => _ = verdict.network_u32(VERDICT_CODE, GOTO).text(VERDICT_CHAIN, chain),
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    InputLinkName = 6,
    OutputLinkName = 7,
    NetworkProtocol = 15,
    TransportProtocol = 16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConntrackKey {
    State = 0,
    Status = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Network = 1,
    Transport = 2,
}

/// Bytes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub base: Base,
    pub offset: u32,
    pub bytes: u32,
}

impl Field {
    pub const DESTINATION_PORT: Self = Self { base: Base::Transport, offset: 2, bytes: 2 };
    pub const ICMP_TYPE: Self = Self { base: Base::Transport, offset: 0, bytes: 1 };
    pub const ICMP_CODE: Self = Self { base: Base::Transport, offset: 1, bytes: 1 };

    pub fn source(family: Family) -> Self {
        let offset = if family == Family::Ipv4 { 12 } else { 8 };
        Self { base: Base::Network, offset, bytes: family.address_bytes() }
    }

    pub fn destination(family: Family) -> Self {
        let source = Self::source(family);
        Self { offset: source.offset + source.bytes, ..source }
    }
}

/// Compared as numbers in network byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    Meta {
        key: MetaKey,
        to: Register,
    },
    Conntrack {
        key: ConntrackKey,
        to: Register,
    },
    Payload {
        field: Field,
        to: Register,
    },
    /// The rule goes on only if the comparison holds, over as many bytes as there are in `value`.
    Compare {
        with: Register,
        comparison: Comparison,
        value: Vec<u8>,
    },
    /// Over as many bytes as there are in `mask`.
    Mask {
        register: Register,
        mask: Vec<u8>,
    },
    /// Whether the destination is an address of this host: the kind of address goes to the register.
    DestinationKind {
        to: Register,
    },
    /// In a set: the rule goes on if the key is (or, inverted, is not) there.
    Contains {
        set: String,
        key: Register,
        inverted: bool,
    },
    /// In a map: its value goes to the register; the rule ends where there is none.
    Find {
        map: String,
        key: Register,
        to: Register,
    },
    /// In a map of verdicts: the verdict is taken; the rule ends where there is none.
    Decide {
        map: String,
        key: Register,
    },
    DestinationNat {
        family: Family,
        address: Register,
        port: Register,
    },
    Masquerade,
    /// Packets and bytes that come here.
    Count,
    Log {
        prefix: String,
    },
    /// The rule goes on for so many packets a second and no more. A second's worth may come at once.
    Limit {
        packets_per_second: u32,
    },
    /// With this ICMP "destination unreachable" code.
    Reject {
        code: u8,
    },
    Verdict(Verdict),
}

impl Expression {
    /// `local`, of the kinds of addresses.
    pub const KIND_LOCAL: u32 = libc::RTN_LOCAL as u32;
    /// Bits of the conntrack state.
    pub const STATE_ESTABLISHED: u32 = 1 << 1;
    pub const STATE_RELATED: u32 = 1 << 2;
    /// Bit of the conntrack status: the destination was translated.
    pub const STATUS_DESTINATION_NAT: u32 = 1 << 5;
    pub const REJECT_ADMIN_PROHIBITED: u8 = 13;
    pub const REJECT_HOST_PROHIBITED: u8 = 10;
    /// In ICMPv6.
    pub const REJECT_PROHIBITED_V6: u8 = 1;

    pub(super) fn encode(&self, list: &mut Message) {
        let name = self.name();
        list.nested(LIST_ITEM, |item| {
            item.text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, |data| self.encode_data(data));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Expression::Meta { .. } => "meta",
            Expression::Conntrack { .. } => "ct",
            Expression::Payload { .. } => "payload",
            Expression::Compare { .. } => "cmp",
            Expression::Mask { .. } => "bitwise",
            Expression::DestinationKind { .. } => "fib",
            Expression::Contains { .. } | Expression::Find { .. } | Expression::Decide { .. } => "lookup",
            Expression::DestinationNat { .. } => "nat",
            Expression::Masquerade => "masq",
            Expression::Count => "counter",
            Expression::Log { .. } => "log",
            Expression::Limit { .. } => "limit",
            Expression::Reject { .. } => "reject",
            Expression::Verdict(_) => "immediate",
        }
    }

    /// Attribute numbers are those of `linux/netfilter/nf_tables.h`, in the order of its enums.
    fn encode_data(&self, data: &mut Message) {
        match self {
            Expression::Meta { key, to } => _ = data.network_u32(1, to.number()).network_u32(2, *key as u32),
            Expression::Conntrack { key, to } => {
                _ = data.network_u32(1, to.number()).network_u32(2, *key as u32)
            }
            Expression::Payload { field, to } => {
                data.network_u32(1, to.number()).network_u32(2, field.base as u32);
                data.network_u32(3, field.offset).network_u32(4, field.bytes);
            }
            Expression::Compare { with, comparison, value } => {
                data.network_u32(1, with.number()).network_u32(2, *comparison as u32);
                data.nested(3, |inner| _ = inner.attribute(DATA_VALUE, value));
            }
            Expression::Mask { register, mask } => {
                let bytes = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                data.network_u32(1, register.number()).network_u32(2, register.number());
                data.network_u32(3, bytes);
                data.nested(4, |inner| _ = inner.attribute(DATA_VALUE, mask));
                data.nested(5, |inner| _ = inner.attribute(DATA_VALUE, &vec![0; mask.len()]));
            }
            Expression::DestinationKind { to } => {
                const RESULT_ADDRESS_TYPE: u32 = 3;
                const FLAG_DESTINATION: u32 = 2;
                data.network_u32(1, to.number());
                data.network_u32(2, RESULT_ADDRESS_TYPE).network_u32(3, FLAG_DESTINATION);
            }
            Expression::Contains { set, key, inverted } => {
                data.text(1, set).network_u32(2, key.number()).network_u32(5, u32::from(*inverted));
            }
            Expression::Find { map, key, to } => {
                data.text(1, map).network_u32(2, key.number()).network_u32(3, to.number());
            }
            Expression::Decide { map, key } => {
                data.text(1, map).network_u32(2, key.number()).network_u32(3, VERDICT_REGISTER);
            }
            Expression::DestinationNat { family, address, port } => {
                const DESTINATION: u32 = 1;
                data.network_u32(1, DESTINATION).network_u32(2, family.number().into());
                data.network_u32(3, address.number()).network_u32(5, port.number());
            }
            Expression::Masquerade | Expression::Count => {}
            Expression::Log { prefix } => _ = data.text(2, prefix),
            Expression::Limit { packets_per_second } => {
                const SECOND: u64 = 1;
                data.attribute(1, &u64::from(*packets_per_second).to_be_bytes());
                data.attribute(2, &SECOND.to_be_bytes()).network_u32(3, *packets_per_second);
            }
            Expression::Reject { code } => {
                const ICMP_UNREACHABLE: u32 = 0;
                data.network_u32(1, ICMP_UNREACHABLE).attribute(2, &[*code]);
            }
            Expression::Verdict(verdict) => {
                data.network_u32(1, VERDICT_REGISTER).nested(2, |inner| verdict.encode(inner));
            }
        }
    }

    pub fn compare(with: Register, comparison: Comparison, value: &[u8]) -> Self {
        Expression::Compare { with, comparison, value: value.to_vec() }
    }

    /// Of a network.
    pub fn mask(register: Register, family: Family, prefix_bits: u8) -> Self {
        let bits = u128::MAX.checked_shl(u128::BITS - u32::from(prefix_bits)).unwrap_or(0);
        let mask = bits.to_be_bytes()[..family.address_bytes() as usize].to_vec();
        Expression::Mask { register, mask }
    }
}
