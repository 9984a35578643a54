//! What decides over a new connection: its permit, its peer's, the queue, or a rejection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use futures_lite::AsyncWriteExt;

use super::spawn::Launcher;
use crate::connection::task::{self, Task};
use crate::connection::{Connection, close};
use crate::lifecycle::Phase;
use crate::listener::set::Accepted;
use crate::log;
use crate::report::Cause;
use crate::shared::Shared;
use crate::shared::connection::{Arrival, ConnectionState};
use crate::shared::ledger::CloseKind;
use crate::shared::permits::Reservation;
use crate::socket::readiness::flag;
use crate::transport::Transport;

/// Polls for the next peer at a set of listeners; `None` where there is no permit any more.
///
/// Where several sets share a limit, the accept loop that has a permit looks at all of them in turn:
/// one set's loop may always be the first to hear of a permit.
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
    if sets.len() == 1 || !shared.permits.is_limited() {
        let accepted = sets[own].poll_accept(cx);
        return accepted.map(|accepted| Some(enter(shared, own, accepted)));
    }
    // The permit first, then its peer: two loops that see the last permit would otherwise both take a
    // peer. Where the surplus is rejected a peer is taken in any case, and asks for a permit then: one
    // that another loop has reserved in vain would be missed.
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
            return Poll::Ready(Some(match reservation {
                None => enter(shared, number, accepted),
                Some(reservation) => enter_with(shared, number, accepted, reservation),
            }));
        }
    }
    Poll::Pending
}

/// Enters an accepted peer into the registry, with a permit if there is one.
pub(crate) fn enter(
    shared: &Arc<Shared>,
    set: usize,
    accepted: io::Result<Accepted>,
) -> io::Result<Arc<ConnectionState>> {
    let connection = register(shared, set, accepted)?;
    // No connection overtakes those that wait for a permit.
    if shared.queue.is_empty() {
        shared.acquire_permit(&connection);
    }
    Ok(connection)
}

/// As [`enter`], with a permit that was reserved.
fn enter_with(
    shared: &Arc<Shared>,
    set: usize,
    accepted: io::Result<Accepted>,
    reservation: Reservation<'_>,
) -> io::Result<Arc<ConnectionState>> {
    let connection = register(shared, set, accepted)?;
    if shared.queue.is_empty() {
        shared.keep_permit(&connection, reservation);
    }
    Ok(connection)
}

/// Enters an accepted peer into the registry.
fn register(
    shared: &Arc<Shared>,
    set: usize,
    accepted: io::Result<Accepted>,
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
    Ok(shared.registry.open(shared, arrival))
}

/// Launches the handler of a connection, rejects it, or has it wait for a permit.
pub(crate) fn admit(
    shared: &Arc<Shared>,
    connection: Arc<ConnectionState>,
    launcher: &dyn Launcher,
) {
    log::debug!(
        target: "gracious", conn = connection.id(), peer:% = connection.peer();
        "connection {} from {}", connection.id(), connection.peer(),
    );
    let max_per_peer = shared.config.max_per_peer;
    if let Err(error) = connection.register_socket() {
        // Nothing would report that its peer has sent something.
        log::warn!(target: "gracious", error:%; "cannot watch a connection: {error}");
        close_unserved(connection);
    } else if max_per_peer.is_some_and(|max| !shared.registry.acquire_peer_permit(&connection, max))
    {
        shared.release_permit(&connection);
        reject(shared, connection, launcher);
    } else if !connection.has(flag::QUEUED) {
        launcher.launch(connection);
    } else if shared.config.reject_with.is_some() {
        reject(shared, connection, launcher);
    } else {
        enqueue(shared, connection);
    }
}

/// Sends a peer for which there is no permit the configured message, in place of its handler.
fn reject(shared: &Shared, connection: Arc<ConnectionState>, launcher: &dyn Launcher) {
    connection.set(flag::REJECTED);
    let message = shared.config.reject_with.clone().unwrap_or_default();
    let mut stream = Connection::new(connection.clone());
    let refuse = async move { stream.write_all(&message).await };
    let shard = connection.shard;
    launcher.spawn(shard, Box::pin(Task::new(connection, refuse)));
}

/// Has a connection wait for a permit.
fn enqueue(shared: &Shared, connection: Arc<ConnectionState>) {
    shared.queue.push(connection);
    // In this order: an abort that rejects the queue before this push raises the phase before it
    // rejects, and so is seen here.
    if shared.latch.phase() >= Phase::Aborting {
        reject_queue(shared);
    }
}

/// Closes the connections that wait for a permit: they have no handler to be dropped.
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
