//! What a container's tags say: whether it is an LRP instance or a Task, and which. They are the rep's only memory of
//! it, and they outlive the rep.

use std::collections::BTreeMap;

use bbs_models::{ActualLrpInstanceKey, ActualLrpKey};

pub const LIFECYCLE_TAG: &str = "lifecycle";
pub const RESULT_FILE_TAG: &str = "result-file";
pub const DOMAIN_TAG: &str = "domain";
pub const PROCESS_GUID_TAG: &str = "process-guid";
pub const INSTANCE_GUID_TAG: &str = "instance-guid";
pub const PROCESS_INDEX_TAG: &str = "process-index";
pub const VOLUME_DRIVERS_TAG: &str = "volume-drivers";
pub const PLACEMENT_TAGS_TAG: &str = "placement-tags";

pub const TASK_LIFECYCLE: &str = "task";
pub const LRP_LIFECYCLE: &str = "lrp";

type Tags = BTreeMap<String, String>;

/// Which LRP instance a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LrpInstance {
    pub key: ActualLrpKey,
    pub instance: ActualLrpInstanceKey,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    Lrp(LrpInstance),
    Task { domain: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unknown lifecycle: {0}")]
    UnknownLifecycle(String),
    #[error("container is missing the tag {0}")]
    Missing(&'static str),
    #[error("container does not have a valid process index: {0}")]
    Index(String),
}

pub fn read(tags: &Tags, cell_id: &str) -> Result<Lifecycle, Error> {
    match tags.get(LIFECYCLE_TAG).map(String::as_str).unwrap_or_default() {
        LRP_LIFECYCLE => Ok(Lifecycle::Lrp(LrpInstance {
            key: ActualLrpKey::new(
                required(tags, PROCESS_GUID_TAG)?,
                index(tags)?,
                required(tags, DOMAIN_TAG)?,
            ),
            instance: ActualLrpInstanceKey::new(required(tags, INSTANCE_GUID_TAG)?, cell_id),
        })),
        TASK_LIFECYCLE => Ok(Lifecycle::Task { domain: tags.get(DOMAIN_TAG).cloned().unwrap_or_default() }),
        other => Err(Error::UnknownLifecycle(other.into())),
    }
}

fn required<'a>(tags: &'a Tags, name: &'static str) -> Result<&'a str, Error> {
    tags.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or(Error::Missing(name))
}

fn index(tags: &Tags) -> Result<u32, Error> {
    let text = required(tags, PROCESS_INDEX_TAG)?;
    let index: i32 = text.parse().map_err(|_| Error::Index(text.into()))?;
    u32::try_from(index).map_err(|_| Error::Index(text.into()))
}

/// The tags of an LRP instance about to be allocated.
pub fn of_lrp(lrp: &rep_client::Lrp, instance_guid: &str) -> Tags {
    let mut tags = placement(&lrp.placement_tags, &lrp.volume_drivers);
    tags.extend([
        (LIFECYCLE_TAG.into(), LRP_LIFECYCLE.into()),
        (DOMAIN_TAG.into(), lrp.domain.clone()),
        (PROCESS_GUID_TAG.into(), lrp.process_guid.clone()),
        (PROCESS_INDEX_TAG.into(), lrp.index.to_string()),
        (INSTANCE_GUID_TAG.into(), instance_guid.into()),
    ]);
    tags
}

pub fn of_task(task: &rep_client::Task) -> Tags {
    let mut tags = placement(&task.placement_tags, &task.volume_drivers);
    tags.extend([(LIFECYCLE_TAG.into(), TASK_LIFECYCLE.into()), (DOMAIN_TAG.into(), task.domain.clone())]);
    tags
}

fn placement(placement_tags: &[String], volume_drivers: &[String]) -> Tags {
    let json = |list: &[String]| serde_json::Value::from(list).to_string();
    Tags::from([
        (PLACEMENT_TAGS_TAG.into(), json(placement_tags)),
        (VOLUME_DRIVERS_TAG.into(), json(volume_drivers)),
    ])
}

/// A list that was kept in a tag as JSON; empty where there is none.
pub fn list(tags: &Tags, name: &str) -> Vec<String> {
    tags.get(name).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allocated_is_known_again() {
        let lrp = rep_client::Lrp {
            process_guid: "pg".into(),
            index: 3,
            domain: "d".into(),
            placement_tags: vec!["x".into()],
            ..Default::default()
        };
        let tags = of_lrp(&lrp, "ig");
        let expected = LrpInstance {
            key: ActualLrpKey::new("pg", 3, "d"),
            instance: ActualLrpInstanceKey::new("ig", "cell"),
        };
        assert_eq!(read(&tags, "cell"), Ok(Lifecycle::Lrp(expected)));
        assert_eq!(list(&tags, PLACEMENT_TAGS_TAG), ["x"]);
        assert_eq!(list(&tags, VOLUME_DRIVERS_TAG), Vec::<String>::new());
        let task = rep_client::Task { domain: "d".into(), ..Default::default() };
        assert_eq!(read(&of_task(&task), "cell"), Ok(Lifecycle::Task { domain: "d".into() }));
    }

    #[test]
    fn tags_that_say_nothing_are_refused_by_name() {
        let check = |remove: &str, set: &str, expected: Error| {
            let mut tags = of_lrp(&rep_client::Lrp { process_guid: "pg".into(), ..Default::default() }, "ig");
            tags.insert(DOMAIN_TAG.into(), "d".into());
            tags.insert(remove.into(), set.into());
            assert_eq!(read(&tags, "cell"), Err(expected));
        };
        check(LIFECYCLE_TAG, "pod", Error::UnknownLifecycle("pod".into()));
        check(PROCESS_GUID_TAG, "", Error::Missing(PROCESS_GUID_TAG));
        check(INSTANCE_GUID_TAG, "", Error::Missing(INSTANCE_GUID_TAG));
        check(PROCESS_INDEX_TAG, "-1", Error::Index("-1".into()));
        check(PROCESS_INDEX_TAG, "3000000000", Error::Index("3000000000".into()));
    }
}
