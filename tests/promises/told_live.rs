//! What can be seen of a server while it serves and while it drains.

use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gracious::{Connection, Credentials};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, echo, eventually, on, taken_in, tcp, transports, unix_address,
};

crate::on_every_runtime!(
    a_drain_tells_how_many_are_left,
    a_drain_tells_how_much_time_is_left,
    the_progress_of_a_closed_server_ends_with_nobody_left,
    a_paused_server_tells_how_many_are_queued,
    a_closed_door_has_no_listeners,
    a_unix_peer_is_known_by_its_credentials,
);

async fn a_drain_tells_how_many_are_left(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(async |mut conn: Connection| {
        let _busy = conn.busy();
        conn.read(&mut [0]).await.map(drop)
    });
    let mut clients = vec![Client::of(&running), Client::of(&running)];
    taken_in(&running.handle(), 2);
    let mut progress = running.handle().drain_progress();
    running.handle().shutdown();

    let first = progress.next().await.unwrap();
    assert_eq!((first.left, first.time), (2, None));
    let mut told = 2;
    while let Some(now) = progress.next().await {
        assert!(now.left <= told, "{} after {told}", now.left);
        if now.left == clients.len() as u64 {
            clients.pop();
        }
        told = now.left;
    }
    assert_eq!(told, 0);
    running.await.unwrap();
}

async fn a_drain_tells_how_much_time_is_left(runtime: TestRuntime) {
    let hour = Duration::from_secs(3600);
    let server = tcp(runtime).deadline(hour).bind().await.unwrap();
    let running = server.spawn(async |mut conn: Connection| {
        let _busy = conn.busy();
        conn.read(&mut [0]).await.map(drop)
    });
    let client = Client::of(&running);
    taken_in(&running.handle(), 1);
    let mut progress = running.handle().drain_progress();
    running.handle().shutdown();
    // The deadline runs from when the door is shut.
    let time = loop {
        if let Some(time) = progress.next().await.unwrap().time {
            break time;
        }
    };
    assert!(time <= hour && time > hour / 2, "{time:?}");
    running.handle().shutdown_within(hour / 4);
    assert!(progress.next().await.unwrap().time.unwrap() <= hour / 4);
    drop(client);
    running.await.unwrap();
}

async fn the_progress_of_a_closed_server_ends_with_nobody_left(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    running.shutdown().await.unwrap();
    let told: Vec<_> = handle.drain_progress().collect().await;
    assert_eq!(told.iter().map(|it| it.left).collect::<Vec<_>>(), [0]);
}

async fn a_paused_server_tells_how_many_are_queued(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    handle.pause();
    let mut clients: Vec<_> = (0..3).map(|_| Client::of(&running)).collect();
    let queued = || handle.listeners()[0].queued;
    if cfg!(target_os = "linux") {
        eventually("three in the queue", || queued() == Some(3));
    }
    handle.resume();
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    if cfg!(target_os = "linux") {
        assert_eq!(queued(), Some(0));
    }
    running.shutdown().await.unwrap();
}

async fn a_closed_door_has_no_listeners(runtime: TestRuntime) {
    let server = tcp(runtime).listen(unix_address()).bind().await.unwrap();
    let handle = server.handle();
    let listeners = handle.listeners();
    assert_eq!(listeners.len(), 2);
    assert_eq!(listeners[1].address, handle.local_addrs()[1]);
    server.spawn(echo).shutdown().await.unwrap();
    assert!(handle.listeners().is_empty());
}

async fn a_unix_peer_is_known_by_its_credentials(runtime: TestRuntime) {
    let whoami = async |mut conn: Connection| {
        let peer = conn.peer_credentials()?;
        let text = peer.map_or("nobody".into(), |Credentials { pid, uid, .. }| {
            format!("{pid} {uid}")
        });
        conn.write_all(text.as_bytes()).await
    };
    for address in transports() {
        let running = on(&address, runtime.clone())
            .bind()
            .await
            .unwrap()
            .spawn(whoami);
        let told = Client::of(&running).rest();
        match address.starts_with("unix:") && cfg!(target_os = "linux") {
            true => assert!(
                told.starts_with(&format!("{} ", std::process::id())),
                "{told}"
            ),
            false => assert_eq!(told, "nobody"),
        }
        running.shutdown().await.unwrap();
    }
}
