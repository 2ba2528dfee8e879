//! `diego events`: what happens to apps and tasks, as the BBS says it.

use anyhow::Context;
use bbs_models::{ActualLrp, Event};
use clap::Args;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::Global;
use super::target::Target;
use super::{Failure, output};

#[derive(Args)]
pub struct Flags {
    /// Only what is about this app or task.
    name: Option<String>,
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    let instances = target.bbs.subscribe_to_instance_events().await.context("cannot follow the apps")?;
    let tasks = target.bbs.subscribe_to_task_events().await.context("cannot follow the tasks")?;
    let mut events = futures_util::stream::select(instances, tasks);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let event = match event {
            Some(event) => event.context("the BBS broke off")?,
            None => return Err(Failure::Unreachable("the BBS ended the stream of events".into())),
        };
        let said = describe(&event);
        if flags.name.as_ref().is_some_and(|name| said["name"] != **name) {
            continue;
        }
        if global.json {
            output::line(&said)?;
        } else {
            output::print(&sentence(&said))?;
        }
    }
}

/// `{"event": type, "name": app or task, …}`
fn describe(event: &Event) -> Value {
    let mut said = match event {
        Event::DesiredLrpCreated { lrp, .. } | Event::DesiredLrpRemoved { lrp, .. } => {
            json!({ "name": lrp.process_guid, "instances": lrp.instances })
        }
        Event::DesiredLrpChanged { after, .. } => {
            json!({ "name": after.process_guid, "instances": after.instances })
        }
        Event::ActualLrpInstanceCreated { lrp, .. } | Event::ActualLrpInstanceRemoved { lrp, .. } => {
            instance(lrp)
        }
        Event::ActualLrpInstanceChanged { after, .. } => instance(after),
        Event::ActualLrpCrashed(crash) => json!({
            "name": crash.key.process_guid, "index": crash.key.index, "cell": crash.instance.cell_id,
            "crashes": crash.crash_count, "reason": crash.crash_reason,
        }),
        Event::TaskCreated(task) | Event::TaskRemoved(task) => task_state(task),
        Event::TaskChanged { after, .. } => task_state(after),
        Event::ActualLrpGroupCreated(_)
        | Event::ActualLrpGroupChanged { .. }
        | Event::ActualLrpGroupRemoved(_) => {
            json!({ "name": event.key() })
        }
    };
    said["event"] = event.event_type().into();
    said
}

fn instance(lrp: &ActualLrp) -> Value {
    json!({
        "name": lrp.key.process_guid, "index": lrp.key.index, "state": lrp.state.name(),
        "cell": lrp.cell_id(), "crashes": lrp.crash_count, "reason": reason(lrp),
    })
}

fn reason(lrp: &ActualLrp) -> &str {
    if lrp.placement_error().is_empty() { &lrp.crash_reason } else { lrp.placement_error() }
}

fn task_state(task: &bbs_models::Task) -> Value {
    json!({ "name": task.task_guid, "state": task.state.name(), "cell": task.cell_id() })
}

/// One line for people: the event, what it is about, and what there is to say of it.
fn sentence(said: &Value) -> String {
    let text = |key: &str| match &said[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut line = format!("{:<30} {}", text("event"), text("name"));
    if !said["index"].is_null() {
        line = format!("{line}/{}", text("index"));
    }
    for key in ["state", "instances", "crashes", "cell", "reason"] {
        if !matches!(text(key).as_str(), "" | "0") {
            line = format!("{line} {key}={}", text(key));
        }
    }
    line
}
