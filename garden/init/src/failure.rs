//! What went wrong, as one line: the act and its object, then the kernel's reason.

use std::fmt;
use std::io;

#[derive(Debug)]
pub struct Failure {
    act: String,
    cause: io::Error,
}

impl Failure {
    pub fn new(act: impl Into<String>, cause: impl Into<io::Error>) -> Failure {
        Failure { act: act.into(), cause: cause.into() }
    }

    /// One that another process has already put into words.
    pub fn told(message: String) -> Failure {
        Failure { act: String::new(), cause: io::Error::other(message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.act.is_empty() {
            return write!(f, "{}", self.cause);
        }
        write!(f, "cannot {}: {}", self.act, self.cause)
    }
}

pub type Result<T> = std::result::Result<T, Failure>;

/// `act` names what was tried, without "cannot".
pub trait Context<T> {
    fn act(self, act: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn act(self, act: impl Into<String>) -> Result<T> {
        self.map_err(|cause| Failure::new(act, cause))
    }
}
