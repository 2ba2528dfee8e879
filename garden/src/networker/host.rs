//! The host's own settings and what is read from them: forwarding, links, the way to the internet.
//!
//! What belongs to the host is changed only where containers cannot do without, and so that nothing else notices.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::Path;

use garden_sys::netlink::route::Route;

use super::{Error, Network, Result};

const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const LINKS_V6: &str = "/proc/sys/net/ipv6/conf";
/// Of the calling thread's network namespace; not there in a kernel without IPv6.
const ADDRESSES_V6: &str = "/proc/thread-self/net/if_inet6";
/// `accept_ra`: routers are believed by a host that does not forward, or by any.
const BELIEVES_AS_HOST: &str = "1";
const BELIEVES_ALWAYS: &str = "2";

/// Whoever switched it off, for its own reasons or when it started.
pub fn forward_packets(v6: bool) -> Result<()> {
    if read_setting(FORWARD_V4)? == "0" {
        tracing::info!(setting = FORWARD_V4, "switching IPv4 forwarding on");
        write_setting(FORWARD_V4.into(), "1")?;
    }
    if v6 && read_setting(FORWARD_V6)? == "0" {
        tracing::info!(setting = FORWARD_V6, "switching IPv6 forwarding on");
        go_on_believing_routers()?;
        write_setting(FORWARD_V6.into(), "1")?;
    }
    Ok(())
}

/// A host that begins to forward forgets what routers have told it, its way to the internet perhaps, and hears them no
/// more: but by links that are told to believe them all the same. These go on as they were.
fn go_on_believing_routers() -> Result<()> {
    let failed = |source| Error::File { act: "list", path: LINKS_V6.into(), source };
    for link in std::fs::read_dir(LINKS_V6).map_err(failed)? {
        let link = link.map_err(failed)?.file_name();
        // For those to come, others decide.
        if ["all", "default", "lo"].iter().any(|name| link == *name) {
            continue;
        }
        let setting = |name: &str| format!("{LINKS_V6}/{}/{name}", link.to_string_lossy());
        let kept = || {
            let (forwards, believes) = (setting("forwarding"), setting("accept_ra"));
            if read_setting(&forwards)? == "0" && read_setting(&believes)? == BELIEVES_AS_HOST {
                write_setting(believes, BELIEVES_ALWAYS)?;
            }
            Ok(())
        };
        unless_gone(kept())?;
    }
    Ok(())
}

/// Mapped ports answer on 127.0.0.1 only if answers to it may come in by the link (the firewall's guard keeps
/// everything else to 127/8 out). A link without IPv6 addresses has no IPv6: no rule would look at it.
pub fn configure_link(name: &str, v6: bool) -> Result<()> {
    write_setting(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")?;
    if v6 {
        return speak_ipv6(name);
    }
    unless_gone(write_setting(format!("{LINKS_V6}/{name}/disable_ipv6"), "1"))
}

/// Whatever is the custom here. Nobody on such a link is a router whose word counts.
pub fn speak_ipv6(name: &str) -> Result<()> {
    write_setting(format!("{LINKS_V6}/{name}/accept_ra"), "0")?;
    write_setting(format!("{LINKS_V6}/{name}/disable_ipv6"), "0")
}

/// In the network namespace of the calling thread.
pub fn has_ipv6() -> bool {
    Path::new(ADDRESSES_V6).exists() && Path::new(FORWARD_V6).exists()
}

/// What is not there any more, or never was, needs no setting.
pub fn unless_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn read_setting(path: &str) -> Result<String> {
    let read = std::fs::read_to_string(path);
    let read = read.map_err(|source| Error::File { act: "read", path: path.into(), source })?;
    Ok(read.trim().to_owned())
}

fn write_setting(path: String, value: &str) -> Result<()> {
    std::fs::write(&path, value).map_err(|source| Error::File { act: "write", path: path.into(), source })
}

/// By some process of this host.
pub fn listened_on(port: u16, v6: bool) -> bool {
    let taken = |address: IpAddr| {
        TcpListener::bind((address, port)).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    taken(Ipv4Addr::UNSPECIFIED.into()) || v6 && taken(Ipv6Addr::UNSPECIFIED.into())
}

/// Of the link that the main routing table sends everything else to.
pub fn default_route_mtu() -> Option<u32> {
    let table = std::fs::read_to_string("/proc/thread-self/net/route").ok()?;
    let mut routes = table.lines().skip(1).map(|line| line.split_whitespace());
    let name = routes.find_map(|mut fields| {
        let link = fields.next()?;
        (fields.next()? == "00000000").then_some(link)
    })?;
    Some(Route::open().ok()?.find(name).ok()??.mtu)
}

/// An address of the host in this network, and whose it is; those of our own links are not looked at.
pub fn address_within(
    network: Network,
    link_prefix: &str,
) -> garden_sys::netlink::Result<Option<(String, Ipv4Addr)>> {
    let host = Route::open()?;
    let links = host.links()?;
    let others = host.addresses()?.into_iter().filter_map(|(index, address)| {
        let link = links.iter().find(|link| link.index == index && !link.name.starts_with(link_prefix))?;
        match address {
            IpAddr::V4(address) => Some((link.name.clone(), address)),
            IpAddr::V6(_) => None,
        }
    });
    Ok(others.into_iter().find(|(_, address)| network.contains(*address)))
}

/// The address this host would use towards the internet. Connecting a datagram socket sends nothing.
pub fn own_address() -> Option<IpAddr> {
    const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(8, 8, 8, 8), 80);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ANYWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
