//! A volume driver as cells have them beside them: volumes are directories of the host, mounts are counted as drivers of
//! the platform do. It can be in any mood, and remembers what it was asked.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as Called, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use diego_base::serve::{Listen, Listener, serve};
use diego_base::tls::ServerTls;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone)]
pub enum Mood {
    /// It says so, with this error.
    Refuses(String),
    /// Until the mood changes; then it refuses.
    Hangs,
    Says(StatusCode, String),
}

/// Ends with the last of its handles.
#[derive(Clone)]
pub struct VolumeDriver {
    known: Arc<Known>,
    _ends: Arc<tokio_util::sync::DropGuard>,
}

struct Known {
    root: PathBuf,
    state: Mutex<Told>,
    mood_changed: Notify,
}

#[derive(Default)]
struct Told {
    volumes: BTreeMap<String, (Value, i64)>,
    moods: BTreeMap<String, Mood>,
    calls: Vec<String>,
}

impl VolumeDriver {
    /// Volumes lie below `root`. Needs a runtime that lives as long as it does.
    pub async fn start(root: &Path, listen: Listen, tls: Option<ServerTls>) -> VolumeDriver {
        let known = Arc::new(Known {
            root: root.to_path_buf(),
            state: Mutex::default(),
            mood_changed: Notify::new(),
        });
        let router = Router::new().route("/{call}", post(answer)).with_state(known.clone());
        let (listener, stop) = (Listener::bind(listen).await.unwrap(), CancellationToken::new());
        tokio::spawn(serve(listener, router, tls, stop.clone()));
        VolumeDriver { known, _ends: Arc::new(stop.drop_guard()) }
    }

    /// Found as `NAME` in a directory of drivers, at its socket.
    pub async fn at_socket(dir: &Path, name: &str) -> VolumeDriver {
        let root = dir.join(format!("{name}-volumes"));
        VolumeDriver::start(&root, Listen::Unix(dir.join(format!("{name}.sock"))), None).await
    }

    pub async fn at_port(dir: &Path) -> (VolumeDriver, SocketAddr) {
        let (listen, address) = Listen::loopback().unwrap();
        (VolumeDriver::start(&dir.join("volumes"), listen, None).await, address)
    }

    pub fn mood(&self, call: &str, mood: Option<Mood>) {
        let mut state = self.known.state.lock().unwrap();
        match mood {
            Some(mood) => state.moods.insert(call.into(), mood),
            None => state.moods.remove(call),
        };
        self.known.mood_changed.notify_waiters();
    }

    /// As somebody else would.
    pub fn has_mounted(&self, volume: &str, count: i64) {
        self.known.state.lock().unwrap().volumes.insert(volume.into(), (json!({}), count));
    }

    /// `Create a`, `Mount a`, … without those that only ask.
    pub fn acts(&self) -> Vec<String> {
        let calls = self.calls();
        calls.into_iter().filter(|call| !call.starts_with("Activate") && !call.starts_with("List")).collect()
    }

    pub fn calls(&self) -> Vec<String> {
        self.known.state.lock().unwrap().calls.clone()
    }

    /// Those that are mounted, each with how many times.
    pub fn mounts(&self) -> BTreeMap<String, i64> {
        let state = self.known.state.lock().unwrap();
        let counts = state.volumes.iter().map(|(name, (_, count))| (name.clone(), *count));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    pub fn options(&self, volume: &str) -> Value {
        self.known.state.lock().unwrap().volumes[volume].0.clone()
    }

    pub fn place(&self, volume: &str) -> PathBuf {
        self.known.root.join(volume)
    }
}

async fn answer(State(known): State<Arc<Known>>, Called(call): Called<String>, body: Bytes) -> Response {
    let call = call.rsplit('.').next().unwrap().to_owned();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = asked["Name"].as_str().unwrap_or_default().to_owned();
    known.state.lock().unwrap().calls.push(format!("{call} {name}").trim_end().to_owned());
    let changed = known.mood_changed.notified();
    let mood = known.state.lock().unwrap().moods.get(&call).cloned();
    match mood {
        None => {}
        Some(Mood::Refuses(why)) => return refused(&why),
        Some(Mood::Says(status, text)) => return (status, text).into_response(),
        Some(Mood::Hangs) => {
            changed.await;
            return refused("it took too long");
        }
    }
    match known.act(&call, &name, &asked) {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(why) => refused(&why),
    }
}

fn refused(why: &str) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(json!({ "Err": why }))).into_response()
}

impl Known {
    fn act(&self, call: &str, name: &str, asked: &Value) -> Result<Value, String> {
        let volumes = &mut self.state.lock().unwrap().volumes;
        let unknown = || format!("Volume '{name}' not found");
        match call {
            "Activate" => Ok(json!({ "Implements": ["VolumeDriver"] })),
            "Capabilities" => Ok(json!({ "Capabilities": { "Scope": "local" } })),
            "Create" => {
                volumes.entry(name.to_owned()).or_insert((Value::Null, 0)).0 = asked["Opts"].clone();
                Ok(json!({}))
            }
            "Mount" => {
                let (_, count) = volumes.get_mut(name).ok_or_else(unknown)?;
                std::fs::create_dir_all(self.root.join(name)).map_err(|error| error.to_string())?;
                *count += 1;
                Ok(json!({ "Mountpoint": self.root.join(name) }))
            }
            "Unmount" => {
                let (_, count) = volumes.get_mut(name).filter(|(_, count)| *count > 0).ok_or_else(unknown)?;
                *count -= 1;
                Ok(json!({}))
            }
            "List" => {
                let told = volumes.iter().map(|(name, (_, count))| {
                    let at =
                        if *count > 0 { self.root.join(name).display().to_string() } else { String::new() };
                    json!({ "Name": name, "Mountpoint": at, "MountCount": count })
                });
                Ok(json!({ "Volumes": told.collect::<Vec<_>>() }))
            }
            _ => Err(format!("{call} is not implemented")),
        }
    }
}
