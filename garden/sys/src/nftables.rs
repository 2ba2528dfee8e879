//! One nftables table, changed by transactions: everything in a [`Transaction`] happens, or nothing.
//!
//! Only the encoding and the sending: which chains and rules there are is decided by garden's networker. Adding what
//! is there already is no error, so that "add, then delete" inside one transaction deletes whether it was there or
//! not, on every kernel.

mod expression;
mod look;
pub mod others;
mod owner;

pub use expression::{Base, Comparison, ConntrackKey, Expression, Field, MetaKey, Register, Verdict};
pub use look::Look;
pub use owner::Owner;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::netlink::message::{Message, NLM_F_APPEND, NLM_F_CREATE};
use crate::netlink::{Protocol, Result, Socket};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

/// Attribute 1 is the table in every message.
const TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_HAS_OWNER: u32 = 2;
const TABLE_OUTLIVES_OWNER: u32 = 4;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const SET_IS_ANONYMOUS: u32 = 1;
const SET_IS_CONSTANT: u32 = 2;
const SET_OF_INTERVALS: u32 = 4;
const SET_IS_MAP: u32 = 8;
const SET_IS_CONCATENATION: u32 = 0x80;
const DESCRIPTION_PARTS: u16 = 2;
const PART_BYTES: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_KEY_END: u16 = 10;
const LIST_ITEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const ACCEPT: u32 = 1;
/// What fits into one message, whose parts count their bytes in 16 bits; the longest keys are of 64 bytes.
const ELEMENTS_A_MESSAGE: usize = 256;
/// What the kernel keeps of each part of a key.
const PART_ALIGNMENT: u32 = 4;

/// Sets of rules have names for no one but the kernel, which wants them to differ.
static ANONYMOUS_SETS: AtomicU64 = AtomicU64::new(0);

/// Where a chain is hooked into the kernel's path of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

/// Of addresses. The tables of one name in two families are two tables, which one transaction changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Self; 2] = [Family::Ipv4, Family::Ipv6];

    pub fn address_bytes(self) -> u32 {
        self.address().bytes()
    }

    pub fn address(self) -> DataType {
        match self {
            Family::Ipv4 => DataType::Ipv4Address,
            Family::Ipv6 => DataType::Ipv6Address,
        }
    }

    /// As the kernel counts families of protocols.
    pub fn number(self) -> u8 {
        match self {
            Family::Ipv4 => libc::AF_INET as u8,
            Family::Ipv6 => libc::AF_INET6 as u8,
        }
    }
}

/// What the parts of keys and values are. The numbers are those by which the `nft` tool knows how to print them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    Ipv4Address,
    Ipv6Address,
    TransportProtocol,
    Port,
    LinkName,
}

impl DataType {
    fn number(self) -> u32 {
        match self {
            DataType::Ipv4Address => 7,
            DataType::Ipv6Address => 8,
            DataType::TransportProtocol => 12,
            DataType::Port => 13,
            DataType::LinkName => 41,
        }
    }

    fn bytes(self) -> u32 {
        match self {
            DataType::Ipv4Address => 4,
            DataType::Ipv6Address => 16,
            DataType::TransportProtocol => 1,
            DataType::Port => 2,
            DataType::LinkName => libc::IFNAMSIZ as u32,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapData<'a> {
    /// A set: only keys.
    Nothing,
    Verdict,
    Values(&'a [DataType]),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Nothing,
    Bytes(Vec<u8>),
    Verdict(Verdict),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    /// The last of its keys, in sets of ranges.
    pub key_end: Option<Vec<u8>>,
    pub value: Value,
}

impl Element {
    pub fn new(key: Vec<u8>, value: Value) -> Self {
        Self { key, key_end: None, value }
    }

    /// Of a set of ranges; these are numbers that are kept in network byte order.
    pub fn of_ranges(parts: &[DataType], ranges: &[RangeInclusive<u128>]) -> Self {
        let key = |end: fn(&RangeInclusive<u128>) -> &u128| {
            let mut bytes = Vec::new();
            for (part, range) in parts.iter().zip(ranges) {
                let value = end(range).to_be_bytes();
                bytes.extend_from_slice(&value[value.len() - part.bytes() as usize..]);
                bytes.resize(bytes.len().next_multiple_of(PART_ALIGNMENT as usize), 0);
            }
            bytes
        };
        Self {
            key: key(RangeInclusive::start),
            key_end: Some(key(RangeInclusive::end)),
            value: Value::Nothing,
        }
    }

    fn encode(&self, item: &mut Message) {
        item.nested(ELEMENT_KEY, |key| _ = key.attribute(DATA_VALUE, &self.key));
        if let Some(end) = &self.key_end {
            item.nested(ELEMENT_KEY_END, |key| _ = key.attribute(DATA_VALUE, end));
        }
        match &self.value {
            Value::Nothing => {}
            Value::Bytes(bytes) => {
                item.nested(ELEMENT_DATA, |data| _ = data.attribute(DATA_VALUE, bytes));
            }
            Value::Verdict(verdict) => _ = item.nested(ELEMENT_DATA, |data| verdict.encode(data)),
        }
    }
}

/// Who may change a table, and delete it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    ByAnybody,
    /// By the [`Owner`] that made it alone, as long as that lives: whoever flushes all rules leaves these. Afterwards it stays as
    /// it is, and is anybody's. Kernels before 6.9 refuse it as an operation that is not supported.
    ByItsOwner,
}

/// Changes to the tables of one name.
#[derive(Debug)]
pub struct Transaction {
    table: String,
    /// Whose table is spoken of.
    family: Family,
    messages: Vec<Message>,
    sets: u32,
    rules: BTreeMap<(Family, String), usize>,
}

impl Transaction {
    /// At first of the table for IPv4.
    pub fn new(table: &str) -> Self {
        let (messages, rules) = (Vec::new(), BTreeMap::new());
        Self { table: table.into(), family: Family::Ipv4, messages, sets: 0, rules }
    }

    /// From now on of this family's table.
    pub fn turn_to(&mut self, family: Family) -> &mut Self {
        self.family = family;
        self
    }

    /// One that is there already stays as it is.
    pub fn add_table(&mut self, changed: Changed) -> &mut Self {
        self.change(NEW_TABLE, NLM_F_CREATE, |message| {
            if changed == Changed::ByItsOwner {
                message.network_u32(TABLE_FLAGS, TABLE_HAS_OWNER | TABLE_OUTLIVES_OWNER);
            }
        })
    }

    /// With everything in it.
    pub fn delete_table(&mut self) -> &mut Self {
        self.change(DELETE_TABLE, 0, |_| {})
    }

    pub fn add_chain(&mut self, name: &str) -> &mut Self {
        self.change(NEW_CHAIN, NLM_F_CREATE, |message| {
            message.text(CHAIN_NAME, name);
        })
    }

    /// A chain that packets enter by themselves; those that reach its end are accepted.
    pub fn add_base_chain(&mut self, name: &str, kind: ChainKind, hook: Hook, priority: i32) -> &mut Self {
        self.change(NEW_CHAIN, NLM_F_CREATE, |message| {
            message.text(CHAIN_NAME, name);
            message.text(CHAIN_TYPE, if kind == ChainKind::Nat { "nat" } else { "filter" });
            message.network_u32(CHAIN_POLICY, ACCEPT);
            message.nested(CHAIN_HOOK, |place| {
                place.network_u32(HOOK_NUMBER, hook as u32).network_u32(HOOK_PRIORITY, priority as u32);
            });
        })
    }

    pub fn delete_chain(&mut self, name: &str) -> &mut Self {
        self.change(DELETE_CHAIN, 0, |message| {
            message.text(CHAIN_NAME, name);
        })
    }

    /// Deletes every rule of the chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        self.change(DELETE_RULE, 0, |message| {
            message.text(RULE_CHAIN, name);
        })
    }

    /// How many rules it adds to each chain.
    pub fn rules(&self) -> &BTreeMap<(Family, String), usize> {
        &self.rules
    }

    /// At the end of the chain.
    pub fn add_rule(&mut self, chain: &str, expressions: &[Expression]) -> &mut Self {
        *self.rules.entry((self.family, chain.into())).or_default() += 1;
        self.change(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |message| {
            message.text(RULE_CHAIN, chain).nested(RULE_EXPRESSIONS, |list| {
                for expression in expressions {
                    expression.encode(list);
                }
            });
        })
    }

    pub fn add_set(&mut self, name: &str, key: &[DataType], data: MapData<'_>) -> &mut Self {
        const VERDICT_DATA_TYPE: u32 = 0xffff_ff00;
        self.sets += 1;
        let id = self.sets;
        self.change(NEW_SET, NLM_F_CREATE, |message| {
            let (key_type, key_bytes) = concatenation(key);
            message.text(SET_NAME, name);
            message.network_u32(SET_FLAGS, if data == MapData::Nothing { 0 } else { SET_IS_MAP });
            message.network_u32(SET_KEY_TYPE, key_type).network_u32(SET_KEY_LENGTH, key_bytes);
            match data {
                MapData::Nothing => {}
                MapData::Verdict => {
                    message.network_u32(SET_DATA_TYPE, VERDICT_DATA_TYPE).network_u32(SET_DATA_LENGTH, 0);
                }
                MapData::Values(parts) => {
                    let (data_type, data_bytes) = concatenation(parts);
                    message.network_u32(SET_DATA_TYPE, data_type).network_u32(SET_DATA_LENGTH, data_bytes);
                }
            }
            message.network_u32(SET_ID, id);
        })
    }

    /// Its keys are of several parts, each of a range, and no two keys may have anything in common.
    pub fn add_set_of_ranges(&mut self, name: &str, key: &[DataType]) -> &mut Self {
        self.set_of_ranges(name, key, SET_OF_INTERVALS | SET_IS_CONCATENATION)
    }

    /// One of those for a rule of this transaction alone, with which it goes. Tells its name.
    pub fn add_set_of_a_rule(&mut self, key: &[DataType], elements: &[Element]) -> String {
        let name = format!("__set{}", ANONYMOUS_SETS.fetch_add(1, Ordering::Relaxed));
        let flags = SET_OF_INTERVALS | SET_IS_CONCATENATION | SET_IS_ANONYMOUS | SET_IS_CONSTANT;
        self.set_of_ranges(&name, key, flags).add_elements(&name, elements);
        name
    }

    fn set_of_ranges(&mut self, name: &str, key: &[DataType], flags: u32) -> &mut Self {
        self.sets += 1;
        let id = self.sets;
        self.change(NEW_SET, NLM_F_CREATE, |message| {
            let (key_type, key_bytes) = concatenation(key);
            message.text(SET_NAME, name).network_u32(SET_FLAGS, flags);
            message.network_u32(SET_KEY_TYPE, key_type).network_u32(SET_KEY_LENGTH, key_bytes);
            message.nested(SET_DESCRIPTION, |description| {
                description.nested(DESCRIPTION_PARTS, |parts| {
                    for part in key {
                        parts.nested(LIST_ITEM, |item| _ = item.network_u32(PART_BYTES, part.bytes()));
                    }
                });
            });
            message.network_u32(SET_ID, id);
        })
    }

    pub fn delete_set(&mut self, name: &str) -> &mut Self {
        self.change(DELETE_SET, 0, |message| {
            message.text(SET_NAME, name);
        })
    }

    /// Deletes every element of the set.
    pub fn flush_set(&mut self, name: &str) -> &mut Self {
        self.change(DELETE_ELEMENT, 0, |message| {
            message.text(ELEMENTS_SET, name);
        })
    }

    pub fn add_elements(&mut self, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(NEW_ELEMENT, NLM_F_CREATE, set, elements)
    }

    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(DELETE_ELEMENT, 0, set, elements)
    }

    /// In few messages: for each the kernel looks for the set, by its name, among all of the table.
    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) -> &mut Self {
        for elements in elements.chunks(ELEMENTS_A_MESSAGE) {
            self.change(kind, flags, |message| {
                message.text(ELEMENTS_SET, set).nested(ELEMENTS_LIST, |list| {
                    for element in elements {
                        list.nested(LIST_ITEM, |item| element.encode(item));
                    }
                });
            });
        }
        self
    }

    fn change(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message)) -> &mut Self {
        let mut message = Message::new(SUBSYSTEM | kind, flags, &generation(self.family.number(), 0));
        message.text(TABLE, &self.table);
        fill(&mut message);
        self.messages.push(message);
        self
    }

    /// By nobody who owns anything, in the network namespace of the calling thread.
    pub fn commit(self, act: &str) -> Result<()> {
        send(act, self.messages)
    }
}

/// As one transaction, in the network namespace of the calling thread.
fn send(act: &str, changes: Vec<Message>) -> Result<()> {
    send_by(&Socket::open(Protocol::Netfilter)?, act, changes)
}

fn send_by(socket: &Socket, act: &str, mut changes: Vec<Message>) -> Result<()> {
    let Some(last) = changes.last_mut() else { return Ok(()) };
    last.ask_for_ack();
    let edge = |kind| Message::new(kind, 0, &generation(0, libc::NFNL_SUBSYS_NFTABLES as u16));
    let mut messages = vec![edge(BATCH_BEGIN)];
    messages.append(&mut changes);
    messages.push(edge(BATCH_END));
    socket.transaction(act, messages)
}

/// `struct nfgenmsg`: family, version, resource.
fn generation(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

/// The type number and the length in bytes of the parts together. Each part of several fills whole 32-bit registers.
fn concatenation(parts: &[DataType]) -> (u32, u32) {
    const BITS_A_TYPE: u32 = 6;
    let bytes = |part: &DataType| match parts {
        [alone] => alone.bytes(),
        _ => part.bytes().next_multiple_of(PART_ALIGNMENT),
    };
    parts
        .iter()
        .fold((0, 0), |(number, all), part| (number << BITS_A_TYPE | part.number(), all + bytes(part)))
}
