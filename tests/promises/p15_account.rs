//! Promise 15. **The account balances**, after everything that can happen to a connection, and at
//! every moment before.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Cause, Connection, ServerEvent};

use crate::support::TestRuntime;
use crate::support::client::{Client, assert_balance, echo, eventually};
use crate::support::peer::{at_home, is_cut, passes, settled};

crate::on_every_runtime!(
    every_way_to_end_is_counted_once,
    it_balances_while_connections_come_and_go,
    it_balances_when_an_abort_falls_into_the_middle,
    bytes_are_counted_on_both_ways,
    the_stats_of_a_closed_server_are_its_report
);
#[cfg(target_os = "linux")]
crate::on_every_runtime_in_a_process!(
    a_hundred_servers_on_one_port_leave_no_descriptor_behind: starts_and_stops, passes;
    thousands_of_short_connections_leave_no_memory_behind: takes_short_connections, passes;
);

/// Ends as its peer wants it to.
async fn as_told(mut conn: Connection) -> io::Result<()> {
    let mut order = [0];
    conn.read_exact(&mut order).await?;
    match &order {
        b"p" => panic!("as the test wants it"),
        b"e" => Err(io::Error::other("as the test wants it")),
        b"d" => conn.detach().map(drop),
        b"s" => pending().await,
        _ => conn.write_all(&order).await,
    }
}

async fn every_way_to_end_is_counted_once(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_connections(2)
        .reject_with("full\n")
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(as_told);
    let handle = running.handle();
    for order in ["c", "p", "e", "d", "c", "e", "c"] {
        let mut client = Client::of(&running);
        client.send(order);
        is_cut(&mut client);
        // The next one would be rejected if this one were there still.
        eventually("it is gone", || handle.active() == 0);
        assert_balance(&handle.stats());
    }
    let mut stuck = [(); 2].map(|()| Client::of(&running));
    for client in &mut stuck {
        client.send("s");
    }
    eventually("both are inside", || handle.active() == 2);
    let mut rejected = Client::of(&running);
    assert_eq!(rejected.rest(), "full\n");
    drop(rejected);
    eventually("two are left", || handle.active() == 2);
    handle.shutdown();
    handle.abort();
    let report = settled(running.await);
    assert_eq!(report.accepted, 10);
    assert_eq!((report.completed, report.failed), (3, 2));
    assert_eq!((report.panicked, report.detached), (1, 1));
    assert_eq!((report.aborted, report.rejected), (2, 1));
    // What was told along the way is the same account.
    let mut causes = HashMap::<_, u64>::new();
    let mut opened = 0;
    while let Ok(event) = events.recv().await {
        match event {
            ServerEvent::Opened { .. } => opened += 1,
            ServerEvent::Closed { cause, .. } => *causes.entry(cause).or_default() += 1,
            _ => {}
        }
    }
    let error = Cause::Error("as the test wants it".into());
    assert_eq!(opened, 10);
    assert_eq!(causes.values().sum::<u64>(), 10);
    assert_eq!((causes[&error], causes[&Cause::Panic]), (2, 1));
    assert_eq!((causes[&Cause::Aborted], causes[&Cause::Rejected]), (2, 1));
    assert_eq!(causes[&Cause::Detached], 1);
}

/// Looks at the account all the time, on a thread of its own, until this is dropped.
struct Auditor(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl Auditor {
    fn of(handle: gracious::Handle) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let audit = thread::spawn(move || {
            let mut before = handle.stats();
            while !is_over.load(SeqCst) {
                let now = handle.stats();
                assert_balance(&now);
                assert!(before.accepted <= now.accepted, "{before:?}, then {now:?}");
                assert!(before.bytes_in <= now.bytes_in, "{before:?}, then {now:?}");
                assert!(
                    before.bytes_out <= now.bytes_out,
                    "{before:?}, then {now:?}"
                );
                before = now;
                thread::yield_now();
            }
        });
        Self(over, Some(audit))
    }

    #[track_caller]
    fn end(mut self) {
        self.0.store(true, SeqCst);
        self.1.take().unwrap().join().unwrap();
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

async fn it_balances_while_connections_come_and_go(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(4).bind().await.unwrap();
    let auditor = Auditor::of(server.handle());
    let running = server.spawn(as_told);
    let visitors: Vec<_> = ["c", "p", "e", "d", "c", "e"]
        .into_iter()
        .map(|order| {
            let address = running.handle().local_addrs()[0].clone();
            thread::spawn(move || {
                for _ in 0..25 {
                    let mut client = Client::connect(&address).unwrap();
                    client.send(order);
                    is_cut(&mut client);
                }
            })
        })
        .collect();
    for visitor in visitors {
        visitor.join().unwrap();
    }
    running.handle().shutdown();
    let report = settled(running.await);
    auditor.end();
    assert_eq!(report.accepted, 150);
    assert_eq!((report.completed, report.failed), (50, 50));
    assert_eq!((report.panicked, report.detached), (25, 25));
}

async fn it_balances_when_an_abort_falls_into_the_middle(runtime: TestRuntime) {
    for clients in 1..20 {
        let server = at_home(&runtime).bind().await.unwrap();
        let auditor = Auditor::of(server.handle());
        let running = server.spawn(echo);
        let handle = running.handle();
        let visitor = {
            let address = handle.local_addrs()[0].clone();
            thread::spawn(move || {
                for _ in 0..clients {
                    if let Ok(mut client) = Client::connect(&address) {
                        let _whatever = io::Write::write_all(&mut client, b"hello\n");
                    }
                }
            })
        };
        eventually("the first is in", || handle.stats().accepted > 0);
        handle.abort();
        settled(running.await);
        auditor.end();
        visitor.join().unwrap();
    }
}

async fn bytes_are_counted_on_both_ways(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut text = Vec::new();
        conn.read_to_end(&mut text).await?;
        conn.write_all(&text).await?;
        conn.write_all(&text).await
    });
    let mut clients = [1_usize, 1000, 100_000].map(|length| {
        let mut client = Client::of(&running);
        client.send(&"x".repeat(length));
        client.finish();
        (client, length)
    });
    for (client, length) in &mut clients {
        assert_eq!(client.rest().len(), 2 * *length);
    }
    let handle = running.handle();
    eventually("all are gone", || handle.active() == 0);
    let stats = handle.stats();
    assert_eq!((stats.bytes_in, stats.bytes_out), (101_001, 202_002));
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.bytes_in, report.bytes_out), (101_001, 202_002));
    let (mut received, mut sent) = (0, 0);
    while let Ok(event) = events.recv().await {
        if let ServerEvent::Closed {
            bytes_in,
            bytes_out,
            ..
        } = event
        {
            received += bytes_in;
            sent += bytes_out;
        }
    }
    assert_eq!((received, sent), (101_001, 202_002));
}

async fn the_stats_of_a_closed_server_are_its_report(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let running = server.spawn(echo);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(handle.stats(), report.stats);
    assert_eq!((handle.active(), handle.connections().len()), (0, 0));
}

#[cfg(target_os = "linux")]
async fn starts_and_stops(runtime: TestRuntime) {
    use crate::support::peer::{open_descriptors, threads};

    let first = at_home(&runtime).bind().await.unwrap();
    let address = first.local_addrs()[0].clone();
    drop(first);
    let mut before = None;
    for round in 0..100 {
        let server = crate::support::server(runtime.clone())
            .listen(address.clone())
            .deadline(Duration::from_secs(60))
            .bind()
            .await
            .unwrap();
        let running = server.spawn(echo);
        let mut clients = [(); 3].map(|()| Client::of(&running));
        for client in &mut clients {
            assert_eq!(client.ask("hello"), "hello");
        }
        match round % 4 {
            0 => running.handle().abort(),
            1 => running.handle().shutdown(),
            2 => drop(clients),
            _ => drop(Client::of(&running)),
        }
        let report = settled(running.shutdown().await);
        assert!(report.accepted >= 3);
        if round == 10 {
            before = Some((open_descriptors(), threads()));
        }
    }
    let (descriptors, started) = before.unwrap();
    eventually(&format!("{descriptors} descriptors as before"), || {
        open_descriptors() <= descriptors
    });
    // The runtime's own threads come and go; a server has none.
    assert!(
        threads() <= started + 4,
        "{} threads, then {}",
        started,
        threads()
    );
}

#[cfg(target_os = "linux")]
async fn takes_short_connections(runtime: TestRuntime) {
    use crate::support::peer::resident;

    // Most of them on a Unix socket, which leaves no port in TIME_WAIT behind.
    let server = at_home(&runtime)
        .listen(crate::support::client::unix_address())
        .max_per_peer(100)
        .idle_timeout(Duration::from_secs(60))
        .bind()
        .await
        .unwrap();
    let [tcp, unix] = [0, 1].map(|i| server.local_addrs()[i].clone());
    let running = server.spawn(as_told);
    let handle = running.handle();
    let visit = |times: usize| {
        for i in 0..times {
            let address = if i % 10 == 0 { &tcp } else { &unix };
            let mut client = Client::connect(address).unwrap();
            client.send(if i % 100 == 0 { "e" } else { "c" });
            is_cut(&mut client);
        }
        eventually("all are gone", || handle.active() == 0);
    };
    visit(2_000);
    let before = resident();
    visit(20_000);
    let grown = resident().saturating_sub(before);
    // A record alone is more than a hundred bytes: 20 000 of them would be 2 MB and more. Spare
    // buffers, which may come to be with threads that had none before, are 256 KiB a thread.
    assert!(grown < 1 << 20, "it grew by {grown} bytes");
    handle.shutdown();
    assert_eq!(settled(running.await).accepted, 22_000);
}
