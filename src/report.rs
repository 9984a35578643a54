//! The account of a server: live as [`Stats`], final as [`Report`].

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use crate::address::Address;
use crate::lifecycle::Reason;

/// The counts of a server, as of one moment.
///
/// Always `accepted == completed + failed + panicked + aborted + detached + rejected + active`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections taken from the kernel.
    pub accepted: u64,
    /// Connections whose handler returned `()` or `Ok(())`.
    pub completed: u64,
    /// Connections whose handler returned an error.
    pub failed: u64,
    /// Connections whose handler panicked.
    pub panicked: u64,
    /// Connections whose handler was dropped: at the deadline, by an abort, or with the runtime.
    pub aborted: u64,
    /// Connections that a handler took out of the server.
    pub detached: u64,
    /// Connections that were closed without a handler.
    pub rejected: u64,
    /// Connections that have not ended.
    pub active: u64,
    /// Connections of those that are being closed and have given their permits to others: their
    /// peers have everything, and may have nothing more to say. See
    /// [`Builder::max_connections`](crate::Builder::max_connections).
    pub closing: u64,
    /// The most connections that were active at once.
    pub peak: u64,
    /// Futures given to [`Handle::track`](crate::Handle::track) that have not ended; counted apart
    /// from the connections.
    pub tracked: u64,
    /// Failed calls of accept; a shortage counts every time it was met.
    pub accept_errors: u64,
    /// The same by whose fault they were.
    pub accept_errors_by: AcceptErrors,
    /// Connections of those above that a limit ended, by the limit.
    pub limited: Limited,
    /// Connections of those above that were closed while their peers had not everything, or still
    /// sent, because [`Builder::linger_total`](crate::Builder::linger_total) had passed.
    pub lingered_out: u64,
    /// Connections of those above that were idle when a drain ended them, and whose peers sent
    /// something afterwards, which nobody has served: requests that crossed with the end.
    pub unserved_input: u64,
    /// Bytes read from peers.
    pub bytes_in: u64,
    /// Bytes written to peers.
    pub bytes_out: u64,
}

/// Failed calls of accept, by whose fault they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptErrors {
    /// A peer or the network: that peer was gone before it was accepted.
    pub peer: u64,
    /// A shortage of ours: descriptors, memory.
    pub shortage: u64,
    /// The listener's own end.
    pub listener: u64,
}

/// Connections that a limit ended, by the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limited {
    /// [`idle_timeout`](crate::Builder::idle_timeout).
    pub idle: u64,
    /// [`first_byte_timeout`](crate::Builder::first_byte_timeout).
    pub first_byte: u64,
    /// [`max_age`](crate::Builder::max_age).
    pub age: u64,
}

/// The account of a server's life.
///
/// Its `Display` is one readable paragraph. As the value of `main` it is exit status 0 when nothing
/// was aborted, else 1.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Why the server stopped: the first reason given.
    pub reason: Reason,
    /// The counts at the end; `active` is 0 in what [`Server::serve`](crate::Server::serve)
    /// returns.
    pub stats: Stats,
    /// From `bind` to the end.
    pub elapsed: Duration,
    /// From the first request to stop to the end.
    pub drain: Duration,
    /// Who had to be aborted when the drain was cut short.
    pub stragglers: Vec<Straggler>,
}

impl std::ops::Deref for Report {
    type Target = Stats;

    /// A report is the final [`Stats`] and a few words more: `report.accepted` reads its counts.
    fn deref(&self) -> &Stats {
        &self.stats
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
        write!(f, "stopped ({}) after {:.1?}: ", self.reason, self.elapsed)?;
        write!(
            f,
            "{} accepted, {} completed",
            stats.accepted, stats.completed
        )?;
        let others = [
            (stats.failed, "failed"),
            (stats.panicked, "panicked"),
            (stats.aborted, "aborted"),
            (stats.detached, "detached"),
            (stats.rejected, "rejected"),
            (stats.active, "still active"),
            (stats.tracked, "tracked futures left"),
            (stats.accept_errors, "accept errors"),
            (stats.lingered_out, "closed before their peers had done"),
            (stats.unserved_input, "with input after their end"),
        ];
        for (count, what) in others.iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        write!(f, "; the drain took {:.1?}", self.drain)?;
        for (i, straggler) in self.stragglers.iter().enumerate() {
            f.write_str(if i == 0 { "; cut off: " } else { ", " })?;
            straggler.fmt(f)?;
        }
        Ok(())
    }
}

impl Report {
    /// The exit status that this report stands for as the value of `main`: 0 when nothing was aborted,
    /// else 1. For a `main` with more to say.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.stats.aborted == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl Termination for Report {
    fn report(self) -> ExitCode {
        self.exit_code()
    }
}

/// A connection that was still there when the drain was cut short.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Straggler {
    /// Its id.
    pub id: u64,
    /// Its peer.
    pub peer: Address,
    /// How long before it was accepted.
    pub age: Duration,
    /// Whether it was inside a message.
    pub busy: bool,
    /// What it was waiting for.
    pub waiting: Waiting,
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy = if self.busy { "busy" } else { "idle" };
        write!(
            f,
            "{} ({busy}, {:.1?} old, {})",
            self.peer, self.age, self.waiting
        )
    }
}

/// What a connection is waiting for, as far as the server can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Waiting {
    /// A byte from its peer.
    Read,
    /// Its peer, to take what is being written.
    Write,
    /// Its peer, to take the rest after its handler ended.
    Close,
    /// A permit under [`max_connections`](crate::Builder::max_connections).
    Limit,
    /// Its handler, which waits for something of its own.
    Handler,
    /// Its handler, which blocks the thread it runs on and could not be dropped.
    Blocked,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "waiting for its peer to send",
            Self::Write => "waiting for its peer to read",
            Self::Close => "waiting for its peer to hang up",
            Self::Limit => "waiting for a permit",
            Self::Handler => "its handler at work",
            Self::Blocked => "its handler blocks a thread",
        })
    }
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Its handler returned, of itself.
    Handler,
    /// Its handler returned after the peer had ended its side.
    Peer,
    /// Its handler returned after a drain had ended its reads.
    Drain,
    /// Its handler returned this error.
    Error(String),
    /// Its handler panicked.
    Panic,
    /// It was cut: at the deadline, by an abort, or with the runtime.
    Aborted,
    /// [`Builder::idle_timeout`](crate::Builder::idle_timeout).
    IdleTimeout,
    /// [`Builder::first_byte_timeout`](crate::Builder::first_byte_timeout).
    FirstByteTimeout,
    /// [`Builder::max_age`](crate::Builder::max_age).
    MaxAge,
    /// There was no permit for it.
    Rejected,
    /// Its handler took it out of the server.
    Detached,
}

/// A connection as [`Handle::connections`](crate::Handle::connections) shows it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its id: 1 for the first of a server, and so on.
    pub id: u64,
    /// Its peer.
    pub peer: Address,
    /// How long ago it was accepted.
    pub age: Duration,
    /// Whether it is inside a message.
    pub busy: bool,
    /// What it is waiting for.
    pub waiting: Waiting,
    /// Bytes read from the peer.
    pub bytes_in: u64,
    /// Bytes written to the peer.
    pub bytes_out: u64,
}

/// A listener, as [`Handle::listeners`](crate::Handle::listeners) shows it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ListenerInfo {
    /// Where it listens.
    pub address: Address,
    /// How many peers wait in the kernel's queue; known for TCP on Linux.
    pub queued: Option<u32>,
}
