//! Listeners one by one: shut, added, and kept open through a drain, while the server goes on.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Address, Connection, Handle, ListenerInfo, Running, State};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, Visit, answer_once, assert_balance, echo, eventually, refuses, rounds, taken_in,
    tcp, transports, unix_address, unix_path, visit,
};
use crate::support::peer::{hears_nothing, is_cut, settled};

crate::on_every_runtime!(
    one_listener_is_shut_and_the_others_go_on,
    who_is_queued_at_a_listener_that_is_shut_is_served,
    who_waits_for_a_permit_there_is_served,
    a_listener_that_is_shut_before_it_is_served_serves_its_queue,
    an_adopted_listener_is_shut_for_this_server_alone,
    the_connections_of_one_listener_end_by_another_word,
    a_server_whose_doors_are_all_shut_lives_on_for_its_connections,
    a_listener_is_added_while_the_server_serves,
    a_listener_is_added_where_none_is_left,
    what_cannot_be_added_is_an_error,
    listeners_come_and_go_under_a_storm_and_nobody_is_reset,
    an_admin_port_stays_open_through_a_drain,
    an_admin_ports_queue_is_served_at_its_end,
    an_admin_port_is_shut_by_its_id_like_any_other,
    the_deadline_ends_what_is_kept_open_too,
    an_abort_ends_what_is_kept_open_too,
    a_server_with_an_admin_port_that_is_dropped_is_closed,
);

#[track_caller]
fn listener(handle: &Handle, id: u64) -> ListenerInfo {
    let all = handle.listeners();
    let found = all.iter().find(|it| it.id == id);
    found
        .unwrap_or_else(|| panic!("no {id} in {all:?}"))
        .clone()
}

#[track_caller]
fn is_closed_in_time(handle: &Handle, id: u64) {
    eventually("the listener is closed", || {
        handle.listeners().iter().all(|it| it.id != id)
    });
}

#[track_caller]
fn echoes(client: &mut Client) {
    assert_eq!(client.ask("hello"), "hello");
}

async fn one_listener_is_shut_and_the_others_go_on(runtime: TestRuntime) {
    for (one, other) in [(0, 1), (1, 0)] {
        let [first, second] = transports();
        let server = crate::support::server(runtime.clone()).listen(first.as_str());
        let server = server.listen(second.as_str()).bind().await.unwrap();
        let addresses = server.local_addrs().to_vec();
        let running = server.spawn(echo);
        let handle = running.handle();
        let mut inside = Client::connect(&addresses[one]).unwrap();
        echoes(&mut inside);
        assert_eq!(handle.connections()[0].listener, one as u64);
        assert_eq!(listener(&handle, one as u64).address, addresses[one]);

        assert!(handle.shut(one as u64));
        assert!(refuses(&addresses[one]));
        assert!(!handle.shut(one as u64), "it is shut already");
        assert!(!handle.shut(7), "there is none");
        is_closed_in_time(&handle, one as u64);
        assert!(!handle.shut(one as u64), "it is closed");
        if let Address::Unix(path) = &addresses[one] {
            assert!(!path.exists());
        }

        echoes(&mut inside);
        echoes(&mut Client::connect(&addresses[other]).unwrap());
        assert_eq!(running.handle().state(), State::Serving);
        assert!(!listener(&handle, other as u64).is_shut);
        handle.shutdown();
        assert_eq!(inside.rest(), "");
        assert_eq!(settled(running.await).completed, 2);
    }
}

async fn who_is_queued_at_a_listener_that_is_shut_is_served(runtime: TestRuntime) {
    for address in transports() {
        let server = crate::support::server(runtime.clone()).listen(address.as_str());
        let running = server.bind().await.unwrap().spawn(echo);
        let handle = running.handle();
        handle.pause();
        let mut queued: Vec<_> = (0..50).map(|_| Client::of(&running)).collect();
        assert!(handle.shut(0));
        assert!(refuses(&handle.local_addrs()[0]));
        assert!(listener(&handle, 0).is_shut);
        handle.resume();
        queued.iter_mut().for_each(echoes);
        is_closed_in_time(&handle, 0);
        queued.iter_mut().for_each(echoes);
        handle.shutdown();
        assert_eq!(settled(running.await).completed, 50);
    }
}

async fn who_waits_for_a_permit_there_is_served(runtime: TestRuntime) {
    for address in transports() {
        let server = crate::support::server(runtime.clone()).listen(address.as_str());
        let server = server.listen("127.0.0.1:0").max_connections(2);
        let running = server.bind().await.unwrap().spawn(answer_once);
        let handle = running.handle();
        let mut clients: Vec<_> = (0..6).map(|_| Client::of(&running)).collect();
        taken_in(&handle, 2);
        assert!(handle.shut(0));
        // Each that ends lets another one in; shards take them in an order of their own.
        for client in &mut clients {
            client.send("hello\n");
        }
        for client in &mut clients {
            assert_eq!(client.rest(), "hello\n");
        }
        drop(clients);
        is_closed_in_time(&handle, 0);
        let mut beside = Client::connect(&handle.local_addrs()[1]).unwrap();
        echoes(&mut beside);
        handle.shutdown();
        assert_eq!(settled(running.await).completed, 7);
    }
}

async fn a_listener_that_is_shut_before_it_is_served_serves_its_queue(runtime: TestRuntime) {
    for address in transports() {
        let server = crate::support::server(runtime.clone()).listen(address.as_str());
        let server = server.bind().await.unwrap();
        let mut queued = Client::to(&server);
        assert!(server.handle().shut(0));
        assert!(refuses(&server.local_addrs()[0]));
        let running = server.spawn(echo);
        echoes(&mut queued);
        is_closed_in_time(&running.handle(), 0);
        drop(queued);
        settled(running.shutdown().await);
    }
}

async fn an_adopted_listener_is_shut_for_this_server_alone(runtime: TestRuntime) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(socket.local_addr().unwrap());
    let server = crate::support::server(runtime).adopt(socket.try_clone().unwrap());
    let running = server.bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    let mut inside = Client::connect(&address).unwrap();
    echoes(&mut inside);
    assert!(handle.shut(0));
    is_closed_in_time(&handle, 0);
    let _elsewhere = Client::connect(&address).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.accept().unwrap();
    echoes(&mut inside);
    handle.shutdown();
    settled(running.await);
}

async fn the_connections_of_one_listener_end_by_another_word(runtime: TestRuntime) {
    let server = tcp(runtime).listen("127.0.0.1:0").bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let running = server.spawn(echo);
    let handle = running.handle();
    let mut clients = addresses.map_to_clients();
    clients.iter_mut().for_each(echoes);
    assert!(handle.shut(1));
    echoes(&mut clients[1]);
    handle.close_connections_of(1);
    handle.close_connections_of(u64::MAX);
    assert_eq!(clients[1].rest(), "");
    hears_nothing(&mut clients[0]);
    echoes(&mut clients[0]);
    drop(clients);
    settled(running.shutdown().await);
}

trait Clients {
    fn map_to_clients(&self) -> Vec<Client>;
}

impl Clients for Vec<Address> {
    fn map_to_clients(&self) -> Vec<Client> {
        self.iter().map(|it| Client::connect(it).unwrap()).collect()
    }
}

async fn a_server_whose_doors_are_all_shut_lives_on_for_its_connections(runtime: TestRuntime) {
    let [first, second] = transports();
    let server = crate::support::server(runtime).listen(first.as_str());
    let server = server.listen(second.as_str()).bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let running = server.spawn(echo);
    let handle = running.handle();
    let mut clients = addresses.map_to_clients();
    clients.iter_mut().for_each(echoes);
    for id in [0, 1] {
        assert!(handle.shut(id));
        is_closed_in_time(&handle, id);
    }
    assert!(handle.listeners().is_empty());
    assert_eq!(handle.state(), State::Serving);
    clients.iter_mut().for_each(echoes);
    handle.shutdown();
    for mut client in clients {
        assert_eq!(client.rest(), "");
    }
    let report = settled(running.await);
    assert_eq!((report.accepted, report.completed), (2, 2));
}

async fn a_listener_is_added_while_the_server_serves(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    let mut first = Client::of(&running);
    echoes(&mut first);
    for (id, address) in (1..).zip(transports()) {
        let added = handle.add(address.as_str()).await.unwrap();
        assert_eq!(added.len(), 1);
        assert_eq!(added[0].id, id);
        let mut client = Client::connect(&added[0].address).unwrap();
        echoes(&mut client);
        let newest = handle.connections().pop().unwrap();
        assert_eq!(newest.listener, id);
        assert_eq!(listener(&handle, id).address, added[0].address);
    }
    // Also where the accept loop has nobody to accept for a long time.
    handle.pause();
    let added = handle.add("127.0.0.1:0").await.unwrap().remove(0).address;
    let mut waiting = Client::connect(&added).unwrap();
    waiting.send("hello\n");
    handle.resume();
    assert_eq!(waiting.line(), "hello");

    assert_eq!(handle.local_addrs().len(), 1, "those that it was bound to");
    let all: Vec<_> = handle
        .listeners()
        .into_iter()
        .map(|it| it.address)
        .collect();
    assert_eq!(all.len(), 4);
    handle.shutdown();
    assert_eq!(waiting.rest(), "");
    drop((first, waiting));
    settled(running.await);
    for address in &all {
        assert!(refuses(address), "{address}");
        if let Address::Unix(path) = address {
            assert!(!path.exists());
        }
    }
}

async fn a_listener_is_added_where_none_is_left(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    let old = handle.local_addrs()[0].clone();
    assert!(handle.shut(0));
    is_closed_in_time(&handle, 0);
    // The port is free again.
    let added = handle.add(old.clone()).await.unwrap().remove(0);
    assert_eq!((added.id, &added.address), (1, &old));
    echoes(&mut Client::connect(&old).unwrap());
    assert!(handle.shut(1));
    assert!(refuses(&old));
    settled(running.shutdown().await);
}

async fn what_cannot_be_added_is_an_error(runtime: TestRuntime) {
    use std::io::ErrorKind::{AddrInUse, InvalidInput, NotConnected};
    let server = tcp(runtime).bind().await.unwrap();
    let handle = server.handle();
    let refused = handle.add("127.0.0.1:0").await.unwrap_err();
    assert_eq!(refused.kind(), NotConnected, "{refused}");
    let running = server.spawn(echo);
    echoes(&mut Client::of(&running));
    let own = handle.local_addrs()[0].clone();
    let refused = handle.add(own.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), AddrInUse, "{refused}");
    assert!(refused.to_string().contains(&own.to_string()), "{refused}");
    let refused = handle.add("nowhere").await.unwrap_err();
    assert_eq!(refused.kind(), InvalidInput, "{refused}");
    assert_eq!(handle.listeners().len(), 1);
    handle.shutdown();
    let refused = handle.add("127.0.0.1:0").await.unwrap_err();
    assert_eq!(refused.kind(), NotConnected, "{refused}");
    settled(running.await);
}

/// Clients that connect without a pause, at addresses that are added and shut again and again.
async fn listeners_come_and_go_under_a_storm_and_nobody_is_reset(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(answer_once);
    let handle = running.handle();
    for address in ["127.0.0.1:0".to_owned(), unix_address()] {
        // One port for all rounds.
        let address = handle.add(address.as_str()).await.unwrap().remove(0);
        let is_over = Arc::new(AtomicBool::new(false));
        let storm = [(); 3].map(|()| {
            let (address, is_over) = (address.address.clone(), is_over.clone());
            thread::spawn(move || {
                let mut served = 0;
                while !is_over.load(SeqCst) {
                    match visit(&address, "hello\n") {
                        Visit::Refused => thread::sleep(Duration::from_micros(200)),
                        Visit::Closed(reply) if reply == "hello\n" => served += 1,
                        other => panic!("{other:?}"),
                    }
                }
                served
            })
        });
        let mut id = address.id;
        for _ in 0..rounds(10) {
            let before = handle.stats().completed;
            eventually("some are served", || handle.stats().completed > before + 5);
            assert!(handle.shut(id));
            is_closed_in_time(&handle, id);
            id = handle.add(address.address.clone()).await.unwrap()[0].id;
        }
        is_over.store(true, SeqCst);
        let served = storm.map(|it| it.join().unwrap());
        assert!(served.iter().all(|it| *it > 0), "{served:?}");
        assert!(handle.shut(id));
    }
    let report = settled(running.shutdown().await);
    assert_balance(&report.stats);
    assert_eq!(report.completed, report.accepted);
}

/// A server with one connection that keeps a drain going, and an admin port.
async fn with_an_admin_port(runtime: TestRuntime, admin: &str) -> (Running, Client, Client) {
    let server = tcp(runtime).keep_open(admin).bind().await.unwrap();
    let running = server.spawn(echo);
    let addresses = running.handle().local_addrs().to_vec();
    let mut busy = Client::connect(&addresses[0]).unwrap();
    echoes(&mut busy);
    // Half a message: busy.
    busy.send("hal");
    let mut admin = Client::connect(&addresses[1]).unwrap();
    echoes(&mut admin);
    eventually("half a message", || running.handle().stats().bytes_in >= 15);
    (running, busy, admin)
}

async fn an_admin_port_stays_open_through_a_drain(runtime: TestRuntime) {
    for address in transports() {
        let (running, mut busy, mut admin) = with_an_admin_port(runtime.clone(), &address).await;
        let handle = running.handle();
        let addresses = handle.local_addrs().to_vec();
        handle.shutdown();
        is_closed_in_time(&handle, 0);
        assert!(refuses(&addresses[0]));
        // It is served as ever, and takes new peers.
        echoes(&mut admin);
        let mut new = Client::connect(&addresses[1]).unwrap();
        echoes(&mut new);
        hears_nothing(&mut admin);
        echoes(&mut admin);
        assert_eq!(handle.state(), State::Draining);
        assert!(!listener(&handle, 1).is_shut);

        busy.send("f\n");
        assert_eq!(busy.rest(), "half\n");
        drop(busy);
        // Nothing else is left: it ends as others did.
        assert_eq!(admin.rest(), "");
        assert_eq!(new.rest(), "");
        drop((admin, new));
        let report = settled(running.await);
        assert_eq!((report.completed, report.aborted), (3, 0));
        assert!(refuses(&addresses[1]));
        if let Address::Unix(path) = &addresses[1] {
            assert!(!path.exists());
        }
    }
}

async fn an_admin_ports_queue_is_served_at_its_end(runtime: TestRuntime) {
    for address in transports() {
        let server = crate::support::server(runtime.clone()).keep_open(address.as_str());
        let running = server.bind().await.unwrap().spawn(answer_once);
        let handle = running.handle();
        handle.pause();
        let mut queued: Vec<_> = (0..50).map(|_| Client::of(&running)).collect();
        for client in &mut queued {
            client.send("hello\n");
        }
        handle.shutdown();
        for client in &mut queued {
            assert_eq!(client.rest(), "hello\n");
        }
        drop(queued);
        assert_eq!(settled(running.await).completed, 50);
    }
}

async fn an_admin_port_is_shut_by_its_id_like_any_other(runtime: TestRuntime) {
    for address in transports() {
        let (running, busy, mut admin) = with_an_admin_port(runtime.clone(), &address).await;
        let handle = running.handle();
        handle.shutdown();
        is_closed_in_time(&handle, 0);
        assert!(handle.shut(1));
        assert!(refuses(&handle.local_addrs()[1]));
        is_closed_in_time(&handle, 1);
        echoes(&mut admin);
        drop(busy);
        assert_eq!(admin.rest(), "");
        drop(admin);
        settled(running.await);
    }
}

async fn the_deadline_ends_what_is_kept_open_too(runtime: TestRuntime) {
    let (running, mut busy, mut admin) = with_an_admin_port(runtime.clone(), "127.0.0.1:0").await;
    let handle = running.handle();
    handle.shutdown_within(HOUR);
    is_closed_in_time(&handle, 0);
    echoes(&mut admin);
    runtime.put_forward(2 * HOUR);
    handle.shutdown_within(Duration::ZERO);
    is_cut(&mut busy);
    is_cut(&mut admin);
    assert_eq!(running.await.unwrap().aborted, 2);
    assert!(refuses(&handle.local_addrs()[1]));
}

async fn an_abort_ends_what_is_kept_open_too(runtime: TestRuntime) {
    let (running, mut busy, mut admin) = with_an_admin_port(runtime, "127.0.0.1:0").await;
    let handle = running.handle();
    handle.abort();
    is_cut(&mut busy);
    is_cut(&mut admin);
    assert_eq!(running.await.unwrap().aborted, 2);
    assert!(refuses(&handle.local_addrs()[1]));
}

async fn a_server_with_an_admin_port_that_is_dropped_is_closed(runtime: TestRuntime) {
    let path = unix_path();
    let server = tcp(runtime.clone()).keep_open(Address::Unix(path.clone()));
    let server = server.bind().await.unwrap();
    let handle = server.handle();
    drop(server);
    handle.closed().await;
    assert!(!path.exists());

    // A handler that waits for the end of its server holds up nothing either.
    let server = tcp(runtime).keep_open(Address::Unix(path.clone()));
    let server = server.bind().await.unwrap();
    let running = server.spawn(async |mut conn: Connection| {
        let mut byte = [0];
        conn.read_exact(&mut byte).await?;
        conn.handle().shutdown();
        let active = conn.handle().closed().await.active;
        conn.write_all(format!("{active}\n").as_bytes()).await
    });
    let addresses = running.handle().local_addrs().to_vec();
    let mut clients = addresses.map_to_clients();
    for client in &mut clients {
        client.send("!");
    }
    for client in &mut clients {
        assert_eq!(client.rest(), "2\n");
    }
    drop(clients);
    settled(running.await);
    assert!(!path.exists());
}
