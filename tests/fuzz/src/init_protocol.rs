//! A container's pid 1 that has been taken over: packets to garden, which asks it to start and to stream meanwhile.
#![no_main]
#![allow(dead_code)]

#[path = "../../../garden/src/containerizer/control.rs"]
mod control;
#[path = "../../../garden/src/containerizer/owner.rs"]
mod owner;
#[path = "../../../garden/src/containerizer/watched.rs"]
mod watched;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use garden_init::{EVENT_BYTES_MAX, EVENT_FDS_MAX, Request, SpawnSpec};
use garden_sys::packets;
use libfuzzer_sys::fuzz_target;
use owner::{Command, Owner, QUEUE_MAX};
use rustix::net::SendFlags;
use tokio::sync::{mpsc, oneshot, watch};

const PACKETS_MAX: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = packets::pair().unwrap();
        let mut rest = data;
        for _ in 0..PACKETS_MAX {
            let Some((&[length, more], after)) = rest.split_first_chunk() else { break };
            let (packet, after) = after.split_at(after.len().min(usize::from(length) * 4));
            if packets::send_packet(theirs.as_fd(), more & 1, packet, &[], SendFlags::DONTWAIT).is_err() {
                break;
            }
            rest = after;
        }
        drop(theirs);
        tokio::time::timeout(PATIENCE, listen(ours)).await.expect("garden hangs on its pid 1");
    });
});

/// Asks for a process, a stream and a signal, and listens until pid 1 is gone; every question is answered then.
async fn listen(socket: OwnedFd) {
    let (commands, waiting) = mpsc::channel(QUEUE_MAX);
    let control = control::Control::new(socket, EVENT_BYTES_MAX, EVENT_FDS_MAX).unwrap();
    let (exit, mut ended) = watch::channel(None);
    let (answer, started) = oneshot::channel();
    let spec = Box::new(SpawnSpec { process: "a".into(), ..SpawnSpec::default() });
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let (stream_answer, streamed) = oneshot::channel();
    let make = |request, user, path| Request::StreamIn { request, user, path };
    let (user, path) = (String::new(), String::new());
    for command in [
        Command::Spawn { spec, fds: Vec::new(), exit, answer },
        Command::Stream { make, user, path, pipe, answer: stream_answer },
        Command::Tell(Request::SignalAll { signal: 15 }),
    ] {
        assert!(commands.try_send(command).is_ok());
    }
    Owner::new(control, waiting).run().await;
    drop(commands);
    // Told or dropped: either is an answer to whoever waits.
    let _ = started.await;
    let _ = streamed.await;
    let _ = ended.wait_for(Option::is_some).await;
}
