//! From the moment a change is asked for to its event at each of many subscribers: more than what passes after the commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bbs_models::{ActualLrpInstanceKey, Event};
use futures_util::StreamExt;

use super::figures::{Report, Times};
use super::number;
use super::operations::{desired, key, started};
use super::served::Served;

const CHANGES: usize = 50;
const APART: Duration = Duration::from_millis(200);

pub async fn measure(report: &mut Report) -> Result<()> {
    let served = Served::start(None, 1).await?;
    let many = number("SUBSCRIBERS", 1_000);
    for (subscribers, figure) in [(1, "bbs_event_ms"), (many, "bbs_event_many_subscribers_ms")] {
        let times = deliver(&served, subscribers).await?;
        report.times(&format!("a change to its event, {subscribers} subscribers"), &times);
        report.figure(figure, times.median_ms(), "ms");
    }
    Ok(())
}

async fn deliver(served: &Served, subscribers: usize) -> Result<Times> {
    let epoch = Instant::now();
    let asked: Arc<Vec<AtomicU64>> = Arc::new((0..CHANGES).map(|_| AtomicU64::new(0)).collect());
    let guid = format!("events-{subscribers}");
    let mut listening = tokio::task::JoinSet::new();
    for _ in 0..subscribers {
        let mut events = served.client()?.subscribe_to_instance_events().await?;
        let guid = guid.clone();
        listening.spawn(async move {
            let mut heard = Vec::new();
            while heard.len() < CHANGES {
                match events.next().await {
                    // In the order in which they were asked for.
                    Some(Ok(Event::ActualLrpInstanceCreated { lrp, .. })) if lrp.key.process_guid == guid => {
                        heard.push(epoch.elapsed());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(anyhow::Error::from(error)),
                    None => bail!("the stream has ended"),
                }
            }
            Ok(heard)
        });
    }
    let bbs = served.client()?;
    // No instances are desired: the first that is heard of each is its start.
    bbs.desire_lrp(&desired(&guid, 0, 0)).await?;
    for (index, at) in asked.iter().enumerate() {
        let instance = ActualLrpInstanceKey::new(format!("i-{index}"), "cell-0");
        at.store(epoch.elapsed().as_nanos() as u64, Ordering::SeqCst);
        bbs.start_actual_lrp(&key(&guid, index as u32), &instance, &started()).await?;
        tokio::time::sleep(APART).await;
    }
    let mut times = Times::default();
    while let Some(heard) = listening.join_next().await {
        for (heard, asked) in heard??.into_iter().zip(asked.iter()) {
            let asked = Duration::from_nanos(asked.load(Ordering::SeqCst));
            times.add(heard.saturating_sub(asked));
        }
    }
    Ok(times)
}
