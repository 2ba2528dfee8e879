//! Serves the lifecycle bundles and other static files over HTTP, with ranges, as cells download them.
//!
//! With a blob directory it is also where the CLI leaves app source and staging leaves droplets: `PUT` or `POST` of
//! `/v1/blobs/NAME`, then `GET`. It knows nothing of what the files are, and never deletes one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
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

#[derive(Debug)]
pub struct Config {
    pub listen: Listen,
    /// Served under `/v1/static/`.
    pub static_dir: PathBuf,
    /// Kept and served under `/v1/blobs/`.
    pub blob_dir: Option<PathBuf>,
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
    if let Some(dir) = config.blob_dir {
        router = router.merge(blobs(dir)?);
    }
    let listener = Listener::bind(config.listen).await?;
    tracing::info!("ready");
    serve::serve(listener, router, None, shutdown).await;
    Ok(())
}

fn blobs(dir: PathBuf) -> Result<Router, Error> {
    let failed = |source| Error::BlobDir { path: dir.clone(), source };
    std::fs::create_dir_all(&dir).map_err(failed)?;
    remove_unfinished(&dir).map_err(failed)?;
    let blob = put(upload).post(upload).get_service(ServeDir::new(&dir));
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
async fn upload(State(dir): State<Arc<PathBuf>>, UrlPath(name): UrlPath<String>, body: Body) -> Response {
    if !name_is_valid(&name) {
        return (StatusCode::BAD_REQUEST, format!("cannot keep a blob under the name {name:?}\n"))
            .into_response();
    }
    let unfinished = dir.join(format!("{UNFINISHED_PREFIX}{}", rand::random::<u64>()));
    let kept = match write(&unfinished, body).await {
        Ok(()) => tokio::fs::rename(&unfinished, dir.join(&name)).await.map_err(Refused::Write),
        Err(refused) => Err(refused),
    };
    match kept {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(refused) => {
            let _ = tokio::fs::remove_file(&unfinished).await;
            let (status, reason) = refused.answer();
            tracing::warn!(name, reason, "cannot keep a blob");
            (status, format!("cannot keep blob {name}: {reason}\n")).into_response()
        }
    }
}

enum Refused {
    TooLarge,
    Read(axum::Error),
    Write(std::io::Error),
}

impl Refused {
    fn answer(&self) -> (StatusCode, String) {
        match self {
            Refused::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("it is larger than {BLOB_BYTES_MAX} bytes"))
            }
            Refused::Read(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Refused::Write(error) => (StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
        }
    }
}

async fn write(path: &Path, body: Body) -> Result<(), Refused> {
    let mut file = tokio::fs::File::create(path).await.map_err(Refused::Write)?;
    let mut stream = body.into_data_stream();
    let mut written = 0u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(Refused::Read)?;
        written += chunk.len() as u64;
        if written > BLOB_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        file.write_all(&chunk).await.map_err(Refused::Write)?;
    }
    file.sync_all().await.map_err(Refused::Write)
}

fn name_is_valid(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        url: String,
        dir: tempfile::TempDir,
        client: reqwest::Client,
        _stop: tokio_util::sync::DropGuard,
    }

    async fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("static")).unwrap();
        std::fs::write(dir.path().join("static/bundle.tgz"), b"0123456789").unwrap();
        let (listen, address) = Listen::loopback().unwrap();
        let shutdown = CancellationToken::new();
        let config = Config {
            listen,
            static_dir: dir.path().join("static"),
            blob_dir: Some(dir.path().join("blobs")),
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
    async fn a_name_that_could_leave_the_directory_is_refused() {
        let world = world().await;
        for name in ["..%2Fescape", ".hidden", "a%2Fb"] {
            let url = format!("{}/v1/blobs/{name}", world.url);
            assert_eq!(world.client.put(url).body("x").send().await.unwrap().status(), 400, "{name}");
        }
        assert!(!world.dir.path().join("escape").exists());
    }
}
