//! The network between the parts: brings each request to the API of whoever has the name in its URL, after a while, and
//! mostly. Loses, repeats and reorders messages as its weather says, and none across a cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use diego_base::http::{Carried, Carrier, Failed, Way};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::chance::Chance;
use crate::ledger::Ledger;

/// Nobody waits longer for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A repeated request comes so much later at the most.
const REPEATED_AFTER_MAX_MS: u64 = 5_000;
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often a predecessor that still lives is asked instead of its successor.
const STALE: f64 = 0.3;

#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub loss: f64,
    pub repeats: f64,
    pub delay_max_ms: u64,
}

impl Weather {
    pub const CALM: Weather = Weather { loss: 0.0, repeats: 0.0, delay_max_ms: 5 };
}

#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    chance: Chance,
    ledger: Ledger,
    client: reqwest::Client,
    weather: Mutex<Weather>,
    /// By name; of several the last is the one that should be asked.
    doors: Mutex<BTreeMap<String, Vec<Door>>>,
    cuts: Mutex<BTreeSet<(String, String)>>,
}

#[derive(Clone)]
struct Door {
    machine: String,
    router: Router,
    life: CancellationToken,
}

/// Where a process is, and whether it lives.
#[derive(Clone)]
pub struct Station {
    pub network: Network,
    pub machine: String,
    pub life: CancellationToken,
    /// Whether its requests may come twice: not where nobody could tell what that leads to.
    pub repeats: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    pub fn new(chance: Chance, ledger: Ledger, client: reqwest::Client) -> Network {
        Network(Arc::new(Inner {
            chance,
            ledger,
            client,
            weather: Mutex::new(Weather::CALM),
            doors: Mutex::default(),
            cuts: Mutex::default(),
        }))
    }

    pub fn station(&self, machine: &str) -> Station {
        let life = CancellationToken::new();
        Station { network: self.clone(), machine: machine.into(), life, repeats: true }
    }

    /// Serves `router` under `name` until its process ends.
    pub async fn serve(&self, name: &str, station: &Station, router: Router) {
        let door = Door { machine: station.machine.clone(), router, life: station.life.clone() };
        lock(&self.0.doors).entry(name.into()).or_default().push(door);
        station.life.cancelled().await;
        if let Some(doors) = lock(&self.0.doors).get_mut(name) {
            doors.retain(|door| !door.life.is_cancelled());
        }
    }

    pub fn set_weather(&self, weather: Weather) {
        self.0.ledger.disturb(format!("{weather:?}"));
        *lock(&self.0.weather) = weather;
    }

    pub fn cut(&self, one: &str, other: &str) {
        self.0.ledger.disturb(format!("cut between {one} and {other}"));
        lock(&self.0.cuts).insert(pair(one, other));
    }

    pub fn heal(&self) {
        self.0.ledger.disturb("all cuts are healed");
        lock(&self.0.cuts).clear();
    }

    pub fn is_cut(&self, one: &str, other: &str) -> bool {
        lock(&self.0.cuts).contains(&pair(one, other))
    }

    fn weather(&self) -> Weather {
        *lock(&self.0.weather)
    }

    fn find(&self, name: &str) -> Option<Door> {
        let doors = lock(&self.0.doors);
        let alive: Vec<&Door> = doors.get(name)?.iter().filter(|door| !door.life.is_cancelled()).collect();
        match alive.as_slice() {
            [] => None,
            [.., before, _] if self.0.chance.happens(STALE) => Some((*before).clone()),
            [.., last] => Some((*last).clone()),
        }
    }

    async fn travel(&self) {
        tokio::time::sleep(self.0.chance.duration(0..self.weather().delay_max_ms.max(1))).await;
    }

    /// Whether a message gets through between two machines.
    fn passes(&self, one: &str, other: &str) -> bool {
        let lost = self.0.chance.happens(self.weather().loss);
        !lost && !self.is_cut(one, other)
    }

    /// A message without an API behind it, to Locket.
    pub async fn reach(&self, from: &Station, machine: &str) -> bool {
        self.travel().await;
        !from.life.is_cancelled() && self.passes(&from.machine, machine)
    }

    async fn exchange(&self, from: Station, request: Request) -> Result<reqwest::Response, Failed> {
        let sent = format!("{} > {} {}", from.machine, request.name, request.path);
        self.travel().await;
        if from.life.is_cancelled() {
            return Err(Failed::Lost("the process has ended"));
        }
        let Some(door) = self.find(&request.name) else {
            self.0.ledger.step(format!("{sent}: nobody there"));
            return Err(Failed::Lost("nobody is there"));
        };
        if !self.passes(&from.machine, &door.machine) {
            self.0.ledger.step(format!("{sent}: lost"));
            return std::future::pending().await;
        }
        if from.repeats && self.0.chance.happens(self.weather().repeats) {
            tokio::spawn(self.clone().repeat(door.clone(), request.clone(), sent.clone()));
        }
        // Whoever asked may not wait: what was asked for happens all the same.
        let answer = tokio::spawn(self.clone().knock(door.clone(), request, sent.clone()));
        let answer = answer.await.map_err(|_| Failed::Lost("the server panicked"))??;
        if !self.passes(&door.machine, &from.machine) {
            self.0.ledger.step(format!("{sent}: answer lost"));
            return std::future::pending().await;
        }
        self.travel().await;
        if from.life.is_cancelled() { Err(Failed::Lost("the process has ended")) } else { Ok(answer.into()) }
    }

    async fn repeat(self, door: Door, request: Request, sent: String) {
        tokio::time::sleep(self.0.chance.duration(0..REPEATED_AFTER_MAX_MS)).await;
        // Its answer is for nobody.
        let _ = self.knock(door, request, format!("{sent} (again)")).await;
    }

    async fn knock(
        self,
        door: Door,
        request: Request,
        sent: String,
    ) -> Result<http::Response<Vec<u8>>, Failed> {
        if door.life.is_cancelled() {
            return Err(Failed::Lost("the server has ended"));
        }
        let answer = door.router.oneshot(request.http()).await;
        let answer = answer.map_err(|_| Failed::Lost("the server failed"))?;
        let (head, body) = answer.into_parts();
        let body = axum::body::to_bytes(body, ANSWER_BYTES_MAX).await;
        let body = body.map_err(|_| Failed::Lost("the answer broke off"))?;
        if door.life.is_cancelled() {
            self.0.ledger.step(format!("{sent}: the server ended meanwhile"));
            return Err(Failed::Lost("the server has ended"));
        }
        self.0.ledger.step(format!(
            "{sent}: {} at {}, {} bytes",
            head.status.as_u16(),
            door.machine,
            body.len()
        ));
        Ok(http::Response::from_parts(head, body.to_vec()))
    }
}

fn pair(one: &str, other: &str) -> (String, String) {
    (one.min(other).into(), one.max(other).into())
}

impl Station {
    pub fn way(&self) -> Way {
        Way::carried(self.network.0.client.clone(), Arc::new(self.clone()))
    }
}

impl Carrier for Station {
    fn carry(&self, request: reqwest::Request) -> Carried {
        let station = self.clone();
        let timeout = request.timeout().copied().unwrap_or(CALL_TIMEOUT);
        let request = Request::from(request);
        Box::pin(async move {
            let network = station.network.clone();
            match tokio::time::timeout(timeout, network.exchange(station, request)).await {
                Ok(answer) => answer,
                Err(_) => Err(Failed::Lost("no answer in time")),
            }
        })
    }
}

/// One that can be sent twice.
#[derive(Clone)]
struct Request {
    name: String,
    path: String,
    method: http::Method,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl From<reqwest::Request> for Request {
    fn from(request: reqwest::Request) -> Request {
        let url = request.url();
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        Request {
            name: url.host_str().unwrap_or_default().into(),
            path: format!("{}{query}", url.path()),
            method: request.method().clone(),
            headers: request.headers().clone(),
            body: request.body().and_then(|body| body.as_bytes()).unwrap_or_default().to_vec(),
        }
    }
}

impl Request {
    fn http(self) -> http::Request<Body> {
        let mut request = http::Request::new(Body::from(self.body));
        *request.method_mut() = self.method;
        *request.headers_mut() = self.headers;
        // It was a path before.
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        request
    }
}
