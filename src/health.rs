//! Answers to questions after a server's health, on listeners and a thread of their own.
//!
//! 1. The thread needs nothing of the server but its state: not the runtime, whose threads handlers may
//!    block, no permit, and no descriptor where all are in use: it holds one back.
//! 2. Whether the server's own task still runs is not seen by a thread beside it. So the task notes it,
//!    once a second.
//! 3. The listeners are closed by whoever closes the server, before its futures resolve, and so the last
//!    of all: see `Shared::close`.
//!
//! The two answers are written out here. The feature `http` serves requests in the server's tasks and
//! under its limits, which are what a probe asks after, and brings hyper.

use std::fs::File;
use std::future::{Future, pending, poll_fn};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_io::{Async, IoSafe, Timer};
use futures_io::AsyncRead;
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt, future};
use futures_util::stream::FuturesUnordered;
use rustix::io::{FdFlags, dup2, fcntl_setfd};

use crate::accept::spawn::BoxedTask;
use crate::address::Address;
use crate::config::Config;
use crate::handle::Handle;
use crate::lifecycle::Phase;
use crate::listener::bind::{self, Bound, Source};
use crate::listener::set::ListenerSet;
use crate::log;
use crate::shared::Shared;
use crate::shared::health::{Health, Readiness};
use crate::socket::{Incoming, Socket};
use crate::transport::Engine;

/// How often the server's own task notes that it runs.
const BEAT: Duration = Duration::from_secs(1);
/// How long a client may say nothing until it is taken for an agent's, which waits for a line.
const FIRST_WORD: Duration = Duration::from_millis(250);
/// How long a question may take, and the wait for the end of the client that was answered.
const QUESTION: Duration = Duration::from_secs(2);
const LINGER: Duration = Duration::from_millis(500);
/// How many are answered at once. The others wait, for half a second at most where all are silent.
const AT_ONCE: usize = 64;
/// How long a request's head may be.
const HEAD: usize = 8 * 1024;
/// How long after an error the next client is accepted.
const PAUSE: Duration = Duration::from_millis(20);

/// Binds where a server is to be asked; `None` where it is not to be.
///
/// # Errors
/// Those of [`bind::bind`].
pub(crate) async fn bind(config: &Config) -> io::Result<Option<Vec<Bound>>> {
    let sources: Vec<_> = config.health.iter().cloned().map(Source::target).collect();
    if sources.is_empty() {
        return Ok(None);
    }
    let mut config = config.clone();
    // Probes of this server are not to be dealt to another.
    config.reuse_port = false;
    // A successor's answers are its own.
    #[cfg(feature = "systemd")]
    (config.store_listeners = false);
    let engines = [Engine::Reactor];
    bind::bind(sources, &config, &engines, &[], None)
        .await
        .map(Some)
}

/// Starts the thread that answers for a server, until that is closed.
pub(crate) fn start(shared: &Arc<Shared>, bound: Vec<Bound>) -> io::Result<()> {
    let _first = shared.health.set(Health::new(bound)?);
    let shared = shared.clone();
    let thread = std::thread::Builder::new().name("gracious-health".into());
    thread.spawn(move || {
        let closed = shared.latch.reached(Phase::Closed);
        // The thread waits in no reactor: it would poll the sockets of the others' for them.
        future::block_on(future::or(closed, answer_all(&shared)));
    })?;
    Ok(())
}

/// The server's own task, which notes that it runs.
pub(crate) fn beside(shared: &Arc<Shared>, task: BoxedTask) -> BoxedTask {
    let shared = shared.clone();
    let beating = async move {
        let Some(health) = shared.health.get() else {
            return pending().await;
        };
        loop {
            health.beat(shared.uptime());
            shared.clock.sleep(BEAT).await;
        }
    };
    Box::pin(future::or(task, beating))
}

impl Handle {
    /// The addresses of [`Builder::health`](crate::Builder::health), with the real ports; none where it
    /// was not asked for.
    #[must_use]
    pub fn health_addrs(&self) -> &[Address] {
        let health = self.shared().health.get();
        health.map_or(&[], |health| health.addrs())
    }
}

/// Answers every client.
async fn answer_all(shared: &Arc<Shared>) {
    let Some(health) = shared.health.get() else {
        return;
    };
    // One is held back, and another is what that is made of again.
    let (Some(mut reserve), Some(anything)) = (reserved().map(Some), reserved()) else {
        log::warn!(target: "gracious", "no descriptor is left to answer questions after the health with");
        return;
    };
    let mut answers: FuturesUnordered<Pin<Box<dyn Future<Output = Option<Socket>> + Send>>> =
        FuturesUnordered::new();
    let mut rests = false;
    loop {
        // One at a time has the descriptor that is held back.
        let is_full = answers.len() >= AT_ONCE || (reserve.is_none() && !answers.is_empty());
        let accepted = async {
            if is_full {
                return pending().await;
            }
            if rests {
                Timer::after(PAUSE).await;
            }
            Some(poll_fn(|cx| health.listeners.poll_accept(cx)).await)
        };
        let answered = async {
            let Some(socket) = answers.next().await else {
                return pending().await;
            };
            if let (None, Some(socket)) = (&reserve, socket) {
                reserve = keep(socket, &anything);
            }
            None
        };
        let mut accepted = future::or(answered, accepted).await;
        let is_short = matches!(&accepted, Some(Err(error)) if is_out_of_descriptors(error));
        if is_short {
            accepted = None;
            // Accept says so where nobody waits, too.
            if reserve.is_some() && health.listeners.has_queued() {
                let _accepts_nobody = hold(shared);
                reserve = None;
                if let Poll::Ready(taken) = health.listeners.try_accept() {
                    accepted = Some(taken);
                }
            }
        }
        rests = is_short;
        match accepted {
            Some(Ok(accepted)) => {
                answers.push(Box::pin(answer(
                    shared.clone(),
                    accepted.incoming,
                    is_short,
                )));
            }
            Some(Err(error)) => {
                log::debug!(target: "gracious", "cannot take a question after the health: {error}");
                rests = true;
            }
            None => {}
        }
        if reserve.is_none() && answers.is_empty() {
            reserve = reserved();
        }
    }
}

/// Keeps the server's accept loops from taking the descriptor that is about to change hands. They wait
/// for the length of two system calls. (A handler that opens something may be faster: then the client
/// waits for the next descriptor that is free.)
fn hold(shared: &Shared) -> impl Sized + '_ {
    let sets = shared.listener_sets.iter();
    sets.map(ListenerSet::hold).collect::<Vec<_>>()
}

/// A descriptor that is held back.
fn reserved() -> Option<OwnedFd> {
    File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Closes the socket of a client that was answered, and holds its descriptor back: in one act, since who
/// wants a descriptor would take it in between two.
fn keep(socket: Socket, anything: impl AsFd) -> Option<OwnedFd> {
    let mut descriptor = OwnedFd::from(socket);
    // What it is of from here on does not matter, but that it is of something that is open anyway.
    dup2(anything, &mut descriptor).ok()?;
    // Where a program is started in between it has one more descriptor of /dev/null.
    let _is_open = fcntl_setfd(&descriptor, FdFlags::CLOEXEC);
    Some(descriptor)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Answers one client, whatever becomes of it, and gives the socket back.
async fn answer(shared: Arc<Shared>, incoming: Incoming, is_short: bool) -> Option<Socket> {
    let answered = match incoming {
        Incoming::Socket(Socket::Tcp(socket)) => {
            let converse = |socket| converse(&shared, socket, TcpStream::shutdown, is_short);
            converse(Async::new_nonblocking(socket))
                .await
                .map(Socket::Tcp)
        }
        Incoming::Socket(Socket::Unix(socket)) => {
            let converse = |socket| converse(&shared, socket, UnixStream::shutdown, is_short);
            converse(Async::new_nonblocking(socket))
                .await
                .map(Socket::Unix)
        }
        // These listeners are sockets.
        Incoming::Custom(_) => return None,
    };
    let log = |error: &io::Error| {
        log::debug!(target: "gracious", "a question after the health was not answered: {error}");
    };
    answered.inspect_err(log).ok()
}

/// Reads a question, and answers it.
async fn converse<S>(
    shared: &Shared,
    socket: io::Result<Async<S>>,
    shutdown: fn(&S, Shutdown) -> io::Result<()>,
    is_short: bool,
) -> io::Result<S>
where
    S: IoSafe + Read + Write,
{
    let mut socket = socket?;
    let question = within(QUESTION, read_question(&mut socket)).await?;
    // The state is looked at when the question is there: it is no older than the answer.
    let readiness = shared.readiness(is_short);
    let health = shared.health.get();
    let stalled = health.and_then(|it| it.stalled(shared.uptime()));
    let answer = match question {
        Question::Agent => agent(readiness).to_owned(),
        Question::Http(head) => respond(&head, readiness, stalled),
    };
    within(QUESTION, socket.write_all(answer.as_bytes())).await?;
    shutdown(socket.get_ref(), Shutdown::Write)?;
    // What the client has sent and nobody has read would destroy the answer at the close.
    let rest = async {
        let mut rest = [0; 512];
        while socket.read(&mut rest).await? > 0 {}
        Ok(())
    };
    let _answered = within(LINGER, rest).await;
    socket.into_inner()
}

#[derive(Debug, PartialEq, Eq)]
enum Question {
    /// HAProxy's `agent-check`, which may send a line, and waits for one.
    Agent,
    /// The head of an HTTP request.
    Http(String),
}

async fn read_question(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Question> {
    let mut head = Vec::new();
    let mut some = [0; 1024];
    loop {
        let read = socket.read(&mut some);
        let count = match head.is_empty() {
            // A client that says nothing waits for a line.
            true => within(FIRST_WORD, read).await.or_else(|error| {
                let is_silent = error.kind() == io::ErrorKind::TimedOut;
                is_silent.then_some(0).ok_or(error)
            })?,
            false => read.await?,
        };
        head.extend_from_slice(&some[..count]);
        if count == 0 || head.len() >= HEAD || is_complete(&head) {
            return Ok(question(&head));
        }
    }
}

/// Whether it is a whole request's head, or a line that begins none.
fn is_complete(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let has_line = line.len() < head.len();
    let is_http = line
        .trim_ascii_end()
        .windows(8)
        .any(|it| it.starts_with(b" HTTP/"));
    let ends = |end: &[u8]| head.windows(end.len()).any(|it| it == end);
    has_line && (!is_http || ends(b"\r\n\r\n") || ends(b"\n\n"))
}

fn question(head: &[u8]) -> Question {
    let head = String::from_utf8_lossy(head);
    match head.lines().next() {
        Some(line) if line.contains(" HTTP/") => Question::Http(line.to_owned()),
        _ => Question::Agent,
    }
}

/// A line for HAProxy's agent-check: `up` is of the health, and `ready` takes an earlier `drain` back.
fn agent(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Ready => "up ready\n",
        Readiness::Gone => "down#stopped\n",
        _ => "drain\n",
    }
}

/// The response to a request, by its first line.
fn respond(line: &str, readiness: Readiness, stalled: Option<Duration>) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let &[method, target, "HTTP/1.0" | "HTTP/1.1"] = &*words else {
        return response("400 Bad Request", "", "expected HTTP/1.1\n", true);
    };
    let has_body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => {
            let allow = "Allow: GET, HEAD\r\n";
            return response("405 Method Not Allowed", allow, "expected GET\n", true);
        }
    };
    let path = target.split('?').next().unwrap_or_default();
    let (is_well, text) = match path {
        "/ready" => (readiness == Readiness::Ready, said(readiness).to_owned()),
        "/live" => (
            stalled.is_none(),
            stalled.map_or("alive\n".to_owned(), |since| {
                format!("stuck for {} s\n", since.as_secs())
            }),
        ),
        _ => return response("404 Not Found", "", "expected /ready or /live\n", has_body),
    };
    let status = if is_well {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    response(status, "", &text, has_body)
}

fn said(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Ready => "ready\n",
        Readiness::Starting => "starting\n",
        Readiness::Paused => "paused\n",
        Readiness::Draining => "draining\n",
        Readiness::Short => "short of descriptors\n",
        Readiness::Gone => "stopped\n",
    }
}

fn response(status: &str, header: &str, body: &str, has_body: bool) -> String {
    let length = body.len();
    let body = if has_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n{header}\r\n{body}"
    )
}

/// The value of a future, or `TimedOut`.
async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = async {
        Timer::after(limit).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    future::or(future, late).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_known_when_it_is_whole() {
        for (head, whole) in [
            ("GET /ready HTTP/1.1\r\n", false),
            ("GET /ready HTTP/1.1\r\nHost: x\r\n\r\n", true),
            ("GET /ready HTTP/1.0\n\n", true),
            ("GET /ready HTT", false),
            ("state\n", true),
            ("\r\n", true),
            ("", false),
        ] {
            assert_eq!(is_complete(head.as_bytes()), whole, "{head:?}");
        }
        assert_eq!(question(b"state\n"), Question::Agent);
        assert_eq!(question(b""), Question::Agent);
    }

    #[test]
    fn a_request_is_answered_by_its_first_line() {
        let status = |line: &str| {
            let answer = respond(line, Readiness::Ready, None);
            answer.split(' ').nth(1).map(str::to_owned).unwrap()
        };
        assert_eq!(status("GET /ready HTTP/1.1"), "200");
        assert_eq!(status("GET /live?verbose HTTP/1.1"), "200");
        assert_eq!(status("GET / HTTP/1.1"), "404");
        assert_eq!(status("POST /ready HTTP/1.1"), "405");
        assert_eq!(status("GET /ready HTTP/2.0"), "400");
        assert_eq!(status("GET  /ready HTTP/1.1"), "400");
        let head = respond("HEAD /ready HTTP/1.1", Readiness::Draining, None);
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Content-Length: 9\r\n"));
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        let stuck = respond(
            "GET /live HTTP/1.1",
            Readiness::Ready,
            Some(Duration::from_secs(12)),
        );
        assert!(stuck.ends_with("\r\n\r\nstuck for 12 s\n"), "{stuck}");
    }

    #[test]
    fn an_agent_is_told_to_send_nobody_before_the_door_is_shut() {
        assert_eq!(agent(Readiness::Draining), "drain\n");
        assert_eq!(agent(Readiness::Short), "drain\n");
        assert_eq!(agent(Readiness::Ready), "up ready\n");
    }
}
