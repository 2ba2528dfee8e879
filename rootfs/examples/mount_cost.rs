//! What a root costs: mount and unmount of a small preloaded image, with and without a disk limit, in microseconds.
//!
//! `cargo run --release -p rootfs --example mount_cost [DIRECTORY [ROUNDS]]`; needs root.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rootfs::quota::Backend;
use rootfs::{BaseIds, Config, DiskLimit, DiskScope, Store};

const IMAGE_BYTES: u64 = 2 << 30;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(300);
    for (name, backend) in [("plain", Backend::Plain), ("btrfs", Backend::Btrfs)] {
        let scratch = directory.join(format!("mount-cost-{}-{name}", std::process::id()));
        std::fs::create_dir_all(scratch.join("stack/etc")).unwrap();
        measure(name, backend, &scratch, rounds).await;
        std::fs::remove_dir_all(scratch).unwrap();
    }
}

async fn measure(name: &str, backend: Backend, scratch: &Path, rounds: usize) {
    let mut config = Config::default();
    config.quota.backend = backend;
    config.quota.image_bytes = Some(IMAGE_BYTES);
    config.preloaded.insert("stack".into(), scratch.join("stack"));
    let store = Store::open(&scratch.join("store"), config).unwrap();
    let image = store.pull(&"preloaded:stack".parse().unwrap(), None, &|_| {}).await.unwrap();
    let limit = DiskLimit { bytes: 64 << 20, inodes: 10_000, scope: DiskScope::Exclusive };
    let mut costs: [Vec<Duration>; 4] = Default::default();
    for round in 0..rounds {
        let handle = format!("h{round}");
        let mut began = Instant::now();
        let mut lap = |cost: &mut Vec<Duration>| {
            cost.push(began.elapsed());
            began = Instant::now();
        };
        let mounted = store.mount(&handle, &image, None, BaseIds::default(), limit).unwrap();
        lap(&mut costs[0]);
        store.usage(&handle).unwrap();
        lap(&mut costs[1]);
        drop(mounted);
        lap(&mut costs[2]);
        store.unmount(&handle).unwrap();
        lap(&mut costs[3]);
    }
    for (what, cost) in ["mount", "usage", "kernel's unmount", "unmount"].iter().zip(&mut costs) {
        cost.sort();
        let at = |part: f64| cost[((cost.len() - 1) as f64 * part) as usize].as_micros();
        println!("{name} {what}: median {} p90 {} p99 {} us", at(0.5), at(0.9), at(0.99));
    }
    store.settle();
}
