//! Where the BBS answers. All are POST, but for the group event streams, which are GET.

pub const PING: &str = "/v1/ping";

pub const DOMAINS: &str = "/v1/domains/list";
pub const UPSERT_DOMAIN: &str = "/v1/domains/upsert";

pub const ACTUAL_LRPS: &str = "/v1/actual_lrps/list";
pub const ACTUAL_LRPS_BY_PROCESS_GUIDS: &str = "/v1/actual_lrps/list_by_process_guids";
/// The group routes are deprecated in favour of those of instances.
pub const ACTUAL_LRP_GROUPS: &str = "/v1/actual_lrp_groups/list";
pub const ACTUAL_LRP_GROUPS_BY_PROCESS_GUID: &str = "/v1/actual_lrp_groups/list_by_process_guid";
pub const ACTUAL_LRP_GROUP: &str = "/v1/actual_lrp_groups/get_by_process_guid_and_index";

pub const CLAIM_ACTUAL_LRP: &str = "/v1/actual_lrps/claim";
pub const START_ACTUAL_LRP: &str = "/v1/actual_lrps/start.r1";
/// Of clients that know no internal routes and metric tags.
pub const START_ACTUAL_LRP_R0: &str = "/v1/actual_lrps/start";
pub const CRASH_ACTUAL_LRP: &str = "/v1/actual_lrps/crash";
pub const FAIL_ACTUAL_LRP: &str = "/v1/actual_lrps/fail";
pub const REMOVE_ACTUAL_LRP: &str = "/v1/actual_lrps/remove";
pub const RETIRE_ACTUAL_LRP: &str = "/v1/actual_lrps/retire";

pub const REMOVE_EVACUATING_ACTUAL_LRP: &str = "/v1/actual_lrps/remove_evacuating";
pub const EVACUATE_CLAIMED_ACTUAL_LRP: &str = "/v1/actual_lrps/evacuate_claimed";
pub const EVACUATE_CRASHED_ACTUAL_LRP: &str = "/v1/actual_lrps/evacuate_crashed";
pub const EVACUATE_STOPPED_ACTUAL_LRP: &str = "/v1/actual_lrps/evacuate_stopped";
pub const EVACUATE_RUNNING_ACTUAL_LRP: &str = "/v1/actual_lrps/evacuate_running.r1";
pub const EVACUATE_RUNNING_ACTUAL_LRP_R0: &str = "/v1/actual_lrps/evacuate_running";

pub const DESIRED_LRPS: &str = "/v1/desired_lrps/list.r3";
pub const DESIRED_LRP: &str = "/v1/desired_lrps/get_by_process_guid.r3";
/// The r2 routes show image layers as cached dependencies and downloads.
pub const DESIRED_LRPS_R2: &str = "/v1/desired_lrps/list.r2";
pub const DESIRED_LRP_R2: &str = "/v1/desired_lrps/get_by_process_guid.r2";
pub const SCHEDULING_INFOS: &str = "/v1/desired_lrp_scheduling_infos/list";
pub const SCHEDULING_INFO: &str = "/v1/desired_lrp_scheduling_infos/get_by_process_guid";
pub const ROUTING_INFOS: &str = "/v1/desired_lrp_routing_infos/list";
pub const DESIRE_LRP: &str = "/v1/desired_lrp/desire.r2";
pub const UPDATE_DESIRED_LRP: &str = "/v1/desired_lrp/update";
pub const REMOVE_DESIRED_LRP: &str = "/v1/desired_lrp/remove";

pub const TASKS: &str = "/v1/tasks/list.r3";
pub const TASK: &str = "/v1/tasks/get_by_task_guid.r3";
pub const TASKS_R2: &str = "/v1/tasks/list.r2";
pub const TASK_R2: &str = "/v1/tasks/get_by_task_guid.r2";
pub const DESIRE_TASK: &str = "/v1/tasks/desire.r2";
pub const START_TASK: &str = "/v1/tasks/start";
pub const CANCEL_TASK: &str = "/v1/tasks/cancel";
/// Deprecated in favour of cancel and reject.
pub const FAIL_TASK: &str = "/v1/tasks/fail";
pub const REJECT_TASK: &str = "/v1/tasks/reject";
pub const COMPLETE_TASK: &str = "/v1/tasks/complete";
pub const RESOLVING_TASK: &str = "/v1/tasks/resolving";
pub const DELETE_TASK: &str = "/v1/tasks/delete";

/// Group events; deprecated in favour of instance events.
pub const EVENTS: &str = "/v1/events.r1";
pub const TASK_EVENTS: &str = "/v1/events/tasks.r1";
pub const INSTANCE_EVENTS: &str = "/v1/events/lrp_instances.r1";
pub const EVENTS_R0: &str = "/v1/events";
pub const TASK_EVENTS_R0: &str = "/v1/events/tasks";
pub const INSTANCE_EVENTS_R0: &str = "/v1/events/lrp_instances";

pub const CELLS: &str = "/v1/cells/list.r1";
