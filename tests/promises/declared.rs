//! What a handler declares, and the word with a connection that stays when its stream has moved.

use std::error::Error;
use std::future::{Future, pending};
use std::io;
#[cfg(target_os = "linux")]
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
#[cfg(target_os = "linux")]
use gracious::Waiting;
use gracious::{Connection, EndedBy, IdleWhen, fallible};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, echo, eventually, handing_over, on, read_in, tcp, transports, waits,
};
#[cfg(target_os = "linux")]
use crate::support::peer::{at_home, logged, passes, settled};

crate::on_every_runtime!(
    guards_count_beside_what_was_answered,
    what_is_declared_for_all_holds_for_each,
    a_tunnel_is_idle_when_it_has_been_quiet,
    a_quiet_tunnel_ends_at_once,
    a_tunnel_that_was_held_up_ends_when_it_is_quiet_again,
    halves_that_are_reunited_are_one_connection,
    halves_of_two_connections_are_given_back,
    the_read_buffer_says_whether_more_is_there,
    a_control_stays_when_the_connection_is_gone,
    a_control_ends_its_connection_alone,
    a_protocol_is_wound_down_once_in_its_handler,
    a_protocol_is_wound_down_on_another_thread,
    every_error_that_can_be_boxed_will_do,
);

async fn guards_count_beside_what_was_answered(runtime: TestRuntime) {
    for address in transports() {
        let (running, connections) =
            handing_over(on(&address, runtime.clone()).bind().await.unwrap());
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        drop(conn.busy());
        client.send("a question\n");
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        // Not answered, guard or no guard.
        assert!(waits(conn.read(&mut [0])).await);
        conn.write_all(b"an answer\n").await.unwrap();
        assert_eq!(conn.read(&mut [0]).await.unwrap(), 0);
        drop(conn);
        assert_eq!(client.rest(), "an answer\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn what_is_declared_for_all_holds_for_each(runtime: TestRuntime) {
    let server = tcp(runtime).idle_when(IdleWhen::Unguarded);
    let (running, connections) = handing_over(server.bind().await.unwrap());
    let first = Client::of(&running);
    let mut one_way = connections.recv().await.unwrap();
    let mut clients = [first, Client::of(&running)];
    let mut in_turns = connections.recv().await.unwrap();
    in_turns.idle_when(IdleWhen::Answered);
    for (client, conn) in clients.iter_mut().zip([&mut one_way, &mut in_turns]) {
        client.send("news\n");
        conn.read_exact(&mut [0; 5]).await.unwrap();
    }
    running.handle().shutdown();
    in_turns.shutdown_requested().await;
    assert_eq!(one_way.read(&mut [0]).await.unwrap(), 0);
    assert!(waits(in_turns.read(&mut [0])).await);
    drop((one_way, in_turns));
    assert_eq!(running.await.unwrap().completed, 2);
}

const QUIET: Duration = Duration::from_millis(150);

/// Bytes that go either way keep it open, and nothing else does.
async fn a_tunnel_is_idle_when_it_has_been_quiet(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).first_byte_grace(None);
        let (running, connections) = handing_over(server.bind().await.unwrap());
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        conn.idle_when(IdleWhen::Quiet(QUIET));
        client.send("a");
        conn.read_exact(&mut [0]).await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        for _ in 0..3 {
            client.send("b");
            assert_eq!(conn.read(&mut [0]).await.unwrap(), 1);
            assert!(waits(conn.read(&mut [0])).await);
        }
        let last = Instant::now();
        conn.write_all(b"c").await.unwrap();
        assert_eq!(conn.read(&mut [0]).await.unwrap(), 0);
        assert!(last.elapsed() >= QUIET);
        assert_eq!(conn.ended_by(), Some(EndedBy::Drain));
        drop(conn);
        assert_eq!(client.rest(), "c");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn a_quiet_tunnel_ends_at_once(runtime: TestRuntime) {
    let server = tcp(runtime).first_byte_grace(None);
    let server = server.idle_when(IdleWhen::Quiet(Duration::from_millis(1)));
    let running = server.bind().await.unwrap().spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    // No deadline is set, and the client does not hang up.
    let report = running.shutdown().await.unwrap();
    assert_eq!(report.completed, 1);
    assert_eq!(client.rest(), "");
}

/// Is held up elsewhere for longer than it takes to be quiet, so that the timer fires while no read
/// waits. Then it reads what is there already, and is quiet again.
async fn read_after_a_pause(mut conn: Connection, runtime: TestRuntime) -> io::Result<()> {
    conn.idle_when(IdleWhen::Quiet(QUIET));
    conn.read_exact(&mut [0]).await?;
    conn.shutdown_requested().await;
    runtime.sleep(3 * QUIET).await;
    conn.read_exact(&mut [0]).await?;
    assert_eq!(conn.read(&mut [0]).await?, 0);
    assert_eq!(conn.ended_by(), Some(EndedBy::Drain));
    Ok(())
}

async fn a_tunnel_that_was_held_up_ends_when_it_is_quiet_again(runtime: TestRuntime) {
    let server = || tcp(runtime.clone()).first_byte_grace(None).bind();
    let own = runtime.clone();
    let in_handler = server().await.unwrap();
    let in_handler = in_handler.spawn(|conn| read_after_a_pause(conn, own));
    let (elsewhere, connections) = handing_over(server().await.unwrap());
    for (running, connections) in [(in_handler, None), (elsewhere, Some(connections))] {
        let mut client = Client::of(&running);
        client.send("ab");
        let handle = running.handle();
        let rest = thread::spawn(move || {
            read_in(&handle, 1);
            handle.shutdown();
            client.rest()
        });
        if let Some(connections) = connections {
            let conn = connections.recv().await.unwrap();
            read_after_a_pause(conn, runtime.clone()).await.unwrap();
        }
        assert_eq!(running.await.unwrap().completed, 1);
        assert_eq!(rest.join().unwrap(), "");
    }
}

async fn halves_that_are_reunited_are_one_connection(runtime: TestRuntime) {
    for address in transports() {
        let (running, connections) =
            handing_over(on(&address, runtime.clone()).bind().await.unwrap());
        let mut client = Client::of(&running);
        let (mut reader, mut writer) = connections.recv().await.unwrap().split();
        client.send("one\ntwo\n");
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        writer.write_all(line.as_bytes()).await.unwrap();
        let mut conn = reader.reunite(writer).unwrap();
        // Its input is where it was, and its peer has seen no end.
        line.clear();
        conn.read_line(&mut line).await.unwrap();
        conn.write_all(line.as_bytes()).await.unwrap();
        let (reader, mut writer) = conn.split();
        writer.write_all(b"last\n").await.unwrap();
        drop(reader.reunite(writer).unwrap());
        assert_eq!(client.rest(), "one\ntwo\nlast\n");
        assert_eq!(running.shutdown().await.unwrap().completed, 1);
    }
}

async fn halves_of_two_connections_are_given_back(runtime: TestRuntime) {
    let (running, connections) = handing_over(tcp(runtime).bind().await.unwrap());
    let first = Client::of(&running);
    let (reader, own) = connections.recv().await.unwrap().split();
    let mut clients = [first, Client::of(&running)];
    let (other, writer) = connections.recv().await.unwrap().split();
    let error = reader.reunite(writer).unwrap_err();
    assert!(error.to_string().contains("connection 1"), "{error}");
    let (reader, writer) = (error.0, error.1);
    let mut first = reader.reunite(own).unwrap();
    let mut second = other.reunite(writer).unwrap();
    first.write_all(b"first").await.unwrap();
    second.write_all(b"second").await.unwrap();
    drop((first, second));
    assert_eq!(clients[0].rest(), "first");
    assert_eq!(clients[1].rest(), "second");
    running.shutdown().await.unwrap();
}

async fn the_read_buffer_says_whether_more_is_there(runtime: TestRuntime) {
    let (running, connections) = handing_over(tcp(runtime).bind().await.unwrap());
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    assert_eq!(conn.buffer(), b"");
    client.send("one\ntwo\n");
    let mut line = String::new();
    conn.read_line(&mut line).await.unwrap();
    while conn.buffer().len() < 4 {
        conn.fill_buf().await.unwrap();
    }
    assert_eq!(conn.buffer(), b"two\n");
    conn.consume(4);
    assert_eq!(conn.buffer(), b"");
    drop(conn);
    running.shutdown().await.unwrap();
}

async fn a_control_stays_when_the_connection_is_gone(runtime: TestRuntime) {
    let (running, connections) = handing_over(tcp(runtime).bind().await.unwrap());
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    let control = conn.control();
    assert_eq!((control.id(), control.peer_addr()), (1, conn.peer_addr()));
    assert_eq!(
        control.local_addr().unwrap(),
        running.handle().local_addrs()[0]
    );
    client.send("hello");
    conn.read_exact(&mut [0; 5]).await.unwrap();
    conn.write_all(b"bye").await.unwrap();
    assert_eq!(
        (control.bytes_in(), control.bytes_out()),
        (Some(5), Some(3))
    );
    assert!(!control.is_shutting_down());
    let guard = control.busy();
    assert!(running.handle().connections()[0].busy);
    drop(guard);
    // It keeps nothing alive.
    let peer = conn.peer_addr();
    drop(conn);
    assert_eq!(client.rest(), "bye");
    drop(client);
    eventually("its end", || running.handle().active() == 0);
    eventually("its end", || control.bytes_in().is_none());
    assert_eq!((control.id(), control.peer_addr()), (1, peer));
    assert_eq!((control.bytes_out(), control.ended_by()), (None, None));
    assert!(control.local_addr().is_err() && control.is_shutting_down());
    control.shutdown_requested().await;
    drop(control.busy());
    control.idle_when(IdleWhen::Never);
    control.request_shutdown();
    control.abort();
    assert_eq!(running.shutdown().await.unwrap().completed, 1);
}

async fn a_control_ends_its_connection_alone(runtime: TestRuntime) {
    let (running, connections) =
        handing_over(tcp(runtime).first_byte_grace(None).bind().await.unwrap());
    let (mut clients, mut conns) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        clients.push(Client::of(&running));
        conns.push(connections.recv().await.unwrap());
    }
    conns[0].control().request_shutdown();
    assert_eq!(conns[0].read(&mut [0]).await.unwrap(), 0);
    conns[1].control().abort();
    let aborted = conns[1].read(&mut [0]).await.unwrap_err();
    assert_eq!(aborted.kind(), io::ErrorKind::ConnectionAborted);
    clients[2].send("!");
    assert_eq!(conns[2].read(&mut [0]).await.unwrap(), 1);
    assert!(running.handle().is_serving());
    drop(conns);
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, report.aborted), (2, 1));
}

#[cfg(target_os = "linux")]
crate::on_every_runtime_in_a_process!(
    a_protocol_that_reads_while_it_answers_is_warned_of_once: reads_while_it_answers, passes;
    a_protocol_that_is_declared_or_takes_turns_is_not_warned_of: is_declared_or_takes_turns, passes;
);

/// Writes an answer to a question while another task reads on.
#[cfg(target_os = "linux")]
async fn answer_while_reading(conn: Connection, client: &mut Client) {
    let (mut reader, mut writer) = conn.split();
    client.send("?");
    reader.read_exact(&mut [0]).await.unwrap();
    let handle = writer.handle();
    let reading = thread::spawn(move || async_io::block_on(reader.read(&mut [0])).unwrap());
    eventually("a read that waits", || {
        handle.connections()[0].waiting == Waiting::Read
    });
    writer.write_all(b"!").await.unwrap();
    client.read_exact(&mut [0]).unwrap();
    client.finish();
    assert_eq!(reading.join().unwrap(), 0);
}

#[cfg(target_os = "linux")]
async fn reads_while_it_answers(runtime: TestRuntime) {
    for _ in 0..2 {
        let (running, connections) = handing_over(at_home(&runtime).bind().await.unwrap());
        let mut client = Client::of(&running);
        let conn = connections.recv().await.unwrap();
        answer_while_reading(conn, &mut client).await;
        settled(running.shutdown().await);
    }
    let warnings = logged()
        .into_iter()
        .filter(|it| it.contains("Which drain is yours?"));
    assert_eq!(warnings.count(), 1, "{:?}", logged());
}

#[cfg(target_os = "linux")]
async fn is_declared_or_takes_turns(runtime: TestRuntime) {
    for declared in [IdleWhen::Answered, IdleWhen::Unguarded, IdleWhen::Never] {
        let (running, connections) = handing_over(at_home(&runtime).bind().await.unwrap());
        let mut client = Client::of(&running);
        let conn = connections.recv().await.unwrap();
        conn.idle_when(declared);
        answer_while_reading(conn, &mut client).await;
        settled(running.shutdown().await);
    }
    let running = at_home(&runtime).bind().await.unwrap().spawn(echo);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    settled(running.shutdown().await);
    assert!(
        !logged().iter().any(|it| it.contains("Which drain")),
        "{:?}",
        logged()
    );
}

/// A protocol that goes on until it is told, and says how often it was.
#[derive(Default)]
struct Protocol {
    told: Arc<AtomicU32>,
    polls: Arc<AtomicU32>,
    is_told: AtomicBool,
}

impl Protocol {
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.told.fetch_add(1, SeqCst);
        self.is_told.store(true, SeqCst);
    }
}

impl Future for Protocol {
    type Output = &'static str;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<&'static str> {
        self.polls.fetch_add(1, SeqCst);
        match self.is_told.load(SeqCst) {
            true => Poll::Ready("wound down"),
            false => Poll::Pending,
        }
    }
}

async fn a_protocol_is_wound_down_once_in_its_handler(runtime: TestRuntime) {
    let protocol = Protocol::default();
    let (told, polls) = (protocol.told.clone(), protocol.polls.clone());
    let protocol = Arc::new(std::sync::Mutex::new(Some(protocol)));
    let running = tcp(runtime)
        .bind()
        .await
        .unwrap()
        .spawn(async move |conn: Connection| {
            let protocol = protocol.lock().unwrap().take().unwrap();
            let control = conn.control();
            let said = control
                .wind_down(protocol, Protocol::graceful_shutdown)
                .await;
            assert_eq!(said, "wound down");
        });
    let _client = Client::of(&running);
    eventually("a poll", || polls.load(SeqCst) > 0);
    assert_eq!(told.load(SeqCst), 0);
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, told.load(SeqCst)), (1, 1));
    // Once at first, once more after the drain, once after it was told.
    assert!(polls.load(SeqCst) >= 3);
}

async fn a_protocol_is_wound_down_on_another_thread(runtime: TestRuntime) {
    let (running, connections) = handing_over(tcp(runtime).bind().await.unwrap());
    let _client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    let protocol = Protocol::default();
    let (told, polls) = (protocol.told.clone(), protocol.polls.clone());
    let elsewhere = thread::spawn(move || {
        let control = conn.control();
        let said = async_io::block_on(control.wind_down(protocol, Protocol::graceful_shutdown));
        drop(conn);
        said
    });
    eventually("a poll", || polls.load(SeqCst) > 0);
    let report = running.shutdown().await.unwrap();
    assert_eq!(elsewhere.join().unwrap(), "wound down");
    assert_eq!((report.completed, told.load(SeqCst)), (1, 1));
}

async fn every_error_that_can_be_boxed_will_do(runtime: TestRuntime) {
    async fn add(mut conn: Connection) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        let _number: u64 = line.trim().parse()?;
        Ok(())
    }
    let running = tcp(runtime).bind().await.unwrap().spawn(fallible(add));
    for line in ["1\n", "one\n"] {
        let mut client = Client::of(&running);
        client.send(line);
        assert_eq!(client.rest(), "");
    }
    // A closure's parameter is inferred, as without it.
    let _unused = fallible(|mut conn| async move {
        AsyncWriteExt::flush(&mut conn).await?;
        pending::<()>().await;
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    });
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, report.failed), (1, 1));
}
