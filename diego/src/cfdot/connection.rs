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

const BOOLEANS: &str = "1, t, T, TRUE, true, True, 0, f, F, FALSE, false, False";

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
    /// [env: SKIP_CERT_VERIFY]
    #[arg(
        long = "skipCertVerify",
        global = true,
        value_parser = boolean,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    skip_cert_verify: Option<bool>,
    /// Timeout for BBS requests in seconds; 0 is none. [env: CFDOT_TIMEOUT]
    #[arg(
        long,
        global = true,
        default_value = "0",
        hide_default_value = true,
        allow_hyphen_values = true,
        value_name = "SECONDS"
    )]
    timeout: i64,
}

impl Connection {
    pub fn bbs(&self) -> Result<BbsClient, Failure> {
        let Some(url) = self.bbs_url.as_deref().filter(|url| !url.is_empty()) else {
            return Err(missing("BBS URL", "bbsURL", "BBS_URL"));
        };
        is_url(url)?;
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
        if over_tls && self.skips_verification()? {
            return Err(Failure::Usage(
                "Locket's certificate is always verified; leave --skipCertVerify out".into(),
            ));
        }
        Ok(LocketClient::new(address, &self.client(over_tls)?)?)
    }

    fn client(&self, over_tls: bool) -> Result<ClientConfig, Failure> {
        let seconds = if self.timeout == 0 { seconds(&variable("CFDOT_TIMEOUT"))? } else { self.timeout };
        let timeout = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let tls = if over_tls { Some(self.files()?) } else { None };
        let skip_cert_verify = over_tls && self.skips_verification()?;
        Ok(ClientConfig { tls, timeout, skip_cert_verify, ..ClientConfig::default() })
    }

    /// The flag goes before the variable.
    fn skips_verification(&self) -> Result<bool, Failure> {
        let told = variable("SKIP_CERT_VERIFY");
        match self.skip_cert_verify {
            Some(skips) => Ok(skips),
            None if told.is_empty() => Ok(false),
            None => boolean(&told).map_err(|_| {
                Failure::Usage(format!(
                    "The value '{told}' is not a valid value for SKIP_CERT_VERIFY. Please specify one of the following \
                     valid boolean values: {BOOLEANS}"
                ))
            }),
        }
    }

    fn files(&self) -> Result<Files, Failure> {
        let ca = match (given(&self.ca_cert_file), self.skips_verification()?) {
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
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("it must be one of {BOOLEANS}")),
    }
}

fn seconds(text: &str) -> Result<i64, Failure> {
    let bad = |_| Failure::Unknown(format!("CFDOT_TIMEOUT: {text:?} is no number of seconds"));
    if text.is_empty() { Ok(0) } else { text.parse().map_err(bad) }
}

/// One that is not set is empty.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn is_url(url: &str) -> Result<(), Failure> {
    let which = match reqwest::Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "https" | "http") => return Ok(()),
        Ok(_) => format!("The URL '{url}' does not have an 'https' scheme."),
        Err(_) => format!("The value '{url}' is not a valid BBS URL."),
    };
    let specify = "Please specify one with the '--bbsURL' flag or the 'BBS_URL' environment variable.";
    Err(Failure::Usage(format!("{which} {specify}")))
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
        assert_eq!(seconds("").unwrap(), 0);
        assert_eq!(given(&Some(PathBuf::new())), None);
    }

    #[test]
    fn a_truth_is_told_in_many_ways() {
        assert_eq!((boolean("T"), boolean("False")), (Ok(true), Ok(false)));
        assert!(boolean("maybe").is_err());
        assert!(seconds("soon").is_err());
    }
}
