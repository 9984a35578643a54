//! Handshakes, before there is a handler: the PROXY header, then that of TLS, of listeners that have the
//! one, the other or both. Each is a task of its own, within a limit of time, and counted apart from the
//! connections that have handlers.
//!
//! A connection gives its permit back for as long as its handshake takes, and needs one again before
//! its handler is called. So clients that begin a handshake and go no further keep no handler from
//! its permit. As many handshakes as there are permits may be apart so; more keep theirs.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_lite::FutureExt;

use super::admission::admit_after_handshake;
#[cfg(feature = "proxy")]
use super::admission::rejection;
use super::spawn::{Launch, Launcher};
use crate::connection::Connection;
#[cfg(feature = "proxy")]
use crate::connection::proxy;
use crate::connection::task::{self, Task};
#[cfg(feature = "_tls")]
use crate::connection::tls;
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

/// What a handshake has come to.
enum Shaken {
    Done,
    /// The client, known by its PROXY header, has as many connections as it may have.
    #[cfg(feature = "proxy")]
    TooMany,
}

impl Handshake {
    async fn run(mut self) {
        let Some(connection) = self.connection.clone() else {
            return;
        };
        // The user's code is in it: what chooses certificates, what verifies those of clients.
        let shaken = AssertUnwindSafe(shake(&connection)).catch_unwind();
        let failed = match shaken.await {
            Ok(Err(_)) if connection.has(flag::ABORT) => return,
            Ok(Ok(Shaken::Done)) => {
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
            #[cfg(feature = "proxy")]
            Ok(Ok(Shaken::TooMany)) => {
                self.connection = None;
                self.shared.release_permit(&connection);
                let rejection = rejection(&self.shared, connection);
                drop(self);
                return rejection.await;
            }
            Ok(Err((cause, level))) => {
                log_failure(&connection, &cause, level);
                Task::failed(connection.clone(), cause)
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

/// Goes through the handshake; gives why it has failed, and how loud the log is to say so.
async fn shake(connection: &ConnectionState) -> Result<Shaken, (Cause, log::Level)> {
    #[cfg(feature = "proxy")]
    if connection.awaits_proxy_header() {
        let failed = |error: io::Error| {
            // What is no header comes of a proxy that is not configured as the server is, which an
            // operator has to know. Where none comes, it may have been a look whether anybody listens.
            let level = match error.kind() {
                io::ErrorKind::InvalidData => log::Level::Warn,
                _ => log::Level::Debug,
            };
            (Cause::ProxyHeader(error.to_string()), level)
        };
        proxy::receive_header(connection).await.map_err(failed)?;
        let server = &connection.server;
        let max = server.config.max_per_peer;
        let has_permit = |max| server.registry.acquire_peer_permit(connection, max);
        if !max.is_none_or(has_permit) {
            return Ok(Shaken::TooMany);
        }
    }
    #[cfg(feature = "_tls")]
    if connection.is_handshaking() {
        let failed = |error: io::Error| (Cause::Handshake(error.to_string()), log::Level::Debug);
        tls::handshake(connection, true).await.map_err(failed)?;
    }
    Ok(Shaken::Done)
}

fn log_failure(connection: &ConnectionState, cause: &Cause, level: log::Level) {
    let (what, error) = match cause {
        #[cfg(feature = "proxy")]
        Cause::ProxyHeader(error) => ("PROXY header", error),
        #[cfg(feature = "_tls")]
        Cause::Handshake(error) => ("TLS handshake", error),
        _ => return,
    };
    log::log!(
        target: "gracious", level, conn = connection.id();
        "the {what} of a connection from {} failed: {error}", connection.peer(),
    );
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
