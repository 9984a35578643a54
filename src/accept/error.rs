//! Whose fault an error of accept is, and what to do about it: the one policy, for the accept loop
//! and for the sweep.
//!
//! A peer's error is counted and passed over. A shortage of ours is waited out in pauses that grow,
//! with one line in the log. A listener's own end stops the server.

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_lite::future;

use crate::log;
use crate::shared::Shared;
use crate::sync::{listen, nanos};

/// The first and the longest pause after a shortage, as in Go's `net/http`.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// How many errors of peers in a row are passed over at once; after every so many there is a pause.
const FAILURES_IN_A_ROW: u32 = 256;

/// Whose fault an error of accept is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptErrorKind {
    /// The peer's or the network's: the next connection may be fine.
    Connection,
    /// Ours: there is too little of something, which passes when some is freed.
    Resource,
    /// The listener's: it will not get better.
    Fatal,
}

/// What an accept loop does after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Accept again.
    Again,
    /// Accept again after a pause of this length.
    Pause(Duration),
    /// Accept again when something may have been freed: after [`AcceptBackoff::pause`].
    Backoff,
    /// Accept no more at this listener.
    Stop,
}

/// An accept loop's memory of its errors since a peer could last be accepted.
///
/// Whether the server is short of something is remembered for all its accept loops together, in
/// `Shared::last_shortage`, and the log says it once. A shortage is over when a peer is accepted a
/// second or more after accept last failed for it: a server that lives from one freed descriptor to
/// the next is short of them all the while.
#[derive(Debug, Default)]
pub(crate) struct AcceptBackoff {
    /// How many errors of peers there were.
    failures: u32,
    /// The last pause after a shortage.
    pause: Option<Duration>,
}

impl AcceptBackoff {
    /// Counts an error and logs it where an operator has to know; gives what to do next.
    pub(crate) fn on_error(&mut self, shared: &Shared, error: &io::Error) -> Next {
        match classify(error) {
            AcceptErrorKind::Connection => {
                shared
                    .registry
                    .count_accept_error(|errors| errors.peer += 1);
                log::debug!(target: "gracious", "a peer was gone before it was accepted: {error}");
                // So many in a row are no peer's fault any more, whatever their number says: a
                // listener that always fails would make this loop a spin.
                self.failures += 1;
                if self.failures % FAILURES_IN_A_ROW > 0 {
                    return Next::Again;
                }
                if self.failures == FAILURES_IN_A_ROW {
                    log::warn!(target: "gracious", "accept fails again and again: {error}");
                }
                let doublings = (self.failures / FAILURES_IN_A_ROW).min(8);
                Next::Pause((FIRST_PAUSE * 2_u32.pow(doublings)).min(LAST_PAUSE))
            }
            AcceptErrorKind::Resource => {
                shared
                    .registry
                    .count_accept_error(|errors| errors.shortage += 1);
                Next::Backoff
            }
            AcceptErrorKind::Fatal => {
                shared
                    .registry
                    .count_accept_error(|errors| errors.listener += 1);
                Next::Stop
            }
        }
    }

    /// Forgets the errors, since a peer could be accepted, and says in the log that a shortage is
    /// over.
    pub(crate) fn on_success(&mut self, shared: &Shared) {
        *self = Self::default();
        // `SeqCst` pairs with nothing here or below: only this one value is compared.
        let last = shared.last_shortage.load(SeqCst);
        if last == 0 {
            return;
        }
        let since = shared.uptime().saturating_sub(Duration::from_nanos(last));
        // Fails where another accept loop has met the shortage again since the load, or has said
        // that it is over.
        let over = || {
            shared
                .last_shortage
                .compare_exchange(last, 0, SeqCst, SeqCst)
        };
        if since > LAST_PAUSE && over().is_ok() {
            log::info!(target: "gracious", "accepting again");
        }
    }

    /// Waits a while, longer each time, or until a connection of this server ends: it may have
    /// freed what was missing. Says in the log that there is a shortage, unless that has been said.
    pub(crate) async fn pause(&mut self, shared: &Shared, error: &io::Error) {
        let ended = listen(&shared.permits.released);
        let now = nanos(shared.uptime()).max(1);
        if shared.last_shortage.swap(now, SeqCst) == 0 {
            let hint = match error.raw_os_error() {
                Some(libc::EMFILE) => {
                    "; raise the limit of open files (`ulimit -n`) or set `max_connections` below it"
                }
                Some(libc::ENFILE) => "; raise the system's limit of open files (`fs.file-max`)",
                Some(libc::ENOSPC) => "; raise `fs.epoll.max_user_watches`",
                _ => "",
            };
            log::warn!(
                target: "gracious",
                "cannot accept, new peers wait until something is freed: {error}{hint}",
            );
        }
        let pause = self
            .pause
            .map_or(FIRST_PAUSE, |pause| (pause * 2).min(LAST_PAUSE));
        self.pause = Some(pause);
        future::or(shared.clock.sleep(pause), ended).await;
    }
}

/// Says whose fault an error of accept is: by its number, or by its kind where a listener of the
/// user's own has no number to give.
fn classify(error: &io::Error) -> AcceptErrorKind {
    use io::ErrorKind as Kind;
    match error.raw_os_error() {
        // Out of descriptors, in this process or the system.
        Some(libc::EMFILE | libc::ENFILE) => AcceptErrorKind::Resource,
        // Out of socket buffers or of memory.
        Some(libc::ENOBUFS | libc::ENOMEM) => AcceptErrorKind::Resource,
        // Out of epoll's watches (`fs.epoll.max_user_watches`), met when the peer is registered.
        Some(libc::ENOSPC) => AcceptErrorKind::Resource,
        // The peer was reset while it was queued.
        Some(libc::ECONNABORTED | libc::ECONNRESET) => AcceptErrorKind::Connection,
        // accept(2): "Linux accept() passes already-pending network errors on the new socket as an
        // error code from accept(). … should be treated like EAGAIN by retrying."
        Some(
            libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::ETIMEDOUT
            | libc::ENOTCONN,
        ) => AcceptErrorKind::Connection,
        #[cfg(target_os = "linux")]
        Some(libc::ENONET) => AcceptErrorKind::Connection,
        // A firewall's verdict on this peer.
        Some(libc::EPERM) => AcceptErrorKind::Connection,
        // A signal broke the call; the queue was empty after all.
        Some(libc::EINTR | libc::EAGAIN) => AcceptErrorKind::Connection,
        // EBADF, EINVAL, ENOTSOCK, EFAULT: this is no listening socket any more.
        Some(_) => AcceptErrorKind::Fatal,
        None => match error.kind() {
            Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::NotConnected
            | Kind::TimedOut
            | Kind::Interrupted
            | Kind::WouldBlock
            | Kind::PermissionDenied => AcceptErrorKind::Connection,
            Kind::OutOfMemory | Kind::QuotaExceeded => AcceptErrorKind::Resource,
            _ => AcceptErrorKind::Fatal,
        },
    }
}
