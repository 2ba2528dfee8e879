//! Pulling: from an image's name to its layers in the store, whatever kind of place it comes from.
//!
//! Everything is done once for all who want it at the same time: an image by its name and the credentials for it, a
//! layer by its digest. A layer is hashed and unpacked while it is downloaded, and exists only once both its digests
//! were right.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use rootfs_ledger::Claim;
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::flight::Reports;
use crate::image::{ImageRef, Preloaded, RemoteLayer, Selector};
use crate::layers::{LayerRecord, Pins, Scratch};
use crate::layout::Layout;
use crate::manifest::{
    CONFIG_BYTES_MAX, Configuration, Descriptor, Document, ImageConfig, Manifest, Platform,
};
use crate::manifest::{MANIFEST_BYTES_MAX, OCI_MANIFEST};
use crate::registry::{Access, Credentials};
use crate::stack::Lower;
use crate::store::{Error, Image, Inner, disk};
use crate::unpack::{self, Expected, Limits, Room};

/// Pieces of a download that wait for the unpacker; each has some hundred KiB at most.
const PIECES_WAITING_MAX: usize = 8;
/// A layer's progress is told in steps of this many bytes.
const REPORT_BYTES: u64 = 512 * 1024;

/// How far a pull is. Bytes are those of the blobs, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// What the image consists of. `digest` is the manifest's.
    Resolved { digest: Digest, layers: Vec<(Digest, u64)> },
    /// One layer's blob; done when `done` equals `total`.
    Layer { digest: Digest, done: u64, total: u64 },
}

pub(crate) type LayerFlight = Result<LayerRecord, Arc<Error>>;
type Reporting = Reports<Progress>;

pub(crate) async fn pull(
    inner: &Arc<Inner>,
    image: &ImageRef,
    credentials: Option<Credentials>,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Image, Error> {
    let key = (image.clone(), credentials.clone());
    let begin = |reports| {
        let (inner, image) = (inner.clone(), image.clone());
        async move { pull_once(&inner, &image, credentials, &reports).await.map_err(Arc::new) }
    };
    let pulled = inner.image_flights.join(key, begin, progress).await.map_err(Error::Shared)?;
    inner.touch(&pulled);
    Ok(pulled)
}

async fn pull_once(
    inner: &Arc<Inner>,
    image: &ImageRef,
    credentials: Option<Credentials>,
    reports: &Reporting,
) -> Result<Image, Error> {
    let name = image.to_string();
    match image {
        ImageRef::Registry(reference) => {
            // A digest says all there is to say: what is here is right, and the registry is not asked.
            if let Selector::Digest(digest) = &reference.selector
                && let Some(known) = inner.known(digest, &name)
            {
                return Ok(known);
            }
            let access = inner.client.access(reference, credentials);
            let selector = reference.selector.clone();
            pull_from(inner, &name, Arc::new(Source::Registry(access)), Start::Selector(selector), reports)
                .await
        }
        ImageRef::Layout { path, tag } => {
            let layout = Layout::new(path);
            let start = Start::Descriptor(layout.find(tag.as_deref())?);
            pull_from(inner, &name, Arc::new(Source::Layout(layout)), start, reports).await
        }
        ImageRef::Preloaded(preloaded) => {
            let (lower, record, pins) = base(inner, &name, preloaded).await?;
            let digest = Digest::of(name.as_bytes());
            inner.assemble(&name, &[digest], ImageConfig::default(), vec![(lower, record)], pins)
        }
        ImageRef::PreloadedWithLayer { base: preloaded, layer } => {
            with_layer(inner, &name, preloaded, layer, reports).await
        }
    }
}

/// Where manifests and blobs come from.
enum Source {
    Registry(Arc<Access>),
    Layout(Layout),
}

enum Start {
    Selector(Selector),
    Descriptor(Descriptor),
}

struct Found {
    media_type: String,
    digest: Digest,
    bytes: Bytes,
}

impl Source {
    async fn manifest(&self, start: &Start) -> Result<Found, Error> {
        match (self, start) {
            (Source::Registry(access), start) => {
                let selector = match start {
                    Start::Selector(selector) => selector.clone(),
                    Start::Descriptor(descriptor) => Selector::Digest(descriptor.digest.clone()),
                };
                let fetched = access.manifest(&selector).await?;
                Ok(Found { media_type: fetched.media_type, digest: fetched.digest, bytes: fetched.bytes })
            }
            (Source::Layout(layout), Start::Descriptor(descriptor)) => {
                let bytes = layout.small_blob(&descriptor.digest, MANIFEST_BYTES_MAX)?;
                let digest = descriptor.digest.clone();
                Ok(Found { media_type: descriptor.media_type.clone(), digest, bytes: bytes.into() })
            }
            (Source::Layout(layout), Start::Selector(Selector::Digest(digest))) => {
                let bytes = layout.small_blob(digest, MANIFEST_BYTES_MAX)?;
                Ok(Found { media_type: OCI_MANIFEST.into(), digest: digest.clone(), bytes: bytes.into() })
            }
            (Source::Layout(layout), Start::Selector(Selector::Tag(tag))) => {
                let descriptor = layout.find(Some(tag))?;
                let bytes = layout.small_blob(&descriptor.digest, MANIFEST_BYTES_MAX)?;
                Ok(Found {
                    media_type: descriptor.media_type,
                    digest: descriptor.digest,
                    bytes: bytes.into(),
                })
            }
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        match self {
            Source::Registry(access) => Ok(access.small_blob(descriptor).await?),
            Source::Layout(layout) => Ok(layout.small_blob(&descriptor.digest, CONFIG_BYTES_MAX)?.into()),
        }
    }
}

async fn pull_from(
    inner: &Arc<Inner>,
    name: &str,
    source: Arc<Source>,
    start: Start,
    reports: &Reporting,
) -> Result<Image, Error> {
    let refused = |source| Error::Manifest { image: name.into(), source };
    let first = source.manifest(&start).await?;
    let (digests, manifest) = match parse(name, &first)? {
        Document::Manifest(manifest) => (vec![first.digest], manifest),
        Document::Index(index) => {
            let chosen = index.choose(&Platform::of_this_machine()).map_err(refused)?.clone();
            let second = source.manifest(&Start::Descriptor(chosen)).await?;
            match parse(name, &second)? {
                Document::Manifest(manifest) => (vec![second.digest, first.digest], manifest),
                Document::Index(_) => {
                    let nested = crate::manifest::Error::Invalid("an index in an index".into());
                    return Err(refused(nested));
                }
            }
        }
    };
    if let Some(known) = inner.known(&digests[0], name) {
        return Ok(known);
    }
    let config = source.config(&manifest.config).await?;
    let config = Configuration::parse(&config, manifest.layers.len()).map_err(refused)?;
    let sizes = manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
    reports.send(Progress::Resolved { digest: digests[0].clone(), layers: sizes });
    let pins = inner.layers.pin(config.diff_ids.clone());
    let layers = pull_layers(inner, name, &source, &manifest, &config.diff_ids, reports).await?;
    inner.chores.make_durable(config.diff_ids);
    inner.assemble(name, &digests, config.run, layers, pins)
}

fn parse(name: &str, found: &Found) -> Result<Document, Error> {
    Document::parse(&found.media_type, &found.bytes)
        .map_err(|source| Error::Manifest { image: name.into(), source })
}

async fn pull_layers(
    inner: &Arc<Inner>,
    name: &str,
    source: &Arc<Source>,
    manifest: &Manifest,
    diff_ids: &[Digest],
    reports: &Reporting,
) -> Result<Vec<(Lower, Option<LayerRecord>)>, Error> {
    let pulls = manifest.layers.iter().zip(diff_ids).map(|(blob, diff_id)| {
        let wanted = Wanted { image: name.into(), blob: blob.clone(), diff_id: diff_id.clone() };
        async move {
            let record = pull_layer(inner, source, wanted, reports).await?;
            Ok::<_, Error>((Lower::Stored(record.id.clone()), Some(record)))
        }
    });
    try_join_all(pulls).await
}

#[derive(Clone)]
struct Wanted {
    image: String,
    blob: Descriptor,
    diff_id: Digest,
}

async fn pull_layer(
    inner: &Arc<Inner>,
    source: &Arc<Source>,
    wanted: Wanted,
    reports: &Reporting,
) -> Result<LayerRecord, Error> {
    let (digest, total) = (wanted.blob.digest.clone(), wanted.blob.size);
    let whole = Progress::Layer { digest, done: total, total };
    if let Some(record) = inner.layers.get(&wanted.diff_id) {
        reports.send(whole);
        return Ok(record);
    }
    let begin = |reports| {
        let (inner, source, wanted) = (inner.clone(), source.clone(), wanted.clone());
        async move { fetch_layer(&inner, &source, wanted, &reports).await.map_err(Arc::new) }
    };
    let forward = |progress| reports.send(progress);
    let fetched = inner.layer_flights.join(wanted.diff_id.clone(), begin, &forward).await;
    let record = fetched.map_err(Error::Shared)?;
    reports.send(whole);
    Ok(record)
}

async fn fetch_layer(
    inner: &Arc<Inner>,
    source: &Source,
    wanted: Wanted,
    reports: &Reporting,
) -> Result<LayerRecord, Error> {
    // Somebody may have finished between our look and our flight.
    if let Some(record) = inner.layers.get(&wanted.diff_id) {
        return Ok(record);
    }
    let _place = inner.places.acquire().await;
    match fetch(inner, source, &wanted, reports).await {
        // What a mirror sent may be wrong where the registry is right.
        Err(Error::Layer { source: wrong, .. })
            if wrong.is_the_blobs_fault()
                && let Source::Registry(access) = source
                && access.distrust_mirrors() =>
        {
            tracing::warn!(image = wanted.image, layer = %wanted.blob.digest, error = %wrong, "registry.mirror-distrusted");
            fetch(inner, source, &wanted, reports).await
        }
        fetched => fetched,
    }
}

async fn fetch(
    inner: &Arc<Inner>,
    source: &Source,
    wanted: &Wanted,
    reports: &Reporting,
) -> Result<LayerRecord, Error> {
    let expected = Expected {
        blob: Some((wanted.blob.digest.clone(), wanted.blob.size)),
        diff_id: Some(wanted.diff_id.clone()),
    };
    let naming = Naming { image: wanted.image.clone(), layer: wanted.blob.digest.to_string() };
    let room = inner.make_room(&naming.layer, wanted.blob.size).await?;
    match source {
        Source::Layout(layout) => {
            let file = layout.open(&wanted.blob.digest)?;
            unpack_blocking(inner, naming, file, expected, PathBuf::new(), None, room).await
        }
        Source::Registry(access) => {
            let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
            let reader = Pieces::new(receiver);
            let unpacking = unpack_blocking(inner, naming, reader, expected, PathBuf::new(), None, room);
            let downloading = download(access, &wanted.blob, sender, reports);
            let (downloaded, unpacked) = tokio::join!(downloading, unpacking);
            // A download that failed explains what the unpacker missed.
            downloaded.and(unpacked)
        }
    }
}

async fn download(
    access: &Arc<Access>,
    blob: &Descriptor,
    pieces: mpsc::Sender<Bytes>,
    reports: &Reporting,
) -> Result<(), Error> {
    // Counted on its way: what the unpacker was handed is what is done.
    let (sender, mut received) = mpsc::channel::<Bytes>(1);
    let counting = async {
        let (mut done, mut reported) = (0, 0);
        while let Some(piece) = received.recv().await {
            done += piece.len() as u64;
            if done - reported >= REPORT_BYTES {
                reported = done;
                reports.send(Progress::Layer { digest: blob.digest.clone(), done, total: blob.size });
            }
            if pieces.send(piece).await.is_err() {
                break;
            }
        }
        drop((pieces, received));
    };
    let fetching = async {
        let fetched = access.blob(&blob.digest, blob.size, &sender).await;
        drop(sender);
        fetched
    };
    let (fetched, ()) = tokio::join!(fetching, counting);
    Ok(fetched?)
}

/// What an error about a layer calls it.
struct Naming {
    image: String,
    layer: String,
}

/// Unpacks on a thread of its own, and keeps the layer. `below` is where in the layer's root the content lands, `id` its
/// name in the store where that is not its diff-id.
async fn unpack_blocking(
    inner: &Arc<Inner>,
    naming: Naming,
    reader: impl Read + Send + 'static,
    expected: Expected,
    below: PathBuf,
    id: Option<Digest>,
    mut room: Claim,
) -> Result<LayerRecord, Error> {
    let layers = inner.layers.clone();
    let limits = inner.config.limits;
    let unpacking = tokio::task::spawn_blocking(move || {
        let scratch = layers.scratch().map_err(disk("make a directory in", layers.directory()))?;
        let unpacked = unpack_below(reader, &expected, &scratch, &below, limits, &mut room);
        let unpacked =
            unpacked.map_err(|source| Error::Layer { image: naming.image, layer: naming.layer, source })?;
        if unpacked.devices_skipped > 0 {
            tracing::debug!(layer = %unpacked.diff_id, skipped = unpacked.devices_skipped, "left out device nodes");
        }
        let record = LayerRecord {
            id: id.unwrap_or(unpacked.diff_id),
            bytes: unpacked.bytes,
            entries: unpacked.entries,
            implied: implied(&unpacked.implied, &below),
            with_whiteouts: named(&unpacked.with_whiteouts, &below),
            opaque: unpacked.opaque && below.as_os_str().is_empty(),
            boot: String::new(),
        };
        layers.keep(scratch, record).map_err(disk("keep a layer in", layers.directory()))
    });
    unpacking.await.unwrap_or_else(|error| {
        // Only a bug, or the end of the process, gets here.
        Err(disk("unpack into", inner.layers.directory())(io::Error::other(error)))
    })
}

fn unpack_below(
    reader: impl Read + Send,
    expected: &Expected,
    scratch: &Scratch,
    below: &Path,
    limits: Limits,
    room: &mut dyn Room,
) -> Result<unpack::Unpacked, unpack::Error> {
    let root = scratch.root().join(below);
    std::fs::create_dir_all(&root)
        .map_err(|source| unpack::Error::Write { entry: below.display().to_string(), source })?;
    unpack::unpack(reader, expected, &root, limits, room)
}

/// With the directories above what was unpacked, which have no entries either.
fn implied(places: &[unpack::Place], below: &Path) -> Vec<String> {
    let prefix = below.to_string_lossy();
    let mut implied: Vec<String> =
        prefix.match_indices('/').map(|(at, _)| prefix[..at].to_string()).collect();
    if !prefix.is_empty() {
        implied.push(prefix.to_string());
    }
    implied.extend(named(places, below));
    implied
}

/// As they are called in the layer. Names that are no text are rare and keep the looks they have.
fn named(places: &[unpack::Place], below: &Path) -> Vec<String> {
    let prefix = below.to_string_lossy();
    let text = |place: &unpack::Place| String::from_utf8(place.bytes().to_vec()).ok();
    let in_layer = |path: String| match (prefix.is_empty(), path.is_empty()) {
        (true, _) => path,
        (false, true) => prefix.to_string(),
        (false, false) => format!("{prefix}/{path}"),
    };
    places.iter().filter_map(text).map(in_layer).collect()
}

/// A download as the reader that the unpacker wants; it ends when the download does, complete or not.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Pieces {
    fn new(pieces: mpsc::Receiver<Bytes>) -> Pieces {
        Pieces { pieces, current: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// A preloaded root as the lowest layer of an image.
async fn base(
    inner: &Arc<Inner>,
    name: &str,
    preloaded: &Preloaded,
) -> Result<(Lower, Option<LayerRecord>, Pins), Error> {
    let path = match preloaded {
        Preloaded::Path(path) => path.clone(),
        Preloaded::Name(stack) => {
            inner.config.preloaded.get(stack).cloned().ok_or_else(|| Error::NotPreloaded {
                name: stack.clone(),
                known: inner.config.preloaded.keys().cloned().collect(),
            })?
        }
    };
    let bad = |reason: String| Error::BadPreloaded { path: path.clone(), reason };
    let metadata = std::fs::metadata(&path).map_err(|error| bad(error.to_string()))?;
    if metadata.is_dir() {
        inner.sizes.measure_ahead(&path);
        return Ok((Lower::Directory(path), None, inner.layers.pin(Vec::new())));
    }
    if !metadata.is_file() {
        return Err(bad("neither a directory nor a file".into()));
    }
    let id = tar_id(&path, &metadata);
    let pins = inner.layers.pin(vec![id.clone()]);
    let record = match inner.layers.get(&id) {
        Some(record) => record,
        None => import(inner, name, &path, &id).await?,
    };
    inner.chores.make_durable(vec![id.clone()]);
    Ok((Lower::Stored(id), Some(record), pins))
}

/// A tar on this machine is known by where it lies and when it changed: to hash it for each container is too slow.
fn tar_id(path: &Path, metadata: &std::fs::Metadata) -> Digest {
    use std::os::unix::fs::MetadataExt as _;
    let m = metadata;
    let stamp = format!("{}.{} {} {} {}", m.mtime(), m.mtime_nsec(), m.size(), m.dev(), m.ino());
    Digest::of(format!("tar {} {stamp}", path.display()).as_bytes())
}

async fn import(inner: &Arc<Inner>, name: &str, path: &Path, id: &Digest) -> Result<LayerRecord, Error> {
    let begin = |_| {
        let (inner, name, path, id) = (inner.clone(), name.to_string(), path.to_path_buf(), id.clone());
        async move {
            let _place = inner.places.acquire().await;
            let naming = Naming { image: name, layer: path.display().to_string() };
            let file = std::fs::File::open(&path).map_err(disk("open", &path)).map_err(Arc::new)?;
            let bytes = file.metadata().map_err(disk("look at", &path)).map_err(Arc::new)?.len();
            let room = inner.make_room(&naming.layer, bytes).await.map_err(Arc::new)?;
            let expected = Expected::default();
            unpack_blocking(&inner, naming, file, expected, PathBuf::new(), Some(id), room)
                .await
                .map_err(Arc::new)
        }
    };
    inner.layer_flights.join(id.clone(), begin, &|_| {}).await.map_err(Error::Shared)
}

/// A stack with one layer (a droplet) on it.
async fn with_layer(
    inner: &Arc<Inner>,
    name: &str,
    preloaded: &Preloaded,
    layer: &RemoteLayer,
    reports: &Reporting,
) -> Result<Image, Error> {
    let (lower, base_record, base_pins) = base(inner, name, preloaded).await?;
    let id = Digest::of(format!("layer {} {}", layer.digest, layer.path.display()).as_bytes());
    let mut ids = vec![id.clone()];
    ids.extend(base_record.as_ref().map(|record| record.id.clone()));
    let pins = inner.layers.pin(ids.clone());
    drop(base_pins);
    let record = match inner.layers.get(&id) {
        Some(record) => record,
        None => {
            let begin = |reports| {
                let (inner, name, layer, id) = (inner.clone(), name.to_string(), layer.clone(), id.clone());
                async move { fetch_remote(&inner, name, &layer, id, &reports).await.map_err(Arc::new) }
            };
            let forward = |progress| reports.send(progress);
            inner.layer_flights.join(id.clone(), begin, &forward).await.map_err(Error::Shared)?
        }
    };
    inner.chores.make_durable(ids);
    let digest = Digest::of(name.as_bytes());
    let layers = vec![(lower, base_record), (Lower::Stored(id), Some(record))];
    inner.assemble(name, &[digest], ImageConfig::default(), layers, pins)
}

async fn fetch_remote(
    inner: &Arc<Inner>,
    image: String,
    layer: &RemoteLayer,
    id: Digest,
    reports: &Reporting,
) -> Result<LayerRecord, Error> {
    let _place = inner.places.acquire().await;
    let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
    let report = |done, total| reports.send(Progress::Layer { digest: layer.digest.clone(), done, total });
    let (size_known, size) = tokio::sync::oneshot::channel();
    let downloading = async {
        let fetched = inner.client.download(&layer.url, &sender, size_known, &report).await;
        drop(sender);
        fetched.map_err(|reason| Error::Fetch { url: layer.url.clone(), reason })
    };
    let unpacking = async {
        // Without a size there is no answer to unpack either.
        let Ok(size) = size.await else { return Ok(None) };
        let room = inner.make_room(&layer.digest.to_string(), size).await?;
        let expected = Expected { blob: Some((layer.digest.clone(), size)), diff_id: None };
        let naming = Naming { image, layer: layer.digest.to_string() };
        let below = layer.path.strip_prefix("/").unwrap_or(&layer.path).to_path_buf();
        unpack_blocking(inner, naming, Pieces::new(receiver), expected, below, Some(id), room).await.map(Some)
    };
    let (downloaded, unpacked) = tokio::join!(downloading, unpacking);
    downloaded?;
    let missing = || Error::Fetch { url: layer.url.clone(), reason: "no answer".into() };
    unpacked?.ok_or_else(missing)
}
