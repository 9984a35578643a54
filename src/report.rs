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
    /// Tracked futures that a stop dropped before they were done: at the deadline, by an abort, or
    /// with the runtime. Futures that no task polled any more, and that it gave up, are among them.
    pub dropped: u64,
    /// Failed calls of accept; a shortage counts every time it was met.
    pub accept_errors: u64,
    /// The same by whose fault they were.
    pub accept_errors_by: AcceptErrors,
    /// The server serves and cannot accept, for want of descriptors or memory: it met the shortage
    /// within the last two seconds. Peers wait in the kernel's queue meanwhile, and
    /// [`Handle::is_serving`](crate::Handle::is_serving) is `false`.
    pub shortage: bool,
    /// Connections of those above that a limit ended, by the limit.
    pub limited: Limited,
    /// TLS handshakes, and waits for PROXY headers, under way. These connections are among the
    /// [active](Self::active), and have no permit of
    /// [`max_connections`](crate::Builder::max_connections) unless as many others as that are in a
    /// handshake, too.
    #[cfg(feature = "_handshake")]
    pub handshakes: u64,
    /// TLS handshakes that came to nothing: a client's fault, or one that took
    /// [too long](crate::Builder::tls_handshake_timeout). Connections whose handler was never called
    /// for that are among the [failed](Self::failed).
    #[cfg(feature = "_tls")]
    pub failed_handshakes: u64,
    /// Connections of the [failed](Self::failed) whose [PROXY header](crate::ProxyHeader) was none, or
    /// took too long: their handlers were never called.
    #[cfg(feature = "proxy")]
    pub failed_proxy_headers: u64,
    /// Connections of those above that were closed while their peers had not everything, or still
    /// sent, because [`Builder::linger_total`](crate::Builder::linger_total) had passed.
    pub lingered_out: u64,
    /// Connections of those above that were idle when a drain ended them, and whose peers sent
    /// something afterwards, which nobody has served: requests that crossed with the end. Not counted over TLS.
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
/// Its `Display` is one readable paragraph. As the value of `main` it is exit status 0 where it
/// [is clean](Self::is_clean), else 1.
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
    /// The connections that had to be aborted, at the deadline or by an abort.
    pub stragglers: Vec<Straggler>,
    /// Tracked work that was not done when the drain began: what the stop waited for, and what it
    /// dropped, by name. What it waited for longest comes first.
    pub tracked_work: Vec<TrackedWork>,
}

impl Report {
    /// Whether everything came to its own end: no connection was aborted, and no tracked work was
    /// dropped. Handlers that failed or panicked ended by themselves.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.aborted == 0 && self.dropped == 0
    }
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
            #[cfg(feature = "_tls")]
            (stats.failed_handshakes, "failed TLS handshakes"),
            #[cfg(feature = "proxy")]
            (stats.failed_proxy_headers, "failed PROXY headers"),
            (stats.lingered_out, "closed before their peers had done"),
            (stats.unserved_input, "with input after their end"),
        ];
        for (count, what) in others.iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        write!(f, "; the drain took {:.1?}", self.drain)?;
        for (i, straggler) in self.stragglers.iter().enumerate() {
            f.write_str(if i == 0 { "; aborted: " } else { ", " })?;
            straggler.fmt(f)?;
        }
        let listed = |f: &mut fmt::Formatter<'_>, title: &str, count: fn(&TrackedWork) -> u64| {
            let mut separator = title;
            for work in self.tracked_work.iter().filter(|work| count(work) > 0) {
                f.write_str(std::mem::replace(&mut separator, ", "))?;
                work.write(f, count(work))?;
            }
            Ok(())
        };
        listed(f, "; waited for ", |work| work.count - work.dropped)?;
        listed(f, "; dropped ", |work| work.dropped)
    }
}

impl Report {
    /// The exit status that this report stands for as the value of `main`: 0 when nothing was
    /// aborted or dropped, else 1. For a `main` with more to say.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.is_clean() {
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

/// A connection that was still open at the deadline, or when the drain was ended by an abort.
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

/// Tracked work of one name that was not done when a drain began.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackedWork {
    /// The name that [`Handle::track_as`](crate::Handle::track_as) was given, or else where
    /// [`Handle::track`](crate::Handle::track) was called (`src/main.rs:40:9`).
    pub name: String,
    /// How many futures of this name there were.
    pub count: u64,
    /// How many of them were dropped before they were done.
    pub dropped: u64,
    /// How long after the drain had begun the last of them ended, or was dropped.
    pub waited: Duration,
}

impl TrackedWork {
    /// Names `count` futures of this name.
    fn write(&self, f: &mut fmt::Formatter<'_>, count: u64) -> fmt::Result {
        match count {
            1 => write!(f, "{} ({:.1?})", self.name, self.waited),
            _ => write!(f, "{} ({count} of them, {:.1?})", self.name, self.waited),
        }
    }
}

impl fmt::Display for TrackedWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, self.count)
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
    /// Its TLS handshake.
    #[cfg(feature = "_tls")]
    Handshake,
    /// The header of the proxy that has connected.
    #[cfg(feature = "proxy")]
    ProxyHeader,
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
            #[cfg(feature = "_tls")]
            Self::Handshake => "in its TLS handshake",
            #[cfg(feature = "proxy")]
            Self::ProxyHeader => "waiting for its PROXY header",
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
    /// Its TLS handshake failed with this; its handler was never called.
    #[cfg(feature = "_tls")]
    Handshake(String),
    /// Its PROXY header was wrong, or did not come; its handler was never called.
    #[cfg(feature = "proxy")]
    ProxyHeader(String),
    /// Its handler panicked.
    Panic,
    /// It was aborted: at the deadline, by an abort, or with the runtime.
    Aborted,
    /// It had been asked to end by [`Builder::idle_timeout`](crate::Builder::idle_timeout).
    IdleTimeout,
    /// [`Builder::first_byte_timeout`](crate::Builder::first_byte_timeout).
    FirstByteTimeout,
    /// [`Builder::max_age`](crate::Builder::max_age).
    MaxAge,
    /// There was no permit for it; or it came past the proxies that a server takes its clients from.
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
    /// The [id](ListenerInfo::id) of the listener that it came through.
    pub listener: u64,
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
    /// Its id, for [`Handle::shut`](crate::Handle::shut): 0 for the first of a server, and so on. No
    /// other listener of that server ever has it.
    pub id: u64,
    /// Where it listens.
    pub address: Address,
    /// How many peers wait in the kernel's queue; known for TCP on Linux.
    pub queued: Option<u32>,
    /// Whether it was shut: new peers are refused, and it is there for those in its queue, or whose
    /// handshake is under way.
    pub is_shut: bool,
}
