//! All the chance there is in a simulation: one stream of numbers that follows from the seed.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Clones draw from the same stream.
#[derive(Clone)]
pub struct Chance(Arc<Mutex<StdRng>>);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    pub fn below(&self, end: u64) -> u64 {
        self.draw(|rng| rng.random_range(0..end.max(1)))
    }

    pub fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    pub fn happens(&self, probability: f64) -> bool {
        self.draw(|rng| rng.random_bool(probability))
    }

    pub fn duration(&self, range_ms: Range<u64>) -> Duration {
        Duration::from_millis(self.draw(|rng| rng.random_range(range_ms)))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
