//! `cell`: a rep and its garden in one process, which speak to one another without a socket in between.
//!
//! Stopped or killed and started again, as another version of this program too, it goes on with the containers it had.

use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use diego_base::clock::SystemClock;
use garden::Gardener;

use super::gdn::{self, Name, ServerFlags};
use super::rep::{self, CONTAINERS_MAX, Limits, Voice};
use crate::dev::Parts;

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    voice: Voice,
    #[command(flatten)]
    garden: ServerFlags,
}

pub async fn run(flags: Flags) -> Result<()> {
    let limits = Limits {
        disk_mb: None,
        disk_kept_mb: 0,
        containers: match flags.garden.limits.max_containers {
            0 => CONTAINERS_MAX,
            most => most,
        },
        destroy_containers_on_stop: flags.garden.containers.destroy_containers_on_stop,
    };
    let (config, shutdown) = gdn::prepare(Name::Garden, flags.garden)?;
    let mut garden = Parts::default();
    let gardener = Gardener::start(config.gardener, Arc::new(SystemClock), garden.shutdown()).await;
    let gardener = gardener.context("cannot start garden")?;
    let serving = garden::serve(config.listen, config.debug, gardener.clone(), garden.shutdown());
    garden.start("garden", serving);
    let stop = shutdown.child_token();
    let mut speaking = pin!(rep::speak(flags.voice, limits, Arc::new(gardener.clone()), stop.clone()));
    let lived = tokio::select! {
        // Told to, or because the cell has been evacuated.
        ended = &mut speaking => ended,
        error = garden.first_to_end() => {
            stop.cancel();
            speaking.await.and(Err(error))
        }
    };
    // Garden goes last: the rep may have had containers to destroy.
    let stopped = garden.stop().await;
    gardener.shut_down().await;
    lived.and(stopped)
}
