//! Where volume drivers are: each has a file in a directory of drivers, named for the driver, as Docker's plugins have.
//!
//! ```text
//! NAME.json   {"Addr": "https://127.0.0.1:8589", "TLSConfig": {"CAFile": …}, "UniqueVolumeIds": true}
//! NAME.spec   its first line is the address
//! NAME.sock   the driver's socket itself
//! ```
//! Of drivers of one name the first is asked first: by directory, then in the order above.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

const EXTENSIONS: [&str; 3] = ["json", "spec", "sock"];
/// Of a file that says where a driver is.
const FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub name: String,
    pub address: Address,
    pub tls: Option<Tls>,
    /// It cannot share a volume: each container gets one by a name of its own.
    pub unique_volume_ids: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Without a slash at its end.
    Http(String),
    Unix(PathBuf),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Tls {
    #[serde(rename = "InsecureSkipVerify")]
    pub skip_verify: bool,
    #[serde(rename = "CAFile")]
    pub ca: PathBuf,
    #[serde(rename = "CertFile")]
    pub cert: PathBuf,
    #[serde(rename = "KeyFile")]
    pub key: PathBuf,
}

#[derive(Deserialize)]
struct Json {
    #[serde(rename = "Addr", default)]
    address: String,
    #[serde(rename = "TLSConfig")]
    tls: Option<Tls>,
    #[serde(rename = "UniqueVolumeIds", default)]
    unique_volume_ids: bool,
}

/// In the order in which they are to be asked; what cannot be read is logged and left out.
pub(crate) fn found(dirs: &[PathBuf]) -> Vec<Spec> {
    let mut specs = Vec::new();
    for dir in dirs {
        let mut names: Vec<PathBuf> = match std::fs::read_dir(dir) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            // Drivers may be installed later, and their directory with them.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "executor.volumes.cannot-read-drivers");
                continue;
            }
        };
        names.sort();
        for extension in EXTENSIONS {
            for path in names.iter().filter(|path| path.extension().is_some_and(|of| of == extension)) {
                match read(path) {
                    Ok(spec) => specs.push(spec),
                    Err(why) => {
                        tracing::error!(path = %path.display(), why, "executor.volumes.cannot-read-driver")
                    }
                }
            }
        }
    }
    specs
}

fn read(path: &Path) -> Result<Spec, String> {
    let name = path.file_stem().and_then(|name| name.to_str()).filter(|name| !name.is_empty());
    let name = name.ok_or("it has no name")?.to_owned();
    let plain = |address| Spec { name: name.clone(), address, tls: None, unique_volume_ids: false };
    if path.extension().is_some_and(|of| of == "sock") {
        return Ok(plain(Address::Unix(path.to_path_buf())));
    }
    let file = File::open(path).map_err(|error| error.to_string())?.take(FILE_BYTES_MAX);
    if path.extension().is_some_and(|of| of == "spec") {
        let mut line = String::new();
        BufReader::new(file).read_line(&mut line).map_err(|error| error.to_string())?;
        return Ok(plain(address(line.trim())?));
    }
    let json: Json = serde_json::from_reader(file).map_err(|error| error.to_string())?;
    Ok(Spec {
        address: address(json.address.trim())?,
        tls: json.tls,
        unique_volume_ids: json.unique_volume_ids,
        ..plain(Address::Unix(PathBuf::new()))
    })
}

/// What has no scheme is a socket if it is named like one, and `HOST:PORT` otherwise.
fn address(text: &str) -> Result<Address, String> {
    let http = |url: &str| Address::Http(url.trim_end_matches('/').to_owned());
    match text.split_once("://") {
        _ if text.is_empty() => Err("it names no address".to_owned()),
        Some(("http" | "https", _)) => Ok(http(text)),
        Some(("tcp", rest)) => Ok(http(&format!("http://{rest}"))),
        Some(("unix", path)) => Ok(Address::Unix(path.into())),
        Some((scheme, _)) => Err(format!("{scheme} is no scheme of a driver's address")),
        None if text.ends_with(".sock") => Ok(Address::Unix(text.into())),
        None => Ok(http(&format!("http://{text}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn http(url: &str) -> Result<Address, String> {
        Ok(Address::Http(url.into()))
    }

    #[test]
    fn addresses_in_every_form_that_drivers_write() {
        let rows = [
            ("http://127.0.0.1:8589", http("http://127.0.0.1:8589")),
            ("https://nfs:8589/", http("https://nfs:8589")),
            ("tcp://127.0.0.1:8589", http("http://127.0.0.1:8589")),
            ("127.0.0.1:8589", http("http://127.0.0.1:8589")),
            ("unix:///run/nfs.sock", Ok(Address::Unix("/run/nfs.sock".into()))),
            ("/run/nfs.sock", Ok(Address::Unix("/run/nfs.sock".into()))),
            ("", Err("it names no address".into())),
            ("ftp://nfs", Err("ftp is no scheme of a driver's address".into())),
        ];
        for (text, expected) in rows {
            assert_eq!(address(text), expected, "{text}");
        }
    }

    #[test]
    fn drivers_are_found_by_their_files_in_order() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |path: PathBuf, text: &str| fs::write(path, text).unwrap();
        let json = r#"{"Name":"x","Addr":"https://a:1","TLSConfig":{"CAFile":"/ca","CertFile":"/c","KeyFile":"/k"},
            "UniqueVolumeIds":true}"#;
        write(one.path().join("nfs.json"), json);
        write(one.path().join("efs.spec"), "tcp://b:2\nmore\n");
        write(one.path().join("local.sock"), "");
        write(one.path().join("broken.json"), "{");
        write(one.path().join("empty.spec"), "");
        write(one.path().join("README.md"), "drivers");
        write(two.path().join("nfs.spec"), "c:3");
        let dirs = [one.path().to_path_buf(), "/nowhere".into(), two.path().to_path_buf()];
        let specs = found(&dirs);
        let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["nfs", "efs", "local", "nfs"]);
        assert!(specs[0].unique_volume_ids && !specs[3].unique_volume_ids);
        assert_eq!(specs[0].tls.as_ref().unwrap().ca, Path::new("/ca"));
        assert_eq!(specs[1].address, http("http://b:2").unwrap());
        assert_eq!(specs[2].address, Address::Unix(one.path().join("local.sock")));
    }
}
