//! `garden` (`gdn`): makes containers, behind the Garden API. Needs root.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use diego_base::serve::Listen;
use garden::containerizer::IdPool;
use garden::networker::Network;
use tokio_util::sync::CancellationToken;

use super::flags::Log;

/// A link's name has 15 characters; `dgo`, a hyphen and a container's number need the others.
const TAG_CHARS_MAX: usize = 3;
const IDS_PER_CONTAINER: u32 = 65_536;

#[derive(Args)]
pub struct Flags {
    /// Listen on this unix socket.
    #[arg(long, default_value = "/run/diego/garden.sock", conflicts_with = "bind_ip")]
    bind_socket: PathBuf,
    /// Listen on this address instead.
    #[arg(long, requires = "bind_port")]
    bind_ip: Option<IpAddr>,
    #[arg(long, requires = "bind_ip")]
    bind_port: Option<u16>,
    /// Records of containers, and the images.
    #[arg(long, default_value = "/var/lib/diego/garden")]
    depot: PathBuf,
    /// For containers whose creator names no image.
    #[arg(long, default_value = "")]
    default_rootfs: String,
    /// 0: as many as there are networks.
    #[arg(long, default_value_t = 0)]
    max_containers: u64,
    /// Destroy all containers when told to stop.
    #[arg(long)]
    destroy_containers_on_stop: bool,
    /// Sets this garden's names in the kernel apart from those of another on the same machine: up to three small letters
    /// or digits. Its networks, host ports and host ids must be set apart too.
    #[arg(long, value_parser = tag)]
    tag: Option<String>,
    /// The first host id of containers' users; 65536 of them belong to each container.
    #[arg(long, value_parser = clap::value_parser!(u32).range(65_536..))]
    uid_map_start: Option<u32>,
    #[command(flatten)]
    network: Networks,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Args)]
struct Networks {
    /// Cut into networks of four addresses, one a container.
    #[arg(long, default_value = "10.254.0.0/18")]
    network_pool: Network,
    /// The first port of the host that leads into containers.
    #[arg(long, default_value_t = 61_001)]
    port_pool_start: u16,
    /// How many such ports there are.
    #[arg(long, default_value_t = 4_534)]
    port_pool_size: u16,
    /// The address at which those ports are reached; otherwise that of the machine's way to the internet.
    #[arg(long)]
    external_ip: Option<IpAddr>,
    /// A network that containers cannot reach. May be given many times.
    #[arg(long = "deny-network")]
    deny_networks: Vec<Network>,
    /// Let containers reach the machine they run on.
    #[arg(long)]
    allow_host_access: bool,
    /// A DNS server for containers, instead of the machine's. May be given many times.
    #[arg(long = "dns-server")]
    dns_servers: Vec<IpAddr>,
    /// Of containers' links, in bytes; otherwise that of the machine's.
    #[arg(long)]
    mtu: Option<u32>,
}

fn tag(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if plain && (1..=TAG_CHARS_MAX).contains(&text.len()) {
        return Ok(text.into());
    }
    Err(format!("it must be 1 to {TAG_CHARS_MAX} small letters or digits"))
}

pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("garden makes containers, and only root can");
    }
    let listen = listen(&flags)?;
    let mut gardener = garden::gardener::Config::new(flags.depot);
    gardener.containerizer.init = crate::dev::beside("garden-init")?;
    gardener.default_rootfs = flags.default_rootfs;
    gardener.max_containers = flags.max_containers;
    gardener.destroy_containers_on_stop = flags.destroy_containers_on_stop;
    if let Some(base) = flags.uid_map_start {
        let containers_max = (u32::MAX - base) / IDS_PER_CONTAINER;
        gardener.containerizer.ids =
            IdPool::Own { base, ids_per_container: IDS_PER_CONTAINER, containers_max };
    }
    flags.network.apply(&mut gardener.networker);
    if let Some(tag) = flags.tag {
        gardener.containerizer.cgroup_parent = format!("diego-{tag}");
        gardener.networker.table = format!("diego-{tag}");
        gardener.networker.link_prefix = format!("dgo{tag}-");
    }
    Ok(garden::run(garden::Config { listen, gardener }, shutdown).await?)
}

fn listen(flags: &Flags) -> Result<Listen> {
    if let (Some(ip), Some(port)) = (flags.bind_ip, flags.bind_port) {
        return Ok(Listen::Tcp(SocketAddr::new(ip, port)));
    }
    if let Some(dir) = flags.bind_socket.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(Listen::Unix(flags.bind_socket.clone()))
}

impl Networks {
    fn apply(self, networker: &mut garden::networker::Config) {
        networker.pool = self.network_pool;
        networker.port_pool_start = self.port_pool_start;
        networker.port_pool_size = self.port_pool_size;
        networker.external_ip = self.external_ip;
        networker.deny_networks = self.deny_networks;
        networker.allow_host_access = self.allow_host_access;
        networker.dns_servers = self.dns_servers;
        networker.mtu = self.mtu;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_fits_into_the_names_it_becomes_part_of() {
        for good in ["a", "p1", "abc"] {
            assert_eq!(tag(good), Ok(good.into()));
        }
        for bad in ["", "abcd", "A", "a/b", "ä"] {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }
}
