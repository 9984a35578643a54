//! SIGTERM and SIGINT, for all servers of the process that asked for it.
//!
//! A signal handler sends the signal, and the time of its delivery, through a socket to a thread,
//! which acts on it. Both are there from the first such server on. The thread needs no runtime, so
//! a second signal aborts even where connection handlers block all threads of one. Once installed,
//! a signal handler cannot be taken back safely; so where no server is left to be stopped, the
//! thread does what the signal does by default.
//!
//! A forked process inherits the signal handler, and the socket to the thread of the process that
//! installed it. So the signal handler looks which process it is in.

use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicU32};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::emulate_default_handler;

use crate::drain::abort;
use crate::lifecycle::{Phase, Reason};
use crate::log;
use crate::shared::Shared;
use crate::sync::lock;

/// Signals that are delivered within this time of the first are one: GNU `timeout` and shells
/// signal a process and its group, and mean one thing by it.
const ONE_INTENTION: Duration = Duration::from_millis(200);

/// The id of the process whose thread acts on signals; 0 before there is one.
static LISTENER: AtomicU32 = AtomicU32::new(0);
/// The signal handler's end of the socket to the thread.
static SOCKET: AtomicI32 = AtomicI32::new(-1);

/// The servers that a signal stops.
static SERVERS: Mutex<Vec<Enlisted>> = Mutex::new(Vec::new());

/// A server that signals stop.
struct Enlisted {
    server: Weak<Shared>,
    /// How many signals have come since it was enlisted.
    heard: u32,
}

/// Lets signals stop `server`.
pub(crate) fn enlist(server: &Arc<Shared>) -> io::Result<()> {
    // Dropped after the guard: see `forget_closed`.
    let _held;
    let mut servers = lock(&SERVERS);
    if LISTENER.load(SeqCst) != std::process::id() {
        // The servers in the list are those of the process that this one was forked from.
        servers.clear();
        listen()?;
    }
    _held = forget_closed(&mut servers);
    servers.push(Enlisted {
        server: Arc::downgrade(server),
        heard: 0,
    });
    Ok(())
}

/// Starts the thread and installs the signal handlers, once in a process.
fn listen() -> io::Result<()> {
    let (handlers, thread) = UnixDatagram::pair()?;
    // A signal handler does not wait: a signal that comes while ten of them are unread is lost.
    handlers.set_nonblocking(true)?;
    std::thread::Builder::new()
        .name("gracious-signals".into())
        .spawn(move || act(&thread))?;
    // The socket stays open for as long as the process lives, as the signal handlers stay
    // installed.
    SOCKET.store(handlers.into_raw_fd(), SeqCst);
    if LISTENER.load(SeqCst) == 0 {
        for signal in [SIGTERM, SIGINT] {
            register(signal)?;
        }
    }
    // `LISTENER` is stored after `SOCKET`, and a signal handler loads it before `SOCKET` (all
    // `SeqCst`). Swapped on either side, the signal handler of a forked process could send to the
    // thread of the process that it was forked from.
    LISTENER.store(std::process::id(), SeqCst);
    Ok(())
}

/// Installs the handler of a signal, which stays.
#[allow(unsafe_code)]
fn register(signal: i32) -> io::Result<()> {
    let handler = move || {
        if LISTENER.load(SeqCst) != std::process::id() {
            // A process that was forked from the one that listens has no thread to act.
            let _ignored = emulate_default_handler(signal);
            return;
        }
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `now` is valid for writes. Where the call fails it stays as it is.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        let delivered = [signal as u64, now.tv_sec as u64, now.tv_nsec as u64];
        let length = size_of_val(&delivered);
        // SAFETY: `delivered` is valid for reads of its size until the call returns. The descriptor
        // is open: its owner gave it up for the life of the process.
        unsafe { libc::send(SOCKET.load(SeqCst), delivered.as_ptr().cast(), length, 0) };
    };
    // SAFETY: what runs in a signal handler must be async-signal-safe, and must not panic. This
    // handler loads atomics and calls `getpid`, `clock_gettime` and `send`, which POSIX lists as
    // safe, and `emulate_default_handler`, which says so of itself. It takes no lock, allocates
    // nothing, and has no operation that panics. The registry restores `errno`.
    unsafe { signal_hook::low_level::register(signal, handler) }?;
    Ok(())
}

/// The thread's life: acts on the signals that the signal handlers send it.
fn act(socket: &UnixDatagram) {
    let mut first: Option<Duration> = None;
    loop {
        let mut delivered = [[0; 8]; 3];
        match socket.recv(delivered.as_flattened_mut()) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Not met: the other end of the socket stays open.
            Err(_) => return,
        }
        let [signal, seconds, nanos] = delivered.map(u64::from_ne_bytes);
        let at = Duration::new(seconds, nanos as u32);
        // Judged by the time of delivery: this thread may have been kept from running meanwhile.
        let is_same = |first: Duration| at.saturating_sub(first) < ONE_INTENTION;
        if !first.is_some_and(is_same) {
            first = Some(at);
            hear(signal as i32);
        }
    }
}

/// Acts on one signal: drains the servers that it is the first for, and aborts those that it is the
/// second for.
fn hear(signal: i32) {
    let name = if signal == SIGINT {
        "SIGINT"
    } else {
        "SIGTERM"
    };
    let (mut first, mut again) = (Vec::new(), Vec::new());
    let _held;
    {
        let mut servers = lock(&SERVERS);
        _held = forget_closed(&mut servers);
        for enlisted in &mut *servers {
            let Some(server) = enlisted.server.upgrade() else {
                continue;
            };
            match enlisted.heard {
                0 => first.push(server),
                1 if server.serving_since().is_some() => again.push(server),
                // A server that is never served, or that could not be aborted by the second signal.
                // It may stay so for ever, and does not keep the signal from what it does by
                // default.
                _ => {}
            }
            enlisted.heard += 1;
        }
    }
    if first.is_empty() && again.is_empty() {
        // This ends the process, as the signal would have done without this crate.
        let _ignored = emulate_default_handler(signal);
        return;
    }
    for server in first {
        // A drain that is under way goes on as it is.
        server.shutdown(Reason::Signal(name), None);
    }
    for server in again {
        log::warn!(target: "gracious", "{name} again: aborting");
        abort::abort_now(&server);
    }
}

/// Forgets the servers that are closed. Gives all servers that it looked at: the caller drops them
/// without the lock, since the last owner of a server runs destructors of others.
fn forget_closed(servers: &mut Vec<Enlisted>) -> Vec<Arc<Shared>> {
    let mut held = Vec::new();
    servers.retain(|enlisted| {
        let server = enlisted.server.upgrade();
        let is_open = |server: &Arc<Shared>| server.latch.phase() < Phase::Closed;
        let retained = server.as_ref().is_some_and(is_open);
        held.extend(server);
        retained
    });
    held
}
