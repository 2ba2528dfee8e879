//! What a cell says to the platform about its containers and itself, through the loggregator forwarder beside it: the
//! lines of apps, what each container uses, what the cell has left.
//!
//! Names, units and tags are those that platforms know (diego-release's docs/010 and 011). Which container says what is
//! decided in [`containers`] and [`capacity`] by values alone; here it is sent.

pub mod capacity;
mod containers;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use executor::Executor;
use executor::logs::{LogLine, LogSink, Logs, Out};
use loggregator::{Forwarder, Message, Sender, Source, Stream, Value};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::flags::interval;
use super::metrics::process::Process;
use super::metrics::{Requests, Said, Tally, names};
use super::report::{Connected, Loggregator, now_ns};

/// Without an address logs and metrics stay in the cell.
#[derive(Args)]
#[command(next_help_heading = "Logs and metrics")]
pub struct Forward {
    #[command(flatten)]
    loggregator: Loggregator,
    /// How often it is said what each container uses.
    #[arg(long, default_value = "15s", value_parser = interval)]
    container_metrics_report_interval: Duration,
    /// A metric of containers that is not sent, `container_age` for example. May be given many times.
    #[arg(long = "app-metric-exclusion", value_name = "NAME")]
    exclusions: Vec<String>,
}

/// A forwarder that is told of, and who speaks to it once the executor is there.
pub struct Forwarding {
    forwarder: Forwarder,
    sender: Sender,
    cell: Cell,
    interval: Duration,
    report_interval: Duration,
    exclusions: Vec<String>,
}

/// Whom the cell's own metrics are about.
struct Cell {
    source_id: String,
    instance_id: String,
}

impl Forward {
    /// `None` where nobody is to be told. Must be called in a runtime.
    pub fn start(&self, cell_id: &str) -> Result<Option<Forwarding>> {
        let Some(connected) = self.loggregator.connect("rep", cell_id)? else { return Ok(None) };
        let Connected { forwarder, sender, source_id, instance_id } = connected;
        Ok(Some(Forwarding {
            forwarder,
            sender,
            cell: Cell { source_id, instance_id },
            interval: self.container_metrics_report_interval,
            report_interval: self.loggregator.report_interval,
            exclusions: self.exclusions.clone(),
        }))
    }
}

/// What the executor's logs go through.
pub fn logs(forwarding: Option<&Forwarding>) -> Logs {
    let lines = |forwarding: &Forwarding| Arc::new(Lines(forwarding.forwarder.clone())) as Arc<dyn LogSink>;
    Logs::new(forwarding.map(lines).into_iter().collect())
}

struct Lines(Forwarder);

impl LogSink for Lines {
    fn emit(&self, line: &Arc<LogLine>) {
        let tags = line.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let tag = |name| line.tags.get(name).map_or("", String::as_str);
        let source_type = ("source_type", &*line.source);
        let source =
            self.0.source(tag("source_id"), tag("instance_id"), std::iter::once(source_type).chain(tags));
        let stream = match line.stream {
            Out::Out => Stream::Out,
            Out::Err => Stream::Err,
        };
        self.0.emit(line.timestamp_ns, &source, &Message::Log { payload: &line.message, stream });
    }
}

impl Forwarding {
    pub fn forwarder(&self) -> Forwarder {
        self.forwarder.clone()
    }

    /// For what is said as it happens.
    pub fn teller(&self) -> Teller {
        let source = self.forwarder.source(&self.cell.source_id, &self.cell.instance_id, []);
        Teller { forwarder: self.forwarder.clone(), source }
    }

    /// Until `shutdown`; then what waits is given a moment to be sent.
    pub async fn run(self, executor: Executor, tally: Tally, shutdown: CancellationToken) {
        let Forwarding { forwarder, sender, cell, interval, report_interval, exclusions } = self;
        let containers = report_containers(&forwarder, &executor, interval, exclusions);
        let own = Own { forwarder: &forwarder, cell: &cell, executor: &executor, tally: &tally };
        let capacity = own.report(report_interval);
        let reports = async { tokio::join!(containers, capacity) };
        tokio::select! {
            () = sender.run(shutdown.cancelled_owned()) => {}
            _ = reports => {}
        }
    }
}

/// Never ends.
async fn report_containers(
    forwarder: &Forwarder,
    executor: &Executor,
    interval: Duration,
    exclusions: Vec<String>,
) {
    let mut reporter = containers::Reporter::new(exclusions);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let metrics = match executor.metrics().await {
            Ok(metrics) => metrics,
            Err(error) => {
                tracing::warn!(target: "rep", %error, "cannot measure the containers for the platform");
                continue;
            }
        };
        let now_ns = now_ns();
        reporter.report(now_ns, &executor.list(), &metrics, &mut |whom, message| {
            let tags = whom.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let source = forwarder.source(whom.source_id, whom.instance_id, tags);
            forwarder.emit(now_ns, &source, &message);
        });
    }
}

/// Says what happens to the cell itself.
pub struct Teller {
    forwarder: Forwarder,
    source: Source,
}

impl Teller {
    pub fn tell(&self, said: Said) {
        let value = match said {
            Said::Count(name) => {
                return self.forwarder.emit(now_ns(), &self.source, &Message::Delta { name, delta: 1 });
            }
            Said::Took(name, took) => nanoseconds(name, took),
            Said::DriverTook(name, driver, took) => {
                let name = format!("{name}{}{driver}", names::OF_DRIVER);
                return self.gauge(nanoseconds(&name, took));
            }
            Said::Stands(name, value) => count(name, value),
        };
        self.gauge(value);
    }

    fn gauge(&self, value: Value) {
        self.forwarder.emit(now_ns(), &self.source, &Message::Gauge(&[value]));
    }
}

fn nanoseconds(name: &str, took: Duration) -> Value<'_> {
    Value { name, value: took.as_nanos() as f64, unit: "nanos" }
}

fn count(name: &'static str, value: f64) -> Value<'static> {
    Value { name, value, unit: "Metric" }
}

/// What is said of the cell itself now and then.
struct Own<'a> {
    forwarder: &'a Forwarder,
    cell: &'a Cell,
    executor: &'a Executor,
    tally: &'a Tally,
}

impl Own<'_> {
    /// Never ends.
    async fn report(&self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Without a measure the rest is said nevertheless.
            let used = self.executor.metrics().await.ok();
            let resources = (self.executor.total_resources(), self.executor.remaining_resources());
            self.say(None, capacity::report(resources, &self.executor.list(), used.as_ref()));
            for (request_type, requests) in self.tally.take_requests() {
                self.say(Some(request_type), of_requests(&requests));
            }
            self.say(None, of_process(&Process::now()));
        }
    }

    /// One envelope each, as readers expect.
    fn say(&self, request_type: Option<&str>, values: impl IntoIterator<Item = Value<'static>>) {
        let tags = request_type.map(|name| ("request-type", name));
        let source = self.forwarder.source(&self.cell.source_id, &self.cell.instance_id, tags);
        for value in values {
            self.forwarder.emit(now_ns(), &source, &Message::Gauge(&[value]));
        }
    }
}

fn of_requests(requests: &Requests) -> [Value<'static>; 6] {
    let [started, succeeded, failed, in_flight, cancelled, latency] = &names::REQUESTS;
    [
        count(started.published, requests.started as f64),
        count(succeeded.published, requests.succeeded as f64),
        count(failed.published, requests.failed as f64),
        count(in_flight.published, requests.in_flight() as f64),
        count(cancelled.published, 0.0),
        nanoseconds(latency.published, requests.latency_max),
    ]
}

fn of_process(process: &Process) -> impl Iterator<Item = Value<'static>> {
    let [routines, heap, stack] = &names::PROCESS;
    let told = [
        (routines, Some(process.tasks as u64)),
        (heap, process.anonymous_bytes),
        (stack, process.stack_bytes),
    ];
    told.into_iter()
        .filter_map(|(name, value)| Some(Value { name: name.published, value: value? as f64, unit: "count" }))
}
