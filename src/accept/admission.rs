//! What decides over a new connection: whether there is a permit for it, and one of its peer's
//! address, and so whether it is launched, queued or rejected.
//!
//! 1. No connection overtakes those that wait in the queue for a permit.
//! 2. A connection is pushed to the queue first, and the phase is looked at afterwards; an abort
//!    raises the phase first, and empties the queue afterwards. Swapped on either side, a
//!    connection that is pushed between the two acts would stay there.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use futures_lite::AsyncWriteExt;
#[cfg(feature = "_handshake")]
use futures_lite::future;

#[cfg(feature = "_handshake")]
use super::spawn::Launch;
use super::spawn::{BoxedTask, Launcher};
use crate::connection::task::{self, Task};
use crate::connection::{Connection, close};
use crate::lifecycle::Phase;
use crate::listener::set::Accepted;
use crate::log;
#[cfg(feature = "proxy")]
use crate::proxy::Peer;
use crate::report::Cause;
use crate::shared::Shared;
use crate::shared::connection::{Arrival, ConnectionState};
use crate::shared::ledger::CloseKind;
use crate::shared::permits::Reservation;
#[cfg(feature = "_tls")]
use crate::socket::buffer::Buffer;
use crate::socket::readiness::flag;
#[cfg(feature = "_handshake")]
use crate::sync::listen;
#[cfg(feature = "_tls")]
use crate::tls::TlsState;
use crate::transport::Transport;

/// Polls for the next peer, in the accept loop of the set `own`; `None` where there is no permit
/// any more.
///
/// Where several sets share a limit, the accept loop that has a permit looks at all of them in
/// turn, since one set's loop may always be the first to be woken for a permit.
pub(super) fn poll_next(
    shared: &Arc<Shared>,
    own: usize,
    cx: &mut Context<'_>,
) -> Poll<Option<io::Result<Arc<ConnectionState>>>> {
    let sets = &shared.listener_sets;
    // A pause, or a lower limit, may have come while the listeners were quiet.
    if !shared.has_permit() {
        return Poll::Ready(None);
    }
    // What stays open through a drain does so when the other sets are not looked at any more.
    if sets.len() == 1 || !shared.permits.is_limited() || sets[own].keeps_open {
        let accepted = sets[own].poll_accept(cx);
        return accepted.map(|accepted| Some(enter(shared, own, accepted, None)));
    }
    // The permit is reserved before a peer is accepted. Swapped, two loops that see the last permit
    // would each accept a peer. Where the surplus is rejected a peer is accepted in any case, and
    // asks for a permit afterwards: reserved before, a permit that another loop has reserved, and
    // gives back because it finds no peer, would be missed, and the peer rejected.
    let mut reservation = None;
    if shared.config.reject_with.is_none() {
        reservation = shared.permits.reserve();
        if reservation.is_none() {
            return Poll::Ready(None);
        }
    }
    let first = shared.next_set.load(Relaxed);
    for step in 0..sets.len() {
        let number = (first + step) % sets.len();
        let accepted = if number == own {
            sets[number].poll_accept(cx)
        } else {
            sets[number].try_accept()
        };
        if let Poll::Ready(accepted) = accepted {
            shared.next_set.store(number + 1, Relaxed);
            return Poll::Ready(Some(enter(shared, number, accepted, reservation)));
        }
    }
    Poll::Pending
}

/// Enters an accepted peer into the registry, with the permit that was reserved for it, or with one
/// if there is one.
// Of its three callers one is on the way of nearly every peer.
#[inline(always)]
pub(crate) fn enter(
    shared: &Arc<Shared>,
    set: usize,
    accepted: io::Result<Accepted>,
    reservation: Option<Reservation<'_>>,
) -> io::Result<Arc<ConnectionState>> {
    let Accepted {
        incoming,
        peer,
        address,
        is_sharded,
    } = accepted?;
    let shard = if is_sharded {
        set as u16
    } else {
        shared.next_shard()
    };
    let arrival = Arrival {
        transport: Transport::new(incoming, shared.engine(shard))?,
        peer,
        address,
        shard,
    };
    let connection = shared.registry.open(shared, arrival);
    // Invariant 1.
    if shared.queue.is_empty() {
        match reservation {
            Some(reservation) => shared.keep_permit(&connection, reservation),
            None => _ = shared.acquire_permit(&connection),
        }
    }
    Ok(connection)
}

/// Has events reported to a new connection, and its handshake begin where there is to be one: the PROXY
/// header first, and then TLS. `false` where the peer is none from which clients are taken.
fn prepare(connection: &Arc<ConnectionState>) -> io::Result<bool> {
    connection.register_socket()?;
    #[cfg(feature = "proxy")]
    match connection.judge_peer() {
        Peer::AsItIs => {}
        Peer::Proxy => return Ok(true),
        Peer::Refused => return Ok(false),
    }
    #[cfg(feature = "_tls")]
    if let Some(tls) = connection.listeners_tls() {
        connection.begin_tls(TlsState::new(tls.config(), Buffer::default())?);
    }
    Ok(true)
}

/// Launches the handler of a connection that has its permit, after its handshake if there has to be one.
pub(crate) fn start(
    shared: &Arc<Shared>,
    connection: Arc<ConnectionState>,
    launcher: &mut dyn Launcher,
) {
    #[cfg(feature = "_handshake")]
    if connection.is_handshaking() {
        return super::handshake::begin(shared, connection, launcher);
    }
    let _has_its_own = shared;
    launcher.launch(connection);
}

/// Launches the handler of a connection whose handshake is over, or has it wait for a permit again.
/// Gives what the handshake's task has to go on with: the end of a connection that is rejected.
#[cfg(feature = "_handshake")]
pub(super) fn admit_after_handshake(
    shared: &Arc<Shared>,
    connection: Arc<ConnectionState>,
    launch: Launch,
) -> Option<BoxedTask> {
    // Invariant 1.
    if connection.has(flag::QUEUED) && shared.queue.is_empty() {
        shared.acquire_permit(&connection);
    }
    if !connection.has(flag::QUEUED) {
        launch(connection);
    } else if shared.config.reject_with.is_some() {
        return Some(rejection(shared, connection));
    } else {
        // The caller notifies who launches what is queued: a permit may have been released since.
        enqueue(shared, connection);
    }
    None
}

/// Waits for the next peer, or for a look at the queue. Where there are handshakes a connection may come
/// to the queue while an accept loop has a permit and waits for a peer.
pub(super) async fn next_or_queued<T>(
    shared: &Shared,
    next: impl Future<Output = Option<T>>,
) -> Option<T> {
    #[cfg(feature = "_handshake")]
    if shared.may_handshake() {
        let released = listen(&shared.permits.released);
        if !shared.queue.is_empty() && shared.has_permit() {
            return None;
        }
        let released = async {
            released.await;
            None
        };
        return future::or(next, released).await;
    }
    let _only_with_handshakes = shared;
    next.await
}

/// Launches the handler of a new connection, rejects it, or has it wait for a permit.
pub(crate) fn admit(
    shared: &Arc<Shared>,
    connection: Arc<ConnectionState>,
    launcher: &mut dyn Launcher,
) {
    log::debug!(
        target: "gracious", conn = connection.id();
        "a connection from {}", connection.peer(),
    );
    let is_welcome = match prepare(&connection) {
        Ok(is_welcome) => is_welcome,
        Err(error) => {
            // Without a registration nothing would report what its peer sends.
            log::warn!(target: "gracious", conn = connection.id(); "cannot take a connection: {error}");
            return close_unserved(connection);
        }
    };
    let max_per_peer = shared.config.max_per_peer.filter(|_| connection.is_known());
    if !is_welcome {
        log::debug!(
            target: "gracious", conn = connection.id();
            "a connection from {} comes from no trusted proxy", connection.peer(),
        );
        shared.release_permit(&connection);
        launcher.spawn(connection.shard, closing(connection, Vec::new()));
    } else if max_per_peer.is_some_and(|max| !shared.registry.acquire_peer_permit(&connection, max))
    {
        shared.release_permit(&connection);
        reject(shared, connection, launcher);
    } else if !connection.has(flag::QUEUED) {
        start(shared, connection, launcher);
    } else if shared.config.reject_with.is_some() {
        reject(shared, connection, launcher);
    } else {
        enqueue(shared, connection);
    }
}

/// Rejects a connection for which there is no permit.
fn reject(shared: &Shared, connection: Arc<ConnectionState>, launcher: &mut dyn Launcher) {
    let shard = connection.shard;
    launcher.spawn(shard, rejection(shared, connection));
}

/// A task that sends the configured message and closes the connection, as one of a handler would.
pub(super) fn rejection(shared: &Shared, connection: Arc<ConnectionState>) -> BoxedTask {
    // Before its TLS handshake a client could not read it.
    #[cfg(feature = "_tls")]
    let can_read = !connection.is_handshaking() || connection.listeners_tls().is_none();
    #[cfg(not(feature = "_tls"))]
    let can_read = true;
    let message = shared.config.reject_with.clone().filter(|_| can_read);
    closing(connection, message.unwrap_or_default())
}

fn closing(connection: Arc<ConnectionState>, message: Vec<u8>) -> BoxedTask {
    connection.set(flag::REJECTED);
    let mut stream = Connection::new(connection.clone());
    let refuse = async move { stream.write_all(&message).await };
    Box::pin(Task::new(connection, refuse))
}

/// Has a connection wait for a permit.
fn enqueue(shared: &Shared, connection: Arc<ConnectionState>) {
    shared.queue.push(connection);
    // Invariant 2.
    if shared.latch.phase() >= Phase::Aborting {
        reject_queue(shared);
    }
}

/// Closes the connections that wait for a permit. They have no task, so no abort would end them.
pub(crate) fn reject_queue(shared: &Shared) {
    for connection in shared.queue.take_all() {
        close_unserved(connection);
    }
}

/// Closes a connection that never had a handler, cleanly, without waiting.
pub(crate) fn close_unserved(connection: Arc<ConnectionState>) {
    connection.set(flag::REJECTED);
    close::now(&connection);
    task::finish(connection, CloseKind::Rejected, Cause::Rejected);
}
