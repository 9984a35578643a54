//! What the kernel does with a listener that is bound to an interface which does not exist, and what
//! it does otherwise: the facts that a stop without a loss rests on, without the library.
//!
//! All of it is done as a user without privileges, unless a test says otherwise.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use socket2::{Domain, SockRef, Socket, Type};

use crate::rig::link::{Link, SERVER, SERVER_V6};
use crate::rig::namespace::Namespace;
use crate::rig::relay::Conditions;
use crate::rig::sys::{bind_to_interface, bound_to_interface};

/// An interface that no machine has.
const NOWHERE: i32 = i32::MAX;

/// Generous: on a busy machine nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The kernel sends a SYN that was not answered again after a second. What takes less was an answer
/// to the first.
const AT_ONCE: Duration = Duration::from_millis(900);

/// What is listened on, and how it is reached.
#[derive(Clone, Copy, Debug)]
struct Way {
    listen: SocketAddr,
    /// The address to connect to, with the port that is listened on.
    reach: SocketAddr,
    /// From the other end of the link, or from the same.
    across: bool,
}

fn ways(link: &Link) -> Vec<Way> {
    let way = |listen: SocketAddr, reach: SocketAddr, across| Way {
        listen,
        reach,
        across,
    };
    let v4 = SocketAddr::from((SERVER, 0));
    let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let loopback_v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut ways = vec![
        way(v4, v4, true),
        way(any_v4, v4, true),
        way(loopback_v4, loopback_v4, false),
    ];
    if link.has_v6 {
        let v6 = SocketAddr::from((SERVER_V6, 0));
        let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let loopback_v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        ways.extend([
            way(v6, v6, true),
            // Both families.
            way(any_v6, v6, true),
            way(any_v6, v4, true),
            way(loopback_v6, loopback_v6, false),
            way(any_v6, loopback_v4, false),
        ]);
    }
    ways
}

impl Way {
    fn client(self, link: &Link) -> &Namespace {
        if self.across {
            &link.client
        } else {
            &link.server
        }
    }

    /// A connect in non-blocking mode, which may be under way still.
    #[track_caller]
    fn begin(self, link: &Link, listener: &Listener) -> TcpStream {
        let address = SocketAddr::new(self.reach.ip(), listener.port());
        self.client(link).run(|| {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM.nonblocking(),
                None,
            );
            let socket = socket.unwrap();
            match socket.connect(&address.into()) {
                Ok(()) => {}
                // A refusal on loopback is known at once, and told by the socket.
                Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS)),
            }
            TcpStream::from(socket)
        })
    }

    /// A connect, and how it ends.
    #[track_caller]
    fn connect(self, link: &Link, listener: &Listener) -> io::Result<TcpStream> {
        let address = SocketAddr::new(self.reach.ip(), listener.port());
        let connected = self
            .client(link)
            .run(|| TcpStream::connect_timeout(&address, PATIENCE));
        if let Ok(stream) = &connected {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        connected
    }
}

/// A listener of a user without privileges.
#[derive(Debug)]
struct Listener(TcpListener);

impl Listener {
    #[track_caller]
    fn bind(link: &Link, address: SocketAddr, reuse_port: bool) -> Self {
        unprivileged(&link.server, || {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM.nonblocking(),
                None,
            );
            let socket = socket.unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(false).unwrap();
            }
            socket.set_reuse_port(reuse_port).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(1024).unwrap();
            Self(socket.into())
        })
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    #[track_caller]
    fn try_bind_to(&self, link: &Link, interface: i32) -> io::Result<()> {
        unprivileged(&link.server, || {
            bind_to_interface(self.0.as_fd(), interface)
        })
    }

    #[track_caller]
    fn shut(&self, link: &Link) {
        self.try_bind_to(link, NOWHERE).unwrap();
        assert_eq!(bound_to_interface(self.0.as_fd()).unwrap(), NOWHERE);
    }

    /// The next peer, who is there or on the way.
    #[track_caller]
    fn accept(&self) -> TcpStream {
        let stream = eventually("a peer to accept", || self.try_accept());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The next peer in the queue.
    #[track_caller]
    fn try_accept(&self) -> Option<TcpStream> {
        match self.0.accept() {
            Ok((stream, _peer)) => Some(stream),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }
}

/// Runs something in a namespace as the user 65534.
#[track_caller]
fn unprivileged<T: Send>(namespace: &Namespace, body: impl FnOnce() -> T + Send) -> T {
    namespace.run(|| {
        // Of this thread alone, which ends with `body`.
        let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        body()
    })
}

/// Waits for what sends no event.
#[track_caller]
fn eventually<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "never came to pass: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a connect has ended, and how.
#[track_caller]
fn connected(stream: &TcpStream) -> Option<io::Result<()>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(stream, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut polled, Some(&now)).unwrap() == 0 {
        return None;
    }
    Some(stream.take_error().unwrap().map_or(Ok(()), Err))
}

#[track_caller]
fn assert_refused_at_once(link: &Link, way: Way, listener: &Listener) {
    let start = Instant::now();
    let refused = way.connect(link, listener).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{way:?}");
    assert!(start.elapsed() < AT_ONCE, "{way:?}: {:?}", start.elapsed());
}

/// Both ends of a connection hear each other, and the accepted one is bound to no interface.
#[track_caller]
fn assert_they_talk(client: &mut TcpStream, accepted: &mut TcpStream) {
    assert_eq!(bound_to_interface(accepted.as_fd()).unwrap(), 0);
    let mut said = [0; 5];
    accepted.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    accepted.write_all(b"world").unwrap();
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"world");
}

#[test]
#[ignore = "needs root and network namespaces"]
fn a_new_peer_is_refused_at_once_and_a_queued_one_can_be_accepted() {
    let Some(link) = Link::lay(1) else { return };
    for way in ways(&link) {
        let listener = Listener::bind(&link, way.listen, false);
        let mut queued = way.connect(&link, &listener).unwrap();
        queued.write_all(b"hello").unwrap();
        listener.shut(&link);
        assert_refused_at_once(&link, way, &listener);
        assert_they_talk(&mut queued, &mut listener.accept());
        assert!(listener.try_accept().is_none(), "{way:?}");
    }
}

/// A way on which a handshake is under way for so long that it can be seen.
fn lay_a_long_one(seed: u64) -> Option<Link> {
    let link = Link::lay(seed)?;
    link.relay.set(Conditions {
        round_trip: Duration::from_millis(200),
        ..Conditions::NONE
    });
    Some(link)
}

/// A client whose SYN has been answered, by a listener that has no last ACK yet.
#[track_caller]
fn under_way(link: &Link, way: Way, listener: &Listener) -> TcpStream {
    let client = way.begin(link, listener);
    let port = client.local_addr().unwrap().port();
    eventually("a handshake under way", || {
        let seen = handshakes(link, way, listener.port());
        seen.contains(&port).then_some(())
    });
    client
}

/// The clients' ports of the handshakes under way at a listener's port, as anybody can see them.
#[track_caller]
fn handshakes(link: &Link, way: Way, port: u16) -> Vec<u16> {
    let family = if way.listen.is_ipv6() {
        // The listener's own family, whatever that of the peer is.
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    unprivileged(&link.server, || dump(family as u8, port))
}

/// Asks `sock_diag` for what is in the state SYN_RECV.
fn dump(family: u8, port: u16) -> Vec<u16> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const DONE: u16 = libc::NLMSG_DONE as u16;
    const SYN_RECV: u32 = 3;
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    );
    let socket = socket.unwrap();
    let mut request = Vec::new();
    request.extend(72_u32.to_ne_bytes()); // the length of all this
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request.extend([0; 8]); // the number of the request, and of who asks
    request.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend((1_u32 << SYN_RECV).to_ne_bytes());
    request.extend([0; 48]); // of any addresses
    rustix::net::send(&socket, &request, SendFlags::empty()).unwrap();
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()).unwrap();
        let mut rest = &buffer[..length];
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            match u16::from_ne_bytes(rest[4..6].try_into().unwrap()) {
                DONE => return found,
                SOCK_DIAG_BY_FAMILY => {
                    // Family, state, timer, retransmissions, and then the ports.
                    let ports = &rest[20..24];
                    if u16::from_be_bytes([ports[0], ports[1]]) == port {
                        found.push(u16::from_be_bytes([ports[2], ports[3]]));
                    }
                }
                other => panic!("answered with a message of type {other}"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

#[test]
#[ignore = "needs root and network namespaces"]
fn a_handshake_under_way_is_completed_and_accepted_with_its_data() {
    let Some(link) = lay_a_long_one(2) else {
        return;
    };
    for way in ways(&link).into_iter().filter(|way| way.across) {
        let listener = Listener::bind(&link, way.listen, false);
        let mut client = under_way(&link, way, &listener);
        listener.shut(&link);
        assert!(listener.try_accept().is_none(), "{way:?}");
        eventually("a connect", || connected(&client)).unwrap();
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"hello").unwrap();
        assert_they_talk(&mut client, &mut listener.accept());
        // None is left then: this is when the listener can be closed.
        assert!(handshakes(&link, way, listener.port()).is_empty());
        assert_refused_at_once(&link, way, &listener);
    }
}

#[test]
#[ignore = "needs root and network namespaces"]
fn closing_the_listener_resets_a_client_who_believes_to_be_connected() {
    let Some(link) = lay_a_long_one(3) else {
        return;
    };
    for way in ways(&link).into_iter().filter(|way| way.across) {
        let listener = Listener::bind(&link, way.listen, false);
        let mut client = under_way(&link, way, &listener);
        drop(listener);
        eventually("a connect", || connected(&client)).unwrap();
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let reset = client.read(&mut [0]).unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset, "{way:?}");
    }
}

#[test]
#[ignore = "needs root and network namespaces"]
fn closing_or_shutting_down_the_listener_resets_whoever_is_queued() {
    let Some(link) = Link::lay(4) else { return };
    for way in ways(&link) {
        for closes in [false, true] {
            let listener = Listener::bind(&link, way.listen, false);
            let mut queued = way.connect(&link, &listener).unwrap();
            let kept = if closes {
                drop(listener);
                None
            } else {
                SockRef::from(&listener.0).shutdown(Shutdown::Read).unwrap();
                Some(listener)
            };
            let reset = queued.read(&mut [0]).unwrap_err();
            assert_eq!(reset.kind(), ErrorKind::ConnectionReset, "{way:?}");
            drop(kept);
        }
    }
}

#[test]
#[ignore = "needs root and network namespaces"]
fn it_is_not_undone_without_privileges() {
    let Some(link) = Link::lay(5) else { return };
    for way in ways(&link) {
        let listener = Listener::bind(&link, way.listen, false);
        listener.shut(&link);
        let undone = listener.try_bind_to(&link, 0).unwrap_err();
        assert_eq!(undone.kind(), ErrorKind::PermissionDenied, "{way:?}");
        assert_refused_at_once(&link, way, &listener);
        // By root it is.
        bind_to_interface(listener.0.as_fd(), 0).unwrap();
        let _client = way.connect(&link, &listener).unwrap();
        listener.accept();
    }
}

#[test]
#[ignore = "needs root and network namespaces"]
fn a_listener_that_is_bound_already_cannot_be_shut_without_privileges() {
    let Some(link) = Link::lay(6) else { return };
    let way = ways(&link)[0];
    let listener = Listener::bind(&link, way.listen, false);
    let device = link
        .server
        .run(|| rustix::net::netdevice::name_to_index(&listener.0, "wan0"));
    bind_to_interface(listener.0.as_fd(), device.unwrap() as i32).unwrap();
    let error = listener.try_bind_to(&link, NOWHERE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let _client = way.connect(&link, &listener).unwrap();
    listener.accept();
}

#[test]
#[ignore = "needs root and network namespaces"]
fn it_shuts_the_socket_for_all_who_hold_a_descriptor_of_it() {
    let Some(link) = Link::lay(7) else { return };
    for way in ways(&link) {
        let listener = Listener::bind(&link, way.listen, false);
        let of_another = Listener(listener.0.try_clone().unwrap());
        listener.shut(&link);
        drop(listener);
        assert_refused_at_once(&link, way, &of_another);
    }
}

#[test]
#[ignore = "needs root and network namespaces"]
fn one_of_a_group_that_is_shut_alone_swallows_peers() {
    let Some(link) = Link::lay(8) else { return };
    for way in ways(&link) {
        let first = Listener::bind(&link, way.listen, true);
        let address = SocketAddr::new(way.listen.ip(), first.port());
        let others = [(); 3].map(|()| Listener::bind(&link, address, true));
        first.shut(&link);
        let before = link.server.counters();
        let clients: Vec<_> = (0..PEERS).map(|_| way.begin(&link, &first)).collect();
        // Whoever falls to the one that is shut is answered nothing: there is no way from its
        // interface. The kernel counts it.
        let (let_in, dropped) = eventually("that all have a fate", || {
            let let_in = clients.iter().filter(|client| {
                connected(client).is_some_and(|connected| {
                    connected.unwrap();
                    true
                })
            });
            let let_in = let_in.count();
            let dropped = link.server.counters().since(&before);
            let dropped = dropped.get("TcpExt.ListenDrops") as usize;
            (let_in + dropped >= PEERS).then_some((let_in, dropped))
        });
        assert!(let_in > 0 && dropped > 0, "{way:?}: {let_in} let in");
        // All of a group are shut together.
        for listener in &others {
            listener.shut(&link);
        }
        assert_refused_at_once(&link, way, &first);
    }
}

const PEERS: usize = 40;

#[test]
#[ignore = "needs root and network namespaces"]
fn a_successor_that_joins_a_group_that_is_shut_gets_every_new_peer() {
    let Some(link) = Link::lay(9) else { return };
    for way in ways(&link) {
        let first = Listener::bind(&link, way.listen, true);
        let address = SocketAddr::new(way.listen.ip(), first.port());
        let second = Listener::bind(&link, address, true);
        let _queued: Vec<_> = (0..PEERS)
            .map(|_| way.connect(&link, &first).unwrap())
            .collect();
        for listener in [&first, &second] {
            listener.shut(&link);
        }
        let successor = Listener::bind(&link, address, true);
        let clients: Vec<_> = (0..PEERS)
            .map(|_| way.connect(&link, &first).unwrap())
            .collect();
        for _ in &clients {
            successor.accept();
        }
        assert!(successor.try_accept().is_none(), "{way:?}");
        // And those who came before are still where they were.
        for _ in 0..PEERS {
            let either = || first.try_accept().or_else(|| second.try_accept());
            either().expect("a queued peer");
        }
    }
}
