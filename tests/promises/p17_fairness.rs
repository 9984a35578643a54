//! Promise 17. **Nobody starves**: a connection that always has input, or room for output, gives the
//! others their turn.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use gracious::{Connection, Running};

use crate::support::TestRuntime;
use crate::support::client::{Client, echo, eventually, handing_over, tcp, transports};
use crate::support::flood::{Flood, ReadyPeers, write_when_asked};
use crate::support::peer::settled;

crate::alone_on_every_runtime!(
    clients_that_never_pause_leave_the_others_their_turn,
    who_writes_without_a_pause_leaves_the_others_their_turn,
    transports_that_are_always_ready_leave_the_others_their_turn,
    a_stop_is_heard_beside_clients_that_never_pause,
    whoever_is_busy_at_a_drain_is_served_beside_clients_that_never_pause
);

crate::on_every_runtime!(
    a_turn_is_32_operations_or_64_kib,
    a_turn_is_as_long_at_a_drain,
    what_is_in_the_buffer_is_read_without_a_pause,
    a_future_that_is_driven_inside_a_handler_goes_on_after_each_turn,
    one_task_may_copy_from_one_connection_to_another
);

/// More than any of the engines has threads, in a process of the test's own.
const FLOODS: usize = 4;

/// Clients that never pause, and are being served.
#[track_caller]
fn floods(running: &Running) -> Vec<Flood> {
    let floods = (0..FLOODS).map(|_| Flood::begin(Client::of(running)));
    floods.collect()
}

/// New clients are answered, and one that was there before is.
#[track_caller]
fn others_are_served(running: &Running, known: &mut Client) {
    for _ in 0..5 {
        assert_eq!(known.ask("still"), "still");
        assert_eq!(Client::of(running).ask("new"), "new");
    }
}

async fn clients_that_never_pause_leave_the_others_their_turn(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let mut known = Client::of(&running);
    assert_eq!(known.ask("hello"), "hello");
    let floods = floods(&running);
    others_are_served(&running, &mut known);
    floods.iter().for_each(Flood::goes_on);
    drop((floods, known));
    running.handle().shutdown();
    settled(running.await);
}

async fn who_writes_without_a_pause_leaves_the_others_their_turn(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(write_when_asked);
    let mut known = Client::of(&running);
    assert_eq!(known.ask("hello"), "hello");
    let floods: Vec<_> = (0..FLOODS)
        .map(|_| Flood::of_replies(Client::of(&running)))
        .collect();
    others_are_served(&running, &mut known);
    floods.iter().for_each(Flood::goes_on);
    drop((floods, known));
    running.handle().shutdown();
    settled(running.await);
}

async fn transports_that_are_always_ready_leave_the_others_their_turn(runtime: TestRuntime) {
    let server = tcp(runtime)
        .listener(ReadyPeers(FLOODS))
        .deadline(Duration::ZERO);
    let running = server.bind().await.unwrap().spawn(echo);
    let mut known = Client::of(&running);
    others_are_served(&running, &mut known);
    drop(known);
    let handle = running.handle();
    eventually("the others are gone", || handle.active() == FLOODS as u64);
    handle.shutdown();
    // They have input for ever: the deadline ends them.
    assert_eq!(settled(running.await).aborted, FLOODS as u64);
}

async fn a_stop_is_heard_beside_clients_that_never_pause(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let mut idle = Client::of(&running);
    assert_eq!(idle.ask("hello"), "hello");
    let floods = floods(&running);
    running.handle().shutdown();
    assert_eq!(idle.rest(), "");
    floods.iter().for_each(Flood::goes_on);
    drop(floods);
    settled(running.await);
}

async fn whoever_is_busy_at_a_drain_is_served_beside_clients_that_never_pause(
    runtime: TestRuntime,
) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    // One after the other: the accept loops of two shards may take two in any order.
    let mut idle = Client::of(&running);
    assert_eq!(idle.ask("hello"), "hello");
    let mut busy = Client::of(&running);
    assert_eq!(busy.ask("hello"), "hello");
    let floods = floods(&running);
    busy.send("half a ");
    let handle = running.handle();
    eventually("it is taken in", || {
        handle.connections()[1].bytes_in == 6 + 7
    });
    handle.shutdown();
    assert_eq!(idle.rest(), "");
    floods.iter().for_each(Flood::goes_on);
    assert_eq!(busy.ask("line"), "half a line");
    assert_eq!(busy.rest(), "");
    floods.iter().for_each(Flood::goes_on);
    drop(floods);
    settled(running.await);
}

/// Counts its wake-ups.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Polls an operation that is always ready until it gives up its turn: how often it was done, and
/// how many bytes that moved. It has woken its task when it does.
#[track_caller]
fn turn(mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<usize>>) -> (usize, usize) {
    let wakes = Arc::new(Wakes::default());
    let waker = wakes.clone().into();
    let mut cx = Context::from_waker(&waker);
    let (mut operations, mut bytes) = (0, 0);
    while let Poll::Ready(moved) = poll(&mut cx) {
        operations += 1;
        bytes += moved.unwrap();
        assert!(operations <= 1000, "no end of a turn");
        assert_eq!(wakes.0.load(SeqCst), 0);
    }
    assert_eq!(wakes.0.load(SeqCst), 1, "the task is woken once");
    (operations, bytes)
}

const KIB: usize = 1024;

async fn a_turn_is_32_operations_or_64_kib(runtime: TestRuntime) {
    let (running, connections) = always_ready(runtime).await;
    let (mut reader, mut writer) = connections.recv().await.unwrap().split();
    let mut reads = |length: usize| {
        let mut buf = vec![0; length];
        turn(|cx| Pin::new(&mut reader).poll_read(cx, &mut buf))
    };
    // Of the turn that began before.
    reads(1);
    assert_eq!(reads(1), (32, 32));
    assert_eq!(reads(2 * KIB), (32, 64 * KIB));
    assert_eq!(reads(16 * KIB), (4, 64 * KIB));
    assert_eq!(reads(KIB * KIB), (1, 64 * KIB));
    let mut writes = |length: usize| {
        let buf = vec![b'.'; length];
        turn(|cx| Pin::new(&mut writer).poll_write(cx, &buf))
    };
    assert_eq!(writes(1), (32, 32));
    assert_eq!(writes(KIB), (32, 32 * KIB));
    assert_eq!(writes(16 * KIB), (4, 64 * KIB));
    assert_eq!(writes(KIB * KIB), (1, 64 * KIB));
    let mut writes = |length: usize, count: usize| {
        let buf = vec![b'.'; length];
        let bufs = vec![IoSlice::new(&buf); count];
        turn(|cx| Pin::new(&mut writer).poll_write_vectored(cx, &bufs))
    };
    assert_eq!(writes(1, 10), (32, 320));
    assert_eq!(writes(KIB, 16), (4, 64 * KIB));
    assert_eq!(writes(KIB, 1000), (1, 64 * KIB));
    assert_eq!(writes(KIB * KIB, 3), (1, 64 * KIB));
    // Reads and writes are of one turn.
    let mut buf = [0];
    let (operations, _bytes) = turn(|cx| {
        let read = Pin::new(&mut reader).poll_read(cx, &mut buf)?;
        match read {
            Poll::Ready(_) => Pin::new(&mut writer).poll_write(cx, b"x"),
            Poll::Pending => Poll::Pending,
        }
    });
    assert_eq!(operations, 16);
    running.handle().shutdown();
    settled(running.await);
}

/// A server whose peers are always ready, and hands them to the test.
async fn always_ready(runtime: TestRuntime) -> (Running, Receiver<Connection>) {
    let server = crate::support::server(runtime).listener(ReadyPeers(2));
    handing_over(server.deadline(Duration::ZERO).bind().await.unwrap())
}

async fn a_turn_is_as_long_at_a_drain(runtime: TestRuntime) {
    let (running, connections) = always_ready(runtime).await;
    let mut conn = connections.recv().await.unwrap();
    let mut buf = [0; 1];
    // Something is unanswered, so the drain leaves the connection alone.
    conn.read_exact(&mut buf).await.unwrap();
    running.handle().close_connections();
    assert!(conn.is_shutting_down());
    let mut reads = || turn(|cx| Pin::new(&mut conn).poll_read(cx, &mut buf));
    reads();
    assert_eq!(reads(), (32, 32));
    assert_eq!(reads(), (32, 32));
    drop(conn);
    running.handle().shutdown();
    settled(running.await);
}

/// It costs the others nothing but what the handler computes.
async fn what_is_in_the_buffer_is_read_without_a_pause(runtime: TestRuntime) {
    let (running, connections) = always_ready(runtime).await;
    let mut conn = connections.recv().await.unwrap();
    let filled = conn.fill_buf().await.unwrap().len();
    assert!(filled >= 1000, "{filled}");
    poll_fn(|cx| {
        for _ in 0..1000 {
            let read = Pin::new(&mut conn).poll_read(cx, &mut [0]);
            assert!(matches!(read, Poll::Ready(Ok(1))), "{read:?}");
        }
        Poll::Ready(())
    })
    .await;
    drop(conn);
    running.handle().shutdown();
    settled(running.await);
}

/// Polled inside another task's turn, where nothing of the executor's comes between two polls.
async fn a_future_that_is_driven_inside_a_handler_goes_on_after_each_turn(runtime: TestRuntime) {
    const BYTES: usize = 1000;
    let [tcp, unix] = transports();
    let server = crate::support::server(runtime).listen(tcp).listen(unix);
    let server = server.deadline(None).bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let running = server.spawn(async move |mut conn: Connection| {
        async_io::block_on(async {
            let mut byte = [0; 1];
            for _ in 0..BYTES {
                conn.read_exact(&mut byte).await?;
            }
            for _ in 0..BYTES {
                conn.write_all(&byte).await?;
            }
            io::Result::Ok(())
        })
    });
    for address in &addresses {
        let mut client = Client::connect(address).unwrap();
        client.send(&".".repeat(BYTES));
        assert_eq!(client.rest(), ".".repeat(BYTES));
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

/// More than a turn, both ways at once, over two connections.
async fn one_task_may_copy_from_one_connection_to_another(runtime: TestRuntime) {
    const BYTES: usize = 300 * KIB;
    let server = tcp(runtime.clone()).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut clients = Vec::new();
    let mut halves = Vec::new();
    for _ in 0..2 {
        clients.push(Client::of(&running));
        halves.push(connections.recv().await.unwrap().split());
    }
    let [(first, to_first), (second, to_second)] = <[_; 2]>::try_from(halves).unwrap();
    runtime.spawn(async move {
        let there = pin!(futures_lite::io::copy(first, to_second));
        let back = pin!(futures_lite::io::copy(second, to_first));
        let (there, back) = futures_lite::future::zip(there, back).await;
        assert_eq!(
            (there.unwrap(), back.unwrap()),
            (BYTES as u64, BYTES as u64)
        );
    });
    let clients = clients.into_iter().map(|mut client| {
        std::thread::spawn(move || {
            let mut sends = client.twin();
            let sending = std::thread::spawn(move || {
                sends.send(&".".repeat(BYTES));
                sends.finish();
            });
            let received = client.rest().len();
            sending.join().unwrap();
            received
        })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.join().unwrap(), BYTES);
    }
    running.handle().shutdown();
    settled(running.await);
}
