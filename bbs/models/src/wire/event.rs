//! Events on the wire: each type of event is a message of its own, told apart by the name on the stream.

use prost::Message;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::*;
use super::{
    ActualLrp, ActualLrpGroup, ActualLrpInfo, ActualLrpInstanceKey, ActualLrpKey, DesiredLrp, Invalid, Task,
};
use crate as models;
use crate::Event;

/// Created and removed events of DesiredLRPs.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredLrpEvent {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_lrp: Option<DesiredLrp>,
    #[prost(string, tag = "2")]
    pub trace_id: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredLrpChangedEvent {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<DesiredLrp>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<DesiredLrp>,
    #[prost(string, tag = "3")]
    pub trace_id: String,
}

/// Created and removed events of ActualLRP instances.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpInstanceEvent {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_lrp: Option<ActualLrp>,
    #[prost(string, tag = "2")]
    pub trace_id: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpInstanceChangedEvent {
    #[prost(message, required, tag = "1")]
    #[serde(flatten)]
    pub actual_lrp_key: ActualLrpKey,
    #[prost(message, required, tag = "2")]
    #[serde(flatten)]
    pub actual_lrp_instance_key: ActualLrpInstanceKey,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<ActualLrpInfo>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<ActualLrpInfo>,
    #[prost(string, tag = "5")]
    pub trace_id: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpCrashedEvent {
    #[prost(message, required, tag = "1")]
    #[serde(flatten)]
    pub actual_lrp_key: ActualLrpKey,
    #[prost(message, required, tag = "2")]
    #[serde(flatten)]
    pub actual_lrp_instance_key: ActualLrpInstanceKey,
    #[prost(int32, tag = "3")]
    pub crash_count: i32,
    #[prost(string, tag = "4")]
    #[serde(skip_serializing_if = "is_default")]
    pub crash_reason: String,
    #[prost(int64, tag = "5")]
    pub since: i64,
}

/// Created and removed events of the deprecated groups.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpGroupEvent {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_lrp_group: Option<ActualLrpGroup>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ActualLrpGroupChangedEvent {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<ActualLrpGroup>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<ActualLrpGroup>,
}

/// Created and removed events of Tasks.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskEvent {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskChangedEvent {
    #[prost(message, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Task>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Task>,
}

/// The message of an event. It lives for one encoding, on the stack.
#[allow(clippy::large_enum_variant)]
enum Payload {
    DesiredLrp(DesiredLrpEvent),
    DesiredLrpChanged(DesiredLrpChangedEvent),
    Instance(ActualLrpInstanceEvent),
    InstanceChanged(ActualLrpInstanceChangedEvent),
    Crashed(ActualLrpCrashedEvent),
    Group(ActualLrpGroupEvent),
    GroupChanged(ActualLrpGroupChangedEvent),
    Task(TaskEvent),
    TaskChanged(TaskChangedEvent),
}

/// The payload of `event`; its type goes beside it, see [`Event::event_type`].
pub fn encode_event(event: &Event) -> Vec<u8> {
    match Payload::from(event.clone()) {
        Payload::DesiredLrp(message) => message.encode_to_vec(),
        Payload::DesiredLrpChanged(message) => message.encode_to_vec(),
        Payload::Instance(message) => message.encode_to_vec(),
        Payload::InstanceChanged(message) => message.encode_to_vec(),
        Payload::Crashed(message) => message.encode_to_vec(),
        Payload::Group(message) => message.encode_to_vec(),
        Payload::GroupChanged(message) => message.encode_to_vec(),
        Payload::Task(message) => message.encode_to_vec(),
        Payload::TaskChanged(message) => message.encode_to_vec(),
    }
}

/// The JSON of the event's message, without its type.
impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Payload::from(self.clone()) {
            Payload::DesiredLrp(message) => message.serialize(serializer),
            Payload::DesiredLrpChanged(message) => message.serialize(serializer),
            Payload::Instance(message) => message.serialize(serializer),
            Payload::InstanceChanged(message) => message.serialize(serializer),
            Payload::Crashed(message) => message.serialize(serializer),
            Payload::Group(message) => message.serialize(serializer),
            Payload::GroupChanged(message) => message.serialize(serializer),
            Payload::Task(message) => message.serialize(serializer),
            Payload::TaskChanged(message) => message.serialize(serializer),
        }
    }
}

impl From<Event> for Payload {
    fn from(event: Event) -> Self {
        match event {
            Event::DesiredLrpCreated { lrp, trace_id } | Event::DesiredLrpRemoved { lrp, trace_id } => {
                Self::DesiredLrp(DesiredLrpEvent { desired_lrp: Some((*lrp).into()), trace_id })
            }
            Event::DesiredLrpChanged { before, after, trace_id } => {
                Self::DesiredLrpChanged(DesiredLrpChangedEvent {
                    before: Some((*before).into()),
                    after: Some((*after).into()),
                    trace_id,
                })
            }
            Event::ActualLrpInstanceCreated { lrp, trace_id }
            | Event::ActualLrpInstanceRemoved { lrp, trace_id } => {
                Self::Instance(ActualLrpInstanceEvent { actual_lrp: Some((*lrp).into()), trace_id })
            }
            Event::ActualLrpInstanceChanged { before, after, trace_id } => {
                Self::InstanceChanged(instance_changed(*before, *after, trace_id))
            }
            Event::ActualLrpCrashed(crash) => Self::Crashed(crash.into()),
            Event::ActualLrpGroupCreated(group) | Event::ActualLrpGroupRemoved(group) => {
                Self::Group(ActualLrpGroupEvent { actual_lrp_group: Some((*group).into()) })
            }
            Event::ActualLrpGroupChanged { before, after } => {
                Self::GroupChanged(ActualLrpGroupChangedEvent {
                    before: Some((*before).into()),
                    after: Some((*after).into()),
                })
            }
            Event::TaskCreated(task) | Event::TaskRemoved(task) => {
                Self::Task(TaskEvent { task: Some((*task).into()) })
            }
            Event::TaskChanged { before, after } => Self::TaskChanged(TaskChangedEvent {
                before: Some((*before).into()),
                after: Some((*after).into()),
            }),
        }
    }
}

/// One pair of keys stands for both sides: the later instance, or the earlier if none works on it any more.
fn instance_changed(
    before: models::ActualLrp,
    after: models::ActualLrp,
    trace_id: String,
) -> ActualLrpInstanceChangedEvent {
    let instance = after.instance().or(before.instance()).cloned();
    ActualLrpInstanceChangedEvent {
        actual_lrp_key: after.key.clone().into(),
        actual_lrp_instance_key: instance.map(Into::into).unwrap_or_default(),
        before: Some(before.into()),
        after: Some(after.into()),
        trace_id,
    }
}

impl From<models::ActualLrpCrash> for ActualLrpCrashedEvent {
    fn from(crash: models::ActualLrpCrash) -> Self {
        Self {
            actual_lrp_key: crash.key.into(),
            actual_lrp_instance_key: crash.instance.into(),
            crash_count: super::actual_lrp::wire_unsigned(crash.crash_count),
            crash_reason: crash.crash_reason,
            since: crash.since_ns,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("unrecognized event type {0:?}")]
    UnrecognizedType(String),
    #[error("invalid protobuf payload of type {event_type}")]
    Payload { event_type: String, source: prost::DecodeError },
    #[error("invalid event of type {event_type}")]
    Invalid { event_type: String, source: Invalid },
}

/// The event that a stream sent as `event_type` with `payload`, base64 already taken off.
pub fn decode_event(event_type: &str, payload: &[u8]) -> Result<Event, EventError> {
    let parsed = parse_event(event_type, payload)
        .map_err(|source| EventError::Payload { event_type: event_type.to_string(), source })?;
    let Some(parsed) = parsed else {
        return Err(EventError::UnrecognizedType(event_type.to_string()));
    };
    parsed.map_err(|source| EventError::Invalid { event_type: event_type.to_string(), source })
}

/// The JSON of what a stream sent as `event_type`, whatever it says; `None` for a type we do not know.
pub fn event_json(event_type: &str, payload: &[u8]) -> Result<Option<Box<RawValue>>, prost::DecodeError> {
    fn of<M: Message + Default + Serialize>(
        payload: &[u8],
    ) -> Result<Option<Box<RawValue>>, prost::DecodeError> {
        // Messages have texts for keys, and numbers that JSON knows.
        Ok(serde_json::value::to_raw_value(&M::decode(payload)?).ok())
    }
    match event_type {
        "desired_lrp_created" | "desired_lrp_removed" => of::<DesiredLrpEvent>(payload),
        "desired_lrp_changed" => of::<DesiredLrpChangedEvent>(payload),
        "actual_lrp_instance_created" | "actual_lrp_instance_removed" => {
            of::<ActualLrpInstanceEvent>(payload)
        }
        "actual_lrp_instance_changed" => of::<ActualLrpInstanceChangedEvent>(payload),
        "actual_lrp_crashed" => of::<ActualLrpCrashedEvent>(payload),
        "actual_lrp_created" | "actual_lrp_removed" => of::<ActualLrpGroupEvent>(payload),
        "actual_lrp_changed" => of::<ActualLrpGroupChangedEvent>(payload),
        "task_created" | "task_removed" => of::<TaskEvent>(payload),
        "task_changed" => of::<TaskChangedEvent>(payload),
        _ => Ok(None),
    }
}

/// `None` for a type we do not know; the inner result is about what the message says.
fn parse_event(
    event_type: &str,
    payload: &[u8],
) -> Result<Option<Result<Event, Invalid>>, prost::DecodeError> {
    Ok(Some(match event_type {
        "desired_lrp_created" => {
            parse_desired(payload, |lrp, trace_id| Event::DesiredLrpCreated { lrp, trace_id })?
        }
        "desired_lrp_removed" => {
            parse_desired(payload, |lrp, trace_id| Event::DesiredLrpRemoved { lrp, trace_id })?
        }
        "desired_lrp_changed" => parse_desired_changed(DesiredLrpChangedEvent::decode(payload)?),
        "actual_lrp_instance_created" => {
            parse_instance(payload, |lrp, trace_id| Event::ActualLrpInstanceCreated { lrp, trace_id })?
        }
        "actual_lrp_instance_removed" => {
            parse_instance(payload, |lrp, trace_id| Event::ActualLrpInstanceRemoved { lrp, trace_id })?
        }
        "actual_lrp_instance_changed" => {
            parse_instance_changed(ActualLrpInstanceChangedEvent::decode(payload)?)
        }
        "actual_lrp_crashed" => parse_crashed(ActualLrpCrashedEvent::decode(payload)?),
        "actual_lrp_created" => parse_group(payload, Event::ActualLrpGroupCreated)?,
        "actual_lrp_removed" => parse_group(payload, Event::ActualLrpGroupRemoved)?,
        "actual_lrp_changed" => parse_group_changed(ActualLrpGroupChangedEvent::decode(payload)?),
        "task_created" => parse_task(payload, Event::TaskCreated)?,
        "task_removed" => parse_task(payload, Event::TaskRemoved)?,
        "task_changed" => parse_task_changed(TaskChangedEvent::decode(payload)?),
        _ => return Ok(None),
    }))
}

/// A message that must be there, parsed and boxed.
fn present<W, T>(field: &str, wire: Option<W>) -> Result<Box<T>, Invalid>
where
    T: TryFrom<W, Error = Invalid>,
{
    wire.ok_or_else(|| Invalid::field(field))?.try_into().map(Box::new)
}

fn parse_desired(
    payload: &[u8],
    event: impl FnOnce(Box<models::DesiredLrp>, String) -> Event,
) -> Result<Result<Event, Invalid>, prost::DecodeError> {
    let wire = DesiredLrpEvent::decode(payload)?;
    Ok(present("desired_lrp", wire.desired_lrp).map(|lrp| event(lrp, wire.trace_id)))
}

fn parse_desired_changed(wire: DesiredLrpChangedEvent) -> Result<Event, Invalid> {
    Ok(Event::DesiredLrpChanged {
        before: present("before", wire.before)?,
        after: present("after", wire.after)?,
        trace_id: wire.trace_id,
    })
}

fn parse_instance(
    payload: &[u8],
    event: impl FnOnce(Box<models::ActualLrp>, String) -> Event,
) -> Result<Result<Event, Invalid>, prost::DecodeError> {
    let wire = ActualLrpInstanceEvent::decode(payload)?;
    Ok(present("actual_lrp", wire.actual_lrp).map(|lrp| event(lrp, wire.trace_id)))
}

fn parse_instance_changed(wire: ActualLrpInstanceChangedEvent) -> Result<Event, Invalid> {
    let key: models::ActualLrpKey = wire.actual_lrp_key.try_into()?;
    let before = wire.before.ok_or_else(|| Invalid::field("before"))?;
    let after = wire.after.ok_or_else(|| Invalid::field("after"))?;
    Ok(Event::ActualLrpInstanceChanged {
        before: Box::new(before.with_keys(key.clone(), wire.actual_lrp_instance_key.clone())?),
        after: Box::new(after.with_keys(key, wire.actual_lrp_instance_key)?),
        trace_id: wire.trace_id,
    })
}

fn parse_crashed(wire: ActualLrpCrashedEvent) -> Result<Event, Invalid> {
    let mut invalid = Invalid::default();
    let crash_count = invalid.unsigned("crash_count", wire.crash_count);
    invalid.or(Event::ActualLrpCrashed(models::ActualLrpCrash {
        key: wire.actual_lrp_key.try_into()?,
        instance: wire.actual_lrp_instance_key.try_into()?,
        crash_count,
        crash_reason: wire.crash_reason,
        since_ns: wire.since,
    }))
}

fn parse_group(
    payload: &[u8],
    event: impl FnOnce(Box<models::ActualLrpGroup>) -> Event,
) -> Result<Result<Event, Invalid>, prost::DecodeError> {
    let wire = ActualLrpGroupEvent::decode(payload)?;
    Ok(present("actual_lrp_group", wire.actual_lrp_group).map(event))
}

fn parse_group_changed(wire: ActualLrpGroupChangedEvent) -> Result<Event, Invalid> {
    Ok(Event::ActualLrpGroupChanged {
        before: present("before", wire.before)?,
        after: present("after", wire.after)?,
    })
}

fn parse_task(
    payload: &[u8],
    event: impl FnOnce(Box<models::Task>) -> Event,
) -> Result<Result<Event, Invalid>, prost::DecodeError> {
    let wire = TaskEvent::decode(payload)?;
    Ok(present("task", wire.task).map(event))
}

fn parse_task_changed(wire: TaskChangedEvent) -> Result<Event, Invalid> {
    Ok(Event::TaskChanged { before: present("before", wire.before)?, after: present("after", wire.after)? })
}
