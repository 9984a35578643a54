//! What a server binds: names with all their addresses and one port, listeners made elsewhere, and
//! what it says when it cannot.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use gracious::{Address, Adopted, Connection, Reason, Socket};
use socket2::SockRef;

use crate::support::TestRuntime;
use crate::support::client::{Client, Visit, echo, refuses, unix_path, visit, waits};
use crate::support::peer::{at_home, loopback, settled};

crate::on_every_runtime!(
    a_bound_server_listens_and_does_not_serve,
    who_connects_as_soon_as_it_is_bound_is_served,
    port_0_is_a_free_port,
    a_name_is_bound_with_all_its_addresses_on_one_port,
    everything_that_can_be_an_address_can_be_listened_on,
    several_addresses_are_one_server,
    an_address_in_use_is_named,
    an_address_this_machine_does_not_have_is_named,
    a_name_that_nobody_knows_is_named,
    what_is_no_address_is_named,
    nothing_to_listen_on_is_an_error,
    where_one_cannot_be_bound_nothing_stays_bound,
    ipv6_takes_ipv4_peers_alone,
    ipv6_leaves_an_ipv4_port_that_is_asked_for_alone,
    an_ipv4_peer_of_a_dual_stack_listener_counts_as_that_peer,
    one_port_can_be_shared,
    what_is_set_on_the_listener_is_set_on_its_connections,
    a_blocking_listener_made_elsewhere_is_served_and_stops,
    an_adopted_listener_that_others_hold_stays_open_for_them,
    an_adopted_listener_that_somebody_else_shuts_stops_the_server,
    an_adopted_unix_listener_keeps_its_path,
    an_adopted_listener_is_not_inherited_by_programs,
    a_descriptor_from_elsewhere_is_adopted_for_what_it_is,
    a_descriptor_that_cannot_be_adopted_is_named,
    a_port_alone_is_every_address_of_this_machine,
);

fn tcp(address: &Address) -> SocketAddr {
    address.as_tcp().unwrap()
}

fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("this machine has no IPv6");
    }
    has
}

async fn a_bound_server_listens_and_does_not_serve(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    assert!(!handle.is_serving());
    let clients = [(); 3].map(|()| Client::to(&server));
    assert_eq!(handle.stats().accepted, 0);
    assert_eq!(server.local_addrs(), handle.local_addrs());
    drop(clients);
}

async fn who_connects_as_soon_as_it_is_bound_is_served(runtime: TestRuntime) {
    for _ in 0..20 {
        let server = at_home(&runtime).bind().await.unwrap();
        let mut before = Client::to(&server);
        let running = server.spawn(echo);
        let mut after = Client::of(&running);
        assert_eq!(after.ask("hello"), "hello");
        assert_eq!(before.ask("hello"), "hello");
        running.handle().shutdown();
        assert_eq!(settled(running.await).completed, 2);
    }
}

async fn port_0_is_a_free_port(runtime: TestRuntime) {
    let server = at_home(&runtime).listen(loopback()).bind().await.unwrap();
    for address in server.local_addrs() {
        assert_ne!(tcp(address).port(), 0);
        assert!(!refuses(address));
    }
}

async fn a_name_is_bound_with_all_its_addresses_on_one_port(runtime: TestRuntime) {
    let known: BTreeSet<IpAddr> = ("localhost", 0)
        .to_socket_addrs()
        .unwrap()
        .map(|address| address.ip())
        // One that this machine does not have is left out.
        .filter(|ip| TcpListener::bind((*ip, 0)).is_ok())
        .collect();
    let server = crate::support::server(runtime).listen("localhost:0");
    let server = server.bind().await.unwrap();
    let bound: Vec<_> = server.local_addrs().iter().map(tcp).collect();
    assert_eq!(
        bound.iter().map(SocketAddr::ip).collect::<BTreeSet<_>>(),
        known
    );
    assert_eq!(bound.len(), known.len());
    assert!(
        bound
            .iter()
            .all(|address| address.port() == bound[0].port())
    );
    let running = server.spawn(echo);
    for address in running.handle().local_addrs() {
        assert_eq!(Client::connect(address).unwrap().ask("hello"), "hello");
    }
    running.handle().shutdown();
    settled(running.await);
}

async fn everything_that_can_be_an_address_can_be_listened_on(runtime: TestRuntime) {
    let ip: IpAddr = loopback().parse::<SocketAddr>().unwrap().ip();
    let bind = async |builder: gracious::Builder<TestRuntime>| {
        let server = builder.bind().await.unwrap();
        assert!(!server.local_addrs().is_empty());
    };
    let builder = || crate::support::server(runtime.clone());
    bind(builder().listen("127.0.0.1:0")).await;
    bind(builder().listen(String::from("localhost:0"))).await;
    bind(builder().listen(loopback())).await;
    bind(builder().listen((ip, 0))).await;
    bind(builder().listen(([127, 0, 0, 1], 0))).await;
    bind(builder().listen(SocketAddr::from((ip, 0)))).await;
    bind(builder().listen(Address::Tcp((ip, 0).into()))).await;
    bind(builder().listen(Address::Host("localhost".into(), 0))).await;
    bind(builder().listen(Address::Unix(unix_path()))).await;
}

async fn several_addresses_are_one_server(runtime: TestRuntime) {
    let path = unix_path();
    let server = at_home(&runtime)
        .listen(loopback())
        .listen(Address::Unix(path.clone()))
        .bind()
        .await
        .unwrap();
    let addresses = server.local_addrs().to_vec();
    assert_eq!(addresses.len(), 3);
    let (come, came) = async_channel::unbounded();
    let running = server.spawn(async move |conn: Connection| {
        come.send(conn.local_addr()?).await.unwrap();
        echo(conn).await
    });
    let mut clients: Vec<_> = addresses
        .iter()
        .map(|address| Client::connect(address).unwrap())
        .collect();
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    let mut used = [(); 3].map(|()| came.try_recv().unwrap().to_string());
    let mut bound = [0, 1, 2].map(|i| addresses[i].to_string());
    used.sort();
    bound.sort();
    assert_eq!(used, bound);
    // One shutdown, one wait.
    running.handle().shutdown();
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(settled(running.await).completed, 3);
    assert!(addresses.iter().all(refuses));
}

async fn an_address_in_use_is_named(runtime: TestRuntime) {
    let first = at_home(&runtime).bind().await.unwrap();
    let address = first.local_addrs()[0].clone();
    let second = crate::support::server(runtime.clone()).listen(address.clone());
    let error = second.bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    // The first is none the worse for it.
    let running = first.spawn(echo);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    settled(running.await);
}

async fn an_address_this_machine_does_not_have_is_named(runtime: TestRuntime) {
    // TEST-NET-1, which no machine has.
    let server = crate::support::server(runtime).listen("192.0.2.1:0");
    let error = server.bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

async fn a_name_that_nobody_knows_is_named(runtime: TestRuntime) {
    let server = crate::support::server(runtime).listen("nobody.invalid:80");
    let error = server.bind().await.unwrap_err();
    assert!(error.to_string().contains("nobody.invalid:80"), "{error}");
}

async fn what_is_no_address_is_named(runtime: TestRuntime) {
    for text in [
        "",
        "127.0.0.1",
        "here",
        "::1:80",
        "localhost:http",
        "unix:%zz",
    ] {
        // It is no panic here, either.
        let server = at_home(&runtime).listen(text);
        let error = server.bind().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
    }
    let server = at_home(&runtime).listen(Address::Custom("memory".into()));
    let error = server.bind().await.unwrap_err();
    assert!(error.to_string().contains("custom:memory"), "{error}");
}

async fn nothing_to_listen_on_is_an_error(runtime: TestRuntime) {
    let error = crate::support::server(runtime).bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(
        error.to_string().contains("nothing to listen on"),
        "{error}"
    );
}

async fn where_one_cannot_be_bound_nothing_stays_bound(runtime: TestRuntime) {
    let (taken, path) = (at_home(&runtime).bind().await.unwrap(), unix_path());
    let free = {
        let server = at_home(&runtime).bind().await.unwrap();
        server.local_addrs()[0].clone()
    };
    let error = crate::support::server(runtime.clone())
        .listen(free.clone())
        .listen(Address::Unix(path.clone()))
        .listen(taken.local_addrs()[0].clone())
        .bind()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(refuses(&free));
    assert!(!path.exists());
    drop(at_home(&runtime).listen(free).bind().await.unwrap());
}

async fn ipv6_takes_ipv4_peers_alone(runtime: TestRuntime) {
    if !has_ipv6() {
        return;
    }
    let server = crate::support::server(runtime).listen("[::]:0");
    let server = server.bind().await.unwrap();
    let port = tcp(&server.local_addrs()[0]).port();
    let running = server.spawn(echo);
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let mut client = Client::connect(&address.parse().unwrap()).unwrap();
        assert_eq!(client.ask("hello"), "hello");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn ipv6_leaves_an_ipv4_port_that_is_asked_for_alone(runtime: TestRuntime) {
    if !has_ipv6() {
        return;
    }
    // Both on one port: were the one not kept to its family, the other could not be bound.
    for _ in 0..20 {
        let port = {
            let probe = TcpListener::bind("[::]:0").unwrap();
            probe.local_addr().unwrap().port()
        };
        let server = crate::support::server(runtime.clone())
            .listen(format!("[::]:{port}"))
            .listen(format!("0.0.0.0:{port}"));
        let server = match server.bind().await {
            // Another process has taken that port meanwhile.
            Err(_) if TcpListener::bind(("::", port)).is_err() => continue,
            server => server.unwrap(),
        };
        for address in server.local_addrs() {
            assert_eq!(tcp(address).port(), port);
        }
        let (come, came) = async_channel::unbounded();
        let running = server.spawn(async move |conn: Connection| {
            let _whoever = come.try_send(conn.local_addr().unwrap());
        });
        for host in ["127.0.0.1", "[::1]"] {
            let address: Address = format!("{host}:{port}").parse().unwrap();
            assert_eq!(visit(&address, ""), Visit::Closed(String::new()));
            assert_eq!(came.recv().await.unwrap(), address);
        }
        running.handle().shutdown();
        settled(running.await);
        return;
    }
    panic!("twenty ports were taken between two calls");
}

async fn an_ipv4_peer_of_a_dual_stack_listener_counts_as_that_peer(runtime: TestRuntime) {
    if !has_ipv6() {
        return;
    }
    let server = crate::support::server(runtime)
        .listen("[::]:0")
        .max_per_peer(1);
    let server = server.bind().await.unwrap();
    let port = tcp(&server.local_addrs()[0]).port();
    let (running, connections) = crate::support::client::handing_over(server);
    let address: Address = format!("127.0.0.1:{port}").parse().unwrap();
    let _client = Client::connect(&address).unwrap();
    let conn = connections.recv().await.unwrap();
    let localhost: IpAddr = [127, 0, 0, 1].into();
    assert_eq!(conn.peer_addr().ip(), Some(localhost));
    drop(conn);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn one_port_can_be_shared(runtime: TestRuntime) {
    let first = at_home(&runtime).reuse_port(true).bind().await.unwrap();
    let address = first.local_addrs()[0].clone();
    let second = crate::support::server(runtime.clone())
        .listen(address.clone())
        .reuse_port(true)
        .bind()
        .await
        .unwrap();
    // A server that has not asked for it gets none of it.
    let third = crate::support::server(runtime).listen(address.clone());
    assert_eq!(third.bind().await.unwrap_err().kind(), ErrorKind::AddrInUse);
    let (first, second) = (first.spawn(echo), second.spawn(echo));
    let handles = [first.handle(), second.handle()];
    while handles.iter().any(|handle| handle.stats().accepted == 0) {
        assert_eq!(Client::connect(&address).unwrap().ask("hello"), "hello");
    }
    first.handle().shutdown();
    settled(first.await);
    assert_eq!(Client::connect(&address).unwrap().ask("hello"), "hello");
    second.handle().shutdown();
    settled(second.await);
    assert!(refuses(&address));
}

async fn what_is_set_on_the_listener_is_set_on_its_connections(runtime: TestRuntime) {
    let minute = Duration::from_secs(60);
    for (nodelay, keepalive) in [
        (true, Some(minute)),
        (false, None),
        (true, Some(2 * minute)),
    ] {
        let mut builder = at_home(&runtime);
        // The first are the defaults.
        if keepalive != Some(minute) {
            builder = builder.nodelay(nodelay).keepalive(keepalive);
        }
        let server = builder.bind().await.unwrap();
        let (running, connections) = crate::support::client::handing_over(server);
        let _client = Client::of(&running);
        let conn = connections.recv().await.unwrap();
        let Socket::Tcp(socket) = conn.detach().unwrap().socket else {
            panic!("no TCP socket came over TCP");
        };
        let socket = SockRef::from(&socket);
        assert_eq!(socket.tcp_nodelay().unwrap(), nodelay);
        assert_eq!(socket.keepalive().unwrap(), keepalive.is_some());
        if let Some(keepalive) = keepalive {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), keepalive);
        }
        running.handle().shutdown();
        assert_eq!(settled(running.await).detached, 1);
    }
}

async fn a_blocking_listener_made_elsewhere_is_served_and_stops(runtime: TestRuntime) {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let mut early = Client::connect(&address).unwrap();
    let server = crate::support::server(runtime).adopt(listener);
    let server = server.bind().await.unwrap();
    assert_eq!(server.local_addrs(), std::slice::from_ref(&address));
    let mut running = server.spawn(echo);
    assert_eq!(early.ask("hello"), "hello");
    let mut late = Client::connect(&address).unwrap();
    assert_eq!(late.ask("hello"), "hello");
    assert!(waits(&mut running).await);
    running.handle().shutdown();
    assert_eq!((early.rest(), late.rest()), ("".into(), "".into()));
    assert_eq!(settled(running.await).completed, 2);
    assert!(refuses(&address));
}

async fn an_adopted_listener_that_others_hold_stays_open_for_them(runtime: TestRuntime) {
    let listener = TcpListener::bind(loopback()).unwrap();
    let (address, ours) = (
        listener.local_addr().unwrap(),
        listener.try_clone().unwrap(),
    );
    let server = crate::support::server(runtime.clone()).adopt(listener);
    let running = server.bind().await.unwrap().spawn(echo);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    settled(running.await);
    // Neither shut nor filtered: a peer that comes now is the next server's.
    let waiting = TcpStream::connect(address).unwrap();
    let server = crate::support::server(runtime).adopt(ours);
    let running = server.bind().await.unwrap().spawn(echo);
    waiting
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut waiting = Client::Tcp(waiting);
    assert_eq!(waiting.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn an_adopted_listener_that_somebody_else_shuts_stops_the_server(runtime: TestRuntime) {
    let tcp = TcpListener::bind(loopback()).unwrap();
    let path = unix_path();
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let others = [
        socket2::Socket::from(tcp.try_clone().unwrap()),
        socket2::Socket::from(unix.try_clone().unwrap()),
    ];
    for (listener, other) in [Adopted::from(tcp), Adopted::from(unix)]
        .into_iter()
        .zip(others)
    {
        let server = crate::support::server(runtime.clone()).adopt(listener);
        let running = server.bind().await.unwrap().spawn(echo);
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        let handle = running.handle();
        other.shutdown(std::net::Shutdown::Both).unwrap();
        let error = running.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let report = handle.closed().await;
        assert!(matches!(report.reason, Reason::Listener(_)), "{report}");
        // The open connection is drained as ever.
        assert_eq!((client.rest(), report.completed), (String::new(), 1));
    }
    std::fs::remove_file(path).unwrap();
}

async fn an_adopted_unix_listener_keeps_its_path(runtime: TestRuntime) {
    let path = unix_path();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let ours = listener.try_clone().unwrap();
    let server = crate::support::server(runtime.clone()).adopt(listener);
    let server = server.bind().await.unwrap();
    assert_eq!(server.local_addrs(), [Address::Unix(path.clone())]);
    let running = server.spawn(echo);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    settled(running.await);
    assert!(path.exists());
    let mut waiting = Client::connect(&Address::Unix(path.clone())).unwrap();
    let server = crate::support::server(runtime).adopt(ours);
    let running = server.bind().await.unwrap().spawn(echo);
    assert_eq!(waiting.ask("hello"), "hello");
    running.handle().shutdown();
    settled(running.await);
    std::fs::remove_file(path).unwrap();
}

async fn an_adopted_listener_is_not_inherited_by_programs(runtime: TestRuntime) {
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let watched = listener.as_raw_fd();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let server = crate::support::server(runtime).adopt(listener);
    let server = server.bind().await.unwrap();
    // The descriptor that the server has by now, as another owner would see it.
    let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{watched}")).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    assert_ne!(flags & libc::O_CLOEXEC as u32, 0);
    assert!(fcntl_getfd(std::io::stdin()).is_ok());
    drop(server);
}

async fn a_descriptor_from_elsewhere_is_adopted_for_what_it_is(runtime: TestRuntime) {
    let path = unix_path();
    let listeners: [OwnedFd; 2] = [
        TcpListener::bind("127.0.0.1:0").unwrap().into(),
        UnixListener::bind(&path).unwrap().into(),
    ];
    for listener in listeners {
        let adopted = Adopted::try_from(listener).unwrap();
        let server = crate::support::server(runtime.clone()).adopt(adopted);
        let running = server.bind().await.unwrap().spawn(echo);
        assert_eq!(Client::of(&running).ask("hello"), "hello");
        running.shutdown().await.unwrap();
    }
    std::fs::remove_file(path).unwrap();
}

async fn a_descriptor_that_cannot_be_adopted_is_named(_runtime: TestRuntime) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let others: [(OwnedFd, &str); 3] = [
        (
            std::fs::File::open("/dev/null").unwrap().into(),
            "no socket",
        ),
        (
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            "another type",
        ),
        (stream.into(), "does not listen"),
    ];
    for (fd, found) in others {
        let error = Adopted::try_from(fd).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(text.contains(found) && text.contains("expected"), "{text}");
    }
}

async fn a_port_alone_is_every_address_of_this_machine(runtime: TestRuntime) {
    let server = crate::support::server(runtime)
        .listen(":0")
        .bind()
        .await
        .unwrap();
    let addresses = server.local_addrs().to_vec();
    let port = tcp(&addresses[0]).port();
    assert!(
        addresses
            .iter()
            .all(|it| tcp(it).ip().is_unspecified() && tcp(it).port() == port)
    );
    let running = server.spawn(echo);
    let address = Address::Tcp(([127, 0, 0, 1], port).into());
    assert_eq!(Client::connect(&address).unwrap().ask("hello"), "hello");
    if has_ipv6() {
        let address = Address::Tcp(([0, 0, 0, 0, 0, 0, 0, 1], port).into());
        assert_eq!(Client::connect(&address).unwrap().ask("hello"), "hello");
    }
    // And for clients.
    let asked: Address = format!(":{port}").parse().unwrap();
    drop(TcpStream::connect(asked).unwrap());
    assert!(TcpStream::connect(Address::Unnamed).is_err());
    running.shutdown().await.unwrap();
}
