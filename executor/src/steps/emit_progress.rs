//! Says when a step begins and how it ended.

use tokio_util::sync::CancellationToken;

use super::{Messages, Ready, Result, Stage, Step};
use crate::depot::Mark;

pub(super) async fn perform(
    step: &Step,
    messages: &Messages,
    source: &str,
    stage: &Stage,
    cancel: &CancellationToken,
    ready: &Ready,
) -> Result {
    let voice = stage.voice(source);
    if !messages.start.is_empty() && stage.place.earlier().is_none() {
        voice.say(&format!("{}\n", messages.start));
        stage.place.note_after(Mark::begun_now()).await;
    }
    let result = super::perform(step, &stage.child(0), cancel, ready).await;
    match &result {
        Ok(()) if !messages.success.is_empty() => voice.say(&format!("{}\n", messages.success)),
        Err(error) if !messages.failure_prefix.is_empty() => match error.emittable() {
            Some(told) => voice.complain(&format!("{}: {told}\n", messages.failure_prefix)),
            None => voice.complain(&format!("{}\n", messages.failure_prefix)),
        },
        _ => {}
    }
    result
}
