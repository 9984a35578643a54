//! Promise 8. **The deadline holds**: the drain of any number of stuck connections takes one
//! deadline, not one each. What cannot be polled (a handler that blocks its thread, and whatever
//! shares it) cannot be dropped: its socket is shut down from outside, whatever it does on it later
//! fails, it is a straggler and `aborted`, and `serve` returns, if it is not on that thread itself.

use std::future::pending;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use futures_lite::{AsyncBufReadExt, AsyncWriteExt};
use gracious::{Connection, IdleWhen, State, Waiting};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, assert_balance, echo, handing_over, on, read_in, refuses, tcp, transports, waits,
    write_now,
};

crate::on_every_runtime!(
    a_hundred_stuck_connections_take_one_deadline,
    half_a_message_and_then_silence_ends_at_the_deadline,
    a_client_that_does_not_read_ends_at_the_deadline,
    a_close_that_takes_its_time_ends_at_the_deadline,
    without_a_deadline_the_drain_takes_as_long_as_it_takes,
    a_deadline_of_zero_aborts_at_once,
    the_earliest_deadline_wins,
    a_deadline_that_comes_during_the_drain_counts_from_then,
    a_deadline_beyond_the_end_of_time_is_none,
    the_drain_is_over_when_the_last_connection_is,
);

crate::alone_on_every_runtime!(
    handlers_that_block_their_threads_do_not_hold_up_serve,
    a_handler_that_is_released_before_the_deadline_is_not_aborted,
);

const SOON: Duration = Duration::from_millis(200);

/// A busy machine may take seconds; a deadline that counts twice, or an hour, is noticed.
const NOT_LONG: Duration = Duration::from_secs(10);

/// Counts itself when it is dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

async fn a_hundred_stuck_connections_take_one_deadline(runtime: TestRuntime) {
    let server = tcp(runtime).deadline(SOON).bind().await.unwrap();
    let (inside, is_inside) = async_channel::unbounded();
    let dropped = Arc::<AtomicUsize>::default();
    let running = server.spawn({
        let dropped = dropped.clone();
        async move |_conn: Connection| {
            let _dropped = Dropped(dropped);
            inside.send(()).await.unwrap();
            pending::<()>().await;
        }
    });
    let mut clients: Vec<_> = (0..100).map(|_| Client::of(&running)).collect();
    for _ in &clients {
        is_inside.recv().await.unwrap();
    }
    let start = Instant::now();
    let report = running.shutdown().await.unwrap();
    assert!(start.elapsed() >= SOON && report.drain >= SOON, "{report}");
    assert!(start.elapsed() < NOT_LONG, "{report}");
    assert_eq!(dropped.load(SeqCst), 100);
    assert_eq!((report.accepted, report.aborted), (100, 100));
    assert_eq!(report.stragglers.len(), 100);
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
}

/// Two peers of this kind never return.
async fn half_a_message_and_then_silence_ends_at_the_deadline(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).deadline(SOON);
        let running = server.bind().await.unwrap().spawn(echo);
        let mut client = Client::of(&running);
        client.send("half a mess");
        read_in(&running.handle(), 11);
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.accepted, report.aborted), (1, 1));
        let straggler = &report.stragglers[0];
        assert!(straggler.busy);
        assert_eq!(straggler.waiting, Waiting::Read);
        assert!(report.drain >= SOON, "{report}");
        assert_eq!(client.rest(), "");
    }
}

async fn write_without_end(mut conn: Connection) -> io::Result<()> {
    let chunk = [b'.'; 64 * 1024];
    loop {
        conn.write_all(&chunk).await?;
    }
}

async fn a_client_that_does_not_read_ends_at_the_deadline(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).deadline(SOON);
        let running = server.bind().await.unwrap().spawn(write_without_end);
        let _client = Client::of(&running);
        wait_until_it_waits(&running.handle(), Waiting::Write);
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.accepted, report.aborted), (1, 1));
        assert_eq!(report.stragglers[0].waiting, Waiting::Write);
        assert!(report.stragglers[0].busy);
    }
}

/// Waits until the one connection there is waits for that.
#[track_caller]
fn wait_until_it_waits(handle: &gracious::Handle, waiting: Waiting) {
    crate::support::client::eventually("such a wait", || {
        let connections = handle.connections();
        connections.len() == 1 && connections[0].waiting == waiting
    });
}

async fn a_close_that_takes_its_time_ends_at_the_deadline(runtime: TestRuntime) {
    let server = tcp(runtime).linger(HOUR).linger_total(HOUR).deadline(SOON);
    let running = server
        .bind()
        .await
        .unwrap()
        .spawn(async |mut conn: Connection| {
            // As much as the kernel takes without a wait, and the handler is done.
            let chunk = [b'.'; 64 * 1024];
            while let Some(written) = write_now(&mut conn, &chunk).await {
                written?;
            }
            Ok::<_, io::Error>(())
        });
    let _client = Client::of(&running);
    wait_until_it_waits(&running.handle(), Waiting::Close);
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.accepted, report.aborted), (1, 1), "{report}");
    assert_eq!(report.stragglers[0].waiting, Waiting::Close);
}

async fn without_a_deadline_the_drain_takes_as_long_as_it_takes(runtime: TestRuntime) {
    let server = tcp(runtime.clone()).deadline(None).bind().await.unwrap();
    let (mut running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    let busy = conn.busy();
    running.handle().shutdown();
    conn.shutdown_requested().await;
    for _ in 0..3 {
        runtime.put_forward(HOUR);
        assert!(waits(&mut running).await);
        client.send("still here\n");
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        conn.write_all(line.as_bytes()).await.unwrap();
        assert_eq!(client.line(), "still here");
    }
    assert_eq!(running.handle().state(), State::Draining);
    drop((busy, conn));
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.completed), (1, 1));
    assert!(report.drain >= 3 * HOUR);
}

async fn a_deadline_of_zero_aborts_at_once(runtime: TestRuntime) {
    let server = tcp(runtime).deadline(Duration::ZERO).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    conn.idle_when(IdleWhen::Never);
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.accepted, report.aborted), (1, 1));
    assert_eq!(client.rest(), "");
    let error = conn.write_all(b"too late").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
}

async fn the_earliest_deadline_wins(runtime: TestRuntime) {
    // Of the server's own and those that were asked for, in any order.
    let cases: [(Duration, &[Duration]); 4] = [
        (SOON, &[]),
        (SOON, &[HOUR, 2 * HOUR]),
        (HOUR, &[SOON, HOUR]),
        (HOUR, &[HOUR, SOON, 2 * HOUR]),
    ];
    for (deadline, asked) in cases {
        let server = tcp(runtime.clone())
            .deadline(deadline)
            .bind()
            .await
            .unwrap();
        let (running, connections) = handing_over(server);
        let _client = Client::of(&running);
        let conn = connections.recv().await.unwrap();
        let handle = running.handle();
        let start = Instant::now();
        handle.shutdown();
        for span in asked {
            handle.shutdown_within(*span);
        }
        let report = running.await.unwrap();
        assert!(start.elapsed() >= SOON, "{report}");
        assert!(start.elapsed() < NOT_LONG, "{report}");
        assert_eq!((report.accepted, report.aborted), (1, 1));
        drop(conn);
    }
}

async fn a_deadline_that_comes_during_the_drain_counts_from_then(runtime: TestRuntime) {
    let (mut running, connections) = handing_over(tcp(runtime.clone()).bind().await.unwrap());
    let _client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    running.handle().shutdown();
    conn.shutdown_requested().await;
    runtime.put_forward(HOUR);
    assert!(waits(&mut running).await);
    let start = Instant::now();
    running.handle().shutdown_within(SOON);
    let report = running.await.unwrap();
    assert!(start.elapsed() >= SOON, "{report}");
    assert_eq!((report.accepted, report.aborted), (1, 1));
}

async fn a_deadline_beyond_the_end_of_time_is_none(runtime: TestRuntime) {
    const ENDLESS: Duration = Duration::MAX;
    for address in transports() {
        let server = on(&address, runtime.clone())
            .deadline(ENDLESS)
            .first_byte_grace(ENDLESS)
            .linger(ENDLESS)
            .linger_total(ENDLESS)
            .idle_timeout(ENDLESS)
            .first_byte_timeout(ENDLESS)
            .max_age(ENDLESS);
        let (mut running, connections) = handing_over(server.bind().await.unwrap());
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        running.handle().shutdown_within(ENDLESS);
        running
            .handle()
            .shutdown_within(ENDLESS - Duration::from_nanos(1));
        conn.shutdown_requested().await;
        assert!(waits(&mut running).await);
        client.send("hello\n");
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        conn.write_all(line.as_bytes()).await.unwrap();
        line.clear();
        assert_eq!(conn.read_line(&mut line).await.unwrap(), 0);
        drop(conn);
        assert_eq!(client.rest(), "hello\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

/// A peer of this kind looks once a second: twenty such stops would take it ten seconds at least.
async fn the_drain_is_over_when_the_last_connection_is(runtime: TestRuntime) {
    let start = Instant::now();
    for _ in 0..20 {
        let (running, connections) = handing_over(tcp(runtime.clone()).bind().await.unwrap());
        let client = Client::of(&running);
        let conn = connections.recv().await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        drop((conn, client));
        assert_eq!(running.await.unwrap().completed, 1);
    }
    assert!(start.elapsed() < NOT_LONG, "{:?}", start.elapsed());
}

/// What handlers wait for without leaving their threads.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn wait(&self) {
        let (open, changed) = &*self.0;
        drop(
            changed
                .wait_while(open.lock().unwrap(), |open| !*open)
                .unwrap(),
        );
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

async fn handlers_that_block_their_threads_do_not_hold_up_serve(runtime: TestRuntime) {
    // What is counted below nothing panics, in a task that nobody waits for.
    let panics = Arc::new(AtomicUsize::new(0));
    let (count, hook) = (panics.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        count.fetch_add(1, SeqCst);
        hook(info);
    }));
    let server = tcp(runtime.clone()).deadline(SOON).bind().await.unwrap();
    let gate = Gate::default();
    let (blocking, is_blocking) = async_channel::unbounded();
    let (outcome, outcomes) = async_channel::unbounded();
    // All are in the queue, and are taken in before the first handler has a thread.
    let mut clients: Vec<_> = (0..4).map(|_| Client::to(&server)).collect();
    let running = server.spawn({
        let gate = gate.clone();
        async move |mut conn: Connection| {
            blocking.send(conn.id()).await.unwrap();
            gate.wait();
            let written = conn.write_all(b"too late\n").await;
            outcome.send(written).await.unwrap();
        }
    });
    let handle = running.handle();
    let first = is_blocking.recv().await.unwrap();
    let report = running.shutdown().await.unwrap();

    assert_eq!((report.accepted, report.aborted), (4, 4), "{report}");
    assert_eq!(report.stragglers.len(), 4);
    let blocked = report.stragglers.iter().find(|it| it.id == first).unwrap();
    assert_eq!(blocked.waiting, Waiting::Blocked, "{report}");
    assert_balance(&report);
    assert_eq!(handle.state(), State::Closed);
    assert!(refuses(&handle.local_addrs()[0]));
    // The handlers are where they were, and their sockets shut.
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    assert!(outcomes.is_empty());

    gate.open();
    let written = outcomes.recv().await.unwrap();
    assert_eq!(
        written.unwrap_err().kind(),
        io::ErrorKind::ConnectionAborted
    );
    // They are not counted twice, also when the thread has left the handler and its task.
    let (ran, has_run) = async_channel::bounded(1);
    runtime.run(async move { ran.send(()).await });
    has_run.recv().await.unwrap();
    assert_eq!(handle.stats(), report.stats);
    assert_eq!(panics.load(SeqCst), 0);
    assert_eq!(handle.closed().await.to_string(), report.to_string());
}

async fn a_handler_that_is_released_before_the_deadline_is_not_aborted(runtime: TestRuntime) {
    let server = tcp(runtime).deadline(HOUR).bind().await.unwrap();
    let gate = Gate::default();
    let (blocking, is_blocking) = async_channel::unbounded();
    let mut clients: Vec<_> = (0..4).map(|_| Client::to(&server)).collect();
    let mut running = server.spawn({
        let gate = gate.clone();
        async move |mut conn: Connection| {
            blocking.send(()).await.unwrap();
            gate.wait();
            conn.write_all(b"in time\n").await
        }
    });
    is_blocking.recv().await.unwrap();
    running.handle().shutdown();
    assert!(waits(&mut running).await);
    gate.open();
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.completed), (4, 4), "{report}");
    for client in &mut clients {
        assert_eq!(client.rest(), "in time\n");
    }
}
