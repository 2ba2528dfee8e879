//! Tags on an instance's logs and metrics; some are only known once the instance exists.

use std::collections::BTreeMap;

/// Names whom the logs and metrics are of.
pub const SOURCE_ID_TAG: &str = "source_id";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MetricTagValue {
    Static(String),
    /// The instance's index.
    Index,
    InstanceGuid,
}

pub type MetricTags = BTreeMap<String, MetricTagValue>;

/// The tags of one instance. A Task has no index: its dynamic index is 0.
pub fn resolve_metric_tags(tags: &MetricTags, index: u32, instance_guid: &str) -> BTreeMap<String, String> {
    tags.iter()
        .map(|(name, value)| {
            let value = match value {
                MetricTagValue::Static(text) => text.clone(),
                MetricTagValue::Index => index.to_string(),
                MetricTagValue::InstanceGuid => instance_guid.to_string(),
            };
            (name.clone(), value)
        })
        .collect()
}
