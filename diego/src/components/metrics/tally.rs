//! What has happened so far, counted and timed; each occurrence is passed on to the platform as it comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use executor::{Attempt, Protocol};
use rep::Call;

use super::names;
use crate::components::forward::Teller;

/// Upper ends, in seconds, of what a timing's histogram tells apart.
pub const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// An occurrence by its published name.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Count(&'static str),
    Took(&'static str, Duration),
    /// What a volume driver took, of all that drivers took.
    DriverTook(&'static str, Arc<str>, Duration),
    Stands(&'static str, f64),
}

#[derive(Debug, Clone, Default)]
pub struct Kept {
    pub counts: BTreeMap<&'static str, u64>,
    pub timings: BTreeMap<&'static str, Timing>,
    pub states: BTreeMap<&'static str, f64>,
    pub requests: BTreeMap<&'static str, Requests>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timing {
    pub count: u64,
    pub sum: Duration,
    /// How many were not longer than each of [`BUCKETS`], and longer than the one before.
    pub buckets: [u64; BUCKETS.len()],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    pub started: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Since it was last told.
    pub latency_max: Duration,
}

impl Requests {
    pub fn in_flight(&self) -> u64 {
        self.started.saturating_sub(self.succeeded + self.failed)
    }
}

impl Timing {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
        if let Some(bucket) = BUCKETS.iter().position(|end| took.as_secs_f64() <= *end) {
            self.buckets[bucket] += 1;
        }
    }
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Tally(Arc<Shared>);

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    teller: Option<Teller>,
}

impl Tally {
    pub fn new(teller: Option<Teller>) -> Tally {
        // What has not happened yet is known to be nothing.
        let kept = Kept {
            counts: names::COUNTS.iter().map(|name| (name.published, 0)).collect(),
            timings: names::TIMINGS.iter().map(|name| (name.published, Timing::default())).collect(),
            states: names::STATES.iter().map(|name| (name.published, 0.0)).collect(),
            requests: Call::ALL.iter().map(|call| (request_type(*call), Requests::default())).collect(),
        };
        Tally(Arc::new(Shared { kept: Mutex::new(kept), teller }))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn kept(&self) -> Kept {
        self.lock().clone()
    }

    /// As of now; the slowest of each begins anew.
    pub fn take_requests(&self) -> BTreeMap<&'static str, Requests> {
        let mut kept = self.lock();
        let taken = kept.requests.clone();
        kept.requests.values_mut().for_each(|requests| requests.latency_max = Duration::ZERO);
        taken
    }

    pub fn say(&self, said: Said) {
        self.keep(&said);
        if let Some(teller) = &self.0.teller {
            teller.tell(said);
        }
    }

    fn keep(&self, said: &Said) {
        let mut kept = self.lock();
        match said {
            Said::Count(name) => *kept.counts.entry(name).or_default() += 1,
            Said::Took(name, took) => kept.timings.entry(name).or_default().add(*took),
            Said::DriverTook(..) => {}
            Said::Stands(name, value) => _ = kept.states.insert(name, *value),
        }
    }

    fn request(&self, call: Call, change: impl FnOnce(&mut Requests)) {
        change(self.lock().requests.entry(request_type(call)).or_default());
    }
}

impl executor::Witness for Tally {
    fn saw(&self, occurrence: executor::Occurrence) {
        of_executor(occurrence).into_iter().flatten().for_each(|said| self.say(said));
    }
}

impl rep::Witness for Tally {
    fn saw(&self, occurrence: rep::Occurrence) {
        use rep::Occurrence::*;
        match occurrence {
            BulkSync { took } => self.say(Said::Took(names::BULK_SYNC, took)),
            Stranded { instances } => self.say(Said::Stands(names::STRANDED, instances as f64)),
            GardenChecked { cell_is_well } => {
                let failed = f64::from(u8::from(!cell_is_well));
                self.say(Said::Stands(names::GARDEN_FAILED, failed));
                let unhealthy = Said::Stands(names::CELL_UNHEALTHY, failed);
                // Platforms are told only of a cell that is unhealthy.
                if cell_is_well { self.keep(&unhealthy) } else { self.say(unhealthy) }
            }
            RequestBegan(call) => self.request(call, |requests| requests.started += 1),
            RequestEnded { call, took, failed } => self.request(call, |requests| {
                *(if failed { &mut requests.failed } else { &mut requests.succeeded }) += 1;
                requests.latency_max = requests.latency_max.max(took);
            }),
        }
    }
}

fn of_executor(occurrence: executor::Occurrence) -> [Option<Said>; 3] {
    use executor::Occurrence::*;
    let took = |attempt: Attempt, succeeded, failed| {
        [Some(Said::Took(if attempt.failed { failed } else { succeeded }, attempt.took)), None, None]
    };
    let issued = |attempt: Attempt, succeeded, failed, duration| match attempt.failed {
        true => [Some(Said::Count(failed)), None, None],
        false => [Some(Said::Count(succeeded)), Some(Said::Took(duration, attempt.took)), None],
    };
    let count = |name| [Some(Said::Count(name)), None, None];
    let by_driver = |duration, driver, Attempt { took, failed }, errors| {
        let errors = failed.then_some(Said::Count(errors));
        [Some(Said::Took(duration, took)), Some(Said::DriverTook(duration, driver, took)), errors]
    };
    match occurrence {
        Create(attempt) => took(attempt, names::CREATE_SUCCEEDED, names::CREATE_FAILED),
        Destroy(attempt) => took(attempt, names::DESTROY_SUCCEEDED, names::DESTROY_FAILED),
        SetUp(attempt) => took(attempt, names::SETUP_SUCCEEDED, names::SETUP_FAILED),
        InstanceIdentity(attempt) => {
            issued(attempt, names::CRED_SUCCEEDED, names::CRED_FAILED, names::CRED_DURATION)
        }
        ContainerToContainer(attempt) => {
            issued(attempt, names::C2C_SUCCEEDED, names::C2C_FAILED, names::C2C_DURATION)
        }
        Mount { driver, attempt } => by_driver(names::MOUNT_DURATION, driver, attempt, names::MOUNT_ERRORS),
        Unmount { driver, attempt } => {
            by_driver(names::UNMOUNT_DURATION, driver, attempt, names::UNMOUNT_ERRORS)
        }
        Completed => count(names::CONTAINER_COMPLETED),
        ExceededGracefulShutdown => count(names::EXITED_ON_TIMEOUT),
        LivenessCheckFailed(Protocol::Tcp) => count(names::TCP_FAILED),
        LivenessCheckFailed(Protocol::Http) => count(names::HTTP_FAILED),
        LogRateExceeded => count(names::LOG_RATE_EXCEEDED),
    }
}

/// As it is known in the tag `request-type`.
fn request_type(call: Call) -> &'static str {
    match call {
        Call::State => "State",
        Call::ContainerMetrics => "ContainerMetrics",
        Call::Perform => "Perform",
        Call::UpdateLrpInstance => "UpdateLRPInstance",
        Call::StopLrpInstance => "StopLRPInstance",
        Call::CancelTask => "CancelTask",
    }
}

#[cfg(test)]
mod tests {
    use executor::{Occurrence, Witness};

    use super::*;

    #[test]
    fn every_occurrence_is_known_by_a_published_name() {
        let attempt = |failed| Attempt { took: Duration::from_millis(3), failed };
        let mut occurrences = vec![
            Occurrence::Completed,
            Occurrence::ExceededGracefulShutdown,
            Occurrence::LivenessCheckFailed(Protocol::Tcp),
            Occurrence::LivenessCheckFailed(Protocol::Http),
            Occurrence::LogRateExceeded,
        ];
        for failed in [true, false] {
            occurrences.extend([
                Occurrence::Create(attempt(failed)),
                Occurrence::Destroy(attempt(failed)),
                Occurrence::SetUp(attempt(failed)),
                Occurrence::InstanceIdentity(attempt(failed)),
                Occurrence::ContainerToContainer(attempt(failed)),
            ]);
        }
        let (driver, attempt) = (Arc::from("nfs"), attempt(true));
        occurrences.push(Occurrence::Mount { driver: Arc::clone(&driver), attempt });
        occurrences.push(Occurrence::Unmount { driver, attempt });
        let tally = Tally::new(None);
        occurrences.into_iter().for_each(|occurrence| tally.saw(occurrence));
        rep::Witness::saw(&tally, rep::Occurrence::BulkSync { took: Duration::from_secs(61) });
        tally.say(Said::Took(names::STALLED_GARDEN, Duration::ZERO));
        let kept = tally.kept();
        assert!(kept.counts.values().all(|count| *count == 1), "{:?}", kept.counts);
        assert_eq!(kept.counts.len(), names::COUNTS.len());
        assert!(kept.timings.values().all(|timing| timing.count == 1), "{:?}", kept.timings);
        assert_eq!(kept.timings.len(), names::TIMINGS.len());
        let created = kept.timings[names::CREATE_SUCCEEDED];
        assert_eq!((created.sum.as_millis(), created.buckets[1], created.buckets[2]), (3, 0, 1));
        let sync = kept.timings[names::BULK_SYNC];
        assert_eq!(sync.buckets.iter().sum::<u64>(), 0, "longer than the last bucket");
    }

    #[test]
    fn a_cell_that_is_well_again_is_said_to_be() {
        let tally = Tally::new(None);
        let states = |tally: &Tally| tally.kept().states;
        assert_eq!((states(&tally)[names::GARDEN_FAILED], states(&tally)[names::CELL_UNHEALTHY]), (0.0, 0.0));
        for (cell_is_well, expected) in [(false, 1.0), (true, 0.0)] {
            rep::Witness::saw(&tally, rep::Occurrence::GardenChecked { cell_is_well });
            assert_eq!(states(&tally)[names::GARDEN_FAILED], expected);
            assert_eq!(states(&tally)[names::CELL_UNHEALTHY], expected);
        }
        rep::Witness::saw(&tally, rep::Occurrence::Stranded { instances: 2 });
        assert_eq!(states(&tally)[names::STRANDED], 2.0);
    }

    #[test]
    fn requests_are_counted_by_what_is_asked() {
        use rep::Occurrence::{RequestBegan, RequestEnded};
        let tally = Tally::new(None);
        let see = |occurrence| rep::Witness::saw(&tally, occurrence);
        let ended = |millis, failed| RequestEnded {
            call: Call::Perform,
            took: Duration::from_millis(millis),
            failed,
        };
        for _ in 0..3 {
            see(RequestBegan(Call::Perform));
        }
        see(ended(5, false));
        see(ended(3, true));
        let taken = tally.take_requests()["Perform"];
        assert_eq!((taken.started, taken.succeeded, taken.failed, taken.in_flight()), (3, 1, 1, 1));
        assert_eq!(taken.latency_max, Duration::from_millis(5));
        assert_eq!(tally.take_requests()["Perform"].latency_max, Duration::ZERO);
        assert_eq!(tally.take_requests()["State"], Requests::default());
    }
}
