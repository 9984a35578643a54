//! HTTP over TLS: the version is what was agreed on in the handshake.

#[path = "../../../examples/https.rs"]
#[allow(dead_code)]
mod https;

use std::io::Read;

use gracious::{Running, web};

use super::{Secure, client_config, localhost};
use crate::support::TestRuntime;
use crate::support::client::{Client, eventually};
use crate::support::peer::settled;

crate::on_every_runtime!(
    http2_begins_where_it_was_agreed_on,
    who_agreed_on_http2_and_said_nothing_is_idle,
    http1_is_spoken_where_nothing_else_was_agreed_on,
    half_a_head_at_the_stop_is_waited_for,
    the_example_answers_what_is_slow_and_ends_what_is_idle,
);

async fn serving(runtime: TestRuntime) -> Running {
    let server = crate::support::server(runtime)
        .listen_tls("127.0.0.1:0", localhost().alpn(web::ALPN))
        .deadline(None);
    let answer = async |request: web::Request| web::Response::new(request.uri().path().to_owned());
    server.bind().await.unwrap().spawn(web::serve(answer))
}

fn client(running: &Running, protocols: &[&str]) -> Secure {
    let mut config = client_config(None, None);
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().into()).collect();
    let mut client = Secure::over(Client::of(running), "localhost", config);
    client.shake().unwrap();
    client
}

async fn http2_begins_where_it_was_agreed_on(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = client(&running, &["http/1.1", "h2"]);
    // By this alone it could be an HTTP/1 client.
    client.send("P");
    let mut frame = [0; 9];
    client.read_exact(&mut frame).unwrap();
    assert_eq!((frame[3], &frame[5..]), (4, &[0; 4][..]));
    client.finish();
    running.handle().shutdown();
    assert_eq!(settled(running.await).failed, 1);
}

async fn who_agreed_on_http2_and_said_nothing_is_idle(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = client(&running, &["h2"]);
    let bytes = client.encrypt("");
    std::io::Write::write_all(&mut client.socket, &bytes).unwrap();
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn http1_is_spoken_where_nothing_else_was_agreed_on(runtime: TestRuntime) {
    let running = serving(runtime).await;
    for protocols in [&["http/1.1"][..], &[]] {
        let mut client = client(&running, protocols);
        client.send("GET /one HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        let answer = client.rest();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n/one"), "{answer}");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn half_a_head_at_the_stop_is_waited_for(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = client(&running, &["http/1.1"]);
    client.send("GET /one HT");
    let mut idle = self::client(&running, &["http/1.1"]);
    idle.send("GET /two HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).unwrap();
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    assert!(idle.rest().ends_with("/two"));
    client.send("TP/1.1\r\nHost: test\r\n\r\n");
    let answer = client.rest();
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("/one"), "{answer}");
    assert_eq!(settled(running.await).completed, 2);
}

async fn the_example_answers_what_is_slow_and_ends_what_is_idle(runtime: TestRuntime) {
    let tls = localhost().alpn(web::ALPN);
    let server = crate::support::server(runtime).listen_tls("127.0.0.1:0", &tls);
    let server = server.deadline(None).bind().await.unwrap();
    let running = server.spawn(web::serve(move |request| {
        https::answer(request, tls.clone())
    }));
    let handle = running.handle();
    let mut idle = client(&running, &["http/1.1"]);
    let mut slow = client(&running, &["http/1.1"]);
    for (client, path) in [(&mut idle, ""), (&mut slow, "slow")] {
        client.send(&format!("GET /{path} HTTP/1.1\r\nHost: test\r\n\r\n"));
    }
    eventually("one request under way", || {
        let connections = handle.connections();
        connections.iter().all(|it| it.bytes_in > 0)
            && connections.iter().filter(|it| it.busy).count() == 1
    });
    handle.shutdown();
    let answer = idle.rest();
    assert!(
        answer.ends_with("\r\n\r\nhello over HTTP/1.1\n"),
        "{answer}"
    );
    let answer = slow.rest();
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nbetter late than never\n"),
        "{answer}"
    );
    assert_eq!(settled(running.await).completed, 2);
}
