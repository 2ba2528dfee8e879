//! A rep's file, with what it says for the executor in it.

use std::net::{IpAddr, UdpSocket};

use super::refusal::{FATAL, Keys, UNUSABLE, identity, is_for_loopback};
use super::shared::{self, LAGER, LOCKET_CLIENT, REPORT};
use super::{Each, Flag, Flags, If, Nothing, Refusal, Settings, Special, Table};

/// Nothing is sent there: the way to it begins at the address by which others know this machine.
const ELSEWHERE: &str = "1.2.3.4:1";

pub const TABLES: &[Table] = &[OWN, LAGER, LOCKET_CLIENT, REPORT];

const OWN: Table = &[
    ("advertise_domain", Special),
    ("advertise_preference_for_instance_address", If("advertise-preference-for-instance-address")),
    ("auto_disk_capacity_overhead_mb", Special),
    ("bbs_address", Flag("bbs-url")),
    // Older deployments named the same files again under these.
    ("bbs_ca_cert_file", Nothing),
    ("bbs_client_cert_file", Nothing),
    ("bbs_client_key_file", Nothing),
    ("bbs_client_session_cache_size", Nothing),
    ("bbs_max_idle_conns_per_host", Nothing),
    ("ca_cert_file", Flag("ca-cert-file")),
    ("cache_path", Flag("cache-path")),
    ("cell_id", Flag("cell-id")),
    ("cell_index", Flag("cell-index")),
    // Cells are registered in Locket, always.
    ("cell_registrations_locket_enabled", Nothing),
    ("cert_file", Flag("cert-file")),
    ("communication_timeout", Flag("bbs-timeout")),
    ("container_inode_limit", Flag("container-inode-limit")),
    ("container_max_cpu_shares", Flag("container-max-cpu-shares")),
    ("container_metrics_report_interval", Flag("container-metrics-report-interval")),
    ("container_owner_name", Flag("container-owner-name")),
    // No proxy runs inside containers that would have to be found, told and restarted.
    ("container_proxy_ads_addresses", Nothing),
    ("container_proxy_config_path", Nothing),
    ("container_proxy_path", Nothing),
    ("container_proxy_require_and_verify_client_certs", Special),
    ("container_proxy_trusted_ca_certs", Special),
    ("container_proxy_verify_subject_alt_name", Special),
    ("container_reap_interval", Flag("container-reap-interval")),
    ("create_work_pool_size", Flag("create-work-pool-size")),
    ("declarative_healthcheck_default_timeout", Flag("declarative-healthcheck-default-timeout")),
    ("declarative_healthcheck_path", Nothing),
    ("delete_work_pool_size", Flag("delete-work-pool-size")),
    ("disk_mb", Special),
    ("enable_container_proxy", If("container-proxy")),
    ("enable_container_proxy_healthcheck", Nothing),
    // Checks that say what they check are, always.
    ("enable_declarative_healthcheck", Nothing),
    ("enable_healthcheck_metrics", Nothing),
    ("enable_unproxied_port_mappings", Special),
    ("envoy_config_refresh_delay", Nothing),
    ("envoy_config_reload_duration", Nothing),
    ("envoy_drain_timeout", Nothing),
    ("evacuation_polling_interval", Flag("evacuation-polling-interval")),
    ("evacuation_timeout", Flag("evacuation-timeout")),
    ("export_network_env_vars", Nothing),
    ("extra_root_fs_dir", Flag("extra-rootfs-dir")),
    ("garden_addr", Special),
    ("garden_healthcheck_command_retry_pause", Flag("garden-healthcheck-command-retry-pause")),
    ("garden_healthcheck_emission_interval", Nothing),
    ("garden_healthcheck_interval", Flag("garden-healthcheck-interval")),
    ("garden_healthcheck_process_args", Each("garden-healthcheck-process-arg")),
    ("garden_healthcheck_process_dir", Flag("garden-healthcheck-process-dir")),
    ("garden_healthcheck_process_env", Each("garden-healthcheck-process-env")),
    ("garden_healthcheck_process_path", Flag("garden-healthcheck-process-path")),
    ("garden_healthcheck_process_user", Flag("garden-healthcheck-process-user")),
    ("garden_healthcheck_timeout", Flag("garden-healthcheck-timeout")),
    ("garden_network", Special),
    ("graceful_shutdown_interval", Flag("graceful-shutdown-interval")),
    ("healthcheck_container_owner_name", Flag("healthcheck-container-owner-name")),
    ("healthcheck_work_pool_size", Flag("healthcheck-work-pool-size")),
    ("healthy_monitoring_interval", Flag("healthy-monitoring-interval")),
    ("instance_identity_ca_path", Flag("instance-identity-ca-file")),
    ("instance_identity_cred_dir", Nothing),
    ("instance_identity_private_key_path", Flag("instance-identity-key-file")),
    ("instance_identity_validity_period", Special),
    ("key_file", Flag("key-file")),
    ("layering_mode", Special),
    ("listen_addr", Flag("admin-listen")),
    ("listen_addr_securable", Flag("listen")),
    ("lock_retry_interval", Flag("presence-renewal")),
    ("lock_ttl", Flag("presence-ttl")),
    // Told as it happens.
    ("log_rate_limit_exceeded_report_interval", Nothing),
    ("max_cache_size_in_bytes", Flag("max-cache-size-in-bytes")),
    ("max_concurrent_downloads", Flag("max-concurrent-downloads")),
    ("max_log_lines_per_second", Flag("max-log-lines-per-second")),
    ("memory_mb", Special),
    ("metrics_work_pool_size", Nothing),
    ("optional_placement_tags", Each("optional-placement-tag")),
    ("path_to_ca_certs_for_downloads", Special),
    ("path_to_tls_ca_cert", Special),
    ("path_to_tls_cert", Flag("downloads-cert-file")),
    ("path_to_tls_key", Flag("downloads-key-file")),
    ("placement_tags", Each("placement-tag")),
    ("polling_interval", Flag("polling-interval")),
    ("post_setup_hook", Special),
    ("post_setup_user", Flag("post-setup-user")),
    ("preloaded_root_fs", Special),
    ("proxy_enable_http2", Special),
    ("proxy_healthcheck_interval", Nothing),
    // TLS before containers takes nothing of their memory.
    ("proxy_memory_allocation_mb", Nothing),
    ("read_work_pool_size", Flag("read-work-pool-size")),
    ("reserved_expiration_time", Flag("reserved-expiration-time")),
    ("server_cert_file", Nothing),
    ("server_key_file", Nothing),
    ("session_name", Special),
    ("set_cpu_weight", If("set-cpu-weight")),
    // Of garden's check; those of instances are made by the cell itself, in no root filesystem.
    ("sidecar_root_fs", Flag("garden-healthcheck-stack")),
    ("sidecar_root_fs_path", Flag("garden-healthcheck-rootfs")),
    ("supported_providers", Each("rootfs-provider")),
    // Downloads and uploads believe whatever certificate they are shown.
    ("skip_cert_verify", If("downloads-skip-cert-verify")),
    ("temp_dir", Flag("temp-dir")),
    ("trusted_system_certificates_path", Flag("trusted-system-certificates")),
    ("unhealthy_monitoring_interval", Flag("unhealthy-monitoring-interval")),
    ("use_node_port_for_pod_service", Nothing),
    ("use_schedulable_disk_size", Nothing),
    ("volman_driver_paths", Special),
    // Files of recipes are beside the records of containers.
    ("volume_mounted_files", Nothing),
    ("zone", Special),
];

/// In the order in which a deployment that gets several of them wrong is to hear of them.
pub fn check(settings: &Settings) -> Result<(), Refusal> {
    let says = |key| matches!(settings.text(key), Ok(Some(_)));
    if !says("cell_id") {
        return Err(Refusal::new("invalid-cell-id", UNUSABLE, "-cellID must be specified"));
    }
    shared::metron(settings)
        .map_err(|why| Refusal::new("failed-to-initialize-metron-client", UNUSABLE, why))?;
    let keys = Keys { cert: "cert_file", key: "key_file", ca: "ca_cert_file" };
    let files = identity(settings, &keys)
        .map_err(|why| Refusal::new("failed-to-configure-secure-BBS-client", FATAL, why))?;
    if !says("locket_address") {
        return Err(Refusal::new("invalid-locket-config", FATAL, "the file says no locket_address"));
    }
    is_for_loopback(&files.cert).map_err(|why| Refusal::new("tls-configuration-failed", FATAL, why))
}

pub fn specials(settings: &Settings) -> Flags {
    let parts = [
        url,
        address,
        place,
        log,
        garden,
        capacity,
        stacks,
        layering,
        credentials,
        proxy,
        downloads,
        hook,
        volumes,
        loggregator,
    ];
    let mut flags = Vec::new();
    for part in parts {
        flags.extend(part(settings)?);
    }
    Ok(flags)
}

/// Where the platform finds the cell: by its name, in the domain of cells.
fn url(settings: &Settings) -> Flags {
    let (Some(domain), Some(cell), Some(listen)) = (
        settings.text("advertise_domain")?,
        settings.text("cell_id")?,
        settings.text("listen_addr_securable")?,
    ) else {
        return Ok(vec![]);
    };
    let port = listen.rsplit_once(':').map(|(_, port)| port);
    let port = port.ok_or(("listen_addr_securable", format!("{listen} has no port")))?;
    let scheme = if settings.text("cert_file")?.is_some() { "https" } else { "http" };
    Ok(vec![format!("--rep-url={scheme}://{}.{domain}:{port}", cell.replace('_', "-"))])
}

/// Plain HTTP and the administrator's port: so it is written since clients knew nothing else of a cell.
fn address(settings: &Settings) -> Flags {
    let Some(listen) = settings.text("listen_addr")? else { return Ok(vec![]) };
    let port = listen.rsplit_once(':').map(|(_, port)| port);
    let port = port.ok_or(("listen_addr", format!("{listen} has no port")))?;
    Ok(own_ip().map(|ip| format!("--rep-address=http://{ip}:{port}")).into_iter().collect())
}

/// `None` on a machine that reaches no other.
fn own_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(ELSEWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// A deployment without zones says none.
fn place(settings: &Settings) -> Flags {
    Ok(vec![format!("--zone={}", settings.text("zone")?.unwrap_or_default())])
}

fn log(settings: &Settings) -> Flags {
    let name = settings.text("session_name")?.unwrap_or_else(|| "rep".into());
    Ok(vec![format!("--log-source={name}")])
}

fn garden(settings: &Settings) -> Flags {
    let network = settings.text("garden_network")?;
    if let Some(network) = network.filter(|network| !matches!(&**network, "tcp" | "unix")) {
        return Err(("garden_network", format!("{network} is neither tcp nor unix")));
    }
    Ok(settings.text("garden_addr")?.map(|address| format!("--garden={address}")).into_iter().collect())
}

/// `auto` is what garden has; of its disk the cache and whatever else is there may take their part.
fn capacity(settings: &Settings) -> Flags {
    let of = |key, flag| {
        let told = settings.text(key)?.filter(|told| told != "auto");
        Ok(told.map(|megabytes| format!("--{flag}={megabytes}")))
    };
    let mut flags: Vec<String> = of("memory_mb", "memory-mb")?.into_iter().collect();
    match of("disk_mb", "disk-mb")? {
        Some(told) => flags.push(told),
        None => {
            let cache_mb = settings.number("max_cache_size_in_bytes")? >> 20;
            let kept_mb = cache_mb + settings.number("auto_disk_capacity_overhead_mb")?;
            flags.push(format!("--disk-kept-mb={kept_mb}"));
        }
    }
    Ok(flags)
}

fn stacks(settings: &Settings) -> Flags {
    const KEY: &str = "preloaded_root_fs";
    let flag = |stack: &String| match stack.split_once(':') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(format!("--stack={name}={path}")),
        _ => Err((KEY, format!("{stack} is not of the form stack-name:path"))),
    };
    settings.list(KEY)?.iter().map(flag).collect()
}

fn layering(settings: &Settings) -> Flags {
    match settings.text("layering_mode")?.as_deref() {
        None | Some("single-layer") => Ok(vec![]),
        Some("two-layer") => Ok(vec!["--two-layer".into()]),
        Some(other) => Err(("layering_mode", format!("{other} is neither single-layer nor two-layer"))),
    }
}

/// Without an authority a validity says nothing.
fn credentials(settings: &Settings) -> Flags {
    const KEY: &str = "instance_identity_validity_period";
    let Some(validity) = settings.text(KEY)? else { return Ok(vec![]) };
    let hours =
        crate::duration::parse(&validity).map_err(|why| (KEY, format!("{validity}: {why}")))?.as_secs()
            / 3600;
    if hours == 0 {
        return Err((KEY, format!("{validity} is less than an hour")));
    }
    Ok(vec![format!("--instance-identity-validity-hours={hours}")])
}

fn proxy(settings: &Settings) -> Flags {
    if !settings.is("enable_container_proxy")? {
        return Ok(vec![]);
    }
    let mut flags = Vec::new();
    let authorities = settings.list("container_proxy_trusted_ca_certs")?;
    flags.extend(authorities.iter().map(|pem| format!("--container-proxy-trusted-ca={pem}")));
    if settings.is("container_proxy_require_and_verify_client_certs")? {
        flags.push("--container-proxy-require-client-certificates".into());
        let names = settings.list("container_proxy_verify_subject_alt_name")?;
        flags.extend(names.iter().map(|name| format!("--container-proxy-verify-subject-alt-name={name}")));
    }
    if !settings.is("proxy_enable_http2")? {
        flags.push("--container-proxy-without-http2".into());
    }
    if !settings.is("enable_unproxied_port_mappings")? {
        flags.push("--without-unproxied-port-mappings".into());
    }
    Ok(flags)
}

/// The wider of the two files of authorities.
fn downloads(settings: &Settings) -> Flags {
    let wide = settings.text("path_to_ca_certs_for_downloads")?;
    let authorities = match wide {
        Some(wide) => Some(wide),
        None => settings.text("path_to_tls_ca_cert")?,
    };
    Ok(authorities.map(|path| format!("--downloads-ca-cert-file={path}")).into_iter().collect())
}

/// One line, as a shell would split it.
fn hook(settings: &Settings) -> Flags {
    const KEY: &str = "post_setup_hook";
    let Some(line) = settings.text(KEY)? else { return Ok(vec![]) };
    let words = shlex::split(&line).ok_or((KEY, format!("{line} has an open quote")))?;
    Ok(words.iter().map(|word| format!("--post-setup-hook={word}")).collect())
}

/// As a search path is written.
fn volumes(settings: &Settings) -> Flags {
    let dirs = settings.text("volman_driver_paths")?.unwrap_or_default();
    let dirs = dirs.split(':').filter(|dir| !dir.is_empty());
    Ok(dirs.map(|dir| format!("--volume-driver-dir={dir}")).collect())
}

fn loggregator(settings: &Settings) -> Flags {
    let mut flags = shared::loggregator(settings)?;
    let excluded = settings.within("loggregator")?.list("loggregator_app_metric_exclusion_filter")?;
    if !flags.is_empty() {
        flags.extend(excluded.iter().map(|name| format!("--app-metric-exclusion={name}")));
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flags(json: serde_json::Value) -> Flags {
        let serde_json::Value::Object(map) = json else { panic!() };
        specials(&Settings(map))
    }

    #[test]
    fn keys_that_are_written_in_another_form() {
        let rows = [
            (
                json!({"advertise_domain": "cell.internal", "cell_id": "a_b", "listen_addr_securable": "0.0.0.0:1801",
                    "cert_file": "/c"}),
                vec!["--rep-url=https://a-b.cell.internal:1801"],
            ),
            (
                json!({"garden_network": "tcp", "garden_addr": "127.0.0.1:7777"}),
                vec!["--garden=127.0.0.1:7777"],
            ),
            (
                json!({"memory_mb": "auto", "disk_mb": "2048", "max_cache_size_in_bytes": 1 << 30}),
                vec!["--disk-mb=2048"],
            ),
            (
                json!({"disk_mb": "auto", "max_cache_size_in_bytes": 10u64 << 30, "auto_disk_capacity_overhead_mb": 5}),
                vec!["--disk-kept-mb=10245"],
            ),
            (json!({"disk_mb": "1", "zone": "z2"}), vec!["--zone=z2"]),
            (json!({"disk_mb": "1", "session_name": "cell"}), vec!["--log-source=cell"]),
            (json!({"preloaded_root_fs": ["cflinuxfs4:/r/a.tar"]}), vec!["--stack=cflinuxfs4=/r/a.tar"]),
            (json!({"layering_mode": "two-layer"}), vec!["--two-layer"]),
            (
                json!({"instance_identity_validity_period": "36h"}),
                vec!["--instance-identity-validity-hours=36"],
            ),
            (json!({"enable_container_proxy": false, "proxy_enable_http2": false}), vec![]),
            (
                json!({"enable_container_proxy": true, "container_proxy_trusted_ca_certs": ["PEM"],
                    "container_proxy_require_and_verify_client_certs": true, "proxy_enable_http2": true,
                    "container_proxy_verify_subject_alt_name": ["gorouter.internal"]}),
                vec![
                    "--container-proxy-trusted-ca=PEM",
                    "--container-proxy-require-client-certificates",
                    "--container-proxy-verify-subject-alt-name=gorouter.internal",
                    "--without-unproxied-port-mappings",
                ],
            ),
            (
                json!({"post_setup_hook": "sh -c 'rm -f /x'"}),
                vec!["--post-setup-hook=sh", "--post-setup-hook=-c", "--post-setup-hook=rm -f /x"],
            ),
            (
                json!({"volman_driver_paths": "/a:/b"}),
                vec!["--volume-driver-dir=/a", "--volume-driver-dir=/b"],
            ),
            (json!({"path_to_tls_ca_cert": "/a"}), vec!["--downloads-ca-cert-file=/a"]),
            (json!({"loggregator": {"loggregator_api_port": 3458}}), vec![]),
            (
                json!({"loggregator": {"loggregator_api_port": 3458, "loggregator_ca_path": "/ca",
                    "loggregator_job_origin": "rep", "loggregator_app_metric_exclusion_filter": ["cpu"]}}),
                vec![
                    "--loggregator=127.0.0.1:3458",
                    "--loggregator-ca-cert-file=/ca",
                    "--loggregator-origin=rep",
                    "--app-metric-exclusion=cpu",
                ],
            ),
        ];
        let always = ["--zone=", "--log-source=rep", "--disk-kept-mb=0"];
        for (json, expected) in rows {
            let mut said = flags(json.clone()).unwrap();
            said.retain(|flag| !always.contains(&&**flag) && flag != "--disk-mb=1");
            assert_eq!(said, expected, "{json}");
        }
        assert_eq!(flags(json!({})).unwrap(), always);
    }

    #[test]
    fn nonsense_is_named() {
        let rows = [
            (json!({"garden_network": "pipe"}), "garden_network"),
            (json!({"preloaded_root_fs": ["x"]}), "preloaded_root_fs"),
            (json!({"layering_mode": "x"}), "layering_mode"),
            (json!({"instance_identity_validity_period": "30m"}), "instance_identity_validity_period"),
            (json!({"post_setup_hook": "sh '"}), "post_setup_hook"),
        ];
        for (json, key) in rows {
            assert_eq!(flags(json).unwrap_err().0, key);
        }
    }
}
