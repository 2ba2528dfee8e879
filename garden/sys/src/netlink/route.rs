//! Links, addresses and routes of one network namespace, by rtnetlink. One request a function.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{
    Attributes, Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, text,
};
use super::{Error, Protocol, Result, Socket};

/// `struct ifaddrmsg`
const ADDRESS_BYTES: usize = 8;
/// `struct ifinfomsg`
const LINK_BYTES: usize = 16;
/// `struct rtnl_link_stats64` begins with packets received and sent, then bytes received and sent.
const STATS64_RX_BYTES_OFFSET: usize = 16;
const STATS64_TX_BYTES_OFFSET: usize = 24;
const VETH_INFO_PEER: u16 = 1;
const IFA_LOCAL: u16 = libc::IFA_LOCAL;
const IFA_ADDRESS: u16 = libc::IFA_ADDRESS;
const IFLA_AF_SPEC: u16 = libc::IFLA_AF_SPEC;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
/// The longest name of a link, without the terminating zero.
pub const LINK_NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// A pair of links, one here and one in another network namespace.
#[derive(Debug)]
pub struct Veth<'a> {
    pub name: &'a str,
    pub peer_name: &'a str,
    pub peer_namespace: BorrowedFd<'a>,
    pub mtu: u32,
}

/// Counters as the link itself sees them: what a container received its host side has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

#[derive(Debug)]
pub struct Route(Socket);

impl Route {
    pub fn open() -> Result<Self> {
        Socket::open(Protocol::Route).map(Self)
    }

    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self> {
        Socket::open_in(Protocol::Route, namespace).map(Self)
    }

    pub(super) fn request(&self, act: &str, message: Message) -> Result<()> {
        self.0.request(act, message)
    }

    pub fn create_veth(&self, veth: &Veth<'_>) -> Result<()> {
        let mut message =
            Message::new(libc::RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &link(0, 0, 0));
        message.text(libc::IFLA_IFNAME, veth.name).native_u32(libc::IFLA_MTU, veth.mtu);
        message.nested(libc::IFLA_LINKINFO, |kind| {
            kind.text(libc::IFLA_INFO_KIND, "veth").nested(libc::IFLA_INFO_DATA, |data| {
                data.nested_after(VETH_INFO_PEER, &link(0, 0, 0), |peer| {
                    peer.text(libc::IFLA_IFNAME, veth.peer_name)
                        .native_u32(libc::IFLA_MTU, veth.mtu)
                        .native_u32(libc::IFLA_NET_NS_FD, veth.peer_namespace.as_raw_fd() as u32);
                });
            });
        });
        self.0.request(&format!("create link {}", veth.name), message)
    }

    pub fn bring_up(&self, index: u32) -> Result<()> {
        let up = libc::IFF_UP as u32;
        let message = Message::new(libc::RTM_SETLINK, NLM_F_ACK, &link(index, up, up));
        self.0.request(&format!("bring up link {index}"), message)
    }

    /// An IPv6 address can be used at once: the kernel does not ask first whether somebody else has it.
    pub fn add_address(&self, index: u32, address: impl Into<IpAddr>, prefix_bits: u8) -> Result<()> {
        let address = address.into();
        self.add_address_beside(index, address, address, prefix_bits)
    }

    /// Of a link at whose other end there is this one address, and nothing else.
    pub fn add_address_with_peer(&self, index: u32, address: Ipv4Addr, peer: Ipv4Addr) -> Result<()> {
        self.add_address_beside(index, address.into(), peer.into(), Ipv4Addr::BITS as u8)
    }

    fn add_address_beside(&self, index: u32, address: IpAddr, beside: IpAddr, prefix_bits: u8) -> Result<()> {
        let mut fixed = [0; ADDRESS_BYTES];
        fixed[..2].copy_from_slice(&[family(address), prefix_bits]);
        if address.is_ipv6() {
            fixed[2] = libc::IFA_F_NODAD as u8;
        }
        fixed[4..].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(libc::RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
        message.attribute(IFA_LOCAL, &octets(address)).attribute(IFA_ADDRESS, &octets(beside));
        self.0.request(&format!("give address {address}/{prefix_bits} to link {index}"), message)
    }

    /// Of all links, each with the link's index.
    pub fn addresses(&self) -> Result<Vec<(u32, IpAddr)>> {
        let mut addresses = Vec::new();
        // Of no family: those of all.
        let message = Message::new(libc::RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_BYTES]);
        self.0.dump("list addresses", message, |payload| addresses.extend(parse_address(payload)))?;
        Ok(addresses)
    }

    /// Of the gateway's family.
    pub fn add_default_route(&self, gateway: impl Into<IpAddr>) -> Result<()> {
        let gateway = gateway.into();
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
        let fixed = [
            family(gateway),
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(libc::RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &fixed);
        message.attribute(libc::RTA_GATEWAY, &octets(gateway));
        self.0.request(&format!("route everything by {gateway}"), message)
    }

    /// What comes by this link for `address`, which is one of the host's by another, may come in. Of IPv6, whose kernel does not
    /// let it otherwise; the other link's own way goes first.
    pub fn add_local_route(&self, index: u32, address: Ipv6Addr) -> Result<()> {
        const METRIC: u32 = 2048;
        let fixed = [
            libc::AF_INET6 as u8,
            Ipv6Addr::BITS as u8,
            0,
            0,
            libc::RT_TABLE_LOCAL,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_LOCAL,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(libc::RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND, &fixed);
        message.attribute(libc::RTA_DST, &address.octets());
        message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        message.attribute(libc::RTA_PRIORITY, &METRIC.to_ne_bytes());
        self.0.request(&format!("let in by link {index} what is for {address}"), message)
    }

    /// Before it comes up: then it has no IPv6 address but those that it is given.
    pub fn without_own_addresses(&self, index: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_SETLINK, NLM_F_ACK, &link(index, 0, 0));
        message.nested(IFLA_AF_SPEC, |families| {
            families.nested(libc::AF_INET6 as u16, |ipv6| {
                ipv6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
            });
        });
        self.0.request(&format!("keep link {index} from making IPv6 addresses"), message)
    }

    /// Whether there was such a link. Its peer goes with it.
    pub fn delete(&self, name: &str) -> Result<bool> {
        let mut message = Message::new(libc::RTM_DELLINK, NLM_F_ACK, &link(0, 0, 0));
        message.text(libc::IFLA_IFNAME, name);
        match self.0.request(&format!("delete link {name}"), message) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub fn find(&self, name: &str) -> Result<Option<Link>> {
        let mut message = Message::new(libc::RTM_GETLINK, NLM_F_ACK, &link(0, 0, 0));
        message.text(libc::IFLA_IFNAME, name);
        let mut found = None;
        match self.0.dump(&format!("find link {name}"), message, |payload| found = parse_link(payload)) {
            Ok(()) => Ok(found),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Like [`Route::find`], where absence is an error.
    pub fn index(&self, name: &str) -> Result<u32> {
        let missing =
            || Error::refused(&format!("find link {name}"), std::io::Error::from_raw_os_error(libc::ENODEV));
        Ok(self.find(name)?.ok_or_else(missing)?.index)
    }

    pub fn links(&self) -> Result<Vec<Link>> {
        let message = Message::new(libc::RTM_GETLINK, NLM_F_DUMP, &link(0, 0, 0));
        let mut links = Vec::new();
        self.0.dump("list links", message, |payload| links.extend(parse_link(payload)))?;
        Ok(links)
    }
}

/// `struct ifinfomsg`: family, pad, type, index, flags, change mask.
fn link(index: u32, flags: u32, change: u32) -> [u8; LINK_BYTES] {
    let mut bytes = [0; LINK_BYTES];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// Of a family that we speak. Where both ends of a link are told, ours is the local one; IPv6 mostly tells one.
fn parse_address(payload: &[u8]) -> Option<(u32, IpAddr)> {
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let value = |wanted| {
        let mut attributes = Attributes::new(payload.get(ADDRESS_BYTES..).unwrap_or_default());
        attributes.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    let value = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS))?;
    let address = match i32::from(*payload.first()?) {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into(),
        _ => return None,
    };
    Some((index, address))
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let mut link = Link { index, name: String::new(), mtu: 0, rx_bytes: 0, tx_bytes: 0 };
    for (kind, value) in Attributes::new(payload.get(LINK_BYTES..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32::from_ne_bytes(value.try_into().ok()?),
            libc::IFLA_STATS64 => {
                link.rx_bytes = counter(value, STATS64_RX_BYTES_OFFSET)?;
                link.tx_bytes = counter(value, STATS64_TX_BYTES_OFFSET)?;
            }
            _ => {}
        }
    }
    Some(link)
}

fn counter(stats: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(stats.get(offset..offset + 8)?.try_into().ok()?))
}
