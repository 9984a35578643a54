//! The errors of a connection that the server has ended.

use std::error::Error;
use std::fmt;
use std::io;

use super::readiness::flag;

/// The error of a read or a write on a connection whose word has one of the flags
/// `ENDED_BY_SERVER`.
pub(crate) fn ended_by_server(word: u64) -> io::Error {
    if word & flag::ABORT != 0 {
        aborted()
    } else {
        expired()
    }
}

/// The error of an operation on a connection that was aborted.
pub(crate) fn aborted() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the server aborted the connection",
    )
}

/// The error of an operation on a connection that a limit of time has ended.
pub(crate) fn expired() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the connection reached a time limit of the server",
    )
}

/// A peer has taken too long over something that the server's own code reads: it is the peer's
/// failure, and no warning is due.
#[cfg(feature = "http")]
pub(crate) fn too_slow(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, TooSlow(message))
}

/// Whether an error is one of [`too_slow`].
pub(crate) fn is_too_slow(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(<dyn Error + Send + Sync>::is::<TooSlow>)
}

// Without HTTP nobody makes one.
#[cfg_attr(not(feature = "http"), allow(dead_code))]
#[derive(Debug)]
struct TooSlow(String);

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for TooSlow {}
