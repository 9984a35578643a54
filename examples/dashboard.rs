//! A server with a load of its own, and a page to look at it: connections as they come, work, drain and
//! end, the account of them, and a button that asks for the shutdown.
//!
//! ```sh
//! cargo run --example dashboard --features http
//! xdg-open http://127.0.0.1:8080/              # or a browser by hand; a phone's will do
//! ```
//!
//! The page is live by server-sent events, which are responses that do not end. Its own server is stopped
//! by the end of the other one: the events end with the report, and it waits for them as for any response.

mod usage;

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{convert::Infallible, io, time::Duration};

use async_std::{net::TcpStream, task};
use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, AsyncWriteExt, Stream, StreamExt, future, stream};
use gracious::{Cause, Connection, Handle, Report, Server, ServerEvent, State, web};
use hyper::body::{Body, Bytes, Frame};
use hyper::{Method, header::CONTENT_TYPE};

const PAGE: &str = include_str!("dashboard/page.html");
/// How often the page is told.
const TICK: Duration = Duration::from_millis(150);
const CLIENTS: u64 = 40;

/// Each line is a number of milliseconds of work.
async fn work(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        let millis = line?.parse().map_err(io::Error::other)?;
        task::sleep(Duration::from_millis(millis)).await;
        writer.write_all(b"done\n").await?;
    }
    Ok(())
}

/// A client that comes again and again, until the door is shut.
async fn visit(address: String, number: u64) -> io::Result<Infallible> {
    for round in 1.. {
        // Different for each, and for each time.
        let vary = |span: u64| (number * 7919 + round * 104_729) % span;
        task::sleep(Duration::from_millis(vary(1700))).await;
        let mut stream = TcpStream::connect(&address).await?;
        let mut answers = BufReader::new(stream.clone()).lines();
        for request in 0..1 + vary(4) {
            let millis = match (round + request + number) % 9 {
                0 => 4000 + vary(5000),
                _ => 100 + vary(900),
            };
            stream.write_all(format!("{millis}\n").as_bytes()).await?;
            let Some(_done) = answers.next().await.transpose()? else {
                break;
            };
            // Whoever thinks, and looks up at once when the server hangs up, never asks in vain.
            let thinks = async {
                task::sleep(Duration::from_millis(300 + vary(2500))).await;
                Some(())
            };
            let hung_up = async { answers.next().await.and(None) };
            if future::or(hung_up, thinks).await.is_none() {
                break;
            }
        }
    }
    unreachable!("nobody counts so far")
}

async fn show(handle: Handle, request: web::Request) -> web::Response<Live> {
    // A page of somebody else's cannot send this header here.
    let is_ours = request.headers().contains_key("x-dashboard");
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => (200, "text/html; charset=utf-8", Live::once(PAGE)),
        (&Method::GET, "/events") => (200, "text/event-stream", Live::of(handle)),
        (&Method::POST, "/shutdown") if is_ours => {
            handle.shutdown_because("the button was pressed");
            (202, "text/plain", Live::once("it drains\n"))
        }
        (&Method::POST, "/abort") if is_ours => {
            handle.abort();
            (202, "text/plain", Live::once("it aborts\n"))
        }
        _ => (404, "text/plain", Live::once("nothing here\n")),
    };
    let response = web::Response::builder().status(status);
    let response = response.header(CONTENT_TYPE, kind).body(body);
    response.expect("the header is well formed")
}

/// A body that comes in pieces.
struct Live(Pin<Box<dyn Stream<Item = String> + Send>>);

impl Live {
    fn once(text: &str) -> Self {
        Self(Box::pin(stream::once(text.to_owned())))
    }

    /// What there is to see now, and then every tick, until the server is closed.
    fn of(handle: Handle) -> Self {
        let events = handle.events();
        let first = stream::once_future({
            let handle = handle.clone();
            async move { told(&handle, &[], None).await }
        });
        let rest = stream::unfold(Some((handle, events)), |open| async {
            let (handle, events) = open?;
            let closed = async { Some(handle.closed().await) };
            let tick = async {
                task::sleep(TICK).await;
                None
            };
            let report = future::or(closed, tick).await;
            let ended = std::iter::from_fn(|| events.try_recv().ok());
            let ended: Vec<_> = ended.filter_map(end_of).collect();
            let message = told(&handle, &ended, report.as_ref()).await;
            Some((message, report.is_none().then_some((handle, events))))
        });
        Self(Box::pin(first.chain(rest)))
    }
}

impl Body for Live {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = ready!(self.0.poll_next(cx));
        Poll::Ready(piece.map(|text| Ok(Frame::data(text.into()))))
    }
}

/// The number of a connection that ended, and how.
fn end_of(event: ServerEvent) -> Option<String> {
    let ServerEvent::Closed { id, cause, .. } = event else {
        return None;
    };
    let how = match cause {
        Cause::Handler | Cause::Peer => "left",
        Cause::Drain => "drained",
        _ => "cut",
    };
    Some(format!("[{id},\"{how}\"]"))
}

/// One server-sent event: what there is to see, as JSON.
async fn told(handle: &Handle, ended: &[String], report: Option<&Report>) -> String {
    let (state, stats) = (handle.state(), handle.stats());
    let open = handle.connections();
    let open = open
        .iter()
        .map(|it| format!("[{},{},{}]", it.id, it.busy, it.age.as_millis()));
    let (open, ended) = (open.collect::<Vec<_>>().join(","), ended.join(","));
    let left = match state {
        // The first item is there at once.
        State::Draining => handle.drain_progress().next().await,
        _ => None,
    };
    let time = left.and_then(|it| it.time);
    let time = time.map_or("null".into(), |time| time.as_millis().to_string());
    // Nothing is in a report but what both Rust and JSON quote in the same way.
    let report = report.map_or("null".into(), |it| format!("{:?}", it.to_string()));
    let address = &handle.local_addrs()[0];
    format!(
        "data: {{\"state\":\"{state}\",\"address\":\"{address}\",\"time\":{time},\"open\":[{open}],\
         \"ended\":[{ended}],\"report\":{report},\"account\":{{\"accepted\":{},\"completed\":{},\
         \"failed\":{},\"panicked\":{},\"aborted\":{},\"detached\":{},\"rejected\":{},\
         \"active\":{}}}}}\n\n",
        stats.accepted,
        stats.completed,
        stats.failed,
        stats.panicked,
        stats.aborted,
        stats.detached,
        stats.rejected,
        stats.active,
    )
}

#[async_std::main]
async fn main() -> io::Result<Report> {
    let words = usage::words(
        "dashboard [PAGE] [ADDRESS]",
        ["127.0.0.1:8080", "127.0.0.1:8888"],
    );
    let page = Server::bind(&words[0]).await?;
    let server = Server::builder().listen(&words[1]).stop_on_signals();
    let server = server.deadline(Duration::from_secs(20)).bind().await?;
    println!("{server}");
    println!("the page: {page}");

    let handle = server.handle();
    for number in 0..CLIENTS {
        let address = handle.local_addrs()[0].to_string();
        // It ends when it is refused.
        task::spawn(async move { drop(visit(address, number).await) });
    }
    let show = web::serve(move |request| {
        let response = show(handle.clone(), request);
        async { Ok::<_, Infallible>(response.await) }
    });
    let (report, _of_the_page) = page.serve_until(show, server.serve(work)).await?;
    report.unwrap_or_else(|| Err(io::Error::other("the page could not be shown to the end")))
}
