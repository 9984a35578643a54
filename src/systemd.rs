//! What systemd is told of the servers of this process: that they are ready, that they stop and how far
//! they are, that they live, and which sockets it should hold for the next process of the service.
//!
//! 1. systemd knows one service, and a process may have several servers. So all that asked for it are in
//!    one list: the service is ready when the last of them is, it stops when the last of them does, and
//!    it lives while all of them do.
//! 2. Everything is sent from the servers' own tasks, and without waiting: a message for which systemd
//!    has no room is tried again. So the watchdog hears of a server whose task does not run.
//! 3. A listener is not kept for a successor before systemd has been sent its socket: a stop would leave
//!    the queue to nobody.
//!
//! The crates for this connect to a path alone, and wait where systemd's queue is full.

use std::fmt;
use std::future::pending;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures_lite::future;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use rustix::time::{ClockId, clock_gettime};

use crate::accept::spawn::BoxedTask;
use crate::handle::Handle;
use crate::lifecycle::Phase;
use crate::listener::systemd::{drop_stored, store_size, stored_name};
use crate::log;
use crate::progress::Progress;
use crate::shared::Shared;
use crate::sync::lock;

/// How often systemd is told how far a drain is, and by how much its patience is extended then at most:
/// a server whose task stands still for so long is not waited for.
const TOLD_EVERY: Duration = Duration::from_secs(1);
const EXTENDED_BY: Duration = Duration::from_secs(10);
/// What `main` may do after the deadline.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// How long systemd waits for a service by default, `TimeoutStopSec`.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often a message is tried, with pauses in between, for which systemd has no room.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The way to systemd; none where nobody listens. Set with the first server that asks for it.
static NOTIFIER: OnceLock<Notifier> = OnceLock::new();
/// The servers that are told of.
static SERVERS: Mutex<Vec<Member>> = Mutex::new(Vec::new());
/// How many [`Reloading`] there are.
static RELOADING: AtomicUsize = AtomicUsize::new(0);

/// A server that is told of.
struct Member {
    server: Weak<Shared>,
    is_ready: bool,
    /// When its task last ran.
    beat: Option<Instant>,
}

/// What the environment says of systemd.
struct Notifier {
    socket: UnixDatagram,
    address: SocketAddrUnix,
    /// How soon systemd wants to hear again that the service lives.
    watchdog: Option<Duration>,
}

/// Has a server be told of. Gives an error for an environment that cannot be meant.
pub(crate) fn enlist(shared: &Arc<Shared>) -> io::Result<()> {
    if NOTIFIER.get().is_none() {
        match Notifier::from_environment()? {
            Some(notifier) => _ = NOTIFIER.set(notifier),
            None => return Ok(()),
        }
    }
    lock(&SERVERS).push(Member {
        server: Arc::downgrade(shared),
        is_ready: false,
        beat: None,
    });
    Ok(())
}

/// The server's own task, which tells systemd of it.
pub(crate) fn beside(shared: &Arc<Shared>, task: BoxedTask) -> BoxedTask {
    if !shared.config.notify {
        return task;
    }
    warn_of_a_stop_that_does_not_fit(shared);
    let server = shared.clone();
    let telling = async move {
        match NOTIFIER.get() {
            Some(notifier) => tell(&server, notifier).await,
            None if server.config.store_listeners => warn_of_no_store(),
            None => {}
        }
        pending().await
    };
    Box::pin(future::or(task, telling))
}

/// Tells of one server, until it is closed.
async fn tell(shared: &Arc<Shared>, notifier: &Notifier) {
    let stopping = shared.latch.reached(Phase::Draining);
    let serving = async {
        shared.accepting_everywhere().await;
        if shared.config.store_listeners {
            store(shared, notifier).await;
        }
        if is_last(
            shared,
            |member| member.is_ready = true,
            |member| member.is_ready,
        ) {
            for name in drop_stored() {
                let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
                notifier.send(shared, &message, None).await;
            }
            let message = format!("READY=1\nSTATUS={shared}");
            notifier.send(shared, &message, None).await;
        }
        pending().await
    };
    let watched = async {
        let Some(interval) = notifier.watchdog else {
            return pending().await;
        };
        loop {
            if all_live(shared, interval) {
                notifier.send(shared, "WATCHDOG=1", None).await;
            }
            shared.clock.sleep(interval / 2).await;
        }
    };
    let told = async {
        future::or(stopping, serving).await;
        let is_draining = |member: &Member| match member.server.upgrade() {
            Some(server) => server.latch.phase() >= Phase::Draining,
            None => true,
        };
        if is_last(shared, |_| (), is_draining) {
            notifier.send(shared, "STOPPING=1", None).await;
        }
        loop {
            let message = countdown(shared);
            notifier.send(shared, &message, None).await;
            shared.clock.sleep(TOLD_EVERY).await;
        }
    };
    future::or(told, watched).await;
}

/// Changes this server's entry, and gives whether all of the list are so. Of several servers that are
/// changed at once one is the last.
fn is_last(
    shared: &Arc<Shared>,
    change: impl FnOnce(&mut Member),
    is_so: impl Fn(&Member) -> bool,
) -> bool {
    let mut servers = lock(&SERVERS);
    // Those that were dropped unserved are not waited for.
    let mut held = Vec::new();
    servers.retain(|member| {
        let server = member.server.upgrade();
        let is_open = server
            .as_ref()
            .is_some_and(|it| it.latch.phase() < Phase::Closed);
        held.extend(server);
        is_open
    });
    let own = |member: &&mut Member| std::ptr::eq(member.server.as_ptr(), Arc::as_ptr(shared));
    if let Some(member) = servers.iter_mut().find(own) {
        change(member);
    }
    let all_are = servers.iter().all(is_so);
    // Not under the lock: the last owner of a server runs destructors of others.
    drop(servers);
    drop(held);
    all_are
}

/// Notes that this server's task runs, and gives whether those of the others do.
fn all_live(shared: &Arc<Shared>, interval: Duration) -> bool {
    let now = Instant::now();
    // A task ticks at half the interval; one that is late by another quarter is taken to stand still.
    let is_live = |member: &Member| {
        let since = member.beat.map(|beat| now.saturating_duration_since(beat));
        since.is_none_or(|since| since <= interval * 3 / 4)
    };
    is_last(shared, |member| member.beat = Some(now), is_live)
}

/// How far the stop is, and how much longer it may take. Of several servers, all together.
fn countdown(shared: &Arc<Shared>) -> String {
    let servers: Vec<_> = {
        let servers = lock(&SERVERS);
        servers
            .iter()
            .filter_map(|it| it.server.upgrade())
            .collect()
    };
    let (mut left, mut most, mut is_bounded) = (0, Duration::ZERO, true);
    for server in servers.iter().filter(|it| it.latch.phase() < Phase::Closed) {
        let progress = Progress::of(server);
        left += progress.left;
        match progress.time {
            Some(time) => most = most.max(time),
            None => is_bounded = false,
        }
    }
    let extended = match is_bounded {
        // Past the deadline the rest is a matter of moments, or of nobody who should be waited for.
        true => EXTENDED_BY.min(most + AFTERWARDS),
        false => EXTENDED_BY,
    };
    let is_over = is_bounded && most.is_zero();
    let within = match is_bounded {
        true => format!(", {} s at most", most.as_secs_f64().ceil()),
        false => String::new(),
    };
    let state = shared.state();
    let status = format!("STATUS={state}: {left} left{within}");
    match is_over {
        true => status,
        false => format!("{status}\nEXTEND_TIMEOUT_USEC={}", extended.as_micros()),
    }
}

/// Has systemd hold the listeners' sockets.
async fn store(shared: &Shared, notifier: &Notifier) {
    let sets = || shared.listener_sets.iter();
    let lent: Vec<_> = sets().flat_map(|set| set.lend()).collect();
    if lent.len() > store_size() {
        return warn_of_no_store();
    }
    for (address, descriptor, copy) in lent {
        let name = stored_name(&shared.addrs()[usize::from(address)]);
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        let is_sent = match copy {
            Ok(copy) => notifier.send(shared, &message, Some(copy.as_fd())).await,
            Err(error) => {
                log::warn!(target: "gracious", "cannot have a listener stored: {error}");
                false
            }
        };
        if is_sent {
            sets().for_each(|set| set.keep(descriptor));
        }
    }
}

fn warn_of_no_store() {
    log::warn!(
        target: "gracious",
        "the listeners are not stored, and closed at a stop as ever: expected systemd 254 with \
         `FileDescriptorStoreMax=` above the number of them, and `NotifyAccess=main`",
    );
}

impl Notifier {
    fn from_environment() -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(None);
        };
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddrUnix::new(name.as_bytes())?,
            #[cfg(target_os = "linux")]
            [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest)?,
            _ => {
                let message = format!(
                    "NOTIFY_SOCKET is {name:?}: expected a path from the root, or @ and a name"
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        };
        // One for all messages: where descriptors are wanting there is this one.
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Some(Self {
            socket,
            address,
            watchdog: watchdog()?,
        }))
    }

    /// Sends a message; `false` where it cannot be sent, which is in the log.
    async fn send(&self, shared: &Shared, message: &str, fd: Option<BorrowedFd<'_>>) -> bool {
        for _ in 0..TRIES {
            match self.try_send(message, fd) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!(target: "gracious", "cannot tell systemd `{message}`: {error}");
                    return false;
                }
            }
            shared.clock.sleep(PAUSE).await;
        }
        log::warn!(target: "gracious", "systemd does not listen to `{message}`");
        false
    }

    fn try_send(&self, message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let text = [IoSlice::new(message.as_bytes())];
        // No signal comes of a datagram.
        let flags = SendFlags::empty();
        sendmsg_addr(&self.socket, &self.address, &text, &mut ancillary, flags)?;
        Ok(())
    }
}

/// How soon systemd wants to hear again that this process lives.
fn watchdog() -> io::Result<Option<Duration>> {
    let number = |name: &str| {
        let Some(text) = std::env::var_os(name) else {
            return Ok(None);
        };
        let parsed = text.to_str().and_then(|it| it.parse::<u64>().ok());
        let message = || format!("{name} is {text:?}: expected a number");
        let error = || io::Error::new(io::ErrorKind::InvalidInput, message());
        parsed.ok_or_else(error).map(Some)
    };
    let (interval, pid) = (number("WATCHDOG_USEC")?, number("WATCHDOG_PID")?);
    let is_ours = pid.is_none_or(|pid| pid == u64::from(std::process::id()));
    Ok(interval
        .filter(|interval| is_ours && *interval > 0)
        .map(Duration::from_micros))
}

/// Warns where it is known from the environment that systemd's way to stop a service does not fit this
/// server.
fn warn_of_a_stop_that_does_not_fit(shared: &Shared) {
    if let Some(what) = what_sigterm_does() {
        log::warn!(
            target: "gracious",
            "SIGTERM, by which systemd stops a service, {what}: expected `stop_on_signals()`, or a \
             handler of the program's own",
        );
    }
    let own = std::process::id().to_string();
    let is_a_service = std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|it| it == own);
    if !is_a_service || NOTIFIER.get().is_some() {
        return;
    }
    let takes = shared
        .config
        .deadline
        .map(|deadline| shared.lame_duck() + deadline);
    let fits = takes.is_some_and(|takes| takes + AFTERWARDS <= PATIENCE);
    let longer = match (fits, takes) {
        (true, _) => String::new(),
        (false, None) => ", and a drain of this server may take any time".to_owned(),
        (false, Some(takes)) => format!(", and a stop of this server takes up to {takes:?}"),
    };
    log::warn!(
        target: "gracious",
        "systemd cannot be told how this service is: expected `Type=notify`. It kills it after \
         `TimeoutStopSec=` (90 s where nothing else is said){longer}",
    );
}

/// What SIGTERM does to this process, where that is not what it takes to stop gracefully.
fn what_sigterm_does() -> Option<&'static str> {
    const SIGTERM: u64 = 1 << (libc::SIGTERM - 1);
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let is_in = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        let mask = u64::from_str_radix(line.trim(), 16).ok()?;
        Some(mask & SIGTERM != 0)
    };
    // Whoever blocks it, for all threads, takes it from a descriptor. This thread is asked: another may
    // be starting a thread, for which it blocks all signals.
    if is_in("SigCgt:")? || is_in("SigBlk:")? {
        None
    } else if is_in("SigIgn:")? {
        Some("is ignored")
    } else {
        Some("ends this process at once")
    }
}

impl Handle {
    /// Tells systemd that the service reloads something, until what this gives is dropped.
    ///
    /// It is for a program that takes in a new configuration, or other certificates, while it serves:
    /// `systemctl reload` waits for the end, and with `Type=notify-reload` it needs this answer to the
    /// SIGHUP that it sends. It returns at once, and does nothing to the server. Where nothing was told
    /// by [`Builder::notify`](crate::Builder::notify), or the service stops, nothing is.
    pub fn reloading(&self) -> Reloading {
        if RELOADING.fetch_add(1, SeqCst) == 0 {
            let now = clock_gettime(ClockId::Monotonic);
            let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
            say(self, &format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        }
        Reloading(self.clone())
    }
}

/// Says to systemd that the service reloads: from [`Handle::reloading`] until it is dropped.
#[must_use = "the reload is over when this is dropped"]
pub struct Reloading(Handle);

impl Drop for Reloading {
    fn drop(&mut self) {
        if RELOADING.fetch_sub(1, SeqCst) == 1 {
            say(&self.0, "READY=1");
        }
    }
}

impl fmt::Debug for Reloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").finish_non_exhaustive()
    }
}

/// Says something to systemd, once, for a server that serves.
fn say(handle: &Handle, message: &str) {
    let phase = handle.shared().latch.phase();
    let is_told_of = handle.shared().config.notify && phase == Phase::Serving;
    let Some(notifier) = NOTIFIER.get().filter(|_| is_told_of) else {
        return;
    };
    if let Err(error) = notifier.try_send(message, None) {
        log::warn!(target: "gracious", "cannot tell systemd `{message}`: {error}");
    }
}
