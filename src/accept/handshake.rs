//! TLS handshakes, before there is a handler: each is a task of its own, within a limit of time, and
//! counted apart from the connections that have handlers.
//!
//! A connection gives its permit back for as long as its handshake takes, and needs one again before
//! its handler is called. So clients that begin a handshake and go no further keep no handler from
//! its permit. As many handshakes as there are permits may be apart so; more keep theirs.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_lite::FutureExt;

use super::admission::admit_after_handshake;
use super::spawn::{Launch, Launcher};
use crate::connection::task::{self, Task};
use crate::connection::{Connection, tls};
use crate::log;
use crate::report::Cause;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::shared::ledger::CloseKind;
use crate::socket::readiness::flag;

/// Begins the handshake of a connection, whose handler is launched afterwards.
pub(super) fn begin(
    shared: &Arc<Shared>,
    connection: Arc<ConnectionState>,
    launcher: &mut dyn Launcher,
) {
    let is_apart = shared.permits.begin_handshake();
    if is_apart {
        shared.release_permit(&connection);
    }
    let shard = connection.shard;
    // Made here and not in the task: a runtime that is gone drops the task without having polled it.
    let handshake = Handshake {
        connection: Some(connection),
        shared: shared.clone(),
        launch: Some(launcher.prepare()),
        is_apart,
    };
    launcher.spawn(shard, Box::pin(handshake.run()));
}

/// A handshake under way. Where it is dropped the connection is aborted.
struct Handshake {
    /// `None` once the connection is another's.
    connection: Option<Arc<ConnectionState>>,
    shared: Arc<Shared>,
    /// `None` once the handler is launched.
    launch: Option<Launch>,
    is_apart: bool,
}

impl Handshake {
    async fn run(mut self) {
        let Some(connection) = self.connection.clone() else {
            return;
        };
        // The user's code is in it: what chooses certificates, what verifies those of clients.
        let shaken = AssertUnwindSafe(tls::handshake(&connection, true)).catch_unwind();
        let failed = match shaken.await {
            Ok(Err(_)) if connection.has(flag::ABORT) => return,
            Ok(Ok(())) => {
                self.connection = None;
                let launch = self.launch.take();
                let rejection = launch
                    .and_then(|launch| admit_after_handshake(&self.shared, connection, launch));
                drop(self);
                if let Some(rejection) = rejection {
                    rejection.await;
                }
                return;
            }
            Ok(Err(error)) => {
                log::debug!(
                    target: "gracious", conn = connection.id();
                    "the TLS handshake of a connection from {} failed: {error}", connection.peer(),
                );
                Task::failed(connection.clone(), Cause::Handshake(error.to_string()))
            }
            Err(panic) => Task::panicked(connection.clone(), &*panic),
        };
        self.connection = None;
        drop(self);
        // It has no other halves: its end is the task's.
        drop(Connection::new(connection));
        failed.await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.abort();
            task::finish(connection, CloseKind::Aborted, Cause::Aborted);
        }
        self.shared.permits.end_handshake(self.is_apart);
    }
}
