//! Unix listeners: in the file system, and in Linux's abstract namespace.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use socket2::{Domain, SockAddr, SockRef, Type};

use super::bind::cannot_listen;
use super::{ListeningSocket, RawListener};
use crate::address::Address;
use crate::config::Config;
use crate::socket;
use crate::socket::Incoming;
use crate::socket::owner::Owner;
use crate::transport::Engine;

#[derive(Debug)]
pub(crate) struct Unix {
    /// What we made in the file system; none of an abstract or an adopted socket. It is dropped, and the
    /// path removed, before the socket is closed: see `shut`.
    file: Option<File>,
    socket: ListeningSocket<UnixListener>,
    /// Others may hold this socket: what acts on the socket and not on our descriptor stays undone.
    shared: bool,
    /// No new peers: the queue is what it is, and reported as ready even when it is empty.
    shut: bool,
}

/// A path, and the inode that was behind it when it was ours. It is removed when this is dropped, by
/// the process that made it.
#[derive(Debug)]
struct File {
    path: PathBuf,
    inode: (u64, u64),
    owner: Owner,
}

impl Unix {
    pub(super) async fn bind(
        address: Address,
        config: &Config,
        engine: &Engine,
    ) -> io::Result<Self> {
        let (config, engine) = (config.clone(), engine.clone());
        // File systems block.
        blocking::unblock(move || {
            Self::bind_now(&address, &config, &engine)
                .map_err(|error| cannot_listen(&address, &error))
        })
        .await
    }

    pub(super) fn adopt(listener: UnixListener, engine: &Engine) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: ListeningSocket::new(listener, engine)?,
            file: None,
            shared: true,
            shut: false,
        })
    }

    fn bind_now(address: &Address, config: &Config, engine: &Engine) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let file = match address {
            Address::Unix(path) => Some(bind_file(&socket, path, config)?),
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
        let listened = socket
            .listen(backlog)
            .and_then(|()| socket.set_nonblocking(true))
            .and_then(|()| ListeningSocket::new(socket.into(), engine));
        Ok(Self {
            socket: listened?,
            file,
            shared: false,
            shut: false,
        })
    }

    /// After `SHUT_RD` an empty queue is EINVAL on some systems.
    fn is_empty_queue(&self, error: &io::Error) -> bool {
        self.shut && error.raw_os_error() == Some(libc::EINVAL)
    }
}

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
    // A peer that is gone already has no name any more.
    let peer = stream.peer_addr();
    let peer = peer.map_or(Address::Unnamed, |peer| Address::from_unix(&peer));
    Ok((Incoming::Socket(socket::Socket::Unix(stream)), peer))
}

/// What TCP says of a listener that another who holds it has shut: Linux has it look like a queue
/// that is empty, and ready for ever.
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
            // Nobody will come any more.
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

    fn shut(&mut self) {
        // The path goes first, while the listener still answers: a successor that finds the path
        // with nobody behind it would replace it, and then lose its own path to this removal.
        drop(self.file.take());
        if !self.shared {
            // New peers are refused, those queued stay acceptable. It cannot fail on a listener.
            let _ignored = SockRef::from(self.socket.get_ref()).shutdown(Shutdown::Read);
            self.shut = true;
        }
    }

    fn leave(self: Box<Self>) {
        self.socket.leave();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if !self.owner.is_this_process() {
            return;
        }
        let _lock = lock_directory(&self.path);
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.inode => {
                if let Err(error) = fs::remove_file(&self.path) {
                    let path = self.path.display();
                    log::warn!(target: "gracious", "cannot remove the socket {path}: {error}");
                }
            }
            // Somebody else's by now, or gone.
            _ => {}
        }
    }
}

/// Binds to a path, in place of a socket on which nobody answers.
fn bind_file(socket: &socket2::Socket, path: &Path, config: &Config) -> io::Result<File> {
    // The working directory may have changed when the path is removed.
    let path = std::path::absolute(path)?;
    let address = SockAddr::unix(&path)?;
    // Between a probe and a removal nobody else may bind, nor between our bind and listen probe.
    let _lock = lock_directory(&path);
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(&path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    let made = fs::symlink_metadata(&path)?;
    // The socket does not listen yet, so nobody can connect before these are in place.
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
    })
}

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
    // A full queue would block, and is a sign of life.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => in_use("another process is listening on it"),
    }
}

/// Keeps other servers of this kind from working on the same directory; the lock goes with the
/// file. Where the directory cannot be locked, or somebody holds on to the lock, the file system's
/// own guarantees have to do.
fn lock_directory(path: &Path) -> Option<fs::File> {
    use rustix::fs::{FlockOperation, flock};
    let directory = fs::File::open(path.parent()?).ok()?;
    for _ in 0..LOCK_TRIES {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(_) => return None,
        }
    }
    None
}

/// Others hold the lock for a few system calls.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
