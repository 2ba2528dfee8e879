//! What a second Diego on the same machine must not share with the first: names in the kernel, networks, host ports and
//! host ids.

use std::net::Ipv4Addr;

use garden::containerizer::{self, IdPool};
use garden::networker::{self, Network};

/// Slot 0 is the one of a machine with one Diego; it has the established names and pools.
pub const SLOT_MAX: u8 = 15;
const NETWORK_PREFIX_BITS: u8 = 21;
const PORTS_PER_SLOT: u16 = 500;
const FIRST_PORT: u16 = 51_000;
const CONTAINERS_PER_SLOT: u32 = 512;
const IDS_PER_CONTAINER: u32 = 65_536;
/// Above the range of slot 0.
const FIRST_ID: u32 = 0x6000_0000;

pub fn apply(slot: u8, containerizer: &mut containerizer::Config, networker: &mut networker::Config) {
    if slot == 0 {
        return;
    }
    let number = u16::from(slot);
    containerizer.cgroup_parent = format!("diego-{slot}");
    containerizer.ids = IdPool::Own {
        base: FIRST_ID + u32::from(slot) * CONTAINERS_PER_SLOT * IDS_PER_CONTAINER,
        ids_per_container: IDS_PER_CONTAINER,
        containers_max: CONTAINERS_PER_SLOT,
    };
    networker.table = format!("diego-{slot}");
    networker.link_prefix = format!("dgo{slot}-");
    networker.pool = Network::new(Ipv4Addr::new(10, 254, 64 + slot * 8, 0), NETWORK_PREFIX_BITS);
    networker.port_pool_start = FIRST_PORT + number * PORTS_PER_SLOT;
    networker.port_pool_size = PORTS_PER_SLOT;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(slot: u8) -> (containerizer::Config, networker::Config) {
        let mut configs = (containerizer::Config::default(), networker::Config::default());
        apply(slot, &mut configs.0, &mut configs.1);
        configs
    }

    #[test]
    fn no_two_slots_share_a_pool() {
        let mut ends = vec![];
        for slot in 0..=SLOT_MAX {
            let (containerizer, networker) = of(slot);
            let IdPool::Own { base, ids_per_container, containers_max } = containerizer.ids else { panic!() };
            let ids =
                u64::from(base)..u64::from(base) + u64::from(ids_per_container) * u64::from(containers_max);
            let first = networker.pool.address.to_bits();
            let networks = first..first + (1 << (32 - networker.pool.prefix_bits));
            let ports =
                networker.port_pool_start..networker.port_pool_start.saturating_add(networker.port_pool_size);
            assert!(ids.end <= u64::from(u32::MAX), "slot {slot}");
            for (other_ids, other_networks, other_ports) in &ends {
                let apart =
                    |a: std::ops::Range<u64>, b: &std::ops::Range<u64>| a.end <= b.start || b.end <= a.start;
                let wide = |range: &std::ops::Range<u32>| u64::from(range.start)..u64::from(range.end);
                let port = |range: &std::ops::Range<u16>| u64::from(range.start)..u64::from(range.end);
                assert!(apart(ids.clone(), other_ids), "ids of slot {slot}");
                assert!(apart(wide(&networks), &wide(other_networks)), "networks of slot {slot}");
                assert!(apart(port(&ports), &port(other_ports)), "ports of slot {slot}");
            }
            ends.push((ids, networks, ports));
        }
    }
}
