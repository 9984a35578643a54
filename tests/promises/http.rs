//! HTTP on top (feature `http`): what a client gets, and what the account says, when the stop comes
//! wherever it may in a conversation.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Reason, Report, Running, web};
use hyper::body::{Body, Bytes, Frame, Incoming};

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, eventually, tcp};

crate::on_every_runtime!(
    requests_and_responses_take_turns_on_one_connection,
    a_first_request_after_the_stop_is_answered,
    half_a_head_at_the_stop_is_waited_for,
    pipelined_requests_are_all_answered,
    a_streamed_reply_goes_to_its_end_through_the_stop,
    much_for_a_slow_reader_arrives_whole,
    an_upload_goes_to_its_end_through_the_stop,
    an_idle_connection_ends_at_once,
    under_a_lame_duck_answers_say_that_they_are_the_last,
    a_client_that_has_sent_its_end_gets_its_answer,
    an_error_or_a_panic_of_the_function_ends_one_connection,
    what_is_no_http_ends_one_connection,
    an_upgraded_connection_goes_on_as_another_protocol,
    http2_is_told_and_finishes_its_streams,
    an_abort_drops_what_http2_has_under_way,
);

/// Frames that a test sends, one by one.
struct Streamed(Pin<Box<Receiver<Bytes>>>);

impl Body for Streamed {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        use futures_lite::Stream;
        let next = self.0.as_mut().poll_next(cx);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// How many bytes a request's body has.
pub(crate) async fn length(mut body: Incoming) -> usize {
    let mut length = 0;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        length += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    length
}

/// Says where it was asked, and how much was sent.
pub(crate) async fn answer(request: web::Request) -> web::Response<String> {
    let path = request.uri().path().to_owned();
    let length = length(request.into_body()).await;
    web::Response::new(format!("{path} {length}"))
}

pub(crate) async fn serving(runtime: TestRuntime) -> Running {
    let server = tcp(runtime).bind().await.unwrap();
    server.spawn(web::serve(answer))
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// One response: its head, and the body that the head announces.
pub(crate) fn response(client: &mut Client) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(
            client.read(&mut byte).unwrap(),
            1,
            "{:?}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap_or("0").parse().unwrap()];
    client.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

pub(crate) fn closes(head: &str) -> bool {
    head.contains("connection: close")
}

/// Asks for the stop, and waits until connections are told.
pub(crate) fn stop(running: &Running) {
    let handle = running.handle();
    handle.shutdown();
    eventually("closed listeners", || handle.listeners().is_empty());
}

#[track_caller]
pub(crate) fn all_completed(report: &Report, connections: u64) {
    let counts = (report.accepted, report.completed);
    assert_eq!(counts, (connections, connections), "{report}");
}

async fn requests_and_responses_take_turns_on_one_connection(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = Client::of(&running);
    for path in ["/1", "/2", "/3"] {
        client.send(&get(path));
        let (head, body) = response(&mut client);
        assert!(head.starts_with("http/1.1 200") && !closes(&head), "{head}");
        assert_eq!(body, format!("{path} 0"));
    }
    drop(client);
    eventually("its end", || running.handle().active() == 0);
    all_completed(&running.shutdown().await.unwrap(), 1);
}

async fn a_first_request_after_the_stop_is_answered(runtime: TestRuntime) {
    let server = tcp(runtime).first_byte_grace(HOUR).bind().await.unwrap();
    let running = server.spawn(web::serve(answer));
    let mut client = Client::of(&running);
    eventually("a connection", || running.handle().active() == 1);
    stop(&running);
    client.send(&get("/late"));
    let (head, body) = response(&mut client);
    assert!(closes(&head), "{head}");
    assert_eq!(body, "/late 0");
    assert_eq!(client.rest(), "");
    all_completed(&running.await.unwrap(), 1);
}

async fn half_a_head_at_the_stop_is_waited_for(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = Client::of(&running);
    client.send("GET /half HTTP/1.1\r\nHo");
    eventually("half a head", || running.handle().stats().bytes_in > 20);
    stop(&running);
    assert_eq!(running.handle().active(), 1);
    client.send("st: test\r\n\r\n");
    let (head, body) = response(&mut client);
    assert!(closes(&head), "{head}");
    assert_eq!(body, "/half 0");
    assert_eq!(client.rest(), "");
    all_completed(&running.await.unwrap(), 1);
}

/// All three have arrived at the stop: the first answer does not say that it is the last.
async fn pipelined_requests_are_all_answered(runtime: TestRuntime) {
    let (begun, has_begun) = async_channel::unbounded();
    let (go, may_go) = async_channel::unbounded::<()>();
    let running = tcp(runtime)
        .bind()
        .await
        .unwrap()
        .spawn(web::serve(move |request| {
            let (begun, may_go) = (begun.clone(), may_go.clone());
            async move {
                begun.send(()).await.unwrap();
                may_go.recv().await.unwrap();
                answer(request).await
            }
        }));
    let mut client = Client::of(&running);
    client.send(&[get("/1"), get("/2"), get("/3")].concat());
    has_begun.recv().await.unwrap();
    stop(&running);
    for _ in 0..3 {
        go.send(()).await.unwrap();
    }
    for path in ["/1", "/2", "/3"] {
        let (head, body) = response(&mut client);
        assert_eq!(
            (&*body, closes(&head)),
            (&*format!("{path} 0"), path == "/3")
        );
    }
    assert_eq!(client.rest(), "");
    all_completed(&running.await.unwrap(), 1);
}

fn streaming(frames: Receiver<Bytes>) -> impl Fn(web::Request) -> Streaming + Clone + Send {
    move |_request| std::future::ready(web::Response::new(Streamed(Box::pin(frames.clone()))))
}

type Streaming = std::future::Ready<web::Response<Streamed>>;

async fn a_streamed_reply_goes_to_its_end_through_the_stop(runtime: TestRuntime) {
    let (frames, to_send): (Sender<Bytes>, _) = async_channel::unbounded();
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(web::serve(streaming(to_send)));
    let mut client = Client::of(&running);
    client.send(&get("/"));
    let (head, _) = response(&mut client);
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    frames.send(Bytes::from("before")).await.unwrap();
    assert_eq!(
        (client.line(), client.line()),
        ("6\r".into(), "before\r".into())
    );
    // Idle by the count of answers, and told so without a word from anybody.
    stop(&running);
    assert_eq!(running.handle().active(), 1);
    frames.send(Bytes::from("after")).await.unwrap();
    drop(frames);
    assert_eq!(client.rest(), "5\r\nafter\r\n0\r\n\r\n");
    all_completed(&running.await.unwrap(), 1);
}

const MUCH: usize = 20_000_000;

async fn much_for_a_slow_reader_arrives_whole(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(web::serve(|_request| async {
        web::Response::new("x".repeat(MUCH))
    }));
    let mut client = Client::of(&running);
    client.send(&get("/"));
    let mut first = [0; 64];
    client.read_exact(&mut first).unwrap();
    stop(&running);
    let rest = client.rest();
    let body = rest.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body.len(), MUCH);
    all_completed(&running.await.unwrap(), 1);
}

async fn an_upload_goes_to_its_end_through_the_stop(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = Client::of(&running);
    client.send(&format!(
        "POST /up HTTP/1.1\r\nHost: test\r\nContent-Length: {MUCH}\r\n\r\n"
    ));
    let half = vec![b'x'; MUCH / 2];
    client.write_all(&half).unwrap();
    stop(&running);
    client.write_all(&half).unwrap();
    let (head, body) = response(&mut client);
    assert!(closes(&head), "{head}");
    assert_eq!(body, format!("/up {MUCH}"));
    assert_eq!(client.rest(), "");
    all_completed(&running.await.unwrap(), 1);
}

async fn an_idle_connection_ends_at_once(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut clients = [Client::of(&running), Client::of(&running)];
    for client in &mut clients {
        client.send(&get("/"));
        response(client);
    }
    // No deadline is set, and nobody hangs up.
    let report = running.shutdown().await.unwrap();
    all_completed(&report, 2);
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
}

async fn under_a_lame_duck_answers_say_that_they_are_the_last(runtime: TestRuntime) {
    let server = tcp(runtime).lame_duck(HOUR).bind().await.unwrap();
    let running = server.spawn(web::serve(answer));
    let handle = running.handle();
    let mut early = Client::of(&running);
    early.send(&get("/1"));
    assert!(!closes(&response(&mut early).0));
    handle.shutdown();
    // The door is open, and nobody is told: but the next answer closes.
    let mut late = Client::of(&running);
    for client in [&mut early, &mut late] {
        client.send(&get("/2"));
        let (head, body) = response(client);
        assert!(closes(&head), "{head}");
        assert_eq!(body, "/2 0");
        assert_eq!(client.rest(), "");
    }
    drop((early, late));
    eventually("their ends", || handle.active() == 0);
    handle.shutdown_within(Duration::from_millis(1));
    all_completed(&running.await.unwrap(), 2);
}

async fn a_client_that_has_sent_its_end_gets_its_answer(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = Client::of(&running);
    client.send(&get("/"));
    client.finish();
    let rest = client.rest();
    assert!(rest.ends_with("/ 0"), "{rest}");
    eventually("its end", || running.handle().active() == 0);
    all_completed(&running.shutdown().await.unwrap(), 1);
}

async fn an_error_or_a_panic_of_the_function_ends_one_connection(runtime: TestRuntime) {
    let running =
        tcp(runtime)
            .bind()
            .await
            .unwrap()
            .spawn(web::serve(|request: web::Request| async move {
                assert_ne!(request.uri().path(), "/panic", "as the test wants it");
                match request.uri().path() {
                    "/error" => Err(std::io::Error::other("as the test wants it")),
                    _ => Ok(web::Response::new(String::from("fine"))),
                }
            }));
    let mut good = Client::of(&running);
    for path in ["/error", "/panic"] {
        let mut client = Client::of(&running);
        client.send(&get(path));
        assert_eq!(client.rest(), "");
    }
    good.send(&get("/"));
    assert_eq!(response(&mut good).1, "fine");
    let report = running.shutdown().await.unwrap();
    assert_eq!(
        (report.completed, report.failed, report.panicked),
        (1, 1, 1),
        "{report}"
    );
}

async fn what_is_no_http_ends_one_connection(runtime: TestRuntime) {
    let running = serving(runtime).await;
    let mut client = Client::of(&running);
    client.send("what is this?\r\n\r\n");
    let rest = client.rest();
    assert!(rest.starts_with("HTTP/1.1 400"), "{rest}");
    let mut cut = Client::of(&running);
    cut.send("GET / HT");
    cut.finish();
    assert!(cut.rest().starts_with("HTTP/1.1 400") || cut.rest().is_empty());
    eventually("their ends", || running.handle().active() == 0);
    let report = running.shutdown().await.unwrap();
    assert_eq!(report.failed, 2, "{report}");
}

async fn an_upgraded_connection_goes_on_as_another_protocol(runtime: TestRuntime) {
    async fn switch(mut request: web::Request) -> web::Response<String> {
        let will = web::upgrade(&mut request, async |mut conn| {
            let mut word = [0; 5];
            conn.read_exact(&mut word).await?;
            conn.write_all(&word).await?;
            conn.shutdown_requested().await;
            conn.write_all(b" and goodbye").await
        });
        assert!(will && !web::upgrade(&mut request, async |_conn| Ok(())));
        let response = web::Response::builder().status(101);
        let response = response
            .header("connection", "upgrade")
            .header("upgrade", "echo");
        response.body(String::new()).unwrap()
    }
    let running = tcp(runtime).bind().await.unwrap().spawn(web::serve(switch));
    let mut client = Client::of(&running);
    // What comes right behind the request is the other protocol's.
    client
        .send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello");
    let (head, _) = response(&mut client);
    assert!(head.starts_with("http/1.1 101") && !closes(&head), "{head}");
    let mut word = [0; 5];
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
    stop(&running);
    assert_eq!(client.rest(), " and goodbye");
    all_completed(&running.await.unwrap(), 1);
}

/// Frames of HTTP/2, as a client of few words sends and reads them.
pub(crate) mod h2 {
    use std::io::{Read, Write};

    use crate::support::client::Client;

    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const GOAWAY: u8 = 7;

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// The preface, and our settings.
    pub(crate) fn begin(client: &mut Client) {
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.write_all(&frame(4, 0, 0, &[])).unwrap();
    }

    /// GET of `/`, from HPACK's static table.
    pub(crate) fn get(client: &mut Client, stream: u32) {
        let head = [0x82, 0x84, 0x86, 0x41, 4, b't', b'e', b's', b't'];
        client
            .write_all(&frame(HEADERS, 0x5, stream, &head))
            .unwrap();
    }

    /// The next frame: its kind, its stream, what it carries; `None` at a clean end.
    pub(crate) fn next(client: &mut Client) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        if client.read(&mut head[..1]).unwrap() == 0 {
            return None;
        }
        client.read_exact(&mut head[1..]).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        client.read_exact(&mut payload).unwrap();
        let (kind, flags) = (head[3], head[4]);
        // Settings are agreed to, pings answered.
        if (kind == 4 || kind == 6) && flags & 1 == 0 {
            let answer = if kind == 4 { &[][..] } else { &payload };
            // The server may be gone by now.
            let _ignored = client.write_all(&frame(kind, 1, 0, answer));
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((kind, stream, payload))
    }
}

async fn http2_is_told_and_finishes_its_streams(runtime: TestRuntime) {
    let (frames, to_send): (Sender<Bytes>, _) = async_channel::unbounded();
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(web::serve(streaming(to_send)));
    let mut client = Client::of(&running);
    h2::begin(&mut client);
    h2::get(&mut client, 1);
    while h2::next(&mut client).unwrap().0 != h2::HEADERS {}
    stop(&running);
    assert_eq!(running.handle().active(), 1);
    frames.send(Bytes::from("hello")).await.unwrap();
    drop(frames);
    let (mut is_told, mut body) = (false, Vec::new());
    while let Some((kind, _, payload)) = h2::next(&mut client) {
        is_told |= kind == h2::GOAWAY;
        if kind == 0 {
            body.extend(payload);
        }
    }
    assert!(is_told);
    assert_eq!(body, b"hello");
    all_completed(&running.await.unwrap(), 1);
}

async fn an_abort_drops_what_http2_has_under_way(runtime: TestRuntime) {
    struct Says(mpsc::Sender<()>);
    impl Drop for Says {
        fn drop(&mut self) {
            let _test_is_over = self.0.send(());
        }
    }
    let (say, said) = mpsc::channel();
    let (begun, has_begun) = async_channel::unbounded();
    let running = tcp(runtime)
        .bind()
        .await
        .unwrap()
        .spawn(web::serve(move |_request| {
            let (says, begun) = (Says(say.clone()), begun.clone());
            async move {
                begun.send(()).await.unwrap();
                std::future::pending::<()>().await;
                drop(says);
                web::Response::new(String::new())
            }
        }));
    let mut client = Client::of(&running);
    h2::begin(&mut client);
    h2::get(&mut client, 1);
    h2::get(&mut client, 3);
    has_begun.recv().await.unwrap();
    has_begun.recv().await.unwrap();
    running.handle().abort();
    let report = running.await.unwrap();
    assert_eq!((report.aborted, &report.reason), (1, &Reason::Requested));
    // Their destructors have run.
    assert_eq!(said.try_iter().count(), 2);
    let Client::Tcp(socket) = &client else {
        unreachable!("it listens on TCP");
    };
    let _closed_already = socket.shutdown(Shutdown::Both);
}
