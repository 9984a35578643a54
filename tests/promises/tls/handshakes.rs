//! Handshakes: what is wrong with them is one connection's end, they take their time and no other's,
//! and no permit.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use async_io::block_on;
use futures_lite::AsyncReadExt;
use gracious::{Cause, Connection, Handler, Waiting};

use super::{Secure, client_config, secured};
use crate::support::client::{Client, HOUR, PATIENCE, echo, eventually, taken_in};
use crate::support::peer::{cause_of, settled};
use crate::support::{Engine, TestRuntime};

crate::on_every_runtime!(
    plain_text_is_one_connections_end,
    a_client_that_stops_in_the_middle_is_one_connections_end,
    a_client_that_ends_in_the_middle_is_one_connections_end,
    a_client_that_trusts_nobody_is_one_connections_end,
    a_handshake_in_pieces_succeeds,
    a_handshake_under_way_at_a_stop_is_finished_and_served,
    a_handshake_under_way_is_aborted,
    a_handshake_under_way_at_the_deadline_is_a_straggler,
    stalled_handshakes_take_no_permit,
    who_has_shaken_hands_waits_for_a_permit,
    who_waits_for_a_permit_at_a_stop_is_served,
    the_surplus_is_told_so_after_its_handshake,
    a_server_that_is_dropped_ends_its_handshakes,
);

const SOON: Duration = Duration::from_millis(200);
/// A handshake that is not held up needs less, on a busy machine too.
const LONG_ENOUGH: Duration = Duration::from_secs(2);

/// Serves one connection that has no good handshake; gives the cause of its end.
async fn fails(runtime: TestRuntime, client: impl FnOnce(Client)) -> String {
    let server = secured(runtime)
        .tls_handshake_timeout(LONG_ENOUGH)
        .linger(SOON)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    client(Client::of(&running));
    let Cause::Handshake(cause) = cause_of(1, &events).await else {
        panic!("no failed handshake");
    };
    // Nobody else is concerned.
    assert_eq!(Secure::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.failed_handshakes), (1, 1));
    assert_eq!((report.completed, report.handshakes), (1, 0));
    assert!(
        report.to_string().contains("1 failed TLS handshakes"),
        "{report}"
    );
    cause
}

async fn plain_text_is_one_connections_end(runtime: TestRuntime) {
    let cause = fails(runtime, |mut client| {
        client.send("GET / HTTP/1.1\r\n\r\n");
        // An alert, and a clean end.
        let mut told = Vec::new();
        client.read_to_end(&mut told).unwrap();
        assert_eq!(told[..3], [21, 3, 3]);
    })
    .await;
    assert_eq!(
        cause,
        r#"expected a TLS handshake, found plain text that begins with "GET / HTTP/1.1\r\n""#
    );
}

async fn a_client_that_stops_in_the_middle_is_one_connections_end(runtime: TestRuntime) {
    let cause = fails(runtime, |client| {
        let mut client = Secure::over(client, "localhost", client_config(None, None));
        let hello = client.encrypt("");
        client.socket.write_all(&hello[..hello.len() / 2]).unwrap();
        let mut told = Vec::new();
        client.socket.read_to_end(&mut told).unwrap();
    })
    .await;
    assert_eq!(cause, "the TLS handshake took longer than 2s");
}

async fn a_client_that_ends_in_the_middle_is_one_connections_end(runtime: TestRuntime) {
    let cause = fails(runtime, |client| {
        let mut client = Secure::over(client, "localhost", client_config(None, None));
        let hello = client.encrypt("");
        client.socket.write_all(&hello).unwrap();
        client.socket.finish();
        let mut told = Vec::new();
        client.socket.read_to_end(&mut told).unwrap();
    })
    .await;
    assert_eq!(
        cause,
        "the client has ended in the middle of the TLS handshake"
    );
}

async fn a_client_that_trusts_nobody_is_one_connections_end(runtime: TestRuntime) {
    let cause = fails(runtime, |client| {
        let mut client = Secure::over(client, "other.example", client_config(None, None));
        let error = client.shake().unwrap_err().to_string();
        assert!(error.contains("invalid peer certificate"), "{error}");
        // The alert is with the server, which ends.
        client.socket.read_to_end(&mut Vec::new()).unwrap();
    })
    .await;
    assert_eq!(cause, "TLS: received fatal alert: BadCertificate");
}

async fn a_handshake_in_pieces_succeeds(runtime: TestRuntime) {
    let running = secured(runtime).bind().await.unwrap().spawn(echo);
    let mut client = Secure::begun(&running);
    for byte in client.encrypt("") {
        client.socket.write_all(&[byte]).unwrap();
    }
    client.shake().unwrap();
    for byte in client.encrypt("hello\n") {
        client.socket.write_all(&[byte]).unwrap();
    }
    assert_eq!(client.line(), "hello");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

/// Waits until so many handshakes are under way.
#[track_caller]
fn under_way(running: &gracious::Running, count: u64) {
    let handle = running.handle();
    eventually("handshakes", || handle.stats().handshakes == count);
}

async fn a_handshake_under_way_at_a_stop_is_finished_and_served(runtime: TestRuntime) {
    let server = secured(runtime.clone()).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Secure::begun(&running);
    let hello = client.encrypt("");
    client.socket.write_all(&hello[..100]).unwrap();
    under_way(&running, 1);
    let [connection] = &running.handle().connections()[..] else {
        panic!("one connection");
    };
    assert!(connection.busy);
    assert_eq!(connection.waiting, Waiting::Handshake);
    // The accept was long ago: what the client may say first counts from the end of its handshake.
    runtime.put_forward(Duration::from_secs(5));
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    client.socket.write_all(&hello[100..]).unwrap();
    client.shake().unwrap();
    assert_eq!(client.ask("hello"), "hello");
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_handshake_under_way_is_aborted(runtime: TestRuntime) {
    let running = secured(runtime).bind().await.unwrap().spawn(echo);
    let _silent = Client::of(&running);
    under_way(&running, 1);
    running.handle().abort();
    let report = settled(running.await);
    assert_eq!((report.aborted, report.failed_handshakes), (1, 0));
}

async fn a_handshake_under_way_at_the_deadline_is_a_straggler(runtime: TestRuntime) {
    let server = secured(runtime)
        .deadline(SOON)
        .tls_handshake_timeout(HOUR)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let _silent = Client::of(&running);
    under_way(&running, 1);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.aborted, 1);
    assert_eq!(report.stragglers[0].waiting, Waiting::Handshake);
    assert!(
        report.to_string().contains("in its TLS handshake"),
        "{report}"
    );
}

async fn stalled_handshakes_take_no_permit(runtime: TestRuntime) {
    let server = secured(runtime)
        .max_connections(2)
        .tls_handshake_timeout(HOUR)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let stalled = [(); 2].map(|()| Client::of(&running));
    under_way(&running, 2);
    let mut clients = [(); 2].map(|()| Secure::of(&running));
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    // Those that are apart and those with permits are all there may be.
    let mut late = Secure::begun(&running);
    let hello = late.encrypt("");
    late.socket.write_all(&hello).unwrap();
    assert_eq!(running.handle().stats().accepted, 4);
    clients[0].finish();
    assert_eq!(clients[0].rest(), "");
    late.shake().unwrap();
    assert_eq!(late.ask("hello"), "hello");
    drop(stalled);
    under_way(&running, 0);
    running.handle().shutdown();
    assert_eq!((clients[1].rest(), late.rest()), Default::default());
    let report = settled(running.await);
    assert_eq!((report.completed, report.failed_handshakes), (3, 2));
}

async fn who_has_shaken_hands_waits_for_a_permit(runtime: TestRuntime) {
    let server = secured(runtime).max_connections(1).bind().await.unwrap();
    let running = server.spawn(echo);
    // Both are in their handshakes, and there is one permit.
    let mut first = Secure::begun(&running);
    taken_in(&running.handle(), 1);
    let mut second = Secure::begun(&running);
    taken_in(&running.handle(), 2);
    second.shake().unwrap();
    first.shake().unwrap();
    first.send("hello\n");
    second.send("hello\n");
    let mut clients = [first, second];
    eventually("one of them", || running.handle().stats().bytes_out == 6);
    let waits = |number: usize| {
        let connections = running.handle().connections();
        connections[number].waiting == Waiting::Limit && connections[1 - number].bytes_out == 6
    };
    eventually("one that waits", || waits(0) || waits(1));
    let waits = usize::from(waits(1));
    let served = &mut clients[1 - waits];
    assert_eq!(served.line(), "hello");
    served.finish();
    assert_eq!(served.rest(), "");
    assert_eq!(clients[waits].line(), "hello");
    running.handle().shutdown();
    assert_eq!(clients[waits].rest(), "");
    assert_eq!(settled(running.await).completed, 2);
}

async fn who_waits_for_a_permit_at_a_stop_is_served(runtime: TestRuntime) {
    let server = secured(runtime).max_connections(1).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        // Only its own end ends it.
        let _busy = conn.busy();
        while conn.read(&mut [0]).await? > 0 {}
        std::io::Result::Ok(())
    });
    let mut clients: Vec<_> = (1..=2)
        .map(|count| {
            let client = Secure::begun(&running);
            taken_in(&running.handle(), count);
            client
        })
        .collect();
    let third = Secure::begun(&running);
    clients.push(third);
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    let clients: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                client.shake().unwrap();
                client.finish();
                assert_eq!(client.rest(), "");
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let report = settled(running.await);
    assert_eq!((report.completed, report.failed_handshakes), (3, 0));
}

async fn the_surplus_is_told_so_after_its_handshake(runtime: TestRuntime) {
    let server = secured(runtime)
        .max_connections(1)
        .reject_with("too many\n")
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut first = Secure::begun(&running);
    under_way(&running, 1);
    // Apart and with a permit, there is one each.
    let mut second = Secure::begun(&running);
    under_way(&running, 2);
    second.shake().unwrap();
    assert_eq!(second.ask("hello"), "hello");
    first.shake().unwrap();
    assert_eq!(first.rest(), "too many\n");
    // Before its handshake it could not be told.
    let mut plain = Client::of(&running);
    let mut told = Vec::new();
    plain.read_to_end(&mut told).unwrap();
    assert!(!told.windows(3).any(|it| it == b"too"), "{told:?}");
    running.handle().shutdown();
    assert_eq!(second.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (1, 2));
}

async fn a_server_that_is_dropped_ends_its_handshakes(runtime: TestRuntime) {
    let server = secured(runtime)
        .tls_handshake_timeout(SOON)
        .bind()
        .await
        .unwrap();
    let handle = server.handle();
    let running = server.spawn(echo);
    let _silent = Client::of(&running);
    under_way(&running, 1);
    drop(running);
    let report = handle.closed().await;
    assert_eq!((report.failed, report.failed_handshakes), (1, 1));
}

/// A handler whose clone, once it is told to, sends word and waits for a reply.
struct SlowToClone {
    waits: Arc<AtomicBool>,
    waiting: Sender<Sender<()>>,
}

impl Clone for SlowToClone {
    fn clone(&self) -> Self {
        if self.waits.swap(false, SeqCst) {
            let (go_on, told) = mpsc::channel();
            self.waiting.send(go_on).unwrap();
            // An error is the end of the test, which has failed.
            let _end = told.recv();
        }
        Self {
            waits: self.waits.clone(),
            waiting: self.waiting.clone(),
        }
    }
}

impl Handler for SlowToClone {
    async fn run(self, conn: Connection) -> io::Result<()> {
        echo(conn).await
    }
}

// Handshakes that ended at once took turns in one handler's clone; before that, one of two found none.
// The plain executor has two threads on any machine.
#[test]
fn a_handshake_ends_while_a_handler_is_cloned() {
    let runtime = TestRuntime::start(Engine::Executor);
    let (waiting, clones) = mpsc::channel();
    let waits = Arc::new(AtomicBool::new(false));
    let handler = SlowToClone {
        waits: waits.clone(),
        waiting,
    };
    let server = block_on(secured(runtime).bind()).unwrap();
    let running = server.spawn_with(handler);
    let mut first = Secure::begun(&running);
    under_way(&running, 1);
    waits.store(true, SeqCst);
    let mut second = Secure::begun(&running);
    let go_on = clones.recv_timeout(PATIENCE).unwrap();
    first.shake().unwrap();
    assert_eq!(first.ask("hello"), "hello");
    go_on.send(()).unwrap();
    second.shake().unwrap();
    assert_eq!(second.ask("hello"), "hello");
    running.handle().shutdown();
    let report = settled(block_on(running));
    assert_eq!((report.completed, report.panicked), (2, 0));
}
