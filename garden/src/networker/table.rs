//! The firewall's table as a whole: made at start and whenever it is gone, in one step each time. Whose it is then.

use std::time::{Duration, Instant};

use garden_sys::nftables::{Changed, Family, Look, Owner};
use rustix::io::Errno;

use super::plan::Connection;
use super::{Config, Error, Result, rules};

/// For the kernel to notice that the owner of an earlier life is gone, which ends with it.
const OWNER_LEAVES: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Tells who may change it from now on: nobody but us, where the kernel knows how.
pub fn make_first(
    owner: &Owner,
    config: &Config,
    policy: &rules::Policy,
    kept: &[(&str, &Connection)],
) -> Result<Changed> {
    let began = Instant::now();
    let mut changed = if config.owns_table { Changed::ByItsOwner } else { Changed::ByAnybody };
    loop {
        let made = make(owner, changed, &config.table, policy, kept);
        let refused = match &made {
            Err(Error::Table { source, .. }) => source.errno().map(Errno::from_raw_os_error),
            _ => None,
        };
        match refused {
            Some(Errno::OPNOTSUPP) if changed == Changed::ByItsOwner => {
                tracing::info!(
                    "this kernel keeps no table for its owner: who flushes all rules flushes ours, for a moment"
                );
                changed = Changed::ByAnybody;
            }
            Some(Errno::PERM) if began.elapsed() < OWNER_LEAVES => std::thread::sleep(LOOK_AGAIN),
            _ => return made.map(|()| changed),
        }
    }
}

/// All in one transaction: a packet meets the old table or the new, and both know the containers that live.
pub fn make(
    owner: &Owner,
    changed: Changed,
    table: &str,
    policy: &rules::Policy,
    kept: &[(&str, &Connection)],
) -> Result<()> {
    let mut change = rules::base(table, policy, changed);
    for (handle, connection) in kept {
        // Refused when it was asked for; here only by a record that somebody has changed.
        if let Err(error) = rules::attach(&mut change, handle, connection) {
            tracing::error!(handle, %error, "cannot open the firewall for a container that lives");
        }
    }
    owner
        .commit("change the firewall (is nftables in this kernel?)", change)
        .map_err(|source| Error::Table { table: table.into(), source })
}

/// Of an earlier life that had IPv6. No container is left that it is about.
pub fn remove_that_of_ipv6(owner: &Owner, table: &str) {
    // A kernel that does not know such tables has none.
    if !Look::open(table, Family::Ipv6).is_ok_and(|look| look.exists().unwrap_or(false)) {
        return;
    }
    let removed = rules::removed(table, [Family::Ipv6]);
    if let Err(error) = owner.commit("remove the firewall's table for IPv6", removed) {
        tracing::error!(table, error = crate::chain(&error), "cannot remove what an earlier garden left");
    }
}
