//! A socket server for async-std and smol that stops without losing a byte.
//!
//! ```no_run
//! use std::io;
//!
//! use futures_lite::AsyncWriteExt;
//! use gracious::{Connection, Server};
//!
//! # #[cfg(feature = "async-std")]
//! #[async_std::main]
//! async fn main() -> io::Result<()> {
//!     let server = Server::bind("127.0.0.1:8888").await?; // peers can connect from here on
//!     println!("{server}"); // bound on 127.0.0.1:8888
//!     let report = server.serve(talk).await?; // until a client says `quit`
//!     println!("{report}"); // stopped (requested) after 9.4s: 3 accepted, 3 completed; …
//!     Ok(())
//! }
//!
//! async fn talk(conn: Connection) -> io::Result<()> {
//!     let (reader, mut writer) = conn.split();
//!     let mut lines = reader.lines();
//!     // Ends by itself when the peer hangs up, and when the server stops.
//!     while let Some(line) = lines.next().await {
//!         match line?.as_str() {
//!             "quit" => {
//!                 writer.write_all(b"bye\n").await?;
//!                 writer.handle().shutdown();
//!             }
//!             text => writer.write_all(format!("{text}\n").as_bytes()).await?,
//!         }
//!     }
//!     Ok(())
//! }
//! # #[cfg(not(feature = "async-std"))]
//! # fn main() {}
//! ```
//!
//! # How it works
//!
//! A [`Server`] is a set of bound listeners and a configuration, both of which a [`Builder`] can
//! spell out. To *serve* it consumes it: the accept loop becomes a task of the runtime, and every
//! [`Connection`] gets a clone of the [`Handler`], mostly an `async fn`, and a task of its own.
//! From the accept call until its socket is closed a connection is tracked, whether its handler
//! returns, fails, panics or is dropped.
//!
//! There are three ways to serve. [`Server::serve`] is awaited to the end; [`Server::spawn`] gives
//! a [`Running`] server in the background; [`Server::serve_until`] serves for as long as a piece of
//! work goes on. All end in the same way and with the same [`Report`]. To drop any of them is to
//! stop: nothing goes on that nobody asked for.
//!
//! The [`Handle`] of a server can be cloned and taken anywhere. It stops the server, pauses it,
//! changes its limits, and shows its connections, its counts and what happens in it. Servers that
//! have to stop together are a [`ServerSet`].
//!
//! Sockets and timers are those of `async-io`, the reactor that async-std and smol share. The
//! executor is a [`Runtime`], a value that can spawn and sleep: `AsyncStd`, `Smol`, or one's own.
//! On Linux a server can bring threads of its own instead, with a poller of its own, for the same
//! handlers at a lower price: `Builder::workers`, and `Server::serve_local` for handlers that are
//! not `Send`.
//!
//! # The stop
//!
//! It begins with a request: of a handler, a [`Handle`], a signal, the end of the work of
//! `serve_until`, or a dropped future. The first reason is kept, the call returns at once, and
//! [`Handle::is_serving`] is false from there on. If there is a
//! [`lame_duck`](Builder::lame_duck) time, peers are still accepted until it has passed, so that a
//! load balancer can look elsewhere.
//!
//! Then the door is shut, at all listeners before anything waits: the paths of Unix sockets are
//! removed, new connects are refused, the peers in the queues of the kernel are accepted, and the
//! listeners closed, so that a successor can bind the port. A client that is one packet short of
//! being in such a queue believes to be connected already. For it the listener stays, shut, beside
//! all that follows, until the handshake is over, for [some seconds](Builder::handshake_grace) at
//! most. (That is so for TCP on Linux; `docs/promises.md` names what is excepted.) The
//! [`deadline`](Builder::deadline) runs from the shutting of the door.
//!
//! Only now connections are asked to end. Reads of an *idle* one end, as if its peer had hung up:
//! everything it had sent was answered. A *busy* one goes on, since there is input that its handler
//! has not consumed, or has consumed and not answered yet; it becomes idle with its next reply, and
//! ends then. One that has just connected may still send its first byte for a
//! [moment](Builder::first_byte_grace). A handler in which requests and replies take turns needs no
//! code for any of this; others declare themselves with [`Connection::idle_when`]
//! or [`Connection::busy`], and all can await [`Connection::shutdown_requested`].
//!
//! When a handler has returned, its peer is sent our end, and read from for as long as a close might
//! harm it: until it has hung up, or has taken everything that was written and is silent. A socket
//! closed before would destroy what is still on its way, or fail a peer that writes before it has
//! read why nobody listens. See [`Builder::linger`] and [`Builder::linger_total`].
//!
//! When the last connection is closed, [`Handle::closed`] and the future of `serve` give the
//! [`Report`]. If the deadline comes first, or a second signal, or [`Handle::abort`], the handlers
//! that are left are dropped, their sockets closed, and they are named in the report.
//!
//! # What it does not do
//!
//! - It knows no protocol but HTTP, and that only if asked: a handler gets a byte stream.
//! - It is no executor for general use. What a handler spawns is not the server's, unless it is
//!   [tracked](Handle::track).
//! - It cannot end a handler that blocks its thread. The socket is shut down under it and `serve`
//!   returns without it.
//! - It does not outlive its process: a `main` that returns while a server drains ends it there.
//!   Await [`Server::serve`], [`Running::shutdown`] or [`Handle::closed`].
//! - It cannot see for itself when a protocol that reads while it answers, such as HTTP/2, is idle.
//!   Such a handler has to declare it.
//! - It runs on Unix: Linux is what it is tested on, FreeBSD and macOS what it is compiled for.
//!
//! # Pages
//!
//! In the repository: [which drain is yours][drain], for protocols that do not take turns; [what a client
//! sees][sees] of a stop, and whether it may retry; [moving][moving] from async-std to smol, from asyncio
//! and from tokio; [running it][running], with deadlines, load balancers, limits and the log;
//! [Kubernetes, HAProxy and systemd][kubernetes]; [testing a handler][testing] in a simulated world;
//! [upgrades][upgrades], with a successor that takes the sockets over;
//! [all promises][promises], with their tests.
//!
//! [drain]: https://github.com/gracious-rs/gracious/blob/main/docs/which-drain.md
//! [sees]: https://github.com/gracious-rs/gracious/blob/main/docs/what-a-client-sees.md
//! [moving]: https://github.com/gracious-rs/gracious/blob/main/docs/moving.md
//! [running]: https://github.com/gracious-rs/gracious/blob/main/docs/running.md
//! [kubernetes]: https://github.com/gracious-rs/gracious/blob/main/docs/kubernetes.md
//! [upgrades]: https://github.com/gracious-rs/gracious/blob/main/docs/upgrades.md
//! [testing]: https://github.com/gracious-rs/gracious/blob/main/docs/testing.md
//! [promises]: https://github.com/gracious-rs/gracious/blob/main/docs/promises.md
//!
//! # Features
//!
//! They only add; none changes what another does.
//!
//! - `async-std` (default): the runtime `AsyncStd`, `Server::bind` and `Server::builder`. async-std
//!   has been discontinued; code that runs on it can use this and move to smol later.
//! - `smol`: the runtime `Smol`. `Server::with_runtime(Smol)` stands for `Server::builder()` then.
//! - `signals` (default): `Builder::stop_on_signals`.
//! - `http`: the module `web`, HTTP/1 and HTTP/2.
//! - `testing`: the module `testing`, a simulated world for tests of handlers.
//! - `tls`: `Builder::listen_tls` and `Connection::start_tls`, with rustls and ring.
//! - `systemd`: socket activation, readiness, watchdog and the descriptor store: `Builder::notify`,
//!   `listen_systemd`, `store_listeners`.
//! - `health`: `Builder::health`, which answers HTTP probes and HAProxy's agent-check.
//! - `handover`: `Handover`, `Builder::listen_named` and `Handle::hand_over`, on Linux: a successor takes
//!   the listening sockets over, and nobody is turned away.
//! - `tls-aws-lc-rs`: the same with aws-lc-rs. Where both are on, what is made of PEM files uses ring.
//! - `metrics`: `Builder::metrics`, the counts through the facade `metrics`.
//! - `proxy`: `Builder::proxy_protocol`, for the addresses of clients that come through a proxy.

#![deny(unsafe_code)]

mod accept;
mod address;
mod builder;
mod config;
mod connection;
mod drain;
mod handle;
mod handler;
#[cfg(all(feature = "handover", target_os = "linux"))]
mod handover;
#[cfg(feature = "health")]
mod health;
mod idle;
mod lifecycle;
mod listener;
mod log;
#[cfg(feature = "metrics")]
mod metrics;
mod progress;
#[cfg(feature = "proxy")]
mod proxy;
mod report;
mod runtime;
mod server;
mod server_set;
mod shared;
#[cfg(feature = "signals")]
mod signals;
mod socket;
#[cfg(all(feature = "handover", target_os = "linux"))]
mod succession;
mod sync;
#[cfg(feature = "systemd")]
mod systemd;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "_tls")]
mod tls;
mod track;
mod transport;
#[cfg(feature = "http")]
pub mod web;
mod workers;

pub use address::{Address, Target};
pub use builder::Builder;
pub use connection::{
    Busy, Connection, Control, Detached, EndedBy, Lines, ReadHalf, ReuniteError, WindDown,
    WriteHalf,
};
pub use handle::{Add, Handle};
pub use handler::{Fallible, Handler, Outcome, fallible};
#[cfg(all(feature = "handover", target_os = "linux"))]
pub use handover::{HandOver, Handover};
pub use idle::IdleWhen;
pub use lifecycle::{Reason, State};
pub use listener::{Adopted, Listener};
#[cfg(feature = "metrics")]
pub use metrics::Metrics;
pub use progress::{DrainProgress, Progress};
#[cfg(feature = "proxy")]
pub use proxy::{ProxyHeader, ProxyProtocol};
pub use report::{
    AcceptErrors, Cause, ConnectionInfo, Limited, ListenerInfo, Report, Stats, Straggler,
    TrackedWork, Waiting,
};
#[cfg(feature = "async-std")]
pub use runtime::AsyncStd;
pub use runtime::Runtime;
#[cfg(feature = "smol")]
pub use runtime::Smol;
/// The TLS library, in the version that this crate uses.
#[cfg(feature = "_tls")]
pub use rustls;
pub use server::{Running, Serve, ServeUntil, Server};
pub use server_set::ServerSet;
pub use shared::events::ServerEvent;
pub use socket::{Credentials, Socket};
#[cfg(feature = "systemd")]
pub use systemd::Reloading;
#[cfg(feature = "_tls")]
pub use tls::{Tls, TlsInfo};
pub use track::Tracked;

/// The README's programs compile.
#[cfg(all(doctest, feature = "async-std", feature = "signals", feature = "http"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// So do the handlers of this page.
#[cfg(doctest)]
#[doc = include_str!("../docs/which-drain.md")]
struct WhichDrain;

/// The server of this one, too.
#[cfg(all(
    doctest,
    feature = "async-std",
    feature = "signals",
    feature = "http",
    feature = "health"
))]
#[doc = include_str!("../docs/kubernetes.md")]
struct KubernetesPage;

/// And the program of this one.
#[cfg(all(
    doctest,
    feature = "async-std",
    feature = "handover",
    target_os = "linux"
))]
#[doc = include_str!("../docs/upgrades.md")]
struct UpgradesPage;

/// The handler of this one is simulated.
#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../docs/testing.md")]
struct TestingPage;

/// And the server of this one.
#[cfg(all(doctest, feature = "proxy"))]
#[doc = include_str!("../docs/proxy.md")]
struct ProxyPage;

/// And of this one.
#[cfg(all(doctest, feature = "metrics"))]
#[doc = include_str!("../docs/metrics.md")]
struct MetricsPage;

/// And of this one.
#[cfg(all(doctest, feature = "tls"))]
#[doc = include_str!("../docs/tls.md")]
struct TlsPage;
