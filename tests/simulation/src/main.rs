//! `simulate seconds N`: new seeds for so long, on all processors; `simulate seed N`: that one again, with its trace if it
//! fails. Ends with 1 if something that must not happen did.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use simulation::{Outcome, Sabotage, simulate};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["seed", seed] if number(seed).is_some() => again(number(seed).unwrap_or_default()),
        ["seconds", seconds] if number(seconds).is_some() => {
            search(Duration::from_secs(number(seconds).unwrap_or_default()))
        }
        _ => {
            eprintln!("simulate seconds N | simulate seed N");
            ExitCode::from(2)
        }
    }
}

fn again(seed: u64) -> ExitCode {
    let outcome = simulate(seed, Sabotage::None);
    if outcome.violations.is_empty() {
        let settled = outcome.settled_after.unwrap_or_default().as_secs();
        println!("seed {seed}: {} steps, settled after {settled} s, nothing wrong", outcome.steps);
        return ExitCode::SUCCESS;
    }
    outcome.trace.iter().for_each(|line| println!("{line}"));
    tell(&outcome);
    ExitCode::FAILURE
}

fn tell(outcome: &Outcome) {
    outcome.violations.iter().for_each(|violation| println!("seed {}: {violation}", outcome.seed));
    println!("see it again: make simulate SEED={}", outcome.seed);
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    tasks: u64,
    commits: u64,
    lived: Duration,
    settled_max: Duration,
    failed: Vec<u64>,
}

fn search(duration: Duration) -> ExitCode {
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() * 1_000_000;
    let (next, sum, began) = (AtomicU64::new(first), Mutex::new(Sum::default()), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while began.elapsed() < duration {
                    let outcome = simulate(next.fetch_add(1, Ordering::SeqCst), Sabotage::None);
                    add(&sum, &outcome);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_default();
    println!(
        "{} control planes from seed {first} on, {} messages, {} commits, {} Tasks, {:.1} simulated hours in {:.0} s; \
         the longest took {} s to settle; {} failed",
        sum.seeds,
        sum.steps,
        sum.commits,
        sum.tasks,
        sum.lived.as_secs_f64() / 3600.0,
        began.elapsed().as_secs_f64(),
        sum.settled_max.as_secs(),
        sum.failed.len()
    );
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn add(sum: &Mutex<Sum>, outcome: &Outcome) {
    let Ok(mut sum) = sum.lock() else { return };
    sum.seeds += 1;
    sum.steps += outcome.steps;
    sum.tasks += outcome.tasks_run as u64;
    sum.commits += outcome.commits;
    sum.lived += outcome.lasted;
    sum.settled_max = sum.settled_max.max(outcome.settled_after.unwrap_or_default());
    if !outcome.violations.is_empty() {
        sum.failed.push(outcome.seed);
        tell(outcome);
    }
}
