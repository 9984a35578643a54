//! Promise 5, where a handler is done before its client: nobody is closed who may be harmed by it.

use std::future::pending;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use async_channel::Receiver;
use async_io::Async;
use futures_lite::{AsyncBufReadExt, AsyncWriteExt};
use gracious::{Address, Connection, Listener, Waiting};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, answer_once, eventually, fill, handing_over, on, tcp, transports,
};

crate::on_every_runtime!(
    a_client_that_sends_behind_its_request_reads_the_reply,
    an_early_answer_does_not_fail_an_upload,
    a_reader_that_pauses_and_then_sends_gets_the_whole_reply,
    what_comes_after_a_drain_has_ended_a_connection_is_counted,
    a_client_that_was_slow_to_take_its_reply_keeps_a_permit,
    a_server_that_closes_first_is_not_throttled,
    a_transport_that_tells_nothing_is_given_a_linger,
);

/// Answers the first line, and then fails or returns.
async fn refuse(mut conn: Connection, fails: bool) -> io::Result<()> {
    let mut line = String::new();
    conn.read_line(&mut line).await?;
    conn.write_all(b"no\n").await?;
    if fails {
        return Err(io::Error::other("as the test wants it"));
    }
    Ok(())
}

/// What no buffer on the way takes whole: the client is still writing when the handler is done.
async fn a_client_that_sends_behind_its_request_reads_the_reply(runtime: TestRuntime) {
    for address in transports() {
        let bytes = if address.starts_with("unix:") {
            300_000
        } else {
            3_000_000
        };
        let request = format!("hello\n{}", "x".repeat(bytes));
        for fails in [false, true] {
            let server = on(&address, runtime.clone())
                .linger(None)
                .linger_total(None);
            let server = server.bind().await.unwrap();
            let running = server.spawn(move |conn| refuse(conn, fails));
            for _ in 0..5 {
                let mut client = Client::of(&running);
                let written = client.write_all(request.as_bytes());
                assert!(written.is_ok(), "{written:?} at {address}");
                assert_eq!(client.rest(), "no\n");
            }
            let report = running.shutdown().await.unwrap();
            assert_eq!((report.completed + report.failed, report.aborted), (5, 0));
        }
    }
}

/// Nothing of the body has come when the handler is done, so that nobody knows of it.
async fn an_early_answer_does_not_fail_an_upload(runtime: TestRuntime) {
    // Half of the shortest time-out of TCP's: what the server waits for at least.
    const PAUSE: Duration = Duration::from_millis(100);
    let mut uploads = 0;
    for round in 0..100 {
        let address = &transports()[round % 2];
        let server = on(address, runtime.clone()).linger(None).linger_total(None);
        let running = server.bind().await.unwrap().spawn(answer_once);
        let handle = running.handle();
        let mut client = Client::of(&running);
        let mut last = Instant::now();
        client.send("413\n");
        eventually("an answer", || handle.stats().bytes_out > 0);
        let mut paused = Duration::ZERO;
        for _ in 0..30 {
            paused = paused.max(last.elapsed());
            last = Instant::now();
            let written = client.write_all(&[b'x'; 20_000]);
            // This thread may not have had a processor.
            let is_prompt = paused < PAUSE && last.elapsed() < PAUSE;
            assert!(written.is_ok() || !is_prompt, "{written:?} at {address}");
            last = Instant::now();
        }
        if paused < PAUSE {
            assert_eq!(client.rest(), "413\n");
            uploads += 1;
        }
        drop(client);
        running.shutdown().await.unwrap();
        if uploads == 10 {
            return;
        }
    }
    panic!("this machine is too busy for an upload without pauses");
}

/// As long as something is on its way to the peer nobody may close, however long that takes.
async fn a_reader_that_pauses_and_then_sends_gets_the_whole_reply(runtime: TestRuntime) {
    const LINGER: Duration = Duration::from_millis(50);
    for address in transports() {
        let server = on(&address, runtime.clone()).linger(LINGER);
        let server = server.linger_total(None).bind().await.unwrap();
        let (running, connections) = handing_over(server);
        let handle = running.handle();
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        let written = fill(&mut conn).await;
        drop(conn);
        eventually("a wait for the client", || {
            handle.connections()[0].waiting == Waiting::Close
        });
        // Several lingers, for one of which nothing moves.
        thread::sleep(LINGER * 5);
        client.send("go on\n");
        assert_eq!(client.rest().len(), written);
        drop(client);
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.completed, report.lingered_out), (1, 0));
    }
}

async fn what_comes_after_a_drain_has_ended_a_connection_is_counted(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).first_byte_grace(None);
        let (running, connections) = handing_over(server.bind().await.unwrap());
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        running.handle().shutdown();
        assert_eq!(conn.fill_buf().await.unwrap(), b"");
        client.send("too late\n");
        drop(conn);
        assert_eq!(client.rest(), "");
        drop(client);
        let report = running.await.unwrap();
        assert_eq!((report.completed, report.unserved_input), (1, 1));
    }
}

/// A reply that the kernels still hold when an acknowledgment would have come counts for the limit.
async fn a_client_that_was_slow_to_take_its_reply_keeps_a_permit(runtime: TestRuntime) {
    let server = tcp(runtime).linger(None).linger_total(None);
    let server = server.max_connections(1).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let handle = running.handle();
    let mut slow = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    let written = fill(&mut conn).await;
    drop(conn);
    // Until then nobody knows whether it is slow, and another is served.
    let second = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    eventually("a permit that is taken back", || {
        let stats = handle.stats();
        (stats.active, stats.closing) == (2, 0)
    });
    drop((second, conn));
    eventually("an end", || handle.stats().completed == 1);
    let third = Client::of(&running);
    assert!(connections.is_empty());
    assert_eq!(handle.stats().accepted, 2);
    assert_eq!(slow.rest().len(), written);
    drop(slow);
    drop(connections.recv().await.unwrap());
    drop(third);
    assert_eq!(running.shutdown().await.unwrap().completed, 3);
}

/// A listener whose peers have everything at once, and may send something for an hour.
struct Far(Receiver<UnixStream>);

impl Listener for Far {
    type Io = Async<UnixStream>;

    async fn accept(&mut self) -> io::Result<(Self::Io, Address)> {
        match self.0.recv().await {
            Ok(peer) => Ok((Async::new(peer)?, Address::Custom("far".into()))),
            Err(_) => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("far".into()))
    }

    fn unacknowledged(_: &Self::Io) -> Option<usize> {
        Some(0)
    }

    fn quiet(_: &Self::Io) -> Option<Duration> {
        Some(HOUR)
    }

    fn shut(&mut self) {
        self.0.close();
    }
}

/// Connections that only wait for their clients' ends leave their permits to others: as many as the
/// limit allows once more.
async fn a_server_that_closes_first_is_not_throttled(runtime: TestRuntime) {
    let (come, peers) = async_channel::unbounded();
    let server = crate::support::server(runtime).listener(Far(peers));
    let server = server.max_connections(1).linger_total(None).deadline(None);
    let running = server.bind().await.unwrap().spawn(answer_once);
    let handle = running.handle();
    let enter = || {
        let (client, peer) = UnixStream::pair().unwrap();
        come.try_send(peer).unwrap();
        let mut client = Client::Unix(client);
        client.send("hello\n");
        client
    };
    let (mut first, mut second) = (enter(), enter());
    // Such a socket's end is sent when it is dropped.
    assert_eq!(
        (first.line(), second.line()),
        ("hello".into(), "hello".into())
    );
    eventually("two that are being closed", || {
        let left = handle.connections();
        left.iter()
            .filter(|it| it.waiting == Waiting::Close)
            .count()
            == 2
    });
    assert_eq!(handle.stats().closing, 1);
    let mut third = enter();

    assert_eq!(handle.stats().accepted, 2);
    // One of both has given its permit away; the other keeps it until it is gone.
    drop((first, second));
    assert_eq!(third.line(), "hello");
    drop(third);
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, report.closing), (3, 0));
}

/// As [`Far`], without a word of what its peers have.
struct Mute(Receiver<UnixStream>);

impl Listener for Mute {
    type Io = Async<UnixStream>;

    async fn accept(&mut self) -> io::Result<(Self::Io, Address)> {
        match self.0.recv().await {
            Ok(peer) => Ok((Async::new(peer)?, Address::Custom("mute".into()))),
            Err(_) => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("mute".into()))
    }

    fn shut(&mut self) {
        self.0.close();
    }
}

async fn a_transport_that_tells_nothing_is_given_a_linger(runtime: TestRuntime) {
    const LINGER: Duration = Duration::from_millis(100);
    let (come, peers) = async_channel::unbounded();
    let server = crate::support::server(runtime).listener(Mute(peers));
    let server = server.linger(LINGER).linger_total(None).deadline(None);
    let running = server.bind().await.unwrap().spawn(answer_once);
    let (client, peer) = UnixStream::pair().unwrap();
    come.try_send(peer).unwrap();
    let mut client = Client::Unix(client);
    let start = Instant::now();
    client.send("hello\n");
    assert_eq!(client.rest(), "hello\n");
    // It never hangs up.
    let report = running.shutdown().await.unwrap();
    assert!(start.elapsed() >= LINGER);
    assert_eq!((report.completed, report.lingered_out), (1, 0));
}
