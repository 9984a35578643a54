//! The servers that are compared.
//!
//! All of them listen on the same kind of socket, with `TCP_NODELAY` inherited from it, read into
//! 1 KiB where the handler brings a buffer, and answer everything a read brought in one write.
//! Each takes as many threads as it may use cores, unless its name says otherwise.

mod actix;
mod async_std;
mod epoll;
mod futures_io;
mod gracious;
#[cfg(feature = "http")]
pub mod http;
mod smol;
mod tokio;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::{env, thread};

use socket2::{Domain, Socket, Type};

/// A server by its name.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub name: &'static str,
    pub family: Family,
    pub takes_part: TakesPart,
    /// Whether it has a bar in the picture, which shows one variant of each.
    pub in_chart: bool,
    serve: fn() -> io::Result<()>,
}

/// What a server shows when it is drawn beside others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    Workers,
    Default,
    /// A peer with a graceful stop.
    Graceful,
    /// A loop that accepts and spawns, and nothing else.
    Bare,
    /// The system calls alone.
    Floor,
}

/// The workloads for which a server is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TakesPart {
    Always,
    /// It is about memory, and has no buffer.
    WhenIdle,
    /// It spins, which is for few clients on idle cores.
    WithOneClient,
    /// It answers once and closes.
    WhenServersClose,
}

/// The server that the others are compared with.
pub const REFERENCE: &str = "tokio";
/// As [`REFERENCE`], where servers close first.
pub const REFERENCE_ONCE: &str = "tokio, once";
/// The server that does no more than what its clients wait for.
pub const FLOOR: &str = "raw epoll";

pub const SERVERS: &[Server] = &[
    Server::new(REFERENCE, Family::Bare, tokio::multi_thread),
    Server::new("tokio current_thread", Family::Bare, tokio::current_thread),
    Server::new("tokio + TaskTracker", Family::Graceful, tokio::tracked),
    Server::new("actix-server", Family::Graceful, actix::serve),
    Server::new("smol", Family::Bare, smol::bare),
    Server::new("smol + swansong", Family::Graceful, smol::swansong),
    Server::new("async-std", Family::Bare, async_std::bare),
    Server::new(FLOOR, Family::Floor, epoll::serve),
    Server::new("gracious async-std", Family::Default, || {
        gracious::on_async_std(|it| it, futures_io::fill_buf)
    }),
    Server::new("gracious async-std, read", Family::Default, || {
        gracious::on_async_std(|it| it, futures_io::read)
    })
    .not_in_chart(),
    Server::new("gracious smol", Family::Default, || {
        gracious::on_smol(futures_io::fill_buf)
    }),
    Server::new("gracious smol, read", Family::Default, || {
        gracious::on_smol(futures_io::read)
    })
    .not_in_chart(),
    Server::new("gracious workers(1)", Family::Workers, || {
        gracious::on_async_std(|it| it.workers(1), futures_io::fill_buf)
    }),
    Server::new("gracious workers(1), read", Family::Workers, || {
        gracious::on_async_std(|it| it.workers(1), futures_io::read)
    })
    .not_in_chart(),
    Server::new("gracious workers(2)", Family::Workers, || {
        gracious::on_async_std(|it| it.workers(2), futures_io::fill_buf)
    }),
    Server::new("gracious workers(2), read", Family::Workers, || {
        gracious::on_async_std(|it| it.workers(2), futures_io::read)
    })
    .not_in_chart(),
    Server::new("gracious workers(2), sharded", Family::Workers, || {
        gracious::on_async_std(|it| it.workers(2).sharded(true), futures_io::fill_buf)
    }),
    Server::new("gracious workers(1), spin", Family::Workers, || {
        gracious::on_async_std(
            |it| it.workers(1).spin(gracious::SPIN),
            futures_io::fill_buf,
        )
    })
    .takes_part(TakesPart::WithOneClient),
    Server::new(REFERENCE_ONCE, Family::Bare, tokio::once)
        .takes_part(TakesPart::WhenServersClose)
        .not_in_chart(),
    Server::new("gracious async-std, once", Family::Default, || {
        gracious::on_async_std(|it| it, futures_io::once)
    })
    .takes_part(TakesPart::WhenServersClose)
    .not_in_chart(),
    Server::new("gracious smol, once", Family::Default, || {
        gracious::on_smol(futures_io::once)
    })
    .takes_part(TakesPart::WhenServersClose)
    .not_in_chart(),
    Server::new("gracious workers(1), once", Family::Workers, || {
        gracious::on_async_std(|it| it.workers(1), futures_io::once)
    })
    .takes_part(TakesPart::WhenServersClose)
    .not_in_chart(),
    Server::new("smol, no buffer", Family::Bare, smol::without_buffer)
        .takes_part(TakesPart::WhenIdle)
        .not_in_chart(),
    Server::new(
        "async-std, no buffer",
        Family::Bare,
        async_std::without_buffer,
    )
    .takes_part(TakesPart::WhenIdle)
    .not_in_chart(),
];

impl Server {
    const fn new(name: &'static str, family: Family, serve: fn() -> io::Result<()>) -> Self {
        Self {
            name,
            family,
            takes_part: TakesPart::Always,
            in_chart: true,
            serve,
        }
    }

    const fn takes_part(self, takes_part: TakesPart) -> Self {
        Self { takes_part, ..self }
    }

    const fn not_in_chart(self) -> Self {
        Self {
            in_chart: false,
            ..self
        }
    }
}

/// The server of that name.
///
/// # Errors
/// `NotFound`.
pub fn find(name: &str) -> io::Result<&'static Server> {
    #[cfg(feature = "http")]
    let mut all = SERVERS.iter().chain(http::SERVERS);
    #[cfg(not(feature = "http"))]
    let mut all = SERVERS.iter();
    let found = all.find(|server| server.name == name);
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no server called {name}")))
}

/// Serves, where the command line is `serve NAME`; else it returns `false` at once.
///
/// # Errors
/// Those of the server.
pub fn serve_if_asked() -> io::Result<bool> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [command, name] = &args[..] else {
        return Ok(false);
    };
    if command != "serve" {
        return Ok(false);
    }
    (find(name)?.serve)()?;
    Ok(true)
}

/// The socket of every server that does not make its own. Says where it listens.
fn listener() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    // On Linux the accepted sockets inherit it, which spares each connection a call.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(1024)?;
    let listener = TcpListener::from(socket);
    println!("{}", listener.local_addr()?);
    Ok(listener)
}

/// Calls `stop` when the process that started this one has closed its input, or is gone.
fn on_stop(stop: impl FnOnce() + Send + 'static) {
    thread::spawn(|| {
        // An input that cannot be read any more has ended, too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop();
    });
}

/// Stops as a server without a graceful stop does.
fn exit_on_stop() {
    on_stop(|| std::process::exit(0));
}
