//! Disks that exist only here, and everybody on them.

use std::sync::atomic::AtomicBool;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A disk and one tenant's things on it: bytes, and for how many hours nobody used them; `None`: in use.
struct Disk {
    total: u64,
    foreign: AtomicU64,
    things: Mutex<Vec<(u64, Option<u64>)>>,
    promised: u64,
    broken: AtomicBool,
}

impl Disk {
    fn new(total: u64, promised: u64, things: &[(u64, Option<u64>)]) -> (Arc<Disk>, Ledger) {
        let disk = Arc::new(Disk {
            total,
            foreign: AtomicU64::new(0),
            things: Mutex::new(things.to_vec()),
            promised,
            broken: AtomicBool::new(false),
        });
        let measured = disk.clone();
        let measure = move || Ok(Space { total: measured.total, free: measured.total - measured.taken() });
        let ledger = Ledger::of(Path::new("/disk"), Box::new(measure), None);
        ledger.register(&disk);
        (disk, ledger)
    }

    fn taken(&self) -> u64 {
        lock(&self.things).iter().map(|thing| thing.0).sum::<u64>() + self.foreign.load(Ordering::SeqCst)
    }

    fn put(&self, bytes: u64, unused: Option<u64>) {
        lock(&self.things).push((bytes, unused));
        assert!(self.taken() <= self.total, "the disk is full");
    }

    fn ages(&self) -> Vec<u64> {
        lock(&self.things).iter().filter_map(|thing| thing.1).collect()
    }
}

impl Tenant for Disk {
    fn name(&self) -> &'static str {
        "things"
    }

    fn usage(&self) -> io::Result<Usage> {
        let things = lock(&self.things);
        let evictable_bytes = things.iter().filter(|thing| thing.1.is_some()).map(|thing| thing.0).sum();
        Ok(Usage { bytes: things.iter().map(|thing| thing.0).sum(), evictable_bytes })
    }

    fn promised(&self) -> io::Result<u64> {
        Ok(self.promised)
    }

    fn evict(&self, evict: Evict) -> io::Result<Evicted> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("broken"));
        }
        let mut things = lock(&self.things);
        things.sort_by_key(|thing| std::cmp::Reverse(thing.1));
        let mut evicted = Evicted::default();
        things.retain(|(bytes, unused)| {
            let old = unused.is_some_and(|hours| Duration::from_secs(hours * 3600) >= evict.unused_for);
            let goes = old && evicted.bytes < evict.bytes;
            if goes {
                evicted.things += 1;
                evicted.bytes += bytes;
            }
            !goes
        });
        Ok(evicted)
    }
}

#[test]
fn a_disk_above_its_high_mark_is_emptied_to_its_low_one_the_longest_unused_first() {
    let things: Vec<(u64, Option<u64>)> = (0..9).map(|n| (10, Some(n * 10))).collect();
    let (disk, ledger) = Disk::new(100, 0, &things);
    assert_eq!(Marks::of(100), Marks { brim: 95, high: 90, low: 85 });
    assert_eq!(ledger.keep().unwrap(), Evicted::default(), "at the mark");
    disk.foreign.store(1, Ordering::SeqCst);
    assert_eq!(ledger.keep().unwrap(), Evicted { things: 1, bytes: 10 }, "what others write counts");
    assert_eq!(disk.ages().iter().max(), Some(&70));
    let report = ledger.report().unwrap();
    assert_eq!((report.room_bytes, report.collected.bytes, report.collected.times), (14, 10, 1));
}

#[test]
fn between_tenants_age_decides() {
    let (one, ledger) = Disk::new(1000, 0, &[(10, Some(1)), (10, Some(100))]);
    let other = Arc::new(Disk {
        total: 0,
        foreign: AtomicU64::new(0),
        things: Mutex::new(vec![(10, Some(50)), (10, Some(5))]),
        promised: 0,
        broken: AtomicBool::new(false),
    });
    ledger.register(&other);
    assert_eq!(ledger.collect(25, Duration::ZERO).bytes, 30);
    assert_eq!((one.ages(), other.ages()), (vec![1], vec![]), "100, 50 and 5 hours went");
}

#[test]
fn what_was_just_used_goes_only_for_somebody_who_waits() {
    let (disk, ledger) = Disk::new(100, 0, &[(50, Some(0)), (43, None)]);
    assert_eq!(ledger.keep().unwrap().things, 0);
    let claim = ledger.claim("a layer", 10).unwrap();
    assert_eq!(disk.ages(), [] as [u64; 0]);
    assert_eq!(ledger.room().unwrap(), 42);
    let refused = ledger.claim("a layer", 43).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the disk of /disk has no room for a layer: 43 bytes are needed and 42 bytes may be taken, with nothing unused \
         left to remove"
    );
    drop(claim);
    assert_eq!((ledger.room().unwrap(), ledger.report().unwrap().collected.refused), (52, 1));
}

#[test]
fn what_is_promised_is_not_given_to_others_and_worth_what_the_disk_can_give() {
    let (disk, ledger) = Disk::new(1000, 500, &[(100, Some(9)), (100, None)]);
    assert_eq!(ledger.room().unwrap(), 950 - 700);
    assert!(ledger.claim("a", 351).is_err(), "with all that is unused gone");
    assert_eq!(disk.taken(), 100);
    assert_eq!(ledger.can_keep(500).unwrap(), 500);
    disk.foreign.store(700, Ordering::SeqCst);
    assert_eq!(ledger.can_keep(500).unwrap(), 150, "others have taken of it");
}

#[test]
fn a_claim_is_written_step_by_step_and_counted_once() {
    let (disk, ledger) = Disk::new(1000, 0, &[]);
    let mut claim = ledger.claim("a", 0).unwrap();
    for n in 0..9 {
        claim.take(100).unwrap();
        assert_eq!(disk.taken() + *lock(&ledger.0.claimed), (n + 1) * 100);
        disk.put(100, None);
    }
    assert!(claim.take(51).is_err());
    claim.take(50).unwrap();
    drop(claim);
    assert_eq!(*lock(&ledger.0.claimed), 0);
}

#[test]
fn a_tenant_that_cannot_give_does_not_keep_others_from_it() {
    let (disk, ledger) = Disk::new(100, 0, &[(90, Some(5))]);
    disk.broken.store(true, Ordering::SeqCst);
    assert!(ledger.claim("a", 10).is_err());
    disk.broken.store(false, Ordering::SeqCst);
    ledger.claim("a", 10).unwrap();
}

#[test]
fn the_keeper_is_woken_by_a_claim_and_ends_with_the_ledger() {
    let (disk, ledger) = Disk::new(100, 0, &[(45, Some(50)), (40, Some(40))]);
    keeper::start(&ledger.0);
    let claim = ledger.claim("a", 8).unwrap();
    let began = std::time::Instant::now();
    while disk.ages() != [40] {
        assert!(began.elapsed() < Duration::from_secs(9), "woken, not by and by");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(claim);
    let inner = Arc::downgrade(&ledger.0);
    drop(ledger);
    while inner.strong_count() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Two processes' accounts of one disk, of which one is promised room and the other claims.
#[test]
fn what_another_process_is_promised_or_has_claimed_is_not_given_away() {
    let boards = std::env::temp_dir().join(format!("ledger-common-{}", std::process::id()));
    _ = std::fs::remove_dir_all(&boards);
    for seed in 0..300 {
        let mut chance = StdRng::seed_from_u64(seed);
        let total = chance.random_range(100..5000);
        let promised = chance.random_range(0..total / 3);
        let (disk, alone) = Disk::new(total, promised, &[]);
        drop(alone);
        let account = || {
            let measured = disk.clone();
            let measure =
                move || Ok(Space { total: measured.total, free: measured.total - measured.taken() });
            let board = Board::join(&boards, seed).unwrap();
            Ledger::of(Path::new("/disk"), Box::new(measure), Some((boards.clone(), board)))
        };
        let accounts = [account(), account()];
        accounts[0].register(&disk);
        assert_eq!(accounts[1].elsewhere().unwrap(), promised);
        let mut claims: Vec<(Claim, u64)> = Vec::new();
        for _ in 0..40 {
            let bytes = chance.random_range(1..total / 4);
            match chance.random_range(0..3) {
                0 | 1 => {
                    let claim = accounts[chance.random_range(0..2)].claim("a", bytes);
                    claims.extend(claim.ok().map(|claim| (claim, bytes)));
                }
                _ if !claims.is_empty() => {
                    let (mut claim, bytes) = claims.swap_remove(chance.random_range(0..claims.len()));
                    claim.take(bytes).unwrap();
                    disk.put(bytes, chance.random_bool(0.7).then_some(1));
                }
                _ => {}
            }
            let claimed: u64 = accounts.iter().map(|account| *lock(&account.0.claimed)).sum();
            let spoken_for = disk.taken() + promised + claimed;
            assert!(spoken_for <= Marks::of(total).brim, "seed {seed}: {spoken_for} of {total}");
        }
        drop((claims, accounts));
    }
    std::fs::remove_dir_all(boards).unwrap();
}

/// Whatever everybody does, in whatever order: the brim is never crossed, and a claim is refused only when nothing unused
/// is left.
#[test]
fn under_any_load_nothing_of_ours_crosses_the_brim_and_nothing_unused_outlives_a_refusal() {
    for seed in 0..2000 {
        let mut chance = StdRng::seed_from_u64(seed);
        let total = chance.random_range(100..5000);
        let promised = chance.random_range(0..total / 3);
        let (disk, ledger) = Disk::new(total, promised, &[]);
        let brim = Marks::of(total).brim;
        let mut claims: Vec<(Claim, u64)> = Vec::new();
        for _ in 0..60 {
            match chance.random_range(0..5) {
                0 | 1 => {
                    let bytes = chance.random_range(1..total / 4);
                    match ledger.claim("a", bytes) {
                        Ok(claim) => claims.push((claim, bytes)),
                        Err(Error::NoRoom { .. }) => assert_eq!(disk.ages(), [] as [u64; 0], "seed {seed}"),
                        Err(error) => panic!("{error}"),
                    }
                }
                2 if !claims.is_empty() => {
                    let (mut claim, bytes) = claims.swap_remove(chance.random_range(0..claims.len()));
                    claim.take(bytes).unwrap();
                    disk.put(bytes, chance.random_bool(0.7).then(|| chance.random_range(0..1000)));
                }
                3 => lock(&disk.things).iter_mut().for_each(|thing| {
                    thing.1 = thing.1.or(chance.random_bool(0.3).then_some(0));
                }),
                _ => drop(ledger.keep().unwrap()),
            }
            let spoken_for = disk.taken() + promised + *lock(&ledger.0.claimed);
            assert!(spoken_for <= brim, "seed {seed}: {spoken_for} of {brim}");
        }
    }
}
