//! The accept loop: one for each set of listeners, that is, one a server, or one a shard.
//!
//! 1. The loop waits for a permit first, and then for a peer at all listeners of its set, which are
//!    asked in turn. A permit that waited at one quiet listener would starve the others.
//! 2. The loop never spins, and never ends because of a peer's error: see [`error`].
//! 3. A shutdown wins over everything that the loop may be waiting for: a permit, a peer, a pause
//!    after an error.
//!
//! What becomes of a peer once it is accepted is decided in [`admission`]; its handler is started
//! in [`spawn`].

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;

use futures_lite::future;
use futures_util::{FutureExt, select_biased};

use self::admission::{admit, next_or_queued, poll_next, start};
use self::error::{AcceptBackoff, Next};
use self::spawn::Launcher;
use crate::lifecycle::Phase;
use crate::runtime::sleep_until;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::sync::notify;

pub(crate) mod admission;
pub(crate) mod error;
#[cfg(feature = "_handshake")]
mod handshake;
pub(crate) mod spawn;

/// How many peers an accept loop takes in a row before other tasks of the thread have a turn.
pub(crate) const IN_A_ROW: u32 = 64;

/// Accepts peers at one set of listeners until a shutdown, and for the time of the lame duck after
/// it; at one that stays open through the drain, until that has come to it. A listener that cannot go
/// on shuts the server down.
pub(crate) async fn accept(shared: &Arc<Shared>, set: usize, launcher: &mut dyn Launcher) {
    if shared.listener_sets[set].keeps_open {
        let last = shared.latch.reached_the_last();
        if let Err(error) = accept_until(shared, set, last, launcher).await {
            shared.fail(error);
        }
        return;
    }
    let shutdown = shared.latch.reached(Phase::Draining);
    match accept_until(shared, set, shutdown, launcher).await {
        Err(error) => return shared.fail(error),
        Ok(()) if shared.lame_duck().is_zero() || shared.permits.is_paused() => return,
        Ok(()) => {}
    }
    if let Err(error) = accept_until(shared, set, lame_duck(shared), launcher).await {
        shared.fail(error);
    }
}

/// Accepts peers until `stop`, and launches the handlers of connections for which there is a
/// permit.
///
/// # Errors
/// That of a listener that cannot go on.
async fn accept_until(
    shared: &Arc<Shared>,
    set: usize,
    stop: impl Future<Output = ()>,
    launcher: &mut dyn Launcher,
) -> io::Result<()> {
    let phase = shared.latch.phase();
    let accepting = async {
        let mut backoff = AcceptBackoff::default();
        let mut accepted = 0_u32;
        loop {
            match next_peer(shared, set, &mut backoff).await? {
                Peer::New(connection) => admit(shared, connection, launcher),
                Peer::Queued(connection) => start(shared, connection, launcher),
            }
            accepted = accepted.wrapping_add(1);
            // Only where this future is pending does the race below look at `stop`. A loop that
            // finds one peer after the other is not, so it yields: at once where the phase has
            // risen, which is how a shutdown and an abort come, and else after so many peers, for
            // the end of a lame duck's time, and where the others are gone that a listener was kept
            // open beside.
            if accepted % IN_A_ROW == 0 || shared.latch.phase() > phase {
                future::yield_now().await;
            }
        }
    };
    let (mut stop, mut accepting) = (pin!(stop.fuse()), pin!(accepting.fuse()));
    // Polled in this order (invariant 3): `stop` is looked at before a peer is taken.
    select_biased! {
        () = stop => Ok(()),
        end = accepting => end,
    }
}

/// What the accept loop has waited for.
enum Peer {
    /// A connection that was accepted just now.
    New(Arc<ConnectionState>),
    /// A connection that was accepted while the limit was lowered; its permit has come.
    Queued(Arc<ConnectionState>),
}

/// Waits for a permit, then for a peer.
///
/// # Errors
/// That of a listener that cannot go on.
async fn next_peer(
    shared: &Arc<Shared>,
    set: usize,
    backoff: &mut AcceptBackoff,
) -> io::Result<Peer> {
    loop {
        if !shared.has_permit() {
            shared.permit().await;
        }
        if let Some(connection) = shared.next_queued() {
            return Ok(Peer::Queued(connection));
        }
        let next = poll_fn(|cx| poll_next(shared, set, cx));
        let error = match next_or_queued(shared, next).await {
            None => continue,
            Some(Ok(connection)) => {
                backoff.on_success(shared);
                return Ok(Peer::New(connection));
            }
            Some(Err(error)) => error,
        };
        match backoff.on_error(shared, &error) {
            Next::Again => future::yield_now().await,
            Next::Pause(pause) => shared.clock.sleep(pause).await,
            Next::Backoff => backoff.pause(shared, &error).await,
            Next::Stop => return Err(error),
        }
    }
}

/// Waits for the end of the lame duck's time, or for an abort. A deadline that comes before that
/// end ends the lame duck at once: all the time there is belongs to the drain.
async fn lame_duck(shared: &Shared) {
    let over = async {
        loop {
            let changed = shared.latch.listen();
            let request = shared.latch.request().clone();
            let over = request
                .asked
                .and_then(|asked| asked.checked_add(shared.lame_duck()));
            let is_over = over.is_some_and(|over| over <= shared.clock.now());
            let is_cut_short = request
                .before
                .is_some_and(|before| over.is_none_or(|over| before < over));
            if is_over || is_cut_short {
                return;
            }
            future::or(sleep_until(&*shared.clock, over), changed).await;
        }
    };
    future::or(over, shared.latch.reached(Phase::Aborting)).await;
}

/// Stands for a part of the server that may accept a peer beside the server's own task: an accept
/// loop of a shard, or a thread that sweeps. The registry is not empty while one lives.
pub(crate) struct AcceptorGuard {
    shared: Arc<Shared>,
    /// It accepts at listeners that stay open through a drain.
    last: bool,
}

impl AcceptorGuard {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self::begin(shared, false)
    }

    /// For the accept loop of one set.
    pub(crate) fn of_set(shared: &Arc<Shared>, set: usize) -> Self {
        Self::begin(shared, shared.listener_sets[set].keeps_open)
    }

    fn begin(shared: &Arc<Shared>, last: bool) -> Self {
        shared.registry.acceptor_started(last);
        let shared = shared.clone();
        Self { shared, last }
    }
}

impl Drop for AcceptorGuard {
    fn drop(&mut self) {
        self.shared.registry.acceptor_ended(self.last);
        notify(&self.shared.permits.released);
        self.shared.close_if_abandoned();
    }
}
