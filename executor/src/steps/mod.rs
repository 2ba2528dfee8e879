//! Steps: what a recipe's actions become, and how each is carried out; one file an action.
//!
//! Steps are run within their container's owner task. To end one, its token is cancelled and its result awaited; dropped,
//! as when this process ends, it leaves behind what it has begun, and a later life goes on from what is written down: each
//! step notes at its [`Place`] what it must not begin twice, before it does, and that it has ended.

mod codependent;
mod download;
mod emit_progress;
mod environment;
mod error;
mod format;
mod gather;
mod parallel;
mod run;
mod serial;
#[cfg(test)]
mod tests;
mod timeout;
mod transfer;
mod r#try;
mod upload;
mod voice;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bbs_models::{DownloadAction, UploadAction};
pub(crate) use download::report;
pub(crate) use error::{Result, StepError};
pub(crate) use format::{byte_size, go_duration};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
pub(crate) use voice::{Capture, Voice};

pub(crate) use self::environment::network as network_environment;
pub(crate) use self::run::{Run, UNRECORDED};
use crate::checks::{Check, Monitor, Readiness, Repeat, Vantage};
use crate::depot::Place;
use crate::logs::LogStream;
use crate::{Attempt, Occurrence, Shared, checks};

/// A recipe, ready to be carried out. `source` names whom a step's output comes from; empty: the container's own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Run(Run),
    Download {
        action: DownloadAction,
        source: String,
    },
    Upload {
        action: UploadAction,
        source: String,
    },
    Timeout {
        step: Box<Step>,
        limit: Duration,
    },
    Try(Box<Step>),
    EmitProgress {
        step: Box<Step>,
        messages: Messages,
        source: String,
    },
    Parallel(Vec<Step>),
    Serial(Vec<Step>),
    Codependent {
        steps: Vec<Step>,
        rule: OnExit,
    },
    /// Keeps the step's output to itself; on failure the output is the error.
    Capture(Box<Step>),
    /// A step of a monitor action, repeated.
    Repeat(Repeat),
    /// One declarative check, repeated.
    Check(Check),
    Monitor(Monitor),
    Readiness(Readiness),
    /// What a container's setup consists of: how long all that took is told at its end.
    SetUp(Box<Step>),
}

/// What `emit_progress` says; an empty message is not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Messages {
    pub start: String,
    pub success: String,
    pub failure_prefix: String,
}

/// What a codependent step makes of a child that ended well. One that failed always ends the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnExit {
    /// The others go on.
    Continue,
    /// The others are cancelled.
    CancelOthers,
    /// It should not have ended: an error.
    Fail,
}

/// What a step acts on; cheap to clone.
#[derive(Clone)]
pub(crate) struct Stage {
    pub shared: Arc<Shared>,
    pub guid: String,
    pub logs: LogStream,
    /// `CF_INSTANCE_…`, added to each process's own.
    pub environment: Arc<Vec<String>>,
    pub internal_ip: Option<IpAddr>,
    pub vantage: Arc<Vantage>,
    /// Where readiness checks say how they found it.
    pub readiness: mpsc::Sender<bool>,
    /// Where output goes instead of the logs.
    pub capture: Option<Capture>,
    /// When the container was begun to be created; not if an earlier life did.
    pub begun: Option<Instant>,
    /// Of the step that is to be carried out.
    pub place: Place,
}

impl Stage {
    /// For the steps that this one is made of.
    pub fn child(&self, position: usize) -> Stage {
        Stage { place: self.place.child(position), ..self.clone() }
    }

    /// For steps that may be taken again at any time: nothing is written down of them.
    pub fn unrecorded(&self) -> Stage {
        Stage { place: Place::default(), ..self.clone() }
    }

    pub fn tell(&self, occurrence: Occurrence) {
        self.shared.config.witness.saw(occurrence);
    }

    /// One that an earlier life began is not told of: nobody knows how long that took.
    pub fn tell_of_set_up(&self, result: &Result) {
        if let Some(begun) = self.begun {
            self.tell(Occurrence::SetUp(Attempt::of(begun, result)));
        }
    }

    pub fn voice(&self, source: &str) -> Voice {
        Voice::new(&self.logs.with_source(source), self.capture.as_ref())
    }
}

/// Set once, by a step that does what it is there for: its process has started, its container is healthy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(CancellationToken);

impl Ready {
    pub fn set(&self) {
        self.0.cancel();
    }

    pub fn is_set(&self) -> bool {
        self.0.is_cancelled()
    }

    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

/// Carries a step out, to its end.
pub(crate) fn perform<'a>(
    step: &'a Step,
    stage: &'a Stage,
    cancel: &'a CancellationToken,
    ready: &'a Ready,
) -> BoxFuture<'a, Result> {
    // A box a step, not one for whatever step it may be: recipes nest deeply, and stacks end.
    match step {
        Step::Run(run) => Box::pin(run::perform(run, stage, cancel, ready)),
        Step::Download { action, source } => {
            Box::pin(download::perform(action, source, stage, cancel, ready))
        }
        Step::Upload { action, source } => Box::pin(upload::perform(action, source, stage, cancel, ready)),
        Step::Timeout { step, limit } => Box::pin(timeout::perform(step, *limit, stage, cancel, ready)),
        Step::Try(step) => Box::pin(r#try::perform(step, stage, cancel, ready)),
        Step::EmitProgress { step, messages, source } => {
            Box::pin(emit_progress::perform(step, messages, source, stage, cancel, ready))
        }
        Step::Parallel(steps) => Box::pin(parallel::perform(steps, stage, cancel, ready)),
        Step::Serial(steps) => Box::pin(serial::perform(steps, stage, cancel, ready)),
        Step::Codependent { steps, rule } => {
            Box::pin(codependent::perform(steps, *rule, stage, cancel, ready))
        }
        Step::Capture(step) => Box::pin(voice::capture(step, stage, cancel, ready)),
        Step::Repeat(repeat) => Box::pin(checks::repeat(repeat, stage, cancel, ready)),
        Step::Check(check) => Box::pin(checks::check(check, stage, cancel, ready)),
        Step::Monitor(monitor) => Box::pin(checks::monitor(monitor, stage, cancel, ready)),
        Step::Readiness(readiness) => Box::pin(checks::readiness(readiness, stage, cancel, ready)),
        Step::SetUp(step) => Box::pin(set_up(step, stage, cancel, ready)),
    }
}

async fn set_up(step: &Step, stage: &Stage, cancel: &CancellationToken, ready: &Ready) -> Result {
    let result = perform(step, stage, cancel, ready).await;
    stage.tell_of_set_up(&result);
    result
}
