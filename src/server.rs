//! The server: bound listeners and a configuration, until it is served.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::future;
use pin_project_lite::pin_project;

#[cfg(target_os = "linux")]
use crate::accept::spawn::LocalLauncher;
use crate::accept::spawn::{BoxedTask, Executor, Launchers, SendLauncher};
use crate::address::Address;
use crate::config::{Config, warn_of_few_descriptors};
use crate::connection::Connection;
use crate::drain::{self, abort, fallback};
use crate::handle::Handle;
use crate::handler::{Handler, Outcome};
#[cfg(feature = "health")]
use crate::health;
use crate::lifecycle::Reason;
use crate::listener::Inherited;
use crate::listener::bind::{self, Source};
use crate::report::Report;
use crate::runtime::Runtime;
use crate::shared::Shared;
#[cfg(target_os = "linux")]
use crate::shared::connection::ConnectionState;
#[cfg(feature = "systemd")]
use crate::systemd;
use crate::track::Tracked;
use crate::transport::Engine;
#[cfg(target_os = "linux")]
use crate::workers::{self, Poller, WorkerOptions, WorkerPools};

/// Bound listeners and a configuration.
///
/// A bound server listens: peers can connect, and wait in the kernel's queue until it is served.
/// Serving consumes it, so it cannot be served twice:
///
/// ```compile_fail,E0382
/// # async fn example(server: gracious::Server<gracious::AsyncStd>) -> std::io::Result<()> {
/// server.serve(|_conn| async {}).await?;
/// server.serve(|_conn| async {}).await?; // moved by the first
/// # Ok(()) }
/// ```
///
/// A server that is dropped without having been served closes its listeners; peers that were queued
/// are closed cleanly, and counted as rejected.
#[must_use = "a server accepts no peer until it is served"]
pub struct Server<R: Runtime> {
    shared: Arc<Shared>,
    runtime: R,
    /// A poller for each shard, with which the listeners are registered; none where the runtime's
    /// reactor is the engine.
    #[cfg(target_os = "linux")]
    pollers: Vec<Arc<Poller>>,
}

impl<R: Runtime> Server<R> {
    pub(crate) async fn bind_all(
        runtime: R,
        sources: Vec<Source>,
        config: Config,
        inherited: Option<&Inherited>,
    ) -> io::Result<Self> {
        let engines = vec![Engine::Reactor];
        #[cfg(target_os = "linux")]
        let (engines, pollers) = match config.workers {
            Some(workers) => {
                let pollers =
                    workers::pollers::<ConnectionState>(if config.sharded { workers } else { 1 })?;
                let engines = pollers.iter().cloned().map(Engine::Workers).collect();
                (engines, pollers)
            }
            None => (engines, Vec::new()),
        };
        #[cfg(feature = "health")]
        let health = health::bind(&config).await?;
        let bound = bind::bind(sources, &config, &engines, &[], inherited).await?;
        let shared = Arc::new(Shared::new(&runtime, config, bound, engines.len())?);
        // The first timer of a process has its reactor open descriptors. Without this it could be the
        // timer of a pause because there are none left.
        let _timer = future::poll_once(shared.clock.sleep(Duration::from_secs(1))).await;
        if let Some(limit) = shared.config.max_connections {
            warn_of_few_descriptors(limit);
        }
        // From here on a failure drops the server, which closes its listeners.
        let server = Self {
            shared,
            runtime,
            #[cfg(target_os = "linux")]
            pollers,
        };
        #[cfg(feature = "metrics")]
        server.shared.begin_metrics();
        #[cfg(feature = "signals")]
        if server.shared.config.signals {
            crate::signals::enlist(&server.shared)?;
        }
        #[cfg(feature = "systemd")]
        if server.shared.config.notify {
            systemd::enlist(&server.shared)?;
        }
        #[cfg(feature = "health")]
        if let Some(bound) = health {
            health::start(&server.shared, bound)?;
        }
        Ok(server)
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The addresses that were bound, with the real ports.
    #[must_use]
    pub fn local_addrs(&self) -> &[Address] {
        self.shared.addrs()
    }

    /// The handle, for others to stop and watch this server.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone())
    }

    /// Serves until a shutdown, and gives the account of every connection.
    ///
    /// `handler` is cloned for every connection, so state that connections share belongs in an `Arc`
    /// that it captures. A type that implements [`Handler`] goes to [`serve_with`](Self::serve_with).
    ///
    /// The accept loop, the handlers and the drain are tasks of the runtime; this future only waits
    /// for them. Dropping it shuts the server down: the stop goes on in the runtime, deadline
    /// included.
    ///
    /// # Errors
    /// That of a listener that could not go on, after an ordinary drain; the report is then at
    /// [`Handle::closed`]. Also that of a handler that panicked when it was cloned for the workers
    /// of a [sharded](crate::Builder::sharded) server, before it served.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> { async_std::task::block_on(async {
    /// use futures_lite::AsyncWriteExt;
    /// use gracious::Server;
    ///
    /// let server = Server::bind("127.0.0.1:0").await?;
    /// let handle = server.handle();
    /// handle.shutdown(); // from wherever it is known that it is time
    /// let report = server.serve(async |mut conn| conn.write_all(b"hello\n").await).await?;
    /// assert_eq!(report.active, 0);
    /// # Ok(()) }) }
    /// ```
    ///
    /// Nothing is served before it is awaited, and the compiler notices:
    ///
    /// ```compile_fail
    /// #![deny(unused_must_use)]
    /// # async fn example<R: gracious::Runtime>(server: gracious::Server<R>) {
    /// server.serve(|_conn| async {}); // never awaited
    /// # }
    /// ```
    pub fn serve<F, Fut>(self, handler: F) -> Serve
    where
        F: FnOnce(Connection) -> Fut + Clone + Send + 'static, // a `Handler`: `serve_with`; HTTP: `web::serve`, `web::service`
        Fut: Future<Output: Outcome> + Send + 'static,
    {
        Serve(Box::pin(async move { self.spawn_with(handler).await }))
    }

    /// [`serve`](Self::serve), with a [`Handler`] of a type of one's own.
    ///
    /// # Errors
    /// As `serve`.
    pub fn serve_with(self, handler: impl Handler) -> Serve {
        Serve(Box::pin(async move { self.spawn_with(handler).await }))
    }

    /// Serves with handlers that need not be `Send`: what they hold over an await may be an `Rc`.
    ///
    /// `factory` is called once on each [worker](crate::Builder::workers), and the handler that it
    /// makes there is cloned for every connection of that worker, none of which ever leaves its
    /// thread. So it implies [`sharded`](crate::Builder::sharded): workers that were not bound so
    /// have the connections of their one listening socket dealt out in turn, as has a server
    /// without workers, which gets one a core. A handler that blocks its thread stops the others of
    /// that worker; it is named in the log. Available on Linux.
    ///
    /// # Errors
    /// As [`serve`](Self::serve); and that of a factory that panicked, or of a thread that could
    /// not be started, after an ordinary drain.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> { async_std::task::block_on(async {
    /// use std::cell::Cell;
    /// use std::rc::Rc;
    ///
    /// use futures_lite::AsyncWriteExt;
    /// use gracious::{Connection, Server};
    ///
    /// let server = Server::builder().listen("127.0.0.1:0").workers(2).bind().await?;
    /// # server.handle().shutdown();
    /// server
    ///     .serve_local(|| {
    ///         let served = Rc::new(Cell::new(0)); // one a worker
    ///         async move |mut conn: Connection| {
    ///             served.set(served.get() + 1);
    ///             let line = format!("you are number {} here\n", served.get());
    ///             conn.write_all(line.as_bytes()).await
    ///         }
    ///     })
    ///     .await?;
    /// # Ok(()) }) }
    /// ```
    #[cfg(target_os = "linux")]
    pub fn serve_local<F, H, Fut>(self, factory: F) -> Serve
    where
        F: FnOnce() -> H + Clone + Send + 'static,
        H: FnOnce(Connection) -> Fut + Clone + 'static,
        Fut: Future<Output: Outcome> + 'static,
    {
        Serve(Box::pin(async move { self.spawn_local(factory).await }))
    }

    /// [`serve_local`](Self::serve_local), in the background.
    #[cfg(target_os = "linux")]
    pub fn spawn_local<F, H, Fut>(self, factory: F) -> Running
    where
        F: FnOnce() -> H + Clone + Send + 'static,
        H: FnOnce(Connection) -> Fut + Clone + 'static,
        Fut: Future<Output: Outcome> + 'static,
    {
        self.start(true, |executor, shared| {
            Ok(LocalLauncher::all(executor, factory, shared))
        })
    }

    /// Serves in the background.
    pub fn spawn<F, Fut>(self, handler: F) -> Running
    where
        F: FnOnce(Connection) -> Fut + Clone + Send + 'static, // a `Handler`: `spawn_with`; HTTP: `web::serve`, `web::service`
        Fut: Future<Output: Outcome> + Send + 'static,
    {
        self.spawn_with(handler)
    }

    /// [`spawn`](Self::spawn), with a [`Handler`] of a type of one's own.
    pub fn spawn_with(self, handler: impl Handler) -> Running {
        self.start(false, |executor, shared| {
            SendLauncher::all(&executor, &handler, shared)
        })
    }

    /// Starts the server's threads and its task; `local` handlers stay on their threads.
    fn start(
        self,
        local: bool,
        launchers: impl FnOnce(Executor<R>, &Arc<Shared>) -> io::Result<Launchers>,
    ) -> Running {
        let shared = &self.shared;
        shared.begin_serving();
        let started = self.start_threads(local).and_then(|()| {
            let executor = Executor::new(self.runtime.clone(), shared);
            let launchers = launchers(executor.clone(), shared)?;
            let task: BoxedTask = Box::pin(drain::run(shared.clone(), launchers));
            #[cfg(feature = "health")]
            let task = health::beside(shared, task);
            #[cfg(feature = "systemd")]
            let task = systemd::beside(shared, task);
            executor.spawn(0, task);
            Ok(())
        });
        if let Err(error) = started {
            abort::fail_start(shared, error);
        }
        Running {
            closed: Box::pin(fallback::closed(shared.clone(), None)),
            handle: self.handle(),
        }
    }

    /// Starts the threads that the server was configured for.
    #[cfg(target_os = "linux")]
    fn start_threads(&self, local: bool) -> io::Result<()> {
        let config = &self.shared.config;
        let options = WorkerOptions {
            workers: config.workers,
            sharded: config.sharded,
            local,
            spin: config.spin,
        };
        let Some(pools) = WorkerPools::new::<ConnectionState>(&self.pollers, options)? else {
            return Ok(());
        };
        // Given to the server before the threads are started: where one cannot be, the end of the
        // server stops the others.
        self.shared.set_pools(pools.clone());
        let (server, failing) = (Arc::downgrade(&self.shared), Arc::downgrade(&self.shared));
        // The connections whose handlers a thread was in at the last look.
        let mut inside = Vec::new();
        let on_look = move |is_blocked: bool| {
            if !is_blocked {
                inside.clear();
            } else if let Some(server) = server.upgrade() {
                server.registry.log_blocked(&inside);
                inside = server.registry.in_handlers();
            }
        };
        // No listener is reported any more: the server stops as one does whose listener is dead.
        let on_failure = move |error: io::Error| {
            if let Some(server) = failing.upgrade() {
                let message = format!("cannot wait for events: {error}");
                server.fail(io::Error::new(error.kind(), message));
            }
        };
        pools.start(on_look, on_failure)
    }

    #[cfg(not(target_os = "linux"))]
    fn start_threads(&self, _local: bool) -> io::Result<()> {
        Ok(())
    }

    /// Serves for as long as `work` goes on: asyncio's `async with server`.
    ///
    /// The end of `work`, whatever its value, stops the server; its value and the report are given
    /// back when the drain is over. A server that is stopped otherwise lets `work` go on within the
    /// deadline and then drops it: its value is `None`. An abort drops it now. `work` is
    /// [tracked](Handle::track). Dropping this future drops `work` and shuts the server down.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub fn serve_until<F, Fut, W>(self, handler: F, work: W) -> ServeUntil<W>
    where
        F: FnOnce(Connection) -> Fut + Clone + Send + 'static, // a `Handler`: `spawn_with`; HTTP: `web::serve`, `web::service`
        Fut: Future<Output: Outcome> + Send + 'static,
        W: Future,
    {
        ServeUntil {
            work: self.handle().track_as("the work of `serve_until`", work),
            start: Some(Box::new(move || self.spawn_with(handler))),
            running: None,
            value: None,
        }
    }
}

impl<R: Runtime> Drop for Server<R> {
    fn drop(&mut self) {
        if self.shared.begin_serving() {
            abort::drop_unserved(&self.shared);
        }
    }
}

impl<R: Runtime> fmt::Debug for Server<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("state", &self.shared.state())
            .field("local_addrs", &self.local_addrs())
            .finish_non_exhaustive()
    }
}

/// The state and the addresses: `bound on 127.0.0.1:8888, [::1]:8888`.
impl<R: Runtime> fmt::Display for Server<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// The future of [`Server::serve`]: it serves from its first poll on.
///
/// Dropping it shuts the server down: the stop goes on in the runtime, deadline included.
// A type that knows no handler: rustc repeats an error of a handler wherever a type has it in it, and
// so at the call, at its value, and at its `.await`. It prints the lines of the bounds, too, and with
// them where a type of the user's own belongs.
#[must_use = "a server takes nobody in until it is served"]
pub struct Serve(Pin<Box<dyn Future<Output = io::Result<Report>> + Send>>);

impl Future for Serve {
    type Output = io::Result<Report>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Report>> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

pin_project! {
    /// The future of [`Server::serve_until`]: it serves from its first poll on.
    ///
    /// Dropping it drops the work and shuts the server down: the stop goes on in the runtime,
    /// deadline included.
    // As `Serve`, it knows no handler.
    #[must_use = "a server takes nobody in until it is served"]
    pub struct ServeUntil<W: Future> {
        #[pin]
        work: Tracked<W>,
        // `None` from the first poll on.
        start: Option<Box<dyn FnOnce() -> Running + Send>>,
        running: Option<Running>,
        // What the work gave.
        value: Option<Option<W::Output>>,
    }
}

impl<W: Future> Future for ServeUntil<W> {
    type Output = io::Result<(Option<W::Output>, Report)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(start) = this.start.take() {
            *this.running = Some(start());
        }
        let Some(running) = this.running else {
            return Poll::Pending;
        };
        if this.value.is_none() {
            *this.value = Some(ready!(this.work.poll(cx)));
            running.handle.shutdown_because(Reason::WorkEnded);
        }
        let report = ready!(Pin::new(running).poll(cx))?;
        Poll::Ready(Ok((this.value.take().flatten(), report)))
    }
}

impl<W: Future> fmt::Debug for ServeUntil<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeUntil").finish_non_exhaustive()
    }
}

/// A server that serves in the background.
///
/// Awaiting it waits for the end of the server and gives its report, or the error of a listener
/// that could not go on. Dropping it shuts the server down: the stop goes on in the runtime,
/// deadline included.
#[must_use = "dropping a running server shuts it down"]
pub struct Running {
    closed: Pin<Box<dyn Future<Output = Report> + Send>>,
    handle: Handle,
}

impl Running {
    /// The handle.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Shuts the server down and waits until it is closed.
    ///
    /// # Errors
    /// That of a listener that could not go on.
    pub async fn shutdown(self) -> io::Result<Report> {
        self.handle.shutdown();
        self.await
    }
}

impl Future for Running {
    type Output = io::Result<Report>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Report>> {
        let report = ready!(self.closed.as_mut().poll(cx));
        Poll::Ready(match self.handle.shared().take_failure() {
            Some(error) => Err(error),
            None => Ok(report),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // This does nothing where the server is closed already.
        self.handle.shutdown_because(Reason::Dropped);
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
