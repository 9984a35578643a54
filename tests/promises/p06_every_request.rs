//! Promise 6. **Every request a handler began is answered in full** within the deadline: without a
//! word where requests and replies take turns and input is parsed from our buffer; elsewhere once
//! the handler has declared itself (promise 7).

use std::io;
use std::thread;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, future};
use gracious::Connection;

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, echo, handing_over, on, transports, waits};

crate::on_every_runtime!(
    a_reply_that_is_being_made_at_the_stop_arrives_whole,
    a_reply_that_comes_in_pieces_arrives_whole,
    pipelined_requests_are_all_answered,
    pipelined_requests_behind_the_one_that_stops_the_server_are_all_answered,
    a_request_that_has_come_in_half_is_answered,
    a_request_that_nobody_has_read_yet_is_answered,
    requests_in_turns_are_answered_whenever_the_stop_comes,
);

async fn a_reply_that_is_being_made_at_the_stop_arrives_whole(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).deadline(HOUR);
        let (mut running, connections) = handing_over(server.bind().await.unwrap());
        let mut client = Client::of(&running);
        client.send("a question\n");
        let mut conn = connections.recv().await.unwrap();
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        assert!(waits(&mut running).await);
        conn.write_all(b"an answer\n").await.unwrap();
        // Only now is there nothing more to come.
        assert_eq!(conn.read(&mut [0; 8]).await.unwrap(), 0);
        drop(conn);
        assert_eq!(client.rest(), "an answer\n");
        let report = running.await.unwrap();
        assert_eq!((report.accepted, report.completed), (1, 1));
    }
}

async fn a_reply_that_comes_in_pieces_arrives_whole(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let (running, connections) = handing_over(server);
        let mut client = Client::of(&running);
        client.send("a question\n");
        let mut conn = connections.recv().await.unwrap();
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        conn.write_all(b"first, ").await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        for piece in ["second, ", "third"] {
            conn.write_all(piece.as_bytes()).await.unwrap();
            conn.flush().await.unwrap();
        }
        conn.close().await.unwrap();
        drop(conn);
        assert_eq!(client.rest(), "first, second, third");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

/// More than one buffer holds, and less than the kernel does.
const REQUESTS: usize = 3000;

fn pipelined() -> String {
    (0..REQUESTS).map(|i| format!("{i}\n")).collect()
}

async fn pipelined_requests_are_all_answered(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let mut client = Client::to(&server);
        client.send(&pipelined());
        server.handle().shutdown();
        let running = server.spawn(echo);
        assert_eq!(client.rest(), pipelined());
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn pipelined_requests_behind_the_one_that_stops_the_server_are_all_answered(
    runtime: TestRuntime,
) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let mut client = Client::to(&server);
        client.send(&pipelined());
        let running = server.spawn(async |mut conn: Connection| {
            let mut line = String::new();
            while conn.read_line(&mut line).await? > 0 {
                if line == "100\n" {
                    conn.handle().shutdown();
                    conn.shutdown_requested().await;
                }
                conn.write_all(line.as_bytes()).await?;
                line.clear();
            }
            Ok::<_, io::Error>(())
        });
        assert_eq!(client.rest(), pipelined());
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn a_request_that_has_come_in_half_is_answered(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let (running, connections) = handing_over(server);
        let mut client = Client::of(&running);
        client.send("half a re");
        let mut conn = connections.recv().await.unwrap();
        let mut request = [0; 14];
        conn.read_exact(&mut request[..5]).await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        {
            let mut rest = conn.read_exact(&mut request[5..]);
            assert!(waits(&mut rest).await);
            client.send("quest");
            rest.await.unwrap();
        }
        assert_eq!(&request, b"half a request");
        conn.write_all(b"an answer\n").await.unwrap();
        assert_eq!(conn.read(&mut request).await.unwrap(), 0);
        drop(conn);
        assert_eq!(client.rest(), "an answer\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

async fn a_request_that_nobody_has_read_yet_is_answered(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let (running, connections) = handing_over(server);
        let mut client = Client::of(&running);
        // One segment: when the first is read, the second is there.
        client.send("one\ntwo\n");
        let mut conn = connections.recv().await.unwrap();
        let mut request = [0; 4];
        conn.read_exact(&mut request).await.unwrap();
        conn.write_all(&request).await.unwrap();
        running.handle().shutdown();
        conn.shutdown_requested().await;
        conn.read_exact(&mut request).await.unwrap();
        conn.write_all(&request).await.unwrap();
        assert_eq!(conn.read(&mut request).await.unwrap(), 0);
        drop(conn);
        assert_eq!(client.rest(), "one\ntwo\n");
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

/// Clients that ask and wait in turns: each question that was read is answered in full, and the end
/// comes between two answers.
async fn requests_in_turns_are_answered_whenever_the_stop_comes(runtime: TestRuntime) {
    const REPLY: usize = 5000;
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(async |mut conn: Connection| {
            let mut line = String::new();
            while conn.read_line(&mut line).await? > 0 {
                // Two writes, and a turn for others in between.
                conn.write_all(&[b'x'; REPLY / 2]).await?;
                future::yield_now().await;
                conn.write_all(&[b'y'; REPLY / 2]).await?;
                line.clear();
            }
            Ok::<_, io::Error>(())
        });
        let (asked, is_asked) = async_channel::unbounded();
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (mut client, asked) = (Client::of(&running), asked.clone());
                thread::spawn(move || {
                    use std::io::{Read, Write};
                    // Until the end, which may come while a question is on its way.
                    while client.write_all(b"a question\n").is_ok() {
                        let mut reply = Vec::new();
                        let mut whole = (&mut client).take(REPLY as u64);
                        match whole.read_to_end(&mut reply) {
                            Ok(REPLY) => {}
                            Ok(0) => return,
                            other => panic!("{other:?}, in place of a whole reply or none"),
                        }
                        asked.try_send(()).unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..100 {
            is_asked.recv().await.unwrap();
        }
        let report = running.shutdown().await.unwrap();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!((report.accepted, report.completed), (8, 8));
    }
}
