//! The account of one disk: who takes what of it, who may take more, and who has to give something up.
//!
//! ```text
//! 0 ──────────── taken ─────────────┬── low ──┬── high ──┬── brim ──┬── total
//!   layers, roots, downloads, blobs │         │          │          │
//!   promised to roots, claimed      │  ◀──────┴ collected│  claimed │ kept: for everybody else
//! ```
//! All figures come from the filesystem itself, at the moment they are needed: what others write on the disk is seen as
//! soon as what we do. Whoever is about to write claims the room first. A claim beyond the high mark wakes the keeper, a
//! thread that takes away what was unused the longest until the low mark is reached; a claim beyond the brim waits for the
//! same, with everything that is unused to be had, and is refused only when that was not enough. So nothing of ours is
//! ever written beyond the brim, and the marks lie below it on a disk of any size ([`Marks`]).
//!
//! Those who take room are [`Tenant`]s: each knows what of its own is in use, and never gives that. Nothing is known
//! here of what they keep. One ledger speaks for one disk and one process; what another process takes is seen as taken,
//! and what it is promised or about to write stands on a [`Board`](board), where both have one in common.

mod board;
mod keeper;
mod marks;
mod space;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use board::Board;
use keeper::Bell;
pub use marks::Marks;
pub use space::Space;

/// Who was not used for so long goes first, whoever's it is. The ages are tried in this order until enough is freed.
const AGES: [Duration; 9] = [
    hours(30 * 24),
    hours(7 * 24),
    hours(2 * 24),
    hours(12),
    hours(3),
    hours(1),
    Duration::from_secs(20 * 60),
    RECENT,
    Duration::ZERO,
];
/// What was used more recently is left alone as long as nobody waits for the room.
const RECENT: Duration = Duration::from_secs(5 * 60);
/// A claim that grows with what is written grows in steps of so many bytes.
const STEP_BYTES: u64 = 8 << 20;

const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

/// Somebody who keeps things on the disk.
pub trait Tenant: Send + Sync {
    fn name(&self) -> &'static str;
    /// Blocking.
    fn usage(&self) -> io::Result<Usage>;
    /// What it may still take without asking, because others rely on it, in bytes. Quick.
    fn promised(&self) -> io::Result<u64> {
        Ok(0)
    }
    /// Takes away what nobody uses, the longest unused first, and answers once the room is free. Blocking.
    fn evict(&self, evict: Evict) -> io::Result<Evicted>;
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    /// Of these, what [`Tenant::evict`] could free.
    pub evictable_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evict {
    /// Stop once this much is freed.
    pub bytes: u64,
    /// What was used more recently stays.
    pub unused_for: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    pub things: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot measure the disk of {}: {source}", path.display())]
    Measure { path: PathBuf, source: io::Error },
    #[error(
        "the disk of {} has no room for {what}: {bytes} bytes are needed and {room} bytes may be taken, with nothing \
         unused left to remove",
        path.display()
    )]
    NoRoom { what: String, path: PathBuf, bytes: u64, room: u64 },
}

/// Everything the account says, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub space: Space,
    pub marks: Marks,
    /// Of each tenant: what it takes, and what more is promised to it.
    pub tenants: Vec<(&'static str, Usage, u64)>,
    pub claimed_bytes: u64,
    /// What other processes on the disk have claimed, or are promised.
    pub elsewhere_bytes: u64,
    /// What claims may still take.
    pub room_bytes: u64,
    pub collected: Collected,
}

/// Since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub times: u64,
    pub things: u64,
    pub bytes: u64,
    /// Claims that could not be met.
    pub refused: u64,
}

/// Cheap to clone; all clones are one account.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

type Measure = Box<dyn Fn() -> io::Result<Space> + Send + Sync>;

struct Inner {
    path: PathBuf,
    measure: Measure,
    tenants: Mutex<Vec<Weak<dyn Tenant>>>,
    /// Not written as yet.
    claimed: Mutex<u64>,
    /// In common with other processes, and below which directory.
    board: Option<(PathBuf, Board)>,
    /// As it was found last, for the board.
    last_promised: AtomicU64,
    /// One collection at a time: two would take twice what is needed.
    collecting: Mutex<()>,
    figures: Figures,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct Figures {
    times: AtomicU64,
    things: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the ledger of {}", self.0.path.display())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.bell.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device(path: &Path) -> Result<u64, Error> {
    let failed = |errno: rustix::io::Errno| Error::Measure { path: path.into(), source: errno.into() };
    rustix::fs::stat(path).map(|stat| stat.st_dev).map_err(failed)
}

impl Ledger {
    /// Of the disk that `directory` is on, watched until the last clone is gone.
    pub fn open(directory: &Path) -> Result<Ledger, Error> {
        Ledger::start(directory, None)
    }

    /// The same, in common with all processes that say so of the same disk: they see what each other has claimed and was
    /// promised. `boards`: a directory that all of them can write, made if it is not there; without it the account is this
    /// process's own.
    pub fn open_in_common(directory: &Path, boards: &Path) -> Result<Ledger, Error> {
        let board = match Board::join(boards, device(directory)?) {
            Ok(board) => Some((boards.to_path_buf(), board)),
            Err(error) => {
                tracing::warn!(boards = %boards.display(), %error, "the account of the disk is this process's own");
                None
            }
        };
        Ledger::start(directory, board)
    }

    fn start(directory: &Path, board: Option<(PathBuf, Board)>) -> Result<Ledger, Error> {
        let path = directory.to_path_buf();
        let ledger = Ledger::of(directory, Box::new(move || Space::of(&path)), board);
        ledger.space()?;
        keeper::start(&ledger.0);
        Ok(ledger)
    }

    /// This one where `directory` is on the same disk, another where it is not.
    pub fn of_disk(&self, directory: &Path) -> Result<Ledger, Error> {
        if device(&self.0.path)? == device(directory)? {
            return Ok(self.clone());
        }
        match &self.0.board {
            Some((boards, _)) => Ledger::open_in_common(directory, boards),
            None => Ledger::open(directory),
        }
    }

    fn of(directory: &Path, measure: Measure, board: Option<(PathBuf, Board)>) -> Ledger {
        Ledger(Arc::new(Inner {
            path: directory.into(),
            measure,
            tenants: Mutex::default(),
            claimed: Mutex::default(),
            board,
            last_promised: AtomicU64::new(0),
            collecting: Mutex::default(),
            figures: Figures::default(),
            bell: Arc::default(),
        }))
    }

    /// As long as the tenant lives.
    pub fn register(&self, tenant: &Arc<impl Tenant + 'static>) {
        let tenant: Arc<dyn Tenant> = tenant.clone();
        lock(&self.0.tenants).push(Arc::downgrade(&tenant));
        if let Err(error) = self.publish() {
            tracing::warn!(%error, "cannot tell others what is promised");
        }
    }

    /// Room for `bytes` more, kept until it is written or the answer is dropped. Blocking: where there is none, what is
    /// unused is taken away first.
    pub fn claim(&self, what: &str, bytes: u64) -> Result<Claim, Error> {
        let mut claim = Claim { ledger: self.clone(), what: what.into(), claimed: 0, in_hand: 0 };
        claim.grow(bytes)?;
        Ok(claim)
    }

    /// The same, and tries to have `wanted` in all without claiming more than `bytes`: for who cannot know how much it will
    /// be. Blocking.
    pub fn claim_expecting(&self, what: &str, bytes: u64, wanted: u64) -> Result<Claim, Error> {
        let room = self.room()?;
        if let Some(missing) = wanted.max(bytes).checked_sub(room).filter(|missing| *missing > 0) {
            self.collect(missing, Duration::ZERO);
        }
        self.claim(what, bytes)
    }

    /// What claims may still take, in bytes.
    pub fn room(&self) -> Result<u64, Error> {
        let claimed = lock(&self.0.claimed);
        let (space, promised) = (self.space()?, self.promised()? + self.elsewhere()?);
        Ok(Marks::of(space.total).room(space.taken() + promised + *claimed))
    }

    /// What `promised` bytes are worth: as much as the disk could give if everything unused went. Blocking.
    pub fn can_keep(&self, promised: u64) -> Result<u64, Error> {
        let space = self.space()?;
        let claimed = *lock(&self.0.claimed) + self.elsewhere()?;
        let evictable: u64 = self.usages().map(|(_, usage, _)| usage.evictable_bytes).sum();
        let room = Marks::of(space.total).room(space.taken().saturating_sub(evictable) + claimed);
        Ok(promised.min(room))
    }

    /// Takes away what is unused, the longest first, until `bytes` are free or nothing is left that was not used for
    /// `unused_for`. Blocking.
    pub fn collect(&self, bytes: u64, unused_for: Duration) -> Evicted {
        let _one = lock(&self.0.collecting);
        self.collect_alone(bytes, unused_for)
    }

    /// Collects down to the low mark if the disk is fuller than the high one.
    pub fn keep(&self) -> Result<Evicted, Error> {
        let Some(bytes) = self.over_the_mark()? else { return Ok(Evicted::default()) };
        let evicted = self.collect(bytes, RECENT);
        if evicted.bytes < bytes {
            tracing::debug!(disk = %self.0.path.display(), wanted = bytes, freed = evicted.bytes, "the disk stays above its mark");
        }
        Ok(evicted)
    }

    /// How much is to go.
    fn over_the_mark(&self) -> Result<Option<u64>, Error> {
        let claimed = lock(&self.0.claimed);
        let (space, promised) = (self.space()?, self.promised()? + self.elsewhere()?);
        Ok(Marks::of(space.total).excess(space.taken() + promised + *claimed))
    }

    fn collect_alone(&self, bytes: u64, unused_for: Duration) -> Evicted {
        let mut evicted = Evicted::default();
        let tenants = self.tenants();
        for age in AGES.into_iter().filter(|age| *age >= unused_for) {
            for tenant in &tenants {
                let Some(missing) = bytes.checked_sub(evicted.bytes).filter(|missing| *missing > 0) else {
                    break;
                };
                match tenant.evict(Evict { bytes: missing, unused_for: age }) {
                    Ok(more) => {
                        evicted.things += more.things;
                        evicted.bytes += more.bytes;
                    }
                    Err(error) => {
                        tracing::warn!(tenant = tenant.name(), %error, "cannot take away what is unused")
                    }
                }
            }
        }
        if evicted.things > 0 {
            let (things, freed) = (evicted.things, evicted.bytes);
            tracing::info!(disk = %self.0.path.display(), things, bytes = freed, wanted = bytes, "took away what was unused");
            self.0.figures.times.fetch_add(1, Ordering::Relaxed);
            self.0.figures.things.fetch_add(things, Ordering::Relaxed);
            self.0.figures.bytes.fetch_add(freed, Ordering::Relaxed);
        }
        evicted
    }

    /// Blocking.
    pub fn report(&self) -> Result<Report, Error> {
        let (space, claimed_bytes) = (self.space()?, *lock(&self.0.claimed));
        let figures = &self.0.figures;
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Ok(Report {
            space,
            marks: Marks::of(space.total),
            tenants: self.usages().collect(),
            claimed_bytes,
            elsewhere_bytes: self.elsewhere()?,
            room_bytes: self.room()?,
            collected: Collected {
                times: read(&figures.times),
                things: read(&figures.things),
                bytes: read(&figures.bytes),
                refused: read(&figures.refused),
            },
        })
    }

    fn space(&self) -> Result<Space, Error> {
        (self.0.measure)().map_err(|source| Error::Measure { path: self.0.path.clone(), source })
    }

    fn tenants(&self) -> Vec<Arc<dyn Tenant>> {
        let mut tenants = lock(&self.0.tenants);
        tenants.retain(|tenant| tenant.strong_count() > 0);
        tenants.iter().filter_map(Weak::upgrade).collect()
    }

    fn promised(&self) -> Result<u64, Error> {
        let promised = self.tenants().iter().map(|tenant| tenant.promised()).sum::<io::Result<u64>>();
        promised.map_err(|source| Error::Measure { path: self.0.path.clone(), source })
    }

    /// What other processes have spoken for, in bytes.
    pub fn elsewhere(&self) -> Result<u64, Error> {
        let others = self.0.board.as_ref().map_or(Ok(0), |(_, board)| board.glance());
        others.map_err(|source| Error::Measure { path: self.0.path.clone(), source })
    }

    /// Tells other processes what is promised here by now.
    fn publish(&self) -> Result<(), Error> {
        if self.0.board.is_some() {
            let promised = self.promised()?;
            let claimed = lock(&self.0.claimed);
            self.0.last_promised.store(promised, Ordering::Relaxed);
            self.say(*claimed);
        }
        Ok(())
    }

    fn say(&self, claimed: u64) {
        if let Some((_, board)) = &self.0.board {
            board.publish(self.0.last_promised.load(Ordering::Relaxed) + claimed);
        }
    }

    /// One that cannot be asked is left out, and said so.
    fn usages(&self) -> impl Iterator<Item = (&'static str, Usage, u64)> {
        self.tenants().into_iter().filter_map(|tenant| {
            match tenant.usage().and_then(|u| Ok((u, tenant.promised()?))) {
                Ok((usage, promised)) => Some((tenant.name(), usage, promised)),
                Err(error) => {
                    tracing::warn!(tenant = tenant.name(), %error, "cannot tell what it takes of the disk");
                    None
                }
            }
        })
    }

    /// Enters more into the account if it fits; otherwise the answer is the room there is.
    fn enter(&self, bytes: u64) -> Result<Result<(), u64>, Error> {
        let mut claimed = lock(&self.0.claimed);
        let board = self.0.board.as_ref().map(|(_, board)| (board, board.turn()));
        let elsewhere = board.as_ref().map_or(Ok(0), |(board, turn)| board.others(turn));
        let elsewhere = elsewhere.map_err(|source| Error::Measure { path: self.0.path.clone(), source })?;
        let (space, promised) = (self.space()?, self.promised()?);
        self.0.last_promised.store(promised, Ordering::Relaxed);
        let (marks, taken) = (Marks::of(space.total), space.taken() + promised + *claimed + elsewhere);
        let room = marks.room(taken);
        if room < bytes {
            return Ok(Err(room));
        }
        *claimed += bytes;
        self.say(*claimed);
        drop((board, claimed));
        if marks.excess(taken + bytes).is_some() {
            self.0.bell.ring();
        }
        Ok(Ok(()))
    }
}

/// Room on the disk that is kept for somebody who writes.
#[derive(Debug)]
pub struct Claim {
    ledger: Ledger,
    what: String,
    /// With what is in hand.
    claimed: u64,
    /// Being written.
    in_hand: u64,
}

impl Claim {
    /// Makes sure that `bytes` can be written now, beyond what was taken before, which is on the disk by now. Blocking.
    pub fn take(&mut self, bytes: u64) -> Result<(), Error> {
        self.give_back(self.in_hand);
        self.in_hand = 0;
        if self.claimed < bytes {
            let missing = bytes - self.claimed;
            // In steps, so that the disk is not measured for every small thing; at its end, to the byte.
            if self.ledger.enter(missing.max(STEP_BYTES))?.is_ok() {
                self.claimed += missing.max(STEP_BYTES);
            } else {
                self.grow(missing)?;
            }
        }
        self.in_hand = bytes;
        Ok(())
    }

    /// Whether [`Claim::take`] of so many bytes would not have to ask.
    pub fn covers(&self, bytes: u64) -> bool {
        self.claimed - self.in_hand >= bytes
    }

    fn grow(&mut self, bytes: u64) -> Result<(), Error> {
        if self.ledger.enter(bytes)?.is_ok() {
            self.claimed += bytes;
            return Ok(());
        }
        let _one = lock(&self.ledger.0.collecting);
        loop {
            // Who collected before us may have done so for us, too.
            let Err(room) = self.ledger.enter(bytes)? else {
                self.claimed += bytes;
                return Ok(());
            };
            if self.ledger.collect_alone(bytes - room, Duration::ZERO).bytes == 0 {
                self.ledger.0.figures.refused.fetch_add(1, Ordering::Relaxed);
                let path = self.ledger.0.path.clone();
                return Err(Error::NoRoom { what: self.what.clone(), path, bytes, room });
            }
        }
    }

    fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.claimed);
        self.claimed -= bytes;
        let mut claimed = lock(&self.ledger.0.claimed);
        *claimed -= bytes;
        self.ledger.say(*claimed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_back(self.claimed);
    }
}

#[cfg(test)]
mod tests;
