//! A Plan as an OCI runtime spec. Pure: every field of the Plan is in the spec, is left to the garden-init that the
//! runtime starts as pid 1, or is refused.
//!
//! Left to garden-init: the seccomp filter, which stands in the Plan compiled, and with it giving up the capability it
//! takes to load one; capabilities of users other than root, which are a matter of each process; the listening socket.
//! Weights and rates of disks and CPU bursts are set on the control group by us before the runtime puts pid 1 there.

use std::path::{Path, PathBuf};

use garden_init::{BindMount, CgroupView, Device, IdRange, Plan, Role, Source};
use garden_sys::cgroup::{CpuLimits, Limits};
use serde_json::{Value, json};

/// Where the runtime shows garden-init inside.
pub const INIT: &str = "/dev/garden-init";
/// To load a filter takes `CAP_SYS_ADMIN`; garden-init gives it up right after.
const SYS_ADMIN: u64 = 1 << 21;
const CPU_PERIOD_US: u64 = 100_000;

const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    #[error("an OCI runtime cannot bind {0} of the container itself")]
    OwnSource(String),
    #[error("an OCI runtime cannot make a pea")]
    Pea,
    #[error("descriptor {0} of the plan is no mount of the host")]
    Descriptor(usize),
}

/// What a spec names besides the Plan.
pub struct Surroundings<'a> {
    /// The program garden-init on the host.
    pub init: &'a Path,
    /// Where the root is attached when the runtime is called.
    pub root: &'a Path,
    /// In whose user and network namespace the container is.
    pub blank: i32,
    /// `None`: privileged.
    pub ids: Option<IdRange>,
    /// False for runtimes that read the mapping from the namespace themselves and refuse one that is told.
    pub tell_mapping: bool,
    /// Where what is to be bound is attached, by the descriptors of the Plan, the first of which is `first_mount`.
    pub mounts: &'a [PathBuf],
    /// Capabilities that garden itself has: a runtime fails where it is to give others.
    pub held: u64,
    pub first_mount: usize,
    pub cgroup: String,
    pub limits: Limits,
    pub cpu: CpuLimits,
    /// `kind major:minor access` of all that may be used.
    pub devices: Vec<Value>,
}

pub fn spec(plan: &Plan, around: &Surroundings<'_>) -> Result<Value, Refused> {
    let Plan {
        role,
        privileged,
        root: _,
        listener: _,
        cgroups: _,
        cgroup_view,
        devices,
        bind_mounts,
        masked_paths,
        read_only_paths,
        capabilities,
        non_root_capabilities: _,
        seccomp,
        no_new_privileges,
        // For processes, not for pid 1: garden-init sees to it.
        apparmor: _,
    } = plan;
    let Role::Pid1 { hostname, sysctls } = role else { return Err(Refused::Pea) };
    let needed = if seccomp.is_empty() { *capabilities } else { capabilities | SYS_ADMIN };
    let names = capability_names(needed & around.held);
    let sysctls: serde_json::Map<String, Value> =
        sysctls.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "hostname": hostname,
        "root": { "path": around.root, "readonly": false },
        "mounts": mounts(cgroup_view, bind_mounts, around)?,
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [INIT, "pid1"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": no_new_privileges,
            "capabilities": {
                "bounding": &names, "effective": &names, "permitted": &names, "inheritable": [], "ambient": [],
            },
        },
        "linux": {
            "namespaces": namespaces(*privileged, around),
            "maskedPaths": masked_paths,
            "readonlyPaths": read_only_paths,
            "sysctl": sysctls,
            "devices": extra_devices(devices),
            "cgroupsPath": &around.cgroup,
            "resources": resources(around),
            "rootfsPropagation": "private",
        },
    });
    if let Some(ids) = around.ids.filter(|_| around.tell_mapping) {
        let mappings = mappings(&ids);
        spec["linux"]["uidMappings"] = mappings.clone();
        spec["linux"]["gidMappings"] = mappings;
    }
    Ok(spec)
}

fn capability_names(set: u64) -> Vec<String> {
    let held = CAPABILITIES.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
    held.map(|(_, name)| format!("CAP_{name}")).collect()
}

fn namespaces(privileged: bool, around: &Surroundings<'_>) -> Vec<Value> {
    let of_blank =
        |kind: &str, file: &str| json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", around.blank) });
    let mut all: Vec<Value> =
        ["pid", "mount", "ipc", "uts", "cgroup"].into_iter().map(|kind| json!({ "type": kind })).collect();
    all.push(of_blank("network", "net"));
    if !privileged {
        all.push(of_blank("user", "user"));
    }
    all
}

fn mappings(ids: &IdRange) -> Value {
    let line = |inside: u32, outside: u32, count: u32| json!({ "containerID": inside, "hostID": outside, "size": count });
    match ids.root {
        Some(root) => json!([line(0, root, 1), line(1, ids.base, ids.count)]),
        None => json!([line(0, ids.base, ids.count)]),
    }
}

fn mounts(view: &CgroupView, binds: &[BindMount], around: &Surroundings<'_>) -> Result<Vec<Value>, Refused> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let plain = ["nosuid", "noexec", "nodev"];
    let mut all =
        vec![mount("/proc", "proc", &plain), mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])];
    if *view != CgroupView::Nothing {
        all.push(mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]));
    }
    all.push(mount("/dev", "tmpfs", &["nosuid", "noexec", "mode=755", "size=64m"]));
    let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    all.push(mount("/dev/pts", "devpts", &terminals));
    all.push(mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]));
    all.push(mount("/dev/mqueue", "mqueue", &plain));
    let bind = |destination: &str, source: &Path, read_only: bool| {
        let options = ["rbind", "rprivate", if read_only { "ro" } else { "rw" }];
        json!({ "destination": destination, "type": "bind", "source": source, "options": options })
    };
    all.push(bind(INIT, around.init, true));
    for wanted in binds {
        let source = match &wanted.source {
            Source::Container(path) => return Err(Refused::OwnSource(path.clone())),
            Source::Detached(index) => index
                .checked_sub(around.first_mount)
                .and_then(|place| around.mounts.get(place))
                .ok_or(Refused::Descriptor(*index))?,
        };
        all.push(bind(&wanted.destination, source, wanted.read_only));
    }
    Ok(all)
}

/// Every runtime makes the usual ones itself.
fn extra_devices(devices: &[Device]) -> Vec<Value> {
    const USUAL: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
    let extra = devices.iter().filter(|device| !USUAL.contains(&device.name.as_str()));
    extra
        .map(|Device { name, major, minor }| {
            json!({ "path": format!("/dev/{name}"), "type": "c", "major": major, "minor": minor, "fileMode": 0o666 })
        })
        .collect()
}

fn resources(around: &Surroundings<'_>) -> Value {
    let mut devices = vec![json!({ "allow": false, "access": "rwm" })];
    devices.extend(around.devices.iter().cloned());
    let mut resources = json!({ "devices": devices });
    if let Some(bytes) = around.limits.memory_bytes {
        resources["memory"] = json!({ "limit": bytes });
        if around.limits.swap_limited {
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    if let Some(pids) = around.limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    if let Some(shares) = around.cpu.shares {
        resources["cpu"] = json!({ "shares": shares });
    }
    if let Some(quota) = around.cpu.quota_us {
        resources["cpu"]["quota"] = json!(quota);
        resources["cpu"]["period"] = json!(CPU_PERIOD_US);
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use garden_init::Descriptor;

    fn plan(privileged: bool) -> Plan {
        Plan {
            role: Role::Pid1 { hostname: "name".into(), sysctls: vec![("net.a".into(), "1".into())] },
            privileged,
            root: 0,
            listener: Some(1),
            cgroups: Vec::new(),
            cgroup_view: CgroupView::V2,
            devices: ["null", "fuse"].map(|name| Device { name: name.into(), major: 10, minor: 229 }).into(),
            bind_mounts: vec![bind(Source::Detached(2), true), bind(Source::Detached(3), false)],
            masked_paths: vec!["/proc/keys".into()],
            read_only_paths: vec!["/proc/sys".into()],
            capabilities: 0b101,
            non_root_capabilities: 0b1,
            seccomp: if privileged { Vec::new() } else { vec![1] },
            no_new_privileges: true,
            apparmor: None,
        }
    }

    fn bind(source: Source, read_only: bool) -> BindMount {
        BindMount { source, destination: "/in".into(), read_only }
    }

    fn of(plan: &Plan, tell_mapping: bool) -> Result<Value, Refused> {
        let around = Surroundings {
            init: Path::new("/garden-init"),
            root: Path::new("/root"),
            blank: 7,
            ids: (!plan.privileged).then_some(IdRange { base: 10, count: 20, root: None }),
            tell_mapping,
            mounts: &["/a".into(), "/b".into()],
            held: u64::MAX,
            first_mount: 2,
            cgroup: "/diego/h".into(),
            limits: Limits { memory_bytes: Some(64), swap_limited: true, pids: Some(5), ..Limits::default() },
            cpu: CpuLimits { shares: Some(2), quota_us: Some(1000), ..CpuLimits::default() },
            devices: vec![json!("allowed")],
        };
        spec(plan, &around)
    }

    #[test]
    fn everything_of_a_plan_is_in_the_spec() {
        let spec = of(&plan(false), true).unwrap();
        for (place, expected) in [
            ("/hostname", json!("name")),
            ("/root/path", json!("/root")),
            ("/process/args", json!([INIT, "pid1"])),
            ("/process/noNewPrivileges", json!(true)),
            ("/process/capabilities/bounding", json!(["CAP_CHOWN", "CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"])),
            ("/process/capabilities/inheritable", json!([])),
            ("/linux/sysctl", json!({ "net.a": "1" })),
            ("/linux/maskedPaths", json!(["/proc/keys"])),
            ("/linux/readonlyPaths", json!(["/proc/sys"])),
            ("/linux/cgroupsPath", json!("/diego/h")),
            ("/linux/uidMappings", json!([{ "containerID": 0, "hostID": 10, "size": 20 }])),
            ("/linux/resources/memory", json!({ "limit": 64, "swap": 64 })),
            ("/linux/resources/pids", json!({ "limit": 5 })),
            ("/linux/resources/cpu", json!({ "shares": 2, "quota": 1000, "period": 100_000 })),
            ("/linux/resources/devices", json!([{ "allow": false, "access": "rwm" }, "allowed"])),
            ("/linux/devices/0/path", json!("/dev/fuse")),
        ] {
            assert_eq!(spec.pointer(place), Some(&expected), "{place}");
        }
        let namespaces = spec["linux"]["namespaces"].to_string();
        for part in ["pid", "mount", "ipc", "uts", "cgroup", "/proc/7/ns/net", "/proc/7/ns/user"] {
            assert!(namespaces.contains(part), "{part}: {namespaces}");
        }
        let binds: Vec<_> =
            spec["mounts"].as_array().unwrap().iter().filter(|mount| mount["type"] == "bind").collect();
        let short: Vec<_> =
            binds.iter().map(|bind| (bind["source"].as_str().unwrap(), &bind["options"][2])).collect();
        assert_eq!(short, [("/garden-init", &json!("ro")), ("/a", &json!("ro")), ("/b", &json!("rw"))]);
        assert!(of(&plan(false), false).unwrap()["linux"].get("uidMappings").is_none());
    }

    #[test]
    fn a_privileged_container_has_no_user_namespace() {
        let spec = of(&plan(true), true).unwrap();
        assert!(!spec["linux"]["namespaces"].to_string().contains("user"));
        assert!(spec["linux"].get("uidMappings").is_none());
        let names = &spec["process"]["capabilities"]["effective"];
        assert_eq!(
            names,
            &json!(["CAP_CHOWN", "CAP_DAC_READ_SEARCH"]),
            "without a filter nothing takes SYS_ADMIN"
        );
    }

    #[test]
    fn what_a_spec_cannot_say_is_refused() {
        let refused = |source: Source| {
            of(&Plan { bind_mounts: vec![bind(source, true)], ..plan(false) }, true).unwrap_err()
        };
        assert_eq!(refused(Source::Container("/x".into())), Refused::OwnSource("/x".into()));
        for index in [0 as Descriptor, 1, 4] {
            assert_eq!(refused(Source::Detached(index)), Refused::Descriptor(index));
        }
        assert_eq!(of(&Plan { role: Role::Pea, ..plan(false) }, true), Err(Refused::Pea));
    }
}
