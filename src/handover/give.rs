//! The predecessor's side.
//!
//! 1. Until the successor is ready nothing is done to a listener, or to the server: a handover that does
//!    not come about leaves everything as it was.
//! 2. Then the listeners are taken out first, and the server is asked to stop afterwards. Swapped, its
//!    task could shut them, which would shut them for the successor, too.
//! 3. The successor is told last: by then no descriptor of the sockets is left here.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use async_channel::Receiver;

use super::VARIABLE;
use super::wire::{self, GO, HELLO, NO, READY, VERSION};
use crate::address::Address;
use crate::handle::Handle;
use crate::lifecycle::{Phase, Reason};
use crate::listener::set::ListenerSet;
use crate::log;
use crate::shared::Shared;

impl Handle {
    /// Starts a successor with `command` and hands the [named](crate::Builder::listen_named) listeners
    /// of this server, and of those that stop [with it](crate::ServerSet), over to it.
    ///
    /// The successor finds them by [`Handover::inherit`](crate::Handover::inherit). Until it says that it
    /// is [ready](crate::Handover::ready) this server goes on as before; then it is asked to stop, with
    /// [`Reason::HandedOver`]. What the successor has not taken over is swept and closed as ever.
    ///
    /// It begins with this call. The future is owned, and gives the successor's process id when that
    /// serves; to drop it stops nothing.
    ///
    /// # Errors
    /// Everything that keeps the successor from being ready: it cannot be started, ends before, is of
    /// another version of the protocol, or takes longer than
    /// [`handover_timeout`](crate::Builder::handover_timeout); another has its turn (`ResourceBusy`);
    /// this server is not served, or was asked to stop. It goes on serving then, or stopping, and the
    /// log says why, too. A successor that was started is killed.
    pub fn hand_over(&self, command: Command) -> HandOver {
        let result = start(self.shared().clone(), command);
        HandOver(Box::pin(async move {
            let lost = |_| Err(io::Error::other("the handover's thread is gone"));
            result.recv().await.unwrap_or_else(lost)
        }))
    }
}

/// The future of [`Handle::hand_over`]: the process id of the successor, when that serves.
#[must_use = "whether the successor serves is known when it is awaited"]
pub struct HandOver(Pin<Box<dyn Future<Output = io::Result<u32>> + Send>>);

impl Future for HandOver {
    type Output = io::Result<u32>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u32>> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandOver").finish_non_exhaustive()
    }
}

/// Hands over to a program that is started, on a thread: no runtime has to be there for it.
fn start(server: Arc<Shared>, command: Command) -> Receiver<io::Result<u32>> {
    let (done, result) = async_channel::bounded(1);
    let give_up = done.clone();
    let work = move || {
        let result = to_program(&server, command);
        // Nobody may want to know any more.
        let _unwanted = done.try_send(result);
    };
    let thread = thread::Builder::new().name("gracious-handover".into());
    if let Err(error) = thread.spawn(work) {
        let _unwanted = give_up.try_send(Err(error));
    }
    result
}

/// Starts a program and hands over to it; gives its process id.
pub(super) fn to_program(server: &Arc<Shared>, command: Command) -> io::Result<u32> {
    let turn = Turn::take(server).inspect_err(log_refusal)?;
    let given = turn.start(command).and_then(|(mut child, stream)| {
        let given = turn.give(&stream);
        if given.is_err() {
            // Two that serve would be one too many. It may have ended by itself.
            let _gone = child.kill();
        }
        let id = child.id();
        // Else it would be a zombie when it ends, as long as this process lives.
        let reap = thread::Builder::new().name("gracious-successor".into());
        let _unreaped = reap.spawn(move || child.wait());
        given.map(|()| id)
    });
    turn.server.hold_descriptors_back();
    given.inspect_err(log_refusal)
}

/// Hands over to a process that has asked for it.
pub(super) fn to_process(server: &Arc<Shared>, stream: &UnixStream) -> io::Result<()> {
    let turn = Turn::take(server);
    let given = turn.and_then(|turn| turn.give(stream));
    if let Err(error) = &given {
        say_no(stream, error);
    }
    given.inspect_err(log_refusal)
}

fn log_refusal(error: &io::Error) {
    log::warn!(target: "gracious", "not handed over: {error}");
}

/// The other end may be gone.
fn say_no(stream: &UnixStream, error: &io::Error) {
    let _gone = wire::send(stream, NO, error.to_string().as_bytes(), None, true);
}

/// One successor's turn.
struct Turn {
    server: Arc<Shared>,
    /// This server and those that stop with it.
    all: Vec<Arc<Shared>>,
    until: Instant,
}

/// The sockets of one address.
struct Entry {
    server: usize,
    /// `None` of the socket at which a handover is asked for.
    number: Option<u16>,
    name: String,
    address: Address,
}

/// One socket that is offered.
enum Socket<'a> {
    /// The address's number, and which of its sockets.
    Listener(&'a ListenerSet, u16, usize),
    Trigger(&'a Shared),
}

impl Socket<'_> {
    /// Sends it, if it is there yet. Not waited for: it is sent under a lock.
    fn send(&self, stream: &UnixStream, body: &[u8]) -> Option<io::Result<()>> {
        match self {
            Self::Listener(set, number, nth) => set.with_socket(*number, *nth, |socket| {
                wire::send(stream, wire::SOCKET, body, Some(socket), false)
            }),
            Self::Trigger(server) => server.with_trigger(|it| {
                let socket = it.listener().as_fd();
                wire::send(stream, wire::TRIGGER, body, Some(socket), false)
            }),
        }
    }
}

impl Turn {
    fn take(server: &Arc<Shared>) -> io::Result<Self> {
        if server.serving_since().is_none() || server.is_forked() {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the server is not served",
            ));
        }
        let mut all = vec![server.clone()];
        all.extend(server.linked());
        let busy = all.iter().position(|server| !server.begin_handover());
        let taken = busy.unwrap_or(all.len());
        let turn = Self {
            server: server.clone(),
            all: all[..taken].to_vec(),
            until: Instant::now() + server.config.handover_timeout,
        };
        match busy {
            Some(_) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another successor has its turn",
            )),
            None => turn.stopping().map_or(Ok(turn), Err),
        }
    }

    /// The error of a server that was asked to stop.
    fn stopping(&self) -> Option<io::Error> {
        let is_stopping = |it: &Arc<Shared>| it.latch.phase() >= Phase::Draining;
        self.all.iter().any(is_stopping).then(|| {
            io::Error::new(
                io::ErrorKind::NotConnected,
                "the server was asked to stop, and does",
            )
        })
    }

    /// Starts the successor; gives the way to it.
    fn start(&self, command: Command) -> io::Result<(Child, UnixStream)> {
        let sets: Vec<_> = self.all.iter().flat_map(|it| &it.listener_sets).collect();
        // No peer is accepted meanwhile: where no other descriptors are left, one would take those.
        let started = ListenerSet::keep_still(&sets, || {
            self.server.give_descriptors_up();
            let (ours, theirs) = UnixStream::pair()?;
            Ok((spawn(command, theirs.into())?, ours))
        });
        self.server.hold_descriptors_back();
        started.map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("cannot start the successor: {error}"))
        })
    }

    /// Offers the sockets, waits until the successor is ready, and leaves it what it has taken.
    fn give(&self, stream: &UnixStream) -> io::Result<()> {
        // Of a message that was begun; the wait for one is `readable`'s.
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
        let entries = self.entries();
        self.offer(stream, &entries).map_err(of_successor)?;
        let gives_up = || {
            let late = || {
                let message = format!(
                    "the successor was not ready within {:?}",
                    self.server.config.handover_timeout
                );
                io::Error::new(io::ErrorKind::TimedOut, message)
            };
            let is_late = self.until <= Instant::now();
            self.stopping().or_else(|| is_late.then(late))
        };
        if let Err(why) = wire::readable(stream, gives_up)? {
            say_no(stream, &why);
            return Err(why);
        }
        let message = wire::receive(stream).map_err(of_successor)?;
        match message.kind {
            READY => {}
            NO => {
                let why = format!("the successor refuses: {}", wire::words(&message.body));
                return Err(io::Error::other(why));
            }
            _ => return Err(wire::malformed()),
        }
        let taken = taken(&message.body, entries)?;
        self.leave(&taken).inspect_err(|why| say_no(stream, why))?;
        // Invariant 3. It may be gone already: that is as if it had ended a moment later.
        let _gone = wire::send(stream, GO, &[], None, true);
        Ok(())
    }

    /// The addresses that a successor may take over.
    fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (server, shared) in self.all.iter().enumerate() {
            for (number, name) in shared.named() {
                let address = shared.address(number);
                entries.push(Entry {
                    server,
                    number: Some(number),
                    name,
                    address,
                });
            }
            entries.extend(shared.trigger().map(|(address, _)| Entry {
                server,
                number: None,
                name: String::new(),
                address,
            }));
        }
        entries
    }

    fn offer(&self, stream: &UnixStream, entries: &[Entry]) -> io::Result<()> {
        let mut sockets = Vec::new();
        for (place, entry) in entries.iter().enumerate() {
            let server = &self.all[entry.server];
            let Some(number) = entry.number else {
                let inode = server.trigger().map(|(_, inode)| inode);
                sockets.push((place, Socket::Trigger(server), inode));
                continue;
            };
            let mut inode = None;
            for set in &server.listener_sets {
                let (count, file) = set.sockets_of(number);
                inode = inode.or(file);
                let socket = |nth| (place, Socket::Listener(set, number, nth), inode);
                sockets.extend((0..count).map(socket));
            }
        }
        let mut hello = VERSION.to_ne_bytes().to_vec();
        hello.extend((sockets.len() as u32).to_ne_bytes());
        wire::send(stream, HELLO, &hello, None, true)?;
        for (place, socket, inode) in sockets {
            let entry = &entries[place];
            let body = wire::describe(place as u16, &entry.name, &entry.address, inode);
            loop {
                match socket.send(stream, &body) {
                    Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        if self.until <= Instant::now() {
                            return Err(io::ErrorKind::TimedOut.into());
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                    Some(sent) => break sent?,
                    None => {
                        let message = "a listener was closed while it was offered";
                        return Err(io::Error::other(message));
                    }
                }
            }
        }
        Ok(())
    }

    /// Closes what the successor has taken over, and asks the servers to stop.
    fn leave(&self, taken: &[Entry]) -> io::Result<()> {
        if let Some(error) = self.stopping() {
            return Err(error);
        }
        for (place, server) in self.all.iter().enumerate() {
            let theirs = taken.iter().filter(|it| it.server == place);
            let numbers: Vec<_> = theirs.filter_map(|it| it.number).collect();
            // Invariant 2. Servers of one set stop together, so the first one says it.
            if !ListenerSet::hand_over(&server.listener_sets, &numbers) && place == 0 {
                let message = "a listener that the successor has taken over was shut";
                return Err(io::Error::other(message));
            }
        }
        for (place, server) in self.all.iter().enumerate() {
            let mut theirs = taken.iter().filter(|it| it.server == place);
            match theirs.any(|it| it.number.is_none()) {
                true => server.leave_trigger(),
                // A successor that has it at another path, or by another name of this, binds it when
                // it is told.
                false => server.set_trigger(None),
            }
        }
        self.server.shutdown(Reason::HandedOver, None);
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.iter().for_each(|server| server.end_handover());
    }
}

/// How long the rest of a message may take that was begun.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the successor says that it has taken over.
fn taken(body: &[u8], mut entries: Vec<Entry>) -> io::Result<Vec<Entry>> {
    let numbers = body
        .chunks_exact(2)
        .map(|it| u16::from_ne_bytes([it[0], it[1]]));
    let numbers: Vec<_> = numbers.collect();
    if numbers.iter().any(|it| usize::from(*it) >= entries.len()) {
        return Err(wire::malformed());
    }
    let mut place = 0..;
    entries.retain(|_| {
        place
            .next()
            .is_some_and(|it: usize| numbers.contains(&(it as u16)))
    });
    Ok(entries)
}

/// An error of the way to the successor, in words.
fn of_successor(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => {
            let message = "the successor ended, or gave up, before it was ready";
            io::Error::new(io::ErrorKind::UnexpectedEof, message)
        }
        _ => error,
    }
}

/// Starts a program that has this descriptor, and no other of ours, and is told its number.
#[allow(unsafe_code)]
fn spawn(mut command: Command, theirs: OwnedFd) -> io::Result<Child> {
    use rustix::io::{FdFlags, fcntl_setfd};
    // The inode is told, too: whoever inherits the variable and not the descriptor takes nothing else
    // for it.
    let file = std::fs::File::from(theirs);
    let inode = file.metadata()?.ino();
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file);
    command.env(VARIABLE, format!("{descriptor}:{inode}"));
    let keep_open = move || Ok(fcntl_setfd(file.as_fd(), FdFlags::empty())?);
    // SAFETY: what runs between fork and exec must be async-signal-safe. This is one `fcntl`, which is,
    // and takes no lock and allocates nothing, where it fails neither: the error is a number. The flag is
    // changed there and not here, so that a program which another thread starts meanwhile does not
    // inherit the descriptor: the end of the successor would not be noticed then.
    unsafe { command.pre_exec(keep_open) };
    // Our own descriptor of it is closed with the command.
    command.spawn()
}
