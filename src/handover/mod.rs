//! A server that is replaced by another process without a gap: the listening sockets go from the one to
//! the other, with whoever is in their queues.
//!
//! This is the successor's side; the predecessor's is in [`give`], and its socket for operators and
//! successors in [`trigger`].

use std::fmt;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_lite::future;

use self::wire::{GO, HELLO, NO, READY, TAKE, VERSION};
use crate::lifecycle::Phase;
use crate::listener::Inherited;
use crate::listener::handover::Offer;
use crate::log;
use crate::shared::Shared;
use crate::sync::lock;

mod give;
pub(crate) mod trigger;
mod wire;

pub use self::give::HandOver;

/// The variable in which a program that is started finds its predecessor: the descriptor of the way to
/// it, and that descriptor's inode.
const VARIABLE: &str = "GRACIOUS_HANDOVER";

/// How long a predecessor may take to offer what it has.
const OFFER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a predecessor has handed over to this process, which takes its place.
///
/// ```no_run
/// # async fn hello(_: gracious::Connection) {}
/// # async fn example() -> std::io::Result<()> {
/// use gracious::{Handover, Server};
///
/// let handover = Handover::inherit()?; // empty, where there is no predecessor
/// let server = Server::builder()
///     .handover(&handover)
///     .listen_named("web", "0.0.0.0:8080") // the predecessor's socket, or a new one
///     .bind()
///     .await?;
/// let running = server.spawn(hello);
/// handover.ready().await?; // from here on the predecessor drains
/// running.await?;
/// # Ok(()) }
/// ```
///
/// Dropped without having been [ready](Self::ready), it leaves the predecessor as it was.
#[derive(Clone)]
pub struct Handover(Arc<Inner>);

struct Inner {
    /// The way to the predecessor; `None` where there is none, or everything is said.
    predecessor: Mutex<Option<UnixStream>>,
    inherited: Inherited,
    /// The servers that were bound with this.
    servers: Mutex<Vec<Weak<Shared>>>,
}

impl Handover {
    /// Takes over from the process that has started this one by
    /// [`Handle::hand_over`](crate::Handle::hand_over); where none has, there is nothing in it.
    ///
    /// To be called once, and early: before anything is bound. It waits for the predecessor's sockets,
    /// which are on their way already.
    ///
    /// # Errors
    /// A predecessor whose version of the protocol is another, or that is gone. Called again, there is
    /// nothing in it.
    pub fn inherit() -> io::Result<Self> {
        match inherited_stream()? {
            Some(stream) => Self::receive(stream),
            None => Ok(Self::nothing()),
        }
    }

    /// Takes over from the process that listens at `path`, by
    /// [`Builder::hand_over_at`](crate::Builder::hand_over_at); where none does, there is nothing in it.
    ///
    /// # Errors
    /// A predecessor that refuses, because another successor has its turn, or it is stopping, or we are
    /// neither of its user nor root; whose version of the protocol is another; or that is gone.
    pub async fn take(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let take = move || {
            let stream = match UnixStream::connect(path) {
                Ok(stream) => stream,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
                {
                    return Ok(Self::nothing());
                }
                Err(error) => return Err(error),
            };
            stream.set_write_timeout(Some(OFFER_TIMEOUT))?;
            wire::send(&stream, TAKE, &VERSION.to_ne_bytes(), None, true)?;
            Self::receive(stream)
        };
        blocking::unblock(take).await
    }

    /// Whether there is a predecessor that has handed over, or waits for us to be ready.
    #[must_use]
    pub fn has_predecessor(&self) -> bool {
        lock(&self.0.predecessor).is_some()
    }

    /// The names of the sockets that no server has taken over yet.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.inherited.names()
    }

    /// Tells the predecessor that this process serves, and waits until it says that it drains.
    ///
    /// It is told when every listener of the servers that were bound with this is asked for peers, by
    /// every accept loop; so they have to be served by now, or soon. What was taken over is this
    /// process's alone when the future gives `Ok`: a Unix path, too. Sockets that were not asked for by
    /// their names are closed before; the predecessor sweeps them. Where there is no predecessor this
    /// gives `Ok` at once.
    ///
    /// A predecessor that is gone meanwhile has left everything to us, and that is no error.
    ///
    /// # Errors
    /// A predecessor that goes on serving, because we were late, or that was asked to stop: with its
    /// words. This process should stop then. `NotConnected` where a server of ours was asked to stop.
    pub async fn ready(&self) -> io::Result<()> {
        let servers: Vec<_> = lock(&self.0.servers)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for server in &servers {
            let asked = async {
                server.accepting_everywhere().await;
                true
            };
            let stopped = async {
                server.latch.reached(Phase::Draining).await;
                false
            };
            if !future::or(asked, stopped).await {
                let message = "a server was asked to stop before it was ready";
                return Err(io::Error::new(io::ErrorKind::NotConnected, message));
            }
        }
        self.0.inherited.close();
        let stream = lock(&self.0.predecessor).take();
        if let Some(stream) = stream {
            let taken = servers.iter().flat_map(|it| {
                let listeners = it.legacies().into_iter();
                let listeners = listeners.map(|(_, legacy)| legacy.number);
                listeners.chain(it.inherited_trigger())
            });
            let body: Vec<u8> = taken.flat_map(u16::to_ne_bytes).collect();
            blocking::unblock(move || tell(&stream, &body)).await?;
            log::info!(target: "gracious", "the predecessor has handed over");
        }
        servers.iter().for_each(|server| server.own_legacies());
        servers.iter().for_each(trigger::begin);
        Ok(())
    }

    fn nothing() -> Self {
        Self::new(None, Vec::new())
    }

    fn new(predecessor: Option<UnixStream>, offers: Vec<Offer>) -> Self {
        Self(Arc::new(Inner {
            predecessor: Mutex::new(predecessor),
            inherited: Inherited::new(offers),
            servers: Mutex::default(),
        }))
    }

    /// Receives what the predecessor offers.
    fn receive(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(OFFER_TIMEOUT))?;
        stream.set_write_timeout(Some(OFFER_TIMEOUT))?;
        let hello = wire::receive(&stream).map_err(of_predecessor)?;
        if hello.kind == NO {
            let message = format!("the predecessor refuses: {}", wire::words(&hello.body));
            return Err(io::Error::other(message));
        }
        let mut body = &hello.body[..];
        let version = u32::from_ne_bytes(wire::take(&mut body)?);
        if hello.kind != HELLO || version != VERSION {
            let message = format!("the predecessor speaks version {version}: expected {VERSION}");
            let _gone = wire::send(&stream, NO, message.as_bytes(), None, true);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let count = u32::from_ne_bytes(wire::take(&mut body)?);
        let mut offers = Vec::new();
        for _ in 0..count {
            let message = wire::receive(&stream).map_err(of_predecessor)?;
            wire::add(&mut offers, message)?;
        }
        Ok(Self::new(Some(stream), offers))
    }

    pub(crate) fn inherited(&self) -> &Inherited {
        &self.0.inherited
    }

    /// A server was bound with this.
    pub(crate) fn enlist(&self, server: &Arc<Shared>) {
        lock(&self.0.servers).push(Arc::downgrade(server));
    }
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover")
            .field("has_predecessor", &self.has_predecessor())
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

/// Says that we are ready, and waits for the answer.
fn tell(stream: &UnixStream, taken: &[u8]) -> io::Result<()> {
    let answer = match wire::send(stream, READY, taken, None, true) {
        // What it has said before it went can be read all the same.
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    };
    let answer = answer.and_then(|()| {
        // Beyond that it has not refused, and does not drain: it hangs.
        let until = Instant::now() + OFFER_TIMEOUT;
        let late = || (until <= Instant::now()).then_some(());
        match wire::readable(stream, late)? {
            Ok(()) => wire::receive(stream),
            Err(()) => Err(io::ErrorKind::TimedOut.into()),
        }
    });
    match answer {
        Ok(answer) if answer.kind == GO => Ok(()),
        Ok(answer) if answer.kind == NO => {
            let message = format!("the predecessor goes on: {}", wire::words(&answer.body));
            Err(io::Error::other(message))
        }
        Ok(_) => Err(wire::malformed()),
        // It would have said NO if it went on.
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn of_predecessor(error: io::Error) -> io::Error {
    match is_gone(&error) {
        true => io::Error::new(
            error.kind(),
            "the predecessor is gone, or will not hand over",
        ),
        false => error,
    }
}

/// The way to the process that has started this one to take its place.
#[allow(unsafe_code)]
fn inherited_stream() -> io::Result<Option<UnixStream>> {
    static IS_TAKEN: AtomicBool = AtomicBool::new(false);
    let Ok(text) = std::env::var(VARIABLE) else {
        return Ok(None);
    };
    let numbers = text.split_once(':');
    let numbers =
        numbers.and_then(|(fd, inode)| Some((fd.parse::<i32>().ok()?, inode.parse().ok()?)));
    let Some((descriptor, inode)) = numbers.filter(|(fd, _): &(i32, u64)| *fd > 2) else {
        return Ok(None);
    };
    // A program that this one starts inherits the variable, and not the descriptor.
    let found = std::fs::metadata(format!("/proc/self/fd/{descriptor}"));
    if !found.is_ok_and(|it| it.ino() == inode) || IS_TAKEN.swap(true, SeqCst) {
        return Ok(None);
    }
    // SAFETY: the descriptor is open, and is the one that was made for us: its inode says so, which no
    // other open file has. It was inherited, so nothing in this process owns it, and `IS_TAKEN` sees to
    // it that this is done once.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
    Ok(Some(UnixStream::from(owned)))
}
