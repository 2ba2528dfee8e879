//! What `builder` is asked to do: its flags, and the paths that follow from them.

use std::path::{Path, PathBuf};

use super::hash;
use crate::flags::{FlagSet, Parsed};

/// The directories and files of one staging, and the buildpacks to try.
#[derive(Clone, Debug)]
pub struct Settings {
    pub build_dir: PathBuf,
    pub buildpacks_dir: PathBuf,
    pub buildpacks_download_dir: PathBuf,
    pub build_artifacts_cache_dir: PathBuf,
    pub output_droplet: PathBuf,
    pub output_metadata: PathBuf,
    pub output_build_artifacts_cache: PathBuf,
    /// Keys of buildpacks: names, or URLs of archives and repositories. Never empty.
    pub buildpack_order: Vec<String>,
    pub skip_detect: bool,
    pub skip_cert_verify: bool,
}

pub fn flags() -> FlagSet {
    FlagSet::new("builder")
        .text(
            "buildArtifactsCacheDir",
            "/tmp/cache",
            "directory where previous cached build artifacts should be extracted",
        )
        .text("buildDir", "/tmp/app", "directory containing raw app bits")
        .text("buildpackOrder", "", "comma-separated list of buildpacks, to be tried in order")
        .text("buildpacksDir", "/tmp/buildpacks", "directory containing the buildpacks to try")
        .text("buildpacksDownloadDir", "/tmp/buildpackdownloads", "directory to download buildpacks to")
        .number("credhubConnectAttempts", 3, "accepted; credential references are refused")
        .duration(
            "credhubRetryDelay",
            std::time::Duration::from_secs(1),
            "accepted; credential references are refused",
        )
        .text(
            "outputBuildArtifactsCache",
            "/tmp/output-cache",
            "file where compressed contents of new cached build artifacts should be written",
        )
        .text("outputDroplet", "/tmp/droplet", "file where compressed droplet should be written")
        .text("outputMetadata", "/tmp/result.json", "file in which to write the app metadata")
        .switch("skipCertVerify", false, "skip SSL certificate verification")
        .switch("skipDetect", false, "skip buildpack detect")
}

impl Settings {
    /// Reads the flags; the error names every one that is empty and must not be.
    pub fn new(flags: &Parsed) -> Result<Settings, String> {
        let missing = flags.empty_texts();
        if !missing.is_empty() {
            let named: Vec<_> = missing.iter().map(|name| format!("missing flag: -{name}")).collect();
            return Err(named.join(", "));
        }
        let path = |name| PathBuf::from(flags.text(name));
        let order = flags.text("buildpackOrder").split(',').map(str::to_owned);
        Ok(Settings {
            build_dir: path("buildDir"),
            buildpacks_dir: path("buildpacksDir"),
            buildpacks_download_dir: path("buildpacksDownloadDir"),
            build_artifacts_cache_dir: path("buildArtifactsCacheDir"),
            output_droplet: path("outputDroplet"),
            output_metadata: path("outputMetadata"),
            output_build_artifacts_cache: path("outputBuildArtifactsCache"),
            buildpack_order: order.collect(),
            skip_detect: flags.switch("skipDetect"),
            skip_cert_verify: flags.switch("skipCertVerify"),
        })
    }

    /// The buildpacks that only supply dependencies: all but the last, and none when one is to be detected.
    pub fn supply_buildpacks(&self) -> &[String] {
        match self.buildpack_order.split_last() {
            Some((_, supply)) if self.skip_detect => supply,
            _ => &[],
        }
    }

    /// The name of the dependency directory of the `index`th buildpack, padded so that they sort in order.
    pub fn deps_index(&self, index: usize) -> String {
        let digits = (self.supply_buildpacks().len() + 1).to_string().len();
        format!("{index:0digits$}")
    }

    pub fn final_deps_index(&self) -> String {
        self.deps_index(self.supply_buildpacks().len())
    }

    /// Where a buildpack may lie, best first: under the hash of its key, the older hash, or its plain name.
    pub fn buildpack_places(&self, key: &str) -> Vec<PathBuf> {
        let base = match is_url(key) {
            true => &self.buildpacks_download_dir,
            false => &self.buildpacks_dir,
        };
        let mut places =
            vec![base.join(hash::directory_name(key)), base.join(hash::legacy_directory_name(key))];
        if !is_url(key) && !key.is_empty() && !key.contains("..") {
            places.push(base.join(key.trim_start_matches('/')));
        }
        places
    }

    /// Where a buildpack that is downloaded or unpacked goes.
    pub fn download_place(&self, key: &str) -> PathBuf {
        self.buildpacks_download_dir.join(hash::directory_name(key))
    }

    pub fn supply_cache(&self, key: &str) -> PathBuf {
        self.build_artifacts_cache_dir.join(hash::directory_name(key))
    }

    pub fn final_cache(&self) -> PathBuf {
        self.build_artifacts_cache_dir.join("final")
    }
}

/// Whether a buildpack's key is an address rather than a name.
pub fn is_url(key: &str) -> bool {
    let scheme = key.split_once(':').map_or("", |(scheme, _)| scheme);
    let first = scheme.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    first && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// The path of a URL, without query and fragment.
pub fn url_path(url: &str) -> &str {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    &url[..end]
}

/// Whether a file is a zip archive by its first bytes.
pub fn is_zip_file(file: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(file)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| magic == *b"PK\x03\x04")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn settings(line: &str) -> Settings {
        let words = line.split_whitespace().map(str::to_owned);
        Settings::new(&flags().parse(words).unwrap()).unwrap()
    }

    #[test]
    fn only_a_given_order_supplies() {
        let supply = |line| settings(line).supply_buildpacks().to_vec();
        assert_eq!(supply("-buildpackOrder=a,b,c -skipDetect"), ["a", "b"]);
        assert!(supply("-buildpackOrder=a,b,c").is_empty());
        assert!(supply("-buildpackOrder=a -skipDetect=true").is_empty());
    }

    #[test]
    fn dependency_directories_sort_in_order() {
        let one = settings("-buildpackOrder=a -skipDetect");
        assert_eq!(one.final_deps_index(), "0");
        let many = (0..11).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let many = settings(&format!("-buildpackOrder={many} -skipDetect"));
        assert_eq!((many.deps_index(3), many.final_deps_index()), ("03".into(), "10".into()));
    }

    #[test]
    fn a_missing_order_is_named() {
        let none = flags().parse(Vec::new()).unwrap();
        assert_eq!(Settings::new(&none).unwrap_err(), "missing flag: -buildpackOrder");
    }

    #[test]
    fn buildpacks_lie_under_their_hashes_or_their_name() {
        let settings = settings("-buildpackOrder=abc -buildpacksDir=/b -buildpacksDownloadDir=/d");
        let places = |key| {
            let places = settings.buildpack_places(key);
            places.into_iter().map(|place| place.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(places("abc"), ["/b/44bc2cf5ad770999", "/b/900150983cd24fb0d6963f7d28e17f72", "/b/abc"]);
        assert!(places("https://x/y.git").iter().all(|place| place.starts_with("/d/")));
        assert_eq!(places("../etc").len(), 2);
    }
}
