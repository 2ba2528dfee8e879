//! An LRP as it is wished for, and the smaller views of it that schedulers and routers ask for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire;
use crate::{
    Action, CachedDependency, CheckDefinition, EnvironmentVariable, File, ImageLayer, MetricTagValue,
    MetricTags, ModificationTag, Routes, SOURCE_ID_TAG, SecurityGroupRule, VolumeMount,
};

/// Bytes of `annotation`, of an LRP or a Task.
pub const ANNOTATION_BYTES_MAX: usize = 10 * 1024;
/// Bytes of all route JSON of one LRP.
pub const ROUTES_BYTES_MAX: usize = 128 * 1024;
/// Bytes of all `volume_mounted_files` of one LRP or Task.
pub const VOLUME_MOUNTED_FILES_BYTES_MAX: usize = 1024 * 1024;

/// Memory, disk and pids of 0 mean no limit; a `start_timeout_ms` of 0 the cell's default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "wire::DesiredLrp", try_from = "wire::DesiredLrp")]
pub struct DesiredLrp {
    pub process_guid: String,
    pub domain: String,
    pub log_guid: String,
    /// A URL: `preloaded:cflinuxfs4`, `docker:///library/redis`, …
    pub rootfs: String,
    pub instances: u32,
    pub memory_mb: u32,
    pub disk_mb: u32,
    pub max_pids: u32,
    pub cpu_weight: u32,
    pub privileged: bool,
    pub environment_variables: Vec<EnvironmentVariable>,
    pub setup: Option<Action>,
    pub action: Action,
    pub monitor: Option<Action>,
    pub sidecars: Vec<Sidecar>,
    pub check_definition: Option<CheckDefinition>,
    pub start_timeout_ms: i64,
    pub ports: Vec<u16>,
    pub routes: Routes,
    pub egress_rules: Vec<SecurityGroupRule>,
    pub network: Option<Network>,
    pub log_source: String,
    pub metrics_guid: String,
    pub metric_tags: MetricTags,
    pub log_rate_limit: Option<LogRateLimit>,
    pub annotation: String,
    pub placement_tags: Vec<String>,
    pub cached_dependencies: Vec<CachedDependency>,
    pub image_layers: Vec<ImageLayer>,
    pub image_credentials: Option<ImageCredentials>,
    /// The user whose files exclusive layers become.
    pub legacy_download_user: String,
    pub trusted_system_certificates_path: String,
    pub volume_mounts: Vec<VolumeMount>,
    pub volume_mounted_files: Vec<File>,
    pub certificate_properties: Option<CertificateProperties>,
    pub update_strategy: UpdateStrategy,
    pub modification_tag: ModificationTag,
}

/// Started beside the main action, counted into the container's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sidecar {
    pub action: Action,
    pub disk_mb: u32,
    pub memory_mb: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageCredentials {
    pub username: String,
    pub password: String,
}

/// Handed to the network plugin as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// Goes into the instance identity certificate's subject.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateProperties {
    pub organizational_unit: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRateLimit {
    Unlimited,
    BytesPerSecond(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpdateStrategy {
    #[default]
    Rolling,
    Recreate,
}

impl DesiredLrp {
    /// One instance without limits, routes or checks.
    pub fn new(
        process_guid: impl Into<String>,
        domain: impl Into<String>,
        rootfs: impl Into<String>,
        action: Action,
    ) -> Self {
        Self {
            process_guid: process_guid.into(),
            domain: domain.into(),
            rootfs: rootfs.into(),
            action,
            instances: 1,
            log_guid: String::new(),
            memory_mb: 0,
            disk_mb: 0,
            max_pids: 0,
            cpu_weight: 0,
            privileged: false,
            environment_variables: Vec::new(),
            setup: None,
            monitor: None,
            sidecars: Vec::new(),
            check_definition: None,
            start_timeout_ms: 0,
            ports: Vec::new(),
            routes: Routes::new(),
            egress_rules: Vec::new(),
            network: None,
            log_source: String::new(),
            metrics_guid: String::new(),
            metric_tags: MetricTags::new(),
            log_rate_limit: None,
            annotation: String::new(),
            placement_tags: Vec::new(),
            cached_dependencies: Vec::new(),
            image_layers: Vec::new(),
            image_credentials: None,
            legacy_download_user: String::new(),
            trusted_system_certificates_path: String::new(),
            volume_mounts: Vec::new(),
            volume_mounted_files: Vec::new(),
            certificate_properties: None,
            update_strategy: UpdateStrategy::Rolling,
            modification_tag: ModificationTag::default(),
        }
    }

    pub fn key(&self) -> DesiredLrpKey {
        DesiredLrpKey {
            process_guid: self.process_guid.clone(),
            domain: self.domain.clone(),
            log_guid: self.log_guid.clone(),
        }
    }

    pub fn scheduling_info(&self) -> SchedulingInfo {
        SchedulingInfo {
            key: self.key(),
            annotation: self.annotation.clone(),
            instances: self.instances,
            resource: DesiredLrpResource {
                memory_mb: self.memory_mb,
                disk_mb: self.disk_mb,
                max_pids: self.max_pids,
                rootfs: self.rootfs.clone(),
            },
            routes: self.routes.clone(),
            modification_tag: self.modification_tag.clone(),
            volume_drivers: self.volume_mounts.iter().map(|mount| mount.driver.clone()).collect(),
            placement_tags: self.placement_tags.clone(),
        }
    }

    pub fn routing_info(&self) -> RoutingInfo {
        RoutingInfo {
            key: self.key(),
            instances: self.instances,
            routes: self.routes.clone(),
            modification_tag: self.modification_tag.clone(),
            metric_tags: self.metric_tags.clone(),
        }
    }

    /// The LRP after `update`; its modification tag counts one more.
    pub fn updated(mut self, update: DesiredLrpUpdate) -> Self {
        if let Some(instances) = update.instances {
            self.instances = instances;
        }
        if let Some(routes) = update.routes {
            self.routes = routes;
        }
        if let Some(annotation) = update.annotation {
            self.annotation = annotation;
        }
        if let Some(metric_tags) = update.metric_tags {
            self.metric_tags = metric_tags;
            self.metrics_guid_follows();
        }
        if let Some(credentials) = update.image_credentials {
            let empty = credentials.username.is_empty() && credentials.password.is_empty();
            self.image_credentials = (!empty).then_some(credentials);
        }
        self.modification_tag.increment();
        self
    }

    /// The deprecated metrics guid says what the tag `source_id` says, after an update of the tags too: an LRP of which the
    /// two differ is not valid, and could not be read again.
    fn metrics_guid_follows(&mut self) {
        if self.metrics_guid.is_empty() {
            return;
        }
        match self.metric_tags.get(SOURCE_ID_TAG) {
            Some(MetricTagValue::Static(source_id)) => self.metrics_guid.clone_from(source_id),
            Some(_) => self.metrics_guid.clear(),
            None => {
                let source_id = MetricTagValue::Static(self.metrics_guid.clone());
                self.metric_tags.insert(SOURCE_ID_TAG.into(), source_id);
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DesiredLrpKey {
    pub process_guid: String,
    pub domain: String,
    pub log_guid: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DesiredLrpResource {
    pub memory_mb: u32,
    pub disk_mb: u32,
    pub max_pids: u32,
    pub rootfs: String,
}

/// What placing needs to know (`DesiredLRPSchedulingInfo`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "wire::DesiredLrpSchedulingInfo")]
pub struct SchedulingInfo {
    pub key: DesiredLrpKey,
    pub annotation: String,
    pub instances: u32,
    pub resource: DesiredLrpResource,
    pub routes: Routes,
    pub modification_tag: ModificationTag,
    pub volume_drivers: Vec<String>,
    pub placement_tags: Vec<String>,
}

/// What routing needs to know: on the wire a DesiredLRP with these fields only.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingInfo {
    pub key: DesiredLrpKey,
    pub instances: u32,
    pub routes: Routes,
    pub modification_tag: ModificationTag,
    pub metric_tags: MetricTags,
}

/// `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DesiredLrpUpdate {
    pub instances: Option<u32>,
    pub routes: Option<Routes>,
    pub annotation: Option<String>,
    pub metric_tags: Option<MetricTags>,
    /// Always both together; both empty takes them away.
    pub image_credentials: Option<ImageCredentials>,
}

/// Which DesiredLRPs are asked for; an empty field matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredLrpFilter {
    pub domain: String,
    pub process_guids: Vec<String>,
    /// Each matches the process guids that begin with it.
    pub app_guids: Vec<String>,
}
