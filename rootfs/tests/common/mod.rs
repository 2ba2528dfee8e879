//! What the tests of images share: tars, images and layouts built by hand, and a user namespace to look from.
#![allow(dead_code)]

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rootfs::digest::Digest;
use serde_json::{Value, json};

/// A tar written entry by entry, also such as no tool would write.
#[derive(Default)]
pub struct Tar {
    builder: Option<tar::Builder<Vec<u8>>>,
}

pub struct Entry<'a> {
    pub path: &'a str,
    pub kind: tar::EntryType,
    pub content: &'a [u8],
    pub link: &'a str,
    pub mode: u32,
    pub uid: u64,
}

impl<'a> Entry<'a> {
    pub fn file(path: &'a str, content: &'a [u8]) -> Entry<'a> {
        Entry { path, kind: tar::EntryType::Regular, content, link: "", mode: 0o644, uid: 0 }
    }

    pub fn directory(path: &'a str, mode: u32) -> Entry<'a> {
        Entry { path, kind: tar::EntryType::Directory, content: b"", link: "", mode, uid: 0 }
    }

    pub fn link(path: &'a str, kind: tar::EntryType, link: &'a str) -> Entry<'a> {
        Entry { path, kind, content: b"", link, mode: 0o777, uid: 0 }
    }
}

impl Tar {
    pub fn add(mut self, entry: Entry<'_>) -> Tar {
        let mut header = tar::Header::new_gnu();
        // Written as they are: the crate's own setters refuse what we want to test.
        let name = &mut header.as_old_mut().name;
        name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.uid);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        let builder = self.builder.get_or_insert_with(|| tar::Builder::new(Vec::new()));
        builder.append(&header, entry.content).unwrap();
        self
    }

    pub fn pax(mut self, pairs: &[(&str, &[u8])]) -> Tar {
        let builder = self.builder.get_or_insert_with(|| tar::Builder::new(Vec::new()));
        builder.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    pub fn file(self, path: &str, content: &str) -> Tar {
        self.add(Entry::file(path, content.as_bytes()))
    }

    pub fn directory(self, path: &str, mode: u32) -> Tar {
        self.add(Entry::directory(path, mode))
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.add(Entry::link(path, tar::EntryType::Symlink, target))
    }

    pub fn hard_link(self, path: &str, target: &str) -> Tar {
        self.add(Entry::link(path, tar::EntryType::Link, target))
    }

    pub fn bytes(self) -> Vec<u8> {
        self.builder.unwrap_or_else(|| tar::Builder::new(Vec::new())).into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image in memory: its blobs by digest, and the manifest's own.
pub struct BuiltImage {
    pub manifest: Vec<u8>,
    pub digest: Digest,
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image of the uncompressed `layers`, compressed by turns with gzip, zstd and not at all.
pub fn image(layers: &[Vec<u8>], config: Value) -> BuiltImage {
    let mut blobs = Vec::new();
    let mut descriptors = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let (suffix, blob) = match number % 3 {
            0 => ("+gzip", gzip(layer)),
            1 => ("+zstd", zstd::encode_all(&layer[..], 1).unwrap()),
            _ => ("", layer.clone()),
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        descriptors.push(json!({"mediaType": media_type, "digest": Digest::of(&blob), "size": blob.len()}));
        blobs.push((Digest::of(&blob), blob));
    }
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": Digest::of(&config), "size": config.len()}, "layers": descriptors});
    blobs.push((Digest::of(&config), config));
    let manifest = serde_json::to_vec(&manifest).unwrap();
    BuiltImage { digest: Digest::of(&manifest), manifest, blobs }
}

impl BuiltImage {
    /// Writes an OCI layout with this one image.
    pub fn write_layout(&self, path: &Path, tag: &str) {
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, blob) in self.blobs.iter().map(|(d, b)| (d, b)).chain([(&self.digest, &self.manifest)]) {
            std::fs::write(blobs.join(digest.hex()), blob).unwrap();
        }
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, "digest": self.digest,
            "size": self.manifest.len(), "annotations": {"org.opencontainers.image.ref.name": tag}}]});
        std::fs::write(path.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A process in a user namespace whose ids start at `base`, and where it looks around for us.
pub struct Namespace {
    child: Child,
    pub user: OwnedFd,
}

impl Namespace {
    pub fn new(base: u32) -> Namespace {
        let mut child = Command::new("unshare")
            .args(["--user", "--mount", "--propagation", "unchanged", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let proc = format!("/proc/{}", child.id());
        let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
        for _ in 0..2000 {
            if std::fs::read_link(format!("{proc}/ns/user")).is_ok_and(|theirs| theirs != ours) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for map in ["uid_map", "gid_map"] {
            if let Err(error) = std::fs::write(format!("{proc}/{map}"), format!("0 {base} 65536")) {
                let _ = child.kill();
                panic!("cannot map ids: {error}");
            }
        }
        let user = std::fs::File::open(format!("{proc}/ns/user")).unwrap().into();
        Namespace { child, user }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A mount put on a directory for the time of a test.
pub struct Mounted<'a>(pub &'a Path);

impl<'a> Mounted<'a> {
    pub fn on(path: &'a Path, mount: &rootfs::RootMount) -> Mounted<'a> {
        std::fs::create_dir_all(path).unwrap();
        garden_sys::mount::move_mount(std::os::fd::AsFd::as_fd(&mount.fd), path).unwrap();
        Mounted(path)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = garden_sys::mount::unmount(self.0);
    }
}

/// What a fake registry does with the next requests for blobs, or for manifests.
#[derive(Debug, Clone)]
pub enum Mood {
    Good,
    Refuse(u16, Option<&'static str>),
    /// Sends so many bytes and then hangs up.
    Break(usize),
    /// Sends so many bytes and then nothing.
    Stall(usize),
    /// Sends something else of the same length.
    Lie,
    /// Sends what it has under the wrong length.
    Longer,
    /// A byte now and then, for ever.
    Trickle,
    /// Bytes without a length and without an end.
    Endless,
    /// 100 MB.
    Vast,
    /// To itself, for ever.
    Redirect,
    /// All of it, whatever part was asked for.
    Unranged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    None,
    Basic,
    Token,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub manifests: u32,
    pub blobs: u32,
    pub ranges: Vec<String>,
    /// Of all requests, the tokens' too.
    pub queries: Vec<String>,
}

pub struct FakeRegistry {
    pub address: std::net::SocketAddr,
    shared: std::sync::Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    address: std::net::SocketAddr,
    login: Login,
    blobs: std::sync::Mutex<std::collections::HashMap<String, Vec<u8>>>,
    /// By tag and by digest.
    manifests: std::sync::Mutex<std::collections::HashMap<String, (String, Vec<u8>)>>,
    blob_moods: std::sync::Mutex<std::collections::VecDeque<Mood>>,
    manifest_moods: std::sync::Mutex<std::collections::VecDeque<Mood>>,
    seen: std::sync::Mutex<Seen>,
}

pub const USER: (&str, &str) = ("user", "secret");

impl FakeRegistry {
    pub async fn start(login: Login) -> FakeRegistry {
        FakeRegistry::start_with(login, None).await
    }

    pub async fn start_with(login: Login, tls: Option<diego_base::tls::ServerTls>) -> FakeRegistry {
        let (listen, address) = diego_base::serve::Listen::loopback().unwrap();
        let listener = diego_base::serve::Listener::bind(listen).await.unwrap();
        let shared = std::sync::Arc::new(Shared {
            address,
            login,
            blobs: Default::default(),
            manifests: Default::default(),
            blob_moods: Default::default(),
            manifest_moods: Default::default(),
            seen: Default::default(),
        });
        let router = axum::Router::new().fallback(fake).with_state(shared.clone());
        let server = tokio::spawn(diego_base::serve::serve(listener, router, tls, Default::default()));
        FakeRegistry { address, shared, server }
    }

    pub fn add(&self, tag: &str, image: &BuiltImage) {
        self.add_manifest(tag, OCI_MANIFEST, &image.manifest);
        let mut blobs = self.shared.blobs.lock().unwrap();
        blobs.extend(image.blobs.iter().map(|(digest, blob)| (digest.to_string(), blob.clone())));
    }

    pub fn add_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) {
        let mut manifests = self.shared.manifests.lock().unwrap();
        for key in [tag.to_string(), Digest::of(bytes).to_string()] {
            manifests.insert(key, (media_type.into(), bytes.into()));
        }
    }

    pub fn next_blobs(&self, moods: impl IntoIterator<Item = Mood>) {
        self.shared.blob_moods.lock().unwrap().extend(moods);
    }

    pub fn next_manifests(&self, moods: impl IntoIterator<Item = Mood>) {
        self.shared.manifest_moods.lock().unwrap().extend(moods);
    }

    pub fn take_manifest_mood(&self) -> Option<Mood> {
        self.shared.manifest_moods.lock().unwrap().pop_front()
    }

    pub fn take_blob_mood(&self) -> Option<Mood> {
        self.shared.blob_moods.lock().unwrap().pop_front()
    }

    pub fn seen(&self) -> Seen {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }

    pub async fn stop(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

type Answer = axum::http::Response<axum::body::Body>;

fn plain(status: u16, headers: &[(&str, &str)], body: impl Into<axum::body::Body>) -> Answer {
    let mut builder = axum::http::Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).unwrap()
}

async fn fake(
    axum::extract::State(shared): axum::extract::State<std::sync::Arc<Shared>>,
    request: axum::extract::Request,
) -> Answer {
    use base64::Engine as _;
    let path = request.uri().path().to_string();
    let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap().to_string());
    let authorization = header("authorization").unwrap_or_default();
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", USER.0, USER.1));
    let basic = format!("Basic {basic}");
    shared.seen.lock().unwrap().queries.extend(request.uri().query().map(String::from));
    if path == "/token" {
        // Anonymous tokens are given, but let nobody in.
        let token = if authorization == basic { "good" } else { "anonymous" };
        return plain(200, &[], format!(r#"{{"token": "{token}", "expires_in": 60}}"#));
    }
    let let_in = match shared.login {
        Login::None => true,
        Login::Basic => authorization == basic,
        Login::Token => authorization == "Bearer good",
    };
    if !let_in {
        let realm = match shared.login {
            Login::Token => format!("Bearer realm=\"http://{}/token\",service=\"fake\"", shared.address),
            _ => "Basic realm=\"fake\"".to_string(),
        };
        return plain(401, &[("www-authenticate", &realm)], "");
    }
    let head = request.method() == axum::http::Method::HEAD;
    if let Some((_, reference)) = path.rsplit_once("/manifests/") {
        shared.seen.lock().unwrap().manifests += 1;
        let found = shared.manifests.lock().unwrap().get(reference).cloned();
        let Some((media_type, bytes)) = found else { return plain(404, &[], "{}") };
        let mood = shared.manifest_moods.lock().unwrap().pop_front();
        let digest = Digest::of(&bytes).to_string();
        return moody(
            mood,
            &[("content-type", &media_type), ("docker-content-digest", &digest)],
            bytes,
            head,
        );
    }
    let Some((_, digest)) = path.rsplit_once("/blobs/") else { return plain(404, &[], "{}") };
    let Some(blob) = shared.blobs.lock().unwrap().get(digest).cloned() else { return plain(404, &[], "{}") };
    let mood = if head { None } else { shared.blob_moods.lock().unwrap().pop_front() };
    let mood = mood.filter(|mood| !matches!(mood, Mood::Good));
    let mut seen = shared.seen.lock().unwrap();
    seen.blobs += u32::from(!head);
    if let Some(range) = header("range") {
        seen.ranges.push(range.clone());
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(blob.len(), |to: usize| to + 1).min(blob.len());
        let content_range = format!("bytes {from}-{}/{}", to - 1, blob.len());
        if mood.is_none() {
            return plain(206, &[("content-range", &content_range)], blob[from..to].to_vec());
        }
    }
    moody(mood, &[], blob, head)
}

fn moody(mood: Option<Mood>, headers: &[(&str, &str)], mut bytes: Vec<u8>, head: bool) -> Answer {
    let length = bytes.len().to_string();
    let with_length: Vec<(&str, &str)> =
        headers.iter().copied().chain([("content-length", length.as_str())]).collect();
    let stream = |first: Vec<u8>, stalls: bool| {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from(first))]);
        let last = futures_util::stream::once(async move {
            if stalls {
                std::future::pending::<()>().await;
            }
            // Time for what was sent to leave; a server that fails at once takes it along.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Err(std::io::Error::other("cut"))
        });
        axum::body::Body::from_stream(futures_util::StreamExt::chain(first, last))
    };
    match mood {
        None | Some(Mood::Good | Mood::Unranged) if head => plain(200, &with_length, ""),
        None | Some(Mood::Good | Mood::Unranged) => plain(200, &with_length, bytes),
        Some(Mood::Refuse(status, after)) => {
            let after: Vec<(&str, &str)> = after.map(|after| ("retry-after", after)).into_iter().collect();
            plain(status, &after, "")
        }
        Some(Mood::Break(at)) => plain(200, &with_length, stream(bytes[..at].to_vec(), false)),
        Some(Mood::Stall(at)) => plain(200, &with_length, stream(bytes[..at].to_vec(), true)),
        Some(Mood::Lie) => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
            plain(200, headers, bytes)
        }
        Some(Mood::Trickle) => {
            let slowly = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                Some((Ok::<_, std::io::Error>(bytes::Bytes::from_static(b" ")), ()))
            });
            plain(
                200,
                &with_length,
                axum::body::Body::from_stream(futures_util::StreamExt::take(slowly, bytes.len())),
            )
        }
        Some(Mood::Endless) => {
            let piece = bytes::Bytes::from(vec![b' '; 64 * 1024]);
            let endless = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
            plain(200, headers, axum::body::Body::from_stream(endless))
        }
        Some(Mood::Vast) => {
            let headers: Vec<_> = headers.iter().copied().chain([("content-length", "100000000")]).collect();
            let pieces = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 100_000]));
            let vast = futures_util::StreamExt::take(pieces, 1000);
            plain(200, &headers, axum::body::Body::from_stream(vast))
        }
        Some(Mood::Redirect) => plain(307, &[("location", "?again")], ""),
        Some(Mood::Longer) => {
            bytes.push(b'x');
            plain(200, headers, bytes)
        }
    }
}
