//! What no shell has words for: this test program, static, is put into a container and started there with [`ATTACK`] in its
//! environment. Each line `result: NAME: OUTCOME` is what came of one attempt.

#![allow(unsafe_code)] // Attacks are calls that no safe library offers.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::CWD;

use garden::containerizer::Container;
use garden_client::ProcessSpec;

use crate::world::World;

/// Set inside of a container only; its value is what to do.
const ATTACK: &str = "ATTACK";

/// How long an attack goes on that waits for its moment.
const RACE: Duration = Duration::from_secs(3);

impl World {
    /// This program, where a container finds it.
    pub fn bring_attacker(&self) {
        std::fs::copy(std::env::current_exe().unwrap(), self.root.join("bin/attacker")).unwrap();
    }

    /// What came of it: name and outcome.
    pub async fn attack(&self, container: &Container, name: &str) -> Vec<(String, String)> {
        let done = self.run(container, &attack(name)).await;
        assert_eq!(done.status, 0, "{done:?}");
        let results = done.stdout.lines().filter_map(|line| line.split_once("result: ")?.1.split_once(": "));
        results.map(|(name, outcome)| (name.into(), outcome.into())).collect()
    }
}

pub fn attack(name: &str) -> ProcessSpec {
    let args = ["--exact", "attacker::the_attack_itself", "--nocapture", "--test-threads=1"];
    ProcessSpec {
        path: "/bin/attacker".into(),
        args: args.map(String::from).into(),
        env: vec![format!("{ATTACK}={name}")],
        ..ProcessSpec::default()
    }
}

#[test]
fn the_attack_itself() {
    let Some(attack) = std::env::var_os(ATTACK) else { return };
    match attack.to_str().unwrap() {
        "hunt" => hunt(),
        "swap" => swap(),
        "pid 1" => pid_1(),
        "calls" => calls(),
        "who" => tell("user", Ok(rustix::process::geteuid().as_raw())),
        "write" => {
            let tried = ["bus", "fs", "irq", "sys"].map(|name| open_all(format!("/proc/{name}").as_ref()));
            let tried = tried.iter().sum::<usize>() + open_all("/sys".as_ref());
            tell("tried", Ok(tried));
        }
        "meet" => meet(),
        "visit" => visit(),
        "chown" => swap_new_directories(),
        other => panic!("no attack {other}"),
    }
}

fn tell(name: &str, outcome: io::Result<impl std::fmt::Display>) {
    match outcome {
        Ok(what) => println!("result: {name}: ok {what}"),
        Err(error) => println!("result: {name}: {}", error.raw_os_error().map_or(-1, |errno| errno)),
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens every program that runs, as soon as it does, and writes to it as soon as it does not.
fn hunt() {
    let own = std::process::id().to_string();
    let (mut opened, mut wrote) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < RACE {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name == own || name.parse::<u32>().is_err() {
                continue;
            }
            let Ok(program) = File::open(format!("/proc/{name}/exe")) else { continue };
            let path = format!("/proc/self/fd/{}", program.as_raw_fd());
            opened += 1;
            if std::fs::read_link(&path).unwrap().starts_with("/bin") {
                continue;
            }
            for _ in 0..50 {
                if let Ok(mut file) = File::options().write(true).open(&path)
                    && file.write_all(b"#!/bin/owned\n").is_ok()
                {
                    wrote += 1;
                }
            }
        }
    }
    tell("opened", Ok(opened));
    tell("wrote", Ok(wrote));
}

/// In a volume: one name is now a directory, now a link out of here, as fast as can be.
fn swap() {
    let exchange = |one: &str, other: &str| {
        rustix::fs::renameat_with(CWD, one, CWD, other, rustix::fs::RenameFlags::EXCHANGE)
    };
    std::fs::create_dir_all("/vol/place").unwrap();
    let mut exchanged = 0_u64;
    let links = ["/", "/proc", "../../../../../../..", "/proc/sys/kernel", "/etc", "/vol/place"];
    for (index, target) in links.iter().enumerate() {
        std::os::unix::fs::symlink(target, format!("/vol/link{index}")).unwrap();
    }
    while !std::path::Path::new("/vol/stop").exists() {
        for index in 0..links.len() {
            for _ in 0..40 {
                exchanged += u64::from(exchange("/vol/place", &format!("/vol/link{index}")).is_ok());
            }
        }
    }
    tell("exchanged", Ok(exchanged));
}

/// As the owner of a home in which others make directories for us: puts links to what is not ours in their place.
fn swap_new_directories() {
    let mut swapped = 0;
    while !std::path::Path::new("/home/alice/stop").exists() {
        if std::fs::rename("/home/alice/new", "/home/alice/old").is_ok() {
            swapped += u32::from(std::os::unix::fs::symlink("/etc/group", "/home/alice/new").is_ok());
            let _ = std::fs::remove_file("/home/alice/new");
            let _ = std::fs::remove_dir_all("/home/alice/old");
        }
    }
    tell("swapped", Ok(swapped));
}

/// Opens every file for writing, and tells of each that lets it; how many there were.
fn open_all(directory: &Path) -> usize {
    let mut tried = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => tried += open_all(&entry.path()),
            Ok(kind) if kind.is_file() => {
                tried += 1;
                if File::options().write(true).open(entry.path()).is_ok() {
                    tell(&entry.path().display().to_string(), Ok("opened"));
                }
            }
            _ => {}
        }
    }
    tried
}

fn pid_1() {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: none of these writes to memory of ours, but the last, to a buffer that it is told of.
    unsafe {
        tell("attach", check(libc::ptrace(libc::PTRACE_ATTACH, 1, null, null)));
        tell("seize", check(libc::ptrace(libc::PTRACE_SEIZE, 1, null, null)));
        let pidfd = check(libc::syscall(libc::SYS_pidfd_open, 1, 0));
        tell("its descriptors", pidfd.and_then(|fd| check(libc::syscall(libc::SYS_pidfd_getfd, fd, 3, 0))));
        tell(
            "its limits",
            check(libc::syscall(libc::SYS_prlimit64, 1, libc::RLIMIT_NOFILE, &[0_u64; 2], null)),
        );
        let mut buffer = [0_u8; 16];
        let mine = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 16 };
        let its = libc::iovec { iov_base: 0x40_0000 as *mut _, iov_len: 16 };
        tell("its memory", check(libc::process_vm_readv(1, &mine, 1, &its, 1, 0) as libc::c_long));
    }
    for file in ["exe", "root", "cwd", "ns/mnt", "ns/user"] {
        tell(file, std::fs::read_link(format!("/proc/1/{file}")).map(|path| path.display().to_string()));
    }
    for file in ["mem", "environ", "maps", "auxv", "syscall", "stack", "io"] {
        let read = File::open(format!("/proc/1/{file}")).and_then(|mut file| {
            let mut buffer = [0; 64];
            io::Read::read(&mut file, &mut buffer)
        });
        tell(file, read);
    }
    tell("fd", std::fs::read_dir("/proc/1/fd").map(Iterator::count));
    tell("map_files", std::fs::read_dir("/proc/1/map_files").map(Iterator::count));
    for file in
        ["mem", "oom_score_adj", "attr/current", "uid_map", "clear_refs", "timerslack_ns", "setgroups"]
    {
        let path = format!("/proc/1/{file}");
        tell(
            &format!("write {file}"),
            File::options().write(true).open(path).and_then(|mut file| file.write(b"0")),
        );
    }
}

fn calls() {
    let call = |name: &str, number: libc::c_long, first: libc::c_ulong| {
        // SAFETY: were one of them allowed, it would refuse null pointers and descriptors of nothing.
        tell(name, check(unsafe { libc::syscall(number, first, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) }));
    };
    let nothing = u32::MAX.into();
    for (name, number) in [
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("pivot_root", libc::SYS_pivot_root),
        ("fsopen", libc::SYS_fsopen),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("kexec_load", libc::SYS_kexec_load),
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("delete_module", libc::SYS_delete_module),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("setns", libc::SYS_setns),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("reboot", libc::SYS_reboot),
        ("swapon", libc::SYS_swapon),
        ("settimeofday", libc::SYS_settimeofday),
        ("acct", libc::SYS_acct),
        ("quotactl", libc::SYS_quotactl),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("kcmp", libc::SYS_kcmp),
        ("syslog", libc::SYS_syslog),
        ("sethostname", libc::SYS_sethostname),
    ] {
        call(name, number, nothing);
    }
    call("unshare user", libc::SYS_unshare, libc::CLONE_NEWUSER as libc::c_ulong);
    call("unshare mount", libc::SYS_unshare, libc::CLONE_NEWNS as libc::c_ulong);
    call("clone user", libc::SYS_clone, (libc::CLONE_NEWUSER | libc::SIGCHLD) as libc::c_ulong);
    call("clone3", libc::SYS_clone3, 0);
    call("unknown", 500, 0);
    call("getpid", libc::SYS_getpid, 0);
}

const NAME: &[u8] = b"\0meeting";
const KEY: libc::key_t = 0x4711;

/// Leaves traces by which containers could meet: a socket without a file, shared memory.
fn meet() {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&NAME[1..]).unwrap();
    let listener = std::os::unix::net::UnixListener::bind_addr(&address);
    // SAFETY: numbers only.
    tell("shared memory", check(unsafe { libc::shmget(KEY, 4096, libc::IPC_CREAT | 0o666) }.into()));
    tell("socket", listener.as_ref().map(|_| "bound").map_err(|error| io::Error::from(error.kind())));
    while !std::path::Path::new("/tmp/stop").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn visit() {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&NAME[1..]).unwrap();
    tell("socket", std::os::unix::net::UnixStream::connect_addr(&address).map(|_| "connected"));
    // SAFETY: numbers only.
    tell("shared memory", check(unsafe { libc::shmget(KEY, 0, 0) }.into()).map(|_| "found"));
}
