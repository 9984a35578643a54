//! What a server tells of itself: addresses, states, counts, connections and events.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::process::{ExitCode, Termination};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Address, Cause, Connection, EndedBy, ServerEvent, State, Waiting};

use crate::support::client::{
    Client, echo, eventually, handing_over, read_in, taken_in, unix_path,
};
use crate::support::peer::{at_home, cause_of, is_cut, logged, loopback, passes, settled, tell};
use crate::support::{DEADLINE, TestRuntime};

crate::on_every_runtime_in_a_process!(
    a_stop_says_in_the_log_which_work_it_waits_for: tracks_work, passes;
);

crate::on_every_runtime!(
    a_server_shows_its_state_and_its_addresses,
    what_a_server_shows_of_its_addresses_can_be_parsed,
    a_connection_knows_where_it_comes_from_and_goes_to,
    a_unix_peer_without_a_name_has_none,
    ids_are_given_in_turn,
    connections_are_listed_with_what_they_wait_for,
    an_end_says_whose_it_was,
    each_start_and_each_end_is_told_once_with_its_cause,
    every_receiver_is_told_everything,
    who_comes_late_is_told_what_happens_from_then_on,
    what_a_slow_receiver_misses_is_counted,
    a_receiver_that_is_dropped_costs_nothing,
    a_receivers_waker_may_ask_the_server,
    who_subscribes_while_others_are_told_is_told_the_rest,
    events_end_with_the_server,
    a_reader_of_events_whose_waker_panics_harms_nobody,
    a_reader_of_events_may_ask_the_server_when_it_is_woken,
    a_report_is_a_readable_paragraph,
    the_exit_status_says_whether_anything_was_aborted,
    everything_has_a_debug_form
);

async fn a_server_shows_its_state_and_its_addresses(runtime: TestRuntime) {
    let path = unix_path();
    let server = at_home(&runtime)
        .listen(Address::Unix(path.clone()))
        .bind()
        .await
        .unwrap();
    let addresses = format!(
        "{}, unix:{}",
        server.local_addrs()[0].as_tcp().unwrap(),
        path.display()
    );
    let handle = server.handle();
    assert_eq!(server.to_string(), format!("bound on {addresses}"));
    assert_eq!(handle.to_string(), format!("bound on {addresses}"));
    let events = handle.events();
    let running = server.spawn(echo);
    let serving = ServerEvent::State(State::Serving);
    assert_eq!(events.recv().await.unwrap(), serving);
    assert_eq!(handle.to_string(), format!("serving on {addresses}"));
    handle.pause();
    assert_eq!(handle.to_string(), format!("paused on {addresses}"));
    handle.shutdown();
    settled(running.await);
    assert_eq!(handle.to_string(), format!("closed on {addresses}"));
}

async fn what_a_server_shows_of_its_addresses_can_be_parsed(runtime: TestRuntime) {
    let name = unix_path().display().to_string();
    let mut builder = at_home(&runtime)
        .listen("localhost:0")
        .listen(format!("unix:{name} with a space"));
    if cfg!(target_os = "linux") {
        builder = builder.listen(format!("unix:@{name}"));
    }
    let server = builder.bind().await.unwrap();
    for address in server.local_addrs() {
        let text = address.to_string();
        assert_eq!(&text.parse::<Address>().unwrap(), address, "{text}");
    }
}

async fn a_connection_knows_where_it_comes_from_and_goes_to(runtime: TestRuntime) {
    let server = at_home(&runtime).listen(loopback()).bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let (running, connections) = handing_over(server);
    for address in &addresses {
        let client = Client::connect(address).unwrap();
        let conn = connections.recv().await.unwrap();
        let Client::Tcp(socket) = &client else {
            unreachable!("it was asked for TCP");
        };
        let name = Address::Tcp(socket.local_addr().unwrap());
        assert_eq!(conn.peer_addr(), name);
        assert_eq!(&conn.local_addr().unwrap(), address);
        let (reader, writer) = conn.split();
        assert_eq!(reader.peer_addr(), writer.peer_addr());
        assert_eq!((reader.id(), reader.handle().active()), (writer.id(), 1));
        drop((reader, writer, client));
        eventually("it is gone", || running.handle().active() == 0);
    }
    running.handle().shutdown();
    settled(running.await);
}

async fn a_unix_peer_without_a_name_has_none(runtime: TestRuntime) {
    let address = Address::Unix(unix_path());
    let server = crate::support::server(runtime).listen(address.clone());
    let (running, connections) = handing_over(server.bind().await.unwrap());
    let _client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    assert_eq!(conn.peer_addr(), Address::Unnamed);
    assert_eq!(conn.local_addr().unwrap(), address);
    drop(conn);
    running.handle().shutdown();
    settled(running.await);
}

async fn ids_are_given_in_turn(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    for id in 1..=5 {
        let _client = Client::of(&running);
        assert_eq!(connections.recv().await.unwrap().id(), id);
    }
    running.handle().shutdown();
    settled(running.await);
}

async fn connections_are_listed_with_what_they_wait_for(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        match &order {
            b"h" => std::future::pending().await,
            b"w" => loop {
                conn.write_all(&[0; 65536]).await?;
            },
            _ => {
                conn.write_all(&order).await?;
                conn.read_exact(&mut order).await
            }
        }
    });
    let handle = running.handle();
    let mut clients = Vec::new();
    for (id, order) in (1..).zip(["", "h", "w", "r"]) {
        let mut client = Client::of(&running);
        client.send(order);
        clients.push(client);
        taken_in(&handle, id);
    }
    let expected = [
        (1, false, Waiting::Read, 0),
        (2, true, Waiting::Handler, 1),
        (3, true, Waiting::Write, 1),
        (4, false, Waiting::Read, 1),
    ];
    eventually("they wait", || {
        let listed = handle.connections();
        let seen: Vec<_> = listed
            .iter()
            .map(|it| (it.id, it.busy, it.waiting, it.bytes_in))
            .collect();
        seen == expected
    });
    let listed = handle.connections();
    assert!(listed[2].bytes_out > 65536);
    assert_eq!((listed[0].bytes_out, listed[3].bytes_out), (0, 1));
    assert!(listed[0].age >= listed[3].age);
    for (info, client) in listed.iter().zip(&clients) {
        let Client::Tcp(socket) = client else {
            unreachable!("it was asked for TCP");
        };
        assert_eq!(info.peer, Address::Tcp(socket.local_addr().unwrap()));
    }
    handle.abort();
    let report = settled(running.await);
    // Stragglers are described in the same words. The last may have seen the drain that comes first.
    let seen: Vec<_> = report
        .stragglers
        .iter()
        .map(|it| (it.id, it.busy, it.waiting))
        .collect();
    let expected = expected.map(|(id, busy, waiting, _)| (id, busy, waiting));
    assert_eq!(seen[..3], expected[..3]);
}

async fn an_end_says_whose_it_was(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .first_byte_grace(None)
        .bind()
        .await
        .unwrap();
    let (running, connections) = handing_over(server);
    let peers = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    assert_eq!(conn.ended_by(), None);
    peers.finish();
    assert_eq!(conn.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(conn.ended_by(), Some(EndedBy::Peer));
    let _client = Client::of(&running);
    let mut other = connections.recv().await.unwrap();
    running.handle().shutdown();
    assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(other.ended_by(), Some(EndedBy::Drain));
    drop((conn, other));
    settled(running.await);
}

async fn each_start_and_each_end_is_told_once_with_its_cause(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .first_byte_grace(None)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        if conn.read(&mut order).await? == 0 {
            return Ok(());
        }
        match &order {
            b"p" => panic!("as the test wants it"),
            b"e" => Err(io::Error::other("as the test wants it")),
            b"d" => conn.detach().map(drop),
            b"s" => std::future::pending().await,
            _ => conn.write_all(&order).await,
        }
    });
    let handle = running.handle();
    let mut expected = BTreeMap::new();
    let causes = [
        ("c", Cause::Handler),
        ("", Cause::Peer),
        ("p", Cause::Panic),
        ("e", Cause::Error("as the test wants it".into())),
        ("d", Cause::Detached),
        ("s", Cause::Aborted),
    ];
    let names = causes.clone().map(|(order, _)| {
        let mut client = Client::of(&running);
        let Client::Tcp(socket) = &client else {
            unreachable!("it was asked for TCP");
        };
        let name = Address::Tcp(socket.local_addr().unwrap());
        let id = expected.len() as u64 + 1;
        expected.insert(id, order.len() as u64);
        client.send(order);
        if order.is_empty() {
            client.finish();
        }
        if order == "s" {
            eventually("it is inside", || {
                handle
                    .connections()
                    .iter()
                    .any(|it| it.id == 6 && it.bytes_in == 1)
            });
            // The others are still open for a moment after their clients saw the end.
            eventually("it is alone", || handle.active() == 1);
            handle.abort_connections();
        }
        is_cut(&mut client);
        name
    });
    // And one that the drain ends.
    let mut last = Client::of(&running);
    taken_in(&handle, 7);
    handle.shutdown();
    assert_eq!(last.rest(), "");
    settled(running.await);
    let (mut opened, mut closed) = (BTreeMap::new(), BTreeMap::new());
    while let Ok(event) = events.recv().await {
        match event {
            ServerEvent::Opened { id, peer } => {
                assert!(opened.insert(id, peer).is_none(), "{id} was opened twice");
            }
            ServerEvent::Closed {
                id,
                cause,
                bytes_in,
                bytes_out,
                ..
            } => {
                assert!(opened.contains_key(&id), "{id} ended before it began");
                let end = (cause, bytes_in, bytes_out);
                assert!(closed.insert(id, end).is_none(), "{id} ended twice");
            }
            _ => {}
        }
    }
    for (index, (name, (order, cause))) in names.into_iter().zip(causes).enumerate() {
        let id = index as u64 + 1;
        assert_eq!(opened[&id], name);
        let bytes_in = order.len() as u64;
        let bytes_out = u64::from(order == "c");
        assert_eq!(closed[&id], (cause, bytes_in, bytes_out));
    }
    assert_eq!(closed[&7], (Cause::Drain, 0, 0));
    assert_eq!((opened.len(), closed.len()), (7, 7));
}

async fn every_receiver_is_told_everything(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let receivers = [(); 3].map(|()| server.handle().events());
    let running = server.spawn(echo);
    for _ in 0..10 {
        assert_eq!(Client::of(&running).ask("hello"), "hello");
    }
    running.handle().shutdown();
    settled(running.await);
    let mut told = Vec::new();
    for receiver in receivers {
        let mut events = Vec::new();
        while let Ok(event) = receiver.recv().await {
            events.push(event);
        }
        told.push(events);
    }
    // Serving, draining, closed, and two for each connection.
    assert_eq!(told[0].len(), 23);
    assert_eq!(told[0], told[1]);
    assert_eq!(told[1], told[2]);
}

async fn who_comes_late_is_told_what_happens_from_then_on(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(echo);
    let handle = running.handle();
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    let late = handle.events();
    drop(client);
    assert_eq!(cause_of(1, &late).await, Cause::Peer);
    handle.shutdown();
    assert_eq!(
        late.recv().await.unwrap(),
        ServerEvent::State(State::Draining)
    );
    settled(running.await);
}

async fn what_a_slow_receiver_misses_is_counted(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let slow = handle.events();
    // Each is two events, and nobody takes any.
    let capacity = slow.capacity().unwrap();
    let pauses = capacity + 100;
    let quick = handle.events();
    let running = server.spawn(echo);
    assert_eq!(
        quick.recv().await.unwrap(),
        ServerEvent::State(State::Serving)
    );
    for _ in 0..pauses {
        handle.pause();
        handle.resume();
        for _ in 0..2 {
            quick.recv().await.unwrap();
        }
    }
    handle.shutdown();
    settled(running.await);
    let (mut told, mut missed) = (0, 0);
    while let Ok(event) = slow.recv().await {
        match event {
            ServerEvent::Missed(count) => missed += count,
            _ => told += 1,
        }
    }
    // What came after the last one it was told of is not counted, since nothing follows it.
    assert!(told >= capacity - 1, "{told} of {capacity}");
    assert_eq!(told as u64 + missed, 2 * pauses as u64 + 3);
}

async fn a_receiver_that_is_dropped_costs_nothing(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    drop(handle.events());
    let running = server.spawn(echo);
    for _ in 0..3 {
        drop(handle.events());
        assert_eq!(Client::of(&running).ask("hello"), "hello");
    }
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 3);
}

async fn events_end_with_the_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let events = handle.events();
    let running = server.spawn(echo);
    handle.shutdown();
    settled(running.await);
    let mut last = None;
    while let Ok(event) = events.recv().await {
        last = Some(event);
    }
    assert_eq!(last, Some(ServerEvent::State(State::Closed)));
    assert!(handle.events().recv().await.is_err());
}

/// Has somebody wait for the next event for ever, with a waker that calls `on_wake`.
fn leave_waiting(
    events: &async_channel::Receiver<ServerEvent>,
    on_wake: impl Fn() + Send + Sync + 'static,
) {
    struct Waking<F>(F);
    impl<F: Fn() + Send + Sync> Wake for Waking<F> {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }
    let mut received = Box::pin({
        let events = events.clone();
        async move { drop(events.recv().await) }
    });
    let waker = Waker::from(Arc::new(Waking(on_wake)));
    let polled = received.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    // A listener that was not notified to the end panics when it is dropped, in builds for tests.
    std::mem::forget(received);
}

async fn a_reader_of_events_whose_waker_panics_harms_nobody(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    let sound = handle.events();
    // Told of the connection's end, and then of the server's, on whatever thread counts it.
    let first = handle.events();
    leave_waiting(&first, || panic!("as the test wants it"));
    drop(client);
    assert_eq!(cause_of(1, &sound).await, Cause::Peer);
    // A second wait would not be woken: the first has taken the notification, and panicked.
    eventually("the event is there", || !first.is_empty());
    assert_eq!(cause_of(1, &first).await, Cause::Peer);
    let second = handle.events();
    leave_waiting(&first, || panic!("as the test wants it"));
    leave_waiting(&second, || panic!("as the test wants it"));
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 1);
    for events in [sound, first, second] {
        let mut last = None;
        while let Ok(event) = events.recv().await {
            last = Some(event);
        }
        assert_eq!(last, Some(ServerEvent::State(State::Closed)));
    }
}

async fn a_reader_of_events_may_ask_the_server_when_it_is_woken(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    let events = handle.events();
    let asked = handle.clone();
    let (tell, told) = std::sync::mpsc::channel();
    leave_waiting(&events, move || {
        // Whatever takes a lock, and what makes another event.
        let more = asked.events();
        asked.pause();
        asked.resume();
        tell.send((asked.stats().active, more)).unwrap();
    });
    drop(client);
    assert_eq!(cause_of(1, &events).await, Cause::Peer);
    let (active, more) = told.recv().unwrap();
    assert_eq!(active, 0);
    handle.shutdown();
    settled(running.await);
    // What came after it subscribed, and nothing that came before.
    let mut states = Vec::new();
    while let Ok(event) = more.recv().await {
        states.push(event);
    }
    let expected = [
        State::Paused,
        State::Serving,
        State::Draining,
        State::Closed,
    ];
    assert_eq!(states, expected.map(ServerEvent::State));
}

async fn a_report_is_a_readable_paragraph(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        if &order == b"s" {
            begun.send(()).await.unwrap();
            std::future::pending::<()>().await;
        }
        io::Result::Ok(())
    });
    let mut done = Client::of(&running);
    done.send("c");
    assert_eq!(done.rest(), "");
    let mut stuck = Client::of(&running);
    stuck.send("s");
    has_begun.recv().await.unwrap();
    // Its client sees the end a moment before it is counted.
    eventually("the first is counted", || running.handle().active() == 1);
    let peer = running.handle().connections()[0].peer.clone();
    running.handle().shutdown_because("it is late");
    running.handle().abort();
    let report = settled(running.await);
    let text = report.to_string();
    assert!(!text.contains('\n'), "{text}");
    let peer = peer.to_string();
    for word in [
        "it is late",
        "2 accepted",
        "1 completed",
        "1 aborted",
        &peer,
        "busy",
    ] {
        assert!(text.contains(word), "no `{word}` in `{text}`");
    }
    assert!(!text.contains("panicked"), "{text}");
    assert!(report.elapsed >= report.drain);
    assert!(report.drain > Duration::ZERO);
}

async fn the_exit_status_says_whether_anything_was_aborted(runtime: TestRuntime) {
    for (abort, expected) in [(false, ExitCode::SUCCESS), (true, ExitCode::FAILURE)] {
        let server = at_home(&runtime).bind().await.unwrap();
        let running = server.spawn(echo);
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        if abort {
            // Inside a message, which an idle connection's end would not wait for.
            client.send("hel");
            read_in(&running.handle(), 9);
            running.handle().abort();
        } else {
            running.handle().shutdown();
        }
        let report = settled(running.await);
        assert_eq!(report.aborted, u64::from(abort));
        assert_eq!(report.report(), expected);
    }
}

async fn everything_has_a_debug_form(runtime: TestRuntime) {
    let builder = at_home(&runtime);
    let shown = format!("{builder:?}");
    assert!(shown.contains("deadline"), "{shown}");
    let server = builder.bind().await.unwrap();
    let address = server.local_addrs()[0].to_string();
    assert!(format!("{server:?}").contains("Bound"));
    assert!(format!("{:?}", server.handle()).contains("Bound"));
    let (running, connections) = handing_over(server);
    assert!(format!("{running:?}").contains(&address[..address.find(':').unwrap()]));
    let _client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    assert!(format!("{conn:?}").contains("id: 1"));
    drop(conn);
    running.handle().shutdown();
    let report = settled(running.await);
    assert!(format!("{report:?}").contains("Requested"));
}

/// A waker that asks the server of whatever it is woken for.
struct Asking<F: Fn() + Send + Sync>(F);

impl<F: Fn() + Send + Sync> Wake for Asking<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

async fn a_receivers_waker_may_ask_the_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let events = handle.events();
    let (asked, has_asked) = mpsc::channel();
    let asking = handle.clone();
    let waker = Waker::from(Arc::new(Asking(move || {
        let told = asking.events();
        drop((asking.stats(), asking.listeners(), asking.connections()));
        // Is told to this receiver, too, while it is being told of something else.
        asking.pause();
        asking.resume();
        asked.send(told).unwrap();
    })));
    let mut waits = pin!(events.recv());
    assert!(
        waits
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    let running = server.spawn(echo);
    let inside = has_asked.recv_timeout(DEADLINE).unwrap();
    handle.shutdown();
    settled(running.await);
    let told = [waits.await.unwrap()];
    let mut told = told.to_vec();
    while let Ok(event) = events.recv().await {
        told.push(event);
    }
    use State::{Closed, Draining, Paused, Serving};
    let states = [Serving, Paused, Serving, Draining, Closed];
    assert_eq!(told, states.map(ServerEvent::State));
    // The one that was made meanwhile is told what came after it.
    let mut later = Vec::new();
    while let Ok(event) = inside.recv().await {
        later.push(event);
    }
    assert_eq!(later, told[1..]);
}

async fn who_subscribes_while_others_are_told_is_told_the_rest(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let events = handle.events();
    let (told, is_told) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let goes_on = Mutex::new(goes_on);
    let waker = Waker::from(Arc::new(Asking(move || {
        told.send(()).unwrap();
        // Until the other end is dropped.
        let _dropped = goes_on.lock().unwrap().recv();
    })));
    let mut waits = pin!(events.recv());
    assert!(
        waits
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    let pausing = handle.clone();
    let (before, mut between) = (thread::spawn(move || pausing.shutdown()), Vec::new());
    is_told.recv_timeout(DEADLINE).unwrap();
    // One thread is in a receiver's waker; nobody else has to wait for it.
    for _ in 0..2 {
        between.push(handle.events());
        assert_eq!(handle.stats().accepted, 0);
    }
    drop(server);
    between.push(handle.events());
    drop(go_on);
    before.join().unwrap();
    for (index, receiver) in between.into_iter().enumerate() {
        let mut told = Vec::new();
        while let Ok(event) = receiver.recv().await {
            told.push(event);
        }
        let closed = [ServerEvent::State(State::Closed)];
        assert_eq!(told, closed[..usize::from(index < 2)], "{index}");
    }
}

async fn tracks_work(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (finish, finished) = async_channel::bounded::<()>(1);
    for _ in 0..2 {
        let finished = finished.clone();
        let work = handle.track_as("job", async move { finished.recv().await });
        runtime.run(work);
    }
    let stuck = handle.track_as("stuck", std::future::pending::<()>());
    runtime.run(stuck);
    let waits = handle.track_as("waiter", handle.closed());
    runtime.run(waits);
    let _forgotten = handle.track_as("forgotten", std::future::pending::<()>());
    let running = server.spawn(echo);
    let mut busy = Client::of(&running);
    busy.send("half");
    read_in(&handle, 4);
    handle.shutdown();
    handle.shutdown_requested().await;
    let says = |line: &str| logged().iter().any(|it| it == line);
    let waiting = "INFO waiting for tracked work: job (2 of them), stuck, forgotten";
    assert!(!says(waiting), "{:?}", logged());
    busy.send("\n");
    assert_eq!(busy.rest(), "half\n");
    eventually("it says so", || says(waiting));
    finish.close();
    eventually("the jobs are done", || handle.stats().tracked == 3);
    handle.shutdown_within(Duration::ZERO);
    let report = settled(running.await);
    assert_eq!(report.dropped, 3, "{report}");
    assert!(says("WARN dropped tracked work: stuck"), "{:?}", logged());
    assert!(says("WARN dropped tracked work: waiter"), "{:?}", logged());
    assert!(
        says("WARN gave up tracked work: forgotten"),
        "{:?}",
        logged()
    );
    // The report is there before it is logged.
    eventually("it is logged", || says(&format!("INFO {report}")));
    tell("done", "");
}
