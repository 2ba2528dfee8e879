//! What containers are held to, the same with both versions of control groups: needs what `containers` needs.

#[allow(dead_code)]
#[macro_use]
mod world;

use garden::containerizer::{Config, Container, IoRates};
use garden_client::{CpuLimits, Limits, MemoryLimits, PidLimits};
use world::{World, sh};

const MIB: u64 = 1 << 20;

fn limits(memory: u64, pids: u64, cpu: u64) -> Limits {
    Limits {
        memory: MemoryLimits { limit_in_bytes: memory },
        pid: PidLimits { max: pids },
        cpu: CpuLimits { weight: cpu, ..CpuLimits::default() },
        ..Limits::default()
    }
}

impl World {
    async fn limited(&self, limits: Limits) -> Container {
        let mut spec = self.spec();
        spec.limits = limits;
        self.start(spec).await
    }

    /// The first of these files that this kernel has.
    fn any_file(&self, container: &Container, controller: &str, files: &[&str]) -> Option<String> {
        files.iter().find_map(|file| self.cgroup_file(container, controller, file))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_killed_for_want_of_memory_is_told_though_its_parent_ends_well() {
    let world = world!("a_child_killed_for_want_of_memory_is_told_though_its_parent_ends_well");
    let container = world.limited(limits(24 * MIB, 0, 0)).await;
    let done = world.run(&container, &sh("dd if=/dev/zero of=/dev/null bs=100M count=1; echo $?")).await;
    assert_eq!((done.status, done.stdout.trim()), (0, "137"), "{done:?}");
    assert!(container.out_of_memory().unwrap());
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_memory_count_and_can_be_reclaimed_by_nobody() {
    let world = world!("files_in_memory_count_and_can_be_reclaimed_by_nobody");
    let container = world.limited(limits(64 * MIB, 0, 0)).await;
    let before = container.usage().unwrap().memory.total_usage_toward_limit;
    world.run(&container, &sh("dd if=/dev/zero of=/dev/shm/kept bs=1M count=8")).await;
    let after = container.usage().unwrap().memory;
    let grown = after.total_usage_toward_limit.saturating_sub(before);
    assert!((8 * MIB..12 * MIB).contains(&grown), "{grown}");
    assert_eq!(after.hierarchical_memory_limit, 64 * MIB);
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swap_does_not_widen_the_limit_unless_the_operator_lets_it() {
    for limited in [true, false] {
        let world =
            world!("swap_does_not_widen_the_limit_unless_the_operator_lets_it", |config: &mut Config| {
                config.swap_limited = limited
            });
        let container = world.limited(limits(24 * MIB, 0, 0)).await;
        let files = ["memory.memsw.limit_in_bytes", "memory.swap.max"];
        let Some(limit) = world.any_file(&container, "memory", &files) else {
            println!(
                "SKIPPED swap_does_not_widen_the_limit_unless_the_operator_lets_it: swap is not counted here"
            );
            return world.end(container).await;
        };
        // Of both together on version 1, of swap alone on version 2.
        let held = limit == (24 * MIB).to_string() || limit == "0";
        assert_eq!(held, limited, "{limit}");
        world.end(container).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cpu_is_given_by_shares_quota_and_burst() {
    let world = world!("cpu_is_given_by_shares_quota_and_burst", |config: &mut Config| {
        (config.cpu_quota_per_share_us, config.cpu_burst_us) = (50, 1_000_000);
    });
    let container = world.limited(limits(0, 0, 100)).await;
    let file = |files: &[&str]| world.any_file(&container, "cpu", files).unwrap_or_default();
    let shares = file(&["cpu.shares", "cpu.weight"]);
    assert!(["100", "4"].contains(&&shares[..]), "{shares}");
    let quota = file(&["cpu.cfs_quota_us", "cpu.max"]);
    assert!(["5000", "5000 100000"].contains(&&quota[..]), "{quota}");
    let burst = file(&["cpu.cfs_burst_us", "cpu.max.burst"]);
    assert!(["5000", ""].contains(&&burst[..]), "no more than the quota: {burst}");
    container.weigh(1024).unwrap();
    let shares = file(&["cpu.shares", "cpu.weight"]);
    assert!(["1024", "39"].contains(&&shares[..]), "{shares}");
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_time_is_weighed_and_rates_are_held_where_the_kernel_can() {
    let world =
        world!("disk_time_is_weighed_and_rates_are_held_where_the_kernel_can", |config: &mut Config| {
            config.io_weight = 505;
            config.io_rates = IoRates { read_bytes_per_s: Some(1 << 30), ..IoRates::default() };
        });
    let container = world.limited(limits(0, 0, 0)).await;
    let files = ["blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight"];
    match world.any_file(&container, "blkio", &files) {
        Some(weight) => {
            assert!(["505", "default 505", "default 5000"].contains(&&weight[..]), "{weight}")
        }
        None => println!("SKIPPED the weight of disk_time_is_weighed…: no scheduler weighs here"),
    }
    if let Some(rates) = world.cgroup_file(&container, "blkio", "io.max") {
        assert!(rates.contains(&format!("rbps={}", 1 << 30)), "{rates}");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_listed_cannot_be_opened_even_by_a_privileged_root() {
    let world = world!("a_device_that_is_not_listed_cannot_be_opened_even_by_a_privileged_root");
    let mut spec = world.spec();
    spec.privileged = true;
    let container = world.start(spec).await;
    for (kind, number, opened) in [
        ("c", "1 3", true),
        ("c", "1 5", true),
        ("c", "1 11", false),
        ("c", "10 237", false),
        ("b", "7 0", false),
    ] {
        let script = format!(
            "mknod /dev/some {kind} {number} || exit 9; (: < /dev/some); s=$?; rm /dev/some; exit $s"
        );
        let done = world.run(&container, &sh(&script)).await;
        assert_eq!(done.status == 0, opened, "{kind} {number}: {done:?}");
        assert!(opened || done.stderr.contains("Operation not permitted"), "{done:?}");
    }
    world.end(container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_limits_are_none_or_a_clear_error_and_leave_nothing() {
    let world = world!("absurd_limits_are_none_or_a_clear_error_and_leave_nothing");
    let huge = i64::MAX as u64;
    for (given, memory, pids) in [
        (limits(0, 0, 0), None, 0),
        (limits(u64::MAX, u64::MAX, u64::MAX), None, 0),
        (limits(huge, huge, 1), None, 0),
        (limits(huge - 1, huge - 1, 1 << 40), None, 0),
        (limits(64 * MIB + 1, 100, 2), Some(64 * MIB), 100),
    ] {
        let container = world.limited(given.clone()).await;
        let usage = container.usage().unwrap();
        let limit = usage.memory.hierarchical_memory_limit;
        assert_eq!(limit < 1 << 50, memory.is_some(), "{given:?}: {limit}");
        // In whole pages.
        assert!(memory.is_none_or(|memory| limit / 4096 == memory / 4096), "{given:?}: {limit}");
        assert_eq!(usage.pid.max, pids, "{given:?}");
        assert_eq!(world.run(&container, &sh("exit 3")).await.status, 3, "{given:?}");
        world.end(container).await;
    }
    // Whether so little is enough is the kernel's to say.
    for given in [limits(1, 0, 0), limits(4096, 1, 1)] {
        let mut spec = world.spec();
        spec.limits = given.clone();
        match world.try_start(spec).await {
            Ok(container) => container.destroy().await.unwrap(),
            Err(error) => assert!(error.to_string().contains("the-handle"), "{error}"),
        }
        world.nothing_left().await;
    }
}
