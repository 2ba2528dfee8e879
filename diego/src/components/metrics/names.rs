//! The cell's own metrics: as platforms know them (diego-release's docs/010), as Prometheus reads them, and what they say.

pub struct Name {
    pub published: &'static str,
    pub prometheus: &'static str,
    pub says: &'static str,
}

const fn name(published: &'static str, prometheus: &'static str, says: &'static str) -> Name {
    Name { published, prometheus, says }
}

/// Each grows by one when it happens.
pub const COUNTS: [Name; 11] = [
    name(CONTAINER_COMPLETED, "container_completed_count", "Containers whose action has ended."),
    name(
        EXITED_ON_TIMEOUT,
        "container_exited_on_timeout_count",
        "Containers of which something was killed when it did not end in its grace time.",
    ),
    name(CRED_SUCCEEDED, "cred_creation_succeeded_count", "Instance identities issued."),
    name(CRED_FAILED, "cred_creation_failed_count", "Instance identities that could not be issued."),
    name(C2C_SUCCEEDED, "c2c_cred_creation_succeeded_count", "Container-to-container certificates issued."),
    name(C2C_FAILED, "c2c_cred_creation_failed_count", "Container-to-container certificates not issued."),
    name(TCP_FAILED, "tcp_liveness_checks_failed_count", "Instances found unhealthy by a check of a port."),
    name(HTTP_FAILED, "http_liveness_checks_failed_count", "Instances found unhealthy by a request."),
    name(
        LOG_RATE_EXCEEDED,
        "app_instance_exceeded_log_rate_limit_count",
        "Times that an instance began to say more than it may.",
    ),
    name(MOUNT_ERRORS, "volman_mount_errors", "Volumes that could not be mounted."),
    name(UNMOUNT_ERRORS, "volman_unmount_errors", "Volumes that could not be unmounted."),
];

pub const CONTAINER_COMPLETED: &str = "ContainerCompletedCount";
pub const EXITED_ON_TIMEOUT: &str = "ContainerExitedOnTimeoutCount";
pub const CRED_SUCCEEDED: &str = "CredCreationSucceededCount";
pub const CRED_FAILED: &str = "CredCreationFailedCount";
pub const C2C_SUCCEEDED: &str = "C2CCredCreationSucceededCount";
pub const C2C_FAILED: &str = "C2CCredCreationFailedCount";
pub const TCP_FAILED: &str = "TCPLivenessChecksFailedCount";
pub const HTTP_FAILED: &str = "HTTPLivenessChecksFailedCount";
pub const LOG_RATE_EXCEEDED: &str = "AppInstanceExceededLogRateLimitCount";
pub const MOUNT_ERRORS: &str = "VolmanMountErrors";
pub const UNMOUNT_ERRORS: &str = "VolmanUnmountErrors";

/// Each is said when it happens, in nanoseconds; for Prometheus they are histograms, in seconds.
pub const TIMINGS: [Name; 12] = [
    name(
        SETUP_SUCCEEDED,
        "container_setup_succeeded_duration",
        "From the first download that a container needs to the end of its setup.",
    ),
    name(SETUP_FAILED, "container_setup_failed_duration", "The same where it failed."),
    name(CREATE_SUCCEEDED, "garden_container_creation_succeeded_duration", "Garden created a container."),
    name(CREATE_FAILED, "garden_container_creation_failed_duration", "Garden did not."),
    name(
        DESTROY_SUCCEEDED,
        "garden_container_destruction_succeeded_duration",
        "Garden destroyed a container.",
    ),
    name(DESTROY_FAILED, "garden_container_destruction_failed_duration", "Garden did not."),
    name(CRED_DURATION, "cred_creation_succeeded_duration", "An instance identity was issued."),
    name(C2C_DURATION, "c2c_cred_creation_succeeded_duration", "A container-to-container certificate was."),
    name(BULK_SYNC, "rep_bulk_sync_duration", "All that runs here was compared with the BBS."),
    name(STALLED_GARDEN, "stalled_garden_duration", "The rep waited for garden when it started."),
    name(MOUNT_DURATION, "volman_mount_duration", "A driver mounted a volume, or did not."),
    name(UNMOUNT_DURATION, "volman_unmount_duration", "A driver unmounted a volume, or did not."),
];

pub const SETUP_SUCCEEDED: &str = "ContainerSetupSucceededDuration";
pub const SETUP_FAILED: &str = "ContainerSetupFailedDuration";
pub const CREATE_SUCCEEDED: &str = "GardenContainerCreationSucceededDuration";
pub const CREATE_FAILED: &str = "GardenContainerCreationFailedDuration";
pub const DESTROY_SUCCEEDED: &str = "GardenContainerDestructionSucceededDuration";
pub const DESTROY_FAILED: &str = "GardenContainerDestructionFailedDuration";
pub const CRED_DURATION: &str = "CredCreationSucceededDuration";
pub const C2C_DURATION: &str = "C2CCredCreationSucceededDuration";
pub const BULK_SYNC: &str = "RepBulkSyncDuration";
pub const STALLED_GARDEN: &str = "StalledGardenDuration";
pub const MOUNT_DURATION: &str = "VolmanMountDuration";
pub const UNMOUNT_DURATION: &str = "VolmanUnmountDuration";
/// Between one of these and the name of the driver whose share it is, which platforms are told too.
pub const OF_DRIVER: &str = "For";

/// Said when they change.
pub const STATES: [Name; 3] = [
    name(GARDEN_FAILED, "garden_health_check_failed", "1 while garden is found not to be well."),
    name(CELL_UNHEALTHY, "cell_unhealthy", "1 while the cell is left out of auctions for that."),
    name(
        STRANDED,
        "stranded_evacuating_actual_lrps",
        "Evacuating instances that the BBS still had when the evacuation was over.",
    ),
];

pub const GARDEN_FAILED: &str = "GardenHealthCheckFailed";
pub const CELL_UNHEALTHY: &str = "CellUnhealthy";
pub const STRANDED: &str = "StrandedEvacuatingActualLRPs";

/// Said each interval; the unit is in the name's help.
pub const CAPACITY: [Name; 12] = [
    name("CapacityTotalMemory", "capacity_total_memory", "MiB for containers."),
    name("CapacityTotalDisk", "capacity_total_disk", "MiB for containers."),
    name("CapacityTotalContainers", "capacity_total_containers", "Containers at once."),
    name("CapacityRemainingMemory", "capacity_remaining_memory", "MiB not given to containers yet."),
    name("CapacityRemainingDisk", "capacity_remaining_disk", "MiB not given to containers yet."),
    name("CapacityRemainingContainers", "capacity_remaining_containers", "Containers that have room yet."),
    name("CapacityAllocatedMemory", "capacity_allocated_memory", "MiB given to containers."),
    name("CapacityAllocatedDisk", "capacity_allocated_disk", "MiB given to containers."),
    name("ContainerUsageMemory", "container_usage_memory", "MiB that containers use; -1 if not known."),
    name("ContainerUsageDisk", "container_usage_disk", "MiB that containers use; -1 if not known."),
    name("ContainerCount", "container_count", "Containers, in whatever state."),
    name("StartingContainerCount", "starting_container_count", "Containers that do not run yet."),
];

/// Of each kind of request (the tag `request-type`), said each interval.
pub const REQUESTS: [Name; 6] = [
    name("RequestsStarted", "requests_started", "Requests that came."),
    name("RequestsSucceeded", "requests_succeeded", "Requests that were answered well."),
    name("RequestsFailed", "requests_failed", "Requests that were refused, failed, or were given up."),
    name("RequestsInFlight", "requests_in_flight", "Requests under way."),
    name("RequestsCancelled", "requests_cancelled", "Always 0: one that is given up has failed."),
    name("RequestLatencyMax", "request_latency_max", "The slowest since it was last said."),
];

/// Of this process, said each interval. What has no meaning here, as a collector's pauses, is not said.
pub const PROCESS: [Name; 3] = [
    name("numGoRoutines", "num_go_routines", "Tasks of the runtime."),
    name("memoryStats.numBytesAllocatedHeap", "memory_stats_num_bytes_allocated_heap", "Anonymous memory."),
    name("memoryStats.numBytesAllocatedStack", "memory_stats_num_bytes_allocated_stack", "The main stack."),
];
