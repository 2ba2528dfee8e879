//! The life of one container: its owner task, which alone creates, runs and destroys it.
//!
//! ```text
//! Initializing ──create──▶ Created ──ready──▶ Running ──steps end──▶ Completed ──delete──▶ gone
//!       └──────── stop, failure ─────┴────────── stop, failure ────────────▲
//! ```
//!
//! Others send [`Command`]s. While the work goes on, stopping it is cancelling its token, and the work is awaited; it is
//! dropped only when this executor leaves its containers to a later one, which goes on from what is written down. A
//! completed container stays, with its files, until a delete has destroyed it in garden.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::creation::{self, Held, Order};
use super::store::{MISSING, failure, stopped_before_running};
use crate::cache::Fetched;
use crate::depot::{Found, Journal, Place, Record, Request};
use crate::edge::Edge;
use crate::logs::{LogStream, Out};
use crate::recipe::{Settings, recipe};
use crate::steps::{self, Ready, Stage, StepError, network_environment};
use crate::{
    Attempt, Container, Error, Occurrence, RunInfo, RunRequest, RunResult, Shared, State, UpdateRequest,
};

/// Commands an owner may be behind before those who send them wait.
pub(crate) const COMMANDS_MAX: usize = 16;
/// For what a container's processes have left on its connections when they end.
const EDGE_CLOSE_TIME: Duration = Duration::from_secs(2);
const PROPERTY_TIMEOUT: Duration = Duration::from_secs(5);

/// What others may ask of the owner.
pub(crate) enum Command {
    Stop,
    Update(UpdateRequest, oneshot::Sender<Result<(), Error>>),
    /// Stops it first if need be; answered once nothing is left of it, or once that failed.
    Delete(oneshot::Sender<Result<(), Error>>),
    /// Garden no longer knows it.
    Missing,
}

/// Makes a reservation's owner and sets it to work.
pub(crate) fn start(shared: &Arc<Shared>, request: RunRequest) -> Result<(), Error> {
    if shared.closing.is_cancelled() {
        return Err(Error::ShuttingDown);
    }
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let container = shared.store.initialize(request, sender)?;
    let run_info = container.run_info.clone().unwrap_or_default();
    let request = Request::new(run_info, Settings::of(&shared.config));
    spawn(
        Work::new(shared, &request, Record::new(container)),
        commands,
        Past::None(Box::new(request)),
        Held::default(),
    );
    Ok(())
}

/// The same with a container that an earlier life has left.
pub(crate) fn go_on(shared: &Arc<Shared>, found: Found, past: Past, commands: mpsc::Receiver<Command>) {
    let unknown = |_| Request::new(Arc::default(), Settings::of(&shared.config));
    let request = found.request.unwrap_or_else(unknown);
    let held = Held { volumes: found.record.held_volumes().to_vec(), ..Held::default() };
    spawn(Work::new(shared, &request, found.record), commands, past, held);
}

/// What an earlier life has made of a container.
pub(crate) enum Past {
    /// There was none.
    None(Box<Request>),
    Created {
        downloads: Vec<Fetched>,
        stopping: bool,
    },
    /// Nothing that could be gone on with.
    Over(RunResult),
    Completed,
}

fn spawn(work: Work, commands: mpsc::Receiver<Command>, past: Past, held: Held) {
    let shared = work.shared.clone();
    shared.streams.insert(&work.guid, &work.logs);
    let leaving = shared.leaving.clone();
    shared.owners.spawn(async move { leaving.run_until_cancelled(live(work, commands, past, held)).await });
}

async fn live(work: Work, commands: mpsc::Receiver<Command>, past: Past, mut held: Held) {
    let mut owner = Owner { work: &work, commands, deletes: Vec::new(), told_to_stop: false };
    if !matches!(past, Past::Completed) {
        let stopping = matches!(past, Past::Created { stopping: true, .. });
        let mut result = owner.attend(work.perform(&mut held, past), stopping).await;
        result.stopped |= owner.told_to_stop;
        work.complete(result).await;
    }
    owner.rest(&mut held).await;
    work.shared.streams.remove(&work.guid);
}

/// Destroys what an owner left that ended without having done so itself: none should.
pub(crate) async fn bury(shared: &Shared, guid: &str) -> Result<(), Error> {
    if !shared.store.contains(guid) {
        return Ok(());
    }
    if shared.closing.is_cancelled() {
        return Err(Error::ShuttingDown);
    }
    tracing::error!(guid, "executor.container-without-owner");
    match shared.garden.destroy(guid).await {
        Ok(()) | Err(garden_client::Error::ContainerNotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    creation::release(shared, guid, &mut Held::default()).await;
    if let Err(error) = shared.depot.forget(guid) {
        tracing::error!(guid, error = steps::report(&error), "executor.depot.not-forgotten");
    }
    shared.store.remove(guid);
    Ok(())
}

/// Takes commands on behalf of the work.
struct Owner<'a> {
    work: &'a Work,
    commands: mpsc::Receiver<Command>,
    /// Who waits for the container to be gone.
    deletes: Vec<oneshot::Sender<Result<(), Error>>>,
    told_to_stop: bool,
}

impl Owner<'_> {
    /// `stopping`: it was being stopped already when an earlier life ended.
    async fn attend(&mut self, working: impl Future<Output = RunResult>, stopping: bool) -> RunResult {
        let mut working = pin!(working);
        if stopping {
            // What ran then must be attached to first, to be stopped as gracefully as anything.
            if let Poll::Ready(result) = futures_util::poll!(&mut working) {
                return result;
            }
            self.stop().await;
        }
        loop {
            tokio::select! {
                // Commands first: who was told to stop does not begin anything else.
                biased;
                // What it takes to obey must never wait for the work, which waits meanwhile.
                Some(command) = self.commands.recv() => self.obey(command).await,
                result = &mut working => return result,
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Stop => self.stop().await,
            Command::Delete(reply) => {
                self.stop().await;
                self.deletes.push(reply);
            }
            Command::Update(request, reply) => {
                // Whoever asked may have left.
                let _ = reply.send(self.work.update(request).await);
            }
            Command::Missing => {
                self.work.complete(failure(MISSING, false)).await;
                self.work.stop.cancel();
            }
        }
    }

    async fn stop(&mut self) {
        if !self.told_to_stop {
            self.told_to_stop = true;
            self.work.note(|record| record.stopping = true).await;
            self.work.announce("stopping instance");
            self.work.stop.cancel();
        }
    }

    /// Completed: nothing but a delete changes anything any more.
    async fn rest(&mut self, held: &mut Held) {
        loop {
            while self.deletes.is_empty() {
                match self.commands.recv().await {
                    Some(Command::Delete(reply)) => self.deletes.push(reply),
                    Some(Command::Update(_, reply)) => drop(reply.send(Ok(()))),
                    Some(Command::Stop | Command::Missing) => {}
                    None => return,
                }
            }
            let result = self.work.destroy(held).await;
            for reply in self.deletes.drain(..) {
                let _ = reply.send(result.clone());
            }
            if result.is_ok() {
                return;
            }
        }
    }
}

pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    pub(super) guid: String,
    pub(super) run_info: Arc<RunInfo>,
    /// The cell's when it was asked to run.
    settings: Settings,
    journal: Journal,
    logs: LogStream,
    stop: CancellationToken,
    /// When it was begun to be created; not if an earlier life did.
    begun: OnceLock<Instant>,
    /// Others reach it by other names now.
    pub(super) routes_changed: Notify,
}

impl Work {
    fn new(shared: &Arc<Shared>, request: &Request, record: Record) -> Work {
        let (config, run_info) = (&shared.config, &request.run_info);
        let guid = record.container.guid.clone();
        let limits = (run_info.log_rate_limit_bytes_per_second, config.log_lines_per_second_max);
        Work {
            logs: LogStream::new(
                &shared.logs,
                &run_info.log_config,
                &guid,
                limits,
                config.clock.clone(),
                config.witness.clone(),
            ),
            shared: shared.clone(),
            guid,
            run_info: run_info.clone(),
            settings: request.settings.clone(),
            journal: shared.depot.journal(record),
            stop: CancellationToken::new(),
            begun: OnceLock::new(),
            routes_changed: Notify::new(),
        }
    }

    /// Creates the container, or takes it over, and runs its recipe to its end.
    async fn perform(&self, held: &mut Held, past: Past) -> RunResult {
        let container = match past {
            Past::None(request) => self.create(held, *request).await,
            Past::Created { downloads, .. } => self.order().adopt(held, downloads).await,
            Past::Over(result) => Err(result),
            Past::Completed => Err(RunResult::default()),
        };
        let container = match container {
            Ok(container) => container,
            Err(result) => return result,
        };
        let edge = held.edge.take();
        let result = self.run(&container, edge.as_ref()).await;
        if result.as_ref().is_err_and(StepError::is_overdue) {
            self.tell(Occurrence::ExceededGracefulShutdown);
        }
        self.tell(Occurrence::Completed);
        let outcome = outcome(result);
        if let Some(edge) = edge {
            // What the app has said may still be on its way.
            edge.close(EDGE_CLOSE_TIME).await;
        }
        outcome
    }

    async fn create(&self, held: &mut Held, request: Request) -> Result<Container, RunResult> {
        self.journal.begin(request).await.map_err(|error| {
            tracing::error!(guid = self.guid, error = steps::report(&error), "executor.depot.not-noted");
            failure(&steps::report(&error), true)
        })?;
        let permit = self.stop.run_until_cancelled(self.shared.creates.acquire()).await;
        let Some(Ok(_permit)) = permit else { return Err(stopped_before_running()) };
        let begun = *self.begun.get_or_init(Instant::now);
        let created = self.order().create(held).await;
        if created.is_err() {
            self.tell(Occurrence::SetUp(Attempt::of(begun, &created)));
        }
        match self.stop.is_cancelled() {
            true => Err(stopped_before_running()),
            false => created,
        }
    }

    fn order(&self) -> Order<'_> {
        Order {
            shared: &self.shared,
            guid: &self.guid,
            run_info: &self.run_info,
            logs: &self.logs,
            stop: &self.stop,
            journal: &self.journal,
        }
    }

    /// Before it is told to anybody.
    async fn complete(&self, mut result: RunResult) {
        result.shorten();
        let noted = result.clone();
        self.note(move |record| {
            if !record.container.is_completed() {
                record.container.state = State::Completed(noted);
            }
        })
        .await;
        self.shared.store.complete(&self.guid, result);
    }

    async fn note(&self, change: impl FnOnce(&mut Record) + Send + 'static) {
        if let Err(error) = self.journal.note(change).await {
            tracing::error!(guid = self.guid, error = steps::report(&error), "executor.depot.not-noted");
        }
    }

    /// Before it is told to anybody.
    async fn became_ready(&self, routable: bool) {
        if self.shared.store.get(&self.guid).is_none_or(|container| container.state != State::Created) {
            return;
        }
        self.note(move |record| {
            record.container.state = State::Running;
            record.container.routable = routable;
        })
        .await;
        self.shared.store.run(&self.guid, routable);
    }

    async fn became_routable(&self, routable: bool) {
        self.note(move |record| record.container.routable = routable).await;
        self.shared.store.set_routable(&self.guid, routable);
    }

    async fn run(&self, container: &Container, edge: Option<&Edge>) -> steps::Result {
        let recipe =
            recipe(&self.run_info, &self.settings).map_err(|error| StepError::Plain(error.to_string()))?;
        let (stage, mut readiness) = self.stage(container);
        if self.run_info.setup.is_none() {
            stage.tell_of_set_up(&Ok(()));
        }
        let ready = Ready::default();
        let mut performing = pin!(steps::perform(&recipe.step, &stage, &self.stop, &ready));
        // A container may take longer to become healthy than its certificate is good.
        let mut renewing = pin!(self.renew_credentials(container, edge));
        let ended = tokio::select! {
            biased;
            () = ready.wait() => None,
            never = &mut renewing => match never {},
            result = &mut performing => Some(result),
        };
        if ready.is_set() {
            self.became_ready(!recipe.has_readiness).await;
        }
        if let Some(result) = ended {
            return result;
        }
        loop {
            tokio::select! {
                biased;
                Some(routable) = readiness.recv() => self.became_routable(routable).await,
                result = &mut performing => return result,
                never = &mut renewing => match never {},
            }
        }
    }

    fn stage(&self, container: &Container) -> (Stage, mpsc::Receiver<bool>) {
        let text = |ip: Option<std::net::IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
        let environment = network_environment(
            &text(container.external_ip),
            &text(container.internal_ip),
            &text(container.internal_ipv6),
            &container.ports,
        );
        let (readiness, receiver) = mpsc::channel(1);
        let stage = Stage {
            shared: self.shared.clone(),
            guid: self.guid.clone(),
            logs: self.logs.clone(),
            environment: Arc::new(environment),
            internal_ip: container.internal_ip,
            vantage: Arc::default(),
            readiness,
            capture: None,
            begun: self.begun.get().copied(),
            place: Place::of(&self.journal),
        };
        (stage, receiver)
    }

    async fn update(&self, request: UpdateRequest) -> Result<(), Error> {
        let mut log_config = None;
        let changed = self.shared.store.change(&self.guid, |container| {
            let run_info = container.run_info.get_or_insert_default();
            let run_info = Arc::make_mut(run_info);
            if let Some(routes) = request.internal_routes {
                run_info.internal_routes = routes;
                self.routes_changed.notify_one();
            }
            if let Some(tags) = request.metric_tags {
                run_info.metric_tags = tags.clone();
                run_info.log_config.tags = tags;
                log_config = Some(run_info.log_config.clone());
            }
        });
        if let Some(run_info) = changed.and_then(|container| container.run_info) {
            let request = Request::new(run_info, self.settings.clone());
            if let Err(error) = self.journal.request(request).await {
                tracing::error!(guid = self.guid, error = steps::report(&error), "executor.depot.not-noted");
            }
        }
        if let Some(config) = log_config {
            self.logs.set_tags(config.tags.clone());
            let json = super::log_config_json(&config);
            let set = self.shared.garden.set_property(&self.guid, "log_config", &json);
            // The container's work waits meanwhile: not for a garden that does not answer.
            let timeout = |_| garden_client::Error::Other("garden did not answer in time".to_string());
            tokio::time::timeout(PROPERTY_TIMEOUT, set).await.map_err(timeout)??;
        }
        Ok(())
    }

    /// Leaves nothing of the container; safe to call again after it failed.
    async fn destroy(&self, held: &mut Held) -> Result<(), Error> {
        self.announce("destroying container for instance");
        let permit = self.shared.deletes.acquire().await;
        let permit = permit.map_err(|_| Error::ShuttingDown)?;
        let begun = Instant::now();
        let destroyed = self.shared.garden.destroy(&self.guid).await;
        self.tell_of_destroy(begun, &destroyed);
        // Others need not wait for a driver that hangs.
        drop(permit);
        creation::release(&self.shared, &self.guid, held).await;
        match destroyed {
            Ok(()) | Err(garden_client::Error::ContainerNotFound { .. }) => {}
            Err(error) => {
                tracing::error!(guid = self.guid, %error, "executor.failed-to-destroy-container-in-garden");
                self.announce("failed to destroy container for instance");
                return Err(error.into());
            }
        }
        self.announce("successfully destroyed container for instance");
        creation::unmount(&self.shared, &self.guid, held).await;
        // Nothing is left of it that a later life would have to know.
        if let Err(error) = self.journal.forget().await {
            tracing::error!(guid = self.guid, error = steps::report(&error), "executor.depot.not-forgotten");
        }
        self.shared.store.remove(&self.guid);
        Ok(())
    }

    /// Who is gone already, or never was, has not been destroyed.
    fn tell_of_destroy(&self, begun: Instant, destroyed: &garden_client::Result<()>) {
        if !matches!(destroyed, Err(garden_client::Error::ContainerNotFound { .. })) {
            self.tell(Occurrence::Destroy(Attempt::of(begun, destroyed)));
        }
    }

    fn tell(&self, occurrence: Occurrence) {
        self.shared.config.witness.saw(occurrence);
    }

    fn announce(&self, act: &str) {
        let cell = &self.shared.config.cell_id;
        self.logs.announce(Out::Out, &format!("Cell {cell} {act} {}", self.guid));
    }
}

/// What the end of the steps means for the container. Being cancelled, among others' errors, is no reason of its own.
fn outcome(result: steps::Result) -> RunResult {
    let reason = result.err().map(|error| error.to_string()).unwrap_or_default();
    match reason.as_str() {
        "" => RunResult::default(),
        reason => failure(reason, false),
    }
}
