//! The servers, each of which is the whole of a process.
//!
//! A server tells its parent where it listens, serves until its standard input is closed, stops,
//! and tells its account.

use std::fmt;
use std::future::{Future, pending};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use async_std::net::{TcpListener, TcpStream};
use async_std::task;
use futures_lite::{FutureExt, StreamExt, io::BufReader};
use gracious::{Builder, Connection, Runtime, Server, Smol};

use super::handler::talk;

/// A server by its name.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    serve: fn(Config) -> io::Result<()>,
}

impl Kind {
    pub const fn new(name: &'static str, serve: fn(Config) -> io::Result<()>) -> Self {
        Self { name, serve }
    }
}

/// gracious on all its engines.
pub const ENGINES: [Kind; 5] = [
    Kind::new("async-std", |config| serve(Server::builder(), config)),
    Kind::new("smol", |config| serve(Server::with_runtime(Smol), config)),
    Kind::new("workers", |config| {
        serve(Server::builder().workers(2), config)
    }),
    Kind::new("shards", |config| {
        serve(Server::builder().workers(2).sharded(true), config)
    }),
    Kind::new("plain", |config| serve(Server::with_runtime(Plain), config)),
];

/// A loop on async-std that accepts and spawns, and closes its listener at the stop.
pub const BARE: Kind = Kind::new("bare loop", bare);

/// The user that a server runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    Root,
    /// The user 65534, without any privilege.
    Nobody,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Nobody => "65534",
        })
    }
}

/// What a server is told; as text, a line of words.
#[derive(Clone, Debug)]
pub struct Config {
    pub address: SocketAddr,
    pub deadline: Duration,
    pub lame_duck: Duration,
    pub reuse_port: bool,
    /// A keep-alive of so long, and as long until a peer that acknowledges nothing is given up.
    pub given_up_after: Option<Duration>,
}

impl Config {
    pub const fn new(address: SocketAddr) -> Self {
        Self {
            address,
            deadline: Duration::from_secs(20),
            lame_duck: Duration::ZERO,
            reuse_port: false,
            given_up_after: None,
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {} {} {}",
            self.address,
            self.deadline.as_millis(),
            self.lame_duck.as_millis(),
            self.reuse_port,
            self.given_up_after.map_or(0, |it| it.as_millis()),
        )
    }
}

impl FromStr for Config {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(' ').collect();
        let [address, deadline, lame_duck, reuse_port, given_up_after] = words[..] else {
            return Err(format!("expected five words, found {text:?}"));
        };
        let span = |text: &str| text.parse().map(Duration::from_millis).map_err(wrong);
        let given_up_after = span(given_up_after)?;
        Ok(Self {
            address: address.parse().map_err(wrong)?,
            deadline: span(deadline)?,
            lame_duck: span(lame_duck)?,
            reuse_port: reuse_port.parse().map_err(wrong)?,
            given_up_after: (!given_up_after.is_zero()).then_some(given_up_after),
        })
    }
}

fn wrong(error: impl fmt::Display) -> String {
    error.to_string()
}

/// What a server says of its life, by its own count; as text, a line of words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub accepted: u64,
    pub completed: u64,
    pub failed: u64,
    pub aborted: u64,
    pub rejected: u64,
    /// From the request to stop to the end.
    pub drain: Duration,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {} {} {} {}",
            self.accepted,
            self.completed,
            self.failed,
            self.aborted,
            self.rejected,
            self.drain.as_micros()
        )
    }
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let counts: Result<Vec<u64>, _> = text.split(' ').map(str::parse).collect();
        let [accepted, completed, failed, aborted, rejected, drain] = counts.map_err(wrong)?[..]
        else {
            return Err(format!("expected six counts, found {text:?}"));
        };
        Ok(Self {
            accepted,
            completed,
            failed,
            aborted,
            rejected,
            drain: Duration::from_micros(drain),
        })
    }
}

/// Set for a process that is to be a server: its name, and after a colon its configuration.
pub const SERVE: &str = "GRACIOUS_NETWORK_SERVER";

/// Serves, where this process was started for it; else it returns `false` at once.
pub fn serve_if_asked(kinds: &[Kind]) -> bool {
    let Ok(asked) = std::env::var(SERVE) else {
        return false;
    };
    let (name, config) = asked.split_once(": ").expect("a name and a configuration");
    let kind = kinds.iter().find(|kind| kind.name == name);
    let kind = kind.unwrap_or_else(|| panic!("no server called {name}"));
    (kind.serve)(config.parse().unwrap()).unwrap();
    true
}

/// Tells the parent something.
pub fn tell(word: &str, text: impl fmt::Display) {
    // In one write, past the test harness, which has its own lines.
    let line = format!("@{word} {text}\n");
    let mut out = io::stdout().lock();
    let told = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    told.expect("the parent listens");
}

/// Calls `stop` when the process that started this one has closed its input, or is gone.
pub fn on_stop(stop: impl FnOnce() + Send + 'static) {
    thread::spawn(|| {
        // An input that cannot be read any more has ended, too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop();
    });
}

fn serve<R: Runtime>(builder: Builder<R>, config: Config) -> io::Result<()> {
    let mut builder = builder
        .listen(config.address)
        .deadline(config.deadline)
        .first_byte_grace(FIRST_BYTE_GRACE)
        .lame_duck(config.lame_duck)
        .reuse_port(config.reuse_port);
    if let Some(span) = config.given_up_after {
        builder = giving_up_after(builder, span);
    }
    let report = async_io::block_on(async {
        let server = builder.bind().await?;
        let handle = server.handle();
        on_stop(move || handle.shutdown());
        tell("address", &server.local_addrs()[0]);
        server.serve(converse).await
    })?;
    tell(
        "account",
        Account {
            accepted: report.accepted,
            completed: report.completed,
            failed: report.failed,
            aborted: report.aborted,
            rejected: report.rejected,
            drain: report.drain,
        },
    );
    Ok(())
}

/// Longer than by default: who says something at once, and is late on a busy machine or because a
/// packet was lost, is not what is tested.
const FIRST_BYTE_GRACE: Duration = Duration::from_secs(6);

/// To be completed by `user_timeout` as soon as there is one.
fn giving_up_after<R: Runtime>(builder: Builder<R>, _span: Duration) -> Builder<R> {
    builder.keepalive(Duration::from_secs(1))
}

async fn converse(conn: Connection) -> io::Result<()> {
    let handle = conn.handle();
    let (reader, writer) = conn.split();
    talk(reader, writer, || !handle.is_serving()).await
}

/// An executor of one's own, two threads, which knows nothing of sockets.
#[derive(Clone, Copy, Debug)]
struct Plain;

static PLAIN: smol::Executor<'static> = smol::Executor::new();

impl Runtime for Plain {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        static THREADS: Once = Once::new();
        THREADS.call_once(|| {
            for _ in 0..2 {
                thread::spawn(|| async_io::block_on(PLAIN.run(pending::<()>())));
            }
        });
        PLAIN.spawn(future).detach();
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let timer = async_io::Timer::after(duration);
        async move {
            timer.await;
        }
    }
}

fn bare(config: Config) -> io::Result<()> {
    task::block_on(async {
        let listener = TcpListener::from(listener(&config)?);
        let (stop, stopped) = async_channel::bounded::<()>(1);
        on_stop(move || drop(stop));
        tell("address", config.address);
        let (mut account, mut tasks) = (Account::default(), Vec::new());
        {
            let mut incoming = listener.incoming();
            let stopped = async {
                let _closed = stopped.recv().await;
                None
            };
            futures_lite::pin!(stopped);
            while let Some(stream) = (&mut stopped).or(incoming.next()).await {
                account.accepted += 1;
                tasks.push(task::spawn(converse_bare(stream?)));
            }
        }
        drop(listener);
        let start = Instant::now();
        for task in tasks {
            let left = config.deadline.saturating_sub(start.elapsed());
            match async_std::future::timeout(left, task).await {
                Ok(Ok(())) => account.completed += 1,
                Ok(Err(_)) => account.failed += 1,
                Err(_) => account.aborted += 1,
            }
        }
        account.drain = start.elapsed();
        tell("account", account);
        Ok(())
    })
}

async fn converse_bare(stream: TcpStream) -> io::Result<()> {
    talk(BufReader::new(stream.clone()), stream, || false).await
}

/// The socket of every server that does not make its own.
pub fn listener(config: &Config) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Socket, TcpKeepalive, Type};
    let domain = Domain::for_address(config.address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(config.reuse_port)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(span) = config.given_up_after {
        // Whole seconds are what the kernel takes.
        let probes = TcpKeepalive::new()
            .with_time(Duration::from_secs(1))
            .with_interval(Duration::from_secs(1));
        socket.set_tcp_keepalive(&probes)?;
        socket.set_tcp_user_timeout(Some(span))?;
    }
    socket.bind(&config.address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}
