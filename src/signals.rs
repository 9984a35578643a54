//! SIGTERM and SIGINT, for all servers of the process that asked for it.
//!
//! One thread hears them, from the first such server on: it needs no runtime, so a second signal
//! aborts even where handlers block all threads of one. Once installed, a signal handler cannot be
//! taken back safely; so when the last of these servers is closed, the thread does what the signal
//! does by default.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use async_signal::{Signal, Signals};
use futures_lite::{StreamExt, future};

use crate::drain::abort;
use crate::lifecycle::{Phase, Reason};
use crate::log;
use crate::shared::Shared;
use crate::sync::lock;

/// The servers that a signal stops.
static SERVERS: Mutex<Vec<Enlisted>> = Mutex::new(Vec::new());

struct Enlisted {
    server: Weak<Shared>,
    /// It has heard a signal already.
    signalled: bool,
}

/// Lets signals stop `server`.
pub(crate) fn enlist(server: &Arc<Shared>) -> io::Result<()> {
    listen()?;
    let mut servers = lock(&SERVERS);
    servers.retain(Enlisted::is_open);
    servers.push(Enlisted {
        server: Arc::downgrade(server),
        signalled: false,
    });
    Ok(())
}

/// Installs the handlers and starts the thread, once.
fn listen() -> io::Result<()> {
    static LISTENING: OnceLock<Result<(), (io::ErrorKind, String)>> = OnceLock::new();
    let started = LISTENING.get_or_init(|| {
        let start = || {
            let mut signals = Signals::new([Signal::Term, Signal::Int])?;
            std::thread::Builder::new()
                .name("gracious-signals".into())
                .spawn(move || {
                    future::block_on(async {
                        while let Some(Ok(signal)) = signals.next().await {
                            hear(signal);
                        }
                    });
                })?;
            Ok(())
        };
        start().map_err(|error: io::Error| (error.kind(), error.to_string()))
    });
    started
        .clone()
        .map_err(|(kind, message)| io::Error::new(kind, message))
}

fn hear(signal: Signal) {
    let name = match signal {
        Signal::Int => "SIGINT",
        _ => "SIGTERM",
    };
    let (mut first, mut again) = (Vec::new(), Vec::new());
    {
        let mut servers = lock(&SERVERS);
        servers.retain(Enlisted::is_open);
        for enlisted in &mut *servers {
            let Some(server) = enlisted.server.upgrade() else {
                continue;
            };
            if std::mem::replace(&mut enlisted.signalled, true) {
                again.push(server);
            } else {
                first.push(server);
            }
        }
    }
    if first.is_empty() && again.is_empty() {
        // It ends the process, as it would have without us.
        let _ignored = signal_hook::low_level::emulate_default_handler(signal as i32);
        return;
    }
    for server in first {
        // A drain that is under way is left alone.
        server.shutdown(Reason::Signal(name), None);
    }
    for server in again {
        log::warn!(target: "gracious", "{name} again: aborting");
        abort::abort_now(&server);
    }
}

impl Enlisted {
    fn is_open(&self) -> bool {
        self.server
            .upgrade()
            .is_some_and(|server| server.latch.phase() < Phase::Closed)
    }
}
