//! The handlers of the examples, on every engine, while a stop comes in the middle of their work.
#![cfg(all(feature = "async-std", feature = "signals"))]
// Each example brings the module of its command line.
#![allow(clippy::duplicate_mod)]

#[path = "../examples/chat.rs"]
#[allow(dead_code)]
mod chat;
#[cfg(feature = "http")]
#[path = "../examples/http.rs"]
#[allow(dead_code)]
mod http;
#[path = "../examples/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "../examples/redis.rs"]
#[allow(dead_code)]
mod redis;
#[path = "support/mod.rs"]
mod support;
#[path = "../examples/websocket.rs"]
#[allow(dead_code)]
mod websocket;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use async_io::Async;
use async_tungstenite::client_async;
use async_tungstenite::tungstenite::Message;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use futures_lite::StreamExt;
use gracious::{Connection, IdleWhen, Running, fallible};

use support::TestRuntime;
use support::client::{Client, tcp};

on_every_runtime!(
    redis_answers_the_half_command_that_a_stop_finds,
    redis_answers_in_full_the_pipeline_that_a_stop_finds,
    everybody_in_a_chat_hears_that_the_server_goes,
    a_proxy_finishes_what_is_under_way_and_ends_what_is_quiet,
    websocket_clients_are_answered_and_told_why_the_server_goes,
);

/// Sends a text, and reads what is expected in answer.
#[track_caller]
fn ask(client: &mut Client, text: &str, answer: &str) {
    client.send(text);
    let mut read = vec![0; answer.len()];
    client.read_exact(&mut read).unwrap();
    assert_eq!(String::from_utf8_lossy(&read), answer);
}

async fn serve_redis(runtime: TestRuntime) -> Running {
    let store = redis::Store::default();
    let server = tcp(runtime).bind().await.unwrap();
    server.spawn(|conn: Connection| redis::redis(conn, store))
}

async fn redis_answers_the_half_command_that_a_stop_finds(runtime: TestRuntime) {
    let running = serve_redis(runtime).await;
    let mut idle = Client::of(&running);
    ask(&mut idle, "set key value\r\n", "+OK\r\n");
    let mut client = Client::of(&running);
    ask(&mut client, "*1\r\n$4\r\nping\r\n", "+PONG\r\n");
    client.send("*2\r\n$3\r\nGET\r\n$3");
    let mut last = Client::of(&running);
    last.send("*2\r\n$4\r\nECHO\r\n$4\r\n\r\n\r\n\r\nget nothing\r\nSHUTDOWN\r\n");
    assert_eq!(last.rest(), "$4\r\n\r\n\r\n\r\n$-1\r\n+OK\r\n");
    assert_eq!(idle.rest(), "");
    client.send("\r\nkey\r\n*3\r\n$3\r\ndel\r\n$3\r\nkey\r\n$3\r\nkey\r\n");
    assert_eq!(client.rest(), "$5\r\nvalue\r\n:1\r\n");
    assert_eq!(running.await.unwrap().completed, 3);
}

async fn redis_answers_in_full_the_pipeline_that_a_stop_finds(runtime: TestRuntime) {
    let running = serve_redis(runtime).await;
    let mut client = Client::of(&running);
    let commands: String = (0..5000).map(|n| format!("ECHO {n:04}\r\n")).collect();
    client.send(&commands);
    running.handle().shutdown();
    let replies: String = (0..5000).map(|n| format!("$4\r\n{n:04}\r\n")).collect();
    assert!(client.rest() == replies);
    assert_eq!(running.await.unwrap().completed, 1);
}

async fn everybody_in_a_chat_hears_that_the_server_goes(runtime: TestRuntime) {
    let people = chat::People::default();
    let server = tcp(runtime).first_byte_grace(None).bind().await.unwrap();
    let running = server.spawn(|conn: Connection| chat::chat(conn, people));
    let mut nobody = Client::of(&running);
    let mut guests = ["alice", "bob"].map(|name| {
        let mut guest = Client::of(&running);
        let said = format!("{name}: it is me\n");
        ask(&mut guest, &format!("{name}\n{said}"), &said);
        guest
    });
    let [alice, bob] = &mut guests;
    let mut other = Client::of(&running);
    other.send("bob\n");
    assert_eq!(other.rest(), "that name is taken\n");
    // What was said before the stop is heard before the end, by one who does not listen at present.
    for n in 0..50 {
        alice.send(&format!("bob, carol: {n}\n"));
    }
    ask(alice, "alice: all is said\n", "alice: all is said\n");
    running.handle().shutdown();
    let said: String = (0..50).map(|n| format!("alice: {n}\n")).collect();
    assert_eq!(bob.rest(), said + "the server goes\n");
    assert_eq!(alice.rest(), "the server goes\n");
    assert_eq!(nobody.rest(), "the server goes\n");
    // Nothing but its end is waited for: there is no deadline, and nobody hangs up.
    assert_eq!(running.await.unwrap().completed, 4);
}

const SIZE: usize = 20 << 20;

/// What is behind the proxy: it takes an upload when it is told to, gives a download, or echoes.
fn upstream(mut client: TcpStream, proceed: &Receiver<()>) {
    let mut word = [0; 1];
    client.read_exact(&mut word).unwrap();
    match &word {
        b"u" => {
            proceed.recv().unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            client.write_all(rest.len().to_string().as_bytes()).unwrap();
        }
        b"d" => client.write_all(&vec![b'.'; SIZE]).unwrap(),
        _ => {
            client.write_all(&word).unwrap();
            // Which does not end by itself when the proxy has sent the end of its input.
            let _end = client.read(&mut word);
            proceed.recv().unwrap();
        }
    }
}

async fn a_proxy_finishes_what_is_under_way_and_ends_what_is_quiet(runtime: TestRuntime) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Longer than a busy machine holds up a transfer.
    let quiet = IdleWhen::Quiet(Duration::from_secs(3));
    let server = tcp(runtime).first_byte_grace(None).idle_when(quiet);
    let server = server.bind().await.unwrap();
    let running = server.spawn(|conn: Connection| proxy::tunnel(conn, address));
    // One after the other is connected to what is behind.
    let connect = |first: &str| {
        let mut client = Client::of(&running);
        client.send(first);
        let (proceed, waits) = mpsc::channel();
        let (behind, _) = listener.accept().unwrap();
        let behind = thread::spawn(move || upstream(behind, &waits));
        (client, proceed, behind)
    };
    let (mut quiet, end_quiet, behind_quiet) = connect("e");
    quiet.read_exact(&mut [0]).unwrap();
    let (mut upload, take, behind_upload) = connect("u");
    let mut sender = upload.twin();
    let sent = thread::spawn(move || {
        sender.write_all(&vec![b'.'; SIZE]).unwrap();
        sender.finish();
    });
    let (mut download, _proceed, behind_download) = connect("d");
    // Its first byte, and no more as yet.
    download.read_exact(&mut [0]).unwrap();

    running.handle().shutdown();
    // Although what is behind it goes on; the other two are in the middle of it.
    assert_eq!(quiet.rest(), "");
    take.send(()).unwrap();
    assert_eq!(upload.rest(), SIZE.to_string());
    assert_eq!(download.rest().len(), SIZE - 1);
    assert_eq!(running.await.unwrap().completed, 3);
    end_quiet.send(()).unwrap();
    sent.join().unwrap();
    for behind in [behind_quiet, behind_upload, behind_download] {
        behind.join().unwrap();
    }
}

async fn websocket_clients_are_answered_and_told_why_the_server_goes(runtime: TestRuntime) {
    let running = tcp(runtime)
        .bind()
        .await
        .unwrap()
        .spawn(fallible(websocket::echo));
    let connect = async || {
        let address = running.handle().local_addrs()[0].as_tcp().unwrap();
        let client = Async::<TcpStream>::connect(address).await.unwrap();
        let (client, _response) = client_async("ws://localhost/", client).await.unwrap();
        client
    };
    // One has said nothing, one has its answer, one is owed many.
    let mut clients = [connect().await, connect().await, connect().await];
    clients[1].send("hello".into()).await.unwrap();
    let answer = clients[1].next().await.unwrap().unwrap();
    assert_eq!(answer.to_text().unwrap(), "hello");
    let owed = 50;
    for number in 0..owed {
        let text = format!("{number}");
        clients[2].send(text.into()).await.unwrap();
    }
    running.handle().shutdown();
    for (index, client) in clients.iter_mut().enumerate() {
        let mut answered = 0;
        let goodbye = loop {
            match client.next().await.unwrap().unwrap() {
                Message::Close(goodbye) => break goodbye.unwrap(),
                message => assert_eq!(message.to_text().unwrap(), answered.to_string()),
            }
            answered += 1;
        };
        assert_eq!(answered, if index == 2 { owed } else { 0 });
        assert_eq!(goodbye.code, CloseCode::Away);
        assert_eq!(goodbye.reason.as_str(), "the server goes");
        assert!(client.next().await.is_none());
    }
    assert_eq!(running.await.unwrap().completed, 3);
}

#[cfg(feature = "http")]
mod over_http {
    use gracious::web;

    use crate::http::answer;
    use crate::support::TestRuntime;
    use crate::support::client::{Client, eventually, tcp};

    crate::on_every_runtime!(what_is_slow_is_answered_and_what_is_idle_ends);

    async fn what_is_slow_is_answered_and_what_is_idle_ends(runtime: TestRuntime) {
        let server = tcp(runtime).bind().await.unwrap();
        let running = server.spawn(web::serve(answer));
        let handle = running.handle();
        let (mut idle, mut slow) = (Client::of(&running), Client::of(&running));
        crate::ask(
            &mut idle,
            "GET / HTTP/1.1\r\nHost: test\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
        );
        slow.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("one request under way", || {
            let connections = handle.connections();
            connections.iter().all(|it| it.bytes_in > 0)
                && connections.iter().filter(|it| it.busy).count() == 1
        });
        handle.shutdown();
        assert!(idle.rest().ends_with("\r\n\r\nhello\n"));
        let answer = slow.rest();
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(
            answer.ends_with("\r\n\r\nbetter late than never\n"),
            "{answer}"
        );
        assert_eq!(running.await.unwrap().completed, 2);
    }
}
