//! Where tests kill a garden: after everything it does that outlives it. Nothing at all outside of tests.

/// Something has been done that a next garden will find.
#[cfg(not(test))]
#[inline(always)]
pub fn passed() {}

#[cfg(test)]
pub use counted::{die_at, passed};

#[cfg(test)]
mod counted {
    use std::sync::atomic::{AtomicUsize, Ordering};

    static PASSED: AtomicUsize = AtomicUsize::new(0);
    static LAST: AtomicUsize = AtomicUsize::new(usize::MAX);

    pub fn passed() {
        if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == LAST.load(Ordering::SeqCst) {
            // As an operator or the kernel does it: nothing is run on the way out.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::thread::park();
        }
    }

    /// This process ends when it passes its `number`th milestone.
    pub fn die_at(number: usize) {
        LAST.store(number, Ordering::SeqCst);
    }
}
