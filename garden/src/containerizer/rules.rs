//! From what a client asks for to what `garden-init` does: pure rules, one a concern, each a table in the tests.
//!
//! Paths of the host are only named here; opening them is `container`'s.

use std::path::PathBuf;

use garden_client::{Limits, ProcessSpec, ResourceLimits};
use garden_init::{BindMount, CgroupView, Device, Plan, Role, Source, SpawnSpec, WindowSize};
use garden_sys::cgroup::{self, View};

use super::oci::Instance;
use super::{Config, Error, Result, capabilities};

/// What a container is to be, besides its root file system and its network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spec {
    pub handle: String,
    pub privileged: bool,
    /// Of every process, before its own.
    pub env: Vec<String>,
    pub bind_mounts: Vec<garden_client::BindMount>,
    pub limits: Limits,
    /// Where pid 1 listens for a later agent; best in the container's directory of the depot.
    pub socket: Option<PathBuf>,
    /// Made by an OCI runtime instead of us.
    pub oci: Option<Instance>,
}

/// Longest host name given; of a longer handle its end.
const HOST_NAME_BYTES_MAX: usize = 49;

const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const FUSE: (&str, u32, u32) = ("fuse", 10, 229);

/// What would tell of the host, or change it, were ids not mapped.
const MASKED_PATHS: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/kernel/debug",
    "/sys/kernel/security",
];

const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Places that are the container's own file systems: nothing may be mounted over them.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev/pts"];

/// A handle names directories, among them control groups: it must be one plain name.
pub fn check_handle(handle: &str) -> Result<()> {
    const HANDLE_BYTES_MAX: usize = 200;
    let plain = !handle.contains(['/', '\0'])
        && !["", ".", ".."].contains(&handle)
        && handle.len() <= HANDLE_BYTES_MAX;
    if plain {
        Ok(())
    } else {
        Err(Error::Handle { handle: handle.chars().take(HANDLE_BYTES_MAX).collect() })
    }
}

/// A plan and the descriptors to be opened for it, in the order of their indexes, after the root, which is 0.
#[derive(Debug, PartialEq)]
pub struct Prepared {
    pub plan: Plan,
    pub mounts: Vec<HostMount>,
}

/// A path of the host to be shown inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    pub path: PathBuf,
    pub read_only: bool,
}

/// Descriptors of a plan: root, then listener if there is one, then control groups, then mounts.
pub fn plan(
    config: &Config,
    spec: &Spec,
    view: View,
    cgroup_files: usize,
    filter: &[u64],
) -> Result<Prepared> {
    let listener = spec.socket.as_ref().map(|_| 1);
    let cgroups = 1 + listener.iter().len();
    let first_mount = cgroups + cgroup_files;
    let (bind_mounts, mounts) = bind_mounts(&spec.bind_mounts, first_mount)?;
    let guarded = !spec.privileged;
    let plan = Plan {
        role: Role::Pid1 { hostname: host_name(&spec.handle), sysctls: config.sysctls.clone() },
        privileged: spec.privileged,
        root: 0,
        listener,
        cgroups: (cgroups..first_mount).collect(),
        cgroup_view: cgroup_view(view),
        devices: devices(spec.privileged),
        bind_mounts,
        masked_paths: if guarded { MASKED_PATHS.map(String::from).into() } else { Vec::new() },
        read_only_paths: if guarded { READ_ONLY_PATHS.map(String::from).into() } else { Vec::new() },
        capabilities: capabilities::of_container(spec.privileged),
        non_root_capabilities: capabilities::NON_ROOT,
        seccomp: if guarded { filter.to_vec() } else { Vec::new() },
        no_new_privileges: guarded && config.no_new_privileges,
        apparmor: if guarded { config.apparmor.clone() } else { None },
    };
    Ok(Prepared { plan, mounts })
}

fn host_name(handle: &str) -> String {
    let start = (handle.len().saturating_sub(HOST_NAME_BYTES_MAX)..=handle.len())
        .find(|&at| handle.is_char_boundary(at));
    handle[start.unwrap_or(0)..].to_string()
}

fn cgroup_view(view: View) -> CgroupView {
    match view {
        View::V1(hierarchies) => CgroupView::V1(hierarchies),
        View::V2 => CgroupView::V2,
    }
}

fn devices(privileged: bool) -> Vec<Device> {
    let fuse = privileged.then_some(FUSE);
    DEVICES
        .into_iter()
        .chain(fuse)
        .map(|(name, major, minor)| Device { name: name.into(), major, minor })
        .collect()
}

fn bind_mounts(
    wanted: &[garden_client::BindMount],
    first: usize,
) -> Result<(Vec<BindMount>, Vec<HostMount>)> {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for mount in wanted {
        let destination = checked_destination(&mount.dst_path)?;
        let read_only = mount.mode != 1;
        if !mount.src_path.starts_with('/') {
            return Err(refused(mount, "its source is not an absolute path"));
        }
        let source = if mount.origin == 1 {
            Source::Container(mount.src_path.clone())
        } else {
            outside.push(HostMount { path: mount.src_path.clone().into(), read_only });
            Source::Detached(first + outside.len() - 1)
        };
        inside.push(BindMount { source, destination, read_only });
    }
    Ok((inside, outside))
}

fn refused(mount: &garden_client::BindMount, why: &'static str) -> Error {
    Error::BindMount { source_path: mount.src_path.clone(), destination: mount.dst_path.clone(), why }
}

/// Absolute, without `..`, and nothing that covers what isolation rests on.
fn checked_destination(path: &str) -> Result<String> {
    let bad = |why| Err(Error::BindMount { source_path: String::new(), destination: path.into(), why });
    if !path.starts_with('/') || path.contains('\0') {
        return bad("its destination is not an absolute path");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return bad("its destination leads upwards");
    }
    let clean = format!("/{}", parts.join("/"));
    if parts.is_empty()
        || RESERVED.iter().any(|place| clean == *place || clean.starts_with(&format!("{place}/")))
    {
        return bad("its destination belongs to the container itself");
    }
    Ok(clean)
}

/// More processes than any kernel can have; it refuses to limit them to so many.
const PIDS_MAX: u64 = 1 << 22;

pub fn cgroup_limits(config: &Config, limits: &Limits) -> cgroup::Limits {
    // 0 is "none" for both; more than the kernel can count is as good as none.
    let given = |value: u64| (value > 0 && value < i64::MAX as u64).then_some(value);
    cgroup::Limits {
        memory_bytes: given(limits.memory.limit_in_bytes),
        swap_limited: config.swap_limited,
        pids: given(limits.pid.max).filter(|pids| *pids < PIDS_MAX),
        io_weight: (config.io_weight > 0).then_some(config.io_weight),
        io_rates: config.io_rates,
    }
}

/// Least CPU time in each 100 ms that a container is given.
const CPU_QUOTA_US_MIN: u64 = 1000;

/// What the kernel takes.
pub const CPU_SHARES_MIN: u64 = 2;
pub const CPU_SHARES_MAX: u64 = 262_144;

/// `weight` goes before the older `limit_in_shares`; `None`: the kernel's own number.
pub fn cpu_shares(limits: &Limits) -> Option<u64> {
    let shares = if limits.cpu.weight > 0 { limits.cpu.weight } else { limits.cpu.limit_in_shares };
    (shares > 0).then_some(shares.clamp(CPU_SHARES_MIN, CPU_SHARES_MAX))
}

pub fn cpu_limits(config: &Config, limits: &Limits) -> cgroup::CpuLimits {
    let shares = cpu_shares(limits);
    let per_share = config.cpu_quota_per_share_us;
    let quota_us =
        shares.filter(|_| per_share > 0).map(|shares| shares.saturating_mul(per_share).max(CPU_QUOTA_US_MIN));
    let burst_us = (config.cpu_burst_us > 0).then_some(config.cpu_burst_us);
    cgroup::CpuLimits { shares, quota_us, burst_us }
}

/// The environment of the container comes first, so that the process's own wins.
pub fn spawn_spec(id: String, container_env: &[String], spec: &ProcessSpec) -> SpawnSpec {
    SpawnSpec {
        process: id,
        path: spec.path.clone(),
        args: spec.args.clone(),
        env: container_env.iter().chain(&spec.env).cloned().collect(),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        rlimits: rlimits(&spec.rlimits),
        tty: spec.tty.map(|tty| {
            let size = tty.window_size.unwrap_or_default();
            WindowSize { columns: size.columns, rows: size.rows }
        }),
        stdin: false,
    }
}

fn rlimits(limits: &ResourceLimits) -> Vec<(u32, u64)> {
    let all = [
        (libc::RLIMIT_AS, limits.address_space),
        (libc::RLIMIT_CORE, limits.core),
        (libc::RLIMIT_CPU, limits.cpu),
        (libc::RLIMIT_DATA, limits.data),
        (libc::RLIMIT_FSIZE, limits.fsize),
        (libc::RLIMIT_LOCKS, limits.locks),
        (libc::RLIMIT_MEMLOCK, limits.memlock),
        (libc::RLIMIT_MSGQUEUE, limits.msgqueue),
        (libc::RLIMIT_NICE, limits.nice),
        (libc::RLIMIT_NOFILE, limits.nofile),
        (libc::RLIMIT_NPROC, limits.nproc),
        (libc::RLIMIT_RSS, limits.rss),
        (libc::RLIMIT_RTPRIO, limits.rtprio),
        (libc::RLIMIT_SIGPENDING, limits.sigpending),
        (libc::RLIMIT_STACK, limits.stack),
    ];
    all.into_iter().filter_map(|(resource, value)| Some((resource as u32, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use garden_client::{CpuLimits, MemoryLimits, PidLimits, TtySpec};

    fn mount(src: &str, dst: &str, mode: u8, origin: u8) -> garden_client::BindMount {
        garden_client::BindMount { src_path: src.into(), dst_path: dst.into(), mode, origin }
    }

    #[test]
    fn a_long_handle_gives_its_end_as_host_name() {
        for (handle, expected) in [
            ("short", "short".to_string()),
            (&"x".repeat(60), "x".repeat(49)),
            (&format!("é{}", "y".repeat(48)), "y".repeat(48)),
        ] {
            assert_eq!(host_name(handle), expected);
        }
    }

    #[test]
    fn a_handle_is_one_plain_name() {
        for (handle, good) in [
            ("a", true),
            ("a.b-c_d", true),
            ("...", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("/", false),
        ] {
            assert_eq!(check_handle(handle).is_ok(), good, "{handle}");
        }
        assert!(check_handle(&"x".repeat(201)).is_err());
    }

    #[test]
    fn mounts_of_the_host_are_numbered_and_those_of_the_container_named() {
        let wanted = [mount("/a", "/x", 0, 0), mount("/b", "/y/", 1, 1), mount("/c", "//z/./w", 1, 0)];
        let (inside, outside) = bind_mounts(&wanted, 5).unwrap();
        let short: Vec<_> =
            inside.iter().map(|one| (&one.source, &one.destination[..], one.read_only)).collect();
        assert_eq!(
            short,
            [
                (&Source::Detached(5), "/x", true),
                (&Source::Container("/b".into()), "/y", false),
                (&Source::Detached(6), "/z/w", false),
            ]
        );
        assert_eq!(
            outside,
            [
                HostMount { path: "/a".into(), read_only: true },
                HostMount { path: "/c".into(), read_only: false }
            ]
        );
    }

    #[test]
    fn mounts_that_would_undo_isolation_are_refused() {
        for destination in [
            "",
            "relative",
            "/",
            "/proc",
            "/proc/self/exe",
            "/./proc/",
            "/sys/fs/cgroup",
            "/a/../proc",
            "/dev/pts/0",
        ] {
            assert!(bind_mounts(&[mount("/a", destination, 0, 0)], 0).is_err(), "{destination}");
        }
        assert!(bind_mounts(&[mount("a", "/x", 0, 0)], 0).is_err());
        for destination in ["/process", "/dev/shm/x", "/etc/hosts"] {
            assert!(bind_mounts(&[mount("/a", destination, 0, 0)], 0).is_ok(), "{destination}");
        }
    }

    #[test]
    fn limits_of_zero_are_none() {
        let config = Config::default();
        let check = |memory: u64, pids: u64, expected: (Option<u64>, Option<u64>)| {
            let limits = Limits {
                memory: MemoryLimits { limit_in_bytes: memory },
                pid: PidLimits { max: pids },
                ..Limits::default()
            };
            let got = cgroup_limits(&config, &limits);
            assert_eq!((got.memory_bytes, got.pids), expected, "{memory} {pids}");
        };
        check(0, 0, (None, None));
        check(64 << 20, 100, (Some(64 << 20), Some(100)));
        check(u64::MAX, u64::MAX, (None, None));
        check(1, PIDS_MAX - 1, (Some(1), Some(PIDS_MAX - 1)));
        check(0, PIDS_MAX, (None, None));
    }

    #[test]
    fn weight_goes_before_shares() {
        let check = |weight: u64, shares: u64, per_share: u64, expected: (Option<u64>, Option<u64>)| {
            let config = Config { cpu_quota_per_share_us: per_share, ..Config::default() };
            let limits = Limits { cpu: CpuLimits { weight, limit_in_shares: shares }, ..Limits::default() };
            let got = cpu_limits(&config, &limits);
            assert_eq!((got.shares, got.quota_us), expected, "{weight} {shares} {per_share}");
        };
        check(0, 0, 10, (None, None));
        check(0, 512, 0, (Some(512), None));
        check(100, 512, 0, (Some(100), None));
        check(1, 0, 10, (Some(2), Some(1000)));
        check(1024, 0, 10, (Some(1024), Some(10_240)));
        check(u64::MAX, 0, 1, (Some(262_144), Some(262_144)));
    }

    #[test]
    fn the_processs_environment_comes_last() {
        let spec = ProcessSpec {
            env: vec!["A=2".into()],
            rlimits: ResourceLimits { nofile: Some(7), ..ResourceLimits::default() },
            tty: Some(TtySpec::default()),
            ..ProcessSpec::default()
        };
        let got = spawn_spec("p".into(), &["A=1".into()], &spec);
        assert_eq!(got.env, ["A=1", "A=2"]);
        assert_eq!(got.rlimits, [(libc::RLIMIT_NOFILE as u32, 7)]);
        assert_eq!(got.tty, Some(WindowSize { columns: 0, rows: 0 }));
    }

    #[test]
    fn a_privileged_container_has_no_filter_and_no_masks() {
        let spec = |privileged| Spec {
            handle: "h".into(),
            privileged,
            socket: Some("/s".into()),
            ..Spec::default()
        };
        let prepared =
            |privileged| plan(&Config::default(), &spec(privileged), View::V2, 2, &[1, 2]).unwrap().plan;
        let (guarded, privileged) = (prepared(false), prepared(true));
        assert_eq!((guarded.root, guarded.listener, guarded.cgroups.clone()), (0, Some(1), vec![2, 3]));
        assert!(!guarded.seccomp.is_empty() && !guarded.masked_paths.is_empty());
        assert!(
            privileged.seccomp.is_empty()
                && privileged.masked_paths.is_empty()
                && privileged.devices.len() == 7
        );
    }
}
