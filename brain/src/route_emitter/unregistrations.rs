//! Unregistrations that are said again for a while: messages get lost, and a router that missed one would lead
//! requests to somebody else's port. Pure.

use std::collections::BTreeMap;

use crate::routes::message::{Change, Entry, Registration};

/// Remembered at once; what is more is said once only.
pub const UNREGISTRATIONS_MAX: usize = 10_000;

pub struct Unregistrations {
    times: u32,
    /// With how often each is to be said yet.
    due: BTreeMap<Entry, (Registration, u32)>,
}

impl Unregistrations {
    /// Says each `times` more.
    pub fn new(times: u32) -> Unregistrations {
        Unregistrations { times, due: BTreeMap::new() }
    }

    /// What is registered again must not be unregistered any more.
    pub fn note(&mut self, change: &Change) {
        match change {
            Change::Register(registration) => {
                self.due.remove(&registration.entry());
            }
            Change::Unregister(gone) if self.times > 0 && self.due.len() < UNREGISTRATIONS_MAX => {
                self.due.insert(gone.entry(), (gone.clone(), self.times));
            }
            Change::Unregister(_) => {}
        }
    }

    /// What is to be said now.
    pub fn take_due(&mut self) -> Vec<Registration> {
        let said = self.due.values().map(|(gone, _)| gone.clone()).collect();
        self.due.retain(|_, (_, times)| {
            *times -= 1;
            *times > 0
        });
        said
    }
}
