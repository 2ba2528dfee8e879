//! Installing a seccomp filter on the calling thread. What it filters is decided where it is made.

use std::io;

/// One instruction of classic BPF packed into a number, as it travels in a plan: code, jt, jf, k from the high end.
pub fn pack(code: u16, jump_true: u8, jump_false: u8, k: u32) -> u64 {
    (code as u64) << 48 | (jump_true as u64) << 40 | (jump_false as u64) << 32 | k as u64
}

pub fn unpack(instruction: u64) -> (u16, u8, u8, u32) {
    ((instruction >> 48) as u16, (instruction >> 40) as u8, (instruction >> 32) as u8, instruction as u32)
}

/// Loads the filter for this thread and all its future children. Needs `no_new_privs` or CAP_SYS_ADMIN.
pub fn install(program: &[u64]) -> io::Result<()> {
    let filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|&instruction| {
            let (code, jt, jf, k) = unpack(instruction);
            libc::sock_filter { code, jt, jf, k }
        })
        .collect();
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program during the call and checks it.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
