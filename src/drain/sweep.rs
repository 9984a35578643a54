//! The listeners at a stop: shut, swept, kept for the handshakes under way, closed.
//!
//! To close a listener resets the peers in its queue, and those whose handshake is not over. The
//! order of the acts decides:
//!
//! 1. Shut: new peers are refused, at all listeners before anything waits.
//! 2. Sweep: accept until the queue is empty.
//! 3. Look for handshakes under way, a millisecond later: a SYN that another processor was taking up
//!    at the moment of the shutting is listed by then. What a later look finds is a successor's on
//!    the same port, or a scanner's, and not waited for.
//! 4. While some of these are left the listener stays, beside the drain, for `handshake_grace` at
//!    most.
//! 5. Sweep, *after* the look that found none, then close. A handshake may end between a sweep and
//!    the look: its peer is in the queue, and closed without this last sweep it would be reset.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use futures_lite::future;

use super::handshakes::Handshakes;
use crate::accept::admission::{admit, close_unserved, enter};
use crate::accept::error::{AcceptBackoff, Next};
use crate::accept::spawn::Launcher;
use crate::accept::{AcceptorGuard, IN_A_ROW};
use crate::lifecycle::Phase;
use crate::listener::set::BoundListener;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::sync::{lock, notify};

/// How long a listener that is shut is left alone after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// What becomes of a connection that a sweep has accepted.
trait Destination {
    fn take(&self, shared: &Arc<Shared>, connection: Arc<ConnectionState>);
}

impl Destination for &dyn Launcher {
    fn take(&self, shared: &Arc<Shared>, connection: Arc<ConnectionState>) {
        admit(shared, connection, *self);
    }
}

/// A clean close, without a handler.
struct Unserved;

impl Destination for Unserved {
    fn take(&self, _shared: &Arc<Shared>, connection: Arc<ConnectionState>) {
        close_unserved(connection);
    }
}

/// Takes no new peers from here on, at any listener, those of linked servers included; Unix paths
/// are removed.
pub(super) fn shut_listeners(shared: &Shared) {
    shut_own_listeners(shared);
    for server in shared.linked() {
        shut_own_listeners(&server);
    }
}

fn shut_own_listeners(shared: &Shared) {
    for set in &shared.listener_sets {
        for listener in &mut lock(set).listeners {
            listener.shut();
        }
    }
}

/// What the listeners are kept for after the first sweep.
pub(super) enum Kept {
    /// They are closed.
    Nothing,
    /// Peers are queued for whom there is no descriptor.
    Queue,
    /// Peers whose handshake is under way.
    Handshakes(Handshakes),
}

/// Sweeps, and closes the listeners if no handshake is under way.
pub(super) async fn sweep_and_close(shared: &Arc<Shared>, launcher: &dyn Launcher) -> Kept {
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

/// Accepts at the shut listeners until those are in for whom they were kept, and closes them.
pub(super) async fn keep_sweeping(shared: &Arc<Shared>, launcher: &dyn Launcher, mut kept: Kept) {
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
            // The look first: it comes also where peers, or errors, come without a pause.
            match future::or(look, accepted).await {
                Some(Ok(connection)) => admit(shared, connection, launcher),
                Some(Err(error)) => match backoff.on_error(shared, &error) {
                    Next::Backoff => backoff.pause(shared, &error).await,
                    // The peer's error, or that of a listener that is being closed anyway.
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

/// Accepts every peer that is queued, and gives other tasks their turn meanwhile; `false` where a
/// shortage of ours left some.
async fn sweep(shared: &Arc<Shared>, launcher: &dyn Launcher) -> bool {
    let mut sweep = Sweep::new(shared);
    loop {
        if sweep.some(&launcher, IN_A_ROW) {
            return sweep.is_complete;
        }
        // An abort closes what is queued.
        if shared.latch.phase() >= Phase::Aborting {
            return false;
        }
        future::yield_now().await;
    }
}

/// Closes all listeners, after a last sweep.
fn close_listeners(shared: &Arc<Shared>, launcher: &dyn Launcher) {
    close_after_sweep(shared, &launcher, |_| true);
}

/// Closes, after a last sweep, the listeners at which no handshake can be under way, or new peers
/// still come.
fn close_others(shared: &Arc<Shared>, launcher: &dyn Launcher) {
    close_after_sweep(shared, &launcher, |listener| {
        listener.handshakes_at().is_none()
    });
}

/// Closes all listeners, now and without a runtime: the peers that are queued still are closed
/// unserved, and handshakes under way are not waited for. Done once.
pub(super) fn close_listeners_unserved(shared: &Arc<Shared>) {
    close_after_sweep(shared, &Unserved, |_| true);
}

/// Closes all listeners, without a runtime. Where handshakes are under way, a thread keeps the
/// listeners for them.
pub(super) fn close_listeners_without_runtime(shared: &Arc<Shared>) {
    shut_own_listeners(shared);
    sweep_unserved(shared);
    let Some(mut handshakes) = Handshakes::look_now(shared) else {
        return close_listeners_unserved(shared);
    };
    // The server is not closed before the thread is done.
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
        log::warn!(target: "gracious", error:%; "cannot wait for handshakes under way: {error}");
        close_listeners_unserved(shared);
    }
}

fn sweep_unserved(shared: &Arc<Shared>) {
    let mut sweep = Sweep::new(shared);
    while !sweep.some(&Unserved, u32::MAX) {}
}

fn close_after_sweep(
    shared: &Arc<Shared>,
    destination: &impl Destination,
    is_done: impl Fn(&BoundListener) -> bool,
) {
    shut_own_listeners(shared);
    let mut sweep = Sweep::new(shared);
    while !sweep.some(destination, u32::MAX) {}
    for set in &shared.listener_sets {
        let closed: Vec<_> = {
            let mut set = lock(set);
            let listeners = std::mem::take(&mut set.listeners).into_iter();
            let (closed, kept) = listeners.partition(&is_done);
            set.listeners = kept;
            closed
        };
        // Outside the lock: a listener of the user's own is dropped with the others.
        drop(closed);
    }
    notify(&shared.permits.released);
    notify(&shared.registry.empty);
}

/// One pass over the queues of all listeners.
struct Sweep<'a> {
    shared: &'a Arc<Shared>,
    set: usize,
    index: usize,
    /// How many peers were accepted at this listener.
    accepted: u32,
    backoff: AcceptBackoff,
    /// No shortage of ours has left a peer.
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

    /// Makes so many tries to accept; gives whether the pass is over.
    fn some(&mut self, destination: &impl Destination, tries: u32) -> bool {
        let shared = self.shared;
        for _ in 0..tries {
            // The lock is not held while a peer is entered and admitted.
            let accepted = {
                let Some(set) = shared.listener_sets.get(self.set) else {
                    return true;
                };
                let mut set = lock(set);
                let Some(listener) = set.listeners.get_mut(self.index) else {
                    drop(set);
                    (self.set, self.index) = (self.set + 1, 0);
                    continue;
                };
                // Where peers still come, no more than were queued at first: the rest are for those
                // who hold this socket, too, or reset.
                let is_over = !listener.is_shut() && self.accepted >= shared.config.backlog;
                if is_over {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    listener.try_accept()
                }
            };
            match enter(shared, self.set, accepted) {
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
                    // This listener is of no use any more.
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

/// The next peer at any listener.
fn poll_any(shared: &Arc<Shared>, cx: &mut Context<'_>) -> Poll<io::Result<Arc<ConnectionState>>> {
    for (number, set) in shared.listener_sets.iter().enumerate() {
        let accepted = lock(set).poll_accept(cx);
        if let Poll::Ready(accepted) = accepted {
            return Poll::Ready(enter(shared, number, accepted));
        }
    }
    Poll::Pending
}

/// Launches the handlers of the connections that the limit kept out, as permits are released.
pub(super) async fn launch_queued(shared: &Shared, launcher: &dyn Launcher) {
    loop {
        let released = shared.permits.released.listen();
        while let Some(connection) = shared.next_queued() {
            launcher.launch(connection);
        }
        // Check for accept loops before the queue: once none runs, nothing can be queued any more.
        let is_accepting = shared.registry.is_accepting();
        if shared.is_closed_to_peers() && !is_accepting && shared.queue.is_empty() {
            return;
        }
        released.await;
    }
}
