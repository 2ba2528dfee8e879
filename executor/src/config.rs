//! Everything an executor is told at its start, already parsed; what a deployment leaves out is defaulted here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diego_base::clock::{Clock, SystemClock};
use rootfs_ledger::Ledger;

use crate::{CellResources, Witness};

/// Of the directories that are the executor's own.
pub const DIRECTORY_MARK: &str = ".executor";

#[derive(Clone)]
pub struct Config {
    /// Named in the log lines that tell a container's story.
    pub cell_id: String,
    /// Written to each garden container as the property `executor:owner`; containers that bear it and are not in the
    /// executor's store are destroyed. Two executors on one garden need two names.
    pub owner_name: String,
    pub total: CellResources,
    /// The disk of `total` is what garden says it has, asked again now and then.
    pub disk_follows_garden: bool,
    /// Less this much, which is for others.
    pub disk_kept_mb: u64,
    /// The account of the disk that the cache and uploads share with others; `None`: their own.
    pub ledger: Option<Ledger>,
    pub work: WorkLimits,
    pub graceful_shutdown_interval: Duration,
    pub reserved_expiration: Duration,
    pub reap_interval: Duration,
    /// Between two checks of a healthy container that does not say itself.
    pub healthy_monitoring_interval: Duration,
    /// The longest pause between two checks of a container that is not healthy yet.
    pub unhealthy_monitoring_interval: Duration,
    /// Of one declarative check that does not say itself.
    pub check_timeout: Duration,
    /// Downloads and cached dependencies; survives restarts. This directory, and the next two, are the executor's own: what it
    /// does not know of there is removed.
    pub cache_dir: PathBuf,
    pub cache_bytes_max: u64,
    /// What is known of each container; from it a later executor takes them over.
    pub depot_dir: PathBuf,
    /// When told to stop, destroy all containers instead of leaving them to the next executor.
    pub destroy_containers_on_stop: bool,
    /// Uploads under way, and of each container its instance credentials and volume mounted files.
    pub work_dir: PathBuf,
    /// A directory of the host, mounted read-only where a container asks for it.
    pub trusted_system_certificates: Option<PathBuf>,
    /// A file or directory of the host, mounted read-only at `/etc/cf-assets/healthcheck`.
    pub healthcheck_assets: Option<PathBuf>,
    /// Directories of files that say where volume drivers are.
    pub volume_driver_dirs: Vec<PathBuf>,
    /// Between two looks for drivers.
    pub volume_discovery_interval: Duration,
    pub instance_identity: Option<InstanceIdentity>,
    /// How often it is asked whether a certificate is to be replaced.
    pub clock_look_period: Duration,
    /// Needs an instance identity to show.
    pub container_proxy: Option<ContainerProxy>,
    /// CPU shares of a container of weight 100.
    pub cpu_shares_max: u64,
    /// Weighs containers by their memory too.
    pub set_cpu_weight: bool,
    /// Inodes a container may use; 0: no limit.
    pub container_inode_limit: u64,
    /// Run as a program with arguments after every setup; empty: none.
    pub post_setup_hook: Vec<String>,
    pub post_setup_user: String,
    /// 0: no limit.
    pub log_lines_per_second_max: u32,
    /// For downloads and uploads: TLS, roots and client certificate are its maker's affair; its time-out is not used.
    pub http: reqwest::Client,
    pub clock: Arc<dyn Clock>,
    /// Is told what happens.
    pub witness: Arc<dyn Witness>,
}

impl Config {
    /// The defaults of a cell whose state lives under `state_dir`.
    pub fn new(cell_id: &str, total: CellResources, state_dir: PathBuf, http: reqwest::Client) -> Self {
        Config {
            cell_id: cell_id.to_string(),
            owner_name: "executor".to_string(),
            total,
            disk_follows_garden: false,
            disk_kept_mb: 0,
            ledger: None,
            work: WorkLimits::default(),
            graceful_shutdown_interval: Duration::from_secs(10),
            reserved_expiration: Duration::from_secs(60),
            reap_interval: Duration::from_secs(60),
            healthy_monitoring_interval: Duration::from_secs(30),
            unhealthy_monitoring_interval: Duration::from_secs(2),
            check_timeout: Duration::from_secs(1),
            cache_dir: state_dir.join("executor-cache"),
            cache_bytes_max: 10 * 1024 * 1024 * 1024,
            depot_dir: state_dir.join("executor-containers"),
            destroy_containers_on_stop: false,
            work_dir: state_dir.join("executor-work"),
            trusted_system_certificates: None,
            healthcheck_assets: None,
            volume_driver_dirs: Vec::new(),
            volume_discovery_interval: Duration::from_secs(30),
            instance_identity: None,
            clock_look_period: Duration::from_secs(60),
            container_proxy: None,
            cpu_shares_max: 1024,
            set_cpu_weight: false,
            container_inode_limit: 200_000,
            post_setup_hook: Vec::new(),
            post_setup_user: "root".to_string(),
            log_lines_per_second_max: 0,
            http,
            clock: Arc::new(SystemClock),
            witness: Arc::new(()),
        }
    }
}

/// How many of each kind of work may be under way at once.
#[derive(Debug, Clone)]
pub struct WorkLimits {
    pub creates: usize,
    pub deletes: usize,
    pub reads: usize,
    pub downloads: usize,
    pub uploads: usize,
    /// Of monitor actions, which are processes; checks that the cell makes itself are limited for each container.
    pub checks: usize,
}

impl Default for WorkLimits {
    fn default() -> Self {
        WorkLimits { creates: 32, deletes: 32, reads: 64, downloads: 5, uploads: 5, checks: 64 }
    }
}

/// The authority that signs each container's certificate.
#[derive(Debug, Clone)]
pub struct InstanceIdentity {
    pub ca_certificate_pem: String,
    pub ca_private_key_pem: String,
    pub validity: Duration,
}

impl InstanceIdentity {
    const VALIDITY: Duration = Duration::from_secs(24 * 3600);

    /// An authority for a cell that is told of none: its certificate and its key, in PEM.
    pub fn new_authority() -> Result<String, rcgen::Error> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "instance identity CA");
        Ok(params.self_signed(&key)?.pem() + &key.serialize_pem())
    }

    /// What [`InstanceIdentity::new_authority`] made.
    pub fn of(pem: &str) -> Option<InstanceIdentity> {
        let (certificate, key) = pem.split_at(pem.rfind("-----BEGIN PRIVATE KEY")?);
        certificate.contains("-----BEGIN CERTIFICATE").then(|| InstanceIdentity {
            ca_certificate_pem: certificate.to_owned(),
            ca_private_key_pem: key.to_owned(),
            validity: Self::VALIDITY,
        })
    }
}

/// TLS before the ports of containers that ask for it.
#[derive(Debug, Clone)]
pub struct ContainerProxy {
    /// Let in only who shows a certificate of one of the authorities below, with one of the names if there are any.
    pub require_client_certificates: bool,
    pub trusted_ca_certificates_pem: Vec<String>,
    pub verify_subject_alt_names: Vec<String>,
    /// Offer HTTP/2 before HTTP/1.1.
    pub http2: bool,
    /// Map the ports of the app itself to the host, too.
    pub unproxied_port_mappings: bool,
    /// Of one container at once.
    pub connections_max: usize,
}

impl Default for ContainerProxy {
    fn default() -> Self {
        ContainerProxy {
            require_client_certificates: false,
            trusted_ca_certificates_pem: Vec::new(),
            verify_subject_alt_names: Vec::new(),
            http2: true,
            unproxied_port_mappings: true,
            connections_max: 4096,
        }
    }
}
