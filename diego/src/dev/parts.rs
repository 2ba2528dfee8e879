//! The components that run in this process. The first one that ends ends them all: half a Diego is none.

use std::future::Future;

use anyhow::{Result, anyhow};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub struct Parts {
    running: JoinSet<(&'static str, Result<()>)>,
    shutdown: CancellationToken,
}

impl Parts {
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    pub fn start<E>(&mut self, name: &'static str, part: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.running.spawn(async move { (name, part.await.map_err(anyhow::Error::new)) });
    }

    /// A part that says itself what went wrong.
    pub fn start_any(&mut self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) {
        self.running.spawn(async move { (name, part.await) });
    }

    /// A part that cannot fail.
    pub fn start_endless(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(async move {
            part.await;
            (name, Ok(()))
        });
    }

    /// Waits until one part ends by itself, which is an error.
    pub async fn first_to_end(&mut self) -> anyhow::Error {
        match self.running.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow!("the {name} ended unasked"),
            Some(Ok((name, Err(error)))) => error.context(format!("the {name} failed")),
            Some(Err(panic)) => anyhow!(panic).context("a part failed"),
            None => anyhow!("nothing runs"),
        }
    }

    /// Tells all to stop and waits until they have.
    pub async fn stop(mut self) -> Result<()> {
        self.shutdown.cancel();
        let mut first = Ok(());
        while let Some(ended) = self.running.join_next().await {
            let outcome = match ended {
                Ok((name, outcome)) => {
                    outcome.map_err(|error| error.context(format!("the {name} failed to stop")))
                }
                Err(panic) => Err(anyhow!(panic)),
            };
            first = first.and(outcome);
        }
        first
    }
}
