//! Containers: the store that knows them all, and the life of each.

mod adoption;
mod creation;
mod egress;
mod files;
pub(crate) mod life;
pub(crate) mod reaper;
mod renewal;
pub(crate) mod reservation;
pub(crate) mod restore;
pub(crate) mod store;

use crate::LogConfig;

/// By this property garden containers are known to be an executor's.
pub const OWNER_PROPERTY: &str = "executor:owner";

fn log_config_json(config: &LogConfig) -> String {
    serde_json::json!({
        "guid": config.guid,
        "index": config.index,
        "source_name": config.source_name,
        "tags": config.tags,
    })
    .to_string()
}
