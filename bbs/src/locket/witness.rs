//! What a Locket does and holds, for whoever measures it. Measuring decides nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bbs_models::LockKind;

use super::Refusal;

/// Told of what happens; nothing waits for long.
pub trait Witness: Send + Sync {
    fn began(&self, _call: Call) {}
    fn ended(&self, _call: Call, _took: Duration, _how: Ended) {}
    /// One statement.
    fn asked_database(&self, _took: Duration, _answered: bool) {}
    fn holds(&self, _kind: LockKind, _keys: usize) {}
    fn expired(&self, _kind: LockKind) {}
}

/// Measures nothing.
pub struct Nobody;

impl Witness for Nobody {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Lock,
    Release,
    Fetch,
    FetchAll,
}

impl Call {
    pub const ALL: [Call; 4] = [Call::Lock, Call::Release, Call::Fetch, Call::FetchAll];

    pub fn name(self) -> &'static str {
        match self {
            Call::Lock => "Lock",
            Call::Release => "Release",
            Call::Fetch => "Fetch",
            Call::FetchAll => "FetchAll",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Answered; that another owner holds the key is an answer.
    Well,
    Badly,
    /// Whoever asked did not wait for the answer.
    GivenUp,
}

/// A call, told of when it begins and however it ends.
pub struct UnderWay {
    call: Call,
    witness: Arc<dyn Witness>,
    begun: Instant,
    how: Ended,
}

impl UnderWay {
    pub fn begin(call: Call, witness: Arc<dyn Witness>) -> UnderWay {
        witness.began(call);
        UnderWay { call, witness, begun: Instant::now(), how: Ended::GivenUp }
    }

    pub async fn until<T>(mut self, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let answer = work.await;
        self.how = match &answer {
            Ok(_) | Err(Refusal::Collision) => Ended::Well,
            Err(_) => Ended::Badly,
        };
        answer
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.witness.ended(self.call, self.begun.elapsed(), self.how);
    }
}
