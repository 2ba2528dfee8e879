//! Which capabilities a container may ever have, as Garden's clients expect: bit n is capability n.

const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const KILL: u32 = 5;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const SETPCAP: u32 = 8;
const NET_BIND_SERVICE: u32 = 10;
const NET_RAW: u32 = 13;
const SYS_CHROOT: u32 = 18;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const MKNOD: u32 = 27;
const AUDIT_WRITE: u32 = 29;
const SETFCAP: u32 = 31;

/// Capabilities that exist in the latest kernels: CHECKPOINT_RESTORE is 40; PERFMON, BPF and it are given to nobody.
const LAST: u32 = 37;

const fn set(capabilities: &[u32]) -> u64 {
    let (mut set, mut index) = (0, 0);
    while index < capabilities.len() {
        set |= 1 << capabilities[index];
        index += 1;
    }
    set
}

pub const UNPRIVILEGED: u64 = set(&[
    CHOWN,
    DAC_OVERRIDE,
    FSETID,
    FOWNER,
    MKNOD,
    NET_RAW,
    SETGID,
    SETUID,
    SETFCAP,
    SETPCAP,
    NET_BIND_SERVICE,
    SYS_CHROOT,
    KILL,
    AUDIT_WRITE,
]);

/// Root of a privileged container is nearly root of the host.
pub const PRIVILEGED: u64 = (1 << (LAST + 1)) - 1;

/// Anybody but root, of either kind of container.
pub const NON_ROOT: u64 = UNPRIVILEGED | set(&[SYS_ADMIN]);

pub const fn of_container(privileged: bool) -> u64 {
    if privileged { PRIVILEGED } else { UNPRIVILEGED }
}

/// Those of pid 1's own needs that the unprivileged set must never lose, or no process could be started.
const _: () = assert!(
    UNPRIVILEGED & set(&[SETUID, SETGID, KILL, CHOWN, DAC_OVERRIDE])
        == set(&[SETUID, SETGID, KILL, CHOWN, DAC_OVERRIDE])
);
const _: () = assert!(UNPRIVILEGED & set(&[SYS_ADMIN, SYS_PTRACE]) == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_are_those_that_clients_know() {
        // As /proc/self/status shows it in a container of the established kind.
        assert_eq!(format!("{UNPRIVILEGED:016x}"), "00000000a80425fb");
        assert_eq!(NON_ROOT & !UNPRIVILEGED, 1 << SYS_ADMIN);
        assert_eq!(of_container(true) & UNPRIVILEGED, UNPRIVILEGED);
    }
}
