//! What a Task's container means for the BBS, decided from a snapshot alone. Tasks are not moved by an evacuation: the
//! cell waits for them.

use executor::{Container, State};

use crate::tags::RESULT_FILE_TAG;

pub const FAILED_TO_RUN_CONTAINER: &str = "failed to run container";
pub const FAILED_TO_FETCH_RESULT: &str = "failed to fetch result";
pub const MISSING_CONTAINER: &str = "task container does not exist";

/// In the order in which they are to be carried out; one that is refused ends the list, see the harmonizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Start,
    /// Fetch the Task and start its recipe in the reserved container.
    Run,
    /// It failed in a way another cell might not.
    Reject {
        reason: String,
    },
    Fail {
        reason: String,
    },
    /// Read the result file, if there is one to be read, and complete the Task with it.
    Succeed {
        result_file: Option<String>,
    },
    /// The container, not the Task.
    Delete,
}

pub fn react(container: &Container) -> Vec<Call> {
    match &container.state {
        State::Reserved => vec![Call::Start, Call::Run],
        State::Initializing | State::Created | State::Running => vec![Call::Start],
        State::Completed(result) if !result.failed => {
            vec![Call::Succeed { result_file: result_file(container) }, Call::Delete]
        }
        State::Completed(result) if result.retryable => {
            vec![Call::Reject { reason: result.failure_reason.clone() }, Call::Delete]
        }
        State::Completed(result) => vec![Call::Fail { reason: result.failure_reason.clone() }, Call::Delete],
    }
}

fn result_file(container: &Container) -> Option<String> {
    container.tags.get(RESULT_FILE_TAG).filter(|path| !path.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use executor::{Resource, RunResult, Tags};

    fn check(state: State, result_file: &str, expected: &[Call]) {
        let tags = Tags::from([(RESULT_FILE_TAG.into(), result_file.into())]);
        let mut container = Container::reserved("tg", Resource::default(), tags, 0);
        container.state = state;
        assert_eq!(react(&container), expected);
    }

    fn completed(failed: bool, retryable: bool) -> State {
        State::Completed(RunResult { failed, failure_reason: "why".into(), retryable, stopped: false })
    }

    #[test]
    fn each_state_has_its_calls() {
        check(State::Reserved, "", &[Call::Start, Call::Run]);
        check(State::Initializing, "", &[Call::Start]);
        check(State::Created, "", &[Call::Start]);
        check(State::Running, "", &[Call::Start]);
        let with_file = Call::Succeed { result_file: Some("/result".into()) };
        check(completed(false, false), "/result", &[with_file, Call::Delete]);
        check(completed(false, false), "", &[Call::Succeed { result_file: None }, Call::Delete]);
        check(completed(true, false), "/result", &[Call::Fail { reason: "why".into() }, Call::Delete]);
        check(completed(true, true), "/result", &[Call::Reject { reason: "why".into() }, Call::Delete]);
    }
}
