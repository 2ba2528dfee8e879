//! The seccomp filter of unprivileged containers: an allow-list, compiled to BPF once for all containers.
//!
//! Loaded once by pid 1 and inherited by every process, so it costs a process nothing to start. Compiled here rather than
//! by a library because one program must answer EPERM, ENOSYS and "allow" at once, and because the kernel, to make the
//! filter fast, runs it once for each system call number when it is loaded: a search tree makes that 30 times cheaper
//! than a list.
//!
//! The list is what Garden's clients expect to work, without the kernel's log, which tells of the host, plus harmless calls that came after it was drawn up. Calls newer
//! than all known here are answered ENOSYS, so that C libraries fall back; all others EPERM.

use garden_sys::seccomp::pack;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Calls of the x32 interface carry this bit.
const X32_BIT: u32 = 0x4000_0000;

/// What a filter may answer.
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NOT_KNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Offsets in the kernel's `seccomp_data` (little-endian: the low half of an argument comes first).
const NUMBER: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Namespaces a process may not make with `clone`.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// Personalities that are asked for in practice: default, UNAME26-less default of 32 bit, and "tell me".
const PERSONALITIES: [u32; 3] = [0, 8, 0xffff_ffff];

/// Families of sockets that a network namespace does not contain: the machine's hypervisor answers on one, the kernel's
/// cryptography on the other. Refused as by a kernel that has neither.
const FAMILIES_OF_THE_HOST: &[u32] = &[libc::AF_VSOCK as u32, libc::AF_ALG as u32];
const NO_SUCH_FAMILY: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;

/// Root of a container has the user of its pid 1, and could take its descriptors or its CPU time away with a limit.
const PID_1: &[u32] = &[1];

/// `mseal`, the newest call known here.
const NEWEST: u32 = 462;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Return(u32),
    /// Allowed when none of these bits is set in the first argument.
    UnlessFlags(u32),
    /// Allowed unless the first argument is one of these: then this answer.
    UnlessFirst(&'static [u32], u32),
    /// Allowed when the first argument is one of [`PERSONALITIES`].
    Personality,
}

/// The filter, one packed instruction an element.
pub fn default_filter() -> Vec<u64> {
    let mut rules: Vec<(u32, Verdict)> =
        ALLOWED.iter().map(|&number| (number as u32, Verdict::Return(ALLOW))).collect();
    rules.push((libc::SYS_clone as u32, Verdict::UnlessFlags(NEW_NAMESPACES)));
    rules.push((libc::SYS_personality as u32, Verdict::Personality));
    rules.push((libc::SYS_socket as u32, Verdict::UnlessFirst(FAMILIES_OF_THE_HOST, NO_SUCH_FAMILY)));
    rules.push((libc::SYS_prlimit64 as u32, Verdict::UnlessFirst(PID_1, NOT_PERMITTED)));
    // Its flags lie in memory where a filter cannot look: C libraries fall back to clone.
    rules.push((libc::SYS_clone3 as u32, Verdict::Return(NOT_KNOWN)));
    compile(&segments(rules))
}

/// From each start up to the next the same verdict.
fn segments(mut rules: Vec<(u32, Verdict)>) -> Vec<(u32, Verdict)> {
    rules.sort_by_key(|(number, _)| *number);
    rules.dedup_by_key(|(number, _)| *number);
    let mut segments: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |start: u32, verdict: Verdict| {
        if segments.last().is_none_or(|(_, last)| *last != verdict) {
            segments.push((start, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in rules {
        if number > next {
            push(next, Verdict::Return(NOT_PERMITTED));
        }
        push(number, verdict);
        next = number + 1;
    }
    push(next, Verdict::Return(NOT_PERMITTED));
    push(NEWEST + 1, Verdict::Return(NOT_KNOWN));
    segments
}

fn load(offset: u32) -> u64 {
    pack((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, offset)
}

fn jump(condition: u32, k: u32, jump_true: u8, jump_false: u8) -> u64 {
    pack((libc::BPF_JMP | condition | libc::BPF_K) as u16, jump_true, jump_false, k)
}

fn answer(value: u32) -> u64 {
    pack((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, value)
}

fn compile(segments: &[(u32, Verdict)]) -> Vec<u64> {
    let mut program = vec![
        load(ARCHITECTURE_OFFSET),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(NOT_KNOWN),
        load(NUMBER),
        jump(libc::BPF_JGE, X32_BIT, 0, 1),
        answer(NOT_KNOWN),
    ];
    program.extend(tree(segments));
    program
}

/// The lower half of the segments lies right behind the comparison, the upper half behind that.
fn tree(segments: &[(u32, Verdict)]) -> Vec<u64> {
    if let [(_, verdict)] = segments {
        return leaf(*verdict);
    }
    let (lower, upper) = segments.split_at(segments.len() / 2);
    let below = tree(lower);
    let mut program = match u8::try_from(below.len()) {
        Ok(distance) => vec![jump(libc::BPF_JGE, upper[0].0, distance, 0)],
        // Too far for a conditional jump: over an unconditional one.
        Err(_) => vec![
            jump(libc::BPF_JGE, upper[0].0, 0, 1),
            pack((libc::BPF_JMP | libc::BPF_JA) as u16, 0, 0, below.len() as u32),
        ],
    };
    program.extend(below);
    program.extend(tree(upper));
    program
}

fn leaf(verdict: Verdict) -> Vec<u64> {
    match verdict {
        Verdict::Return(value) => vec![answer(value)],
        Verdict::UnlessFlags(flags) => {
            vec![
                load(FIRST_ARGUMENT),
                jump(libc::BPF_JSET, flags, 1, 0),
                answer(ALLOW),
                answer(NOT_PERMITTED),
            ]
        }
        Verdict::UnlessFirst(values, refusal) => by_first(values, refusal, ALLOW),
        Verdict::Personality => by_first(&PERSONALITIES, ALLOW, NOT_PERMITTED),
    }
}

/// One answer when the first argument is one of a few values, and another when it is not.
fn by_first(values: &[u32], when_one: u32, otherwise: u32) -> Vec<u64> {
    let mut program = vec![load(FIRST_ARGUMENT)];
    let count = values.len() as u8;
    program.extend(
        values.iter().zip((0..count).rev()).map(|(&value, left)| jump(libc::BPF_JEQ, value, left + 1, 0)),
    );
    program.extend([answer(otherwise), answer(when_one)]);
    program
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

#[cfg(target_arch = "x86_64")]
const ALLOWED: &[libc::c_long] = calls! {
    SYS_accept SYS_accept4 SYS_access SYS_alarm SYS_arch_prctl SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_chmod
    SYS_chown SYS_chroot SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect
    SYS_copy_file_range SYS_creat SYS_dup SYS_dup2 SYS_dup3 SYS_epoll_create SYS_epoll_create1 SYS_epoll_ctl
    SYS_epoll_ctl_old SYS_epoll_pwait SYS_epoll_pwait2 SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_eventfd2 SYS_execve
    SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_mark
    SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr
    SYS_flistxattr SYS_flock SYS_fork SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex
    SYS_futex_waitv SYS_futimesat SYS_get_robust_list SYS_get_thread_area SYS_getcpu SYS_getcwd SYS_getdents SYS_getdents64
    SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpgrp SYS_getpid
    SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit SYS_getrusage SYS_getsid
    SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch
    SYS_inotify_init SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup
    SYS_io_submit SYS_ioctl SYS_ioprio_get SYS_ioprio_set SYS_kill SYS_lchown SYS_lgetxattr SYS_link SYS_linkat SYS_listen
    SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_lstat SYS_madvise SYS_membarrier
    SYS_memfd_create SYS_mincore SYS_mkdir SYS_mkdirat SYS_mknod SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap
    SYS_modify_ldt SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend
    SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap
    SYS_nanosleep SYS_newfstatat SYS_open SYS_openat SYS_openat2 SYS_pause SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe
    SYS_pipe2 SYS_poll SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_pselect6 SYS_ptrace SYS_pwrite64
    SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlink SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg
    SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_rename SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rmdir
    SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend
    SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getaffinity
    SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity
    SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_select SYS_semctl SYS_semget
    SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_set_thread_area
    SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority
    SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_setsid SYS_setsockopt SYS_setuid SYS_setxattr
    SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd SYS_signalfd4 SYS_socketpair
    SYS_splice SYS_stat SYS_statfs SYS_statx SYS_symlink SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo
    SYS_tee SYS_tgkill SYS_time SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime
    SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask
    SYS_uname SYS_unlink SYS_unlinkat SYS_utime SYS_utimensat SYS_utimes SYS_vfork SYS_vmsplice SYS_wait4 SYS_waitid
    SYS_write SYS_writev
};

#[cfg(target_arch = "aarch64")]
const ALLOWED: &[libc::c_long] = calls! {
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_chroot SYS_clock_getres SYS_clock_gettime
    SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1
    SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group
    SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat
    SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr
    SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv SYS_get_robust_list SYS_getcpu
    SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid
    SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrusage SYS_getsid
    SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch
    SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup SYS_io_submit
    SYS_ioctl SYS_ioprio_get SYS_ioprio_set SYS_kill SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr
    SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat
    SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive
    SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock
    SYS_munlockall SYS_munmap SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open SYS_pidfd_send_signal
    SYS_pipe2 SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev
    SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages
    SYS_removexattr SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending
    SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam
    SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam
    SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_sendfile
    SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid
    SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setsid
    SYS_setsockopt SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack
    SYS_signalfd4 SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs
    SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime
    SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask
    SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
};

#[cfg(test)]
mod tests {
    use super::*;
    use garden_sys::seccomp::unpack;

    /// The kernel's machine, as far as the filter uses it; the answer and the number of steps.
    fn run(program: &[u64], architecture: u32, number: u32, argument: u32) -> (u32, usize) {
        let (mut at, mut accumulator, mut steps) = (0, 0_u32, 0);
        loop {
            let (code, jump_true, jump_false, k) = unpack(program[at]);
            steps += 1;
            at += 1;
            let mut branch =
                |condition: bool| at += if condition { jump_true as usize } else { jump_false as usize };
            match code as u32 {
                0x20 => {
                    accumulator = match k {
                        NUMBER => number,
                        ARCHITECTURE_OFFSET => architecture,
                        FIRST_ARGUMENT => argument,
                        _ => panic!("load from {k}"),
                    }
                }
                0x05 => at += k as usize,
                0x15 => branch(accumulator == k),
                0x35 => branch(accumulator >= k),
                0x45 => branch(accumulator & k != 0),
                0x06 => return (k, steps),
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    fn verdict(number: libc::c_long, argument: u32) -> u32 {
        run(&default_filter(), ARCHITECTURE, number as u32, argument).0
    }

    #[test]
    fn every_call_gets_the_answer_of_its_list() {
        let filter = default_filter();
        let special =
            [libc::SYS_clone, libc::SYS_clone3, libc::SYS_personality, libc::SYS_socket, libc::SYS_prlimit64];
        for number in (0..=NEWEST + 5).filter(|&number| !special.contains(&(number as libc::c_long))) {
            let expected = match number {
                _ if ALLOWED.contains(&(number as libc::c_long)) => ALLOW,
                _ if number > NEWEST => NOT_KNOWN,
                _ => NOT_PERMITTED,
            };
            let (answer, steps) = run(&filter, ARCHITECTURE, number, 0);
            assert_eq!(answer, expected, "call {number}");
            assert!(steps < 24, "call {number} takes {steps} steps");
        }
    }

    #[test]
    fn dangerous_calls_are_refused() {
        for number in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_io_uring_setup,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_pivot_root,
            libc::SYS_reboot,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_syslog,
        ] {
            assert_eq!(verdict(number, 0), NOT_PERMITTED, "call {number}");
        }
    }

    #[test]
    fn a_process_may_be_cloned_but_no_namespace() {
        assert_eq!(verdict(libc::SYS_clone, libc::SIGCHLD as u32), ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWCGROUP, libc::CLONE_NEWNET] {
            assert_eq!(verdict(libc::SYS_clone, flag as u32), NOT_PERMITTED, "{flag:#x}");
        }
        assert_eq!(verdict(libc::SYS_clone3, 0), NOT_KNOWN);
    }

    #[test]
    fn sockets_that_no_namespace_holds_are_refused() {
        for (family, expected) in [
            (libc::AF_UNIX, ALLOW),
            (libc::AF_INET, ALLOW),
            (libc::AF_INET6, ALLOW),
            (libc::AF_NETLINK, ALLOW),
            (libc::AF_PACKET, ALLOW),
            (libc::AF_VSOCK, NO_SUCH_FAMILY),
            (libc::AF_ALG, NO_SUCH_FAMILY),
        ] {
            assert_eq!(verdict(libc::SYS_socket, family as u32), expected, "{family}");
        }
    }

    #[test]
    fn limits_are_set_for_anybody_but_pid_1() {
        for (pid, expected) in [(0, ALLOW), (1, NOT_PERMITTED), (2, ALLOW), (11, ALLOW)] {
            assert_eq!(verdict(libc::SYS_prlimit64, pid), expected, "{pid}");
        }
    }

    #[test]
    fn personalities_in_use_are_allowed() {
        for (personality, expected) in
            [(0, ALLOW), (8, ALLOW), (u32::MAX, ALLOW), (0x0040000, NOT_PERMITTED), (1, NOT_PERMITTED)]
        {
            assert_eq!(verdict(libc::SYS_personality, personality), expected, "{personality:#x}");
        }
    }

    #[test]
    fn other_interfaces_are_unknown() {
        let filter = default_filter();
        assert_eq!(run(&filter, 0x4000_0003, libc::SYS_read as u32, 0).0, NOT_KNOWN);
        assert_eq!(run(&filter, ARCHITECTURE, libc::SYS_read as u32 | X32_BIT, 0).0, NOT_KNOWN);
    }
}
