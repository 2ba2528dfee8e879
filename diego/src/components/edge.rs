//! Flags of a rep: what its containers show, whom they let in, and what they trust.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use executor::{ContainerProxy, InstanceIdentity};

const HOUR: Duration = Duration::from_secs(3600);

/// Without an authority containers have no identity, and are not served TLS.
#[derive(Args)]
#[command(next_help_heading = "Identity and TLS of containers")]
pub struct Edge {
    /// The authority, in PEM, that signs each container's certificate.
    #[arg(long, requires = "instance_identity_key_file")]
    instance_identity_ca_file: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, requires = "instance_identity_ca_file")]
    instance_identity_key_file: Option<PathBuf>,
    /// Half an hour before the end of this time a certificate is replaced.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    instance_identity_validity_hours: u32,
    /// Speak TLS for the ports of LRPs, on further ports.
    #[arg(long, requires = "instance_identity_ca_file")]
    container_proxy: bool,
    /// Let in only clients that show a certificate of an authority of --container-proxy-trusted-ca-file.
    #[arg(long, requires = "container_proxy", requires = "trusted")]
    container_proxy_require_client_certificates: bool,
    /// Authorities, in PEM. May be given many times.
    #[arg(long = "container-proxy-trusted-ca-file", requires = "container_proxy", group = "trusted")]
    container_proxy_trusted_ca_files: Vec<PathBuf>,
    /// Authorities, being PEM themselves. May be given many times.
    #[arg(
        long = "container-proxy-trusted-ca",
        value_name = "PEM",
        requires = "container_proxy",
        group = "trusted",
        hide = true
    )]
    container_proxy_trusted_cas: Vec<String>,
    /// A name that clients' certificates must be for; of several, one. May be given many times.
    #[arg(
        long = "container-proxy-verify-subject-alt-name",
        requires = "container_proxy_require_client_certificates"
    )]
    container_proxy_verify_subject_alt_names: Vec<String>,
    /// Offer HTTP/1.1 only.
    #[arg(long, requires = "container_proxy")]
    container_proxy_without_http2: bool,
    /// Map only the ports that speak TLS to the host.
    #[arg(long, requires = "container_proxy")]
    without_unproxied_port_mappings: bool,
    /// A directory of certificates, shown to containers that ask for them.
    #[arg(long)]
    trusted_system_certificates: Option<PathBuf>,
}

impl Edge {
    pub fn apply(&self, config: &mut executor::Config) -> Result<()> {
        config.trusted_system_certificates = self.trusted_system_certificates.clone();
        if let Some((ca, key)) =
            self.instance_identity_ca_file.as_ref().zip(self.instance_identity_key_file.as_ref())
        {
            config.instance_identity = Some(InstanceIdentity {
                ca_certificate_pem: read(ca)?,
                ca_private_key_pem: read(key)?,
                validity: HOUR * self.instance_identity_validity_hours,
            });
        }
        if self.container_proxy {
            config.container_proxy = Some(self.container_proxy()?);
        }
        Ok(())
    }

    fn container_proxy(&self) -> Result<ContainerProxy> {
        let in_files = self.container_proxy_trusted_ca_files.iter().map(|path| read(path));
        let authorities = in_files.chain(self.container_proxy_trusted_cas.iter().cloned().map(Ok));
        Ok(ContainerProxy {
            require_client_certificates: self.container_proxy_require_client_certificates,
            trusted_ca_certificates_pem: authorities.collect::<Result<_>>()?,
            verify_subject_alt_names: self.container_proxy_verify_subject_alt_names.clone(),
            http2: !self.container_proxy_without_http2,
            unproxied_port_mappings: !self.without_unproxied_port_mappings,
            ..ContainerProxy::default()
        })
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
