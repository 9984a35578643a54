//! Listeners and connections of the user's own: a transport in memory is served as a socket is, and
//! a listener that fails as it is told shows what becomes of each failure (promise 12).

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::hint;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use async_channel::{Receiver, Sender};
use futures_lite::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use gracious::{Address, Builder, Connection, EndedBy, Handle, Listener, Reason, State};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, echo, eventually, refuses, rounds, taken_in, unix_address, waits,
};
use crate::support::peer::{ask_for_everything, at_home, is_cut, logged, on_log, passes, settled};

crate::on_every_runtime!(
    a_transport_in_memory_is_served_as_a_socket_is,
    its_idle_connections_end_at_a_drain,
    its_busy_connections_finish,
    its_end_is_waited_for,
    who_is_queued_at_a_stop_is_served,
    who_came_to_a_waiting_accept_is_not_lost_at_a_stop,
    it_goes_together_with_sockets,
    an_abort_drops_the_transport,
    an_end_is_counted_when_the_transport_is_dropped,
    its_connections_cannot_be_detached,
    an_abort_beside_a_detach_that_fails_cuts_the_connection,
    a_row_of_transient_errors_ends_nothing,
    errors_without_a_number_are_judged_by_their_kind,
    a_listener_that_always_fails_does_not_starve_the_others,
    a_shortage_is_over_when_a_connection_ends,
    a_shortage_is_over_at_a_shutdown,
    a_dead_listener_stops_the_server_with_its_error,
    a_dead_listener_aborts_no_connection,
    a_dead_listener_at_a_stop_changes_nothing,
    a_listener_that_panics_stops_the_server,
    a_listener_without_an_address_cannot_be_bound,
    a_listener_may_ask_its_server_wherever_it_is_called,
    a_listener_that_blocks_keeps_nobody_else_waiting
);

crate::on_every_runtime_in_a_process!(
    a_logger_may_ask_the_server_that_logs: a_logger_that_asks, passes;
);

/// One end of a connection in memory.
struct Pipe {
    input: Arc<Mutex<Half>>,
    output: Arc<Mutex<Half>>,
    /// Its end takes a while.
    closing: bool,
}

#[derive(Default)]
struct Half {
    bytes: VecDeque<u8>,
    ended: bool,
    reader: Option<Waker>,
}

impl Half {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

fn pipe() -> (Pipe, Pipe) {
    let (there, back) = (Arc::default(), Arc::default());
    let end = |input: &Arc<_>, output: &Arc<_>| Pipe {
        input: Arc::clone(input),
        output: Arc::clone(output),
        closing: false,
    };
    (end(&there, &back), end(&back, &there))
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut half = self.input.lock().unwrap();
        if half.bytes.is_empty() && !half.ended {
            half.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(io::Read::read(&mut half.bytes, buf))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut half = self.output.lock().unwrap();
        if half.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        half.bytes.extend(buf);
        half.wake();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut half = self.output.lock().unwrap();
        half.ended = true;
        half.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for half in [&self.input, &self.output] {
            let mut half = half.lock().unwrap();
            half.ended = true;
            half.wake();
        }
    }
}

/// What a listener in memory is told to say.
enum Accept {
    Peer(Pipe),
    Fail(io::Error),
    Panic,
}

struct Memory {
    queue: Receiver<Accept>,
    is_named: bool,
}

impl Listener for Memory {
    type Io = Pipe;

    async fn accept(&mut self) -> io::Result<(Pipe, Address)> {
        match self.queue.recv().await {
            Ok(Accept::Peer(pipe)) => Ok((pipe, Address::Custom("a friend".into()))),
            Ok(Accept::Fail(error)) => Err(error),
            Ok(Accept::Panic) => panic!("as the test wants it"),
            Err(_) => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        if self.is_named {
            Ok(Address::Custom("memory".into()))
        } else {
            Err(io::Error::other("it has no name"))
        }
    }

    fn unacknowledged(_: &Self::Io) -> Option<usize> {
        // What was written is in the peer's hands.
        Some(0)
    }

    fn quiet(_: &Self::Io) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn shut(&mut self) {
        self.queue.close();
    }
}

/// Where peers come from.
#[derive(Clone)]
struct Door(Sender<Accept>);

impl Door {
    fn enter(&self) -> Pipe {
        let (client, server) = pipe();
        self.say(Accept::Peer(server));
        client
    }

    fn fail(&self, code: i32) {
        self.say(Accept::Fail(io::Error::from_raw_os_error(code)));
    }

    fn say(&self, accept: Accept) {
        assert!(self.0.try_send(accept).is_ok(), "the door is shut");
    }
}

fn memory() -> (Door, Memory) {
    let (door, queue) = async_channel::unbounded();
    let is_named = true;
    (Door(door), Memory { queue, is_named })
}

fn in_memory(runtime: &TestRuntime) -> (Door, Builder<TestRuntime>) {
    let (door, listener) = memory();
    let builder = crate::support::server(runtime.clone());
    (door, builder.listener(listener).deadline(HOUR))
}

async fn ask(pipe: &mut Pipe, line: &str) {
    let text = format!("{line}\n");
    pipe.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; text.len()];
    pipe.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, text.as_bytes());
}

async fn rest(pipe: &mut Pipe) -> String {
    let mut rest = String::new();
    pipe.read_to_string(&mut rest).await.unwrap();
    rest
}

async fn a_transport_in_memory_is_served_as_a_socket_is(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    assert_eq!(server.to_string(), "bound on custom:memory");
    let running = server.spawn(async move |conn: Connection| {
        assert_eq!(conn.peer_addr(), Address::Custom("a friend".into()));
        assert_eq!(conn.local_addr()?, Address::Custom("memory".into()));
        echo(conn).await
    });
    let mut pipes = [(); 3].map(|()| door.enter());
    for pipe in &mut pipes {
        ask(pipe, "hello").await;
        ask(pipe, "again").await;
        pipe.close().await.unwrap();
        assert_eq!(rest(pipe).await, "");
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(
        (report.completed, report.bytes_in, report.bytes_out),
        (3, 36, 36)
    );
}

async fn its_idle_connections_end_at_a_drain(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            conn.write_all(line.as_bytes()).await?;
            line.clear();
        }
        assert_eq!(conn.ended_by(), Some(EndedBy::Drain));
        io::Result::Ok(())
    });
    let mut pipes = [(); 3].map(|()| door.enter());
    for pipe in &mut pipes {
        ask(pipe, "hello").await;
    }
    // Nothing arrives, and the reads that wait end all the same.
    running.handle().shutdown();
    for pipe in &mut pipes {
        assert_eq!(rest(pipe).await, "");
    }
    assert_eq!(settled(running.await).completed, 3);
}

async fn its_busy_connections_finish(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        conn.handle().shutdown();
        conn.shutdown_requested().await;
        conn.write_all(line.as_bytes()).await
    });
    let mut pipe = door.enter();
    pipe.write_all(b"hello\n").await.unwrap();
    assert_eq!(rest(&mut pipe).await, "hello\n");
    assert_eq!(settled(running.await).completed, 1);
}

async fn its_end_is_waited_for(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        writer.write_all(b"the end\n").await?;
        drop(writer);
        // Our end is sent while this half still reads.
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await?;
        assert_eq!(answer, "heard");
        io::Result::Ok(())
    });
    let mut pipe = door.enter();
    assert_eq!(rest(&mut pipe).await, "the end\n");
    pipe.write_all(b"heard").await.unwrap();
    pipe.close().await.unwrap();
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn who_is_queued_at_a_stop_is_served(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let mut pipes = [(); 5].map(|()| door.enter());
    for pipe in &mut pipes {
        pipe.write_all(b"hello\n").await.unwrap();
    }
    server.handle().shutdown();
    let report = settled(server.serve(echo).await);
    assert_eq!((report.accepted, report.completed), (5, 5));
    for pipe in &mut pipes {
        assert_eq!(rest(pipe).await, "hello\n");
    }
    let (_, late) = pipe();
    assert!(door.0.try_send(Accept::Peer(late)).is_err());
}

async fn who_came_to_a_waiting_accept_is_not_lost_at_a_stop(runtime: TestRuntime) {
    for _ in 0..50 {
        let (door, builder) = in_memory(&runtime);
        let running = builder.bind().await.unwrap().spawn(echo);
        let mut first = door.enter();
        ask(&mut first, "hello").await;
        // The accept waits by now, or does so soon.
        let mut second = door.enter();
        running.handle().shutdown();
        second.write_all(b"hello\n").await.unwrap();
        assert_eq!(rest(&mut second).await, "hello\n");
        let report = settled(running.await);
        assert_eq!((report.accepted, report.completed), (2, 2));
    }
}

async fn it_goes_together_with_sockets(runtime: TestRuntime) {
    let (door, listener) = memory();
    let server = at_home(&runtime).listener(listener).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    let mut pipe = door.enter();
    ask(&mut pipe, "hello").await;
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(
        (client.rest(), rest(&mut pipe).await),
        ("".into(), "".into())
    );
    assert!(refuses(&address));
    assert_eq!(settled(running.await).completed, 2);
}

async fn an_abort_drops_the_transport(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(1);
    let running = server.spawn(async move |conn: Connection| {
        begun.send(()).await.unwrap();
        let _conn = conn;
        pending::<()>().await;
    });
    let mut pipe = door.enter();
    has_begun.recv().await.unwrap();
    running.handle().abort();
    assert_eq!(settled(running.await).aborted, 1);
    assert_eq!(rest(&mut pipe).await, "");
}

/// Whatever the end of a transport does: it is over when the connection's end is counted.
async fn an_end_is_counted_when_the_transport_is_dropped(runtime: TestRuntime) {
    struct Slow(Pipe, Arc<AtomicBool>);
    impl AsyncRead for Slow {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }
    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_close(cx)
        }
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(50));
            self.1.store(true, SeqCst);
        }
    }
    struct One(Option<Slow>);
    impl Listener for One {
        type Io = Slow;

        async fn accept(&mut self) -> io::Result<(Slow, Address)> {
            match self.0.take() {
                Some(io) => Ok((io, Address::Custom("slow".into()))),
                None => pending().await,
            }
        }

        fn local_addr(&self) -> io::Result<Address> {
            Ok(Address::Custom("one".into()))
        }

        fn shut(&mut self) {}
    }
    let (server_end, client_end) = pipe();
    let is_dropped = Arc::new(AtomicBool::new(false));
    let listener = One(Some(Slow(server_end, is_dropped.clone())));
    let server = crate::support::server(runtime).listener(listener);
    let running = server.bind().await.unwrap().spawn(echo);
    taken_in(&running.handle(), 1);
    drop(client_end);
    eventually("an end", || running.handle().stats().completed == 1);
    assert!(is_dropped.load(SeqCst));
    settled(running.shutdown().await);
}

async fn its_connections_cannot_be_detached(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| conn.detach().map(drop));
    let mut pipe = door.enter();
    assert_eq!(rest(&mut pipe).await, "");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.detached), (1, 0));
}

/// As `eventually`, of what takes less than its pauses.
#[track_caller]
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        thread::yield_now();
    }
    eventually(what, holds);
}

/// The abort found a connection that was no longer the server's, and left it alone; then it was the
/// server's again, and its handler went on for good.
async fn an_abort_beside_a_detach_that_fails_cuts_the_connection(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let (begun, may_detach) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (tells, waits_for) = (begun.clone(), may_detach.clone());
    let running = builder
        .bind()
        .await
        .unwrap()
        .spawn(async move |conn: Connection| {
            let id = conn.id();
            tells.store(id, SeqCst);
            while waits_for.load(SeqCst) < id {
                hint::spin_loop();
            }
            conn.detach().unwrap_err();
            pending::<()>().await;
        });
    let handle = running.handle();
    for id in 1..=rounds(300) as u64 {
        let (_client, mut server) = pipe();
        // Its end takes no while, so that nothing has the task look again.
        server.closing = true;
        door.say(Accept::Peer(server));
        soon("its handler", || begun.load(SeqCst) == id);
        may_detach.store(id, SeqCst);
        for _ in 0..id % 64 {
            hint::spin_loop();
        }
        handle.abort_connection(id);
        soon("it was cut", || handle.active() == 0);
    }
    handle.shutdown();
    settled(running.await);
}

async fn a_row_of_transient_errors_ends_nothing(runtime: TestRuntime) {
    let peers = [
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::ETIMEDOUT,
        libc::EPERM,
        libc::EINTR,
        libc::EAGAIN,
    ];
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    let (door, builder) = in_memory(&runtime);
    let running = builder.bind().await.unwrap().spawn(echo);
    for code in peers.into_iter().chain(shortages) {
        door.fail(code);
    }
    let mut pipe = door.enter();
    ask(&mut pipe, "hello").await;
    for code in peers {
        door.fail(code);
        let mut pipe = door.enter();
        ask(&mut pipe, "hello").await;
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.completed, 1 + peers.len() as u64);
    assert_eq!(report.accept_errors_by.shortage, shortages.len() as u64);
    assert_eq!(report.accept_errors_by.listener, 0);
    // A call that found nobody after all is no failure of anybody's, and need not be counted.
    assert!(report.accept_errors_by.peer >= 2 * (peers.len() as u64 - 2));
}

async fn errors_without_a_number_are_judged_by_their_kind(runtime: TestRuntime) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, OutOfMemory, TimedOut};
    let (door, builder) = in_memory(&runtime);
    let running = builder.bind().await.unwrap().spawn(echo);
    for kind in [ConnectionAborted, ConnectionReset, OutOfMemory, TimedOut] {
        door.say(Accept::Fail(kind.into()));
    }
    let mut pipe = door.enter();
    ask(&mut pipe, "hello").await;
    running.handle().shutdown();
    let report = settled(running.await);
    let errors = report.accept_errors_by;
    assert_eq!((errors.peer, errors.shortage, errors.listener), (3, 1, 0));
}

/// Fails whenever it is asked.
struct Broken(i32);

impl Listener for Broken {
    type Io = Pipe;

    async fn accept(&mut self) -> io::Result<(Pipe, Address)> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("broken".into()))
    }

    fn shut(&mut self) {}
}

async fn a_listener_that_always_fails_does_not_starve_the_others(runtime: TestRuntime) {
    for code in [libc::ECONNABORTED, libc::EMFILE] {
        let server = at_home(&runtime)
            .listener(Broken(code))
            .bind()
            .await
            .unwrap();
        let running = server.spawn(echo);
        for _ in 0..3 {
            assert_eq!(Client::of(&running).ask("hello"), "hello");
        }
        running.handle().shutdown_within(Duration::from_secs(2));
        let report = settled(running.await);
        assert_eq!(report.accepted, 3);
        assert!(report.accept_errors > 0);
    }
}

async fn a_shortage_is_over_when_a_connection_ends(runtime: TestRuntime) {
    let (door, listener) = memory();
    let server = runtime
        .engine
        .server(Patient(runtime))
        .listener(listener)
        .deadline(HOUR);
    let running = server.bind().await.unwrap().spawn(echo);
    let mut inside = door.enter();
    ask(&mut inside, "hello").await;
    door.fail(libc::EMFILE);
    let mut outside = door.enter();
    eventually("a shortage", || {
        running.handle().stats().accept_errors_by.shortage == 1
    });
    // The pause is an hour long on this clock.
    drop(inside);
    ask(&mut outside, "hello").await;
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_shortage_is_over_at_a_shutdown(runtime: TestRuntime) {
    let (door, listener) = memory();
    let server = runtime
        .engine
        .server(Patient(runtime))
        .listener(listener)
        .deadline(HOUR);
    let running = server.bind().await.unwrap().spawn(echo);
    door.fail(libc::EMFILE);
    let mut outside = door.enter();
    outside.write_all(b"hello\n").await.unwrap();
    eventually("a shortage", || {
        running.handle().stats().accept_errors_by.shortage == 1
    });
    running.handle().shutdown();
    assert_eq!(rest(&mut outside).await, "hello\n");
    assert_eq!(settled(running.await).completed, 1);
}

/// A runtime on which the shortest pauses take an hour.
#[derive(Clone)]
struct Patient(TestRuntime);

impl gracious::Runtime for Patient {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        self.0.spawn(future);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let short = duration <= Duration::from_secs(1);
        self.0.sleep(if short { HOUR } else { duration })
    }

    fn now(&self) -> std::time::Instant {
        self.0.now()
    }
}

async fn a_dead_listener_stops_the_server_with_its_error(runtime: TestRuntime) {
    for code in [libc::EBADF, libc::EINVAL, libc::ENOTSOCK] {
        let (door, listener) = memory();
        let server = at_home(&runtime).listener(listener).bind().await.unwrap();
        let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
        let running = server.spawn(echo);
        door.fail(code);
        let error = running.await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(code));
        // The other listener is closed with it, and the report is at `closed`.
        assert!(refuses(&address));
        assert_eq!(handle.state(), State::Closed);
        let report = settled(Ok(handle.closed().await));
        let Reason::Listener(message) = &report.reason else {
            panic!("{:?}", report.reason);
        };
        assert_eq!(message, &error.to_string());
        assert_eq!(report.accept_errors_by.listener, 1);
    }
}

async fn a_dead_listener_aborts_no_connection(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let handle = server.handle();
    let (told, is_told) = async_channel::bounded(1);
    let mut running = server.spawn(async move |mut conn: Connection| {
        let (mut first, mut second) = (String::new(), String::new());
        conn.read_line(&mut first).await?;
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.read_line(&mut second).await?;
        conn.write_all((first + &second).as_bytes()).await
    });
    let mut busy = door.enter();
    busy.write_all(b"one, ").await.unwrap();
    let mut idle = door.enter();
    idle.write_all(b"\n").await.unwrap();
    busy.write_all(b"two\n").await.unwrap();
    crate::support::client::read_in(&handle, 10);
    door.fail(libc::EINVAL);
    is_told.recv().await.unwrap();
    assert!(waits(&mut running).await);
    busy.write_all(b"three\n").await.unwrap();
    assert_eq!(rest(&mut busy).await, "one, two\nthree\n");
    idle.write_all(b"x\n").await.unwrap();
    assert_eq!(rest(&mut idle).await, "\nx\n");
    assert_eq!(
        running.await.unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
    let report = settled(Ok(handle.closed().await));
    assert_eq!((report.completed, report.aborted), (2, 0));
}

async fn a_dead_listener_at_a_stop_changes_nothing(runtime: TestRuntime) {
    let (door, builder) = in_memory(&runtime);
    let server = builder.bind().await.unwrap();
    let mut pipe = door.enter();
    pipe.write_all(b"hello\n").await.unwrap();
    door.fail(libc::EINVAL);
    server.handle().shutdown();
    // It was asked to stop first.
    let report = settled(server.serve(echo).await);
    assert_eq!(report.reason, Reason::Requested);
    assert_eq!(rest(&mut pipe).await, "hello\n");
}

async fn a_listener_that_panics_stops_the_server(runtime: TestRuntime) {
    let (door, listener) = memory();
    let server = at_home(&runtime).listener(listener).bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    taken_in(&handle, 1);
    door.say(Accept::Panic);
    // Those inside are told, as at any stop.
    assert_eq!(client.rest(), "");
    let _error_or_report = running.await;
    let report = settled(Ok(handle.closed().await));
    assert_eq!(report.completed, 1);
    assert!(refuses(&address));
}

async fn a_listener_without_an_address_cannot_be_bound(runtime: TestRuntime) {
    let (_door, queue) = async_channel::unbounded();
    let listener = Memory {
        queue,
        is_named: false,
    };
    let server = crate::support::server(runtime).listener(listener);
    let error = server.bind().await.unwrap_err();
    assert!(error.to_string().contains("it has no name"), "{error}");
}

/// A listener whose own code asks the server that it is a listener of.
struct Curious {
    memory: Memory,
    server: Arc<OnceLock<Handle>>,
}

impl Curious {
    fn ask(&self) {
        self.server.get().into_iter().for_each(ask_for_everything);
    }
}

impl Listener for Curious {
    type Io = Pipe;

    async fn accept(&mut self) -> io::Result<(Pipe, Address)> {
        let server = self.server.clone();
        let mut accept = pin!(self.memory.accept());
        poll_fn(|cx| {
            server.get().into_iter().for_each(ask_for_everything);
            accept.as_mut().poll(cx)
        })
        .await
    }

    fn local_addr(&self) -> io::Result<Address> {
        self.memory.local_addr()
    }

    fn unacknowledged(_: &Self::Io) -> Option<usize> {
        // What was written is in the peer's hands.
        Some(0)
    }

    fn quiet(_: &Self::Io) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn shut(&mut self) {
        self.ask();
        self.memory.shut();
    }
}

impl Drop for Curious {
    fn drop(&mut self) {
        self.ask();
    }
}

async fn a_listener_may_ask_its_server_wherever_it_is_called(runtime: TestRuntime) {
    let (door, memory) = memory();
    let asked = Arc::new(OnceLock::new());
    let server = asked.clone();
    let listener = Curious { memory, server };
    let server = at_home(&runtime).listener(listener).bind().await.unwrap();
    assert!(asked.set(server.handle()).is_ok());
    let running = server.spawn(echo);
    let mut pipe = door.enter();
    ask(&mut pipe, "hello").await;
    // One that is swept.
    let mut last = door.enter();
    last.write_all(b"bye\n").await.unwrap();
    let report = settled(running.shutdown().await);
    assert_eq!(rest(&mut last).await, "bye\n");
    assert_eq!((report.accepted, report.completed), (2, 2));
}

/// A listener that blocks the thread which polls it, until it is told to go on.
struct Blocking {
    begun: Sender<()>,
    go_on: mpsc::Receiver<()>,
}

impl Listener for Blocking {
    type Io = Pipe;

    async fn accept(&mut self) -> io::Result<(Pipe, Address)> {
        self.begun.send(()).await.unwrap();
        // Until the other end is dropped.
        let _dropped = self.go_on.recv();
        Ok((pipe().1, Address::Custom("too late".into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("blocking".into()))
    }

    fn shut(&mut self) {}
}

async fn a_listener_that_blocks_keeps_nobody_else_waiting(runtime: TestRuntime) {
    let (begin, begun) = async_channel::bounded(1);
    let (unblock, go_on) = mpsc::channel();
    let listener = Blocking {
        begun: begin,
        go_on,
    };
    // Else a thread of the runtime that all tests share would be blocked, with their tasks.
    let builder = crate::support::server(runtime.elsewhere()).listener(listener);
    let running = builder.bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    begun.recv().await.unwrap();
    ask_for_everything(&handle);
    assert_eq!(handle.listeners().len(), 1);
    // The server's own task is in that listener: who waits for the end does its work.
    handle.shutdown_within(Duration::ZERO);
    let report = settled(Ok(handle.closed().await));
    assert!(handle.listeners().is_empty());
    drop(unblock);
    // A peer that it gives now is no longer served.
    eventually("it is dropped", || begun.is_closed());
    assert_eq!((report.accepted, handle.stats().accepted), (0, 0));
}

/// Serves one line a connection: echoes it, or does what it says.
async fn obey(mut conn: Connection) -> io::Result<()> {
    let mut order = String::new();
    conn.read_line(&mut order).await?;
    match order.as_str() {
        "fail\n" => Err(io::Error::other("as the test wants it")),
        "stay\n" => pending().await,
        _ => conn.write_all(order.as_bytes()).await,
    }
}

/// Most that is ever logged is logged here, by a server whose logger asks it for everything.
async fn a_logger_that_asks(runtime: TestRuntime) {
    let (door, memory) = memory();
    let builder = at_home(&runtime).listen(unix_address()).listener(memory);
    let server = builder.bind().await.unwrap();
    let handle = server.handle();
    let asked = handle.clone();
    on_log(move || ask_for_everything(&asked));
    let running = server.spawn(obey);
    for order in ["hello\n", "fail\n"] {
        let mut client = Client::of(&running);
        client.send(order);
        assert_eq!(client.rest(), if order == "hello\n" { order } else { "" });
    }
    door.fail(libc::ECONNABORTED);
    door.fail(libc::EMFILE);
    let mut pipe = door.enter();
    pipe.write_all(b"hello\n").await.unwrap();
    assert_eq!(rest(&mut pipe).await, "hello\n");
    let mut straggler = Client::of(&running);
    straggler.send("stay\n");
    crate::support::client::read_in(&handle, 22);
    door.say(Accept::Panic);
    eventually("a stop", || handle.state() == State::Draining);
    handle.abort();
    let error = running.await.unwrap_err();
    is_cut(&mut straggler);
    let report = settled(Ok(handle.closed().await));
    assert_eq!((report.accepted, report.aborted), (4, 1));
    let logged = logged();
    for line in [
        "WARN cannot accept",
        &format!("ERROR a listener failed: {error}"),
        "WARN cannot shut a listener",
        "WARN aborted a connection from ",
    ] {
        let is_there = logged.iter().any(|it| it.starts_with(line));
        assert!(is_there, "{line:?} is not in {logged:?}");
    }
}
