//! TLS behind a PROXY header: the header comes first, in the clear, and then the handshake.

use std::io::{Read, Write};
use std::time::Duration;

use futures_lite::AsyncWriteExt;
use gracious::{Builder, Cause, Connection, ProxyProtocol, Waiting};

use super::{Secure, secured};
use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, echo, eventually};
use crate::support::peer::{cause_of, settled};

crate::on_every_runtime!(
    a_header_and_then_tls_are_one_connections_beginning,
    a_stop_waits_for_both,
    a_handshake_without_a_header_is_one_connections_end,
    each_has_a_time_of_its_own,
    a_client_with_too_many_connections_is_closed_before_its_handshake,
);

const HEADER: &str = "PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\n";

fn proxied(runtime: TestRuntime) -> Builder<TestRuntime> {
    secured(runtime).proxy_protocol(ProxyProtocol::from_trusted(["127.0.0.1"]))
}

async fn introduce(mut conn: Connection) -> std::io::Result<()> {
    let text = format!(
        "{} {:?}\n",
        conn.peer_addr(),
        conn.tls().unwrap().server_name
    );
    conn.write_all(text.as_bytes()).await?;
    echo(conn).await
}

const INTRODUCTION: &str = r#"192.0.2.7:4711 Some("localhost")"#;

async fn a_header_and_then_tls_are_one_connections_beginning(runtime: TestRuntime) {
    let running = proxied(runtime).bind().await.unwrap().spawn(introduce);
    // In a packet of its own, with the beginning of the handshake, and by single bytes.
    for pieces in [0, 1, 2] {
        let mut client = Secure::begun(&running);
        let hello = client.encrypt("");
        let all = [HEADER.as_bytes(), &hello].concat();
        match pieces {
            0 => {
                client.socket.send(HEADER);
                let handle = running.handle();
                eventually("a header that has come", || {
                    let connections = handle.connections();
                    connections
                        .last()
                        .is_some_and(|it| it.waiting == Waiting::Handshake)
                });
                client.socket.write_all(&hello).unwrap();
            }
            1 => client.socket.write_all(&all).unwrap(),
            _ => all
                .iter()
                .for_each(|byte| client.socket.write_all(&[*byte]).unwrap()),
        }
        client.shake().unwrap();
        assert_eq!(client.line(), INTRODUCTION);
        assert_eq!(client.ask("hello"), "hello");
        client.finish();
        assert_eq!(client.rest(), "");
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.handshakes), (3, 0));
    assert_eq!(
        (report.failed_handshakes, report.failed_proxy_headers),
        (0, 0)
    );
}

async fn a_stop_waits_for_both(runtime: TestRuntime) {
    let server = proxied(runtime.clone()).bind().await.unwrap();
    let running = server.spawn(introduce);
    let mut client = Secure::begun(&running);
    client.socket.send(&HEADER[..20]);
    let handle = running.handle();
    let waits = |what| {
        eventually("a handshake", || {
            let connections = handle.connections();
            connections
                .last()
                .is_some_and(|it| it.busy && it.waiting == what)
        });
    };
    waits(Waiting::ProxyHeader);
    runtime.put_forward(Duration::from_secs(5));
    handle.shutdown();
    handle.shutdown_requested().await;
    client.socket.send(&HEADER[20..]);
    waits(Waiting::Handshake);
    runtime.put_forward(Duration::from_secs(5));
    client.shake().unwrap();
    assert_eq!(client.line(), INTRODUCTION);
    // What it may say first counts from the end of both.
    assert_eq!(client.ask("hello"), "hello");
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_handshake_without_a_header_is_one_connections_end(runtime: TestRuntime) {
    let server = proxied(runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(introduce);
    let mut client = Secure::begun(&running);
    assert!(client.shake().is_err());
    let Cause::ProxyHeader(cause) = cause_of(1, &events).await else {
        panic!("no failed header");
    };
    let expected = r#"expected a PROXY header, found "\x16\x03\x01"#;
    assert!(cause.starts_with(expected), "{cause}");
    drop(client);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.failed_proxy_headers), (1, 1));
    assert_eq!(report.failed_handshakes, 0);
}

async fn each_has_a_time_of_its_own(runtime: TestRuntime) {
    let proxies = ProxyProtocol::from_trusted(["127.0.0.1"]).timeout(HOUR);
    let server = secured(runtime)
        .proxy_protocol(proxies)
        .tls_handshake_timeout(Duration::from_millis(200));
    let server = server.bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(introduce);
    let mut client = Secure::begun(&running);
    client.socket.send(HEADER);
    let cause = cause_of(1, &events).await;
    let expected = "the TLS handshake took longer than 200ms";
    assert_eq!(cause, Cause::Handshake(expected.into()));
    client.socket.hang_up();
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(
        (report.failed_handshakes, report.failed_proxy_headers),
        (1, 0)
    );
}

async fn a_client_with_too_many_connections_is_closed_before_its_handshake(runtime: TestRuntime) {
    let server = proxied(runtime).max_per_peer(1).reject_with("too many\n");
    let running = server.bind().await.unwrap().spawn(introduce);
    let mut first = Secure::begun(&running);
    first.socket.send(HEADER);
    first.shake().unwrap();
    assert_eq!(first.line(), INTRODUCTION);
    let mut second = Client::of(&running);
    second.send(HEADER);
    let mut told = Vec::new();
    second.read_to_end(&mut told).unwrap();
    // It could not read the message.
    assert!(!told.windows(3).any(|it| it == b"too"), "{told:?}");
    running.handle().shutdown();
    assert_eq!(first.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (1, 1));
}
