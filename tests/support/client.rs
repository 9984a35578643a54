//! Clients, handlers and measures that tests of the promises share.
//!
//! Clients are plain blocking sockets on the test's own thread, or on threads of theirs: the servers
//! run elsewhere.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use async_channel::Receiver;
use futures_lite::{AsyncBufReadExt, AsyncWrite, AsyncWriteExt, future};
use gracious::{Address, Builder, Connection, Handle, Running, Runtime, Server, Stats};

use super::program::{no_copy_is_left, start_test};
use super::{Body, Engine, TestRuntime};

/// Generous, and below the deadline of a test: a client that hangs fails and says so.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// For limits that must not be what ends a test.
pub const HOUR: Duration = Duration::from_secs(3600);

/// A server on a free TCP port, whose drain takes as long as it takes.
pub fn tcp(runtime: TestRuntime) -> Builder<TestRuntime> {
    on("127.0.0.1:0", runtime)
}

/// A server on one address, whose drain takes as long as it takes.
pub fn on(address: &str, runtime: TestRuntime) -> Builder<TestRuntime> {
    crate::support::server(runtime)
        .listen(address)
        .deadline(None)
}

/// One address to listen on for each transport.
pub fn transports() -> [String; 2] {
    ["127.0.0.1:0".to_owned(), unix_address()]
}

/// A Unix address that nobody else uses.
pub fn unix_address() -> String {
    format!("unix:{}", unix_path().display())
}

/// A path that nobody else uses.
pub fn unix_path() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        "gracious-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, SeqCst)
    );
    std::env::temp_dir().join(name)
}

/// A client, over either transport.
#[derive(Debug)]
pub enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Client {
    #[track_caller]
    pub fn to<R: Runtime>(server: &Server<R>) -> Self {
        Self::connect(&server.local_addrs()[0]).unwrap()
    }

    #[track_caller]
    pub fn of(running: &Running) -> Self {
        Self::connect(&running.handle().local_addrs()[0]).unwrap()
    }

    pub fn connect(address: &Address) -> io::Result<Self> {
        let client = match address {
            Address::Tcp(address) => Self::Tcp(TcpStream::connect(address)?),
            Address::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            other => panic!("no client for {other}"),
        };
        client.wait_for(PATIENCE)?;
        Ok(client)
    }

    fn wait_for(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => {
                socket.set_read_timeout(Some(patience))?;
                socket.set_write_timeout(Some(patience))
            }
            Self::Unix(socket) => {
                socket.set_read_timeout(Some(patience))?;
                socket.set_write_timeout(Some(patience))
            }
        }
    }

    /// Another descriptor of the same socket, for another thread.
    #[track_caller]
    pub fn twin(&self) -> Self {
        match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone().unwrap()),
            Self::Unix(socket) => Self::Unix(socket.try_clone().unwrap()),
        }
    }

    #[track_caller]
    pub fn send(&mut self, text: &str) {
        self.write_all(text.as_bytes()).unwrap();
    }

    /// Sends our end; the server's side stays open.
    #[track_caller]
    pub fn finish(&self) {
        match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
        .unwrap();
    }

    /// Ends both sides, under whoever uses the socket.
    pub fn hang_up(&self) {
        // One that the server has closed already is as closed as it can be.
        let _gone = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }

    /// The next line, without its end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            assert_eq!(self.read(&mut byte).unwrap(), 1, "an end after {line:?}");
            if byte == *b"\n" {
                return String::from_utf8(line).unwrap();
            }
            line.push(byte[0]);
        }
    }

    /// Sends a line, and reads one.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.send(&format!("{line}\n"));
        self.line()
    }

    /// Everything up to a clean end.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        if let Err(error) = self.read_to_end(&mut rest) {
            let read = String::from_utf8_lossy(&rest);
            panic!("{error} in place of an end, after {read:?}");
        }
        String::from_utf8(rest).unwrap()
    }
}

impl Read for Client {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buf),
            Self::Unix(socket) => socket.read(buf),
        }
    }
}

impl Write for Client {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(buf),
            Self::Unix(socket) => socket.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a visit ended, as the client saw it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Visit {
    /// There was nobody to connect to.
    Refused,
    /// What came, up to a clean end.
    Closed(String),
    /// Anything else: a reset, most likely.
    Broken(ErrorKind, String),
}

/// Connects, sends `request` and reads to the end.
pub fn visit(address: &Address, request: &str) -> Visit {
    let mut client = match Client::connect(address) {
        Ok(client) => client,
        Err(error) if is_refused(&error) => return Visit::Refused,
        Err(error) => return Visit::Broken(error.kind(), format!("connect: {error}")),
    };
    // One that was closed cleanly before it could send learns it from what it reads.
    let _read_tells = client.write_all(request.as_bytes());
    let mut reply = Vec::new();
    let end = client.read_to_end(&mut reply);
    let reply = String::from_utf8(reply).unwrap();
    match end {
        Ok(_) => Visit::Closed(reply),
        Err(error) => Visit::Broken(error.kind(), reply),
    }
}

/// Nobody listens on that port, or there is no such path.
pub fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::NotFound
    )
}

/// Whether nobody can connect to `address`.
pub fn refuses(address: &Address) -> bool {
    no_copy_is_left();
    Client::connect(address).is_err_and(|error| is_refused(&error))
}

/// Echoes lines, in halves.
pub async fn echo(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        writer.write_all(format!("{}\n", line?).as_bytes()).await?;
    }
    Ok(())
}

/// Answers one line and ends.
pub async fn answer_once(mut conn: Connection) -> io::Result<()> {
    let mut line = String::new();
    if conn.read_line(&mut line).await? > 0 {
        conn.write_all(line.as_bytes()).await?;
    }
    Ok(())
}

/// Has each of them read to the clean end, beside the test, and then hang up: what was written to a
/// Unix socket is with the server until its client has read it.
pub fn reading(clients: Vec<Client>) -> thread::JoinHandle<Vec<String>> {
    let read = |mut client: Client| thread::spawn(move || client.rest());
    let readers: Vec<_> = clients.into_iter().map(read).collect();
    let join = |reader: thread::JoinHandle<_>| reader.join().unwrap();
    thread::spawn(move || readers.into_iter().map(join).collect())
}

/// Serves, and hands every connection to the test.
pub fn handing_over<R: Runtime>(server: Server<R>) -> (Running, Receiver<Connection>) {
    let (give, given) = async_channel::unbounded();
    let running = server.spawn(async move |conn: Connection| {
        // A test that is over takes no more.
        let _over = give.try_send(conn);
    });
    (running, given)
}

/// Writes what the kernel takes without a wait; `None` where it takes nothing. A write that only gives
/// up its turn is polled again.
pub async fn write_now(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Option<io::Result<usize>> {
    match future::poll_once(writer.write(bytes)).await {
        None => future::poll_once(writer.write(bytes)).await,
        written => written,
    }
}

/// Writes until a write waits; says how much went out.
pub async fn fill(writer: &mut (impl AsyncWrite + Unpin)) -> usize {
    let chunk = vec![b'.'; 64 * 1024];
    let mut filled = 0;
    let mut full_for = 0;
    // The kernel makes room for a while by moving what it has.
    while full_for < 20 {
        match future::poll_once(writer.write(&chunk)).await {
            Some(written) => {
                filled += written.unwrap();
                full_for = 0;
            }
            None => {
                full_for += 1;
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    filled
}

/// Whether a future is not done yet. It is polled once, and its waker is nobody's.
pub async fn waits(future: impl Future + Unpin) -> bool {
    future::poll_once(future).await.is_none()
}

/// Awaits a future, and says when it waits for the first time: with its waker in place.
pub async fn saying_when_it_waits<F: Future + Unpin>(
    mut future: F,
    say: mpsc::Sender<()>,
) -> F::Output {
    let mut say = Some(say);
    poll_fn(|cx| {
        let polled = Pin::new(&mut future).poll(cx);
        if polled.is_pending() {
            if let Some(say) = say.take() {
                say.send(()).unwrap();
            }
        }
        polled
    })
    .await
}

/// Waits for what sends no event.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never came to pass: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the server has taken in so many connections.
#[track_caller]
pub fn taken_in(handle: &Handle, count: u64) {
    eventually("that many connections", || handle.stats().accepted >= count);
}

/// Waits until the server has read so many bytes.
#[track_caller]
pub fn read_in(handle: &Handle, bytes: u64) {
    eventually("that many bytes", || handle.stats().bytes_in >= bytes);
}

/// The account of connections must come out even.
#[track_caller]
pub fn assert_balance(stats: &Stats) {
    let ended = stats.completed + stats.failed + stats.panicked + stats.aborted;
    let others = stats.detached + stats.rejected + stats.active;
    assert_eq!(stats.accepted, ended + others, "{stats:?}");
}

/// How often a race is run: `GRACIOUS_ROUNDS` asks for more.
pub fn rounds(default: usize) -> usize {
    let asked = std::env::var("GRACIOUS_ROUNDS").ok();
    asked.and_then(|it| it.parse().ok()).unwrap_or(default)
}

/// Runs a test body in a process of its own, whose executors have one thread each: for what would
/// be in the way of others, a lack of descriptors or a blocked thread. `test` is its full name.
pub fn run_alone(engine: Engine, test: &str, body: &'static dyn Body<TestRuntime>) {
    const ALONE: &str = "GRACIOUS_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return super::run(engine, test, body);
    }
    let (_crate, test) = test.split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .env("SMOL_THREADS", "1")
        .env("ASYNC_STD_THREAD_COUNT", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = start_test(&mut command);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && said.contains("1 passed");
    let erred = String::from_utf8_lossy(&output.stderr);
    assert!(passed, "in a process of its own:\n{said}\n{erred}");
}
