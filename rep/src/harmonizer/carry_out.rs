//! Carries out what was decided for one container, one call after the other.

use std::sync::PoisonError;

use bbs_client::Error as BbsError;
use bbs_models::ErrorKind;
use executor::Container;

use super::{Outcome, Telling, result_file};
use crate::lrp::{self, Started};
use crate::tags::{self, Lifecycle, LrpInstance};
use crate::{recipe, task};

/// Whether the calls after this one are made.
enum Step {
    Next,
    Last,
    Retry,
}

pub(super) async fn container(telling: &Telling<'_>, guid: &str) -> Outcome {
    let Ok(container) = telling.around.executor.get(guid) else { return Outcome::Settled };
    let step = match tags::read(&container.tags, &telling.around.cell_id) {
        Ok(Lifecycle::Lrp(lrp)) => lrp_container(telling, &container, &lrp).await,
        Ok(Lifecycle::Task { .. }) => task_container(telling, &container).await,
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

async fn lrp_container(telling: &Telling<'_>, container: &Container, lrp: &LrpInstance) -> Step {
    for call in lrp::react(container, telling.around.evacuation.has_begun(), telling.around.preferred_address)
    {
        match carry_out_lrp(telling, container, lrp, call).await {
            Step::Next => {}
            end => return end,
        }
    }
    Step::Last
}

async fn task_container(telling: &Telling<'_>, container: &Container) -> Step {
    for call in task::react(container) {
        match carry_out_task(telling, container, call).await {
            Step::Next => {}
            end => return end,
        }
    }
    Step::Last
}

async fn carry_out_lrp(
    telling: &Telling<'_>,
    container: &Container,
    lrp: &LrpInstance,
    call: lrp::Call,
) -> Step {
    let (bbs, key, instance) = (&telling.bbs, &lrp.key, &lrp.instance);
    tracing::debug!(lrp = %key, instance_guid = instance.instance_guid, ?call, "telling the BBS");
    match call {
        lrp::Call::Claim => claim(telling, lrp).await,
        lrp::Call::Run => run_lrp(telling, lrp).await,
        lrp::Call::Start(started) => start(telling, lrp, &started).await,
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
        lrp::Call::EvacuateRunning(started) => evacuate_running(telling, lrp, &started).await,
        lrp::Call::Delete => delete(telling, &container.guid).await,
    }
}

async fn claim(telling: &Telling<'_>, lrp: &LrpInstance) -> Step {
    match telling.bbs.claim_actual_lrp(&lrp.key, &lrp.instance).await {
        Ok(()) => Step::Next,
        Err(error) if may_pass(&error) => retry("claim", &error),
        Err(error) if error.kind() == Some(ErrorKind::ActualLrpCannotBeClaimed) => {
            tracing::info!(lrp = %lrp.key, %error, "claim refused; deleting the container");
            last(delete(telling, &lrp.instance.instance_guid).await)
        }
        Err(error) => {
            // Whoever sent the work may be about to tell the BBS of it; what is not claimed expires.
            tracing::info!(lrp = %lrp.key, %error, "claim refused; leaving the reservation");
            Step::Last
        }
    }
}

/// Whatever keeps it from running is told where a person looks for it: as the crash reason of the instance.
async fn run_lrp(telling: &Telling<'_>, lrp: &LrpInstance) -> Step {
    let (bbs, guid) = (&telling.bbs, &lrp.instance.instance_guid);
    let desired = match bbs.desired_lrp_by_process_guid(&lrp.key.process_guid).await {
        Ok(desired) => desired,
        Err(error) if may_pass(&error) => return retry("fetch the DesiredLRP", &error),
        Err(error) => {
            tracing::info!(lrp = %lrp.key, %error, "it is not desired any more");
            return remove_and_delete(telling, lrp).await;
        }
    };
    let request = match recipe::of_lrp(&desired, lrp, &telling.around.recipes) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "failed-to-construct-run-request");
            let told =
                told(lrp, "crash", bbs.crash_actual_lrp(&lrp.key, &lrp.instance, &error.to_string()).await);
            return if let Step::Retry = told { Step::Retry } else { last(delete(telling, guid).await) };
        }
    };
    match telling.around.executor.run_container(request) {
        Ok(()) => Step::Next,
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "failed-running-container");
            remove_and_delete(telling, lrp).await
        }
    }
}

async fn remove_and_delete(telling: &Telling<'_>, lrp: &LrpInstance) -> Step {
    match told(lrp, "remove", telling.bbs.remove_actual_lrp(&lrp.key, Some(&lrp.instance)).await) {
        Step::Retry => Step::Retry,
        _ => last(delete(telling, &lrp.instance.instance_guid).await),
    }
}

async fn start(telling: &Telling<'_>, lrp: &LrpInstance, started: &Started) -> Step {
    if started.net_info.address.is_empty() {
        tracing::error!(lrp = %lrp.key, "failed-extracting-net-info-from-container: it has no address");
        return Step::Last;
    }
    match telling.bbs.start_actual_lrp(&lrp.key, &lrp.instance, &details(telling, started)).await {
        Ok(()) => Step::Next,
        Err(error) if error.kind() == Some(ErrorKind::ActualLrpCannotBeStarted) => {
            tracing::info!(lrp = %lrp.key, %error, "start refused; stopping the container");
            stop(telling, &lrp.instance.instance_guid).await
        }
        Err(error) if may_pass(&error) => retry("start", &error),
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "start refused");
            Step::Last
        }
    }
}

/// The instance stays until the BBS says that it need not: its replacement runs by then, or nobody wants it any more.
async fn evacuate_running(telling: &Telling<'_>, lrp: &LrpInstance, started: &Started) -> Step {
    tell_of_replacement(telling, &lrp.instance.instance_guid);
    match telling.bbs.evacuate_running_actual_lrp(&lrp.key, &lrp.instance, &details(telling, started)).await {
        Ok(true) => Step::Last,
        Ok(false) => last(delete(telling, &lrp.instance.instance_guid).await),
        Err(error) if may_pass(&error) => retry("evacuate running", &error),
        Err(error) => {
            tracing::error!(lrp = %lrp.key, %error, "failed-to-evacuate-running-actual-lrp");
            Step::Last
        }
    }
}

/// Once to the app, however often the BBS is asked.
fn tell_of_replacement(telling: &Telling<'_>, guid: &str) {
    let mut replaced = telling.around.replaced.lock().unwrap_or_else(PoisonError::into_inner);
    if replaced.insert(guid.to_owned()) {
        let cell = &telling.around.cell_id;
        telling
            .around
            .executor
            .announce(guid, &format!("Cell {cell} requesting replacement for instance {guid}"));
    }
}

fn details(telling: &Telling<'_>, started: &Started) -> bbs_client::StartedLrp {
    bbs_client::StartedLrp {
        net_info: started.net_info.clone(),
        internal_routes: started.internal_routes.clone(),
        metric_tags: started.metric_tags.clone(),
        routable: started.routable,
        availability_zone: telling.around.zone.clone(),
    }
}

async fn carry_out_task(telling: &Telling<'_>, container: &Container, call: task::Call) -> Step {
    let (bbs, guid) = (&telling.bbs, &container.guid);
    tracing::debug!(task_guid = guid, ?call, "telling the BBS");
    match call {
        task::Call::Start => start_task(telling, guid).await,
        task::Call::Run => run_task(telling, guid).await,
        task::Call::Reject { reason } => told_of_task(guid, "reject", bbs.reject_task(guid, &reason).await),
        task::Call::Fail { reason } => fail_task(telling, guid, &reason).await,
        task::Call::Succeed { result_file } => succeed(telling, guid, result_file.as_deref()).await,
        task::Call::Delete => delete(telling, guid).await,
    }
}

/// A Task that was started here before is run all the same: as long as its container is only reserved, it has not been.
async fn start_task(telling: &Telling<'_>, guid: &str) -> Step {
    match telling.bbs.start_task(guid, &telling.around.cell_id).await {
        Ok(_changed) => Step::Next,
        Err(error) if may_pass(&error) => retry("start a Task", &error),
        Err(error) => {
            tracing::info!(task_guid = guid, %error, "start refused; deleting the container");
            last(delete(telling, guid).await)
        }
    }
}

async fn run_task(telling: &Telling<'_>, guid: &str) -> Step {
    let task = match telling.bbs.task_by_guid(guid).await {
        Ok(task) => task,
        Err(error) if may_pass(&error) => return retry("fetch a Task", &error),
        Err(error) => {
            tracing::info!(task_guid = guid, %error, "it is not desired any more");
            return last(delete(telling, guid).await);
        }
    };
    let reason = match recipe::of_task(&task, &telling.around.recipes) {
        Ok(request) => match telling.around.executor.run_container(request) {
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
    match fail_task(telling, guid, &reason).await {
        Step::Retry => Step::Retry,
        _ => last(delete(telling, guid).await),
    }
}

async fn fail_task(telling: &Telling<'_>, guid: &str, reason: &str) -> Step {
    told_of_task(
        guid,
        "fail",
        telling.bbs.complete_task(guid, &telling.around.cell_id, true, reason, "").await,
    )
}

async fn succeed(telling: &Telling<'_>, guid: &str, result_file: Option<&str>) -> Step {
    let result = match result_file {
        None => String::new(),
        Some(path) => match result_file::read(&*telling.around.executor, guid, path).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(task_guid = guid, path, %error, "failed-fetching-container-result");
                return fail_task(telling, guid, task::FAILED_TO_FETCH_RESULT).await;
            }
        },
    };
    told_of_task(
        guid,
        "complete",
        telling.bbs.complete_task(guid, &telling.around.cell_id, false, "", &result).await,
    )
}

async fn stop(telling: &Telling<'_>, guid: &str) -> Step {
    match telling.around.executor.stop(guid).await {
        Ok(()) | Err(executor::Error::ContainerNotFound) => Step::Last,
        Err(error) => {
            tracing::error!(guid, %error, "failed-stopping-container");
            Step::Retry
        }
    }
}

async fn delete(telling: &Telling<'_>, guid: &str) -> Step {
    match telling.around.executor.delete(guid).await {
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
