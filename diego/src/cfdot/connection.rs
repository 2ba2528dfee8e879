//! Where the BBS and Locket are, and how to speak to them: the flags and variables that operators' scripts set.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bbs_client::{BbsClient, LocketClient};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
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
        value_name = "FILE",
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    ca_cert_file: Option<PathBuf>,
    /// Path to the TLS client certificate to use during mutual-auth TLS.
    #[arg(
        long = "clientCertFile",
        env = "CLIENT_CERT_FILE",
        global = true,
        hide_env_values = true,
        value_name = "FILE",
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    client_cert_file: Option<PathBuf>,
    /// Path to the TLS client private key file to use during mutual-auth TLS.
    #[arg(
        long = "clientKeyFile",
        env = "CLIENT_KEY_FILE",
        global = true,
        hide_env_values = true,
        value_name = "FILE",
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    client_key_file: Option<PathBuf>,
    /// Skip all verification of certificates of HTTPS servers; Locket's is always verified.
    #[arg(
        long = "skipCertVerify",
        env = "SKIP_CERT_VERIFY",
        global = true,
        hide_env_values = true,
        value_parser = boolean
    )]
    skip_cert_verify: bool,
    /// Timeout for BBS requests in seconds; 0 is none.
    #[arg(
        long,
        env = "CFDOT_TIMEOUT",
        global = true,
        hide_env_values = true,
        default_value = "0",
        value_parser = seconds,
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
        Ok(BbsClient::new(url, &self.client(url.starts_with("https://"))?)?.impatient())
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
        let over_tls = given(&self.client_cert_file).is_some() || given(&self.ca_cert_file).is_some();
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
        let ca = match (given(&self.ca_cert_file), self.skip_cert_verify) {
            (_, true) => None,
            (Some(ca), false) => Some(readable(ca, "CA cert")?),
            (None, false) => {
                return Err(Failure::Usage(
                    "--caCertFile must be specified if using HTTPS and --skipCertVerify is not set".into(),
                ));
            }
        };
        let (Some(cert), Some(key)) = (given(&self.client_cert_file), given(&self.client_key_file)) else {
            return Err(Failure::Usage(
                "--clientCertFile and --clientKeyFile must both be specified for TLS connections.".into(),
            ));
        };
        Ok(Files { key: readable(key, "key")?, cert: readable(cert, "cert")?, ca })
    }
}

/// A variable that is set to nothing is not set.
fn given(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|path| !path.as_os_str().is_empty())
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("it must be 1, t, T, TRUE, true, True, 0, f, F, FALSE, false or False".into()),
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| "it must be a number of seconds".into()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_set_to_nothing_is_not_set() {
        assert_eq!(boolean(""), Ok(false));
        assert_eq!(seconds(""), Ok(0));
        assert_eq!(given(&Some(PathBuf::new())), None);
    }

    #[test]
    fn a_truth_is_told_in_many_ways() {
        assert_eq!((boolean("T"), boolean("False")), (Ok(true), Ok(false)));
        assert!(boolean("maybe").is_err());
        assert!(seconds("soon").is_err());
    }
}
