//! A few filesystems made ahead, of the shapes that were asked for last: a create takes one by renaming it, and does not
//! wait until it is copied and mounted. The same thread looks after those that are lived in.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::template::Shape;
use super::{Made, Shop};

/// Shapes that are kept in mind, and how many are ready of the last one and of each other.
const SHAPES_MAX: usize = 4;
const READY_OF_LAST: usize = 4;
const READY_OF_OTHERS: usize = 1;
/// Where there is nothing to be made, those that are lived in are looked after.
const TEND_INTERVAL: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    shop: Arc<Shop>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// As they were asked for, the last one first.
    asked: VecDeque<Shape>,
    ready: Vec<Made>,
    /// Nothing is made until somebody asks again: after a failure it is for him to hear of the next.
    resting: bool,
    stopping: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Make(Shape),
    Discard(Made),
}

impl State {
    fn ask(&mut self, shape: Shape) {
        self.resting = false;
        self.asked.retain(|asked| *asked != shape);
        self.asked.push_front(shape);
        self.asked.truncate(SHAPES_MAX);
    }

    fn take(&mut self, shape: Shape) -> Option<Made> {
        let at = self.ready.iter().position(|ready| ready.shape == shape)?;
        Some(self.ready.remove(at))
    }

    fn wanted(&self, shape: Shape) -> usize {
        match self.asked.iter().position(|asked| *asked == shape) {
            Some(0) => READY_OF_LAST,
            Some(_) => READY_OF_OTHERS,
            None => 0,
        }
    }

    fn count(&self, shape: Shape) -> usize {
        self.ready.iter().filter(|ready| ready.shape == shape).count()
    }

    fn next(&mut self) -> Option<Step> {
        if self.resting {
            return None;
        }
        if let Some(shape) = self.asked.iter().find(|shape| self.count(**shape) < self.wanted(**shape)) {
            return Some(Step::Make(*shape));
        }
        let too_many = |ready: &Made| self.count(ready.shape) > self.wanted(ready.shape);
        let too_many = self.ready.iter().position(too_many)?;
        Some(Step::Discard(self.ready.remove(too_many)))
    }
}

impl Pool {
    pub fn start(shop: Arc<Shop>) -> Pool {
        let shared = Arc::new(Shared { shop, state: Mutex::default(), changed: Condvar::new() });
        let same = shared.clone();
        let thread = std::thread::spawn(move || same.work());
        Pool { shared, thread: Some(thread) }
    }

    /// One that is ready. More of this shape are made from the next [`Pool::refill`] on.
    pub fn take(&self, shape: Shape) -> Option<Made> {
        let mut state = self.shared.state();
        state.ask(shape);
        state.take(shape)
    }

    /// For who has taken one, once he needs the processors no more.
    pub fn refill(&self) {
        self.shared.changed.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let ready = std::mem::take(&mut self.shared.state().ready);
        ready.iter().for_each(|made| self.shared.discard(made));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        let mut tended = Instant::now();
        while !state.stopping {
            let Some(step) = state.next() else {
                let left = TEND_INTERVAL.saturating_sub(tended.elapsed());
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if !state.stopping && tended.elapsed() >= TEND_INTERVAL {
                    drop(state);
                    self.shop.tend();
                    tended = Instant::now();
                    state = self.state();
                }
                continue;
            };
            drop(state);
            let made = match step {
                Step::Make(shape) => self.shop.make(shape).map(Some),
                Step::Discard(made) => {
                    self.discard(&made);
                    Ok(None)
                }
            };
            state = self.state();
            match made {
                Ok(made) => state.ready.extend(made),
                Err(error) => {
                    tracing::warn!(%error, "cannot make a filesystem for a root ahead");
                    state.resting = true;
                }
            }
        }
    }

    fn discard(&self, made: &Made) {
        if let Err(error) = self.shop.discard(&self.shop.ready(&made.name)) {
            tracing::warn!(%error, "cannot remove a filesystem that was made ahead; the next start does");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shape(inodes: u64) -> Shape {
        Shape { bytes: 4096, inodes, directories: 0 }
    }

    /// Everything that it would do.
    fn run(state: &mut State) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(step) = state.next() {
            if let Step::Make(shape) = &step {
                let name = format!("{}-{}", shape.inodes, steps.len());
                state.ready.push(Made { name, shape: *shape, device: Default::default() });
            }
            steps.push(step);
            assert!(steps.len() < 100, "it comes to rest");
        }
        steps
    }

    #[test]
    fn what_was_asked_for_last_is_ready_and_what_nobody_asks_for_goes() {
        let mut state = State::default();
        assert_eq!(run(&mut state), []);
        state.ask(shape(1));
        assert_eq!(run(&mut state).len(), READY_OF_LAST);
        assert!(state.take(shape(1)).is_some() && state.take(shape(2)).is_none());
        state.ask(shape(2));
        run(&mut state);
        assert_eq!((state.count(shape(1)), state.count(shape(2))), (READY_OF_OTHERS, READY_OF_LAST));
        for number in 3..=5 {
            state.ask(shape(number));
            run(&mut state);
        }
        let counts: Vec<usize> = (1..=5).map(|number| state.count(shape(number))).collect();
        assert_eq!(counts, [0, 1, 1, 1, READY_OF_LAST]);
        state.resting = true;
        state.take(shape(5));
        assert_eq!(run(&mut state), [], "until somebody asks");
        state.ask(shape(5));
        assert_eq!(run(&mut state).len(), 1);
    }
}
