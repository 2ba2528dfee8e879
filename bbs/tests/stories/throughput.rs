//! Not a promise but a look: how many calls a second one BBS takes, over loopback HTTP, flushed to the disk.
//! Run it by name: `cargo test -p bbs --test stories -- --ignored --nocapture throughput`.

use std::time::Instant;

use crate::world::{World, key, lrp, on, started};

const CLIENTS: usize = 16;
const CALLS_PER_CLIENT: usize = 100;

/// Runs `call` for each number of each client, and says how many were done a second.
async fn measure<F>(what: &str, call: impl Fn(String) -> F + Clone + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let call = call.clone();
            tokio::spawn(async move {
                for number in 0..CALLS_PER_CLIENT {
                    call(format!("app-{client}-{number}")).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let rate = (CLIENTS * CALLS_PER_CLIENT) as f64 / began.elapsed().as_secs_f64();
    println!("{what}: {rate:.0} calls/s");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, to be asked for by name"]
async fn throughput() {
    let world = World::new().await;
    world.set_cells(&["cell-1"]);
    let bbs = world.bbs().clone();
    measure("desire", {
        let bbs = bbs.clone();
        move |guid| {
            let bbs = bbs.clone();
            async move { bbs.desire_lrp(&lrp(&guid, 1)).await.unwrap() }
        }
    })
    .await;
    measure("claim", {
        let bbs = bbs.clone();
        move |guid| {
            let bbs = bbs.clone();
            async move { bbs.claim_actual_lrp(&key(&guid, 0), &on("cell-1", &guid)).await.unwrap() }
        }
    })
    .await;
    measure("start", move |guid| {
        let bbs = bbs.clone();
        async move {
            bbs.start_actual_lrp(&key(&guid, 0), &on("cell-1", &guid), &started()).await.unwrap();
        }
    })
    .await;
}
