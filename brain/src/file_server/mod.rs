//! Serves the lifecycle bundles and other static files over HTTP, with ranges, as cells download them.
//!
//! With a blob directory it is also where the CLI leaves app source and staging leaves droplets: `PUT` or `POST` of
//! `/v1/blobs/NAME`, then `GET`. It knows nothing of what the files are, and never deletes one; nor does it know what
//! else is on their disk: before it writes it asks for [`MakeRoom`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Path as UrlPath, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use diego_base::serve::{self, Listen, Listener};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use tower_http::services::ServeDir;

/// Bytes of one uploaded blob.
pub const BLOB_BYTES_MAX: u64 = 4 << 30;
const NAME_BYTES_MAX: usize = 200;
/// Of a refused blob, so many are read nevertheless.
const UNWANTED_BYTES_MAX: usize = 64 << 20;

/// Room is asked for in steps of so many bytes.
const STEP_BYTES: u64 = 8 << 20;

/// Makes room for so many bytes, which is kept until the answer is dropped, or says why there is none. Blocking.
pub type MakeRoom = Arc<dyn Fn(u64) -> Result<Box<dyn Send>, String> + Send + Sync>;

pub struct Config {
    pub listen: Listen,
    /// Served under `/v1/static/`.
    pub static_dir: PathBuf,
    /// Kept and served under `/v1/blobs/`.
    pub blobs: Option<BlobDir>,
}

pub struct BlobDir {
    pub path: PathBuf,
    pub make_room: MakeRoom,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve files: {0}")]
    Listen(#[from] serve::Error),
    #[error("cannot use {path} for blobs: {source}")]
    BlobDir { path: PathBuf, source: std::io::Error },
}

pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let mut router = Router::new().nest_service("/v1/static", ServeDir::new(config.static_dir));
    if let Some(dir) = config.blobs {
        router = router.merge(blobs(dir)?);
    }
    let listener = Listener::bind(config.listen).await?;
    tracing::info!("ready");
    serve::serve(listener, router, None, shutdown).await;
    Ok(())
}

fn blobs(dir: BlobDir) -> Result<Router, Error> {
    let failed = |source| Error::BlobDir { path: dir.path.clone(), source };
    std::fs::create_dir_all(&dir.path).map_err(failed)?;
    remove_unfinished(&dir.path).map_err(failed)?;
    let blob = put(upload).post(upload).get_service(ServeDir::new(&dir.path));
    let blobs = Router::new().route("/{name}", blob).with_state(Arc::new(dir));
    Ok(Router::new().nest("/v1/blobs", blobs.layer(axum::extract::DefaultBodyLimit::disable())))
}

/// What an upload leaves when the server is killed in the middle of it.
fn remove_unfinished(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

const UNFINISHED_PREFIX: &str = ".unfinished-";

/// A blob is there whole or not at all: it is written beside its place and renamed into it.
async fn upload(
    State(dir): State<Arc<BlobDir>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if !name_is_valid(&name) {
        return (StatusCode::BAD_REQUEST, format!("cannot keep a blob under the name {name:?}\n"))
            .into_response();
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let unfinished = dir.path.join(format!("{UNFINISHED_PREFIX}{}", rand::random::<u64>()));
    let mut pieces = body.into_data_stream();
    let kept = match write(&unfinished, &mut pieces, length.unwrap_or(0), &dir.make_room).await {
        Ok(()) => tokio::fs::rename(&unfinished, dir.path.join(&name)).await.map_err(Refused::Write),
        Err(refused) => Err(refused),
    };
    match kept {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(refused) => {
            let _ = tokio::fs::remove_file(&unfinished).await;
            take_no_notice(pieces).await;
            let (status, reason) = refused.answer();
            tracing::warn!(name, reason, "cannot keep a blob");
            (status, format!("cannot keep blob {name}: {reason}\n")).into_response()
        }
    }
}

enum Refused {
    TooLarge,
    Room(String),
    Read(axum::Error),
    Write(std::io::Error),
}

impl Refused {
    fn answer(&self) -> (StatusCode, String) {
        match self {
            Refused::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("it is larger than {BLOB_BYTES_MAX} bytes"))
            }
            Refused::Room(reason) => (StatusCode::INSUFFICIENT_STORAGE, reason.clone()),
            Refused::Read(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Refused::Write(error) => (StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
        }
    }
}

/// Who is still sending when the connection ends may never read why.
async fn take_no_notice(mut pieces: BodyDataStream) {
    let mut bytes = 0;
    while bytes < UNWANTED_BYTES_MAX
        && let Some(Ok(piece)) = pieces.next().await
    {
        bytes += piece.len();
    }
}

async fn write(
    path: &Path,
    pieces: &mut BodyDataStream,
    length: u64,
    make_room: &MakeRoom,
) -> Result<(), Refused> {
    if length > BLOB_BYTES_MAX {
        return Err(Refused::TooLarge);
    }
    // All of it once, so that what cannot be kept is not begun; then step by step, for what is written is taken by then.
    drop(room(make_room, length).await?);
    let mut file = tokio::fs::File::create(path).await.map_err(Refused::Write)?;
    let (mut written, mut step) = (0u64, None);
    while let Some(chunk) = pieces.next().await {
        let chunk = chunk.map_err(Refused::Read)?;
        let bytes = chunk.len() as u64;
        written += bytes;
        if written > BLOB_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        step = Some(match step.take() {
            Some((kept, left)) if left >= bytes => (kept, left - bytes),
            _ => (room(make_room, STEP_BYTES.max(bytes)).await?, STEP_BYTES.saturating_sub(bytes)),
        });
        file.write_all(&chunk).await.map_err(Refused::Write)?;
    }
    // Room is taken once it is on the disk, not before.
    let synced = file.sync_all().await.map_err(Refused::Write);
    drop(step);
    synced
}

async fn room(make_room: &MakeRoom, bytes: u64) -> Result<Box<dyn Send>, Refused> {
    let make_room = make_room.clone();
    let made = tokio::task::spawn_blocking(move || make_room(bytes)).await;
    made.unwrap_or_else(|error| Err(error.to_string())).map_err(Refused::Room)
}

fn name_is_valid(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct World {
        url: String,
        dir: tempfile::TempDir,
        client: reqwest::Client,
        _stop: tokio_util::sync::DropGuard,
    }

    async fn world() -> World {
        world_with(Arc::new(|_| Ok(Box::new(())))).await
    }

    async fn world_with(make_room: MakeRoom) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("static")).unwrap();
        std::fs::write(dir.path().join("static/bundle.tgz"), b"0123456789").unwrap();
        let (listen, address) = Listen::loopback().unwrap();
        let shutdown = CancellationToken::new();
        let config = Config {
            listen,
            static_dir: dir.path().join("static"),
            blobs: Some(BlobDir { path: dir.path().join("blobs"), make_room }),
        };
        tokio::spawn(run(config, shutdown.clone()));
        let client = diego_base::http::client(&Default::default()).unwrap();
        World { url: format!("http://{address}"), dir, client, _stop: shutdown.drop_guard() }
    }

    #[tokio::test]
    async fn a_range_of_a_static_file_is_served() {
        let world = world().await;
        let request = world.client.get(format!("{}/v1/static/bundle.tgz", world.url));
        let answer = request.header("Range", "bytes=2-4").send().await.unwrap();
        assert_eq!(answer.status(), 206);
        assert_eq!(answer.text().await.unwrap(), "234");
    }

    #[tokio::test]
    async fn a_blob_that_was_put_can_be_got_and_put_again() {
        let world = world().await;
        let url = format!("{}/v1/blobs/app.zip", world.url);
        for content in ["one", "two"] {
            assert_eq!(world.client.put(&url).body(content).send().await.unwrap().status(), 201);
            assert_eq!(world.client.get(&url).send().await.unwrap().text().await.unwrap(), content);
        }
        let kept = std::fs::read_dir(world.dir.path().join("blobs")).unwrap().count();
        assert_eq!(kept, 1, "nothing but the blob is left");
    }

    #[tokio::test]
    async fn a_blob_that_the_disk_has_no_room_for_is_refused_and_leaves_nothing() {
        let room = AtomicU64::new(10 << 20);
        let make_room: MakeRoom = Arc::new(move |bytes| {
            match room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(bytes)) {
                Ok(_) => Ok(Box::new(())),
                Err(_) => Err("the disk has no room".into()),
            }
        });
        let world = world_with(make_room).await;
        let url = format!("{}/v1/blobs/droplet", world.url);
        let put = |body: reqwest::Body| world.client.put(&url).body(body).send();
        // One says how large it is; of the other that is seen on the way.
        let known = put(vec![0; 11 << 20].into()).await.unwrap();
        let pieces = (0..11).map(|_| Ok::<_, std::io::Error>(vec![0u8; 1 << 20]));
        let unknown = put(reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))).await.unwrap();
        for answer in [known, unknown] {
            assert_eq!(answer.status(), 507);
            assert_eq!(answer.text().await.unwrap(), "cannot keep blob droplet: the disk has no room\n");
        }
        assert_eq!(std::fs::read_dir(world.dir.path().join("blobs")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_name_that_could_leave_the_directory_is_refused() {
        let world = world().await;
        for name in ["..%2Fescape", ".hidden", "a%2Fb"] {
            let url = format!("{}/v1/blobs/{name}", world.url);
            assert_eq!(world.client.put(url).body("x").send().await.unwrap().status(), 400, "{name}");
        }
        assert!(!world.dir.path().join("escape").exists());
    }
}
