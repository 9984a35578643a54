//! Accepting: the loop, and what decides over a new connection.
//!
//! 1. One permit, then the accepts of all of a set's listeners raced together, in turn: a permit
//!    waiting at one quiet listener would starve the others.
//! 2. The loop never spins and never ends because of a peer.
//! 3. A shutdown wins over everything the loop may be waiting for.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;

use futures_lite::future;
use futures_util::{FutureExt, select_biased};

use self::admission::{admit, poll_next};
use self::error::{AcceptBackoff, Next};
use self::spawn::Launcher;
use crate::lifecycle::Phase;
use crate::runtime::sleep_until;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::sync::notify;

pub(crate) mod admission;
pub(crate) mod error;
pub(crate) mod spawn;

/// How many peers are accepted in a row before other tasks of the thread have a turn.
pub(crate) const IN_A_ROW: u32 = 64;

/// Accepts peers at one set of listeners until a shutdown, and through the lame duck's time.
pub(crate) async fn accept(shared: &Arc<Shared>, set: usize, launcher: &dyn Launcher) {
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

/// Accepts peers until `stop`, and launches handlers for those whose permit has come.
///
/// # Errors
/// That of a listener that cannot go on.
async fn accept_until(
    shared: &Arc<Shared>,
    set: usize,
    stop: impl Future<Output = ()>,
    launcher: &dyn Launcher,
) -> io::Result<()> {
    let phase = shared.latch.phase();
    let accepting = async {
        let mut backoff = AcceptBackoff::default();
        let mut accepted = 0_u32;
        loop {
            match next_peer(shared, set, &mut backoff).await? {
                Peer::New(connection) => admit(shared, connection, launcher),
                Peer::Queued(connection) => launcher.launch(connection),
            }
            accepted = accepted.wrapping_add(1);
            // While one peer comes after the other the race is not run again. A stop raises the phase
            // above the one that this began in, or is a matter of time.
            if accepted % IN_A_ROW == 0 || shared.latch.phase() > phase {
                future::yield_now().await;
            }
        }
    };
    let (mut stop, mut accepting) = (pin!(stop.fuse()), pin!(accepting.fuse()));
    select_biased! {
        () = stop => Ok(()),
        end = accepting => end,
    }
}

enum Peer {
    New(Arc<ConnectionState>),
    /// A peer that was accepted while the limit was lowered, with a permit by now.
    Queued(Arc<ConnectionState>),
}

/// Waits for a permit, then for a peer.
async fn next_peer(
    shared: &Arc<Shared>,
    set: usize,
    backoff: &mut AcceptBackoff,
) -> io::Result<Peer> {
    loop {
        shared.permit().await;
        if let Some(connection) = shared.next_queued() {
            return Ok(Peer::Queued(connection));
        }
        let error = match poll_fn(|cx| poll_next(shared, set, cx)).await {
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

/// Waits for the end of the lame duck's time. A deadline inside it cuts it short: the drain needs
/// that time.
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

/// An accept loop beside the server's own task, which waits for its end.
pub(crate) struct AcceptorGuard(Arc<Shared>);

impl AcceptorGuard {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.registry.acceptor_started();
        Self(shared.clone())
    }
}

impl Drop for AcceptorGuard {
    fn drop(&mut self) {
        self.0.registry.acceptor_ended();
        notify(&self.0.permits.released);
        self.0.close_if_abandoned();
    }
}
