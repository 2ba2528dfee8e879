//! What the containers of a cell use (`GET /container_metrics`).

use serde::{Deserialize, Serialize};

use crate::null_is_default;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerMetricsCollection {
    pub cell_id: String,
    #[serde(deserialize_with = "null_is_default")]
    pub lrps: Vec<LrpMetric>,
    #[serde(deserialize_with = "null_is_default")]
    pub tasks: Vec<TaskMetric>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LrpMetric {
    pub instance_guid: String,
    pub process_guid: String,
    pub index: i32,
    #[serde(flatten)]
    pub usage: ContainerUsage,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskMetric {
    pub task_guid: String,
    #[serde(flatten)]
    pub usage: ContainerUsage,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerUsage {
    pub metric_guid: String,
    /// 1.0 is one whole CPU.
    pub cpu_usage_fraction: f64,
    pub disk_usage_bytes: u64,
    pub disk_quota_bytes: u64,
    pub memory_usage_bytes: u64,
    pub memory_quota_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_and_written_as_go_does() {
        let json = concat!(
            r#"{"cell_id":"cell-1","lrps":[{"instance_guid":"ig","process_guid":"pg","index":1,"metric_guid":"mg","cpu_usage_fraction":0.5,"disk_usage_bytes":1,"disk_quota_bytes":2,"memory_usage_bytes":3,"memory_quota_bytes":4,"rx_bytes":5,"tx_bytes":6}],"#,
            r#""tasks":[{"task_guid":"tg","metric_guid":"","cpu_usage_fraction":0.25,"disk_usage_bytes":0,"disk_quota_bytes":0,"memory_usage_bytes":0,"memory_quota_bytes":0}]}"#,
        );
        let metrics: ContainerMetricsCollection = serde_json::from_str(json).unwrap();
        assert_eq!(metrics.lrps[0].usage.rx_bytes, Some(5));
        assert_eq!(serde_json::to_string(&metrics).unwrap(), json);
    }
}
