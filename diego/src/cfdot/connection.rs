//! Where the BBS and Locket are, and how to speak to them: the flags and variables that operators' scripts set.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bbs_client::{BbsClient, LocketClient};
use clap::Args;
use clap::builder::BoolishValueParser;
use diego_base::http::ClientConfig;
use diego_base::tls::Files;

use super::Failure;

#[derive(Args)]
pub struct Connection {
    /// URL of BBS server to target.
    #[arg(long = "bbsURL", env = "BBS_URL", global = true, hide_env_values = true, value_name = "URL")]
    bbs_url: Option<String>,
    /// Hostname:Port of Locket server to target.
    #[arg(
        long = "locketAPILocation",
        env = "LOCKET_API_LOCATION",
        global = true,
        hide_env_values = true,
        value_name = "HOST:PORT"
    )]
    locket_api_location: Option<String>,
    /// Path to the Certificate Authority (CA) file to use when verifying TLS keypairs.
    #[arg(
        long = "caCertFile",
        env = "CA_CERT_FILE",
        global = true,
        hide_env_values = true,
        value_name = "FILE"
    )]
    ca_cert_file: Option<PathBuf>,
    /// Path to the TLS client certificate to use during mutual-auth TLS.
    #[arg(
        long = "clientCertFile",
        env = "CLIENT_CERT_FILE",
        global = true,
        hide_env_values = true,
        value_name = "FILE"
    )]
    client_cert_file: Option<PathBuf>,
    /// Path to the TLS client private key file to use during mutual-auth TLS.
    #[arg(
        long = "clientKeyFile",
        env = "CLIENT_KEY_FILE",
        global = true,
        hide_env_values = true,
        value_name = "FILE"
    )]
    client_key_file: Option<PathBuf>,
    /// Skip all verification of certificates of HTTPS servers; Locket's is always verified.
    #[arg(
        long = "skipCertVerify",
        env = "SKIP_CERT_VERIFY",
        global = true,
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    skip_cert_verify: bool,
    /// Timeout for BBS requests in seconds; 0 is none.
    #[arg(
        long,
        env = "CFDOT_TIMEOUT",
        global = true,
        hide_env_values = true,
        default_value_t = 0,
        value_name = "SECONDS"
    )]
    timeout: u64,
}

impl Connection {
    pub fn bbs(&self) -> Result<BbsClient, Failure> {
        let Some(url) = self.bbs_url.as_deref().filter(|url| !url.is_empty()) else {
            return Err(missing("BBS URL", "bbsURL", "BBS_URL"));
        };
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(Failure::Usage(format!(
                "The value '{url}' is not a valid BBS URL. Please specify one with the '--bbsURL' flag or the \
                 'BBS_URL' environment variable."
            )));
        }
        Ok(BbsClient::new(url, &self.client(url.starts_with("https://"))?)?)
    }

    /// For requests to cells, which speak TLS wherever the BBS does.
    pub fn cells(&self) -> Result<reqwest::Client, Failure> {
        let over_tls = self.bbs_url.as_deref().is_some_and(|url| url.starts_with("https://"));
        diego_base::http::client(&self.client(over_tls)?).map_err(Failure::other)
    }

    /// Over TLS where a certificate is given.
    pub fn locket(&self) -> Result<LocketClient, Failure> {
        let Some(address) = self.locket_api_location.as_deref().filter(|address| !address.is_empty()) else {
            return Err(missing("Locket API Location", "locketAPILocation", "LOCKET_API_LOCATION"));
        };
        let over_tls = self.client_cert_file.is_some() || self.ca_cert_file.is_some();
        if over_tls && self.skip_cert_verify {
            return Err(Failure::Usage(
                "Locket's certificate is always verified; leave --skipCertVerify out".into(),
            ));
        }
        Ok(LocketClient::new(address, &self.client(over_tls)?)?)
    }

    fn client(&self, over_tls: bool) -> Result<ClientConfig, Failure> {
        let timeout = (self.timeout > 0).then(|| Duration::from_secs(self.timeout));
        let tls = if over_tls { Some(self.files()?) } else { None };
        let skip_cert_verify = over_tls && self.skip_cert_verify;
        Ok(ClientConfig { tls, timeout, skip_cert_verify, ..ClientConfig::default() })
    }

    fn files(&self) -> Result<Files, Failure> {
        let ca = match (&self.ca_cert_file, self.skip_cert_verify) {
            (_, true) => None,
            (Some(ca), false) => Some(readable(ca, "CA cert")?),
            (None, false) => {
                return Err(Failure::Usage(
                    "--caCertFile must be specified if using HTTPS and --skipCertVerify is not set".into(),
                ));
            }
        };
        let (Some(cert), Some(key)) = (&self.client_cert_file, &self.client_key_file) else {
            return Err(Failure::Usage(
                "--clientCertFile and --clientKeyFile must both be specified for TLS connections.".into(),
            ));
        };
        Ok(Files { key: readable(key, "key")?, cert: readable(cert, "cert")?, ca })
    }
}

fn missing(what: &str, flag: &str, variable: &str) -> Failure {
    Failure::Usage(format!(
        "{what} not set. Please specify one with the '--{flag}' flag or the '{variable}' environment variable."
    ))
}

fn readable(path: &Path, what: &str) -> Result<PathBuf, Failure> {
    match File::open(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(error) => Err(Failure::Usage(format!(
            "{what} file '{}' doesn't exist or is not readable: {error}",
            path.display()
        ))),
    }
}
