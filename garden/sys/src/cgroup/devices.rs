//! The list of devices that may be used, for version 2: a small program that the kernel asks each time a process of the
//! group, or of one below it, opens or makes a device. It is attached to a group and lives as long as that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::DeviceRule;

/// One instruction as the kernel has it: operation, registers (source in the high half), jump, constant.
type Instruction = (u8, u8, i16, i32);

const PROGRAM_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// Commands of bpf(2).
const PROGRAM_LOAD: i32 = 5;
const PROGRAM_ATTACH: i32 = 8;
const PROGRAM_BY_ID: i32 = 13;
const PROGRAM_QUERY: i32 = 16;

/// Several may be there if somebody else attaches some; only the first is looked at, ours being the only ones in a group
/// of ours.
const ATTACHED_MAX: usize = 16;

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const REST: u8 = 6;

const KIND_BLOCK: i32 = 1;
const KIND_CHARACTER: i32 = 2;

/// What is not allowed by any rule is denied.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let from = |source: u8, target: u8| source << 4 | target;
    // The context: kind in the low half of the first word, access in the high half; major; minor.
    let mut program = vec![
        (LOAD_WORD, from(CONTEXT, KIND), 0, 0),
        (MOVE_REGISTER, from(KIND, ACCESS), 0, 0),
        (AND, KIND, 0, 0xffff),
        (SHIFT_RIGHT, ACCESS, 0, 16),
        (LOAD_WORD, from(CONTEXT, MAJOR), 4, 0),
        (LOAD_WORD, from(CONTEXT, MINOR), 8, 0),
    ];
    for rule in rules {
        let kind = if rule.kind == 'b' { KIND_BLOCK } else { KIND_CHARACTER };
        let mut conditions = vec![(JUMP_NOT_EQUAL, KIND, 0, kind)];
        // Numbers of devices have at most 20 bits.
        conditions.extend(rule.major.map(|major| (JUMP_NOT_EQUAL, MAJOR, 0, major as i32)));
        conditions.extend(rule.minor.map(|minor| (JUMP_NOT_EQUAL, MINOR, 0, minor as i32)));
        conditions.extend([
            (MOVE_REGISTER, from(ACCESS, REST), 0, 0),
            (AND, REST, 0, !access_bits(rule.access)),
            (JUMP_NOT_EQUAL, REST, 0, 0),
        ]);
        let answer = [(MOVE, RESULT, 0, 1), (EXIT, 0, 0, 0)];
        let length = conditions.len() + answer.len();
        for (at, condition) in conditions.iter_mut().enumerate() {
            if condition.0 == JUMP_NOT_EQUAL {
                condition.2 = (length - at - 1) as i16;
            }
        }
        program.extend(conditions);
        program.extend(answer);
    }
    program.extend([(MOVE, RESULT, 0, 0), (EXIT, 0, 0, 0)]);
    program
}

fn access_bits(access: &str) -> i32 {
    let bit = |letter| match letter {
        'm' => 1,
        'r' => 2,
        'w' => 4,
        _ => 0,
    };
    access.chars().map(bit).sum()
}

/// Lets the group use only these devices. A list that a run before this one attached is replaced at one stroke.
pub(super) fn restrict(group: BorrowedFd<'_>, rules: &[DeviceRule]) -> io::Result<()> {
    let program = load(&program(rules))?;
    let earlier = attached(group)?.first().map(|&id| by_id(id)).transpose()?;
    attach(group, program.as_fd(), earlier.as_ref().map(AsFd::as_fd))
}

/// The kernel's `union bpf_attr`, as far as each command reads it. Filled up to whole 8 bytes: what comes after the fields
/// must be zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
    nothing: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    nothing: u32,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
    nothing: u32,
}

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a live structure of the size we name, of the layout that the command reads; what it points
    // to outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let bytes: Vec<[u8; 8]> = program
        .iter()
        .map(|&(operation, registers, jump, constant)| {
            let mut bytes = [operation, registers, 0, 0, 0, 0, 0, 0];
            bytes[2..4].copy_from_slice(&jump.to_ne_bytes());
            bytes[4..8].copy_from_slice(&constant.to_ne_bytes());
            bytes
        })
        .collect();
    let mut attributes = Load {
        program_type: PROGRAM_TYPE_CGROUP_DEVICE,
        instruction_count: bytes.len() as u32,
        instructions: bytes.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    bpf(PROGRAM_LOAD, &mut attributes).map(owned)
}

fn attached(group: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; ATTACHED_MAX];
    let mut attributes = Query {
        target: group.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        program_ids: ids.as_mut_ptr() as u64,
        program_count: ids.len() as u32,
        ..Query::default()
    };
    bpf(PROGRAM_QUERY, &mut attributes)?;
    Ok(ids.into_iter().take(attributes.program_count as usize).collect())
}

fn by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(PROGRAM_BY_ID, &mut ById { id, ..ById::default() }).map(owned)
}

/// `ALLOW_MULTI`: who runs below may have lists of their own, which restrict further and never widen.
fn attach(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = Attach {
        target: group.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replaced: replaced.map_or(0, |program| program.as_raw_fd() as u32),
        nothing: 0,
    };
    bpf(PROGRAM_ATTACH, &mut attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    const fn rule(kind: char, major: Option<u32>, minor: Option<u32>, access: &'static str) -> DeviceRule {
        DeviceRule { kind, major, minor, access }
    }

    /// Runs the program as the kernel would.
    fn allows(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 11];
        let mut at = 0;
        loop {
            let (operation, pair, jump, constant) = program[at];
            let (source, target) = (usize::from(pair >> 4), usize::from(pair & 15));
            at += 1;
            match operation {
                LOAD_WORD => registers[target] = i64::from(context[jump as usize / 4]),
                AND => registers[target] &= i64::from(constant),
                SHIFT_RIGHT => registers[target] >>= constant,
                MOVE => registers[target] = i64::from(constant),
                MOVE_REGISTER => registers[target] = registers[source],
                JUMP_NOT_EQUAL if registers[target] != i64::from(constant) => at += jump as usize,
                JUMP_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        let rules = [
            rule('c', None, None, "m"),
            rule('b', None, None, "m"),
            rule('c', Some(1), Some(3), "rwm"),
            rule('c', Some(136), None, "rw"),
        ];
        let program = program(&rules);
        let check = |kind: char, access: &str, major, minor, expected| {
            let number = if kind == 'b' { KIND_BLOCK } else { KIND_CHARACTER };
            let got = allows(&program, number, access_bits(access), major, minor);
            assert_eq!(got, expected, "{kind} {major}:{minor} {access}");
        };
        check('c', "rw", 1, 3, true);
        check('c', "m", 1, 3, true);
        check('c', "rw", 1, 11, false);
        check('c', "m", 1, 11, true);
        check('c', "rm", 1, 11, false);
        check('b', "m", 8, 0, true);
        check('b', "r", 8, 0, false);
        check('b', "r", 1, 3, false);
        check('c', "w", 136, 4095, true);
        check('c', "rwm", 136, 0, false);
        assert!(!allows(&super::program(&[]), KIND_CHARACTER, 2, 1, 3));
    }

    /// A group of version 2 that is removed with all in it, also in a hybrid hierarchy.
    struct Group(PathBuf);

    impl Group {
        fn new() -> Option<Group> {
            let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
            let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists())?;
            let path = root.join(format!("diego-test-devices-{}", std::process::id()));
            fs::create_dir(&path).ok()?;
            Some(Group(path))
        }

        /// What a process in it says to opening these.
        fn open(&self, devices: &[&str]) -> Vec<bool> {
            let succeeds = |device: &&str| {
                let script = format!("echo 0 > {}/cgroup.procs && : <> {device}", self.0.display());
                Command::new("sh").args(["-c", &script]).output().unwrap().status.success()
            };
            devices.iter().map(succeeds).collect()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            for _ in 0..100 {
                if fs::remove_dir(&self.0).is_ok() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn a_device_that_is_not_listed_cannot_be_opened_and_a_new_list_replaces_the_old() {
        let name = "a_device_that_is_not_listed_cannot_be_opened_and_a_new_list_replaces_the_old";
        let Some(group) = Group::new() else {
            println!("SKIPPED {name}: needs root and a hierarchy of version 2");
            return;
        };
        let directory = fs::File::open(&group.0).unwrap();
        let devices = ["/dev/null", "/dev/zero", "/dev/full"];
        assert_eq!(group.open(&devices), [true, true, true]);
        restrict(directory.as_fd(), &[rule('c', Some(1), Some(3), "rwm")]).unwrap();
        assert_eq!(group.open(&devices), [true, false, false]);
        let two = [rule('c', Some(1), Some(3), "rwm"), rule('c', Some(1), Some(5), "rw")];
        restrict(directory.as_fd(), &two).unwrap();
        assert_eq!(group.open(&devices), [true, true, false]);
        assert_eq!(attached(directory.as_fd()).unwrap().len(), 1);
    }
}
