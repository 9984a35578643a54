//! Unix listeners: in the file system, and in Linux's abstract namespace.
//!
//! 1. At a stop the path is removed first, and the listener is shut afterwards. Swapped, a
//!    successor could find the path with a listener that refuses, replace it by its own, and lose
//!    that to our removal.
//! 2. A path is removed only if the file behind it is still the one that this listener made:
//!    another server may have put its own there.
//! 3. The directory is locked against other servers of this kind from the look at what is behind a
//!    path until our own socket listens there. Another server that bound between the look and the
//!    removal would lose its path; and one that looked before our socket listens would take that
//!    for one that nobody is behind any more, and remove it.

use std::fs;
use std::io;
use std::net::Shutdown;
#[cfg(all(feature = "handover", target_os = "linux"))]
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use socket2::{Domain, SockAddr, SockRef, Type};

use super::bind::cannot_listen;
#[cfg(all(feature = "handover", target_os = "linux"))]
use super::handover::Inode;
use super::{ListeningSocket, RawListener};
use crate::address::Address;
use crate::config::Config;
use crate::log;
use crate::socket;
use crate::socket::Incoming;
use crate::socket::owner::Owner;
use crate::transport::Engine;

/// A Unix listener.
#[derive(Debug)]
pub(crate) struct Unix {
    /// The file that `bind` made; none of an abstract or an adopted socket. It is dropped, and the
    /// path removed, before the socket is closed: see invariant 1.
    file: Option<File>,
    socket: ListeningSocket<UnixListener>,
    /// The socket was adopted, and others may hold it: what acts on the socket, and not on our
    /// descriptor alone, is not done.
    shared: bool,
    /// See [`RawListener::keep`].
    is_kept: bool,
    /// New peers are refused. The system then reports the socket as ready for ever, with an empty
    /// queue, too.
    shut: bool,
}

/// The file of a Unix socket: its path, and the device and inode that it had when it was made. The
/// process that made it removes it: see [`File::remove`].
#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    inode: (u64, u64),
    owner: Owner,
    is_removed: bool,
}

impl Unix {
    /// Binds a socket to a path or an abstract name, and has it listen.
    pub(super) async fn bind(
        address: Address,
        config: &Config,
        engine: &Engine,
    ) -> io::Result<Self> {
        let (config, engine) = (config.clone(), engine.clone());
        // Calls of the file system block.
        blocking::unblock(move || {
            Self::bind_now(&address, &config, &engine)
                .map_err(|error| cannot_listen(&address, &error))
        })
        .await
    }

    /// Takes over a socket that listens already.
    pub(super) fn adopt(listener: UnixListener, engine: &Engine) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: ListeningSocket::new(listener, engine)?,
            file: None,
            shared: true,
            is_kept: false,
            shut: false,
        })
    }

    fn bind_now(address: &Address, config: &Config, engine: &Engine) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let mut lock = None;
        let file = match address {
            Address::Unix(path) => {
                // The working directory may have changed when the path is removed.
                let path = std::path::absolute(path)?;
                lock = lock_directory(&path, TRIES_TO_BIND);
                Some(bind_file(&socket, path, config)?)
            }
            Address::Abstract(name) => {
                let mut path = vec![0];
                path.extend(name);
                let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path);
                socket.bind(&SockAddr::unix(path)?)?;
                None
            }
            other => unreachable!("{other} is no Unix address"),
        };
        let backlog = i32::try_from(config.backlog).unwrap_or(i32::MAX);
        let listened = socket.listen(backlog);
        // Invariant 3.
        drop(lock);
        listened.and_then(|()| socket.set_nonblocking(true))?;
        Ok(Self {
            socket: ListeningSocket::new(socket.into(), engine)?,
            file,
            shared: false,
            is_kept: false,
            shut: false,
        })
    }

    /// Whether an error says that the queue of a listener which is shut is empty: after `SHUT_RD`
    /// that is EINVAL on some systems.
    fn is_empty_queue(&self, error: &io::Error) -> bool {
        self.shut && error.raw_os_error() == Some(libc::EINVAL)
    }
}

/// Accepts one peer, as a socket in non-blocking mode.
fn accept(listener: &UnixListener) -> io::Result<(Incoming, Address)> {
    #[cfg(target_os = "linux")]
    let stream = {
        use rustix::net::{SocketFlags, accept_with};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        std::os::unix::net::UnixStream::from(accept_with(listener, flags)?)
    };
    #[cfg(not(target_os = "linux"))]
    let stream = {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        stream
    };
    // A peer that has hung up already has no address any more.
    let peer = stream.peer_addr();
    let peer = peer.map_or(Address::Unnamed, |peer| Address::from_unix(&peer));
    Ok((Incoming::Socket(socket::Socket::Unix(stream)), peer))
}

/// The error that accept should give on an adopted listener which another owner has shut, as it
/// does on TCP. On Linux such a Unix listener looks like one with an empty queue, and is reported
/// as ready for ever: without this error the accept loop would spin.
fn was_shut(listener: &UnixListener) -> Option<io::Error> {
    #[cfg(target_os = "linux")]
    {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut state = [PollFd::new(listener, PollFlags::RDHUP)];
        poll(&mut state, Some(&Timespec::default())).ok()?;
        let shut = state[0].revents().contains(PollFlags::RDHUP);
        shut.then(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _nobody_tells = listener;
        None
    }
}

impl RawListener for Unix {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, Address)>> {
        if self.shut {
            // No peer will come any more, and the reactor, which would report the socket as ready
            // all the while, is not asked.
            return match self.try_accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                accepted => Poll::Ready(accepted),
            };
        }
        let shared = self.shared;
        self.socket
            .poll_accept(cx, |listener| match accept(listener) {
                Err(error) if shared && error.kind() == io::ErrorKind::WouldBlock => {
                    Err(was_shut(listener).unwrap_or(error))
                }
                accepted => accepted,
            })
    }

    fn try_accept(&mut self) -> io::Result<(Incoming, Address)> {
        match accept(self.socket.get_ref()) {
            Err(error) if self.is_empty_queue(&error) => Err(io::ErrorKind::WouldBlock.into()),
            accepted => accepted,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::from_unix(&self.socket.get_ref().local_addr()?))
    }

    fn shut(&mut self) -> io::Result<()> {
        if self.is_kept {
            return Ok(());
        }
        // Invariant 1.
        let removed = self.file.take().map_or(Ok(()), |mut file| file.remove());
        if !self.shared {
            // New peers are refused, and queued ones can still be accepted. This cannot fail on a
            // socket that listens.
            let _ignored = SockRef::from(self.socket.get_ref()).shutdown(Shutdown::Read);
            self.shut = true;
        }
        removed
    }

    #[cfg(any(feature = "systemd", feature = "health"))]
    fn lend(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        let is_lent = self.is_kept || !self.shared;
        is_lent.then(|| self.socket.get_ref().as_fd())
    }

    #[cfg(feature = "systemd")]
    fn keep(&mut self) {
        self.is_kept = true;
        // As if others held it: see `was_shut`.
        self.shared = true;
        if let Some(file) = &mut self.file {
            file.is_removed = true;
        }
    }

    fn is_kept(&self) -> bool {
        self.is_kept
    }

    fn leave(self: Box<Self>) {
        self.socket.leave();
    }

    fn is_shut(&self) -> bool {
        self.shut
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn inode(&self) -> Option<Inode> {
        self.file.as_ref().map(|file| file.inode)
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn forget_path(&mut self) {
        if let Some(file) = &mut self.file {
            file.forget();
        }
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn own(&mut self, inode: Option<Inode>, config: &Config) {
        self.shared = false;
        if let (Some(inode), Ok(Address::Unix(path))) = (inode, self.local_addr()) {
            self.file = Some(File::inherited(path, inode));
        }
        let backlog = i32::try_from(config.backlog).unwrap_or(i32::MAX);
        // It keeps the predecessor's, which is as good as any.
        let _kept = SockRef::from(self.socket.get_ref()).listen(backlog);
    }
}

impl File {
    /// The file at this path that a predecessor has made, and has left to this process.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(super) fn inherited(path: PathBuf, inode: Inode) -> Self {
        Self {
            path,
            inode,
            owner: Owner::this_process(),
            is_removed: false,
        }
    }

    /// The path is another process's from here on.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(super) fn forget(&mut self) {
        self.is_removed = true;
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(super) fn inode(&self) -> Inode {
        self.inode
    }

    /// Removes the path if the file behind it is still this one, and this process made it. Done
    /// once: the inode's number may be another file's afterwards.
    fn remove(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.is_removed, true) || !self.owner.is_this_process() {
            return Ok(());
        }
        let _lock = lock_directory(&self.path, TRIES_TO_REMOVE);
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.inode => fs::remove_file(&self.path)
                .map_err(|error| {
                    let path = self.path.display();
                    let message = format!("cannot remove the socket {path}: {error}");
                    io::Error::new(error.kind(), message)
                }),
            // Another server's file by now, or none.
            _ => Ok(()),
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::warn!(target: "gracious", "{error}");
        }
    }
}

/// Binds a path that nobody but our own user may connect to, and has it listen, in non-blocking mode.
#[cfg(all(feature = "handover", target_os = "linux"))]
pub(super) fn bind_private(path: PathBuf) -> io::Result<(UnixListener, File)> {
    let address = Address::Unix(path);
    let bind = || {
        let Address::Unix(path) = &address else {
            unreachable!("made just now");
        };
        let path = std::path::absolute(path)?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let _lock = lock_directory(&path, TRIES_TO_BIND);
        let config = Config {
            unix_mode: Some(0o600),
            unix_owner: None,
            ..Config::default()
        };
        let file = bind_file(&socket, path, &config)?;
        socket.listen(16)?;
        socket.set_nonblocking(true)?;
        Ok((socket.into(), file))
    };
    bind().map_err(|error: io::Error| cannot_listen(&address, &error))
}

/// Binds a socket to a path, whose directory is locked. Replaces the file of a socket on which no
/// process listens any more.
fn bind_file(socket: &socket2::Socket, path: PathBuf, config: &Config) -> io::Result<File> {
    let address = SockAddr::unix(&path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(&path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    let made = fs::symlink_metadata(&path)?;
    // Before the socket listens: no peer can connect until owner and mode are in place.
    let owned = (|| {
        if let Some((user, group)) = config.unix_owner {
            chown(&path, user, group)?;
        }
        if let Some(mode) = config.unix_mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    })();
    if let Err(error) = owned {
        fs::remove_file(&path)?;
        return Err(error);
    }
    Ok(File {
        path,
        inode: (made.dev(), made.ino()),
        owner: Owner::this_process(),
        is_removed: false,
    })
}

/// Removes the file of a socket on which no process listens any more.
///
/// # Errors
/// Where a process does, and where the file is no socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let in_use = |message| Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    if !found.file_type().is_socket() {
        return in_use("the path exists and is not a socket");
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A listener whose queue is full would block a connect, and is in use.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => in_use("another process is listening on it"),
    }
}

/// Locks the directory of a path against other servers of this kind; the lock ends when the file
/// that is given back is dropped. `None` where the directory cannot be locked, or another process
/// keeps the lock: the caller goes on without.
fn lock_directory(path: &Path, tries: u32) -> Option<fs::File> {
    use rustix::fs::{FlockOperation, flock};
    let directory = fs::File::open(path.parent()?).ok()?;
    for _ in 0..tries {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(_) => return None,
        }
    }
    None
}

/// How often the lock is tried, with a pause in between: a server holds it for a few system calls,
/// and longer on a busy machine. To bind waits on a thread of its own, to remove in the server's
/// task.
const TRIES_TO_BIND: u32 = 1000;
const TRIES_TO_REMOVE: u32 = 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
