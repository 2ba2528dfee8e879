//! Resource limits of processes. Whoever asks for more than garden itself has gets it, as far as the kernel goes: for that
//! the nursery, which is root of the host, raises its hard limits, every pid 1 inherits them, and each process is put
//! back to what garden was given, or to what its spec says.

use std::sync::OnceLock;

use garden_sys::process::{RESOURCE_LIMITS, ResourceLimit};

/// Wished for as the limit of open files of every process; what is allowed is taken.
const OPEN_FILES_MAX: u64 = 1_048_576;

/// Of those that were raised: what processes get that ask for nothing. Set once by the nursery, inherited by fork.
static USUAL: OnceLock<Vec<(u32, ResourceLimit)>> = OnceLock::new();

/// In the nursery. What may not be raised stays as it is, and garden is told of each process that is held to it.
pub fn raise() {
    let mut usual = Vec::new();
    for resource in 0..RESOURCE_LIMITS {
        if let Ok(now) = ResourceLimit::get(resource)
            && let Some(limit) = raise_one(resource, now)
        {
            usual.push((resource, limit));
        }
    }
    // Once: this program has one nursery.
    let _ = USUAL.set(usual);
}

/// The usual limit, if it is another than what the nursery has from now on.
fn raise_one(resource: u32, now: ResourceLimit) -> Option<ResourceLimit> {
    if resource == libc::RLIMIT_NOFILE as u32 {
        let all = ResourceLimit { soft: OPEN_FILES_MAX, hard: OPEN_FILES_MAX };
        // Not allowed: at least all there is.
        let _ = all.set(resource).or_else(|_| ResourceLimit { soft: now.hard, ..now }.set(resource));
        return None;
    }
    let raised = ResourceLimit { hard: ResourceLimit::UNLIMITED, ..now };
    (raised != now && raised.set(resource).is_ok()).then_some(now)
}

/// For a process whose spec asks for these, soft and hard alike.
pub fn of_process(asked: &[(u32, u64)]) -> Vec<(u32, ResourceLimit)> {
    let usual = USUAL.get().map_or(&[][..], Vec::as_slice);
    let others = usual.iter().filter(|(resource, _)| !asked.iter().any(|(other, _)| other == resource));
    let asked = asked.iter().map(|&(resource, value)| (resource, ResourceLimit { soft: value, hard: value }));
    others.copied().chain(asked).collect()
}
