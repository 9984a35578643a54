//! Promise 13. **A limit is back-pressure**: one permit, then the accepts of all listeners raced
//! together, in turn (a permit waiting at one quiet listener would starve the others); the surplus
//! waits in the kernel; raised or lowered live (open connections stay); a shutdown wins over a wait
//! for a permit; permits survive panics, errors, aborts.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Cause, Connection, ServerEvent};

use crate::support::TestRuntime;
use crate::support::client::{Client, echo, eventually, handing_over, unix_address};
use crate::support::peer::{
    OnDrop, at_home, cause_of, hears_nothing, is_cut, loopback, opened, settled,
};

crate::on_every_runtime!(
    the_eleventh_of_ten_waits_and_is_served_when_one_leaves,
    there_are_never_more_than_the_limit,
    a_permit_is_given_back_however_a_connection_ends,
    a_permit_is_kept_as_long_as_anybody_has_the_connection,
    a_permit_is_given_back_once,
    the_limit_can_be_raised,
    the_limit_can_be_lowered_and_those_inside_stay,
    a_lower_limit_takes_hold_of_a_loop_that_waits_for_a_peer,
    the_limit_can_be_lifted,
    a_shutdown_wins_over_a_wait_for_a_permit,
    listeners_share_one_limit,
    a_busy_listener_does_not_starve_the_others,
    a_quiet_listener_does_not_starve_the_others
);

/// The ids of all that were opened and closed, in order; closed ones are negative.
async fn history(events: &Receiver<ServerEvent>, length: usize) -> Vec<i64> {
    let mut history = Vec::new();
    while history.len() < length {
        match events.recv().await.unwrap() {
            ServerEvent::Opened { id, .. } => history.push(id as i64),
            ServerEvent::Closed { id, .. } => history.push(-(id as i64)),
            _ => {}
        }
    }
    history
}

async fn the_eleventh_of_ten_waits_and_is_served_when_one_leaves(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(10).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let mut served: Vec<_> = (0..10).map(|_| Client::of(&running)).collect();
    for client in &mut served {
        assert_eq!(client.ask("hello"), "hello");
    }
    let mut eleventh = Client::of(&running);
    eleventh.send("me\n");
    assert_eq!(served[9].ask("still"), "still");
    hears_nothing(&mut eleventh);
    assert_eq!(running.handle().stats().accepted, 10);
    drop(served.remove(3));
    assert_eq!(eleventh.line(), "me");
    let history = history(&events, 12).await;
    assert_eq!(history[..10], Vec::from_iter(1..=10));
    assert!((-10..0).contains(&history[10]), "{history:?}");
    assert_eq!(history[11], 11);
    drop((served, eleventh));
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.peak), (11, 10));
}

async fn there_are_never_more_than_the_limit(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(3).bind().await.unwrap();
    let (served, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, highest) = (served.clone(), most.clone());
    let running = server.spawn(async move |conn: Connection| {
        highest.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        let _leaves = OnDrop(|| _ = now.fetch_sub(1, SeqCst));
        echo(conn).await
    });
    let visitors: Vec<_> = (0..8)
        .map(|_| {
            let address = running.handle().local_addrs()[0].clone();
            thread::spawn(move || {
                for _ in 0..20 {
                    let mut client = Client::connect(&address).unwrap();
                    assert_eq!(client.ask("hello"), "hello");
                }
            })
        })
        .collect();
    for visitor in visitors {
        visitor.join().unwrap();
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.peak), (160, 3));
    assert!(most.load(SeqCst) <= 3);
}

async fn a_permit_is_given_back_however_a_connection_ends(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_connections(1)
        .idle_timeout(Duration::from_millis(50))
        .bind()
        .await
        .unwrap();
    let (stuck, is_stuck) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        match &order {
            b"p" => panic!("as the test wants it"),
            b"e" => Err(io::Error::other("as the test wants it")),
            b"s" => {
                stuck.send(conn.id()).await.unwrap();
                pending().await
            }
            b"d" => {
                conn.detach()?;
                pending().await
            }
            _ => conn.read_exact(&mut order).await,
        }
    });
    let handle = running.handle();
    let mut clients = Vec::new();
    for order in ["p", "e", "s", "d", "t"] {
        // The one before gave its permit back, or this one would never be served.
        let mut client = Client::of(&running);
        client.send(order);
        if order == "s" {
            assert!(handle.abort_connection(is_stuck.recv().await.unwrap()));
        }
        is_cut(&mut client);
        clients.push(client);
    }
    let mut last = Client::of(&running);
    last.send("xy");
    is_cut(&mut last);
    // Nor has one of them kept its place among those that are being closed.
    eventually("nobody is left", || {
        let stats = handle.stats();
        (stats.active, stats.closing) == (0, 0)
    });
    handle.shutdown();
    let report = settled(running.await);
    assert_eq!(report.accepted, 6);
    // One that is closed and waits for its peer has no permit.
    assert!(report.peak <= 2, "{report}");
    assert_eq!((report.panicked, report.failed), (1, 2));
    assert_eq!((report.aborted, report.detached), (1, 1));
    assert_eq!((report.completed, report.limited.idle), (1, 1));
}

async fn a_permit_is_kept_as_long_as_anybody_has_the_connection(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(1).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let _first = Client::of(&running);
    // The handler has returned; the connection lives on in these hands.
    let conn = connections.recv().await.unwrap();
    let _second = Client::of(&running);
    let (reader, writer) = conn.split();
    drop(reader);
    assert_eq!(running.handle().stats().accepted, 1);
    drop(writer);
    drop(connections.recv().await.unwrap());
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_permit_is_given_back_once(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(1).bind().await.unwrap();
    let events = server.handle().events();
    let (running, connections) = handing_over(server);
    let handle = running.handle();
    let _first = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    // Both ask for its end, twice.
    handle.abort_connection(1);
    let _detached = conn.detach();
    handle.abort_connection(1);
    let second = Client::of(&running);
    let served = connections.recv().await.unwrap();
    let _third = Client::of(&running);
    // There would be two permits, had the first connection given back two.
    drop((second, served));
    drop(connections.recv().await.unwrap());
    assert_eq!(history(&events, 5).await, [1, -1, 2, -2, 3]);
    handle.shutdown();
    let report = settled(running.await);
    assert_eq!((report.accepted, report.peak), (3, 1));
}

async fn the_limit_can_be_raised(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(1).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut first = Client::of(&running);
    assert_eq!(first.ask("hello"), "hello");
    let mut second = Client::of(&running);
    second.send("me\n");
    hears_nothing(&mut second);
    running.handle().set_max_connections(2).unwrap();
    assert_eq!(second.line(), "me");
    let mut third = Client::of(&running);
    third.send("me\n");
    hears_nothing(&mut third);
    assert_eq!(running.handle().active(), 2);
    running.handle().set_max_connections(3).unwrap();
    assert_eq!(third.line(), "me");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 3);
}

async fn the_limit_can_be_lowered_and_those_inside_stay(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(3).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let mut clients: VecDeque<_> = (0..3).map(|_| Client::of(&running)).collect();
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    running.handle().set_max_connections(1).unwrap();
    let mut last = Client::of(&running);
    last.send("me\n");
    for client in &mut clients {
        assert_eq!(client.ask("still"), "still");
    }
    // Two connections end before there is a permit.
    for _ in 0..3 {
        hears_nothing(&mut last);
        clients.pop_front();
    }
    assert_eq!(last.line(), "me");
    let mut history = history(&events, 7).await;
    history[3..6].sort_unstable();
    assert_eq!(history, [1, 2, 3, -3, -2, -1, 4]);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 4);
}

async fn a_lower_limit_takes_hold_of_a_loop_that_waits_for_a_peer(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let mut served = Client::of(&running);
    assert_eq!(served.ask("hello"), "hello");
    running.handle().set_max_connections(1).unwrap();
    let mut outside = Client::of(&running);
    outside.send("me\n");
    assert_eq!(served.ask("still"), "still");
    hears_nothing(&mut outside);
    drop(served);
    assert_eq!(outside.line(), "me");
    assert_eq!(history(&events, 3).await, [1, -1, 2]);
    running.handle().shutdown();
    assert_eq!(settled(running.await).peak, 1);
}

async fn the_limit_can_be_lifted(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(1).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut clients = [(); 5].map(|()| Client::of(&running));
    running.handle().set_max_connections(None).unwrap();
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    let refused = running.handle().set_max_connections(0).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 5);
}

async fn a_shutdown_wins_over_a_wait_for_a_permit(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(1).bind().await.unwrap();
    let (told, is_told) = async_channel::bounded(2);
    let running = server.spawn(async move |mut conn: Connection| {
        let _busy = conn.busy();
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.read_exact(&mut [0]).await?;
        conn.write_all(b"done").await
    });
    let mut served = Client::of(&running);
    eventually("the first is served", || running.handle().active() == 1);
    let mut waiting = Client::of(&running);
    running.handle().shutdown();
    // The connection is asked to end although the accept loop was waiting for its permit.
    is_told.recv().await.unwrap();
    served.send("x");
    assert_eq!(served.rest(), "done");
    // And the other client has its turn: it was in the queue when the door was shut.
    waiting.send("x");
    assert_eq!(waiting.rest(), "done");
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (2, 0));
}

async fn listeners_share_one_limit(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .listen(loopback())
        .listen(unix_address())
        .max_connections(1)
        .bind()
        .await
        .unwrap();
    let addresses = server.local_addrs().to_vec();
    let running = server.spawn(echo);
    let mut clients: Vec<_> = addresses
        .iter()
        .map(|address| {
            let mut client = Client::connect(address).unwrap();
            client.send("me\n");
            client
        })
        .collect();
    // One of them is served; as each ends, another is accepted.
    while !clients.is_empty() {
        let mut served = None;
        eventually("one of them is served", || {
            served = clients.iter().position(has_something_to_read);
            served.is_some()
        });
        assert_eq!(clients.remove(served.unwrap()).line(), "me");
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.peak), (3, 1));
}

fn has_something_to_read(client: &Client) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut socket = [match client {
        Client::Tcp(socket) => PollFd::new(socket, PollFlags::IN),
        Client::Unix(socket) => PollFd::new(socket, PollFlags::IN),
    }];
    poll(&mut socket, Some(&Timespec::default())).unwrap() == 1
}

async fn a_busy_listener_does_not_starve_the_others(runtime: TestRuntime) {
    const QUEUED: usize = 100;
    let server = at_home(&runtime)
        .listen(loopback())
        .max_connections(1)
        .bind()
        .await
        .unwrap();
    let [busy, quiet] = [0, 1].map(|i| server.local_addrs()[i].clone());
    // All are queued before the first is taken.
    let crowd: Vec<_> = (0..QUEUED)
        .map(|_| Client::connect(&busy).unwrap())
        .collect();
    let mut alone = Client::connect(&quiet).unwrap();
    let (served, order) = async_channel::unbounded();
    let running = server.spawn(async move |conn: Connection| {
        let _whoever = served.try_send(conn.local_addr().unwrap());
    });
    assert_eq!(alone.rest(), "");
    let mut before = 0;
    while order.recv().await.unwrap() != quiet {
        before += 1;
    }
    // Not before it was its turn: of shards, each has a socket for either listener.
    assert!(
        before <= 3,
        "{before} of the other listener were served first"
    );
    drop(crowd);
    running.handle().shutdown();
    assert_eq!(settled(running.await).accepted, QUEUED as u64 + 1);
}

async fn a_quiet_listener_does_not_starve_the_others(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .listen(loopback())
        .max_connections(1)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let used = server.local_addrs()[1].clone();
    let running = server.spawn(echo);
    for id in 1..=5 {
        let mut client = Client::connect(&used).unwrap();
        opened(id, &events).await;
        assert_eq!(client.ask("hello"), "hello");
        drop(client);
        assert_eq!(cause_of(id, &events).await, Cause::Peer);
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 5);
}
