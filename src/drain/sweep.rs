//! The listeners at a stop: shut, swept, kept for the handshakes under way, closed.
//!
//! To close a listener resets the peers in its queue, and those whose handshake is not over. The
//! order of the acts decides:
//!
//! 1. Shut: new peers are refused, at all listeners before anything waits.
//! 2. Sweep: accept until the queue is empty.
//! 3. Look for handshakes under way, a millisecond later: a SYN that another processor was taking
//!    up when the listener was shut is listed by then. What a later look finds and this one did not
//!    is a successor's on the same port, or a scanner's, and is not waited for.
//! 4. While handshakes of that first look are left the listener stays, beside the drain, for
//!    `handshake_grace` at most.
//! 5. Sweep once more, *after* the look that found none, then close. A handshake may end between a
//!    sweep and the look: its peer is in the queue by then, and would be reset by the close.
//!    (Sweep, look, close: 210 resets in 1 935 stops. With the sweep after the look: none in 4
//!    000.)
//!
//! A listener that cannot be shut (an adopted one, or where the system has no means) is swept for
//! as many peers as its queue may have had, and closed without a wait: new ones come all the while.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use futures_lite::future;

use super::handshakes::Handshakes;
use crate::accept::admission::{admit, close_unserved, enter, start};
use crate::accept::error::{AcceptBackoff, Next};
use crate::accept::spawn::Launcher;
use crate::accept::{AcceptorGuard, IN_A_ROW};
use crate::lifecycle::Phase;
use crate::listener::set::ListenerSet;
use crate::log;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::sync::{listen, notify};

/// How long after an error no peer is accepted at a listener that is shut.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// What becomes of a connection that a sweep has accepted.
trait Destination {
    fn take(&mut self, shared: &Arc<Shared>, connection: Arc<ConnectionState>);
}

/// It is admitted, as by an accept loop.
impl Destination for dyn Launcher + '_ {
    fn take(&mut self, shared: &Arc<Shared>, connection: Arc<ConnectionState>) {
        admit(shared, connection, self);
    }
}

/// It is closed cleanly, without a handler.
struct Unserved;

impl Destination for Unserved {
    fn take(&mut self, _shared: &Arc<Shared>, connection: Arc<ConnectionState>) {
        close_unserved(connection);
    }
}

/// Shuts all listeners of this server and of those linked to it, and removes their Unix paths: new
/// peers are refused from here on.
pub(super) fn shut_listeners(shared: &Shared) {
    shut_own_listeners(shared);
    for server in shared.linked() {
        shut_own_listeners(&server);
    }
}

/// Shuts all listeners of this server, but those that stay open through a drain as long as that is
/// not their turn.
fn shut_own_listeners(shared: &Shared) {
    shared.sets_to_close().for_each(ListenerSet::shut);
}

/// What the listeners are kept for after the first sweep.
pub(super) enum Kept {
    /// Nothing: they are closed.
    Nothing,
    /// Queued peers for which there is no descriptor.
    Queue,
    /// Peers whose handshake is under way.
    Handshakes(Handshakes),
}

/// Sweeps all listeners and closes those that need not be kept.
pub(super) async fn sweep_and_close(shared: &Arc<Shared>, launcher: &mut dyn Launcher) -> Kept {
    if !sweep(shared, launcher).await {
        return Kept::Queue;
    }
    match Handshakes::look(shared).await {
        Some(handshakes) => {
            close_others(shared, launcher);
            Kept::Handshakes(handshakes)
        }
        None => {
            close_listeners(shared, launcher);
            Kept::Nothing
        }
    }
}

/// Accepts at the shut listeners for as long as they have to be kept, then closes them.
pub(super) async fn keep_sweeping(
    shared: &Arc<Shared>,
    launcher: &mut dyn Launcher,
    mut kept: Kept,
) {
    let mut backoff = AcceptBackoff::default();
    loop {
        let mut handshakes = match kept {
            Kept::Nothing => return,
            Kept::Queue => {
                let error = io::Error::from_raw_os_error(libc::EMFILE);
                backoff.pause(shared, &error).await;
                kept = sweep_and_close(shared, launcher).await;
                continue;
            }
            Kept::Handshakes(handshakes) => handshakes,
        };
        while !handshakes.is_over() {
            let accepted = async { Some(poll_fn(|cx| poll_any(shared, cx)).await) };
            let look = async {
                handshakes.look_again().await;
                None
            };
            // The look is polled first. Swapped, peers or errors that come without a pause would
            // keep it from ever being made.
            match future::or(look, accepted).await {
                Some(Ok(connection)) => admit(shared, connection, launcher),
                Some(Err(error)) => match backoff.on_error(shared, &error) {
                    Next::Backoff => backoff.pause(shared, &error).await,
                    // A peer's error, or the end of a listener that will be closed anyway.
                    _ => shared.clock.sleep(ERROR_PAUSE).await,
                },
                None => {}
            }
            future::yield_now().await;
        }
        if sweep(shared, launcher).await {
            return close_listeners(shared, launcher);
        }
        kept = Kept::Queue;
    }
}

/// Accepts every peer that is queued, and yields to other tasks in between; `false` where some are
/// left, because the server is short of something, or aborted.
async fn sweep(shared: &Arc<Shared>, launcher: &mut dyn Launcher) -> bool {
    let mut sweep = Sweep::new(shared);
    loop {
        if sweep.some(launcher, IN_A_ROW) {
            return sweep.is_complete;
        }
        // An abort closes the listeners itself: see `abort_and_close`.
        if shared.latch.phase() >= Phase::Aborting {
            return false;
        }
        future::yield_now().await;
    }
}

/// Closes all listeners, after a last sweep.
fn close_listeners(shared: &Arc<Shared>, launcher: &mut dyn Launcher) {
    close_after_sweep(shared, launcher, false);
}

/// Closes, after a last sweep, the listeners that are not asked about handshakes: there are none on
/// Unix sockets, and a listener that could not be shut still lets new peers in.
fn close_others(shared: &Arc<Shared>, launcher: &mut dyn Launcher) {
    close_after_sweep(shared, launcher, true);
}

/// Closes all listeners at once, from any thread. Peers that are still queued are closed without a
/// handler, and handshakes under way are not waited for. A second call finds no listeners.
pub(super) fn close_listeners_unserved(shared: &Arc<Shared>) {
    shared.latch.come_to_the_last();
    close_after_sweep(shared, &mut Unserved, false);
}

/// Closes all listeners, from any thread, as a drain would: where handshakes are under way a thread
/// of the server's own keeps the listeners for them. All queued peers are closed without a handler.
pub(super) fn close_listeners_without_runtime(shared: &Arc<Shared>) {
    shared.latch.come_to_the_last();
    shut_own_listeners(shared);
    sweep_unserved(shared);
    let Some(mut handshakes) = Handshakes::look_now(shared) else {
        return close_listeners_unserved(shared);
    };
    // The guard keeps the server from being closed before the thread is done.
    let (server, guard) = (shared.clone(), AcceptorGuard::new(shared));
    let keep = move || {
        while !handshakes.is_over() && !server.is_closed_to_peers() {
            handshakes.look_again_blocking();
            sweep_unserved(&server);
        }
        close_listeners_unserved(&server);
        drop(guard);
    };
    let thread = thread::Builder::new().name("gracious-close".into());
    if let Err(error) = thread.spawn(keep) {
        log::warn!(target: "gracious", "cannot wait for handshakes under way: {error}");
        close_listeners_unserved(shared);
    }
}

/// Accepts every peer that is queued, without a pause, and closes each without a handler.
fn sweep_unserved(shared: &Arc<Shared>) {
    let mut sweep = Sweep::new(shared);
    while !sweep.some(&mut Unserved, u32::MAX) {}
}

/// Sweeps all listeners a last time and closes those that are done with, with nothing in between: a
/// peer whose handshake ended between the two acts would be reset.
fn close_after_sweep(
    shared: &Arc<Shared>,
    destination: &mut (impl Destination + ?Sized),
    keeps_handshakes: bool,
) {
    shut_own_listeners(shared);
    let mut sweep = Sweep::new(shared);
    while !sweep.some(destination, u32::MAX) {}
    for set in shared.sets_to_close() {
        set.close(keeps_handshakes);
    }
    notify(&shared.permits.released);
    notify(&shared.registry.empty);
}

/// One pass over the queues of all listeners, one after the other.
struct Sweep<'a> {
    shared: &'a Arc<Shared>,
    /// Which set, and which listener in it, is swept now.
    set: usize,
    index: usize,
    /// How many peers were accepted at this listener.
    accepted: u32,
    /// The errors at this listener.
    backoff: AcceptBackoff,
    /// No peer was left in a queue for want of a descriptor or of memory.
    is_complete: bool,
}

impl<'a> Sweep<'a> {
    fn new(shared: &'a Arc<Shared>) -> Self {
        Self {
            shared,
            set: 0,
            index: 0,
            accepted: 0,
            backoff: AcceptBackoff::default(),
            is_complete: true,
        }
    }

    /// Tries to accept so many times; gives whether the pass is over.
    fn some(&mut self, destination: &mut (impl Destination + ?Sized), tries: u32) -> bool {
        let shared = self.shared;
        for _ in 0..tries {
            let Some(set) = shared.listener_sets.get(self.set) else {
                return true;
            };
            if !shared.is_to_close(set) {
                self.set += 1;
                continue;
            }
            let backlog = shared.config.backlog;
            let Some(accepted) = set.sweep(self.index, self.accepted, backlog) else {
                (self.set, self.index) = (self.set + 1, 0);
                continue;
            };
            match enter(shared, self.set, accepted, None) {
                Ok(connection) => {
                    self.backoff = AcceptBackoff::default();
                    self.accepted += 1;
                    destination.take(shared, connection);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => match self.backoff.on_error(shared, &error) {
                    Next::Again => continue,
                    Next::Backoff => self.is_complete = false,
                    // No peer can be accepted at this listener any more.
                    Next::Pause(_) | Next::Stop => {}
                },
            }
            self.index += 1;
            self.accepted = 0;
            self.backoff = AcceptBackoff::default();
        }
        false
    }
}

/// Polls for the next peer at any listener of any set.
fn poll_any(shared: &Arc<Shared>, cx: &mut Context<'_>) -> Poll<io::Result<Arc<ConnectionState>>> {
    for (number, set) in shared.listener_sets.iter().enumerate() {
        if !shared.is_to_close(set) {
            continue;
        }
        let accepted = set.poll_accept(cx);
        if let Poll::Ready(accepted) = accepted {
            return Poll::Ready(enter(shared, number, accepted, None));
        }
    }
    Poll::Pending
}

/// Launches the handlers of queued connections as permits are released, until none can come any
/// more.
pub(super) async fn launch_queued(shared: &Arc<Shared>, launcher: &mut dyn Launcher) {
    loop {
        let released = listen(&shared.permits.released);
        while let Some(connection) = shared.next_queued() {
            start(shared, connection, launcher);
        }
        // The accept loops, and TLS handshakes, are checked before the queue: once there are none,
        // nothing can be queued any more. Swapped, a connection queued between the two acts would be left there.
        let is_accepting = shared.registry.is_accepting() || shared.has_handshakes();
        if shared.is_closed_to_peers() && !is_accepting && shared.queue.is_empty() {
            return;
        }
        released.await;
    }
}
