//! The listeners at a stop: shut, swept, closed.
//!
//! To close a listener resets the peers in its queue. So new peers are kept out first, the queue is
//! accepted until it is empty, and only then is the listener closed.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_lite::future;

use crate::accept::admission::{admit, close_unserved, enter};
use crate::accept::error::{AcceptBackoff, Next};
use crate::accept::spawn::Launcher;
use crate::runtime::sleep_until;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::sync::notify;

/// How long a listener that is shut is left alone after an error.
const ERROR_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

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
        set.shut();
    }
}

/// Accepts every peer that is queued; `false` where a shortage of ours left some.
pub(super) fn sweep(shared: &Arc<Shared>, launcher: &dyn Launcher) -> bool {
    sweep_to(shared, &launcher)
}

fn sweep_to(shared: &Arc<Shared>, destination: &impl Destination) -> bool {
    let mut is_swept = true;
    for set in 0..shared.listener_sets.len() {
        is_swept &= sweep_set(shared, set, destination);
    }
    is_swept
}

fn sweep_set(shared: &Arc<Shared>, set: usize, destination: &impl Destination) -> bool {
    let (mut is_swept, mut index) = (true, 0);
    let mut backoff = AcceptBackoff::default();
    loop {
        let Some(accepted) = shared.listener_sets[set].sweep(index) else {
            return is_swept;
        };
        match enter(shared, set, accepted) {
            Ok(connection) => {
                backoff = AcceptBackoff::default();
                destination.take(shared, connection);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => match backoff.on_error(shared, &error) {
                Next::Again => continue,
                Next::Backoff => is_swept = false,
                // This listener is of no use any more.
                Next::Pause(_) | Next::Stop => {}
            },
        }
        index += 1;
        backoff = AcceptBackoff::default();
    }
}

/// Closes all listeners, after a last sweep for the peers that have been queued since the first.
pub(super) fn close_listeners(shared: &Arc<Shared>, launcher: &dyn Launcher) {
    close_after_sweep(shared, &launcher);
}

/// Closes all listeners, without a runtime if need be: the peers that are queued still are closed
/// unserved. Done once.
pub(crate) fn close_listeners_unserved(shared: &Arc<Shared>) {
    close_after_sweep(shared, &Unserved);
}

fn close_after_sweep(shared: &Arc<Shared>, destination: &impl Destination) {
    shut_own_listeners(shared);
    sweep_to(shared, destination);
    for set in &shared.listener_sets {
        set.close();
    }
    notify(&shared.permits.released);
    notify(&shared.registry.empty);
}

/// Accepts at the shut listeners the peers whose handshake was under way, and those for whom there
/// was no descriptor.
pub(super) async fn keep_sweeping(shared: &Arc<Shared>, launcher: &dyn Launcher) {
    let until = shared.clock.now().checked_add(shared.config.sweep);
    let mut backoff = AcceptBackoff::default();
    while !shared.is_closed_to_peers() {
        let accepted = async { Some(poll_fn(|cx| poll_any(shared, cx)).await) };
        let over = async {
            sleep_until(&*shared.clock, until).await;
            None
        };
        // The time first: it ends also where peers, or errors, come without a pause.
        match future::or(over, accepted).await {
            Some(Ok(connection)) => admit(shared, connection, launcher),
            Some(Err(error)) => match backoff.on_error(shared, &error) {
                Next::Backoff => backoff.pause(shared, &error).await,
                // The peer's error, or that of a listener that is being closed anyway.
                _ => shared.clock.sleep(ERROR_PAUSE).await,
            },
            None if sweep(shared, launcher) => close_listeners(shared, launcher),
            None => {
                let error = io::Error::from_raw_os_error(libc::EMFILE);
                backoff.pause(shared, &error).await;
            }
        }
        future::yield_now().await;
    }
}

/// The next peer at any listener.
fn poll_any(shared: &Arc<Shared>, cx: &mut Context<'_>) -> Poll<io::Result<Arc<ConnectionState>>> {
    for (number, set) in shared.listener_sets.iter().enumerate() {
        let accepted = set.poll_accept(cx);
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
