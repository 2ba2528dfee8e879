//! What `gdn server` can be told, by the names deployments use. What becomes of each is in `settings`.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use garden::networker::{AnyNetwork, Network};

use crate::components::flags::Registries;
use crate::duration;

/// A link's name has 15 characters; `dgo`, a hyphen and a container's number need the others.
const TAG_CHARS_MAX: usize = 3;

#[derive(Args)]
#[command(args_override_self = true)]
pub struct ServerFlags {
    #[command(flatten)]
    pub log: LogFlags,
    #[command(flatten)]
    pub server: Server,
    #[command(flatten)]
    pub containers: Containers,
    #[command(flatten)]
    pub runtime: Runtime,
    #[command(flatten)]
    pub image: Image,
    #[command(flatten)]
    pub registries: Registries,
    #[command(flatten)]
    pub network: Networks,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub sysctls: Sysctls,
    #[command(flatten)]
    pub unused: Unused,
}

/// Of `gdn setup`.
#[derive(Args)]
#[command(args_override_self = true)]
pub struct SetupFlags {
    #[command(flatten)]
    pub log: LogFlags,
    #[arg(long, hide = true, value_parser = tag)]
    pub tag: Option<String>,
    #[arg(long, hide = true)]
    pub enable_cpu_throttling: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Logs")]
pub struct LogFlags {
    /// From this level on: `debug`, `info`, `error` or `fatal`, or `info,garden=debug`.
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// How times are written.
    #[arg(long, value_enum, default_value = "rfc3339")]
    pub time_format: TimeFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimeFormat {
    Rfc3339,
    UnixEpoch,
}

#[derive(Args)]
#[command(next_help_heading = "Server")]
pub struct Server {
    /// Listen on this unix socket; otherwise /run/diego/garden.sock, as `gdn` /tmp/garden.sock.
    #[arg(long)]
    pub bind_socket: Option<PathBuf>,
    /// Listen on this address instead.
    #[arg(long)]
    pub bind_ip: Option<IpAddr>,
    #[arg(long)]
    pub bind_port: Option<u16>,
    /// Serve /debug/vars and /log-level on this address.
    #[arg(long)]
    pub debug_bind_ip: Option<IpAddr>,
    #[arg(long, default_value_t = 17_013)]
    pub debug_bind_port: u16,
    /// Sets this garden's names in the kernel apart from those of another on the same machine: up to three small letters
    /// or digits. Its networks, host ports and host ids must be set apart too.
    #[arg(long, value_parser = tag)]
    pub tag: Option<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Containers")]
pub struct Containers {
    /// Records of containers, and the images; otherwise /var/lib/diego/garden, as `gdn` /var/run/gdn/depot.
    #[arg(long)]
    pub depot: Option<PathBuf>,
    /// Disk for what containers write, in MiB; otherwise half of what is free where the depot is. Another value than before
    /// takes effect once the machine has started again.
    #[arg(long)]
    pub disk_mb: Option<u64>,
    /// Where only a filesystem of its own could hold a container to its limit of inodes (a kernel without project quotas), go
    /// without that limit: creates are cheaper by an ext4 in a loop device each.
    #[arg(long)]
    pub ignore_inode_limits: bool,
    /// For containers whose creator names no image.
    #[arg(long, default_value = "")]
    pub default_rootfs: String,
    /// Containers nobody uses are destroyed after this long, unless their creator says otherwise. 0: never.
    #[arg(long, value_parser = duration::parse, default_value = "0")]
    pub default_grace_time: Duration,
    /// Destroy what an earlier garden has left, instead of taking it over.
    #[arg(long)]
    pub destroy_containers_on_startup: bool,
    /// Destroy all containers when told to stop.
    #[arg(long)]
    pub destroy_containers_on_stop: bool,
    #[arg(long)]
    pub disable_privileged_containers: bool,
    /// Processes of unprivileged containers gain nothing by set-uid programs.
    #[arg(long)]
    pub no_new_privileges: bool,
    /// The AppArmor profile of unprivileged containers.
    #[arg(long)]
    pub apparmor: Option<String>,
    /// `TYPE MAJOR:MINOR ACCESS`, for privileged containers.
    #[arg(long = "device-cgroup-rule")]
    pub device_cgroup_rules: Vec<String>,
    /// The first host id that containers' users may have; 65536 of them belong to each container. Below 65536: any.
    #[arg(long)]
    pub uid_map_start: Option<u32>,
    /// How many host ids there are from the first on.
    #[arg(long)]
    pub uid_map_length: Option<u32>,
    /// Groups have the ids that users have.
    #[arg(long)]
    pub gid_map_start: Option<u32>,
    #[arg(long)]
    pub gid_map_length: Option<u32>,
}

#[derive(Args)]
#[command(next_help_heading = "Runtime")]
pub struct Runtime {
    /// The OCI runtime that makes containers instead of this program. `runc`, which deployments name by default, is what
    /// this program stands in for.
    #[arg(long)]
    pub runtime_plugin: Option<PathBuf>,
    #[arg(long = "runtime-plugin-extra-arg", allow_hyphen_values = true)]
    pub runtime_plugin_extra_args: Vec<String>,
    /// An OCI runtime that makes all containers, runc too.
    #[arg(long)]
    pub oci_runtime: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Images")]
pub struct Image {
    /// Use the built-in store of images, whatever plugin is named.
    #[arg(long)]
    pub no_image_plugin: bool,
    /// The program that makes root file systems of unprivileged containers, instead of the built-in store.
    #[arg(long)]
    pub image_plugin: Option<PathBuf>,
    #[arg(long = "image-plugin-extra-arg", allow_hyphen_values = true)]
    pub image_plugin_extra_args: Vec<String>,
    /// The same for privileged containers.
    #[arg(long)]
    pub privileged_image_plugin: Option<PathBuf>,
    #[arg(long = "privileged-image-plugin-extra-arg", allow_hyphen_values = true)]
    pub privileged_image_plugin_extra_args: Vec<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Networks")]
pub struct Networks {
    /// Cut into networks of four addresses, one a container; otherwise 10.254.0.0/18, as `gdn` 10.254.0.0/22.
    #[arg(long)]
    pub network_pool: Option<Network>,
    /// Gives containers IPv6, too: cut like the other, for as many containers, as a /114 is for a /18. Without it they have none.
    #[arg(long)]
    pub network_pool_v6: Option<Network<Ipv6Addr>>,
    /// The first port of the host that leads into containers.
    #[arg(long, default_value_t = 61_001)]
    pub port_pool_start: u16,
    /// How many such ports there are.
    #[arg(long, default_value_t = 4_534)]
    pub port_pool_size: u16,
    /// The address at which those ports are reached; otherwise that of the machine's way to the internet.
    #[arg(long)]
    pub external_ip: Option<IpAddr>,
    /// A network that containers cannot reach, of either family. May be given many times. Everything of IPv4 (0.0.0.0/0) is
    /// everything of IPv6 too, unless networks of that are given.
    #[arg(long = "deny-network")]
    pub deny_networks: Vec<AnyNetwork>,
    /// Let containers reach the machine they run on.
    #[arg(long)]
    pub allow_host_access: bool,
    /// A DNS server for containers, instead of the machine's. May be given many times.
    #[arg(long = "dns-server")]
    pub dns_servers: Vec<IpAddr>,
    /// A DNS server for containers, after the others. May be given many times.
    #[arg(long = "additional-dns-server")]
    pub additional_dns_servers: Vec<IpAddr>,
    /// A line for /etc/hosts of containers. May be given many times.
    #[arg(long = "additional-host-entry")]
    pub additional_host_entries: Vec<String>,
    /// Of containers' links, in bytes; 0: that of the machine's.
    #[arg(long, default_value_t = 0)]
    pub mtu: u32,
    /// The program that gives containers their network, instead of this one.
    #[arg(long)]
    pub network_plugin: Option<PathBuf>,
    #[arg(long = "network-plugin-extra-arg", allow_hyphen_values = true)]
    pub network_plugin_extra_args: Vec<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// 0: as many as there are networks.
    #[arg(long, default_value_t = 0)]
    pub max_containers: u64,
    /// Microseconds of CPU in each 100 ms for each share; 0: no quota.
    #[arg(long, default_value_t = 0)]
    pub cpu_quota_per_share: u64,
    /// Percent of a CPU that one share entitles to; 0: all CPUs spread over all memory.
    #[arg(long, default_value_t = 0.0)]
    pub cpu_entitlement_per_share: f64,
    /// Memory limits do not count swap.
    #[arg(long)]
    pub disable_swap_limit: bool,
    /// 10 to 1000; 0: the system's.
    #[arg(long, default_value_t = 0)]
    pub default_container_blockio_weight: u16,
    /// Bytes a second; 0: no limit.
    #[arg(long, default_value_t = 0)]
    pub container_io_max_read_bps: u64,
    #[arg(long, default_value_t = 0)]
    pub container_io_max_write_bps: u64,
    /// Operations a second; 0: no limit.
    #[arg(long, default_value_t = 0)]
    pub container_io_max_read_iops: u64,
    #[arg(long, default_value_t = 0)]
    pub container_io_max_write_iops: u64,
    /// Containers that have used more CPU than they are entitled to make way for the others.
    #[arg(long)]
    pub enable_cpu_throttling: bool,
    /// Seconds between two looks at who has.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu_throttling_check_interval: u32,
}

#[derive(Args)]
#[command(next_help_heading = "Kernel parameters of containers")]
pub struct Sysctls {
    #[arg(long)]
    pub tcp_keepalive_time: Option<u32>,
    #[arg(long)]
    pub tcp_keepalive_interval: Option<u32>,
    #[arg(long)]
    pub tcp_keepalive_probes: Option<u32>,
    #[arg(long)]
    pub tcp_retries1: Option<u32>,
    #[arg(long)]
    pub tcp_retries2: Option<u32>,
}

/// Taken, so that deployments can go on giving them, and told of once each.
#[derive(Args)]
#[command(next_help_heading = "Taken without effect")]
pub struct Unused {
    #[arg(long, hide = true)]
    pub skip_setup: bool,
    #[arg(long, hide = true)]
    pub read_header_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub properties_path: Option<String>,
    #[arg(long, hide = true)]
    pub port_pool_properties_path: Option<String>,
    #[arg(long, hide = true)]
    pub console_sockets_path: Option<String>,
    #[arg(long, hide = true)]
    pub cleanup_process_dirs_on_wait: bool,
    #[arg(long, hide = true)]
    pub assets_dir: Option<String>,
    #[arg(long, hide = true)]
    pub dadoo_bin: Option<String>,
    #[arg(long, hide = true)]
    pub nstar_bin: Option<String>,
    #[arg(long, hide = true)]
    pub tar_bin: Option<String>,
    #[arg(long, hide = true)]
    pub init_bin: Option<String>,
    #[arg(long, hide = true)]
    pub iptables_bin: Option<String>,
    #[arg(long, hide = true)]
    pub iptables_restore_bin: Option<String>,
    #[arg(long, hide = true)]
    pub enable_container_network_metrics: bool,
    #[arg(long, hide = true)]
    pub metrics_emission_interval: Option<String>,
    #[arg(long, hide = true)]
    pub dropsonde_origin: Option<String>,
    #[arg(long, hide = true)]
    pub dropsonde_destination: Option<String>,
    #[arg(long, hide = true)]
    pub containerd_socket: Option<String>,
    #[arg(long, hide = true)]
    pub use_containerd_for_processes: bool,
    #[arg(long, hide = true)]
    pub tcp_memory_limit: Option<String>,
}

impl Unused {
    /// Each flag that was given, and why it has no effect.
    pub fn given(&self) -> Vec<(&'static str, &'static str)> {
        const ONE_PROGRAM: &str = "this program does itself what that one did";
        const NO_CONTAINERD: &str = "containers are made without containerd";
        const NO_DROPSONDE: &str = "counts are at /debug/vars, they are not sent";
        let all = [
            (self.skip_setup, "skip-setup", "there is no separate setup"),
            (
                self.read_header_timeout.is_some(),
                "read-header-timeout",
                "a connection has 30 s for a head, and 150 s to be idle",
            ),
            (self.properties_path.is_some(), "properties-path", "properties are in each container's record"),
            (
                self.port_pool_properties_path.is_some(),
                "port-pool-properties-path",
                "ports are in each container's record",
            ),
            (self.console_sockets_path.is_some(), "console-sockets-path", "terminals need no files"),
            (
                self.cleanup_process_dirs_on_wait,
                "cleanup-process-dirs-on-wait",
                "processes have no directories",
            ),
            (self.assets_dir.is_some(), "assets-dir", ONE_PROGRAM),
            (self.dadoo_bin.is_some(), "dadoo-bin", ONE_PROGRAM),
            (self.nstar_bin.is_some(), "nstar-bin", ONE_PROGRAM),
            (self.tar_bin.is_some(), "tar-bin", ONE_PROGRAM),
            (self.init_bin.is_some(), "init-bin", "pid 1 is the garden-init beside this program"),
            (self.iptables_bin.is_some(), "iptables-bin", "the firewall is nftables, without a program"),
            (
                self.iptables_restore_bin.is_some(),
                "iptables-restore-bin",
                "the firewall is nftables, without a program",
            ),
            (
                self.enable_container_network_metrics,
                "enable-container-network-metrics",
                "they are always there",
            ),
            (self.metrics_emission_interval.is_some(), "metrics-emission-interval", NO_DROPSONDE),
            (self.dropsonde_origin.is_some(), "dropsonde-origin", NO_DROPSONDE),
            (self.dropsonde_destination.is_some(), "dropsonde-destination", NO_DROPSONDE),
            (self.containerd_socket.is_some(), "containerd-socket", NO_CONTAINERD),
            (self.use_containerd_for_processes, "use-containerd-for-processes", NO_CONTAINERD),
            (self.tcp_memory_limit.is_some(), "tcp-memory-limit", "it is part of the memory limit"),
        ];
        all.into_iter().filter(|(given, ..)| *given).map(|(_, flag, why)| (flag, why)).collect()
    }
}

fn tag(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if plain && (1..=TAG_CHARS_MAX).contains(&text.len()) {
        return Ok(text.into());
    }
    Err(format!("it must be 1 to {TAG_CHARS_MAX} small letters or digits"))
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
