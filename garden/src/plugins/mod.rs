//! Programs of others that do a part of garden's work, under the contracts the established server has with them: networks
//! ([`network`]) and root file systems ([`image`]).
//!
//! A program has its time and no more, says no more than is kept, and is told everything by its arguments and its
//! standard input. It runs with garden's own environment and in garden's network namespace, as root: whoever names a
//! plugin trusts it as garden itself.

pub mod image;
pub mod network;
pub mod root;

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Of an answer.
pub const STDOUT_BYTES_MAX: usize = 1 << 20;
/// Of what is said beside it; the rest is read and forgotten.
const STDERR_BYTES_MAX: usize = 64 << 10;
/// Of what an error repeats.
const QUOTE_BYTES_MAX: usize = 2 << 10;
/// For a killed program and its children to be gone; they may be in the middle of something that cannot be interrupted.
const END_TIME: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// Before those of each call.
    pub extra_args: Vec<String>,
    /// Of one call.
    pub deadline: Duration,
}

/// What a program said that ended well.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot start {}: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("cannot speak with {}: {source}", path.display())]
    Speak { path: PathBuf, source: io::Error },
    #[error("it took longer than {0:?}")]
    Late(Duration),
    #[error("it said more than {STDOUT_BYTES_MAX} bytes")]
    TooLong,
    #[error("interrupted")]
    Interrupted,
    /// As the established server words it: `exit status 1`.
    #[error("{}", ended(status, stdout, stderr))]
    Ended { status: ExitStatus, stdout: String, stderr: String },
}

fn ended(status: &ExitStatus, stdout: &str, stderr: &str) -> String {
    use std::os::unix::process::ExitStatusExt;
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    };
    let said = [stdout, stderr].map(str::trim).into_iter().filter(|said| !said.is_empty());
    std::iter::once(how.as_str()).chain(said).collect::<Vec<_>>().join(": ")
}

impl Program {
    /// Runs it to its end. A caller who drops this half-way has it killed with its children, but not waited for.
    pub async fn run(&self, args: &[&str], stdin: &[u8]) -> Result<Output, Failure> {
        self.run_unless(args, stdin, &CancellationToken::new()).await
    }

    /// The same; once `cancelled` is, it is killed with its children, and they are gone when this returns.
    pub async fn run_unless(
        &self,
        args: &[&str],
        stdin: &[u8],
        cancelled: &CancellationToken,
    ) -> Result<Output, Failure> {
        let started = Command::new(&self.path)
            .args(&self.extra_args)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // So that its children can be ended with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut group =
            Group { child: started.map_err(|source| Failure::Start { path: self.path.clone(), source })? };
        let spoken = tokio::select! {
            spoken = timeout(self.deadline, speak(&mut group.child, stdin)) => match spoken {
                Ok(Ok(Some(spoken))) => Ok(spoken),
                Ok(Ok(None)) => Err(Failure::TooLong),
                Ok(Err(source)) => Err(Failure::Speak { path: self.path.clone(), source }),
                Err(_) => Err(Failure::Late(self.deadline)),
            },
            () = cancelled.cancelled() => Err(Failure::Interrupted),
        };
        if spoken.is_err() {
            group.end().await;
        }
        let (status, stdout, stderr) = spoken?;
        if status.success() {
            return Ok(Output { stdout, stderr: text(&stderr, STDERR_BYTES_MAX) });
        }
        let quote = |bytes: &[u8]| text(bytes, QUOTE_BYTES_MAX);
        Err(Failure::Ended { status, stdout: quote(&stdout), stderr: quote(&stderr) })
    }
}

/// A program and the children it has, as far as they stay in its process group. Killed when let go of before it ended.
struct Group {
    child: Child,
}

impl Group {
    /// `None`: the program is reaped, and its id may be another's.
    fn id(&self) -> Option<Pid> {
        self.child.id().and_then(|id| Pid::from_raw(id as i32))
    }

    fn kill(&self) {
        if let Some(group) = self.id() {
            // Fails only where all have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    async fn end(&mut self) {
        self.kill();
        let (group, begun) = (self.id(), Instant::now());
        let _ = timeout(END_TIME, self.child.wait()).await;
        // Those that are still in the group keep its id from being given to another.
        while group.is_some_and(|group| test_kill_process_group(group).is_ok()) && begun.elapsed() < END_TIME
        {
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Everything at once: a program may speak before it has listened to the end. The outputs first to their ends, so that
/// nothing it said is lost. `None`: it says too much, and is not waited for.
async fn speak(child: &mut Child, stdin: &[u8]) -> io::Result<Option<(ExitStatus, Vec<u8>, Vec<u8>)>> {
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async move {
        if let Some(input) = &mut input {
            // A program that does not want to know is no error.
            let _ = input.write_all(stdin).await;
        }
    };
    let hear = async move {
        let stdout = read(output, STDOUT_BYTES_MAX).await?;
        // Its pipe closes with the end of this: what says too much is told so by SIGPIPE.
        Ok::<_, io::Error>(stdout)
    };
    let (stdout, stderr, ()) = tokio::join!(hear, read_and_forget(errors), tell);
    let (stdout, stderr) = (stdout?, stderr?);
    if stdout.len() > STDOUT_BYTES_MAX {
        return Ok(None);
    }
    Ok(Some((child.wait().await?, stdout, stderr)))
}

/// At most one byte more than `max`, which tells that there was more.
async fn read(from: Option<impl AsyncRead + Unpin>, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(max as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The beginning is kept.
async fn read_and_forget(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    let mut chunk = vec![0; 8 << 10];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return Ok(kept);
        }
        let room = STDERR_BYTES_MAX.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&chunk[..room]);
    }
}

/// The end of it, which says why.
fn text(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let start = text.ceil_char_boundary(text.len().saturating_sub(max));
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline_ms: u64) -> Program {
        Program {
            path: "/bin/sh".into(),
            extra_args: vec!["-c".into(), script.into(), "sh".into()],
            deadline: Duration::from_millis(deadline_ms),
        }
    }

    #[tokio::test]
    async fn a_program_is_told_by_arguments_and_input_and_answers() {
        let output =
            sh("echo \"$1 $2\"; cat; echo aside >&2", 5000).run(&["a", "b c"], b"input").await.unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"a b c\ninput"[..], "aside\n"));
        let many = vec![b'x'; 1 << 18];
        assert_eq!(sh("true", 5000).run(&[], &many).await.unwrap().stdout, b"");
        assert_eq!(sh("cat", 5000).run(&[], &many).await.unwrap().stdout, many);
    }

    #[tokio::test]
    async fn what_goes_wrong_says_why_in_bounded_words() {
        let failed = |script: &str| {
            let program = sh(script, 5000);
            async move { program.run(&[], b"").await.unwrap_err().to_string() }
        };
        assert_eq!(failed("echo why >&2; exit 3").await, "exit status 3: why");
        assert_eq!(failed("echo {}; kill -9 $$").await, "signal 9: {}");
        assert_eq!(failed("yes").await, "it said more than 1048576 bytes");
        let long = failed("yes | head -c 3000000 >&2; exit 1").await;
        assert!(long.len() < QUOTE_BYTES_MAX + 100, "{}", long.len());
        let missing = Program { path: "/no/such".into(), ..sh("", 1) };
        let error = missing.run(&[], b"").await.unwrap_err().to_string();
        assert!(error.starts_with("cannot start /no/such: No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let error = sh(&script, 300).run(&[], b"").await.unwrap_err();
        assert_eq!(error.to_string(), "it took longer than 300ms");
        assert!(has_ended(&pid), "its child lives on");
    }

    fn has_ended(pid: &std::path::Path) -> bool {
        let pid = std::fs::read_to_string(pid).unwrap();
        let status = format!("/proc/{}/status", pid.trim());
        std::fs::read_to_string(status).map_or(true, |text| text.contains("State:\tZ"))
    }

    async fn says_its_childs(pid: &std::path::Path) {
        while !std::fs::read_to_string(pid).is_ok_and(|text| text.ends_with('\n')) {
            sleep(LOOK_AGAIN).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_nobody_waits_for_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        // Its child holds none of its outputs.
        let script = format!("sleep 1000 > /dev/null 2>&1 & echo $! > {}; wait", pid.display());
        let program = sh(&script, 60_000);
        let cancelled = CancellationToken::new();
        let cancel = async {
            says_its_childs(&pid).await;
            cancelled.cancel();
        };
        let (outcome, ()) = tokio::join!(program.run_unless(&[], b"", &cancelled), cancel);
        assert_eq!(outcome.unwrap_err().to_string(), "interrupted");
        assert!(has_ended(&pid), "its child lives on");
        std::fs::remove_file(&pid).unwrap();
        tokio::select! {
            _ = program.run(&[], b"") => panic!("it does not end by itself"),
            () = says_its_childs(&pid) => {}
        }
        timeout(END_TIME, async {
            while !has_ended(&pid) {
                sleep(LOOK_AGAIN).await;
            }
        })
        .await
        .expect("its child lives on");
    }
}
