//! Carries out what was decided for one container, one call after the other.

use bbs_client::Error as BbsError;
use bbs_models::ErrorKind;
use executor::Container;

use super::{Outcome, Surrounded, result_file};
use crate::lrp::{self, Started};
use crate::tags::{self, Lifecycle, LrpInstance};
use crate::{recipe, task};

/// Whether the calls after this one are made.
enum Step {
    Next,
    Last,
    Retry,
}

pub(super) async fn container(around: &Surrounded, guid: &str) -> Outcome {
    let Ok(container) = around.executor.get(guid) else { return Outcome::Settled };
    let step = match tags::read(&container.tags, &around.cell_id) {
        Ok(Lifecycle::Lrp(lrp)) => lrp_container(around, &container, &lrp).await,
        Ok(Lifecycle::Task { .. }) => task_container(around, &container).await,
        Err(error) => {
            tracing::error!(guid, %error, "failed-to-process-container-with-unknown-lifecycle");
            Step::Last
        }
    };
    match step {
        Step::Next | Step::Last => Outcome::Settled,
        Step::Retry => Outcome::Retry,
    }
}

async fn lrp_container(around: &Surrounded, container: &Container, lrp: &LrpInstance) -> Step {
    for call in lrp::react(container, around.evacuation.has_begun(), around.preferred_address) {
        match carry_out_lrp(around, container, lrp, call).await {
            Step::Next => {}
            end => return end,
        }
    }
    Step::Last
}

async fn task_container(around: &Surrounded, container: &Container) -> Step {
    for call in task::react(container) {
        match carry_out_task(around, container, call).await {
            Step::Next => {}
            end => return end,
        }
    }
    Step::Last
}

async fn carry_out_lrp(
    around: &Surrounded,
    container: &Container,
    lrp: &LrpInstance,
    call: lrp::Call,
) -> Step {
    let (bbs, key, instance) = (&around.bbs, &lrp.key, &lrp.instance);
    tracing::debug!(lrp = %key, instance_guid = instance.instance_guid, ?call, "telling the BBS");
    match call {
        lrp::Call::Claim => claim(around, lrp).await,
        lrp::Call::Run => run_lrp(around, lrp).await,
        lrp::Call::Start(started) => start(around, lrp, &started).await,
        lrp::Call::Crash { reason } => told(lrp, "crash", bbs.crash_actual_lrp(key, instance, &reason).await),
        lrp::Call::Remove => told(lrp, "remove", bbs.remove_actual_lrp(key, Some(instance)).await),
        lrp::Call::EvacuateClaimed => {
            told(lrp, "evacuate claimed", bbs.evacuate_claimed_actual_lrp(key, instance).await.map(drop))
        }
        lrp::Call::EvacuateCrashed { reason } => told(
            lrp,
            "evacuate crashed",
            bbs.evacuate_crashed_actual_lrp(key, instance, &reason).await.map(drop),
        ),
        lrp::Call::EvacuateStopped => {
            told(lrp, "evacuate stopped", bbs.evacuate_stopped_actual_lrp(key, instance).await.map(drop))
        }
        lrp::Call::EvacuateRunning(started) => evacuate_running(around, lrp, &started).await,
        lrp::Call::Delete => delete(around, &container.guid).await,
    }
}

async fn claim(around: &Surrounded, lrp: &LrpInstance) -> Step {
    match around.bbs.claim_actual_lrp(&lrp.key, &lrp.instance).await {
        Ok(()) => Step::Next,
        Err(error) if may_pass(&error) => retry("claim", &error),
        Err(error) => {
            tracing::info!(lrp = %lrp.key, %error, "claim refused; deleting the container");
            last(delete(around, &lrp.instance.instance_guid).await)
        }
    }
}

/// Whatever keeps it from running is told where a person looks for it: as the crash reason of the instance.
async fn run_lrp(around: &Surrounded, lrp: &LrpInstance) -> Step {
    let (bbs, guid) = (&around.bbs, &lrp.instance.instance_guid);
    let desired = match bbs.desired_lrp_by_process_guid(&lrp.key.process_guid).await {
        Ok(desired) => desired,
        Err(error) if may_pass(&error) => return retry("fetch the DesiredLRP", &error),
        Err(error) => {
            tracing::info!(lrp = %lrp.key, %error, "it is not desired any more");
            return remove_and_delete(around, lrp).await;
        }
    };
    let request = match recipe::of_lrp(&desired, lrp, &around.recipes) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "failed-to-construct-run-request");
            let told =
                told(lrp, "crash", bbs.crash_actual_lrp(&lrp.key, &lrp.instance, &error.to_string()).await);
            return if let Step::Retry = told { Step::Retry } else { last(delete(around, guid).await) };
        }
    };
    match around.executor.run_container(request) {
        Ok(()) => Step::Next,
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "failed-running-container");
            remove_and_delete(around, lrp).await
        }
    }
}

async fn remove_and_delete(around: &Surrounded, lrp: &LrpInstance) -> Step {
    match told(lrp, "remove", around.bbs.remove_actual_lrp(&lrp.key, Some(&lrp.instance)).await) {
        Step::Retry => Step::Retry,
        _ => last(delete(around, &lrp.instance.instance_guid).await),
    }
}

async fn start(around: &Surrounded, lrp: &LrpInstance, started: &Started) -> Step {
    if started.net_info.address.is_empty() {
        tracing::error!(lrp = %lrp.key, "failed-extracting-net-info-from-container: it has no address");
        return Step::Last;
    }
    match around.bbs.start_actual_lrp(&lrp.key, &lrp.instance, &details(around, started)).await {
        Ok(()) => Step::Next,
        Err(error) if error.kind() == Some(ErrorKind::ActualLrpCannotBeStarted) => {
            tracing::info!(lrp = %lrp.key, %error, "start refused; stopping the container");
            stop(around, &lrp.instance.instance_guid).await
        }
        Err(error) if may_pass(&error) => retry("start", &error),
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "start refused");
            Step::Last
        }
    }
}

/// The instance stays until the BBS says that it need not: its replacement runs by then, or nobody wants it any more.
async fn evacuate_running(around: &Surrounded, lrp: &LrpInstance, started: &Started) -> Step {
    match around.bbs.evacuate_running_actual_lrp(&lrp.key, &lrp.instance, &details(around, started)).await {
        Ok(true) => Step::Last,
        Ok(false) => last(delete(around, &lrp.instance.instance_guid).await),
        Err(error) if may_pass(&error) => retry("evacuate running", &error),
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "failed-to-evacuate-running-actual-lrp");
            Step::Last
        }
    }
}

fn details(around: &Surrounded, started: &Started) -> bbs_client::StartedLrp {
    bbs_client::StartedLrp {
        net_info: started.net_info.clone(),
        internal_routes: started.internal_routes.clone(),
        metric_tags: started.metric_tags.clone(),
        routable: started.routable,
        availability_zone: around.zone.clone(),
    }
}

async fn carry_out_task(around: &Surrounded, container: &Container, call: task::Call) -> Step {
    let (bbs, guid) = (&around.bbs, &container.guid);
    tracing::debug!(task_guid = guid, ?call, "telling the BBS");
    match call {
        task::Call::Start => start_task(around, guid).await,
        task::Call::Run => run_task(around, guid).await,
        task::Call::Reject { reason } => told_of_task(guid, "reject", bbs.reject_task(guid, &reason).await),
        task::Call::Fail { reason } => fail_task(around, guid, &reason).await,
        task::Call::Succeed { result_file } => succeed(around, guid, result_file.as_deref()).await,
        task::Call::Delete => delete(around, guid).await,
    }
}

/// A Task that was started here before is run all the same: as long as its container is only reserved, it has not been.
async fn start_task(around: &Surrounded, guid: &str) -> Step {
    match around.bbs.start_task(guid, &around.cell_id).await {
        Ok(_changed) => Step::Next,
        Err(error) if may_pass(&error) => retry("start a Task", &error),
        Err(error) => {
            tracing::info!(task_guid = guid, %error, "start refused; deleting the container");
            last(delete(around, guid).await)
        }
    }
}

async fn run_task(around: &Surrounded, guid: &str) -> Step {
    let task = match around.bbs.task_by_guid(guid).await {
        Ok(task) => task,
        Err(error) if may_pass(&error) => return retry("fetch a Task", &error),
        Err(error) => {
            tracing::info!(task_guid = guid, %error, "it is not desired any more");
            return last(delete(around, guid).await);
        }
    };
    let reason = match recipe::of_task(&task, &around.recipes) {
        Ok(request) => match around.executor.run_container(request) {
            Ok(()) => return Step::Next,
            Err(error) => {
                tracing::error!(task_guid = guid, %error, "failed-running-container");
                task::FAILED_TO_RUN_CONTAINER.to_owned()
            }
        },
        Err(error) => {
            tracing::error!(task_guid = guid, %error, "failed-to-construct-run-request");
            format!("{}: {error}", task::FAILED_TO_RUN_CONTAINER)
        }
    };
    match fail_task(around, guid, &reason).await {
        Step::Retry => Step::Retry,
        _ => last(delete(around, guid).await),
    }
}

async fn fail_task(around: &Surrounded, guid: &str, reason: &str) -> Step {
    told_of_task(guid, "fail", around.bbs.complete_task(guid, &around.cell_id, true, reason, "").await)
}

async fn succeed(around: &Surrounded, guid: &str, result_file: Option<&str>) -> Step {
    let result = match result_file {
        None => String::new(),
        Some(path) => match result_file::read(&around.executor, guid, path).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(task_guid = guid, path, %error, "failed-fetching-container-result");
                return fail_task(around, guid, task::FAILED_TO_FETCH_RESULT).await;
            }
        },
    };
    told_of_task(guid, "complete", around.bbs.complete_task(guid, &around.cell_id, false, "", &result).await)
}

async fn stop(around: &Surrounded, guid: &str) -> Step {
    match around.executor.stop(guid).await {
        Ok(()) | Err(executor::Error::ContainerNotFound) => Step::Last,
        Err(error) => {
            tracing::error!(guid, %error, "failed-stopping-container");
            Step::Retry
        }
    }
}

async fn delete(around: &Surrounded, guid: &str) -> Step {
    match around.executor.delete(guid).await {
        Ok(()) | Err(executor::Error::ContainerNotFound) => Step::Next,
        Err(error) => {
            tracing::error!(guid, %error, "failed-deleting-container");
            Step::Retry
        }
    }
}

/// The BBS knows, or does not want to: in both cases it has nothing more to learn about this. If it could not be asked,
/// the container stays, completed, so that nothing is forgotten.
fn told(lrp: &LrpInstance, act: &'static str, answer: Result<(), BbsError>) -> Step {
    match answer {
        Ok(()) => Step::Next,
        Err(error) if may_pass(&error) => retry(act, &error),
        Err(error) => {
            tracing::info!(lrp = %lrp.key, act, %error, "refused by the BBS");
            Step::Next
        }
    }
}

fn told_of_task(guid: &str, act: &'static str, answer: Result<(), BbsError>) -> Step {
    match answer {
        Ok(()) => Step::Next,
        Err(error) if may_pass(&error) => retry(act, &error),
        Err(error) => {
            tracing::info!(task_guid = guid, act, %error, "refused by the BBS");
            Step::Next
        }
    }
}

fn retry(act: &'static str, error: &BbsError) -> Step {
    tracing::warn!(act, %error, "cannot tell the BBS");
    Step::Retry
}

fn last(step: Step) -> Step {
    match step {
        Step::Next => Step::Last,
        other => other,
    }
}

/// Whether the same call may be answered otherwise in a moment: the BBS is away, or has trouble of its own.
pub(super) fn may_pass(error: &BbsError) -> bool {
    match error.kind() {
        None => true,
        Some(kind) => matches!(kind, ErrorKind::UnknownError | ErrorKind::Deadlock | ErrorKind::Timeout),
    }
}
