//! The errors of a connection that the server has ended.

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
