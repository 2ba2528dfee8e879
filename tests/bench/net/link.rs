//! A link as cells have it: 10 Gbit/s from the host, where containers are, to a network of the benchmark's own, where its
//! clients are.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Result;
use garden_sys::netlink::route::{Route, Veth};
use garden_sys::netlink::shaping::Rate;
use garden_sys::netlink::{in_namespace, new_namespace};

/// Of the networks that are set aside for benchmarks.
pub const CELL: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const PREFIX_BITS: u8 = 30;
const NAME: &str = "dbench0";
const MTU: u32 = 1500;
const RATE: Rate = Rate {
    bytes_per_second: 1_250_000_000,
    burst_bytes: 1 << 20,
    // More than one connection ever has under way: nothing is lost.
    queue_bytes: 32 << 20,
};

/// Gone with the last that refers to its far end.
pub struct Link {
    outside: OwnedFd,
}

impl Link {
    pub fn new() -> Result<Link> {
        let link = Link { outside: new_namespace()? };
        let host = Route::open()?;
        let far = Route::open_in(link.outside.as_fd())?;
        let peer_namespace = link.outside.as_fd();
        host.create_veth(&Veth { name: NAME, peer_name: "eth0", peer_namespace, mtu: MTU })?;
        for (links, name, address) in [(&host, NAME, CELL), (&far, "eth0", CLIENT)] {
            let index = links.index(name)?;
            links.add_address(index, address, PREFIX_BITS)?;
            links.bring_up(index)?;
        }
        host.limit_rate(host.index(NAME)?, RATE)?;
        far.limit_rate(far.index("eth0")?, RATE)?;
        Ok(link)
    }

    /// A process that is started by `act` is a client at the far end.
    pub fn outside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(in_namespace(self.outside.as_fd(), act)?)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let deleted = Route::open().and_then(|host| host.delete(NAME));
        if let Err(error) = deleted {
            eprintln!("cannot delete link {NAME}: {error}");
        }
    }
}
