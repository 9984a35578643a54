//! TCP listeners.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
#[cfg(all(feature = "handover", target_os = "linux"))]
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};
#[cfg(target_os = "linux")]
use std::time::Duration;

use socket2::{Domain, SockRef, TcpKeepalive, Type};

use super::bind::cannot_listen;
#[cfg(all(feature = "handover", target_os = "linux"))]
use super::handover::Inode;
#[cfg(target_os = "linux")]
use super::shut::Means;
use super::{ListeningSocket, RawListener};
use crate::address::Address;
use crate::config::{Config, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};
#[cfg(target_os = "linux")]
use crate::log;
use crate::socket;
use crate::socket::Incoming;
use crate::transport::Engine;

/// How often a free port is looked for that all addresses of a name have.
const PORT_TRIES: usize = 32;

/// A TCP listener.
#[derive(Debug)]
pub(crate) struct Tcp {
    socket: ListeningSocket<TcpListener>,
    /// The means to shut this listener. `Means::None` of an adopted socket, which others may hold:
    /// what acts on the socket, and not on our descriptor alone, would shut it for them, too.
    #[cfg(target_os = "linux")]
    means: Means,
    /// New peers are refused.
    is_shut: bool,
    /// The socket was adopted.
    #[cfg(any(feature = "systemd", feature = "health"))]
    is_adopted: bool,
    /// See [`RawListener::keep`].
    is_kept: bool,
}

impl Tcp {
    /// Binds as many sockets to one address as there are engines, and has them listen. `only_v6`:
    /// an IPv6 socket leaves the IPv4 port alone.
    fn bind(
        address: SocketAddr,
        only_v6: bool,
        config: &Config,
        engines: &[Engine],
    ) -> io::Result<Vec<Self>> {
        let first = bind_one(address, only_v6, config, config.reuse_port)?;
        let address = first.local_addr()?.as_socket().unwrap_or(address);
        let mut sockets = vec![first];
        if engines.len() > 1 {
            // After the bind: with the option set before, the bind would succeed beside a socket of
            // another process that has it, too.
            sockets[0].set_reuse_port(true)?;
        }
        for _ in 1..engines.len() {
            sockets.push(bind_one(address, only_v6, config, true)?);
        }
        // Before any of the sockets listens: to find the means out tries them, which must not be
        // seen by a peer. All sockets of one port have the same, since it is all of them or none.
        #[cfg(target_os = "linux")]
        let means = Means::find(&SockRef::from(&sockets[0]));
        #[cfg(target_os = "linux")]
        if means == Means::None {
            log::warn!(
                target: "gracious",
                "new peers cannot be kept out of {address} at a stop, some may be reset: expected Linux \
                 5.7, a listener that is bound to no interface, or CAP_NET_ADMIN",
            );
        }
        let listening = sockets.into_iter().zip(engines).map(|(socket, engine)| {
            socket.listen(i32::try_from(config.backlog).unwrap_or(i32::MAX))?;
            Ok(Self {
                socket: ListeningSocket::new(socket.into(), engine)?,
                #[cfg(target_os = "linux")]
                means,
                is_shut: false,
                #[cfg(any(feature = "systemd", feature = "health"))]
                is_adopted: false,
                is_kept: false,
            })
        });
        listening.collect()
    }

    /// Takes over a socket that listens already.
    pub(super) fn adopt(listener: TcpListener, engine: &Engine) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: ListeningSocket::new(listener, engine)?,
            #[cfg(target_os = "linux")]
            means: Means::None,
            is_shut: false,
            #[cfg(any(feature = "systemd", feature = "health"))]
            is_adopted: true,
            is_kept: false,
        })
    }
}

/// Accepts one peer, as a socket in non-blocking mode.
#[cfg(target_os = "linux")]
fn accept(listener: &TcpListener) -> io::Result<(Incoming, Address)> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    // One system call: it makes the socket non-blocking and gives the peer, too.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    // A peer that has reset the connection already may have no address any more.
    let peer = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    Ok((incoming(TcpStream::from(socket)), Address::Tcp(peer)))
}

/// Accepts one peer, as a socket in non-blocking mode.
#[cfg(not(target_os = "linux"))]
fn accept(listener: &TcpListener) -> io::Result<(Incoming, Address)> {
    let (stream, peer) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok((incoming(stream), Address::Tcp(peer)))
}

/// A socket that is bound, and does not listen yet.
fn bind_one(
    address: SocketAddr,
    only_v6: bool,
    config: &Config,
    reuse_port: bool,
) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // On Unix this allows a port with connections in TIME_WAIT, and no port on which another socket
    // listens.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    set_options(&SockRef::from(&socket), config)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sets what every accepted socket inherits from its listener.
fn set_options(socket: &SockRef<'_>, config: &Config) -> io::Result<()> {
    socket.set_tcp_nodelay(config.nodelay)?;
    if let Some(idle) = config.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if let Some(limit) = config.user_timeout {
        socket.set_tcp_user_timeout(Some(whole_milliseconds(limit)))?;
    }
    Ok(())
}

/// A limit as `TCP_USER_TIMEOUT` takes it: the kernel counts in milliseconds, takes 0 for no limit,
/// and refuses numbers above an `i32`.
#[cfg(target_os = "linux")]
fn whole_milliseconds(limit: Duration) -> Duration {
    let millis = limit.as_nanos().div_ceil(1_000_000);
    Duration::from_millis(millis.min(i32::MAX as u128) as u64)
}

fn incoming(stream: TcpStream) -> Incoming {
    Incoming::Socket(socket::Socket::Tcp(stream))
}

impl RawListener for Tcp {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, Address)>> {
        self.socket.poll_accept(cx, accept)
    }

    fn try_accept(&mut self) -> io::Result<(Incoming, Address)> {
        accept(self.socket.get_ref())
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.socket.get_ref().local_addr().map(Address::Tcp)
    }

    fn shut(&mut self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if !self.is_shut && !self.is_kept {
            self.is_shut = self.means.shut(self.socket.get_ref())?;
        }
        Ok(())
    }

    fn is_shut(&self) -> bool {
        self.is_shut
    }

    fn handshakes_at(&self) -> Option<SocketAddr> {
        let local = self.socket.get_ref().local_addr();
        self.is_shut.then_some(local.ok()).flatten()
    }

    fn end(&mut self) {
        if self.is_shut {
            // The port is free from here on, even if a program that is just being started has a
            // copy of the descriptor until it is executed. A socket that was shut is nobody else's.
            let _ignored = SockRef::from(self.socket.get_ref()).shutdown(Shutdown::Both);
        }
    }

    #[cfg(any(feature = "systemd", feature = "health"))]
    fn lend(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        let is_lent = self.is_kept || !self.is_adopted;
        is_lent.then(|| self.socket.get_ref().as_fd())
    }

    #[cfg(feature = "systemd")]
    fn keep(&mut self) {
        self.is_kept = true;
    }

    fn is_kept(&self) -> bool {
        self.is_kept
    }

    fn leave(self: Box<Self>) {
        self.socket.leave();
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn own(&mut self, _inode: Option<Inode>, config: &Config) {
        let socket = SockRef::from(self.socket.get_ref());
        self.means = Means::of_listening(&socket);
        let backlog = i32::try_from(config.backlog).unwrap_or(i32::MAX);
        let set = set_options(&socket, config).and_then(|()| socket.listen(backlog));
        // Called under a lock, where nothing is logged. It keeps the predecessor's settings, which are
        // as good as any.
        let _kept = set;
    }

    #[cfg(target_os = "linux")]
    fn queued(&self) -> Option<u32> {
        queued(self.socket.get_ref())
    }
}

/// The length of a listener's queue, which `TCP_INFO` gives in a field that has another meaning for
/// a connection.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn queued(listener: &TcpListener) -> Option<u32> {
    use std::mem::{MaybeUninit, offset_of, size_of};
    use std::os::fd::AsRawFd;
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is as large as that.
    let done = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    let known = offset_of!(libc::tcp_info, tcpi_unacked) + size_of::<u32>();
    if done != 0 || (length as usize) < known {
        return None;
    }
    // SAFETY: `tcp_info` is made of integers, for which all bit patterns, zero included, are valid.
    let info = unsafe { info.assume_init() };
    Some(info.tcpi_unacked)
}

/// Resolves a host name to all its addresses.
pub(super) async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.is_empty() {
        let (v6, v4) = (Ipv6Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
        return Ok(vec![(v6, port).into(), (v4, port).into()]);
    }
    let name = Address::Host(host.clone(), port);
    let resolved = blocking::unblock(move || (host.as_str(), port).to_socket_addrs()).await;
    let mut addresses = Vec::new();
    for address in resolved.map_err(|error| cannot_listen(&name, &error))? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Binds every address of one name that this machine has, all to one port. `all` are the addresses
/// of all names: an IPv6 socket takes IPv4 peers, too, unless one of them is IPv4 with its port.
/// Gives for each address its sockets, one for each engine.
pub(super) fn bind_all(
    addresses: &[SocketAddr],
    all: &[SocketAddr],
    config: &Config,
    engines: &[Engine],
) -> io::Result<Vec<Vec<Tcp>>> {
    let mut last = None;
    'tries: for _ in 0..PORT_TRIES {
        let mut bound: Vec<Vec<Tcp>> = Vec::new();
        let mut port = 0;
        for &address in addresses {
            let any_port = address.port() == 0;
            let wanted = if any_port {
                SocketAddr::new(address.ip(), port)
            } else {
                address
            };
            let only_v6 = all
                .iter()
                .any(|other| other.is_ipv4() && other.port() == address.port());
            match Tcp::bind(wanted, only_v6, config, engines) {
                Ok(sockets) => {
                    if any_port && port == 0 {
                        port = sockets[0].socket.get_ref().local_addr()?.port();
                    }
                    bound.push(sockets);
                }
                Err(error) if is_not_ours(&error) && addresses.len() > 1 => {
                    last = Some(cannot_listen(&wanted.into(), &error));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && port != 0 => {
                    last = Some(cannot_listen(&wanted.into(), &error));
                    continue 'tries;
                }
                Err(error) => return Err(cannot_listen(&wanted.into(), &error)),
            }
        }
        if !bound.is_empty() {
            return Ok(bound);
        }
        break;
    }
    Err(last.unwrap_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "the name to listen on has no address",
        )
    }))
}

/// Whether an error of bind says that this machine does not have the address, or its whole family.
pub(super) fn is_not_ours(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
