//! HTTP on top (feature `http`): what a request may take, and how it comes: in pieces, with a body
//! that is asked for, to services that stay on their thread.

use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use gracious::{Cause, ServerEvent, web};

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, eventually, tcp};
use crate::support::peer::OnDrop;

use super::http::{all_completed, answer, closes, get, h2, response, serving, stop};

crate::on_every_runtime!(
    half_a_request_behind_another_is_waited_for_at_a_stop,
    a_head_that_takes_too_long_ends_its_connection,
    a_pause_between_requests_is_not_one_in_a_head,
    a_body_that_pauses_too_long_ends_its_connection,
    a_pause_of_the_service_is_not_one_of_its_body,
    a_body_that_is_asked_for_comes_through_the_stop,
    a_body_that_is_not_asked_for_is_not_sent,
    the_version_is_told_from_its_first_bytes_however_they_come,
    http2_is_not_spoken_where_it_is_not_wanted,
    heads_have_limits,
    an_http2_client_is_told_how_many_requests_it_may_have,
    #[cfg(target_os = "linux")]
    services_that_stay_on_their_thread_answer_through_the_stop,
);

const HALF_AN_HOUR: Duration = Duration::from_secs(1800);
const SHORT: Duration = Duration::from_millis(50);

async fn half_a_request_behind_another_is_waited_for_at_a_stop(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = Client::of(&running);
    client.send(&(get("/1") + "GET /2 HT"));
    let (head, body) = response(&mut client);
    assert_eq!((&*body, closes(&head)), ("/1 0", false));
    stop(&running);
    assert_eq!(running.handle().active(), 1);
    client.send("TP/1.1\r\nHost: test\r\n\r\n");
    let (head, body) = response(&mut client);
    assert_eq!((&*body, closes(&head)), ("/2 0", true));
    assert_eq!(client.rest(), "");
    all_completed(&running.await.unwrap(), 1);
}

async fn a_head_that_takes_too_long_ends_its_connection(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(web::builder().head_timeout(SHORT).serve(answer));
    let events = running.handle().events();
    // In the second request as in the first, and while it may yet be HTTP/2.
    let mut client = Client::of(&running);
    client.send(&get("/1"));
    response(&mut client);
    client.send("GET /2 HTTP/1.1\r\n");
    assert_eq!(client.rest(), "");
    for part in ["P", "PRI * HT"] {
        let mut client = Client::of(&running);
        client.send(part);
        assert_eq!(client.rest(), "");
    }
    let report = running.shutdown().await.unwrap();
    assert_eq!(report.failed, 3, "{report}");
    let mut causes = 0;
    while let Ok(event) = events.recv().await {
        if let ServerEvent::Closed { cause, .. } = event {
            assert_eq!(
                cause,
                Cause::Error("the head of a request is not complete after 50ms".into())
            );
            causes += 1;
        }
    }
    assert_eq!(causes, 3);
}

async fn a_pause_between_requests_is_not_one_in_a_head(runtime: TestRuntime) {
    let server = tcp(runtime.clone()).bind().await.unwrap();
    let running = server.spawn(web::builder().head_timeout(HALF_AN_HOUR).serve(answer));
    let mut client = Client::of(&running);
    for path in ["/1", "/2"] {
        let request = get(path);
        let (begin, rest) = request.split_at(9);
        let before = running.handle().stats().bytes_in;
        client.send(begin);
        eventually("its beginning", || {
            running.handle().stats().bytes_in > before
        });
        client.send(rest);
        assert_eq!(response(&mut client).1, format!("{path} 0"));
        // Looked at with the next request.
        runtime.put_forward(HOUR);
    }
    drop(client);
    eventually("its end", || running.handle().active() == 0);
    all_completed(&running.shutdown().await.unwrap(), 1);
}

/// The beginning of a request with a body of ten bytes.
const POST: &str = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n";

async fn a_body_that_pauses_too_long_ends_its_connection(runtime: TestRuntime) {
    let (say, said) = mpsc::channel();
    let server = tcp(runtime).bind().await.unwrap();
    let builder = web::builder().body_timeout(SHORT);
    let running = server.spawn(builder.serve(move |request| {
        let say = say.clone();
        async move {
            let _says = OnDrop(move || say.send(()).unwrap());
            answer(request).await
        }
    }));
    let mut client = Client::of(&running);
    client.send(&format!("{POST}\r\nhello"));
    assert_eq!(client.rest(), "");
    said.recv().unwrap();
    let report = running.shutdown().await.unwrap();
    assert_eq!(report.failed, 1, "{report}");
}

async fn a_pause_of_the_service_is_not_one_of_its_body(runtime: TestRuntime) {
    let (begun, has_begun) = async_channel::unbounded();
    let (go, may_go) = async_channel::unbounded::<()>();
    let server = tcp(runtime.clone()).bind().await.unwrap();
    let builder = web::builder().body_timeout(HALF_AN_HOUR);
    let running = server.spawn(builder.serve(move |request| {
        let (begun, may_go) = (begun.clone(), may_go.clone());
        async move {
            begun.send(()).await.unwrap();
            may_go.recv().await.unwrap();
            answer(request).await
        }
    }));
    let mut client = Client::of(&running);
    client.send(&format!("{POST}\r\nfive,"));
    has_begun.recv().await.unwrap();
    runtime.put_forward(HOUR);
    go.send(()).await.unwrap();
    client.send("tenth");
    assert_eq!(response(&mut client).1, "/ 10");
    drop(client);
    all_completed(&running.shutdown().await.unwrap(), 1);
}

/// Between the server's `100 Continue` and the body nothing is unanswered but the request itself.
async fn a_body_that_is_asked_for_comes_through_the_stop(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = Client::of(&running);
    client.send(&format!("{POST}Expect: 100-continue\r\n\r\n"));
    let (head, _) = response(&mut client);
    assert!(head.starts_with("http/1.1 100 "), "{head}");
    stop(&running);
    assert_eq!(running.handle().active(), 1);
    client.send("ten bytes!");
    let (head, body) = response(&mut client);
    assert_eq!((&*body, closes(&head)), ("/ 10", true));
    assert_eq!(client.rest(), "");
    all_completed(&running.await.unwrap(), 1);
}

async fn a_body_that_is_not_asked_for_is_not_sent(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(web::serve(async |_request| {
        let response = web::Response::builder().status(413);
        response.body(String::new())
    }));
    let mut client = Client::of(&running);
    client.send(&format!("{POST}Expect: 100-continue\r\n\r\n"));
    let (head, _) = response(&mut client);
    assert!(head.starts_with("http/1.1 413 "), "{head}");
    // Whether the body comes after all nobody knows: what follows could be either.
    assert_eq!(client.rest(), "");
    eventually("its end", || running.handle().active() == 0);
    all_completed(&running.shutdown().await.unwrap(), 1);
}

async fn the_version_is_told_from_its_first_bytes_however_they_come(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let begin = |first: &str| {
        let mut client = Client::of(&running);
        let before = running.handle().stats().bytes_in;
        client.send(first);
        eventually("its beginning", || {
            running.handle().stats().bytes_in > before
        });
        client
    };
    let mut put = begin("P");
    put.send("UT / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(response(&mut put).1, "/ 0");
    let mut http2 = begin("PRI * HTTP/2.0\r\n\r\nS");
    http2.send("M\r\n\r\n");
    http2.write_all(&h2::frame(4, 0, 0, &[])).unwrap();
    h2::get(&mut http2, 1);
    while h2::next(&mut http2).unwrap().0 != h2::HEADERS {}
    // One that is in the middle of it, with a stop.
    let mut late = begin("PRI * HTT");
    stop(&running);
    late.send("P/2.0\r\n\r\nSM\r\n\r\n");
    late.write_all(&h2::frame(4, 0, 0, &[])).unwrap();
    h2::get(&mut late, 1);
    while h2::next(&mut late).unwrap().0 != h2::HEADERS {}
    while h2::next(&mut late).is_some() {}
    while h2::next(&mut http2).is_some() {}
    assert_eq!(put.rest(), "");
    all_completed(&running.await.unwrap(), 3);
}

async fn http2_is_not_spoken_where_it_is_not_wanted(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(web::builder().http2(false).serve(answer));
    let mut client = Client::of(&running);
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert!(
        !answer.starts_with(&[0, 0]),
        "settings of HTTP/2: {answer:?}"
    );
    let mut client = Client::of(&running);
    client.send(&get("/1"));
    assert_eq!(response(&mut client).1, "/1 0");
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, report.failed), (1, 1), "{report}");
}

async fn heads_have_limits(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let builder = web::builder().max_headers(3).max_head(8192);
    let running = server.spawn(builder.serve(answer));
    for head in ["A: b\r\n".repeat(4), format!("A: {}\r\n", "b".repeat(9000))] {
        let mut client = Client::of(&running);
        client.send(&format!("GET / HTTP/1.1\r\n{head}\r\n"));
        let rest = client.rest();
        assert!(rest.starts_with("HTTP/1.1 431 "), "{rest}");
    }
    let mut client = Client::of(&running);
    client.send(&format!(
        "GET / HTTP/1.1\r\nA: {}\r\n\r\n",
        "b".repeat(4000)
    ));
    assert_eq!(response(&mut client).1, "/ 0");
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, report.failed), (1, 2), "{report}");
}

async fn an_http2_client_is_told_how_many_requests_it_may_have(runtime: TestRuntime) {
    const MAX_CONCURRENT_STREAMS: [u8; 6] = [0, 3, 0, 0, 0, 7];
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(web::builder().max_streams(7).serve(answer));
    let mut client = Client::of(&running);
    h2::begin(&mut client);
    let (kind, _, settings) = h2::next(&mut client).unwrap();
    assert_eq!(kind, 4);
    let mut settings = settings.chunks(6);
    assert!(
        settings.any(|it| it == MAX_CONCURRENT_STREAMS),
        "{settings:?}"
    );
    // Or the drain would wait for its answer to GOAWAY.
    drop(client);
    running.shutdown().await.unwrap();
}

/// Over HTTP/1 and HTTP/2, whose streams are not sent elsewhere either.
#[cfg(target_os = "linux")]
async fn services_that_stay_on_their_thread_answer_through_the_stop(runtime: TestRuntime) {
    use std::cell::Cell;
    use std::rc::Rc;

    let (begun, has_begun) = async_channel::unbounded();
    let (go, may_go) = async_channel::unbounded::<()>();
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn_local(move || {
        let served = Rc::new(Cell::new(0));
        web::serve_local(move |_request| {
            let (begun, may_go, served) = (begun.clone(), may_go.clone(), served.clone());
            async move {
                served.set(served.get() + 1);
                begun.send(()).await.unwrap();
                may_go.recv().await.unwrap();
                let served: Rc<Cell<u32>> = served;
                web::Response::new(format!("{}", served.get().min(1)))
            }
        })
    });
    let mut http1 = Client::of(&running);
    http1.send(&get("/"));
    let mut http2 = Client::of(&running);
    h2::begin(&mut http2);
    h2::get(&mut http2, 1);
    has_begun.recv().await.unwrap();
    has_begun.recv().await.unwrap();
    stop(&running);
    assert_eq!(running.handle().active(), 2);
    go.send(()).await.unwrap();
    go.send(()).await.unwrap();
    let (head, body) = response(&mut http1);
    assert_eq!((&*body, closes(&head)), ("1", true));
    assert_eq!(http1.rest(), "");
    let mut body = Vec::new();
    while let Some((kind, _, payload)) = h2::next(&mut http2) {
        if kind == 0 {
            body.extend(payload);
        }
    }
    assert_eq!(body, b"1");
    all_completed(&running.await.unwrap(), 2);
}
