//! From blank to pid 1: carries out a [`Plan`] in the new namespaces, step by step, and nothing that is not in it.
//!
//! Every mount is made while the host's tree is still there and nobody else is inside; leaving the host's root, then
//! giving up power, come after; the filter comes last because it forbids most of what went before.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use garden_init::{
    BindMount, CgroupView, Device, Event, Plan, REQUEST_BYTES_MAX, REQUEST_FDS_MAX, Request, Role, Source,
};
use garden_sys::packets::{self, Assembler, Message};
use garden_sys::process::{self, namespaces};
use garden_sys::{loopback, mount, seccomp};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, mknodat, open, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::confinement::Confinement;
use crate::credentials;
use crate::failure::{Context, Failure, Result};
use crate::mounts::{self, Kind, MountOption, PLAIN};
use crate::{limits, nursery, pid1};

/// Links of `/dev`, as every program expects them.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// The group that owns terminals, `tty` everywhere.
const TTY_GROUP: &str = "gid=5";

/// Agents that may wait to be heard; there is one garden at a time.
const NEXT_AGENTS_MAX: i32 = 1;

/// What pid 1 needs to know of its container.
pub struct Container {
    /// It has no container of its own, and ends with its process.
    pub is_pea: bool,
    pub capabilities: u64,
    pub non_root_capabilities: u64,
    pub listener: Option<OwnedFd>,
    pub confinement: Option<Confinement>,
    /// The directory of the container's terminals.
    pub terminals: OwnedFd,
}

/// The life of a child of the nursery; never returns.
///
/// # Safety
/// `garden` is the nursery's descriptor: its owner must not be used or dropped in this process.
pub unsafe fn live(socket: OwnedFd, garden: &OwnedFd) -> ! {
    // SAFETY: as our own contract says.
    unsafe { rustix::io::close(garden.as_raw_fd()) };
    live_by_plan(socket, carry_out)
}

/// Somebody else has made the container around us, and started us in it: what is left of the plan is to take the
/// listener, the only descriptor beside it, and to give up power.
pub fn live_in_a_made_container() -> Result<()> {
    process::never_dumpable().act("become undumpable")?;
    let socket = nursery::take_stdin()?;
    limits::raise();
    live_by_plan(socket, |plan, mut fds| {
        silence_output()?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let listener = take_listener(plan, &mut fds)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let terminals = open("/dev/pts", flags, Mode::empty()).act("open /dev/pts")?;
        let proc = || open("/proc", flags, Mode::empty()).act("open /proc");
        let confinement =
            plan.apparmor.as_deref().map(|profile| Confinement::new(proc()?, profile)).transpose()?;
        give_up_power(plan)?;
        let (capabilities, non_root_capabilities) = (plan.capabilities, plan.non_root_capabilities);
        let is_pea = false;
        Ok(Container { is_pea, capabilities, non_root_capabilities, listener, confinement, terminals })
    })
}

fn live_by_plan(socket: OwnedFd, carry_out: impl FnOnce(&Plan, Descriptors) -> Result<Container>) -> ! {
    let mut assembler = Assembler::new(REQUEST_BYTES_MAX, REQUEST_FDS_MAX);
    let outcome = match assembler.receive_message(&socket) {
        Ok(Some(message)) => prepare(message, carry_out),
        // Nobody has a plan for us.
        Ok(None) => std::process::exit(0),
        Err(error) => Err(Failure::new("receive a plan", error)),
    };
    match outcome {
        Ok(container) => pid1::live(container, socket, assembler),
        Err(failure) => {
            let event = Event::Failed { message: failure.to_string() };
            // Garden may be gone already; there is nobody else to tell.
            let _ = packets::send(&socket, &serde_json::to_vec(&event).unwrap_or_default(), &[]);
            std::process::exit(1)
        }
    }
}

fn prepare(
    message: Message,
    carry_out: impl FnOnce(&Plan, Descriptors) -> Result<Container>,
) -> Result<Container> {
    let request =
        serde_json::from_slice(&message.bytes).map_err(io::Error::from).act("understand the plan")?;
    let Request::Plan(plan) = request else {
        return Err(Failure::new("do anything before a plan has come", Errno::INVAL));
    };
    carry_out(&plan, Descriptors(message.fds.into_iter().map(Some).collect()))
}

struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    fn take(&mut self, index: usize) -> Result<OwnedFd> {
        self.0
            .get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| Failure::new(format!("find descriptor {index} of the plan"), Errno::BADF))
    }
}

fn carry_out(plan: &Plan, mut fds: Descriptors) -> Result<Container> {
    silence_output()?;
    // Who stops, or hangs up on, what garden was started with does not mean its containers. Blanks go with garden.
    rustix::process::setsid().act("make a session")?;
    if plan.privileged {
        // Without a user namespace our copy of the mounts still hears and tells of changes.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .act("make mounts private")?;
    } else {
        credentials::become_ids(0, 0, &[]).act("become root of the user namespace")?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    join_cgroups(plan, &mut fds)?;
    match &plan.role {
        Role::Pid1 { hostname, .. } => {
            loopback::bring_up().act("bring up the loopback interface")?;
            rustix::system::sethostname(hostname.as_bytes())
                .act(format!("set the host name {hostname:?}"))?;
        }
        // What its process leaves behind is not for the container's pid 1, which knows nothing of it.
        Role::Pea => rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .act("become the reaper of a pea")?,
    }

    let root = attach_root(fds.take(plan.root)?)?;
    let sources = bind_sources(&root, &plan.bind_mounts, &mut fds)?;
    let null =
        open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).act("open the null device")?;
    let proc = mount_proc(&root)?;
    mount_sys(&root)?;
    mount_cgroups(&root, &plan.cgroup_view)?;
    let terminals = mount_dev(&root, plan)?;
    for (bind, source) in plan.bind_mounts.iter().zip(sources) {
        bind_mount(&root, bind, source)?;
    }
    if let Role::Pid1 { sysctls, .. } = &plan.role {
        sysctls.iter().try_for_each(|(name, value)| set_sysctl(&proc, name, value))?;
    }
    let mut mask = mounts::Mask::new(null);
    plan.masked_paths.iter().try_for_each(|path| mask.cover(&root, path))?;
    plan.read_only_paths.iter().try_for_each(|path| mounts::make_read_only(&root, path))?;
    leave_host_root(&root)?;

    let listener = take_listener(plan, &mut fds)?;
    drop((root, mask, fds));
    give_up_power(plan)?;
    let (capabilities, non_root_capabilities) = (plan.capabilities, plan.non_root_capabilities);
    let is_pea = plan.role == Role::Pea;
    let confinement = plan.apparmor.as_deref().map(|profile| Confinement::new(proc, profile)).transpose()?;
    Ok(Container { is_pea, capabilities, non_root_capabilities, listener, confinement, terminals })
}

fn take_listener(plan: &Plan, fds: &mut Descriptors) -> Result<Option<OwnedFd>> {
    let listener = plan.listener.map(|index| fds.take(index)).transpose()?;
    if let Some(listener) = &listener {
        // Here and not in garden: whoever connects is shown the process that did this.
        rustix::net::listen(listener, NEXT_AGENTS_MAX).act("listen for the next garden")?;
    }
    Ok(listener)
}

/// From here on failures go through the socket; the log of garden is nothing for a container to write to.
fn silence_output() -> Result<()> {
    let null =
        open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).act("open the null device")?;
    rustix::stdio::dup2_stdout(&null).act("silence standard output")?;
    rustix::stdio::dup2_stderr(&null).act("silence standard error")
}

/// Then a cgroup namespace, whose root is where we are by now.
fn join_cgroups(plan: &Plan, fds: &mut Descriptors) -> Result<()> {
    for &index in &plan.cgroups {
        let mut file = fs::File::from(fds.take(index)?);
        file.write_all(b"0").act("join a control group")?;
    }
    process::unshare(namespaces::CGROUP).act("make a cgroup namespace")
}

/// On top of the host's own root: any other place might be one that `/proc` or `/sys` must be seen to show in full.
fn attach_root(root: OwnedFd) -> Result<OwnedFd> {
    let host = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .act("open the root of the host")?;
    mount::attach(&root, host).act("attach the root file system")?;
    Ok(root)
}

/// Handed back for what is written to it: by this descriptor, never by a path, behind which something else could lie.
fn mount_proc(root: &OwnedFd) -> Result<OwnedFd> {
    let target = mounts::own_directory(root, "proc")?;
    let proc = mounts::create("proc", &[], PLAIN).act("make a /proc")?;
    mount::attach(&proc, target).act("mount /proc")?;
    Ok(proc)
}

fn mount_sys(root: &OwnedFd) -> Result<()> {
    let target = mounts::own_directory(root, "sys")?;
    let sys = match mounts::create("sysfs", &[], PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY) {
        Ok(sys) => sys,
        // A host that hides part of its own /sys lets nobody mount a full one.
        Err(Errno::PERM) => {
            let sys = mount::clone_mount("/sys".as_ref(), true).act("clone /sys")?;
            let set = mount::MountAttrFlags::MOUNT_ATTR_RDONLY | mount::MountAttrFlags::MOUNT_ATTR_NOEXEC;
            mount::set_attributes(&sys, set, true).act("make /sys read-only")?;
            sys
        }
        Err(errno) => return Err(Failure::new("make a /sys", errno)),
    };
    mount::attach(sys, target).act("mount /sys")
}

fn mount_cgroups(root: &OwnedFd, view: &CgroupView) -> Result<()> {
    const PLACE: &str = "/sys/fs/cgroup";
    let read_only = PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let target = || mounts::open_exactly(root, PLACE).act(format!("open {PLACE}"));
    match view {
        CgroupView::Nothing => Ok(()),
        CgroupView::V2 => {
            let group = mounts::create("cgroup2", &[], read_only).act("make a cgroup2 file system")?;
            mount::attach(group, target()?).act(format!("mount {PLACE}"))
        }
        CgroupView::V1(hierarchies) => {
            let top = mounts::create("tmpfs", &[MountOption::Value("mode", "0755")], PLAIN)
                .act(format!("make {PLACE}"))?;
            mount::attach(&top, target()?).act(format!("mount {PLACE}"))?;
            for (name, controllers) in hierarchies {
                let options: Vec<_> = controllers.split(',').map(MountOption::Flag).collect();
                let group = mounts::create("cgroup", &options, read_only)
                    .act(format!("make a cgroup file system of {name}"))?;
                let place = mounts::place(&top, name, Kind::Directory)?;
                mount::attach(group, place).act(format!("mount {PLACE}/{name}"))?;
            }
            mount::set_attributes(&top, mount::MountAttrFlags::MOUNT_ATTR_RDONLY, false)
                .act(format!("make {PLACE} read-only"))
        }
    }
}

/// The directory of terminals is handed back: pid 1 opens terminals by it, not by a name that processes could change.
fn mount_dev(root: &OwnedFd, plan: &Plan) -> Result<OwnedFd> {
    let target = mounts::own_directory(root, "dev")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [MountOption::Value("mode", "0755"), MountOption::Value("size", "64m")];
    let dev = mounts::create("tmpfs", &options, attributes).act("make a /dev")?;
    mount::attach(&dev, target).act("mount /dev")?;
    for (to, name) in DEVICE_LINKS {
        symlinkat(to, &dev, name).act(format!("link /dev/{name}"))?;
    }
    for device in &plan.devices {
        add_device(&dev, device, plan.privileged)?;
    }
    let terminal_options = [
        MountOption::Flag("newinstance"),
        MountOption::Value("ptmxmode", "0666"),
        MountOption::Value("mode", "0620"),
        MountOption::Value("gid", TTY_GROUP.trim_start_matches("gid=")),
    ];
    let no_device = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let terminals = mount_in_dev(&dev, "pts", "devpts", &terminal_options, no_device)?;
    mount_in_dev(&dev, "shm", "tmpfs", &[MountOption::Value("mode", "1777")], PLAIN)?;
    mount_in_dev(&dev, "mqueue", "mqueue", &[], PLAIN)?;
    Ok(terminals)
}

fn mount_in_dev(
    dev: &OwnedFd,
    name: &str,
    kind: &str,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd> {
    let place = mounts::place(dev, name, Kind::Directory)?;
    let mount = mounts::create(kind, options, attributes).act(format!("make a {kind} for /dev/{name}"))?;
    mount::attach(&mount, place).act(format!("mount /dev/{name}"))?;
    Ok(mount)
}

fn add_device(dev: &OwnedFd, device: &Device, privileged: bool) -> Result<()> {
    let Device { name, major, minor } = device;
    let act = || format!("make /dev/{name}");
    let number = rustix::fs::makedev(*major, *minor);
    if privileged {
        mknodat(dev, name.as_str(), FileType::CharacterDevice, Mode::from_raw_mode(0o666), number)
            .act(act())?;
        // The umask does not count for devices that everybody may use.
        return rustix::fs::chmodat(dev, name.as_str(), Mode::from_raw_mode(0o666), AtFlags::empty())
            .act(act());
    }
    // Nodes cannot be made in a user namespace: the host's own is shown, if it is the one meant.
    let source = match mount::clone_mount(format!("/dev/{name}").as_ref(), false) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::new(act(), error)),
    };
    let stat = rustix::fs::fstat(&source).act(act())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != number {
        return Err(Failure::new(act(), Errno::NODEV));
    }
    mounts::make(dev, name, Kind::File).act(act())?;
    let target = mounts::open_exactly(dev, name).act(act())?;
    mount::attach(source, target).act(act())
}

/// All at once, while the root holds nothing but what its image does: a link of an image to `/proc` would else show that
/// a second time, with no path of it masked.
fn bind_sources(root: &OwnedFd, binds: &[BindMount], fds: &mut Descriptors) -> Result<Vec<OwnedFd>> {
    binds.iter().map(|bind| bind_source(root, bind, fds)).collect()
}

fn bind_source(root: &OwnedFd, bind: &BindMount, fds: &mut Descriptors) -> Result<OwnedFd> {
    let path = match &bind.source {
        Source::Detached(index) => return fds.take(*index),
        Source::Container(path) => path,
    };
    let act = || format!("bind {path} of the container");
    let source = mounts::open_inside(root, path).act(format!("open {path} of the container"))?;
    let source = mount::clone_mount_of(source, true).act(act())?;
    if bind.read_only {
        mount::set_attributes(&source, mount::MountAttrFlags::MOUNT_ATTR_RDONLY, true).act(act())?;
    }
    Ok(source)
}

fn bind_mount(root: &OwnedFd, bind: &BindMount, source: OwnedFd) -> Result<()> {
    let act = || format!("bind {}", bind.destination);
    let kind = mounts::kind_of(&source).act(act())?;
    let target = mounts::place(root, &bind.destination, kind)?;
    if mounts::is_of_the_kernel(&target).act(act())? {
        // Where a link of the image leads, or a volume: what isolation rests on would be covered.
        return Err(Failure::new(
            format!("bind {}, which leads into /proc or /sys", bind.destination),
            Errno::XDEV,
        ));
    }
    mount::attach(source, target).act(act())
}

fn set_sysctl(proc: &OwnedFd, name: &str, value: &str) -> Result<()> {
    let path = format!("sys/{}", name.replace('.', "/"));
    let act = || format!("set {name} to {value}");
    let file = rustix::fs::openat2(
        proc,
        path,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        mounts::NOWHERE_ELSE,
    )
    .act(act())?;
    fs::File::from(file).write_all(value.as_bytes()).act(act())
}

/// `pivot_root` onto itself stacks the old root on the new one, from where it is let go.
fn leave_host_root(root: &OwnedFd) -> Result<()> {
    rustix::process::fchdir(root).act("enter the new root")?;
    rustix::process::pivot_root(".", ".").act("make it the root")?;
    unmount(".", UnmountFlags::DETACH).act("let go of the host's root")?;
    rustix::process::chdir("/").act("enter the new root")
}

fn give_up_power(plan: &Plan) -> Result<()> {
    match process::new_session_keyring() {
        // A kernel without keys has none to hide.
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {}
        other => other.act("make a session keyring")?,
    }
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).act("forbid new privileges")?;
    }
    process::bound_capabilities(plan.capabilities).act("bound the capabilities")?;
    if !plan.seccomp.is_empty() {
        // Without no_new_privs loading a filter takes CAP_SYS_ADMIN: before that goes.
        seccomp::install(&plan.seccomp).act("load the seccomp filter")?;
    }
    credentials::keep_capabilities(plan.capabilities).act("give up capabilities")?;
    // Changing ids has made us what the system sets for such programs; say it ourselves.
    process::never_dumpable().act("become undumpable")?;
    Ok(())
}
