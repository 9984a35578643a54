//! Promise 9. **Force comes second.** A second signal, or `abort`, ends the drain now; destructors
//! of dropped handlers have run before `serve` returns, stragglers' excepted; an abort shuts the
//! socket under halves that live elsewhere (`ConnectionAborted`).

use std::future::pending;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Connection, Reason, State};

use crate::support::TestRuntime;
use crate::support::client::{Client, echo, eventually, handing_over, refuses, waits, write_now};
use crate::support::peer::{Counted, OnDrop, at_home, hears_nothing, is_cut, settled};

crate::on_every_runtime!(
    an_abort_ends_a_drain_that_waits_for_a_handler,
    a_second_request_to_shut_down_is_no_abort,
    destructors_have_run_before_serve_returns,
    a_destructor_may_use_the_handle_and_the_connection,
    an_abort_shuts_the_socket_under_halves_in_another_task,
    an_abort_fails_what_a_half_does_later,
    a_write_that_waits_is_aborted,
    an_abort_before_serve_serves_nobody,
    an_abort_from_a_handler_drops_that_handler_too,
    many_aborts_from_many_threads_are_one,
    an_abort_ends_a_lame_ducks_time,
    an_abort_ends_a_close_that_lingers,
    an_abort_ends_those_who_wait_for_a_permit,
    what_was_completed_before_the_abort_counts_as_completed
);

async fn an_abort_ends_a_drain_that_waits_for_a_handler(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (told, is_told) = async_channel::bounded(1);
    let mut running = server.spawn(async move |conn: Connection| {
        let _busy = conn.busy();
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        pending::<()>().await;
    });
    let handle = running.handle();
    let mut client = Client::of(&running);
    handle.shutdown();
    is_told.recv().await.unwrap();
    assert_eq!(handle.state(), State::Draining);
    assert!(waits(&mut running).await);
    handle.abort();
    let report = settled(running.await);
    assert_eq!((report.accepted, report.aborted), (1, 1));
    assert_eq!(report.reason, Reason::Requested);
    assert_eq!(report.stragglers.len(), 1);
    assert!(report.stragglers[0].busy);
    assert_eq!(handle.state(), State::Closed);
    is_cut(&mut client);
}

async fn a_second_request_to_shut_down_is_no_abort(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    let busy = conn.busy();
    let handle = running.handle();
    handle.shutdown();
    conn.shutdown_requested().await;
    handle.shutdown();
    handle.shutdown_because("once more");
    conn.write_all(b"still here\n").await.unwrap();
    assert_eq!(handle.state(), State::Draining);
    drop((busy, conn));
    let report = settled(running.await);
    assert_eq!((report.completed, report.aborted), (1, 0));
    assert_eq!(client.rest(), "still here\n");
}

async fn destructors_have_run_before_serve_returns(runtime: TestRuntime) {
    const CLIENTS: usize = 20;
    let dropped = Arc::new(AtomicUsize::new(0));
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::unbounded();
    let counter = dropped.clone();
    let running = server.spawn(async move |_conn: Connection| {
        let _counted = Counted(counter);
        // One that takes its time is waited for, too.
        let _slow = OnDrop(|| thread::sleep(Duration::from_millis(5)));
        begun.send(()).await.unwrap();
        pending::<()>().await;
    });
    let clients: Vec<_> = (0..CLIENTS).map(|_| Client::of(&running)).collect();
    for _ in &clients {
        has_begun.recv().await.unwrap();
    }
    assert_eq!(dropped.load(SeqCst), 0);
    running.handle().abort();
    let report = settled(running.await);
    assert_eq!(dropped.load(SeqCst), CLIENTS);
    assert_eq!(report.aborted, CLIENTS as u64);
    assert_eq!(report.stragglers.len(), CLIENTS);
}

async fn a_destructor_may_use_the_handle_and_the_connection(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(1);
    let seen = Arc::new(AtomicUsize::new(0));
    let active = seen.clone();
    let running = server.spawn(async move |conn: Connection| {
        let handle = conn.handle();
        let _conn = conn;
        let _last_words = OnDrop(move || {
            active.store(handle.stats().active as usize, SeqCst);
            handle.shutdown();
            handle.abort();
            handle.abort_connections();
            drop(handle.events());
        });
        begun.send(()).await.unwrap();
        pending::<()>().await;
    });
    let _client = Client::of(&running);
    has_begun.recv().await.unwrap();
    running.handle().abort();
    assert_eq!(settled(running.await).aborted, 1);
    // It is in the account while its destructors run.
    assert_eq!(seen.load(SeqCst), 1);
}

async fn an_abort_shuts_the_socket_under_halves_in_another_task(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (failed, failure) = async_channel::bounded(2);
    let (begun, has_begun) = async_channel::bounded(2);
    let tasks = runtime.clone();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        let (fails, begins) = (failed.clone(), begun.clone());
        tasks.spawn(async move {
            begins.send(()).await.unwrap();
            let error = reader.read(&mut [0]).await.unwrap_err();
            fails.send(error.kind()).await.unwrap();
        });
        tasks.spawn(async move {
            begun.send(()).await.unwrap();
            // The client does not read, so sooner or later this waits.
            let error = loop {
                if let Err(error) = writer.write_all(&[0; 65536]).await {
                    break error;
                }
            };
            failed.send(error.kind()).await.unwrap();
        });
    });
    let mut client = Client::of(&running);
    has_begun.recv().await.unwrap();
    has_begun.recv().await.unwrap();
    running.handle().abort();
    assert_eq!(failure.recv().await.unwrap(), ErrorKind::ConnectionAborted);
    assert_eq!(failure.recv().await.unwrap(), ErrorKind::ConnectionAborted);
    assert_eq!(settled(running.await).aborted, 1);
    is_cut(&mut client);
}

async fn an_abort_fails_what_a_half_does_later(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    let (mut reader, mut writer) = conn.split();
    running.handle().abort();
    // The halves live on; the server does not wait for them.
    assert_eq!(settled(running.await).aborted, 1);
    is_cut(&mut client);
    let read = reader.read(&mut [0]).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let written = writer.write(b"too late").await;
    assert_eq!(written.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert!(reader.is_shutting_down());
    reader.shutdown_requested().await;
}

async fn a_write_that_waits_is_aborted(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| -> io::Result<()> {
        begun.send(()).await.unwrap();
        loop {
            conn.write_all(&[0; 65536]).await?;
        }
    });
    let mut client = Client::of(&running);
    has_begun.recv().await.unwrap();
    running.handle().shutdown();
    running.handle().abort();
    // Also where the handler met the end inside its write, and returned that error.
    assert_eq!(settled(running.await).aborted, 1);
    is_cut(&mut client);
}

async fn an_abort_before_serve_serves_nobody(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    let mut client = Client::to(&server);
    client.send("hello\n");
    let handle = server.handle();
    handle.abort();
    let report = settled(server.serve(echo).await);
    assert_eq!(report.completed, 0);
    assert_eq!(report.bytes_out, 0);
    is_cut(&mut client);
    assert!(refuses(&address));
}

async fn an_abort_from_a_handler_drops_that_handler_too(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    let running = server.spawn(async move |conn: Connection| {
        let _counted = Counted(counter);
        conn.handle().abort();
        pending::<()>().await;
    });
    let mut client = Client::of(&running);
    let report = settled(running.await);
    assert_eq!((report.accepted, report.aborted), (1, 1));
    assert_eq!(dropped.load(SeqCst), 1);
    is_cut(&mut client);
}

async fn many_aborts_from_many_threads_are_one(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::unbounded();
    let running = server.spawn(async move |_conn: Connection| {
        begun.send(()).await.unwrap();
        pending::<()>().await;
    });
    let _clients = [Client::of(&running), Client::of(&running)];
    has_begun.recv().await.unwrap();
    has_begun.recv().await.unwrap();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let handle = running.handle();
            thread::spawn(move || handle.abort())
        })
        .collect();
    let report = settled(running.await);
    assert_eq!((report.aborted, report.stragglers.len()), (2, 2));
    for thread in threads {
        thread.join().unwrap();
    }
}

async fn an_abort_ends_a_lame_ducks_time(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .lame_duck(Duration::from_secs(3600))
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    client.ask("hello");
    running.handle().shutdown();
    client.ask("still");
    running.handle().abort();
    assert_eq!(settled(running.await).aborted, 1);
    is_cut(&mut client);
}

async fn an_abort_ends_a_close_that_lingers(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .linger(None)
        .linger_total(None)
        .bind()
        .await
        .unwrap();
    let (running, connections) = handing_over(server);
    let handle = running.handle();
    let client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    // More than the client's kernel takes: its close waits for a client that does not read.
    while write_now(&mut conn, &[0; 65536]).await.is_some() {}
    drop(conn);
    handle.shutdown();
    handle.shutdown_requested().await;
    assert_eq!(handle.active(), 1);
    handle.abort();
    let report = settled(running.await);
    assert_eq!(report.accepted, 1);
    drop(client);
}

async fn an_abort_ends_those_who_wait_for_a_permit(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(1).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(1);
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |conn: Connection| {
        begun.send(()).await.unwrap();
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        pending::<()>().await;
    });
    let mut inside = Client::of(&running);
    has_begun.recv().await.unwrap();
    let mut waiting = Client::of(&running);
    hears_nothing(&mut waiting);
    running.handle().shutdown();
    // The queue was swept before this one was told.
    is_told.recv().await.unwrap();
    running.handle().abort();
    let report = settled(running.await);
    assert_eq!((report.aborted, report.rejected), (1, 1));
    is_cut(&mut inside);
    // It never was inside: its end is a clean one.
    assert_eq!(waiting.rest(), "");
}

async fn what_was_completed_before_the_abort_counts_as_completed(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut first = [0];
        conn.read_exact(&mut first).await?;
        if first == *b"s" {
            begun.send(()).await.unwrap();
            pending::<()>().await;
        }
        conn.write_all(&first).await
    });
    let mut done = Client::of(&running);
    done.send("d");
    assert_eq!(done.rest(), "d");
    let mut stuck = Client::of(&running);
    stuck.send("s");
    has_begun.recv().await.unwrap();
    // Its client sees the end a moment before it is counted.
    eventually("the first is counted", || running.handle().active() == 1);
    running.handle().abort();
    let report = settled(running.await);
    assert_eq!((report.completed, report.aborted), (1, 1));
    is_cut(&mut stuck);
}
