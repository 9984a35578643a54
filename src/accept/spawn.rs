//! Where a server's tasks run, and how its handlers are started there.

use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use async_channel::{Receiver, Sender};

#[cfg(target_os = "linux")]
use super::admission::close_unserved;
use crate::connection::Connection;
use crate::connection::task::{Task, message};
use crate::handler::Handler;
#[cfg(target_os = "linux")]
use crate::handler::{Outcome, Returning};
use crate::runtime::Runtime;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::sync::assert_unlocked;
#[cfg(target_os = "linux")]
use crate::workers::{Pool, WorkerPools};

/// A future without its type.
pub(crate) type BoxedTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts handlers and tasks. It has neither the runtime's type nor the handler's, so that the
/// accept loop and the drain, which call it, are compiled once and not again for each of a user's
/// handlers.
///
/// Each loop that launches has a launcher of its own, with a clone of the user's handler: a handler
/// need not be `Sync`, and a clone that takes long keeps no other loop waiting.
pub(crate) trait Launcher: Send {
    /// Starts the handler of a connection that has its permit.
    fn launch(&mut self, connection: Arc<ConnectionState>);

    /// Makes what a connection's handler is to be started with later, on any thread.
    #[cfg(feature = "_handshake")]
    fn prepare(&mut self) -> Launch;

    /// Starts a task of the server's, on the shard's pool if there are any.
    fn spawn(&self, shard: u16, task: BoxedTask);
}

/// Starts the handler of a connection that has its permit, once.
#[cfg(feature = "_handshake")]
pub(crate) type Launch = Box<dyn FnOnce(Arc<ConnectionState>) + Send>;

/// The launchers of a server.
pub(crate) struct Launchers {
    /// That of the first accept loop, and then of the sweeps.
    pub(crate) first: Box<dyn Launcher>,
    /// Those of the accept loops beside it.
    pub(crate) beside: Vec<Box<dyn Launcher>>,
    /// That of the connections which wait for a permit at a drain.
    pub(crate) queued: Box<dyn Launcher>,
}

impl Launchers {
    /// As many as the server needs, of the launchers that `make` makes.
    fn new<L: Launcher + 'static>(shared: &Shared, mut make: impl FnMut() -> L) -> Self {
        let mut boxed = || -> Box<dyn Launcher> { Box::new(make()) };
        Self {
            first: boxed(),
            beside: shared
                .listener_sets
                .iter()
                .skip(1)
                .map(|_| boxed())
                .collect(),
            queued: boxed(),
        }
    }
}

/// Where a server's tasks run: in pools of its own, or else on its runtime.
#[derive(Clone)]
pub(crate) struct Executor<R> {
    runtime: R,
    #[cfg(target_os = "linux")]
    pools: Option<WorkerPools>,
}

impl<R: Runtime> Executor<R> {
    pub(crate) fn new(runtime: R, shared: &Shared) -> Self {
        let _only_on_linux = shared;
        Self {
            runtime,
            #[cfg(target_os = "linux")]
            pools: shared.pools().cloned(),
        }
    }

    /// Starts a task of the server's.
    pub(crate) fn spawn(&self, shard: u16, task: BoxedTask) {
        #[cfg(target_os = "linux")]
        if let Some(pool) = self.pool(shard) {
            return pool.spawn(task);
        }
        // A runtime is one for all shards.
        let _of_all = shard;
        assert_unlocked();
        self.runtime.spawn(task);
    }

    /// Calls a handler, and starts its task.
    fn launch<F>(&self, handler: impl FnOnce(Connection) -> F, connection: Arc<ConnectionState>)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let shard = connection.shard;
        match call(handler, connection) {
            Ok(task) => self.start(shard, task),
            Err(task) => self.start(shard, task),
        }
    }

    /// Starts the task of a handler.
    fn start<F>(&self, shard: u16, task: Task<F>)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        #[cfg(target_os = "linux")]
        if let Some(pool) = self.pool(shard) {
            return pool.spawn_counted(|pool| task.counted(pool));
        }
        let _of_all = shard;
        assert_unlocked();
        self.runtime.spawn(task);
    }

    /// The pool of a shard, if this server has pools.
    #[cfg(target_os = "linux")]
    fn pool(&self, shard: u16) -> Option<&Arc<Pool>> {
        self.pools.as_ref()?.get(shard)
    }
}

/// Launches handlers that may run on any thread.
pub(crate) struct SendLauncher<R, H> {
    executor: Executor<R>,
    handler: H,
}

impl<R: Runtime, H: Handler> SendLauncher<R, H> {
    /// Launchers of clones of the user's handler.
    ///
    /// # Errors
    /// If the handler panicked when it was cloned.
    pub(crate) fn all(
        executor: &Executor<R>,
        handler: &H,
        shared: &Shared,
    ) -> io::Result<Launchers> {
        assert_unlocked();
        let make = || Self {
            executor: executor.clone(),
            handler: handler.clone(),
        };
        catch_unwind(AssertUnwindSafe(|| Launchers::new(shared, make)))
            .map_err(|panic| cannot_start("the handler's clone", &*panic))
    }
}

impl<R: Runtime, H: Handler> Launcher for SendLauncher<R, H> {
    fn launch(&mut self, connection: Arc<ConnectionState>) {
        let run = |stream| self.handler.clone().run(stream);
        self.executor.launch(run, connection);
    }

    #[cfg(feature = "_handshake")]
    fn prepare(&mut self) -> Launch {
        let executor = self.executor.clone();
        assert_unlocked();
        // Where it panics it is the end of that connection, as at any launch.
        let handler = catch_unwind(AssertUnwindSafe(|| self.handler.clone()));
        let run = |stream| {
            handler
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .run(stream)
        };
        Box::new(move |connection| executor.launch(run, connection))
    }

    fn spawn(&self, shard: u16, task: BoxedTask) {
        self.executor.spawn(shard, task);
    }
}

/// Calls a handler, and makes the task of its future; or, where the handler panicked before it came
/// to a future, a task that ends its connection as any panic of a handler does.
fn call<F>(
    handler: impl FnOnce(Connection) -> F,
    connection: Arc<ConnectionState>,
) -> Result<Task<F>, Task<std::future::Ready<io::Result<()>>>>
where
    F: Future<Output = io::Result<()>>,
{
    assert_unlocked();
    let stream = Connection::new(connection.clone());
    match catch_unwind(AssertUnwindSafe(|| handler(stream))) {
        Ok(future) => Ok(Task::new(connection, future)),
        Err(panic) => Err(Task::panicked(connection, &*panic)),
    }
}

/// Launches handlers that never leave the thread they began on: a connection is sent to that
/// thread, where a task of its pool calls the handler.
#[cfg(target_os = "linux")]
#[derive(Clone)]
pub(crate) struct LocalLauncher<R> {
    executor: Executor<R>,
    /// The way to the thread of each pool that runs handlers.
    inboxes: Arc<[Sender<Arc<ConnectionState>>]>,
    /// How many of the pools, the first ones, only accept.
    acceptors: usize,
}

#[cfg(target_os = "linux")]
impl<R: Runtime> LocalLauncher<R> {
    /// Launchers of handlers that `factory` makes, one for each shard, on its thread.
    pub(crate) fn all<F, H, Fut>(
        executor: Executor<R>,
        factory: F,
        shared: &Arc<Shared>,
    ) -> Launchers
    where
        F: FnOnce() -> H + Clone + Send + 'static,
        H: FnOnce(Connection) -> Fut + Clone + 'static,
        Fut: Future<Output: Outcome> + 'static,
    {
        let pools = executor.pools.as_ref();
        let serving = pools.map_or(&[][..], WorkerPools::serving);
        let inboxes = serving.iter().map(|pool| {
            let (inbox, connections) = async_channel::unbounded();
            let (factory, shared, pool) = (factory.clone(), shared.clone(), pool.clone());
            // The factory can be sent to another thread, and what it makes cannot: so it is called
            // on the pool's.
            pool.clone().spawn(async move {
                let handler = catch_unwind(AssertUnwindSafe(factory));
                if let Err(panic) = &handler {
                    shared.fail(cannot_start("the factory of a worker's handler", &**panic));
                }
                pool.spawn_local(launch_all(pool.clone(), handler.ok(), connections));
            });
            inbox
        });
        let launcher = Self {
            inboxes: inboxes.collect(),
            acceptors: pools.map_or(0, WorkerPools::acceptors),
            executor,
        };
        Launchers::new(shared, || launcher.clone())
    }
}

#[cfg(target_os = "linux")]
impl<R: Runtime> Launcher for LocalLauncher<R> {
    fn launch(&mut self, connection: Arc<ConnectionState>) {
        let inbox = &self.inboxes[usize::from(connection.shard) - self.acceptors];
        // The channel is unbounded, and the task at its other end goes on as long as a launcher
        // lives.
        let _sent = inbox.try_send(connection);
    }

    #[cfg(feature = "_handshake")]
    fn prepare(&mut self) -> Launch {
        let mut launcher = self.clone();
        Box::new(move |connection| launcher.launch(connection))
    }

    fn spawn(&self, shard: u16, task: BoxedTask) {
        self.executor.spawn(shard, task);
    }
}

/// Starts a handler on this thread for each connection that is sent to it; closes them all where
/// the factory has made no handler.
#[cfg(target_os = "linux")]
async fn launch_all<H, Fut>(
    pool: Arc<Pool>,
    handler: Option<H>,
    connections: Receiver<Arc<ConnectionState>>,
) where
    H: FnOnce(Connection) -> Fut + Clone,
    Fut: Future<Output: Outcome> + 'static,
{
    while let Ok(connection) = connections.recv().await {
        let Some(handler) = &handler else {
            close_unserved(connection);
            continue;
        };
        let run = |stream| Returning {
            future: handler.clone()(stream),
        };
        match call(run, connection) {
            Ok(task) => pool.spawn_local_counted(|pool| task.counted(pool)),
            Err(task) => pool.spawn_local_counted(|pool| task.counted(pool)),
        }
    }
}

/// The error of a server whose handlers cannot be started, because `what` panicked.
fn cannot_start(what: &str, panic: &(dyn Any + Send)) -> io::Error {
    io::Error::other(format!("{what} panicked: {}", message(panic)))
}
