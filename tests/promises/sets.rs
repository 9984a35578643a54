//! Servers that stop as one: whatever asks one of them to stop asks all, and every door is shut
//! before any connection of one is told.

use std::time::Duration;

use futures_lite::AsyncReadExt;
use gracious::{Connection, Reason, ServerSet};

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, echo, refuses, tcp};
#[cfg(target_os = "linux")]
use crate::support::peer::{passes, resident};

crate::on_every_runtime!(
    what_stops_one_stops_all,
    servers_on_two_runtimes_stop_as_one,
    every_door_is_shut_before_anybody_is_told,
    the_door_of_a_server_that_nobody_serves_is_shut_as_well,
    the_longest_lame_duck_holds_for_all,
    a_set_made_of_a_stopped_server_stops,
    an_abort_of_one_leaves_the_others_to_their_drains,
);

#[cfg(target_os = "linux")]
crate::on_every_runtime_in_a_process!(
    sets_of_servers_that_are_made_again_cost_nothing: makes_sets_again, passes;
);

async fn what_stops_one_stops_all(runtime: TestRuntime) {
    let one = tcp(runtime.clone()).bind().await.unwrap();
    let other = tcp(runtime).bind().await.unwrap();
    let set = ServerSet::new([one.handle(), other.handle()]);
    let (one, other) = (one.spawn(echo), other.spawn(echo));
    let mut client = Client::of(&other);
    assert_eq!(client.ask("hello"), "hello");

    one.handle().shutdown_because("a new release");
    assert_eq!(client.rest(), "");
    let reports = set.closed().await;
    for report in &reports {
        assert_eq!(report.reason, Reason::Because("a new release".into()));
    }
    assert_eq!((reports[0].completed, reports[1].completed), (0, 1));
    drop((one, other));
}

async fn servers_on_two_runtimes_stop_as_one(runtime: TestRuntime) {
    let one = tcp(runtime.clone()).bind().await.unwrap();
    let other = tcp(runtime.elsewhere()).bind().await.unwrap();
    let set = ServerSet::new([one.handle(), other.handle()]);
    let (one, other) = (one.spawn(echo), other.spawn(echo));
    let mut client = Client::of(&one);
    assert_eq!(client.ask("hello"), "hello");
    set.shutdown();
    assert_eq!(client.rest(), "");
    one.await.unwrap();
    other.await.unwrap();
}

async fn every_door_is_shut_before_anybody_is_told(runtime: TestRuntime) {
    let (told, is_told) = async_channel::bounded(1);
    let talk = async move |mut conn: Connection| {
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        // Stays until its client leaves.
        let _busy = conn.busy();
        conn.read(&mut [0]).await.map(drop)
    };
    let one = tcp(runtime.clone()).bind().await.unwrap();
    let path = crate::support::client::unix_path();
    let other = tcp(runtime)
        .listen(format!("unix:{}", path.display()))
        .bind()
        .await
        .unwrap();
    let set = ServerSet::new([one.handle(), other.handle()]);
    let (one, other) = (one.spawn(talk), other.spawn(echo));
    let client = Client::of(&one);
    one.handle().shutdown();
    is_told.recv().await.unwrap();
    // A door that is shut takes nobody in; the path is gone.
    assert!(!path.exists());
    let closed = other.await.unwrap();
    assert_eq!(closed.accepted, 0);
    drop(client);
    assert_eq!(set.closed().await[0].completed, 1);
    drop(one);
}

/// Nothing drives the other one: its own task does not shut it.
async fn the_door_of_a_server_that_nobody_serves_is_shut_as_well(runtime: TestRuntime) {
    let (told, is_told) = async_channel::bounded(1);
    let talk = async move |mut conn: Connection| {
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.read(&mut [0]).await.map(drop)
    };
    let one = tcp(runtime.clone()).bind().await.unwrap();
    let other = tcp(runtime).bind().await.unwrap();
    let _set = ServerSet::new([one.handle(), other.handle()]);
    let one = one.spawn(talk);
    let client = Client::of(&one);
    one.handle().shutdown();
    is_told.recv().await.unwrap();
    assert!(refuses(&other.local_addrs()[0]));
    drop(client);
    assert_eq!(one.await.unwrap().completed, 1);
}

async fn the_longest_lame_duck_holds_for_all(runtime: TestRuntime) {
    let one = tcp(runtime.clone()).lame_duck(HOUR).bind().await.unwrap();
    let other = tcp(runtime).bind().await.unwrap();
    let set = ServerSet::new([one.handle(), other.handle()]);
    let (one, other) = (one.spawn(echo), other.spawn(echo));
    other.handle().shutdown();
    one.handle().shutdown_requested().await;
    // Neither door is shut yet.
    assert_eq!(Client::of(&one).ask("one"), "one");
    assert_eq!(Client::of(&other).ask("other"), "other");
    set.shutdown_within(Duration::from_secs(20));
    set.closed().await;
    assert!(refuses(&other.handle().local_addrs()[0]));
    drop((one, other));
}

async fn a_set_made_of_a_stopped_server_stops(runtime: TestRuntime) {
    let one = crate::support::server(runtime.clone()).listen("127.0.0.1:0");
    let other = crate::support::server(runtime).listen("127.0.0.1:0");
    let (one, other) = (one.bind().await.unwrap(), other.bind().await.unwrap());
    one.handle().shutdown_because("early");
    let set = ServerSet::new([one.handle(), other.handle()]);
    let (one, other) = (one.serve(echo).await, other.serve(echo).await);
    assert_eq!(one.unwrap().reason, Reason::Because("early".into()));
    assert_eq!(other.unwrap().reason, Reason::Because("early".into()));
    assert_eq!(set.closed().await.len(), 2);
}

async fn an_abort_of_one_leaves_the_others_to_their_drains(runtime: TestRuntime) {
    let stays = async |mut conn: Connection| {
        let _busy = conn.busy();
        conn.read(&mut [0]).await.map(drop)
    };
    let one = tcp(runtime.clone()).bind().await.unwrap();
    let other = tcp(runtime).bind().await.unwrap();
    let set = ServerSet::new([one.handle(), other.handle()]);
    let (one, other) = (one.spawn(stays), other.spawn(stays));
    let (first, second) = (Client::of(&one), Client::of(&other));
    crate::support::client::taken_in(&one.handle(), 1);
    crate::support::client::taken_in(&other.handle(), 1);
    one.handle().abort();
    assert_eq!(one.await.unwrap().aborted, 1);
    assert_eq!(other.handle().active(), 1);
    drop((first, second));
    assert_eq!(other.await.unwrap().completed, 1);
    drop(set);
}

#[cfg(target_os = "linux")]
async fn makes_sets_again(runtime: TestRuntime) {
    let one = tcp(runtime.clone()).bind().await.unwrap();
    let other = tcp(runtime).bind().await.unwrap();
    let make = |count: usize| {
        for _ in 0..count {
            drop(ServerSet::new([one.handle(), other.handle()]));
        }
    };
    make(1000);
    let before = resident();
    // A pointer each, in both servers, would be 3 MB.
    make(200_000);
    let grown = resident().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more");
    drop(one);
    assert_eq!(other.serve(echo).await.unwrap().reason, Reason::Dropped);
}
