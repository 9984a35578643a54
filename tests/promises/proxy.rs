//! The PROXY protocol (feature `proxy`): the client that a header names is the peer, everywhere; a header
//! takes its time and no other's, and no permit; what is wrong with it is one connection's end.

use std::io::{self, Write};
use std::time::Duration;

use gracious::{
    Address, Builder, Cause, Connection, ProxyHeader, ProxyProtocol, Running, ServerEvent, Waiting,
};

use crate::support::client::{Client, HOUR, echo, eventually, handing_over, tcp, unix_address};
use crate::support::peer::{cause_of, settled};
use crate::support::{TestRuntime, server};

crate::on_every_runtime!(
    the_client_that_a_header_names_is_the_peer,
    unix_addresses_and_extensions_can_be_read,
    a_header_in_pieces_is_read,
    what_comes_with_the_header_is_the_first_that_is_read,
    a_proxy_that_speaks_for_itself_is_the_peer,
    what_is_no_header_is_one_connections_end,
    a_header_that_takes_too_long_is_one_connections_end,
    a_proxy_that_ends_in_its_header_is_one_connections_end,
    a_peer_from_elsewhere_is_refused,
    a_peer_from_elsewhere_is_taken_as_it_is,
    a_client_has_no_more_connections_than_it_may,
    a_header_under_way_at_a_stop_is_waited_for_and_its_client_served,
    a_request_that_came_with_its_header_is_answered_at_a_stop,
    a_header_under_way_is_aborted,
    a_header_under_way_at_the_deadline_is_a_straggler,
    a_straggler_is_named_by_its_client,
    headers_under_way_take_no_permit,
    the_surplus_is_told_so_before_its_header,
    a_server_that_is_dropped_ends_its_waits_for_headers,
    wrong_networks_are_an_error_of_bind,
);

const SOON: Duration = Duration::from_millis(200);

/// A server whose clients come through proxies on this machine.
fn proxied(runtime: TestRuntime) -> Builder<TestRuntime> {
    tcp(runtime).proxy_protocol(local())
}

fn local() -> ProxyProtocol {
    ProxyProtocol::from_trusted(["127.0.0.0/8", "unix"])
}

/// A header of version 1 for this client.
fn line(client: &str) -> String {
    let client: std::net::SocketAddr = client.parse().unwrap();
    let (ip, port) = (client.ip(), client.port());
    match client.is_ipv4() {
        true => format!("PROXY TCP4 {ip} 198.51.100.1 {port} 443\r\n"),
        false => format!("PROXY TCP6 {ip} 2001:db8::443 {port} 443\r\n"),
    }
}

/// A header of version 2.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [
        b"\r\n\r\n\0\r\nQUIT\n",
        &[command, family][..],
        &length,
        rest,
    ]
    .concat()
}

/// Where this client's socket is.
fn own(client: &Client) -> Address {
    match client {
        Client::Tcp(socket) => socket.local_addr().unwrap().into(),
        Client::Unix(_) => Address::Unnamed,
    }
}

/// Says whom it serves and who has connected, then echoes.
async fn introduce(mut conn: Connection) -> io::Result<()> {
    use futures_lite::AsyncWriteExt;
    let text = format!("{} by {}\n", conn.peer_addr(), conn.socket_peer());
    conn.write_all(text.as_bytes()).await?;
    echo(conn).await
}

async fn the_client_that_a_header_names_is_the_peer(runtime: TestRuntime) {
    for address in ["127.0.0.1:0".to_owned(), unix_address()] {
        let builder = server(runtime.clone()).listen(&*address).deadline(None);
        let server = builder.proxy_protocol(local()).bind().await.unwrap();
        let events = server.handle().events();
        let running = server.spawn(introduce);
        let ipv6 = [&[0x20; 15][..], &[1], &[0xfd; 16], &[0xff, 1, 1, 187]].concat();
        let headers = [
            (line("192.0.2.7:4711").into_bytes(), "192.0.2.7:4711"),
            (
                line("[2001:db8::7]:4711").into_bytes(),
                "[2001:db8::7]:4711",
            ),
            (
                binary(
                    0x21,
                    0x11,
                    &[192, 0, 2, 9, 198, 51, 100, 1, 0x12, 0x67, 1, 187],
                ),
                "192.0.2.9:4711",
            ),
            (
                binary(0x21, 0x21, &ipv6),
                "[2020:2020:2020:2020:2020:2020:2020:2001]:65281",
            ),
        ];
        for (header, name) in headers {
            let mut client = Client::of(&running);
            client.write_all(&header).unwrap();
            assert_eq!(client.line(), format!("{name} by {}", own(&client)));
            assert_eq!(client.ask("hello"), "hello");
            let [connection] = &running.handle().connections()[..] else {
                panic!("one connection");
            };
            assert_eq!(connection.peer.to_string(), name);
            // Not a byte of the header is counted.
            assert_eq!(connection.bytes_in, 6);
            client.finish();
            assert_eq!(client.rest(), "");
            // The client sees its end before the connection is counted off.
            eventually("it is gone", || running.handle().active() == 0);
            let told = loop {
                if let ServerEvent::Proxied { peer, .. } = events.recv().await.unwrap() {
                    break peer;
                }
            };
            assert_eq!(told.to_string(), name);
        }
        running.handle().shutdown();
        let report = settled(running.await);
        assert_eq!((report.completed, report.failed_proxy_headers), (4, 0));
        assert_eq!(report.handshakes, 0);
    }
}

async fn unix_addresses_and_extensions_can_be_read(runtime: TestRuntime) {
    let server = proxied(runtime).bind().await.unwrap();
    let (running, given) = handing_over(server);
    let mut block = vec![0; 216];
    block[..11].copy_from_slice(b"/run/a.sock");
    block[108..113].copy_from_slice(b"\0name");
    block.extend(b"\x01\0\x02h2\x02\0\x0bexample.org\x05\0\x04\0\x01\x02\xff\xe0\0\0");
    let mut client = Client::of(&running);
    client.write_all(&binary(0x21, 0x31, &block)).unwrap();
    let conn = given.recv().await.unwrap();
    assert_eq!(conn.peer_addr().to_string(), "unix:/run/a.sock");
    assert_eq!(conn.control().peer_addr(), conn.peer_addr());
    let header: ProxyHeader = conn.proxy().unwrap();
    assert_eq!(
        header.destination.as_ref().unwrap().to_string(),
        "unix:@name"
    );
    assert_eq!((header.version, header.is_local), (2, false));
    assert_eq!(header.authority(), Some("example.org"));
    assert_eq!(header.protocol(), Some(&b"h2"[..]));
    assert_eq!(header.unique_id(), Some(&[0, 1, 2, 255][..]));
    assert_eq!(header.extension(0xe0), Some(&[][..]));
    assert_eq!(header.extension(0xe1), None);
    assert_eq!(conn.control().proxy(), Some(header));
    let control = conn.control();
    drop(conn);
    assert_eq!(client.rest(), "");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
    assert_eq!(control.proxy(), None);
    assert_eq!(control.peer_addr().to_string(), "unix:/run/a.sock");
}

async fn a_header_in_pieces_is_read(runtime: TestRuntime) {
    let running = proxied(runtime).bind().await.unwrap().spawn(introduce);
    let ipv4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 1, 187];
    for header in [
        line("192.0.2.7:4711").into_bytes(),
        binary(0x21, 0x11, &ipv4),
    ] {
        let mut client = Client::of(&running);
        let accepted = running.handle().stats().accepted;
        for byte in [&header[..], b"hello\n"].concat() {
            client.write_all(&[byte]).unwrap();
            // Each is read before the next comes, now and then.
            std::thread::yield_now();
        }
        assert!(
            client.line().starts_with("192.0.2.7:4711 by "),
            "{accepted}"
        );
        assert_eq!(client.line(), "hello");
        client.finish();
        assert_eq!(client.rest(), "");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn what_comes_with_the_header_is_the_first_that_is_read(runtime: TestRuntime) {
    let running = proxied(runtime).bind().await.unwrap().spawn(introduce);
    // As much as one read brings, and more.
    for length in [1, 4096, 16_000, 40_000] {
        let mut client = Client::of(&running);
        let payload = "x".repeat(length);
        client.send(&format!("{}{payload}\n", line("192.0.2.7:4711")));
        assert!(client.line().starts_with("192.0.2.7:4711 by "));
        assert_eq!(client.line(), payload);
        client.finish();
        assert_eq!(client.rest(), "");
    }
    // With the client's end behind it, too.
    let mut client = Client::of(&running);
    client.send(&format!("{}hello\n", line("192.0.2.7:4711")));
    client.finish();
    assert!(client.rest().ends_with("\nhello\n"));
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.completed, 5);
    assert_eq!(report.bytes_in, 2 + 4097 + 16_001 + 40_001 + 6);
}

async fn a_proxy_that_speaks_for_itself_is_the_peer(runtime: TestRuntime) {
    let running = proxied(runtime).bind().await.unwrap().spawn(introduce);
    let ipv4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 1, 187];
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.7 192.0.2.8 1 2\r\n".to_vec(),
        binary(0x20, 0x00, b""),
        binary(0x20, 0x11, &ipv4),
        binary(0x21, 0x00, b"\x04\0\0"),
    ] {
        let mut client = Client::of(&running);
        client.write_all(&header).unwrap();
        let own = own(&client);
        assert_eq!(client.line(), format!("{own} by {own}"));
        client.finish();
        assert_eq!(client.rest(), "");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 5);
}

/// Serves one connection that has no good header; gives the cause of its end.
async fn fails(runtime: TestRuntime, client: impl FnOnce(Client)) -> String {
    let proxies = local().timeout(SOON);
    let server = tcp(runtime).proxy_protocol(proxies).linger(SOON);
    let server = server.bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    client(Client::of(&running));
    let Cause::ProxyHeader(cause) = cause_of(1, &events).await else {
        panic!("no failed header");
    };
    // Nobody else is concerned.
    let mut other = Client::of(&running);
    other.send(&line("192.0.2.7:4711"));
    assert_eq!(other.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(other.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.failed, report.failed_proxy_headers), (1, 1));
    assert_eq!((report.completed, report.handshakes), (1, 0));
    assert!(
        report.to_string().contains("1 failed PROXY headers"),
        "{report}"
    );
    cause
}

async fn what_is_no_header_is_one_connections_end(runtime: TestRuntime) {
    let mut wrong_sum = [0; 19];
    wrong_sum[12..15].copy_from_slice(b"\x03\0\x04");
    for (sent, cause) in [
        (
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            r#"expected a PROXY header, found "GET / HTTP/1.1\r\n""#,
        ),
        (
            b"PROXY TCP4 192.0.2.7 192.0.2.8 01 2\r\n".to_vec(),
            r#"PROXY v1: expected a port from 0 to 65535, found "01" in "PROXY TCP4 192.0.2.7 192.0.2.8 01 2""#,
        ),
        (
            b"PROXY UNKNOWN\nhello\n".to_vec(),
            r#"PROXY v1: expected CRLF at its end, found a bare LF in "PROXY UNKNOWN""#,
        ),
        (
            [b"PROXY UNKNOWN ", &[b'x'; 93][..]].concat(),
            "PROXY v1: expected the end of the line within 107 bytes, found none",
        ),
        (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(),
            "PROXY v2: expected a header of at most 8192 bytes, found 65535",
        ),
        (
            binary(0x21, 0x11, &wrong_sum),
            "PROXY v2: expected a header with the checksum 0x00000000, found one with 0x",
        ),
    ] {
        let found = fails(runtime.clone(), |mut client| {
            client.write_all(&sent).unwrap();
            assert_eq!(client.rest(), "");
        })
        .await;
        assert!(found.starts_with(cause), "{found}");
    }
}

async fn a_header_that_takes_too_long_is_one_connections_end(runtime: TestRuntime) {
    let cause = fails(runtime, |mut client| {
        client.send("PROXY TCP4 192.0.2.7 ");
        assert_eq!(client.rest(), "");
    })
    .await;
    assert_eq!(cause, "the PROXY header took longer than 200ms");
}

async fn a_proxy_that_ends_in_its_header_is_one_connections_end(runtime: TestRuntime) {
    for (sent, bytes) in [("", 0), ("PROXY TCP4", 10)] {
        let cause = fails(runtime.clone(), |mut client| {
            client.send(sent);
            client.finish();
            assert_eq!(client.rest(), "");
        })
        .await;
        let expected = format!("expected a PROXY header, found the end after {bytes} bytes");
        assert_eq!(cause, expected);
    }
}

async fn a_peer_from_elsewhere_is_refused(runtime: TestRuntime) {
    let proxies = ProxyProtocol::from_trusted(["192.0.2.0/24", "unix"]);
    let builder = tcp(runtime)
        .proxy_protocol(proxies)
        .reject_with("too many\n");
    let server = builder.bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    for sent in [
        "",
        "hello\n",
        "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\nhello\n",
    ] {
        let mut client = Client::of(&running);
        client.send(sent);
        assert_eq!(client.rest(), "");
    }
    assert_eq!(cause_of(1, &events).await, Cause::Rejected);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.rejected, report.accepted), (3, 3));
}

async fn a_peer_from_elsewhere_is_taken_as_it_is(runtime: TestRuntime) {
    let proxies = ProxyProtocol::from_trusted(["192.0.2.0/24"]).or_direct();
    let server = tcp(runtime).proxy_protocol(proxies);
    let running = server.bind().await.unwrap().spawn(introduce);
    let mut client = Client::of(&running);
    let own = own(&client);
    assert_eq!(client.line(), format!("{own} by {own}"));
    // It can say of itself what it likes.
    assert_eq!(client.ask("PROXY UNKNOWN"), "PROXY UNKNOWN");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_client_has_no_more_connections_than_it_may(runtime: TestRuntime) {
    let builder = proxied(runtime).max_per_peer(2).reject_with("too many\n");
    let running = builder.bind().await.unwrap().spawn(echo);
    let from = |address: &str| {
        let mut client = Client::of(&running);
        client.send(&line(address));
        client
    };
    let mut first = [1, 2].map(|port| from(&format!("192.0.2.7:{port}")));
    for client in &mut first {
        assert_eq!(client.ask("hello"), "hello");
    }
    assert_eq!(from("192.0.2.7:3").rest(), "too many\n");
    assert_eq!(from("[::ffff:192.0.2.7]:4").rest(), "too many\n");
    let mut other = from("192.0.2.8:1");
    assert_eq!(other.ask("hello"), "hello");
    first[0].finish();
    assert_eq!(first[0].rest(), "");
    eventually("an end that is counted", || {
        running.handle().stats().completed == 1
    });
    let mut next = from("192.0.2.7:5");
    assert_eq!(next.ask("hello"), "hello");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (4, 2));
}

/// Waits until so many headers are waited for.
#[track_caller]
fn under_way(running: &Running, count: u64) {
    let handle = running.handle();
    eventually("headers", || handle.stats().handshakes == count);
}

/// A client whose header is not complete.
fn begun(running: &Running) -> Client {
    let mut client = Client::of(running);
    client.send("PROXY TCP4 192.0.2.7 ");
    client
}

const REST: &str = "192.0.2.8 4711 2\r\n";

async fn a_header_under_way_at_a_stop_is_waited_for_and_its_client_served(runtime: TestRuntime) {
    let server = proxied(runtime.clone()).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = begun(&running);
    under_way(&running, 1);
    let [connection] = &running.handle().connections()[..] else {
        panic!("one connection");
    };
    assert!(connection.busy);
    assert_eq!(connection.waiting, Waiting::ProxyHeader);
    assert_eq!(connection.peer, own(&client));
    // The accept was long ago: what the client may say first counts from the end of its header.
    runtime.put_forward(Duration::from_secs(5));
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    client.send(REST);
    assert_eq!(client.ask("hello"), "hello");
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_request_that_came_with_its_header_is_answered_at_a_stop(runtime: TestRuntime) {
    let running = proxied(runtime).bind().await.unwrap().spawn(echo);
    let mut client = begun(&running);
    under_way(&running, 1);
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    client.send(&format!("{REST}hello\n"));
    assert_eq!(client.rest(), "hello\n");
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_header_under_way_is_aborted(runtime: TestRuntime) {
    let running = proxied(runtime).bind().await.unwrap().spawn(echo);
    let _silent = begun(&running);
    under_way(&running, 1);
    running.handle().abort();
    let report = settled(running.await);
    assert_eq!((report.aborted, report.failed_proxy_headers), (1, 0));
}

async fn a_header_under_way_at_the_deadline_is_a_straggler(runtime: TestRuntime) {
    let proxies = local().timeout(HOUR);
    let server = tcp(runtime).proxy_protocol(proxies).deadline(SOON);
    let running = server.bind().await.unwrap().spawn(echo);
    let _silent = begun(&running);
    under_way(&running, 1);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.aborted, 1);
    assert_eq!(report.stragglers[0].waiting, Waiting::ProxyHeader);
    let said = report.to_string();
    assert!(said.contains("waiting for its PROXY header"), "{said}");
}

async fn a_straggler_is_named_by_its_client(runtime: TestRuntime) {
    let server = proxied(runtime).deadline(SOON).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    client.send(&format!("{}hello\nhalf", line("192.0.2.7:4711")));
    assert_eq!(client.line(), "hello");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.stragglers[0].peer.to_string(), "192.0.2.7:4711");
}

async fn headers_under_way_take_no_permit(runtime: TestRuntime) {
    let proxies = local().timeout(HOUR);
    let server = tcp(runtime).proxy_protocol(proxies).max_connections(2);
    let running = server.bind().await.unwrap().spawn(echo);
    let stalled = [(); 2].map(|()| begun(&running));
    under_way(&running, 2);
    let mut clients = [(); 2].map(|()| begun(&running));
    for client in &mut clients {
        client.send(REST);
        assert_eq!(client.ask("hello"), "hello");
    }
    // Both permits are in use; who has sent a header waits for one.
    let mut stalled = stalled.into_iter();
    let mut waits = stalled.next().unwrap();
    waits.send(&format!("{REST}hello\n"));
    let handle = running.handle();
    let waiting = || {
        let connections = handle.connections();
        connections.iter().any(|it| it.waiting == Waiting::Limit)
    };
    eventually("one that waits for a permit", waiting);
    clients[0].finish();
    assert_eq!(clients[0].rest(), "");
    assert_eq!(waits.line(), "hello");
    drop(stalled);
    running.handle().shutdown();
    assert_eq!((clients[1].rest(), waits.rest()), Default::default());
    let report = settled(running.await);
    assert_eq!((report.completed, report.failed_proxy_headers), (3, 1));
}

async fn the_surplus_is_told_so_before_its_header(runtime: TestRuntime) {
    let builder = proxied(runtime)
        .max_connections(1)
        .reject_with("too many\n");
    let running = builder.bind().await.unwrap().spawn(echo);
    let mut first = begun(&running);
    under_way(&running, 1);
    // Apart and with a permit, there is one each.
    let mut second = begun(&running);
    under_way(&running, 2);
    second.send(REST);
    assert_eq!(second.ask("hello"), "hello");
    assert_eq!(begun(&running).rest(), "too many\n");
    first.send(REST);
    assert_eq!(first.rest(), "too many\n");
    running.handle().shutdown();
    assert_eq!(second.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (1, 2));
}

async fn a_server_that_is_dropped_ends_its_waits_for_headers(runtime: TestRuntime) {
    let server = tcp(runtime).proxy_protocol(local().timeout(SOON));
    let server = server.bind().await.unwrap();
    let handle = server.handle();
    let running = server.spawn(echo);
    let _silent = begun(&running);
    under_way(&running, 1);
    drop(running);
    let report = handle.closed().await;
    assert_eq!((report.failed, report.failed_proxy_headers), (1, 1));
}

async fn wrong_networks_are_an_error_of_bind(runtime: TestRuntime) {
    for (network, expected) in [
        (
            "10.0.0.1/8",
            "`10.0.0.1/8` is no network: expected no bit set behind the first 8",
        ),
        (
            "balancer",
            "`balancer` is no network: expected an IP address, ADDRESS/BITS or `unix`",
        ),
    ] {
        let proxies = ProxyProtocol::from_trusted([network]);
        let bound = tcp(runtime.clone()).proxy_protocol(proxies).bind().await;
        let error = bound.map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), format!("proxy_protocol: {expected}"));
    }
    let never = local().timeout(Duration::ZERO);
    let bound = tcp(runtime).proxy_protocol(never).bind().await;
    assert_eq!(
        bound.map(drop).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}
