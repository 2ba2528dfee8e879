//! `diego logs`: asks every cell for what an app's instances printed, and goes on listening with `-f`.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use futures_util::{Stream, StreamExt, stream};
use rep_client::LogLine;
use tokio_util::sync::CancellationToken;

use super::Global;
use super::target::Target;
use super::{Failure, output};

/// Bytes of one line that a cell sends.
const LINE_BYTES_MAX: usize = 1 << 20;
/// How long a stopped follower may still deliver what is on its way.
const LAST_LINES: Duration = Duration::from_millis(300);

#[derive(Args)]
pub struct Flags {
    name: String,
    /// Go on until interrupted.
    #[arg(long, short = 'f')]
    follow: bool,
    /// How many lines of the past.
    #[arg(long, short = 'n', default_value_t = 200)]
    lines: usize,
}

pub async fn run(global: &Global, flags: Flags) -> Result<(), Failure> {
    let target = Target::reach(global).await?;
    target.app(&flags.name).await?;
    let urls = urls(&target, &flags.name, flags.lines, flags.follow).await?;
    if flags.follow {
        let lines = stream::select_all(urls.into_iter().map(|url| Box::pin(lines(target.http.clone(), url))));
        tokio::select! {
            shown = show(global.json, lines) => shown?,
            _ = tokio::signal::ctrl_c() => {}
        }
        return Ok(());
    }
    let mut past = Vec::new();
    for url in urls {
        let mut lines = Box::pin(lines(target.http.clone(), url));
        while let Some(line) = lines.next().await {
            past.push(line.context("cannot read the logs")?);
        }
    }
    past.sort_by_key(|line| line.timestamp);
    let newest = past.split_off(past.len().saturating_sub(flags.lines));
    show(global.json, stream::iter(newest.into_iter().map(Ok))).await?;
    Ok(())
}

async fn show(json: bool, lines: impl Stream<Item = anyhow::Result<LogLine>>) -> anyhow::Result<()> {
    let mut lines = std::pin::pin!(lines);
    while let Some(line) = lines.next().await {
        let line = line?;
        if json { output::line(&line)? } else { output::print(&text(&line))? }
    }
    Ok(())
}

/// `2026-11-21T22:41:05.12Z [APP/0] OUT hello`
fn text(line: &LogLine) -> String {
    let at = jiff::Timestamp::from_nanosecond(line.timestamp.into()).unwrap_or_default();
    format!("{at:.2} [{}/{}] {} {}", line.source_name, line.index, line.stream.to_uppercase(), line.message)
}

async fn urls(target: &Target, log_guid: &str, lines: usize, follow: bool) -> Result<Vec<String>, Failure> {
    let cells = target.bbs.cells().await.context("cannot list the cells")?;
    let query = format!("lines={lines}&follow={follow}");
    Ok(cells.iter().map(|cell| format!("{}/v1/logs/{log_guid}?{query}", cell.rep_url)).collect())
}

/// The lines of one cell.
fn lines(http: reqwest::Client, url: String) -> impl Stream<Item = anyhow::Result<LogLine>> + Send {
    let answer = async move {
        let answer = http.get(&url).send().await?.error_for_status()?;
        Ok::<_, reqwest::Error>(answer.bytes_stream())
    };
    stream::once(answer).flat_map(|answer| match answer {
        Ok(chunks) => split(chunks).left_stream(),
        Err(error) => stream::once(async { Err(anyhow!(error)) }).right_stream(),
    })
}

fn split<C: AsRef<[u8]>, E: std::error::Error + Send + Sync + 'static>(
    chunks: impl Stream<Item = Result<C, E>>,
) -> impl Stream<Item = anyhow::Result<LogLine>> {
    let mut pending = Vec::new();
    chunks.flat_map(move |chunk| {
        let mut found = Vec::new();
        match chunk {
            Ok(chunk) => pending.extend_from_slice(chunk.as_ref()),
            Err(error) => found.push(Err(anyhow!(error))),
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            found.push(serde_json::from_slice(&line).context("cannot read a log line"));
        }
        if pending.len() > LINE_BYTES_MAX {
            pending.clear();
            found.push(Err(anyhow!("a log line is longer than {LINE_BYTES_MAX} bytes")));
        }
        stream::iter(found)
    })
}

/// Lines of the past that are looked through for those of an instance that has just begun.
const LINES_OF_A_BEGINNING: usize = 1000;

/// Shows lines on stderr while something else is waited for.
pub struct Follower {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// All that one instance says, also what it said before a cell could be asked: it may be quicker than we are.
pub fn follow_in_background(target: &Target, log_guid: &str, instance_guid: &str) -> Follower {
    let stop = CancellationToken::new();
    let instance_guid = instance_guid.to_owned();
    let (bbs, http, log_guid) = (target.bbs.clone(), target.http.clone(), log_guid.to_owned());
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let Ok(cells) = bbs.cells().await else { return };
        let url = |cell: bbs_models::CellPresence| {
            format!("{}/v1/logs/{log_guid}?lines={LINES_OF_A_BEGINNING}&follow=true", cell.rep_url)
        };
        let all = cells.into_iter().map(|cell| Box::pin(lines(http.clone(), url(cell))));
        let mut all = stream::select_all(all);
        let late = async {
            stopped.cancelled().await;
            tokio::time::sleep(LAST_LINES).await;
        };
        let mut late = std::pin::pin!(late);
        loop {
            tokio::select! {
                line = all.next() => match line {
                    // The word of the cell about lines that were missed names no instance.
                    Some(Ok(line)) if ["", &instance_guid].contains(&&line.instance_guid[..]) => {
                        // Nobody needs to read it: what is waited for goes on.
                        let _ = writeln!(std::io::stderr(), "{}", text(&line));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                },
                () = &mut late => return,
            }
        }
    });
    Follower { stop, task }
}

impl Follower {
    pub async fn finish(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_cut_anywhere_come_out_whole() {
        let line = |message: &str| {
            format!(r#"{{"timestamp_ns":1,"index":0,"source":"APP","stream":"OUT","message":"{message}"}}"#)
                + "\n"
        };
        let bytes = (line("one") + &line("two")).into_bytes();
        for cut in 0..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let chunks = stream::iter([first, second].map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())));
            let messages: Vec<_> = split(chunks).map(|line| line.unwrap().message).collect().await;
            assert_eq!(messages, ["one", "two"], "cut at {cut}");
        }
    }
}
