//! What the store does behind everybody's back, one thing at a time: removing trees, closing mounts, and waiting for the disk. A
//! container that wrote a million files is gone at once for who destroys it. What is not done when the store is
//! closed is done at the next start: trees lie in `tmp`, and layers that are not durable yet are known by that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::digest::Digest;
use crate::layers::Layers;
use crate::overlay::Spent;
use crate::tree;

/// Chores waiting; whoever brings one more removal does it himself.
const WAITING_MAX: usize = 1024;

/// How something is removed, where a tree is not all it is.
pub type How = fn(&Path) -> std::io::Result<()>;

enum Chore {
    Remove(PathBuf, How),
    MakeDurable(Vec<Digest>),
    LetGo(Spent),
    Answer(SyncSender<()>),
}

#[derive(Debug)]
pub struct Chores {
    chores: Option<SyncSender<Chore>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Chores {
    pub fn start(layers: Arc<Layers>) -> Chores {
        let (chores, received) = sync_channel(WAITING_MAX);
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::spawn(move || work(&received, &layers, &stop));
        Chores { chores: Some(chores), stopping, thread: Some(thread) }
    }

    pub fn remove(&self, path: PathBuf) {
        self.remove_by(tree::remove, path);
    }

    pub fn remove_by(&self, how: How, path: PathBuf) {
        let Some(chores) = &self.chores else { return };
        let sent = chores.try_send(Chore::Remove(path, how));
        if let Err(TrySendError::Full(chore) | TrySendError::Disconnected(chore)) = sent
            && let Chore::Remove(path, how) = chore
        {
            remove(&path, how);
        }
    }

    /// Left out when there is too much to do: then those layers are not trusted after a power cut.
    pub fn make_durable(&self, ids: Vec<Digest>) {
        if let Some(chores) = &self.chores {
            let _ = chores.try_send(Chore::MakeDurable(ids));
        }
    }

    /// With too much to do they are closed here and now.
    pub fn let_go(&self, spent: Spent) {
        if let Some(chores) = &self.chores {
            let _ = chores.try_send(Chore::LetGo(spent));
        }
    }

    /// Waits until everything brought so far is done.
    pub fn settle(&self) {
        let (sender, done) = sync_channel(1);
        if let Some(chores) = &self.chores
            && chores.send(Chore::Answer(sender)).is_ok()
        {
            let _ = done.recv();
        }
    }
}

impl Drop for Chores {
    /// Waits for the chore in hand; those that wait are left for the next start.
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.chores = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(chores: &Receiver<Chore>, layers: &Layers, stopping: &AtomicBool) {
    for chore in chores {
        match chore {
            // Whoever asked may have gone.
            Chore::Answer(done) => drop(done.send(())),
            Chore::LetGo(spent) => drop(spent),
            _ if stopping.load(Ordering::Relaxed) => {}
            Chore::Remove(path, how) => remove(&path, how),
            Chore::MakeDurable(ids) => {
                if let Err(error) = layers.make_durable(&ids) {
                    tracing::warn!(%error, "cannot make layers durable");
                }
            }
        }
    }
}

fn remove(path: &Path, how: How) {
    if let Err(error) = how(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a tree; the next start tries again");
    }
}
