//! One of several emitters that tell of all cells' instances works; which one, a lock in Locket says.

use std::future::Future;

use bbs_client::{Hold, LocketClient, LocketError};
use bbs_models::{LockKind, Resource};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whoever holds it in Locket works.
const LOCK_KEY: &str = "route_emitter";

/// Begins `work` when the lock is held and gives the lock back after it; tells it to stop when the lock is lost,
/// which is an error.
pub async fn while_held<F: Future<Output = ()>>(
    locket: LocketClient,
    owner: Option<String>,
    shutdown: &CancellationToken,
    work: impl FnOnce(CancellationToken) -> F,
) -> Result<(), LocketError> {
    let (stop, release) = (shutdown.child_token(), CancellationToken::new());
    let (held, mut is_held) = watch::channel(false);
    let keeping = async {
        let kept = hold(owner).keep(locket, held, release.clone()).await;
        stop.cancel();
        kept
    };
    let working = async {
        let begun = tokio::select! {
            held = is_held.wait_for(|held| *held) => held.is_ok(),
            () = stop.cancelled() => false,
        };
        if begun {
            work(stop.clone()).await;
        }
        release.cancel();
    };
    let (kept, ()) = tokio::join!(keeping, working);
    kept
}

/// Nobody named: its owner is new for each process.
fn hold(owner: Option<String>) -> Hold {
    let owner = owner.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    Hold::new(Resource { key: LOCK_KEY.into(), owner, value: String::new(), kind: LockKind::Lock })
}
