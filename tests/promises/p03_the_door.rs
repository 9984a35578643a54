//! Promise 3. **The door is shut first.** A connect after the listeners were shut is refused at
//! once, while the drain goes on; the port can be bound again when they are closed; no connection
//! is asked to end while a listener takes new peers.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_lite::{AsyncBufReadExt, AsyncWriteExt};
use gracious::{Connection, EndedBy, State};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, echo, handing_over, on, refuses, tcp, transports, unix_address, unix_path, waits,
};

crate::on_every_runtime!(
    a_connect_during_the_drain_is_refused,
    the_port_can_be_bound_while_the_old_server_drains,
    whoever_is_told_finds_every_door_shut,
    both_servers_of_a_port_go_on_while_the_old_one_drains,
    a_path_is_gone_during_the_drain_and_can_be_bound_again,
    a_lame_duck_takes_peers_and_tells_nobody,
    a_port_that_others_hold_stays_open,
);

async fn a_connect_during_the_drain_is_refused(runtime: TestRuntime) {
    let server = crate::support::server(runtime)
        .listen("127.0.0.1:0")
        .bind()
        .await
        .unwrap();
    let address = server.local_addrs()[0].as_tcp().unwrap();
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let _busy = conn.busy();
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.fill_buf().await.map(drop)
    });
    let client = TcpStream::connect(address).unwrap();
    running.handle().shutdown();
    // The connection was asked to end after the door was shut, and is still there.
    is_told.recv().await.unwrap();
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(running.handle().active(), 1);
    drop(client);
    assert_eq!(running.await.unwrap().completed, 1);
}

async fn the_port_can_be_bound_while_the_old_server_drains(runtime: TestRuntime) {
    let server = crate::support::server(runtime.clone())
        .listen("127.0.0.1:0")
        .bind()
        .await
        .unwrap();
    let address = server.local_addrs()[0].clone();
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let _busy = conn.busy();
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.fill_buf().await.map(drop)
    });
    let client = TcpStream::connect(address.as_tcp().unwrap()).unwrap();
    running.handle().shutdown();
    is_told.recv().await.unwrap();
    let successor = crate::support::server(runtime)
        .listen(address)
        .bind()
        .await
        .unwrap();
    drop((successor, client));
    running.await.unwrap();
}

async fn whoever_is_told_finds_every_door_shut(runtime: TestRuntime) {
    let server = tcp(runtime).listen(unix_address()).listen("127.0.0.1:0");
    let server = server.bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let (inside, is_inside) = async_channel::unbounded();
    let running = server.spawn(async move |conn: Connection| {
        inside.send(()).await.unwrap();
        conn.shutdown_requested().await;
        // On the handler's own thread, with nothing that the test does in between.
        let refused = conn.handle().local_addrs().iter().all(refuses);
        assert!(refused && conn.is_shutting_down());
    });
    let clients: Vec<_> = addresses
        .iter()
        .flat_map(|address| (0..4).map(move |_| Client::connect(address).unwrap()))
        .collect();
    for _ in &clients {
        is_inside.recv().await.unwrap();
    }
    let report = running.shutdown().await.unwrap();
    // A handler that could connect would have panicked, and made one connection more.
    let all = clients.len() as u64;
    assert_eq!((report.accepted, report.completed), (all, all), "{report}");
}

async fn both_servers_of_a_port_go_on_while_the_old_one_drains(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let address = server.local_addrs()[0].clone();
        let (old, connections) = handing_over(server);
        let mut old_client = Client::of(&old);
        let mut conn = connections.recv().await.unwrap();
        let busy = conn.busy();
        old.handle().shutdown();
        conn.shutdown_requested().await;

        let successor = on(&address.to_string(), runtime.clone());
        let new = successor.bind().await.unwrap().spawn(echo);
        let mut new_client = Client::connect(&address).unwrap();
        assert_eq!(new_client.ask("to the new one"), "to the new one");
        old_client.send("to the old one\n");
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        conn.write_all(line.as_bytes()).await.unwrap();
        drop((busy, conn));
        assert_eq!(old_client.rest(), "to the old one\n");
        assert_eq!(old.await.unwrap().accepted, 1);
        // The end of the old one took nothing from the new one.
        assert_eq!(Client::connect(&address).unwrap().ask("hello"), "hello");
        assert_eq!(new_client.ask("hello"), "hello");
        assert_eq!(new.shutdown().await.unwrap().accepted, 2);
    }
}

async fn a_path_is_gone_during_the_drain_and_can_be_bound_again(runtime: TestRuntime) {
    let path = unix_path();
    let address = format!("unix:{}", path.display());
    let (running, connections) = handing_over(on(&address, runtime).bind().await.unwrap());
    let _client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    running.handle().shutdown();
    conn.shutdown_requested().await;
    assert_eq!(
        UnixStream::connect(&path).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert!(!path.exists());
    // Another program may take the path now, and keeps it.
    std::fs::write(&path, "somebody else's").unwrap();
    drop(conn);
    running.await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody else's");
    std::fs::remove_file(path).unwrap();
}

async fn a_lame_duck_takes_peers_and_tells_nobody(runtime: TestRuntime) {
    let server = tcp(runtime).lame_duck(HOUR).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    let (mut running, connections) = handing_over(server);
    let handle = running.handle();
    let mut early = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    handle.shutdown();
    handle.shutdown_requested().await;
    assert!(!handle.is_serving());
    assert_eq!(handle.state(), State::Draining);

    // The door is open, and no connection is asked to end.
    let mut late = Client::connect(&address).unwrap();
    let mut late_conn = connections.recv().await.unwrap();
    for (client, conn) in [(&mut early, &mut conn), (&mut late, &mut late_conn)] {
        assert!(!conn.is_shutting_down());
        assert!(waits(&mut Box::pin(conn.shutdown_requested())).await);
        client.send("hello\n");
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        conn.write_all(line.as_bytes()).await.unwrap();
        assert_eq!(client.line(), "hello");
    }
    assert!(waits(&mut running).await);

    // A deadline cuts the lame duck's time short.
    handle.shutdown_within(Duration::from_millis(1));
    conn.shutdown_requested().await;
    assert!(refuses(&address));
    drop((conn, late_conn));
    assert_eq!(running.await.unwrap().accepted, 2);
}

/// What acts on the socket and not on our descriptor would shut the others out as well.
async fn a_port_that_others_hold_stays_open(runtime: TestRuntime) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let other = listener.try_clone().unwrap();
    let server = crate::support::server(runtime)
        .adopt(listener)
        .deadline(None)
        .first_byte_grace(None);
    let (running, connections) = handing_over(server.bind().await.unwrap());
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    running.handle().shutdown();
    assert_eq!(conn.fill_buf().await.unwrap(), b"");
    assert_eq!(conn.ended_by(), Some(EndedBy::Drain));
    drop(conn);
    assert_eq!(client.rest(), "");
    running.await.unwrap();

    let late = TcpStream::connect(address).unwrap();
    // Ours set the descriptors they share to non-blocking.
    other.set_nonblocking(false).unwrap();
    let (_, peer) = other.accept().unwrap();
    assert_eq!(peer, late.local_addr().unwrap());
}
