//! Whether garden still does what a cell needs of it: a container is made, a process runs in it to its end, and all of it
//! goes away again. That garden answers says less: its store may be full, or its kernel out of something.

use std::time::Duration;

use garden_client::{ContainerSpec, Error as GardenError, ProcessIo, ProcessSpec, Properties};

use crate::Shared;
use crate::containers::OWNER_PROPERTY;

/// Of each of its calls.
const ATTEMPTS: u32 = 3;
const HANDLE_PREFIX: &str = "check-";
/// By this property its containers are found again.
const TAG: (&str, &str) = ("tag:healthcheck-tag", "healthcheck");
/// For network plugins, which may make less of such a container.
const NETWORK_PROPERTY: (&str, &str) = ("network.healthcheck", "true");

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GardenCheck {
    /// Of its containers: a path where garden runs.
    pub rootfs: String,
    /// Of its containers; not the executor's own, which destroys those that it does not know.
    pub owner_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub dir: String,
    /// Between two attempts.
    pub retry_pause: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GardenCheckError {
    #[error("cannot {act} to check garden: {source}")]
    Garden { act: &'static str, source: GardenError },
    #[error("Healthcheck exited with {0}")]
    Exited(i32),
}

/// What an earlier one has left goes first; what this one made goes however it ends.
pub(crate) async fn perform(shared: &Shared, check: &GardenCheck) -> Result<(), GardenCheckError> {
    clear(shared, check).await?;
    let garden = &shared.garden;
    let handle = format!("{HANDLE_PREFIX}{}", uuid::Uuid::new_v4());
    let created = check.attempt("create a container", || garden.create(check.container(&handle))).await?;
    // Garden may call it otherwise, as long as it knows it by this name too.
    let known = if created.is_empty() { &handle } else { &created };
    let ran = run(shared, check, known).await;
    let destroyed = destroy(shared, check, &handle).await;
    ran.and(destroyed)
}

/// Leaves no container of any check.
pub(crate) async fn clear(shared: &Shared, check: &GardenCheck) -> Result<(), GardenCheckError> {
    let tag = Properties::from([(TAG.0.to_owned(), TAG.1.to_owned())]);
    let left = check.attempt("list containers", || shared.garden.containers(&tag)).await?;
    for handle in &left {
        destroy(shared, check, handle).await?;
    }
    Ok(())
}

async fn run(shared: &Shared, check: &GardenCheck, handle: &str) -> Result<(), GardenCheckError> {
    let started = || shared.garden.run(handle, check.process(), ProcessIo::default());
    let process = check.attempt("run a process", started).await?;
    match check.attempt("wait for a process", || process.wait()).await? {
        0 => Ok(()),
        status => Err(GardenCheckError::Exited(status)),
    }
}

async fn destroy(shared: &Shared, check: &GardenCheck, handle: &str) -> Result<(), GardenCheckError> {
    let destroy = || async {
        match shared.garden.destroy(handle).await {
            Err(GardenError::ContainerNotFound { .. }) => Ok(()),
            destroyed => destroyed,
        }
    };
    check.attempt("destroy a container", destroy).await
}

impl GardenCheck {
    fn container(&self, handle: &str) -> ContainerSpec {
        let owner = (OWNER_PROPERTY, self.owner_name.as_str());
        let properties =
            [owner, TAG, NETWORK_PROPERTY].map(|(name, value)| (name.to_owned(), value.to_owned()));
        ContainerSpec {
            handle: handle.to_owned(),
            rootfs_path: self.rootfs.clone(),
            properties: Properties::from(properties),
            ..ContainerSpec::default()
        }
    }

    fn process(&self) -> ProcessSpec {
        ProcessSpec {
            path: self.path.clone(),
            args: self.args.clone(),
            user: self.user.clone(),
            env: self.env.clone(),
            dir: self.dir.clone(),
            ..ProcessSpec::default()
        }
    }

    async fn attempt<T, F: Future<Output = garden_client::Result<T>>>(
        &self,
        act: &'static str,
        call: impl Fn() -> F,
    ) -> Result<T, GardenCheckError> {
        let mut attempt = 1;
        loop {
            match call().await {
                Ok(done) => return Ok(done),
                Err(source) if attempt == ATTEMPTS => return Err(GardenCheckError::Garden { act, source }),
                Err(error) => tracing::error!(act, attempt, %error, "executor.garden-health.failed-attempt"),
            }
            attempt += 1;
            tokio::time::sleep(self.retry_pause).await;
        }
    }
}
