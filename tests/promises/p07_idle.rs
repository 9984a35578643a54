//! Promise 7. **Idle connections do not hold up a stop.** Three counts decide: *received*, *taken*
//! (consumed by the handler), *answered* (what was taken when the last completed write **began**).
//! Busy is `answered < received`, or a write that waits; half a message in our buffer is busy. At a
//! drain a read ends (`Ok(0)`, and stays so) when the connection is idle and the kernel says EAGAIN
//! *after* the stop; input received is always delivered first. A line that `read_line` holds half of
//! is taken and unanswered: busy. Who treats the end of input as "complete" asks `ended_by()`.
//! A living `busy()` guard and a write that waits make any connection busy. Declared by `idle_when`:
//! `Unguarded`: guards and unread input alone count; `Quiet`: idle when no byte has moved for a while;
//! `Never`: reads never end early, the handler watches `shutdown_requested`.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::pin;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use gracious::{Connection, EndedBy, IdleWhen, ReadHalf, Running};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, echo, fill, handing_over, on, reading, rounds, saying_when_it_waits, tcp,
    transports, unix_address, waits, write_now,
};
use crate::support::peer::settled;

crate::on_every_runtime!(
    idle_connections_see_the_end_at_once,
    a_read_that_waits_wakes_though_nothing_arrives,
    a_new_connection_may_still_send_its_first_request,
    a_connection_that_says_nothing_ends_after_its_grace,
    without_a_grace_a_silent_connection_ends_at_once,
    the_grace_is_over_for_one_that_has_been_silent_for_long,
    the_end_stays_the_end,
    the_end_says_whose_it_is,
    half_a_line_is_busy,
    half_a_line_that_is_held_elsewhere_is_busy,
    half_a_line_that_no_line_has_taken_is_busy,
    what_was_taken_and_not_answered_is_busy,
    an_answer_that_was_begun_before_the_last_question_does_not_answer_it,
    a_write_that_waits_is_busy,
    a_write_that_came_to_nothing_is_no_answer,
    a_write_of_no_bytes_is_no_answer,
    a_guard_keeps_a_read_from_ending,
    declared_unguarded_only_guards_and_unread_input_count,
    a_manual_drain_leaves_the_end_to_the_handler,
    the_answer_of_another_task_ends_the_reader,
    an_answer_raced_against_the_stop_ends_the_reader,
    halves_outlive_their_handler,
    the_other_half_is_waited_for,
);

/// A server, a client, and the connection between them in the test's hands.
struct Pair {
    running: Running,
    client: Client,
    conn: Connection,
    _connections: Receiver<Connection>,
}

impl Pair {
    async fn on(address: &str, runtime: TestRuntime) -> Self {
        let server = on(address, runtime).first_byte_grace(None);
        let (running, connections) = handing_over(server.bind().await.unwrap());
        Self {
            client: Client::of(&running),
            running,
            conn: connections.recv().await.unwrap(),
            _connections: connections,
        }
    }

    /// Asks the server to stop, and waits until the connection is told.
    async fn stop(&self) {
        self.running.handle().shutdown();
        self.conn.shutdown_requested().await;
        assert!(self.conn.is_shutting_down());
    }

    /// The end of it, with nobody to wait for.
    async fn ends(self) {
        drop(self.conn);
        let report = self.running.await.unwrap();
        assert_eq!((report.accepted, report.completed), (1, 1));
    }

    /// The same, with a client that reads to the end and then hangs up.
    async fn ends_with(self, said: &str) {
        let client = reading(vec![self.client]);
        drop(self.conn);
        let report = self.running.await.unwrap();
        assert_eq!((report.accepted, report.completed), (1, 1));
        assert_eq!(client.join().unwrap(), [said]);
    }

    /// Whether the server takes the connection for busy.
    fn is_busy(&self) -> bool {
        self.running.handle().connections()[0].busy
    }
}

/// Whether a read of one byte waits.
async fn read_waits(conn: &mut Connection) -> bool {
    waits(conn.read(&mut [0])).await
}

async fn idle_connections_see_the_end_at_once(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(echo);
        let mut idle: Vec<_> = (0..200).map(|_| Client::of(&running)).collect();
        for client in &mut idle {
            assert_eq!(client.ask("hello"), "hello");
        }
        // No client hangs up, and no deadline is set.
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.accepted, report.completed), (200, 200));
        for client in &mut idle {
            assert_eq!(client.rest(), "");
        }
    }
}

async fn a_read_that_waits_wakes_though_nothing_arrives(runtime: TestRuntime) {
    for address in transports() {
        let Pair {
            running,
            client,
            mut conn,
            ..
        } = Pair::on(&address, runtime.clone()).await;
        let (waiting, is_waiting) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut buf = [0];
            async_io::block_on(saying_when_it_waits(conn.read(&mut buf), waiting)).unwrap()
        });
        is_waiting.recv().unwrap();
        let report = running.shutdown().await.unwrap();
        assert_eq!(reader.join().unwrap(), 0);
        assert_eq!(report.completed, 1);
        drop(client);
    }
}

async fn a_new_connection_may_still_send_its_first_request(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).first_byte_grace(HOUR);
        let (running, connections) = handing_over(server.bind().await.unwrap());
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        assert!(read_waits(&mut conn).await);
        client.send("hello\n");
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        conn.write_all(line.as_bytes()).await.unwrap();
        // The grace was for the first request alone.
        assert_eq!(conn.read(&mut [0]).await.unwrap(), 0);
        drop(conn);
        assert_eq!(client.rest(), "hello\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn a_connection_that_says_nothing_ends_after_its_grace(runtime: TestRuntime) {
    let grace = Duration::from_millis(200);
    let server = tcp(runtime).first_byte_grace(grace).bind().await.unwrap();
    let mut silent = Client::to(&server);
    server.handle().shutdown();
    let report = server.serve(echo).await.unwrap();
    assert_eq!(silent.rest(), "");
    assert_eq!((report.accepted, report.completed), (1, 1));
    assert!(report.drain >= grace, "{report}");
}

async fn without_a_grace_a_silent_connection_ends_at_once(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        pair.stop().await;
        assert!(!read_waits(&mut pair.conn).await);
        assert_eq!(pair.conn.read(&mut [0]).await.unwrap(), 0);
        pair.ends().await;
    }
}

async fn the_grace_is_over_for_one_that_has_been_silent_for_long(runtime: TestRuntime) {
    let server = tcp(runtime.clone()).first_byte_grace(HOUR);
    let (running, connections) = handing_over(server.bind().await.unwrap());
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    runtime.put_forward(2 * HOUR);
    running.handle().shutdown();
    conn.shutdown_requested().await;
    assert_eq!(conn.read(&mut [0]).await.unwrap(), 0);
    drop(conn);
    assert_eq!(client.rest(), "");
    assert_eq!(running.await.unwrap().completed, 1);
}

async fn the_end_stays_the_end(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        pair.stop().await;
        assert_eq!(pair.conn.read(&mut [0]).await.unwrap(), 0);
        pair.client.send("too late\n");
        assert_eq!(pair.conn.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(pair.conn.fill_buf().await.unwrap(), b"");
        let mut line = String::new();
        assert_eq!(pair.conn.read_line(&mut line).await.unwrap(), 0);
        assert_eq!(pair.conn.ended_by(), Some(EndedBy::Drain));
        // Writing is another matter.
        pair.conn.write_all(b"goodbye\n").await.unwrap();
        pair.ends_with("goodbye\n").await;
    }
}

async fn the_end_says_whose_it_is(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        assert_eq!(pair.conn.ended_by(), None);
        pair.stop().await;
        assert_eq!(pair.conn.ended_by(), None);
        assert_eq!(pair.conn.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(pair.conn.ended_by(), Some(EndedBy::Drain));
        pair.ends().await;

        let mut pair = Pair::on(&address, runtime.clone()).await;
        pair.client.send("all there is");
        pair.client.finish();
        let mut said = String::new();
        pair.conn.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "all there is");
        assert_eq!(pair.conn.ended_by(), Some(EndedBy::Peer));
        // A stop afterwards does not change who it was.
        pair.stop().await;
        assert_eq!(pair.conn.ended_by(), Some(EndedBy::Peer));
        pair.ends().await;
    }
}

async fn half_a_line_is_busy(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        pair.client.send("hel");
        assert_eq!(pair.conn.fill_buf().await.unwrap(), b"hel");
        // In our buffer only, then in `read_line`'s hands.
        assert!(pair.is_busy());
        pair.stop().await;
        let mut line = String::new();
        {
            let mut reading = pin!(pair.conn.read_line(&mut line));
            assert!(waits(&mut reading).await);
            assert!(pair.running.handle().connections()[0].busy);
            pair.client.send("lo\n");
            assert_eq!(reading.await.unwrap(), 6);
        }
        assert!(pair.is_busy());
        pair.conn.write_all(line.as_bytes()).await.unwrap();
        assert!(!pair.is_busy());
        assert_eq!(pair.client.line(), "hello");
        line.clear();
        assert_eq!(pair.conn.read_line(&mut line).await.unwrap(), 0);
        pair.ends().await;
    }
}

/// Also where only what was not consumed counts: half a line that `lines` holds is not.
async fn half_a_line_that_no_line_has_taken_is_busy(runtime: TestRuntime) {
    for address in transports() {
        let Pair {
            running,
            mut client,
            conn,
            _connections,
        } = Pair::on(&address, runtime.clone()).await;
        conn.idle_when(IdleWhen::Unguarded);
        let (reader, writer) = conn.split();
        let mut lines = reader.lines();
        client.send("hel");
        assert!(waits(pin!(lines.next())).await);
        running.handle().shutdown();
        writer.shutdown_requested().await;
        assert!(waits(pin!(lines.next())).await);
        assert!(running.handle().connections()[0].busy);
        client.send("lo\n");
        assert_eq!(lines.next().await.unwrap().unwrap(), "hello");
        assert!(lines.next().await.is_none());
        drop((lines, writer));
        assert_eq!(client.rest(), "");
        drop(client);
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn half_a_line_that_is_held_elsewhere_is_busy(runtime: TestRuntime) {
    for address in transports() {
        let Pair {
            running,
            mut client,
            conn,
            ..
        } = Pair::on(&address, runtime.clone()).await;
        let (reader, mut writer) = conn.split();
        let mut lines = reader.lines();
        // The guard is gone again: what is unread counts, and so does half a line.
        writer.idle_when(IdleWhen::Unguarded);
        client.send("hel");
        // Polled until it holds what has come.
        while running.handle().stats().bytes_in < 3 {
            assert!(waits(pin!(lines.next())).await);
            thread::yield_now();
        }
        running.handle().shutdown();
        writer.shutdown_requested().await;
        assert!(waits(pin!(lines.next())).await);
        client.send("lo\n");
        assert_eq!(lines.next().await.unwrap().unwrap(), "hello");
        writer.write_all(b"hello\n").await.unwrap();
        assert!(lines.next().await.is_none());
        drop((lines, writer));
        assert_eq!(client.rest(), "hello\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn what_was_taken_and_not_answered_is_busy(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        assert!(!pair.is_busy());
        pair.client.send("x");
        pair.conn.read_exact(&mut [0]).await.unwrap();
        assert!(pair.is_busy());
        pair.stop().await;
        assert!(read_waits(&mut pair.conn).await);
        pair.conn.write_all(b"y").await.unwrap();
        assert!(!pair.is_busy());
        assert!(!read_waits(&mut pair.conn).await);
        pair.ends_with("y").await;
    }
}

/// The second question is read while the first answer waits for its peer: when that is written at
/// last, the second is still to be answered.
async fn an_answer_that_was_begun_before_the_last_question_does_not_answer_it(
    runtime: TestRuntime,
) {
    for address in transports() {
        let Pair {
            running,
            mut client,
            conn,
            ..
        } = Pair::on(&address, runtime.clone()).await;
        let (mut reader, mut writer) = conn.split();
        client.send("1");
        reader.read_exact(&mut [0]).await.unwrap();
        let filled = fill(&mut writer).await;
        client.send("2");
        reader.read_exact(&mut [0]).await.unwrap();
        // The write that has been waiting since before the second question.
        let mut received = client.twin();
        let receiver = thread::spawn(move || {
            let mut answer = vec![0; filled + 1];
            io::Read::read_exact(&mut received, &mut answer).unwrap();
        });
        writer.write_all(b"!").await.unwrap();
        receiver.join().unwrap();
        running.handle().shutdown();
        writer.shutdown_requested().await;
        assert!(waits(reader.read(&mut [0])).await);
        writer.write_all(b"?").await.unwrap();
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
        drop((reader, writer));
        assert_eq!(client.rest(), "?");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn a_write_that_waits_is_busy(runtime: TestRuntime) {
    for address in transports() {
        let Pair {
            running,
            mut client,
            conn,
            ..
        } = Pair::on(&address, runtime.clone()).await;
        let (mut reader, mut writer) = conn.split();
        let filled = fill(&mut writer).await;
        running.handle().shutdown();
        writer.shutdown_requested().await;
        assert!(waits(reader.read(&mut [0])).await);
        assert!(running.handle().connections()[0].busy);
        let receiver = thread::spawn(move || client.rest().len());
        writer.write_all(b"!").await.unwrap();
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
        drop((reader, writer));
        assert_eq!(receiver.join().unwrap(), filled + 1);
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

/// It waited, and then nobody wanted it any more, or it failed.
async fn a_write_that_came_to_nothing_is_no_answer(runtime: TestRuntime) {
    for fails in [false, true] {
        let server = on(&unix_address(), runtime.clone()).deadline(HOUR);
        let (running, connections) = handing_over(server.bind().await.unwrap());
        let mut byte = [0];
        // How much there is room for.
        let mut room = 0;
        let measured_client = Client::of(&running);
        let mut measured = connections.recv().await.unwrap();
        while write_once(&mut measured).await.is_some() {
            room += 1;
        }
        let mut client = Client::of(&running);
        let (mut reader, mut writer) = connections.recv().await.unwrap().split();
        for _ in 0..room {
            write_once(&mut writer).await.unwrap().unwrap();
        }
        client.send("1");
        reader.read_exact(&mut byte).await.unwrap();
        assert!(write_once(&mut writer).await.is_none());
        let writer = if fails {
            let Client::Unix(socket) = &client else {
                unreachable!("it listens there alone");
            };
            socket.shutdown(Shutdown::Read).unwrap();
            client.rest();
            writer.write_all(&[0]).await.unwrap_err();
            Some(writer)
        } else {
            drop(writer);
            None
        };
        running.handle().shutdown();
        reader.shutdown_requested().await;
        assert!(waits(&mut pin!(reader.read(&mut byte))).await);
        client.send("2");
        assert_eq!(reader.read(&mut byte).await.unwrap(), 1);
        drop((measured_client, measured, client, reader, writer));
        settled(running.await);
    }
}

async fn a_write_of_no_bytes_is_no_answer(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        pair.client.send("x");
        pair.conn.read_exact(&mut [0]).await.unwrap();
        assert_eq!(pair.conn.write(b"").await.unwrap(), 0);
        assert!(pair.is_busy());
        let nothing = [IoSlice::new(b""), IoSlice::new(b"")];
        assert_eq!(pair.conn.write_vectored(&nothing).await.unwrap(), 0);
        assert!(pair.is_busy());
        pair.stop().await;
        assert!(read_waits(&mut pair.conn).await);
        pair.conn.write_all(b"y").await.unwrap();
        assert_eq!(pair.conn.read(&mut [0]).await.unwrap(), 0);
        pair.ends_with("y").await;
    }
}

/// Whether a write completes at once.
async fn write_once(writer: &mut (impl AsyncWrite + Unpin)) -> Option<io::Result<usize>> {
    write_now(writer, &[b'.'; 4096]).await
}

async fn a_guard_keeps_a_read_from_ending(runtime: TestRuntime) {
    for address in transports() {
        let pair = Pair::on(&address, runtime.clone()).await;
        let guards = [pair.conn.busy(), pair.conn.busy()];
        assert!(pair.is_busy());
        pair.stop().await;
        let mut conn = pair.conn;
        let (waiting, is_waiting) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut buf = [0];
            async_io::block_on(saying_when_it_waits(conn.read(&mut buf), waiting)).unwrap()
        });
        is_waiting.recv().unwrap();
        let [first, second] = guards;
        drop(first);
        assert!(pair.running.handle().connections()[0].busy);
        // The last one wakes the read that it kept from ending.
        drop(second);
        assert_eq!(reader.join().unwrap(), 0);
        assert_eq!(pair.running.await.unwrap().completed, 1);
    }
}

/// What protocols need that answer nothing, or answer later.
async fn declared_unguarded_only_guards_and_unread_input_count(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        pair.conn.idle_when(IdleWhen::Unguarded);
        let guard = pair.conn.busy();
        pair.client.send("news\n");
        let mut line = String::new();
        pair.conn.read_line(&mut line).await.unwrap();
        assert!(pair.is_busy());
        drop(guard);
        // Taken, never answered, and yet idle.
        assert!(!pair.is_busy());
        pair.client.send("more\n");
        assert_eq!(pair.conn.fill_buf().await.unwrap(), b"more\n");
        assert!(pair.is_busy());
        pair.stop().await;
        line.clear();
        pair.conn.read_line(&mut line).await.unwrap();
        assert_eq!(line, "more\n");
        line.clear();
        assert_eq!(pair.conn.read_line(&mut line).await.unwrap(), 0);
        pair.ends().await;
    }
}

async fn a_manual_drain_leaves_the_end_to_the_handler(runtime: TestRuntime) {
    for address in transports() {
        let mut pair = Pair::on(&address, runtime.clone()).await;
        pair.conn.idle_when(IdleWhen::Never);
        pair.stop().await;
        let mut line = String::new();
        assert!(read_waits(&mut pair.conn).await);
        for _ in 0..2 {
            pair.client.send("hello\n");
            line.clear();
            pair.conn.read_line(&mut line).await.unwrap();
            pair.conn.write_all(line.as_bytes()).await.unwrap();
            assert_eq!(pair.client.line(), "hello");
            assert!(read_waits(&mut pair.conn).await);
        }
        assert_eq!(pair.conn.ended_by(), None);
        pair.conn.write_all(b"goodbye\n").await.unwrap();
        pair.ends_with("goodbye\n").await;
    }
}

/// Reads lines for another task to answer, to the end.
fn read_for(reader: ReadHalf, answers: async_channel::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        async_io::block_on(async {
            let mut lines = reader.lines();
            while let Some(line) = lines.next().await {
                answers.send(line.unwrap()).await.unwrap();
            }
            assert_eq!(lines.get_ref().ended_by(), Some(EndedBy::Drain));
        });
    })
}

async fn the_answer_of_another_task_ends_the_reader(runtime: TestRuntime) {
    for address in transports() {
        let Pair {
            running,
            mut client,
            conn,
            ..
        } = Pair::on(&address, runtime.clone()).await;
        let (reader, mut writer) = conn.split();
        let (question, questions) = async_channel::unbounded();
        let reader = read_for(reader, question);
        client.send("first\nsecond\n");
        running.handle().shutdown();
        writer.shutdown_requested().await;
        for answer in ["first", "second"] {
            assert_eq!(questions.recv().await.unwrap(), answer);
            // The reader waits for the next line: two were asked, and not all is answered.
            writer
                .write_all(format!("{answer}\n").as_bytes())
                .await
                .unwrap();
        }
        reader.join().unwrap();
        drop(writer);
        assert_eq!(client.rest(), "first\nsecond\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

/// The count that makes the connection idle and the word that says it should end are stored on two
/// threads: one of them has to see the other.
async fn an_answer_raced_against_the_stop_ends_the_reader(runtime: TestRuntime) {
    for round in 0..rounds(100) {
        let Pair {
            running,
            mut client,
            conn,
            ..
        } = Pair::on("127.0.0.1:0", runtime.clone()).await;
        let (reader, mut writer) = conn.split();
        let (question, questions) = async_channel::unbounded();
        let reader = read_for(reader, question);
        client.send("hello\n");
        let line = questions.recv().await.unwrap();
        let start = Arc::new(Barrier::new(2));
        let answering = thread::spawn({
            let start = start.clone();
            move || {
                start.wait();
                async_io::block_on(writer.write_all(format!("{line}\n").as_bytes())).unwrap();
                writer
            }
        });
        start.wait();
        for _ in 0..round % 50 * 20 {
            std::hint::spin_loop();
        }
        running.handle().shutdown();
        reader.join().unwrap();
        drop(answering.join().unwrap());
        assert_eq!(client.rest(), "hello\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn halves_outlive_their_handler(runtime: TestRuntime) {
    for address in transports() {
        // The handler has returned as soon as it has handed over.
        let Pair {
            mut running,
            mut client,
            conn,
            ..
        } = Pair::on(&address, runtime.clone()).await;
        let (mut reader, mut writer) = conn.split();
        client.send("hello");
        let mut request = [0; 5];
        reader.read_exact(&mut request).await.unwrap();
        running.handle().shutdown();
        writer.shutdown_requested().await;
        assert!(waits(&mut running).await);
        writer.write_all(&request).await.unwrap();
        assert_eq!(reader.read(&mut request).await.unwrap(), 0);
        assert!(waits(&mut running).await);
        drop((reader, writer));
        assert_eq!(client.rest(), "hello");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn the_other_half_is_waited_for(runtime: TestRuntime) {
    for address in transports() {
        for reader_first in [true, false] {
            let Pair {
                mut running,
                mut client,
                conn,
                ..
            } = Pair::on(&address, runtime.clone()).await;
            let (reader, mut writer) = conn.split();
            running.handle().shutdown();
            writer.shutdown_requested().await;
            if reader_first {
                drop(reader);
                assert!(waits(&mut running).await);
                writer.write_all(b"goodbye\n").await.unwrap();
                drop(writer);
                assert_eq!(client.rest(), "goodbye\n");
            } else {
                drop(writer);
                assert_eq!(client.rest(), "");
                assert!(waits(&mut running).await);
                drop(reader);
            }
            assert_eq!(running.await.unwrap().completed, 1);
        }
    }
}
