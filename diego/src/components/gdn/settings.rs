//! From flags to garden's configuration: each flag is effective, or told of as one that is not, or refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use diego_base::serve::Listen;
use diego_base::telemetry::{Style, Timestamps};
use garden::containerizer::{IdPool, IdRange, IoRates};
use garden::gardener;
use garden::networker::Network;
use garden::plugins::Program;
use garden::plugins::image::{self, ImagePlugin};
use garden::plugins::network::NetworkPlugin;

use super::flags::{
    Containers, Image, Limits, LogFlags, Networks, Runtime, Server, ServerFlags, Sysctls, TimeFormat,
};

const IDS_PER_CONTAINER: u32 = 65_536;
/// The highest id of a host: that of containers' root where image plugins make the roots.
const LAST_ID: u32 = u32::MAX - 1;
const PORTS: u32 = 1 << 16;
const BLOCK_IO_WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Who reaches garden's socket is root: of the directory made for it, only root and its group.
const OWN_DIR_MODE: u32 = 0o750;
const GIVEN_DIR_MODE: u32 = 0o777;

/// What differs by the name under which garden is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Garden,
    /// The established one.
    Gdn,
}

impl Name {
    fn socket(self) -> &'static str {
        match self {
            Name::Garden => "/run/diego/garden.sock",
            Name::Gdn => "/tmp/garden.sock",
        }
    }

    fn depot(self) -> &'static str {
        match self {
            Name::Garden => "/var/lib/diego/garden",
            Name::Gdn => "/var/run/gdn/depot",
        }
    }

    fn network_pool(self) -> Network {
        let prefix_bits = match self {
            Name::Garden => 18,
            Name::Gdn => 22,
        };
        Network::new([10, 254, 0, 0].into(), prefix_bits)
    }
}

/// A flag without effect, and why it has none.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    pub flag: &'static str,
    pub why: String,
}

pub struct Settings {
    pub gardener: gardener::Config,
    pub notes: Vec<Note>,
}

pub fn style(name: Name, log: &LogFlags) -> Style {
    let timestamps = match log.time_format {
        TimeFormat::Rfc3339 => Timestamps::Rfc3339,
        TimeFormat::UnixEpoch => Timestamps::UnixEpoch,
    };
    let renamed = (name == Name::Gdn).then_some(("garden", "guardian"));
    Style { renamed, timestamps, ..Style::default() }
}

/// `fatal` is a level nothing of this program has.
pub fn log_filter(log: &LogFlags) -> &str {
    if log.log_level == "fatal" { "off" } else { &log.log_level }
}

pub fn listen(name: Name, server: &Server) -> Result<Listen> {
    if let Some(ip) = server.bind_ip {
        let port = server.bind_port.context("--bind-ip needs --bind-port")?;
        return Ok(Listen::Tcp(SocketAddr::new(ip, port)));
    }
    ensure!(server.bind_port.is_none(), "--bind-port needs --bind-ip");
    let given = server.bind_socket.clone();
    // The socket is open to whoever reaches it: our own directory is not. The directory of a path that deployments gave
    // or know is as they expect it.
    let mode = if given.is_none() && name == Name::Garden { OWN_DIR_MODE } else { GIVEN_DIR_MODE };
    let socket = given.unwrap_or_else(|| name.socket().into());
    if let Some(dir) = socket.parent() {
        make_directory(dir, mode).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(Listen::Unix(socket))
}

/// With this mode at most, if it is made; one that is there stays as it is.
fn make_directory(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

pub fn debug_address(server: &Server) -> Option<SocketAddr> {
    server.debug_bind_ip.map(|ip| SocketAddr::new(ip, server.debug_bind_port))
}

pub fn settings(name: Name, flags: ServerFlags, init: PathBuf) -> Result<Settings> {
    let mut notes: Vec<Note> =
        flags.unused.given().into_iter().map(|(flag, why)| Note { flag, why: why.into() }).collect();
    let depot = flags.containers.depot.clone().unwrap_or_else(|| name.depot().into());
    let mut config = gardener::Config::new(depot);
    config.rootfs.quota.image_bytes = flags.containers.disk_mb.map(|mebibytes| mebibytes << 20);
    config.rootfs.quota.ignore_inode_limits = flags.containers.ignore_inode_limits;
    config.containerizer.init = init;
    // Who shifts the owners of files knows of one range for all.
    let shared_ids = !flags.image.no_image_plugin && flags.image.image_plugin.is_some();
    containers(flags.containers, shared_ids, &mut config)?;
    runtime(flags.runtime, &mut config, &mut notes)?;
    networks(name, flags.network, &mut config)?;
    limits(&flags.limits, &mut config)?;
    config.containerizer.sysctls = sysctls(&flags.sysctls);
    config.rootfs.registries = flags.registries.policy();
    image_plugins(flags.image, &mut config, &mut notes)?;
    if let Some(tag) = flags.server.tag {
        config.containerizer.cgroup_parent = format!("diego-{tag}");
        config.networker.table = format!("diego-{tag}");
        config.networker.link_prefix = format!("dgo{tag}-");
    }
    Ok(Settings { gardener: config, notes })
}

fn image_plugins(flags: Image, config: &mut gardener::Config, notes: &mut Vec<Note>) -> Result<()> {
    if flags.no_image_plugin {
        let given = [
            (&flags.image_plugin, "image-plugin"),
            (&flags.privileged_image_plugin, "privileged-image-plugin"),
        ];
        for (_, flag) in given.into_iter().filter(|(path, _)| path.is_some()) {
            notes.push(Note { flag, why: "--no-image-plugin".into() });
        }
        return Ok(());
    }
    let plugin =
        |flag: &str, path: Option<PathBuf>, extra_args: Vec<String>| -> Result<Option<ImagePlugin>> {
            let Some(path) = path else { return Ok(None) };
            program(flag, &path)?;
            Ok(Some(ImagePlugin { program: Program { path, extra_args, deadline: image::DEADLINE } }))
        };
    config.image_plugin = plugin("image-plugin", flags.image_plugin, flags.image_plugin_extra_args)?;
    config.privileged_image_plugin = plugin(
        "privileged-image-plugin",
        flags.privileged_image_plugin,
        flags.privileged_image_plugin_extra_args,
    )?;
    Ok(())
}

fn containers(flags: Containers, shared_ids: bool, config: &mut gardener::Config) -> Result<()> {
    config.default_rootfs = flags.default_rootfs.clone();
    config.default_grace_time = flags.default_grace_time;
    config.destroy_containers_on_start = flags.destroy_containers_on_startup;
    config.destroy_containers_on_stop = flags.destroy_containers_on_stop;
    config.allow_privileged = !flags.disable_privileged_containers;
    config.containerizer.no_new_privileges = flags.no_new_privileges;
    config.containerizer.ids = ids(&flags, shared_ids)?;
    ensure!(
        flags.device_cgroup_rules.is_empty(),
        "--device-cgroup-rule is refused: which devices containers may use cannot be changed"
    );
    config.containerizer.apparmor = flags.apparmor.filter(|profile| !profile.is_empty());
    Ok(())
}

/// A range of its own for each container, all of them within what is permitted. Deployments permit everything from 1 on:
/// then the ranges stay clear of the host's users. `shared`: all containers have what is permitted, as image plugins are
/// configured to expect it.
fn ids(flags: &Containers, shared: bool) -> Result<IdPool> {
    for (one, other, what) in [
        (flags.uid_map_start, flags.gid_map_start, "start"),
        (flags.uid_map_length, flags.gid_map_length, "length"),
    ] {
        let same = one == other || one.is_none() || other.is_none();
        ensure!(same, "--uid-map-{what} and --gid-map-{what} must be the same: users and groups share ids");
    }
    if shared {
        let base = flags.uid_map_start.or(flags.gid_map_start).unwrap_or(1);
        let length = flags.uid_map_length.or(flags.gid_map_length).filter(|length| *length > 0);
        let count = length.unwrap_or(LAST_ID.saturating_sub(base));
        ensure!(
            base.checked_add(count).is_some_and(|end| end <= LAST_ID),
            "host ids {base} and the {count} after it are not all ids"
        );
        return Ok(IdPool::Shared(IdRange { base, count, root: Some(LAST_ID) }));
    }
    let default = IdPool::default();
    let (Some(start), IdPool::Own { base, .. }) = (flags.uid_map_start.or(flags.gid_map_start), &default)
    else {
        return Ok(default);
    };
    let length = flags.uid_map_length.or(flags.gid_map_length).filter(|length| *length > 0);
    let end = length.map_or(u32::MAX, |length| start.saturating_add(length));
    let base = if start < IDS_PER_CONTAINER { *base } else { start };
    let containers_max = end.saturating_sub(base) / IDS_PER_CONTAINER;
    ensure!(
        containers_max > 0,
        "host ids from {start} to {end} leave no room for the {IDS_PER_CONTAINER} ids of a container from {base} on"
    );
    Ok(IdPool::Own { base, ids_per_container: IDS_PER_CONTAINER, containers_max })
}

/// Every deployment names runc, which this program stands in for: it makes those containers only that ask for an OCI
/// runtime. Any other runtime is named because somebody wants it.
fn runtime(flags: Runtime, config: &mut gardener::Config, notes: &mut Vec<Note>) -> Result<()> {
    let Runtime { runtime_plugin, runtime_plugin_extra_args: extra_args, oci_runtime } = flags;
    config.oci_for_all = oci_runtime.is_some();
    let Some(path) = oci_runtime.or(runtime_plugin) else { return Ok(()) };
    let stands_in = !config.oci_for_all && path.file_name().is_some_and(|name| name == "runc");
    if stands_in {
        let why =
            "containers are made by this program, unless they have the property garden.runtime=oci".into();
        notes.push(Note { flag: "runtime-plugin", why });
        if !path.is_file() {
            return Ok(());
        }
    } else {
        config.oci_for_all = true;
        program("runtime-plugin", &path)?;
    }
    config.containerizer.oci = Some(garden::containerizer::Runtime { program: path, extra_args });
    Ok(())
}

/// A plugin that is not there is told of at the start, not by the first container.
fn program(flag: &str, path: &std::path::Path) -> Result<()> {
    let found = std::fs::metadata(path).with_context(|| format!("cannot use --{flag}={}", path.display()))?;
    ensure!(found.is_file(), "--{flag}={} is no file", path.display());
    Ok(())
}

fn networks(name: Name, flags: Networks, config: &mut gardener::Config) -> Result<()> {
    if let Some(path) = &flags.network_plugin {
        program("network-plugin", path)?;
    }
    config.network_plugin = flags.network_plugin.map(|path| NetworkPlugin {
        program: Program {
            path,
            extra_args: flags.network_plugin_extra_args,
            deadline: garden::plugins::network::DEADLINE,
        },
    });
    let last = u32::from(flags.port_pool_start) + u32::from(flags.port_pool_size);
    ensure!(
        last <= PORTS,
        "the {} ports from {} on are not all ports",
        flags.port_pool_size,
        flags.port_pool_start
    );
    let networker = &mut config.networker;
    networker.pool = flags.network_pool.unwrap_or(name.network_pool());
    networker.pool_v6 = flags.network_pool_v6;
    networker.port_pool_start = flags.port_pool_start;
    networker.port_pool_size = flags.port_pool_size;
    networker.external_ip = flags.external_ip;
    networker.deny_networks = flags.deny_networks;
    networker.allow_host_access = flags.allow_host_access;
    networker.dns_servers = flags.dns_servers;
    networker.additional_dns_servers = flags.additional_dns_servers;
    networker.additional_host_entries = flags.additional_host_entries;
    networker.mtu = Some(flags.mtu).filter(|mtu| *mtu > 0);
    Ok(())
}

fn limits(flags: &Limits, config: &mut gardener::Config) -> Result<()> {
    config.max_containers = flags.max_containers;
    config.containerizer.cpu_quota_per_share_us = flags.cpu_quota_per_share;
    config.containerizer.swap_limited = !flags.disable_swap_limit;
    let entitlement = flags.cpu_entitlement_per_share;
    ensure!(
        entitlement >= 0.0 && entitlement.is_finite(),
        "--cpu-entitlement-per-share={entitlement} is no share"
    );
    config.cpu_entitlement_per_share = Some(entitlement).filter(|percent| *percent > 0.0);
    let weight = flags.default_container_blockio_weight;
    ensure!(
        weight == 0 || BLOCK_IO_WEIGHTS.contains(&weight),
        "--default-container-blockio-weight={weight} is neither 0 nor from 10 to 1000"
    );
    config.containerizer.io_weight = weight.into();
    let given = |rate: u64| (rate > 0).then_some(rate);
    config.containerizer.io_rates = IoRates {
        read_bytes_per_s: given(flags.container_io_max_read_bps),
        written_bytes_per_s: given(flags.container_io_max_write_bps),
        reads_per_s: given(flags.container_io_max_read_iops),
        writes_per_s: given(flags.container_io_max_write_iops),
    };
    let interval = Duration::from_secs(flags.cpu_throttling_check_interval.into());
    config.cpu_throttling = flags.enable_cpu_throttling.then_some(interval);
    Ok(())
}

fn sysctls(flags: &Sysctls) -> Vec<(String, String)> {
    let all = [
        ("net.ipv4.tcp_keepalive_time", flags.tcp_keepalive_time),
        ("net.ipv4.tcp_keepalive_intvl", flags.tcp_keepalive_interval),
        ("net.ipv4.tcp_keepalive_probes", flags.tcp_keepalive_probes),
        ("net.ipv4.tcp_retries1", flags.tcp_retries1),
        ("net.ipv4.tcp_retries2", flags.tcp_retries2),
    ];
    // 0 is "leave it", as for the established server.
    let given = all.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| *value > 0)?)));
    given.map(|(name, value)| (name.to_owned(), value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    /// Every flag of the established server.
    const ESTABLISHED: &str = "bind-ip bind-port bind-socket debug-bind-ip debug-bind-port tag skip-setup \
        read-header-timeout depot properties-path console-sockets-path cleanup-process-dirs-on-wait \
        disable-privileged-containers device-cgroup-rule uid-map-start uid-map-length gid-map-start gid-map-length \
        default-rootfs default-grace-time destroy-containers-on-startup apparmor no-new-privileges assets-dir dadoo-bin \
        nstar-bin tar-bin iptables-bin iptables-restore-bin init-bin runtime-plugin runtime-plugin-extra-arg \
        no-image-plugin image-plugin image-plugin-extra-arg privileged-image-plugin privileged-image-plugin-extra-arg \
        docker-registry insecure-docker-registry network-pool allow-host-access deny-network dns-server \
        additional-dns-server additional-host-entry external-ip port-pool-start port-pool-size \
        port-pool-properties-path mtu network-plugin network-plugin-extra-arg enable-container-network-metrics \
        cpu-quota-per-share default-container-blockio-weight container-io-max-read-bps container-io-max-write-bps \
        container-io-max-read-iops container-io-max-write-iops max-containers disable-swap-limit \
        metrics-emission-interval dropsonde-origin dropsonde-destination cpu-entitlement-per-share containerd-socket \
        use-containerd-for-processes enable-cpu-throttling cpu-throttling-check-interval tcp-keepalive-time \
        tcp-keepalive-interval tcp-keepalive-probes tcp-retries1 tcp-retries2 log-level time-format";

    fn command() -> clap::Command {
        ServerFlags::augment_args(clap::Command::new("gdn").no_binary_name(true))
    }

    fn flags(line: &str) -> ServerFlags {
        let matches = command().try_get_matches_from(line.split_whitespace()).unwrap();
        ServerFlags::from_arg_matches(&matches).unwrap()
    }

    fn of(line: &str) -> Result<Settings> {
        settings(Name::Gdn, flags(line), "/init".into())
    }

    #[test]
    fn every_flag_of_the_established_server_is_known() {
        let command = command();
        for flag in ESTABLISHED.split_whitespace() {
            assert!(command.get_arguments().any(|argument| argument.get_long() == Some(flag)), "{flag}");
        }
    }

    #[test]
    fn a_flag_without_effect_is_told_of() {
        let notes = of("--skip-setup --dadoo-bin=/x --containerd-socket=/c --iptables-bin=/i").unwrap().notes;
        let flags: Vec<&str> = notes.iter().map(|note| note.flag).collect();
        assert_eq!(flags, ["skip-setup", "dadoo-bin", "iptables-bin", "containerd-socket"]);
        assert_eq!(of("").unwrap().notes, []);
        let apparmor = |line: &str| of(line).unwrap().gardener.containerizer.apparmor;
        assert_eq!(
            (apparmor("--apparmor=garden-default").as_deref(), apparmor("")),
            (Some("garden-default"), None)
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (line, part) in [
            ("--port-pool-start=65000 --port-pool-size=1000", "are not all ports"),
            ("--default-container-blockio-weight=5", "neither 0 nor from 10 to 1000"),
            ("--uid-map-start=70000 --uid-map-length=10", "leave no room"),
            ("--uid-map-start=1 --gid-map-start=2", "must be the same"),
            ("--cpu-entitlement-per-share=-1", "is no share"),
            ("--network-plugin=/no/such", "cannot use --network-plugin=/no/such"),
            ("--network-plugin=/", "is no file"),
        ] {
            let line = line.replace("share=-1", "share=inf");
            let error = of(&line).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn host_ids_stay_clear_of_the_hosts_users() {
        let check = |line: &str, expected: (u32, u32)| {
            let IdPool::Own { base, containers_max, .. } = of(line).unwrap().gardener.containerizer.ids
            else {
                panic!("{line}")
            };
            assert_eq!((base, containers_max), expected, "{line}");
        };
        check("", (0x2000_0000, 16_384));
        check("--uid-map-start=1 --uid-map-length=4294967293", (0x2000_0000, 0xdfff));
        check("--uid-map-start=1 --uid-map-length=0", (0x2000_0000, 0xdfff));
        check("--uid-map-start=1000000 --uid-map-length=131072 --gid-map-start=1000000", (1_000_000, 2));
    }

    #[test]
    fn another_runtime_than_runc_makes_all_containers() {
        let check = |line: &str, program: Option<&str>, for_all: bool| {
            let config = of(line).unwrap().gardener;
            let given = config.containerizer.oci.map(|runtime| runtime.program.display().to_string());
            assert_eq!((given.as_deref(), config.oci_for_all), (program, for_all), "{line}");
        };
        check("", None, false);
        check("--runtime-plugin=/no/such/runc", None, false);
        check("--runtime-plugin=/proc/self/exe", Some("/proc/self/exe"), true);
        check("--runtime-plugin=/no/such/runc --oci-runtime=/proc/self/exe", Some("/proc/self/exe"), true);
        assert!(of("--runtime-plugin=/no/such/runsc").is_err());
    }

    #[test]
    fn image_plugins_know_of_one_range_of_ids_for_all() {
        let line =
            "--image-plugin=/proc/self/exe --image-plugin-extra-arg=--x --uid-map-start=1 --uid-map-length=";
        let config = of(&format!("{line}4294967293")).unwrap().gardener;
        let IdPool::Shared(range) = config.containerizer.ids else { panic!() };
        assert_eq!(range.map(), "0 4294967294 1\n1 1 4294967293\n");
        assert_eq!(config.image_plugin.unwrap().program.extra_args, ["--x"]);
        assert!(config.privileged_image_plugin.is_none());
        assert!(of(&format!("{line}4294967294")).is_err());
        let unused = of("--no-image-plugin --image-plugin=/no/such").unwrap();
        assert_eq!((unused.notes[0].flag, unused.gardener.image_plugin.is_none()), ("image-plugin", true));
    }

    #[test]
    fn the_established_name_has_its_own_defaults() {
        let garden = settings(Name::Garden, flags(""), "/init".into()).unwrap().gardener;
        let gdn = of("").unwrap().gardener;
        assert_eq!(garden.networker.pool.to_string(), "10.254.0.0/18");
        assert_eq!(gdn.networker.pool.to_string(), "10.254.0.0/22");
        assert_eq!((garden.networker.pool_v6, gdn.networker.pool_v6), (None, None));
        assert_eq!(gdn.directory.to_str(), Some("/var/run/gdn/depot"));
        let style = style(Name::Gdn, &flags("--time-format=unix-epoch").log);
        assert_eq!((style.renamed, style.timestamps), (Some(("garden", "guardian")), Timestamps::UnixEpoch));
    }

    #[test]
    fn settings_arrive() {
        let config = of(
            "--default-grace-time=5m --max-containers=7 --disable-swap-limit --cpu-quota-per-share=10 --tag=ab \
             --tcp-keepalive-time=60 --tcp-retries2=0 --dns-server=1.1.1.1 --additional-dns-server=2.2.2.2 --mtu=1400 \
             --insecure-docker-registry=r:1 --cpu-entitlement-per-share=0.5 --disable-privileged-containers \
             --no-new-privileges --network-plugin=/proc/self/exe --network-plugin-extra-arg=--config \
             --network-plugin-extra-arg=/c --docker-registry=r:2 --registry-mirror=*=m:5050 \
             --registry-mirror=docker.io=http://n --registry-certificates=/certs --registry-credentials=/config.json \
             --registry-ca-cert-file=/ca.pem --network-pool-v6=fd00:1::/112 --deny-network=10.0.0.0/8 \
             --deny-network=fd00:2::/32 --ignore-inode-limits",
        )
        .unwrap()
        .gardener;
        assert_eq!(config.default_grace_time.as_secs(), 300);
        assert_eq!((config.max_containers, config.allow_privileged), (7, false));
        assert_eq!(config.cpu_entitlement_per_share, Some(0.5));
        assert_eq!(config.containerizer.cgroup_parent, "diego-ab");
        assert!(!config.containerizer.swap_limited && config.containerizer.no_new_privileges);
        assert_eq!(config.containerizer.cpu_quota_per_share_us, 10);
        assert_eq!(config.containerizer.sysctls, [("net.ipv4.tcp_keepalive_time".into(), "60".into())]);
        assert_eq!((config.networker.mtu, config.networker.dns_servers.len()), (Some(1400), 1));
        assert_eq!(config.networker.pool_v6.map(|pool| pool.to_string()).as_deref(), Some("fd00:1::/112"));
        let denied: Vec<String> = config.networker.deny_networks.iter().map(|one| one.to_string()).collect();
        assert_eq!(denied, ["10.0.0.0/8", "fd00:2::/32"]);
        assert!(config.rootfs.quota.ignore_inode_limits);
        let registries = config.rootfs.registries;
        assert_eq!(
            (&*registries.default_registry, &registries.insecure[..]),
            ("r:2", &["r:1".to_string()][..])
        );
        assert_eq!(
            registries.mirrors,
            ["*=m:5050", "docker.io=http://n"].map(|mirror| mirror.parse().unwrap())
        );
        let files =
            [registries.certificates, registries.credentials, registries.extra_authorities.first().cloned()];
        let files = files.map(|path| path.unwrap().display().to_string());
        assert_eq!(files, ["/certs", "/config.json", "/ca.pem"]);
        let plugin = config.network_plugin.unwrap().program;
        assert_eq!(
            (plugin.path.to_str(), &plugin.extra_args[..]),
            (Some("/proc/self/exe"), &["--config".into(), "/c".into()][..])
        );
    }
}
