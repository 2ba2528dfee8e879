//! Turns what the BBS desires into what the executor runs: pure conversions.

use std::collections::BTreeMap;

use bbs_models::{
    CachedDependency, CertificateProperties, DesiredLrp, EnvironmentVariable, ImageCredentials, LogRateLimit,
    MetricTags, Network, RulePorts, RuleProtocol, SecurityGroupRule, Task, VolumeDevice, VolumeMode,
    VolumeMount, exclusive_layers_as_downloads, resolve_metric_tags, shared_layers_as_dependencies,
};
use executor::{EgressRule, LogConfig, PortMapping, RunInfo, RunRequest, Sidecar, Tags};
use serde::Deserialize;

use crate::stacks::{LayeringMode, Stacks, UnknownStack, move_layer_into_rootfs};
use crate::tags::{LrpInstance, RESULT_FILE_TAG};

const INTERNAL_ROUTER: &str = "internal-router";
/// By which tag a container's logs and metrics are found.
const SOURCE_ID_TAG: &str = "source_id";
const LOG_RATE_UNLIMITED: i64 = -1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    UnknownStack(#[from] UnknownStack),
    #[error("cannot read the internal routes: {0}")]
    InternalRoutes(#[source] serde_json::Error),
    /// Its words are not told: they may quote passwords.
    #[error("cannot read the mount config of a volume of driver '{0}': it is no JSON object")]
    MountConfig(String),
    #[error("a volume of driver '{0}' is on no shared device, and drivers mount no others")]
    VolumeDevice(String),
}

/// What is the same for every recipe of a cell.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub stacks: Stacks,
    pub layering_mode: LayeringMode,
}

/// An LRP instance's container is named by its instance guid.
pub fn of_lrp(desired: &DesiredLrp, lrp: &LrpInstance, around: &Surroundings) -> Result<RunRequest, Error> {
    let (rootfs, layers) =
        move_layer_into_rootfs(&desired.rootfs, desired.image_layers.clone(), around.layering_mode);
    let mut dependencies = shared_layers_as_dependencies(&layers);
    dependencies.extend(desired.cached_dependencies.iter().cloned());
    let instance_guid = &lrp.instance.instance_guid;
    let tags = resolve_metric_tags(&desired.metric_tags, lrp.key.index, instance_guid);
    let metric_tags = with_source_id(tags, &desired.metrics_guid);
    let (image_username, image_password) = credentials(desired.image_credentials.as_ref());
    let run_info = RunInfo {
        rootfs: around.stacks.resolve(&rootfs)?,
        cpu_weight: desired.cpu_weight.max(1),
        ports: desired.ports.iter().map(|&port| port_mapping(port)).collect(),
        log_config: LogConfig {
            guid: desired.log_guid.clone(),
            index: i32::try_from(lrp.key.index).unwrap_or(i32::MAX),
            source_name: desired.log_source.clone(),
            tags: metric_tags.clone(),
        },
        metric_tags,
        start_timeout_ms: u64::try_from(desired.start_timeout_ms).unwrap_or(0),
        privileged: desired.privileged,
        cached_dependencies: dependencies.into_iter().map(cached_dependency).collect(),
        setup: exclusive_layers_as_downloads(&layers, &desired.legacy_download_user, desired.setup.clone()),
        action: Some(desired.action.clone()),
        monitor: desired.monitor.clone(),
        check_definition: desired.check_definition.clone(),
        egress_rules: desired.egress_rules.iter().map(egress_rule).collect(),
        env: lrp_environment(lrp, &desired.environment_variables),
        trusted_system_certificates_path: desired.trusted_system_certificates_path.clone(),
        network_properties: network_properties(desired.network.as_ref()),
        image_username,
        image_password,
        certificate_organizational_units: organizational_units(desired.certificate_properties.as_ref()),
        internal_routes: internal_routes(desired)?,
        sidecars: desired.sidecars.iter().map(sidecar).collect(),
        log_rate_limit_bytes_per_second: log_rate(desired.log_rate_limit),
        volume_mounted_files: desired.volume_mounted_files.clone(),
        volume_mounts: volume_mounts(&desired.volume_mounts)?,
        // A Task is not connected to.
        enable_container_proxy: !desired.ports.is_empty(),
    };
    Ok(RunRequest { guid: instance_guid.clone(), run_info, tags: Tags::new() })
}

/// A Task's container is named by its guid; its result file is remembered in a tag.
pub fn of_task(task: &Task, around: &Surroundings) -> Result<RunRequest, Error> {
    let definition = &task.definition;
    let (rootfs, layers) =
        move_layer_into_rootfs(&definition.rootfs, definition.image_layers.clone(), around.layering_mode);
    let mut dependencies = shared_layers_as_dependencies(&layers);
    dependencies.extend(definition.cached_dependencies.iter().cloned());
    let metric_tags = with_source_id(
        resolve_metric_tags(&task_tags(&definition.metric_tags), 0, ""),
        &definition.metrics_guid,
    );
    let (image_username, image_password) = credentials(definition.image_credentials.as_ref());
    let run_info = RunInfo {
        rootfs: around.stacks.resolve(&rootfs)?,
        cpu_weight: definition.cpu_weight,
        log_config: LogConfig {
            guid: definition.log_guid.clone(),
            index: 0,
            source_name: definition.log_source.clone(),
            tags: metric_tags.clone(),
        },
        metric_tags,
        privileged: definition.privileged,
        cached_dependencies: dependencies.into_iter().map(cached_dependency).collect(),
        setup: exclusive_layers_as_downloads(&layers, &definition.legacy_download_user, None),
        action: Some(definition.action.clone()),
        egress_rules: definition.egress_rules.iter().map(egress_rule).collect(),
        env: definition.environment_variables.clone(),
        trusted_system_certificates_path: definition.trusted_system_certificates_path.clone(),
        network_properties: network_properties(definition.network.as_ref()),
        image_username,
        image_password,
        certificate_organizational_units: organizational_units(definition.certificate_properties.as_ref()),
        log_rate_limit_bytes_per_second: log_rate(definition.log_rate_limit),
        volume_mounted_files: definition.volume_mounted_files.clone(),
        volume_mounts: volume_mounts(&definition.volume_mounts)?,
        ..RunInfo::default()
    };
    let tags = Tags::from([(RESULT_FILE_TAG.into(), definition.result_file.clone())]);
    Ok(RunRequest { guid: task.task_guid.clone(), run_info, tags })
}

/// Tags known only per instance have no meaning for a Task.
fn task_tags(tags: &MetricTags) -> MetricTags {
    let is_static =
        |value: &bbs_models::MetricTagValue| matches!(value, bbs_models::MetricTagValue::Static(_));
    tags.iter()
        .filter(|(_, value)| is_static(value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn with_source_id(mut tags: BTreeMap<String, String>, metrics_guid: &str) -> BTreeMap<String, String> {
    if !metrics_guid.is_empty() {
        tags.entry(SOURCE_ID_TAG.into()).or_insert_with(|| metrics_guid.into());
    }
    tags
}

fn lrp_environment(lrp: &LrpInstance, desired: &[EnvironmentVariable]) -> Vec<EnvironmentVariable> {
    let guid = &lrp.instance.instance_guid;
    let index = lrp.key.index.to_string();
    let own = [
        ("INSTANCE_GUID", guid),
        ("INSTANCE_INDEX", &index),
        ("CF_INSTANCE_GUID", guid),
        ("CF_INSTANCE_INDEX", &index),
    ];
    own.into_iter()
        .map(|(name, value)| EnvironmentVariable { name: name.into(), value: value.clone() })
        .chain(desired.iter().cloned())
        .collect()
}

fn port_mapping(container_port: u16) -> PortMapping {
    PortMapping { container_port, ..PortMapping::default() }
}

fn cached_dependency(dependency: CachedDependency) -> executor::CachedDependency {
    executor::CachedDependency {
        name: dependency.name,
        from: dependency.from,
        to: dependency.to,
        cache_key: dependency.cache_key,
        log_source: dependency.log_source,
        checksum_algorithm: dependency.checksum_algorithm,
        checksum_value: dependency.checksum_value,
    }
}

fn volume_mounts(mounts: &[VolumeMount]) -> Result<Vec<executor::VolumeMount>, Error> {
    mounts.iter().map(volume_mount).collect()
}

fn volume_mount(mount: &VolumeMount) -> Result<executor::VolumeMount, Error> {
    let VolumeDevice::Shared { volume_id, mount_config } = &mount.device else {
        return Err(Error::VolumeDevice(mount.driver.clone()));
    };
    let config = match mount_config.trim() {
        "" => None,
        config => serde_json::from_str(config).map_err(|_| Error::MountConfig(mount.driver.clone()))?,
    };
    Ok(executor::VolumeMount {
        driver: mount.driver.clone(),
        volume_id: volume_id.clone(),
        config: config.unwrap_or_default(),
        container_path: mount.container_dir.clone(),
        writable: mount.mode == VolumeMode::ReadWrite,
    })
}

fn credentials(credentials: Option<&ImageCredentials>) -> (String, String) {
    credentials.map(|known| (known.username.clone(), known.password.clone())).unwrap_or_default()
}

fn network_properties(network: Option<&Network>) -> BTreeMap<String, String> {
    network.map(|network| network.properties.clone()).unwrap_or_default()
}

fn organizational_units(properties: Option<&CertificateProperties>) -> Vec<String> {
    properties.map(|properties| properties.organizational_unit.clone()).unwrap_or_default()
}

fn sidecar(sidecar: &bbs_models::Sidecar) -> Sidecar {
    Sidecar {
        action: sidecar.action.clone(),
        memory_mb: sidecar.memory_mb.into(),
        disk_mb: sidecar.disk_mb.into(),
    }
}

fn log_rate(limit: Option<LogRateLimit>) -> i64 {
    match limit {
        None | Some(LogRateLimit::Unlimited) => LOG_RATE_UNLIMITED,
        Some(LogRateLimit::BytesPerSecond(bytes)) => i64::try_from(bytes).unwrap_or(i64::MAX),
    }
}

fn internal_routes(desired: &DesiredLrp) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Route {
        hostname: String,
    }
    let routes: Vec<Route> =
        desired.routes.read(INTERNAL_ROUTER).transpose().map_err(Error::InternalRoutes)?.unwrap_or_default();
    Ok(routes.into_iter().map(|route| route.hostname).collect())
}

fn egress_rule(rule: &SecurityGroupRule) -> EgressRule {
    let mut egress = EgressRule {
        destinations: rule.destinations.iter().map(|destination| destination.to_string()).collect(),
        log: rule.log,
        ..EgressRule::default()
    };
    let mut ports = |ports: &RulePorts| match ports {
        RulePorts::List(list) => egress.ports = list.clone(),
        RulePorts::Range { start, end } => egress.port_range = Some((*start, *end)),
    };
    let protocol = match &rule.protocol {
        RuleProtocol::All => "all",
        RuleProtocol::Tcp(range) => {
            ports(range);
            "tcp"
        }
        RuleProtocol::Udp(range) => {
            ports(range);
            "udp"
        }
        RuleProtocol::Icmp(icmp) => {
            egress.icmp = Some((icmp.kind, icmp.code));
            "icmp"
        }
        RuleProtocol::IcmpV6(icmp) => {
            egress.icmp = Some((icmp.kind, icmp.code));
            "icmpv6"
        }
    };
    egress.protocol = protocol.into();
    egress
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbs_models::{
        Action, ActualLrpInstanceKey, ActualLrpKey, DigestAlgorithm, ImageLayer, LayerDigest, LayerKind,
        LayerMediaType, MetricTagValue, Routes, RunAction, TaskDefinition,
    };

    fn run(path: &str) -> Action {
        Action::Run(RunAction { path: path.into(), user: "vcap".into(), ..RunAction::default() })
    }

    #[test]
    fn volumes_are_what_drivers_are_asked_for() {
        let mount = |device| VolumeMount {
            driver: "nfs".into(),
            container_dir: "/data".into(),
            mode: VolumeMode::ReadWrite,
            device,
        };
        let shared = |mount_config: &str| {
            let (volume_id, mount_config) = ("v".into(), mount_config.into());
            mount(VolumeDevice::Shared { volume_id, mount_config })
        };
        let converted = volume_mount(&shared(r#"{"source":"nfs://a","uid":1}"#)).unwrap();
        assert_eq!(
            (&*converted.driver, &*converted.volume_id, &*converted.container_path),
            ("nfs", "v", "/data")
        );
        assert_eq!(serde_json::to_string(&converted.config).unwrap(), r#"{"source":"nfs://a","uid":1}"#);
        assert!(converted.writable);
        let read_only = VolumeMount { mode: VolumeMode::ReadOnly, ..shared("") };
        assert!(!volume_mount(&read_only).unwrap().writable);
        for nothing in ["", " ", "null", "{}"] {
            assert!(volume_mount(&shared(nothing)).unwrap().config.is_empty(), "{nothing:?}");
        }
        for wrong in ["{", "[1]", "secret"] {
            let error = volume_mount(&shared(wrong)).unwrap_err().to_string();
            assert_eq!(
                error,
                "cannot read the mount config of a volume of driver 'nfs': it is no JSON object"
            );
        }
        let dedicated = VolumeDevice::Dedicated {
            mounter_id: "m".into(),
            mount_config: String::new(),
            device_config: String::new(),
        };
        for device in [VolumeDevice::None, dedicated] {
            assert!(matches!(volume_mount(&mount(device)), Err(Error::VolumeDevice(_))));
        }
    }

    fn instance() -> LrpInstance {
        LrpInstance {
            key: ActualLrpKey::new("pg", 2, "d"),
            instance: ActualLrpInstanceKey::new("ig", "cell"),
        }
    }

    fn around() -> Surroundings {
        let stacks = Stacks(BTreeMap::from([("linux".into(), "/rootfs/linux.tar".into())]));
        Surroundings { stacks, ..Surroundings::default() }
    }

    fn desired(change: impl FnOnce(&mut DesiredLrp)) -> DesiredLrp {
        let mut desired = DesiredLrp::new("pg", "d", "preloaded:linux", run("/app"));
        change(&mut desired);
        desired
    }

    /// The run info of a DesiredLRP changed like this.
    fn lrp_info(change: impl FnOnce(&mut DesiredLrp)) -> RunInfo {
        of_lrp(&desired(change), &instance(), &around()).unwrap().run_info
    }

    #[test]
    fn an_lrp_learns_which_instance_it_is() {
        let own = EnvironmentVariable { name: "A".into(), value: "b".into() };
        let info = lrp_info(|lrp| lrp.environment_variables = vec![own]);
        let env: Vec<_> =
            info.env.iter().map(|variable| format!("{}={}", variable.name, variable.value)).collect();
        assert_eq!(
            env,
            ["INSTANCE_GUID=ig", "INSTANCE_INDEX=2", "CF_INSTANCE_GUID=ig", "CF_INSTANCE_INDEX=2", "A=b"]
        );
    }

    #[test]
    fn what_is_left_out_is_defaulted() {
        let info = lrp_info(|_| {});
        assert_eq!(info.rootfs, "/rootfs/linux.tar");
        assert_eq!(info.cpu_weight, 1);
        assert_eq!(info.log_rate_limit_bytes_per_second, -1);
        assert_eq!((info.image_username.as_str(), info.image_password.as_str()), ("", ""));
        let limited =
            |limit| lrp_info(|lrp| lrp.log_rate_limit = Some(limit)).log_rate_limit_bytes_per_second;
        assert_eq!(limited(LogRateLimit::Unlimited), -1);
        assert_eq!(limited(LogRateLimit::BytesPerSecond(0)), 0);
        assert_eq!(limited(LogRateLimit::BytesPerSecond(1024)), 1024);
    }

    #[test]
    fn tags_are_resolved_for_the_instance() {
        let info = lrp_info(|lrp| {
            lrp.metrics_guid = "app".into();
            lrp.log_guid = "log".into();
            lrp.log_source = "APP".into();
            lrp.metric_tags = MetricTags::from([
                ("index".into(), MetricTagValue::Index),
                ("guid".into(), MetricTagValue::InstanceGuid),
                ("org".into(), MetricTagValue::Static("o".into())),
            ]);
        });
        let expected = [("guid", "ig"), ("index", "2"), ("org", "o"), ("source_id", "app")]
            .map(|(k, v)| (k.into(), v.into()));
        assert_eq!(info.metric_tags, BTreeMap::from(expected));
        assert_eq!(info.log_config.tags, info.metric_tags);
        assert_eq!((info.log_config.guid.as_str(), info.log_config.index), ("log", 2));
    }

    #[test]
    fn ports_and_internal_routes_are_those_desired() {
        let info = lrp_info(|lrp| {
            lrp.ports = vec![8080, 2222];
            let mut routes = Routes::new();
            routes.insert_raw("internal-router", r#"[{"hostname":"a.apps.internal"}]"#.into()).unwrap();
            lrp.routes = routes;
        });
        assert_eq!(info.ports.iter().map(|port| port.container_port).collect::<Vec<_>>(), [8080, 2222]);
        assert_eq!(info.internal_routes, ["a.apps.internal"]);
        assert!(info.enable_container_proxy && !lrp_info(|_| {}).enable_container_proxy);
        let broken = desired(|lrp| lrp.routes.insert_raw("internal-router", "{}".into()).unwrap());
        let error = of_lrp(&broken, &instance(), &around()).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the internal routes"));
    }

    fn layer(kind: LayerKind) -> ImageLayer {
        ImageLayer {
            name: "droplet".into(),
            url: "http://blobs/d".into(),
            destination_path: "/home/vcap".into(),
            kind,
            media_type: LayerMediaType::Tgz,
        }
    }

    #[test]
    fn layers_become_dependencies_and_downloads() {
        let digest = LayerDigest { algorithm: DigestAlgorithm::Sha256, value: "ab".into() };
        let layers = vec![
            layer(LayerKind::Shared { digest: Some(digest.clone()) }),
            layer(LayerKind::Exclusive { digest }),
        ];
        let own = CachedDependency { name: "own".into(), ..CachedDependency::default() };
        let change = |lrp: &mut DesiredLrp| {
            lrp.image_layers = layers.clone();
            lrp.cached_dependencies = vec![own.clone()];
            lrp.setup = Some(run("/setup"));
        };
        let info = lrp_info(change);
        assert_eq!(
            info.cached_dependencies.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(),
            ["droplet", "own"]
        );
        let Some(Action::Serial(setup)) = &info.setup else { panic!("{:?}", info.setup) };
        assert!(matches!(setup.actions.as_slice(), [Action::Parallel(_), Action::Run(_)]));

        let two_layers = Surroundings { layering_mode: LayeringMode::TwoLayer, ..around() };
        let info = of_lrp(&desired(change), &instance(), &two_layers).unwrap().run_info;
        assert!(
            info.rootfs.starts_with("preloaded+layer:/rootfs/linux.tar?layer=http%3A%2F%2Fblobs%2Fd&"),
            "{}",
            info.rootfs
        );
        assert_eq!(info.setup, Some(run("/setup")));
    }

    #[test]
    fn egress_rules_keep_their_meaning() {
        let check = |protocol: RuleProtocol, expected: EgressRule| {
            let destinations = vec!["10.0.0.0/8".parse().unwrap()];
            let rule = SecurityGroupRule { protocol, destinations, log: true, annotations: vec![] };
            let expected = EgressRule { destinations: vec!["10.0.0.0/8".into()], log: true, ..expected };
            assert_eq!(egress_rule(&rule), expected);
        };
        let of = |protocol: &str| EgressRule { protocol: protocol.into(), ..EgressRule::default() };
        check(RuleProtocol::All, of("all"));
        check(
            RuleProtocol::Tcp(RulePorts::List(vec![80, 443])),
            EgressRule { ports: vec![80, 443], ..of("tcp") },
        );
        let range = RulePorts::Range { start: 53, end: 54 };
        check(RuleProtocol::Udp(range), EgressRule { port_range: Some((53, 54)), ..of("udp") });
        let icmp = bbs_models::IcmpType { kind: 8, code: -1 };
        check(RuleProtocol::Icmp(icmp), EgressRule { icmp: Some((8, -1)), ..of("icmp") });
    }

    #[test]
    fn an_unknown_stack_is_named() {
        let unknown = desired(|lrp| lrp.rootfs = "preloaded:windows".into());
        let error = of_lrp(&unknown, &instance(), &around()).unwrap_err();
        assert_eq!(error.to_string(), "preloaded rootfs path not found: windows");
    }

    #[test]
    fn a_task_remembers_its_result_file() {
        let mut definition = TaskDefinition::new("docker:///busybox", run("/job"));
        definition.result_file = "/result".into();
        definition.cpu_weight = 7;
        definition.image_credentials = Some(ImageCredentials { username: "u".into(), password: "p".into() });
        let request = of_task(&Task::pending("tg", "d", definition, 0), &around()).unwrap();
        assert_eq!(request.guid, "tg");
        assert_eq!(request.tags[RESULT_FILE_TAG], "/result");
        assert_eq!(request.run_info.rootfs, "docker:///busybox");
        assert_eq!((request.run_info.image_username.as_str(), request.run_info.cpu_weight), ("u", 7));
        assert_eq!(request.run_info.action, Some(run("/job")));
        assert_eq!(request.run_info.setup, None);
    }
}
