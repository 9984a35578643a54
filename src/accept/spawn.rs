//! Where a server's tasks run, and who starts its handlers there.

#[cfg(target_os = "linux")]
use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(target_os = "linux")]
use async_channel::Receiver;

use crate::connection::Connection;
use crate::connection::task::Task;
#[cfg(target_os = "linux")]
use crate::handle::Shared;
use crate::handler::Handler;
#[cfg(target_os = "linux")]
use crate::handler::{Outcome, Returning};
use crate::runtime::Runtime;
use crate::shared::connection::Record;
#[cfg(target_os = "linux")]
use crate::workers::Pool;
#[cfg(target_os = "linux")]
pub(crate) use crate::workers::PoolId;

/// There are no pools here.
#[cfg(not(target_os = "linux"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum PoolId {}

#[cfg(not(target_os = "linux"))]
impl PoolId {
    pub(crate) fn count_off(self) {
        match self {}
    }
}

/// Where a server's tasks run: on workers of its own, or else on its runtime.
#[derive(Clone)]
pub(crate) struct Host<R> {
    pub(crate) runtime: R,
    /// One a shard, after those that only deal connections out.
    #[cfg(target_os = "linux")]
    pub(crate) pools: Vec<Arc<Pool>>,
}

impl<R: Runtime> Host<R> {
    pub(crate) fn spawn(&self, shard: u16, future: impl Future<Output = ()> + Send + 'static) {
        #[cfg(target_os = "linux")]
        if let Some(pool) = self.pools.get(usize::from(shard)) {
            return pool.spawn(future);
        }
        let _of_all = shard;
        self.runtime.spawn(future);
    }

    /// Starts what handles a connection.
    pub(crate) fn start<F>(&self, shard: u16, task: Task<F>)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        #[cfg(target_os = "linux")]
        if let Some(pool) = self.pools.get(usize::from(shard)) {
            return pool.spawn_counted(|pool| task.counted(pool));
        }
        self.spawn(shard, task);
    }

    /// Starts a handler for each connection.
    pub(crate) fn serve(
        self,
        handler: impl Handler,
    ) -> impl Fn(Arc<Record>) + Send + Sync + 'static {
        // A handler need not be `Sync`: what is shared here is the right to clone it.
        let handler = Mutex::new(handler);
        move |record: Arc<Record>| {
            let (shard, connection) = (record.shard, Connection::new(record.clone()));
            // What a handler does before it comes to its future is its connection's affair, too.
            let made = catch_unwind(AssertUnwindSafe(|| {
                let handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
                let handler = handler.clone();
                handler.run(connection)
            }));
            match made {
                Ok(future) => self.start(shard, Task::new(record, future)),
                Err(panic) => self.start(shard, Task::panicked(record, &*panic)),
            }
        }
    }

    /// Starts a handler for each connection on a thread that it never leaves: one of those that
    /// `factory` makes, once for each shard.
    #[cfg(target_os = "linux")]
    pub(crate) fn serve_local<F, H, Fut>(
        self,
        shared: &Arc<Shared>,
        factory: F,
    ) -> impl Fn(Arc<Record>) + Send + Sync + 'static
    where
        F: FnOnce() -> H + Clone + Send + 'static,
        H: FnOnce(Connection) -> Fut + Clone + 'static,
        Fut: Future<Output: Outcome> + 'static,
    {
        let dealers = shared.dealers();
        let inboxes = self.pools[dealers..].iter().map(|pool| {
            let (inbox, records) = async_channel::unbounded::<Arc<Record>>();
            let (factory, shared, pool) = (factory.clone(), shared.clone(), pool.clone());
            // Only what can be sent crosses over; what it makes is made there.
            pool.clone().spawn(async move {
                let handler = catch_unwind(AssertUnwindSafe(factory));
                if let Err(panic) = &handler {
                    shared.fail(factory_panicked(&**panic));
                }
                pool.spawn_local(serve_all(pool.clone(), shared, handler.ok(), records));
            });
            inbox
        });
        let inboxes: Vec<_> = inboxes.collect();
        move |record| {
            // It is unbounded, and open as long as this is.
            let _sent = inboxes[usize::from(record.shard) - dealers].try_send(record);
        }
    }
}

/// Starts a handler on this thread for each connection that comes.
#[cfg(target_os = "linux")]
async fn serve_all<H, Fut>(
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    handler: Option<H>,
    records: Receiver<Arc<Record>>,
) where
    H: FnOnce(Connection) -> Fut + Clone,
    Fut: Future<Output: Outcome> + 'static,
{
    while let Ok(record) = records.recv().await {
        let Some(handler) = &handler else {
            shared.turn_away(record);
            continue;
        };
        let connection = Connection::new(record.clone());
        let made = catch_unwind(AssertUnwindSafe(|| Returning {
            future: handler.clone()(connection),
        }));
        match made {
            Ok(future) => start_local(&pool, Task::new(record, future)),
            Err(panic) => start_local(&pool, Task::panicked(record, &*panic)),
        }
    }
}

#[cfg(target_os = "linux")]
fn start_local<F>(pool: &Arc<Pool>, task: Task<F>)
where
    F: Future<Output = io::Result<()>> + 'static,
{
    pool.spawn_local_counted(|pool| task.counted(pool));
}

#[cfg(target_os = "linux")]
fn factory_panicked(panic: &(dyn Any + Send)) -> io::Error {
    let message = crate::connection::task::message(panic);
    io::Error::other(format!(
        "the factory of a worker's handler panicked: {message}"
    ))
}
