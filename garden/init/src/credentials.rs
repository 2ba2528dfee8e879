//! Becoming somebody: root of the namespace, or the user of a process.

use std::io;

use garden_init::users::User;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Uids and gids; groups last of the three that need the power of root, so first. Leaving root leaves its capabilities.
pub fn become_user(user: &User) -> io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    become_ids(user.uid, user.gid, &groups)
}

/// The same without allocating, for a child that shares its parent's memory.
pub fn become_ids(uid: u32, gid: u32, groups: &[Gid]) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Keeps of root's capabilities only these; nothing is inheritable.
pub fn keep_capabilities(kept: u64) -> io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    let kept = sets.permitted & CapabilitySet::from_bits_retain(kept);
    let inheritable = CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable },
    )?)
}
