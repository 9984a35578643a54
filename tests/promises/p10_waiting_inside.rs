//! Promise 10. **Waiting inside is safe.** `conn.handle()` knows its connection: `closed()` on it
//! waits for all but those who wait likewise, and its report counts them as `active`.

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use gracious::{Connection, Report, State};

use crate::support::TestRuntime;
use crate::support::client::{Client, assert_balance, waits};
use crate::support::peer::{at_home, settled};

crate::on_every_runtime!(
    a_handler_can_stop_the_server_and_wait_for_it,
    two_handlers_can_wait_at_once,
    a_handler_waits_for_those_who_do_not_wait,
    a_handler_waits_for_tracked_futures,
    a_handler_that_gives_up_waiting_is_waited_for_again,
    one_handler_can_wait_twice_at_once,
    a_handler_that_waits_can_be_aborted,
    a_wait_that_outlives_its_connection_ends_with_the_server
);

/// Sends what it got, as the test's last word on it.
fn tells(report: &Report) -> String {
    assert_balance(report);
    format!("{} active\n", report.active)
}

async fn a_handler_can_stop_the_server_and_wait_for_it(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let handle = conn.handle();
        handle.shutdown();
        let report = handle.closed().await;
        conn.write_all(tells(&report).as_bytes()).await
    });
    let mut client = Client::of(&running);
    assert_eq!(client.rest(), "1 active\n");
    let report = settled(running.await);
    assert_eq!((report.accepted, report.completed), (1, 1));
}

async fn two_handlers_can_wait_at_once(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(2);
    let (stop, stopped) = async_channel::bounded::<()>(1);
    let running = server.spawn(async move |mut conn: Connection| {
        begun.send(()).await.unwrap();
        // Both are inside before either waits, and neither ends before both have the report.
        assert!(stopped.recv().await.is_err());
        let report = conn.handle().closed().await;
        conn.write_all(tells(&report).as_bytes()).await?;
        conn.read(&mut [0]).await.map(drop)
    });
    let mut clients = [Client::of(&running), Client::of(&running)];
    has_begun.recv().await.unwrap();
    has_begun.recv().await.unwrap();
    running.handle().shutdown();
    stop.close();
    for client in &mut clients {
        assert_eq!(client.line(), "2 active");
    }
    drop(clients);
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_handler_waits_for_those_who_do_not_wait(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(2);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        begun.send(()).await.unwrap();
        if order == *b"w" {
            let handle = conn.handle();
            handle.shutdown();
            let report = handle.closed().await;
            let text = format!("{} completed, {}", report.completed, tells(&report));
            return conn.write_all(text.as_bytes()).await;
        }
        conn.read_exact(&mut order).await?;
        conn.write_all(b"done").await
    });
    let mut busy = Client::of(&running);
    busy.send("b");
    has_begun.recv().await.unwrap();
    let mut waiting = Client::of(&running);
    waiting.send("w");
    has_begun.recv().await.unwrap();
    running.handle().shutdown_requested().await;
    crate::support::peer::hears_nothing(&mut waiting);
    busy.send("!");
    assert_eq!(busy.rest(), "done");
    assert_eq!(waiting.rest(), "1 completed, 1 active\n");
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_handler_waits_for_tracked_futures(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (finish, finished) = async_channel::bounded::<()>(1);
    let work = server.handle().track(async move { finished.recv().await });
    let (waits_now, is_waiting) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let handle = conn.handle();
        handle.shutdown();
        let mut closed = Box::pin(handle.closed());
        assert!(waits(&mut closed).await);
        waits_now.send(()).await.unwrap();
        let report = closed.await;
        conn.write_all(tells(&report).as_bytes()).await
    });
    let mut client = Client::of(&running);
    is_waiting.recv().await.unwrap();
    crate::support::peer::hears_nothing(&mut client);
    finish.send(()).await.unwrap();
    assert!(work.await.is_some());
    assert_eq!(client.rest(), "1 active\n");
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_handler_that_gives_up_waiting_is_waited_for_again(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(2);
    let (gave_up, has_given_up) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        begun.send(()).await.unwrap();
        if order == *b"w" {
            let report = conn.handle().closed().await;
            return conn.write_all(tells(&report).as_bytes()).await;
        }
        assert!(waits(Box::pin(conn.handle().closed())).await);
        gave_up.send(()).await.unwrap();
        conn.read_exact(&mut order).await?;
        conn.write_all(b"done").await
    });
    let mut fickle = Client::of(&running);
    fickle.send("f");
    has_begun.recv().await.unwrap();
    has_given_up.recv().await.unwrap();
    let mut waiting = Client::of(&running);
    waiting.send("w");
    has_begun.recv().await.unwrap();
    running.handle().shutdown();
    // The one that waits would be told at once if the other still counted as waiting.
    fickle.send("!");
    assert_eq!(fickle.rest(), "done");
    assert_eq!(waiting.rest(), "1 active\n");
    assert_eq!(settled(running.await).completed, 2);
}

async fn one_handler_can_wait_twice_at_once(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let (reader, mut writer) = conn.split();
        let (one, other) = (reader.handle(), writer.handle());
        one.shutdown();
        let (one, other) = future::zip(one.closed(), other.closed()).await;
        assert_eq!(one.active, other.active);
        writer.write_all(tells(&one).as_bytes()).await
    });
    let mut client = Client::of(&running);
    assert_eq!(client.rest(), "1 active\n");
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_handler_that_waits_can_be_aborted(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(1);
    let running = server.spawn(async move |conn: Connection| {
        // Nobody asks for a stop, so this waits.
        let mut closed = Box::pin(conn.handle().closed());
        assert!(waits(&mut closed).await);
        begun.send(()).await.unwrap();
        closed.await;
    });
    let _client = Client::of(&running);
    has_begun.recv().await.unwrap();
    assert_eq!(running.handle().state(), State::Serving);
    running.handle().abort();
    let report = settled(running.await);
    assert_eq!(report.accepted, 1);
}

async fn a_wait_that_outlives_its_connection_ends_with_the_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (give, given) = async_channel::bounded(1);
    let running = server.spawn(async move |conn: Connection| {
        give.send(conn.handle()).await.unwrap();
    });
    let mut client = Client::of(&running);
    let handle = given.recv().await.unwrap();
    let mut closed = Box::pin(handle.closed());
    let _whether_it_is_still_there = waits(&mut closed).await;
    assert_eq!(client.rest(), "");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(closed.await.accepted, report.accepted);
}
