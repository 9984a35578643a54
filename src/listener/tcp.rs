//! TCP listeners.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::task::{Context, Poll};

use socket2::{Domain, TcpKeepalive, Type};

use super::bind::cannot_listen;
#[cfg(target_os = "linux")]
use super::shut::Means;
use super::{ListeningSocket, RawListener};
use crate::address::Address;
use crate::config::{Config, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};
use crate::socket;
use crate::socket::Incoming;
use crate::transport::Engine;

/// How often a free port is looked for that all families have.
const PORT_TRIES: usize = 32;

#[derive(Debug)]
pub(crate) struct Tcp {
    socket: ListeningSocket<TcpListener>,
    /// What keeps new peers out at a stop. Nothing of an adopted socket, which others may hold: what
    /// acts on the socket and not on our descriptor stays undone.
    #[cfg(target_os = "linux")]
    means: Means,
    /// New peers are kept out.
    is_shut: bool,
}

impl Tcp {
    /// As many sockets on one address as there are engines.
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
            // Only now, when it is known that nobody else has the port.
            sockets[0].set_reuse_port(true)?;
        }
        for _ in 1..engines.len() {
            sockets.push(bind_one(address, only_v6, config, true)?);
        }
        // Before any of them listens: what is tried out has no effect on peers.
        #[cfg(target_os = "linux")]
        let means = Means::find(&socket2::SockRef::from(&sockets[0]));
        #[cfg(target_os = "linux")]
        if means == Means::None {
            log::warn!(
                target: "gracious", address:%;
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
            })
        });
        listening.collect()
    }

    pub(super) fn adopt(listener: TcpListener, engine: &Engine) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: ListeningSocket::new(listener, engine)?,
            #[cfg(target_os = "linux")]
            means: Means::None,
            is_shut: false,
        })
    }
}

#[cfg(target_os = "linux")]
fn accept(listener: &TcpListener) -> io::Result<(Incoming, Address)> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    // Saves the calls that would make the socket non-blocking and ask for the peer.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    // A peer that is gone already may have no name any more.
    let peer = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    Ok((incoming(TcpStream::from(socket)), Address::Tcp(peer)))
}

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
    // A port in TIME_WAIT can be bound again, on Unix no port that somebody listens on.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // What follows is handed down to every accepted socket.
    socket.set_tcp_nodelay(config.nodelay)?;
    if let Some(idle) = config.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
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

    fn shut(&mut self) {
        #[cfg(target_os = "linux")]
        if !self.is_shut {
            self.is_shut = self.means.shut(self.socket.get_ref());
        }
    }

    fn is_shut(&self) -> bool {
        self.is_shut
    }

    fn handshakes_at(&self) -> Option<SocketAddr> {
        let local = self.socket.get_ref().local_addr();
        self.is_shut.then_some(local.ok()).flatten()
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

/// Every address a name has.
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

/// Binds every address of one name that this machine has, all on one port.
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

/// An address, or a whole family, that this machine does not have.
fn is_not_ours(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
