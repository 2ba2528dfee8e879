//! How a component that runs no containers is looked into: figures for the platform's forwarder each interval, the same for
//! Prometheus at the debug address (`/metrics`), and there the level of its log (`/log-level`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{any, get};
use clap::Args;
use diego_base::serve::{Listen, Listener, serve};
use diego_base::telemetry::LevelSwitch;
use diego_base::tls::Files;
use loggregator::{Forwarder, Message, Sender, Source, Value};
use tokio::time::MissedTickBehavior;

use self::figures::{Figure, Kind};
use super::flags::{address, interval};
use crate::dev::Parts;

pub use self::figures::{Figures, Tag};

mod figures;

/// As platforms' dashboards expect a component's own figures.
const REPORT_INTERVAL: &str = "60s";
const PROMETHEUS: &str = "text/plain; version=0.0.4";

/// Without an address logs and metrics stay here.
#[derive(Args)]
#[command(next_help_heading = "Logs and metrics")]
pub struct Loggregator {
    /// The forwarder (loggregator's or the forwarder agent's ingress), as HOST:PORT; usually 127.0.0.1:3458.
    #[arg(long, value_name = "HOST:PORT")]
    loggregator: Option<String>,
    /// An authority, in PEM, that must have signed the forwarder's certificate, which must be for `metron`.
    #[arg(long, requires_all = ["loggregator", "loggregator_cert_file"])]
    loggregator_ca_cert_file: Option<PathBuf>,
    /// Our certificate, in PEM. Without one the forwarder is spoken to in plain text.
    #[arg(long, requires = "loggregator_key_file")]
    loggregator_cert_file: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, requires = "loggregator_cert_file")]
    loggregator_key_file: Option<PathBuf>,
    /// The tag `origin` of all that is sent; otherwise the component's name.
    #[arg(long)]
    loggregator_origin: Option<String>,
    /// Whom the component's own metrics are about; otherwise the component.
    #[arg(long)]
    loggregator_source_id: Option<String>,
    /// And which of them.
    #[arg(long)]
    loggregator_instance_id: Option<String>,
    /// Envelopes are sent in batches of at most so many.
    #[arg(long, default_value_t = loggregator::BATCH_ENVELOPES)]
    loggregator_batch_max_size: usize,
    /// How often the component's own figures are told.
    #[arg(long, default_value = REPORT_INTERVAL, value_parser = interval)]
    pub report_interval: Duration,
}

/// A way to the forwarder, and whom what goes there is about.
pub struct Connected {
    pub forwarder: Forwarder,
    pub sender: Sender,
    pub source_id: String,
    pub instance_id: String,
}

impl Loggregator {
    /// `None` where nobody is to be told. Must be called in a runtime.
    pub fn connect(&self, component: &str, instance: &str) -> Result<Option<Connected>> {
        let Some(address) = &self.loggregator else { return Ok(None) };
        let (cert, key) = (&self.loggregator_cert_file, &self.loggregator_key_file);
        let tls = cert.clone().zip(key.clone()).map(|(cert, key)| Files {
            cert,
            key,
            ca: self.loggregator_ca_cert_file.clone(),
        });
        let or = |told: &Option<String>, usual: &str| told.clone().unwrap_or_else(|| usual.to_owned());
        let config = loggregator::Config {
            tls,
            batch_envelopes: self.loggregator_batch_max_size,
            ..loggregator::Config::new(address, or(&self.loggregator_origin, component))
        };
        let (forwarder, sender) = Forwarder::new(config).context("cannot forward logs and metrics")?;
        Ok(Some(Connected {
            forwarder,
            sender,
            source_id: or(&self.loggregator_source_id, component),
            instance_id: or(&self.loggregator_instance_id, instance),
        }))
    }
}

#[derive(Args)]
#[command(next_help_heading = "Logs and metrics")]
pub struct Report {
    #[command(flatten)]
    loggregator: Loggregator,
    /// Serve /metrics, for Prometheus, and /log-level on this address.
    #[arg(long, value_parser = address)]
    debug_listen: Option<SocketAddr>,
}

impl Report {
    /// Tells and serves `figures` as a part of the process.
    pub fn start(
        &self,
        component: &'static str,
        figures: &Figures,
        levels: LevelSwitch,
        parts: &mut Parts,
    ) -> Result<()> {
        if let Some(address) = self.debug_listen {
            let (debug, shutdown) = (Debug { figures: figures.clone(), levels }, parts.shutdown());
            parts.start("debug server", async move {
                let listener = Listener::bind(Listen::Tcp(address)).await?;
                serve(listener, debug.router(), None, shutdown).await;
                Ok::<(), diego_base::serve::Error>(())
            });
        }
        let Some(connected) = self.loggregator.connect(component, "0")? else { return Ok(()) };
        let Connected { forwarder, sender, source_id, instance_id } = connected;
        let told = Told { forwarder, source_id, instance_id, figures: figures.clone() };
        let (interval, shutdown) = (self.loggregator.report_interval, parts.shutdown());
        parts.start_endless("report of figures", async move {
            tokio::select! {
                () = sender.run(shutdown.cancelled_owned()) => {}
                () = told.each(interval) => {}
            }
        });
        Ok(())
    }
}

struct Told {
    forwarder: Forwarder,
    source_id: String,
    instance_id: String,
    figures: Figures,
}

impl Told {
    /// Never ends.
    async fn each(&self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for ((name, tag), figure) in self.figures.take() {
                self.tell(&name, tag.as_ref(), &figure);
            }
        }
    }

    /// One envelope each, as readers expect.
    fn tell(&self, name: &str, tag: Option<&Tag>, figure: &Figure) {
        let source = self.source(tag);
        let (now, value) = (now_ns(), figure.value);
        match figure.kind {
            Kind::Gauge | Kind::Most => {
                let value = Value { name, value, unit: figure.unit };
                self.forwarder.emit(now, &source, &Message::Gauge(&[value]));
            }
            Kind::Count if value > figure.told => {
                let delta = (value - figure.told) as u64;
                self.forwarder.emit(now, &source, &Message::Delta { name, delta });
            }
            Kind::Count => {}
        }
    }

    fn source(&self, tag: Option<&Tag>) -> Source {
        let tag = tag.map(|Tag { name, value }| (*name, value.as_ref()));
        self.forwarder.source(&self.source_id, &self.instance_id, tag)
    }
}

/// Since the epoch; a clock before it is one at it.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[derive(Clone)]
struct Debug {
    figures: Figures,
    levels: LevelSwitch,
}

impl Debug {
    fn router(self) -> Router {
        Router::new().route("/metrics", get(metrics)).route("/log-level", any(set_level)).with_state(self)
    }
}

async fn metrics(State(debug): State<Debug>) -> impl IntoResponse {
    ([(CONTENT_TYPE, PROMETHEUS)], debug.figures.page())
}

async fn set_level(State(debug): State<Debug>, body: String) -> (StatusCode, String) {
    match debug.levels.set_told(&body) {
        Ok(name) => (StatusCode::OK, format!("{name}\n")),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}
