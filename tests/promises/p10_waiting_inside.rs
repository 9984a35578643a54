//! Promise 10. **Waiting inside is safe.** `conn.handle()` knows its connection: `closed()` on it
//! waits for all but those who wait likewise, and its report counts them as `active`. A tracked future
//! that waits for the end of its own server (`closed`, `events`, `drain_progress`) holds it up no more
//! than a handler does.

use std::future::Future;
use std::sync::mpsc;

use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt, future};
use gracious::{Connection, Report, ServerEvent, State};

use crate::support::client::{
    Client, assert_balance, echo, eventually, saying_when_it_waits, waits,
};
use crate::support::peer::{at_home, settled};
use crate::support::{DEADLINE, TestRuntime};

crate::on_every_runtime!(
    a_handler_can_stop_the_server_and_wait_for_it,
    two_handlers_can_wait_at_once,
    a_handler_waits_for_those_who_do_not_wait,
    a_handler_waits_for_tracked_futures,
    a_handler_that_gives_up_waiting_is_waited_for_again,
    one_handler_can_wait_twice_at_once,
    a_handler_that_waits_can_be_aborted,
    a_wait_that_outlives_its_connection_ends_with_the_server,
    tracked_work_can_wait_for_its_server,
    tracked_work_can_read_events_to_their_end,
    tracked_work_that_subscribes_itself_can_too,
    tracked_work_can_watch_the_drain_to_its_end,
    all_kinds_of_waits_can_wait_at_once,
    work_inside_work_can_wait_for_its_server,
    the_work_of_serve_until_can_wait_for_its_server,
    waiting_work_is_told_after_work_that_does_not_wait,
    events_go_on_while_other_work_is_waited_for,
    work_that_waits_for_another_server_is_waited_for
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

async fn tracked_work_can_wait_for_its_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (tell, told) = async_channel::bounded(1);
    let closed = handle.closed();
    runtime.run(handle.track(async move { tell.send(closed.await).await }));
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.completed, report.dropped), (1, 0));
    let report = told.recv().await.unwrap();
    assert_balance(&report);
    // It is not waited for, and so it is there still.
    assert_eq!((report.completed, report.active, report.tracked), (1, 0, 1));
}

/// Reads events to their end.
async fn to_their_end(events: async_channel::Receiver<ServerEvent>) -> Vec<ServerEvent> {
    let mut told = Vec::new();
    while let Ok(event) = events.recv().await {
        told.push(event);
    }
    told
}

/// Runs work until it waits for the first time. Work that reads a channel it did not ask for is known
/// by the event that wakes it, so it has to wait when there is one.
fn run_until_it_waits(runtime: &TestRuntime, work: impl Future + Send + 'static) {
    let (say, said) = mpsc::channel();
    runtime.run(saying_when_it_waits(Box::pin(work), say));
    said.recv_timeout(DEADLINE).unwrap();
}

/// What a reader of a server with one connection is told.
fn tells_all(told: &[ServerEvent]) {
    let ended = told
        .iter()
        .filter(|it| matches!(it, ServerEvent::Closed { .. }));
    assert_eq!(ended.count(), 1, "{told:?}");
    let draining = ServerEvent::State(State::Draining);
    assert!(told.contains(&draining), "{told:?}");
    assert_eq!(told.last(), Some(&ServerEvent::State(State::Closed)));
}

async fn tracked_work_can_read_events_to_their_end(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    // Subscribed outside, so that nothing but its being woken tells who reads them.
    let (outside, inside) = (handle.events(), handle.events());
    let (tell, told) = async_channel::bounded(1);
    let work = handle.track(async move { tell.send(to_their_end(inside).await).await });
    run_until_it_waits(&runtime, work);
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).dropped, 0);
    let told = told.recv().await.unwrap();
    tells_all(&told);
    assert_eq!(told, to_their_end(outside).await);
}

async fn tracked_work_that_subscribes_itself_can_too(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (tell, told) = async_channel::bounded(1);
    let own = handle.clone();
    let work = handle.track(async move {
        let events = own.events();
        tell.send(()).await.unwrap();
        // It never waits for one before the last.
        own.shutdown_requested().await;
        while own.active() > 0 {
            future::yield_now().await;
        }
        tell.send(()).await.unwrap();
        tells_all(&to_their_end(events).await);
        tell.send(()).await.unwrap();
    });
    runtime.run(work);
    told.recv().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    told.recv().await.unwrap();
    assert_eq!(settled(running.await).dropped, 0);
    told.recv().await.unwrap();
}

async fn tracked_work_can_watch_the_drain_to_its_end(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (tell, told) = async_channel::bounded(1);
    let mut progress = handle.drain_progress();
    let work = handle.track(async move {
        let mut left = Vec::new();
        while let Some(now) = progress.next().await {
            left.push(now.left);
        }
        tell.send(left).await
    });
    runtime.run(work);
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).dropped, 0);
    // The work itself is left.
    assert_eq!(told.recv().await.unwrap().last(), Some(&1));
}

async fn all_kinds_of_waits_can_wait_at_once(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    for _ in 0..3 {
        let closed = handle.track(handle.closed());
        runtime.run(closed);
        let events = handle.track(to_their_end(handle.events()));
        run_until_it_waits(&runtime, events);
        let mut progress = handle.drain_progress();
        let progress = handle.track(async move { while progress.next().await.is_some() {} });
        runtime.run(progress);
    }
    let running = server.spawn(async move |mut conn: Connection| {
        let handle = conn.handle();
        // A handler that waits, in work of its own.
        let report = handle.track(handle.closed()).await;
        conn.write_all(tells(&report.unwrap()).as_bytes()).await
    });
    let mut client = Client::of(&running);
    eventually("it is inside", || handle.stats().tracked == 10);
    handle.shutdown();
    assert_eq!(client.rest(), "1 active\n");
    assert_eq!(settled(running.await).dropped, 0);
}

async fn work_inside_work_can_wait_for_its_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let inner = handle.track_as("inner", handle.closed());
    let outer = handle.track_as("outer", async move { inner.await.unwrap() });
    let (tell, told) = async_channel::bounded(1);
    runtime.spawn(async move { tell.send(outer.await).await.unwrap() });
    let running = server.spawn(echo);
    handle.shutdown();
    assert_eq!(settled(running.await).dropped, 0);
    assert_eq!(told.recv().await.unwrap().unwrap().tracked, 2);
}

async fn the_work_of_serve_until_can_wait_for_its_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let work = {
        let handle = handle.clone();
        async move {
            handle.shutdown_because("enough");
            handle.closed().await
        }
    };
    let (told, report) = server.serve_until(echo, work).await.unwrap();
    assert_eq!(told.unwrap().tracked, 1);
    assert!(report.is_clean(), "{report}");
}

async fn waiting_work_is_told_after_work_that_does_not_wait(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (finish, finished) = async_channel::bounded::<()>(1);
    let (tell, told) = async_channel::bounded(1);
    let flush = handle.track_as("flush", async move { finished.recv().await.unwrap() });
    runtime.run(flush);
    let waiting = handle.track(handle.closed());
    runtime.spawn(async move { tell.send(waiting.await.unwrap()).await.unwrap() });
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    handle.shutdown();
    assert_eq!(client.rest(), "");
    eventually("both are left", || handle.active() == 0);
    assert!(told.is_empty());
    finish.send(()).await.unwrap();
    let report = told.recv().await.unwrap();
    assert_eq!(report.tracked, 1, "{report}");
    // What it was told names what was waited for, as the report of all does.
    for report in [report, settled(running.await)] {
        assert_eq!(report.tracked_work[0].name, "flush", "{report}");
    }
}

async fn events_go_on_while_other_work_is_waited_for(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (finish, finished) = async_channel::bounded::<()>(1);
    let (tell, told) = async_channel::bounded(1);
    let flush = handle.track_as("flush", async move { finished.recv().await.unwrap() });
    runtime.run(flush);
    let reading = handle.track(to_their_end(handle.events()));
    let outside = handle.events();
    run_until_it_waits(&runtime, async move {
        tell.send(reading.await.unwrap()).await.unwrap();
    });
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    handle.shutdown();
    assert_eq!(client.rest(), "");
    eventually("both are left", || handle.active() == 0);
    assert!(told.is_empty());
    finish.send(()).await.unwrap();
    tells_all(&told.recv().await.unwrap());
    settled(running.await);
    tells_all(&to_their_end(outside).await);
}

async fn work_that_waits_for_another_server_is_waited_for(runtime: TestRuntime) {
    let one = at_home(&runtime).bind().await.unwrap();
    let other = at_home(&runtime).bind().await.unwrap();
    let (one_handle, other_handle) = (one.handle(), other.handle());
    let work = one_handle.track(other_handle.closed());
    runtime.run(work);
    let (mut one, other) = (one.spawn(echo), other.spawn(echo));
    let mut client = Client::of(&one);
    assert_eq!(client.ask("hello"), "hello");
    one_handle.shutdown();
    assert_eq!(client.rest(), "");
    eventually("the work is left", || one_handle.active() == 0);
    assert!(waits(&mut one).await);
    other_handle.shutdown();
    settled(other.await);
    assert_eq!(settled(one.await).tracked_work.len(), 1);
}
