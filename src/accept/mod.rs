//! Taking peers in: the loop, and the policy that it follows.
//!
//! 1. One place, then the accepts of all of a door's listeners raced together, in turn: a place
//!    waiting at one quiet listener would starve the others.
//! 2. The loop never spins and never ends because of a peer.
//! 3. A shutdown wins over everything the loop may be waiting for.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_lite::future;
use futures_util::{FutureExt, select_biased};

use crate::handle::Shared;
use crate::shared::connection::Record;
use crate::sync::nanos;

pub(crate) mod spawn;

/// The first and the longest pause in a shortage, as in Go's `net/http`.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// How many peers are taken in a row before other tasks of the thread have a turn.
const IN_A_ROW: u32 = 64;

/// How many peers may be gone before they were accepted until that is worth a pause.
pub(crate) const FAILURES_IN_A_ROW: u32 = 256;

/// Takes peers at one door until `stop`, and gives those their places who were held.
///
/// # Errors
/// That of a listener that cannot go on.
pub(crate) async fn accept_until(
    shared: &Arc<Shared>,
    door: usize,
    stop: impl Future<Output = ()>,
    admit: impl Fn(Arc<Record>),
    serve: impl Fn(Arc<Record>),
) -> io::Result<()> {
    let phase = shared.latch.phase();
    let taking = async {
        let mut shortage = Shortage::default();
        let mut taken = 0_u32;
        loop {
            match next_peer(shared, door, &mut shortage).await? {
                Next::New(record) => admit(record),
                Next::Held(record) => serve(record),
            }
            taken = taken.wrapping_add(1);
            // While one peer comes after the other the race is not run again. A stop raises the phase
            // above the one that this began in, or is a matter of time.
            if taken % IN_A_ROW == 0 || shared.latch.phase() > phase {
                future::yield_now().await;
            }
        }
    };
    let (mut stop, mut taking) = (pin!(stop.fuse()), pin!(taking.fuse()));
    select_biased! {
        () = stop => Ok(()),
        end = taking => end,
    }
}

enum Next {
    New(Arc<Record>),
    /// One who was taken in while the limit was lowered.
    Held(Arc<Record>),
}

/// Waits for a place, then for a peer.
async fn next_peer(shared: &Arc<Shared>, door: usize, shortage: &mut Shortage) -> io::Result<Next> {
    let mut failures = 0_u32;
    loop {
        shared.place().await;
        if let Some(record) = shared.next_held() {
            return Ok(Next::Held(record));
        }
        let accepted = poll_fn(|cx| shared.poll_next(door, cx));
        let error = match accepted.await {
            None => continue,
            Some(Ok(record)) => {
                shortage.pass(shared);
                return Ok(Next::New(record));
            }
            Some(Err(error)) => error,
        };
        match blame(&error) {
            Blame::Peer => {
                shared.group.count_accept_error(|errors| errors.peer += 1);
                log::debug!(target: "gracious", error:%; "a peer was gone before it was accepted: {error}");
                // One after the other without end is no peer's fault any more, whatever it says.
                failures += 1;
                if failures % FAILURES_IN_A_ROW == 0 {
                    if failures == FAILURES_IN_A_ROW {
                        log::warn!(target: "gracious", error:%; "accept fails again and again: {error}");
                    }
                    let doublings = (failures / FAILURES_IN_A_ROW).min(8);
                    let pause = FIRST_PAUSE * 2_u32.pow(doublings);
                    shared.clock.sleep(pause.min(LAST_PAUSE)).await;
                }
                future::yield_now().await;
            }
            Blame::Shortage => {
                shared
                    .group
                    .count_accept_error(|errors| errors.shortage += 1);
                shortage.pause(shared, &error).await;
            }
            Blame::Listener => {
                shared
                    .group
                    .count_accept_error(|errors| errors.listener += 1);
                return Err(error);
            }
        }
    }
}

/// Whose fault an error of accept is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The peer's or the network's: the next one may be fine.
    Peer,
    /// Ours: it passes when something is freed.
    Shortage,
    /// The listener's: it will not get better.
    Listener,
}

pub(crate) fn blame(error: &io::Error) -> Blame {
    use io::ErrorKind as Kind;
    match error.raw_os_error() {
        // Out of descriptors, in this process or the system.
        Some(libc::EMFILE | libc::ENFILE) => Blame::Shortage,
        // Out of socket buffers or of memory.
        Some(libc::ENOBUFS | libc::ENOMEM) => Blame::Shortage,
        // Out of epoll's watches (`fs.epoll.max_user_watches`), met when the peer is registered.
        Some(libc::ENOSPC) => Blame::Shortage,
        // The peer was reset while it was queued.
        Some(libc::ECONNABORTED | libc::ECONNRESET) => Blame::Peer,
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
        ) => Blame::Peer,
        #[cfg(target_os = "linux")]
        Some(libc::ENONET) => Blame::Peer,
        // A firewall's verdict on this peer.
        Some(libc::EPERM) => Blame::Peer,
        // A call that a signal broke, and one that found nobody after all.
        Some(libc::EINTR | libc::EAGAIN) => Blame::Peer,
        // EBADF, EINVAL, ENOTSOCK, EFAULT: no listening socket any more.
        Some(_) => Blame::Listener,
        // A listener of the user's own has no number to give.
        None => match error.kind() {
            Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::NotConnected
            | Kind::TimedOut
            | Kind::Interrupted
            | Kind::WouldBlock
            | Kind::PermissionDenied => Blame::Peer,
            Kind::OutOfMemory | Kind::QuotaExceeded => Blame::Shortage,
            _ => Blame::Listener,
        },
    }
}

/// A time in which we lack something to accept with.
///
/// It ends with a second without: a server that lives from one freed descriptor to the next is
/// short of them all the while, and says so once, however many doors it has.
#[derive(Debug, Default)]
pub(crate) struct Shortage {
    pause: Option<Duration>,
}

impl Shortage {
    /// Waits a while, longer each time, or until a connection of ours ends.
    pub(crate) async fn pause(&mut self, shared: &Shared, error: &io::Error) {
        let ended = shared.group.vacancy.listen();
        let now = nanos(shared.uptime()).max(1);
        if shared.shortage.swap(now, SeqCst) == 0 {
            let hint = match error.raw_os_error() {
                Some(libc::EMFILE) => {
                    "; raise the limit of open files (`ulimit -n`) or set `max_connections` below it"
                }
                Some(libc::ENFILE) => "; raise the system's limit of open files (`fs.file-max`)",
                Some(libc::ENOSPC) => "; raise `fs.epoll.max_user_watches`",
                _ => "",
            };
            log::warn!(
                target: "gracious", error:% = error;
                "cannot accept, new peers wait until something is freed: {error}{hint}",
            );
        }
        let pause = self
            .pause
            .map_or(FIRST_PAUSE, |pause| (pause * 2).min(LAST_PAUSE));
        self.pause = Some(pause);
        future::or(shared.clock.sleep(pause), ended).await;
    }

    /// Somebody could be accepted.
    fn pass(&mut self, shared: &Shared) {
        self.pause = None;
        let last = shared.shortage.load(SeqCst);
        if last == 0 {
            return;
        }
        let since = shared.uptime().saturating_sub(Duration::from_nanos(last));
        // Another door may be short again meanwhile, or have said so.
        let over = || shared.shortage.compare_exchange(last, 0, SeqCst, SeqCst);
        if since > LAST_PAUSE && over().is_ok() {
            log::info!(target: "gracious", "accepting again");
        }
    }
}
