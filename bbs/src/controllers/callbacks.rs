//! Telling the clients of completed Tasks: a POST to the Task's callback, after which the Task is forgotten.
//!
//! RESOLVING is what keeps two callers apart. A Task whose client could not be told stays RESOLVING; convergence makes
//! it COMPLETED again and hands it back to this queue, until it is pruned.

use bbs_models::Task;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::board::Board;
use crate::transitions::task;

/// Completed Tasks whose clients may wait to be told; further ones are left to convergence.
const CALLBACKS_QUEUED_MAX: usize = 10_000;
/// Callbacks on their way at once.
const CALLBACKS_CONCURRENT_MAX: usize = 100;
/// Attempts on one callback in a row.
const ATTEMPTS_MAX: u32 = 3;

#[derive(Clone)]
pub struct Callbacks(mpsc::Sender<String>);

impl Callbacks {
    /// The queue, and what empties it until every sender is gone.
    pub fn new(board: Board, http: reqwest::Client) -> (Callbacks, impl Future<Output = ()> + Send) {
        let (sender, queue) = mpsc::channel(CALLBACKS_QUEUED_MAX);
        (Callbacks(sender), send(board, http, queue))
    }

    /// Does nothing for a Task without a callback: its client asks.
    pub fn call(&self, task: &Task) {
        if task.definition.completion_callback_url.is_empty() {
            return;
        }
        if self.0.try_send(task.task_guid.clone()).is_err() {
            tracing::warn!(task_guid = %task.task_guid, "too many callbacks wait: one is left to convergence");
        }
    }
}

async fn send(board: Board, http: reqwest::Client, queue: mpsc::Receiver<String>) {
    ReceiverStream::new(queue)
        .for_each_concurrent(CALLBACKS_CONCURRENT_MAX, |guid| tell(&board, &http, guid))
        .await;
}

async fn tell(board: &Board, http: &reqwest::Client, guid: String) {
    let task_guid = guid.clone();
    let resolving = board
        .write("", move |draft| {
            draft.record(task::resolving(draft.state().task(&guid).cloned(), draft.now_ns)?);
            Ok(draft.state().task(&guid).cloned())
        })
        .await;
    let task = match resolving {
        Ok(Some(task)) => task,
        Ok(None) => return,
        // Somebody else tells it, or it is told.
        Err(error) => return tracing::info!(%task_guid, %error, "a callback is not ours to call"),
    };
    if !is_told(http, &task).await {
        return;
    }
    let deleted = board
        .write("", move |draft| {
            draft.record(task::delete(draft.state().task(&task.task_guid).cloned())?);
            Ok(())
        })
        .await;
    if let Err(error) = deleted {
        tracing::warn!(%task_guid, %error, "cannot delete a Task whose client was told");
    }
}

/// Any answer but "try later" is an answer.
async fn is_told(http: &reqwest::Client, task: &Task) -> bool {
    let Some(callback) = task.callback() else { return false };
    let (url, task_guid) = (&task.definition.completion_callback_url, &task.task_guid);
    for _ in 0..ATTEMPTS_MAX {
        match http.post(url).json(&callback).send().await {
            Ok(response) if is_try_later(response.status().as_u16()) => {
                tracing::info!(%task_guid, url, status = response.status().as_u16(), "a callback says: later");
            }
            Ok(_) => return true,
            Err(error) if error.is_timeout() => {
                tracing::info!(%task_guid, url, %error, "a callback takes too long");
            }
            Err(error) => {
                tracing::error!(%task_guid, url, %error, "cannot call a callback");
                return false;
            }
        }
    }
    false
}

fn is_try_later(status: u16) -> bool {
    matches!(status, 503 | 504)
}
