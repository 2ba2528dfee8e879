//! What an earlier garden on the same directory has left: containers that live are taken over, the rest goes.
//!
//! ```text
//! record ─▶ whole, made with our settings? ──yes─▶ reserved, known as broken ─▶ its pid 1 answers ─▶ created
//!                 └─no─▶ destroyed                                └─ never: stays broken, to be destroyed by clients
//! ```
//! The one place where a start meets records. A pid 1 that does not answer keeps nobody waiting: the start goes on
//! without it after [`ANSWER_DEADLINE`], and its container is taken over whenever it does answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use garden_client::Garden;

use super::entry::{Entry, Stage};
use super::{Config, Gardener, StartError, chain};
use crate::containerizer::{self, Container};
use crate::depot::{self, Content, Depot, Record};
use crate::milestone;
use crate::networker::Connection;

/// An answer takes a millisecond.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// For all that goes; it takes some ten milliseconds each.
const DESTRUCTION_DEADLINE: Duration = Duration::from_secs(10);
const DESTROYED_AT_ONCE: usize = 8;
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// The records of a depot, judged.
pub struct Found {
    kept: Vec<(Record, containerizer::Record)>,
    /// Nobody knows what to do with them; somebody may be in them.
    unclear: Vec<Record>,
    going: Vec<Record>,
}

impl Found {
    /// Of containers that stay.
    pub fn connections(&self) -> Vec<(&str, &Connection)> {
        let records = self.kept.iter().map(|(record, _)| record).chain(&self.unclear);
        records.filter_map(|record| Some((record.handle.as_str(), record.connection.as_ref()?))).collect()
    }

    /// A container that got stuck while it went may be recorded with a network that was given to another since. Those that
    /// stay come first. Nothing is lost: the firewall is made anew, and links that are nobody's are swept.
    fn settle_claims(&mut self) {
        let mut claims = Claims::default();
        for record in self.kept.iter().map(|(record, _)| record).chain(&self.unclear) {
            record.connection.iter().for_each(|connection| claims.add(connection));
        }
        for record in &mut self.going {
            if let Some(connection) = record.connection.take_if(|connection| claims.conflict(connection)) {
                let subnet = connection.subnet;
                tracing::warn!(handle = record.handle, subnet, "its network is another container's by now");
            }
            record.connection.iter().for_each(|connection| claims.add(connection));
        }
    }
}

/// What of the networks is somebody's.
#[derive(Default)]
struct Claims {
    subnets: BTreeSet<u32>,
    ports: BTreeSet<u32>,
}

impl Claims {
    fn add(&mut self, connection: &Connection) {
        self.subnets.insert(connection.subnet);
        self.ports.extend(connection.mapped_ports.iter().map(|port| port.host_port));
    }

    fn conflict(&self, connection: &Connection) -> bool {
        self.subnets.contains(&connection.subnet)
            || connection.mapped_ports.iter().any(|port| self.ports.contains(&port.host_port))
    }
}

/// A directory without a record tells nothing: it goes, and what belonged to it is swept. One whose record cannot be read
/// stays, and what belongs to it. Blocks.
pub fn read(depot: &Depot, config: &Config) -> Result<Found, depot::Error> {
    let mut found = Found { kept: Vec::new(), unclear: Vec::new(), going: Vec::new() };
    for one in depot.found()? {
        let going = one.going || config.destroy_containers_on_start;
        let record = match &one.content {
            Content::Record(record) => record,
            Content::Nothing => {
                tracing::warn!(directory = %one.directory.display(), "removing a container's directory without a record");
                depot.drop_directory(&one)?;
                continue;
            }
            Content::Unclear(record, error) => {
                tracing::error!(handle = record.handle, %error, going, "the record of a container cannot be read");
                let mut record = Record::clone(record);
                // Of another pool it would become another's.
                record.connection.take_if(|connection| !config.networker.could_have_made(connection));
                let place = if going { &mut found.going } else { &mut found.unclear };
                place.push(record);
                continue;
            }
        };
        let record = Record::clone(record);
        // As one was saved of which not all was known.
        if record.created && record.container.is_none() && !going {
            found.unclear.push(record);
            continue;
        }
        let why = if one.going { Some("its destruction had begun") } else { why_not(&record, config) };
        match (why, record.container.clone()) {
            (None, Some(container)) => found.kept.push((record, container)),
            (why, _) => {
                let why = why.unwrap_or("its creation was not finished");
                tracing::info!(handle = record.handle, why, "destroying a container of an earlier garden");
                found.going.push(record);
            }
        }
    }
    found.settle_claims();
    Ok(found)
}

/// Why a container cannot stay.
fn why_not(record: &Record, config: &Config) -> Option<&'static str> {
    let Some(container) = record.container.as_ref().filter(|_| record.created) else {
        return Some("its creation was not finished");
    };
    if config.destroy_containers_on_start {
        return Some("none is to stay");
    }
    if container.init.is_of_another_boot() {
        return Some("the machine was started since");
    }
    if !container.is_of(&config.containerizer) {
        return Some("it was made in other control groups");
    }
    if record.plugged != config.network_plugin.is_some() {
        return Some("its network was made in another way");
    }
    let foreign = |connection: &Connection| !config.networker.could_have_made(connection);
    record.connection.as_ref().is_some_and(foreign).then_some("its network is of another pool")
}

impl Gardener {
    pub(super) async fn restore(&self, found: Found) -> Result<(), StartError> {
        for record in found.going.iter().filter_map(|record| record.connection.as_ref()) {
            self.0.networker.reserve_again(record);
        }
        // All are known, and what they have is reserved, before anybody is spoken with.
        milestone::passed();
        found.unclear.into_iter().for_each(|record| self.know_unclear(record));
        let known: Vec<_> = found.kept.into_iter().filter_map(|(record, of)| self.know(record, of)).collect();
        let going = found.going.into_iter().map(|record| self.know_going(record)).collect();
        tokio::join!(self.take_over_all(known), self.take_away_all(going));
        milestone::passed();
        self.sweep().await
    }

    /// What cannot be taken away stays known as broken, so that it can be destroyed later.
    fn know_going(&self, record: Record) -> String {
        let handle = record.handle.clone();
        self.entries().insert(handle.clone(), Arc::new(Entry::new(record, Stage::Broken(None))));
        handle
    }

    /// What takes long, such as a process that cannot be killed, goes on behind the start.
    async fn take_away_all(&self, going: Vec<String>) {
        let gardener = self.clone();
        let destroying = tokio::spawn(async move {
            let each = going.into_iter().map(|handle| gardener.take_away_earlier(handle));
            futures_util::stream::iter(each).buffer_unordered(DESTROYED_AT_ONCE).collect::<()>().await;
        });
        if tokio::time::timeout(DESTRUCTION_DEADLINE, destroying).await.is_err() {
            let waited = DESTRUCTION_DEADLINE;
            tracing::error!(?waited, "containers of an earlier garden are still being destroyed");
        }
    }

    /// One that can only be destroyed, by a client. What is known to be its own is nobody else's.
    fn know_unclear(&self, record: Record) {
        match record.container.clone() {
            Some(container) => _ = self.know(record, container),
            None => _ = self.know_going(record),
        }
    }

    /// Enters a container as one that cannot be used yet.
    fn know(&self, record: Record, container: containerizer::Record) -> Option<Known> {
        let adopted = self.0.containerizer.adopt(&container);
        let adopted = adopted.map(Arc::new).inspect_err(|error| {
            tracing::error!(handle = record.handle, error = chain(error), "cannot take a container over");
        });
        let adopted = adopted.ok();
        let entry = Arc::new(Entry::new(record, Stage::Broken(adopted.clone())));
        self.entries().insert(entry.handle.clone(), entry.clone());
        adopted.map(|adopted| Known { entry, record: container, container: adopted })
    }

    async fn take_over_all(&self, known: Vec<Known>) {
        let count = known.len();
        let each = known.into_iter().map(|known| {
            let gardener = self.clone();
            let handle = known.entry.handle.clone();
            let answering = tokio::spawn(async move { known.take_over(&gardener).await });
            async move {
                // What has not answered goes on being waited for, but not by us.
                let answered = tokio::time::timeout(ANSWER_DEADLINE, answering).await;
                if answered.is_err() {
                    tracing::error!(handle, waited = ?ANSWER_DEADLINE, "the pid 1 of a container does not answer");
                }
                matches!(answered, Ok(Ok(true)))
            }
        });
        let taken_over = join_all(each).await.into_iter().filter(|taken_over| *taken_over).count();
        if count > 0 {
            tracing::info!(count, taken_over, "containers of an earlier garden");
        }
    }

    async fn take_away_earlier(&self, handle: String) {
        for tried in 1..=TRIES {
            match self.destroy(&handle).await {
                Ok(()) => return,
                Err(error) => tracing::error!(handle, tried, %error, "cannot destroy it"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Roots, links and control groups that belong to no container that is known. One that stays is no reason not to start.
    async fn sweep(&self) -> Result<(), StartError> {
        let gardener = self.clone();
        let sweep = move || gardener.try_to_sweep();
        match tokio::task::spawn_blocking(sweep).await.map_err(|_| StartError::Interrupted)? {
            Ok(()) => {}
            Err(error) => tracing::error!(error = chain(&error), "cannot sweep what an earlier garden left"),
        }
        Ok(())
    }

    /// Every part of it, whatever became of the others; the answer is the first failure. Blocks.
    fn try_to_sweep(&self) -> Result<(), StartError> {
        let kept: Vec<Record> = self.all_entries().iter().map(|entry| entry.record()).collect();
        let mut groups: BTreeSet<String> = kept.iter().map(|record| record.handle.clone()).collect();
        let mut roots = groups.clone();
        for record in &kept {
            // Without knowing them all, nothing may be taken for nobody's.
            for pea in self.0.depot.all_peas(&record.handle)? {
                groups.extend(pea.group_name(&record.handle));
                roots.insert(pea.name);
            }
        }
        let swept = self.0.containerizer.sweep(&groups);
        milestone::passed();
        let recovered = self.0.store.recover(&roots);
        for handle in recovered.iter().flatten() {
            tracing::info!(handle, "removed a root without a container");
        }
        let connections: Vec<&Connection> =
            kept.iter().filter_map(|record| record.connection.as_ref()).collect();
        let unlinked = self.0.networker.delete_stray_links(&connections);
        swept?;
        recovered?;
        Ok(unlinked?)
    }
}

/// A container that is there, with which nobody has spoken yet.
struct Known {
    entry: Arc<Entry>,
    record: containerizer::Record,
    container: Arc<Container>,
}

impl Known {
    /// Whether it can be used from now on. Everything of it that outlives garden is reached here.
    async fn take_over(self, gardener: &Gardener) -> bool {
        match gardener.0.containerizer.take_over(&self.container, &self.record).await {
            Ok(()) => {
                milestone::passed();
                gardener.adopt_peas(&self.entry, &self.container).await;
                self.entry.touch();
                let taken_over = self.entry.taken_over(self.container);
                tracing::info!(handle = self.entry.handle, "took a container over");
                taken_over
            }
            Err(error) => {
                tracing::error!(handle = self.entry.handle, error = chain(&error), "a container is broken");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use garden_client::{ContainerSpec, MappedPort};

    fn record(handle: &str, subnet: u32, port: u32) -> Record {
        let mut connection = Connection::new("10.254.0.0/18".parse().unwrap(), None, subnet, "d-");
        connection.mapped_ports.push(MappedPort { host_port: port, container_port: 80 });
        let spec = ContainerSpec { handle: handle.into(), ..ContainerSpec::default() };
        Record { created: true, connection: Some(connection), ..Record::new(spec, 0) }
    }

    #[test]
    fn a_network_belongs_to_one_container_and_first_to_one_that_stays() {
        let container = containerizer::Record {
            handle: "stays".into(),
            init: containerizer::InitRecord { pid: 1, started: 0, boot: None, socket: None },
            cgroup_root: "/".into(),
            cgroup_parent: "p".into(),
            cgroup_name: "stays".into(),
            ids: None,
            env: Vec::new(),
            limits: Default::default(),
            oci: None,
        };
        let going = [
            record("same subnet", 1, 2),
            record("same port", 2, 1),
            record("of one that is not clear", 5, 6),
            record("own", 3, 3),
            record("twice", 3, 4),
            record("also own", 4, 4),
        ];
        let mut found = Found {
            kept: vec![(record("stays", 1, 1), container)],
            unclear: vec![record("unclear", 5, 5)],
            going: going.into(),
        };
        found.settle_claims();
        let with = found.going.iter().filter(|record| record.connection.is_some());
        assert_eq!(with.map(|record| record.handle.as_str()).collect::<Vec<_>>(), ["own", "also own"]);
        assert_eq!(found.connections().len(), 2);
    }
}
