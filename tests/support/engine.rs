//! What a test body is run on, chosen at run time: a body that were generic over its runtime would
//! be compiled once for each, and the server with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use gracious::{Builder, Runtime, Server};

/// What runs a test's servers, and their handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    #[cfg(feature = "async-std")]
    AsyncStd,
    #[cfg(feature = "smol")]
    Smol,
    /// A plain executor, which knows nothing of sockets.
    Executor,
    /// async-std, with servers that have workers of their own.
    #[cfg(all(target_os = "linux", feature = "async-std"))]
    Workers,
    /// The same, each worker with a listening socket of its own.
    #[cfg(all(target_os = "linux", feature = "async-std"))]
    Shards,
}

impl Engine {
    /// Whether this engine's servers have workers of their own.
    pub fn has_workers(self) -> bool {
        #[cfg(all(target_os = "linux", feature = "async-std"))]
        return matches!(self, Self::Workers | Self::Shards);
        #[cfg(not(all(target_os = "linux", feature = "async-std")))]
        false
    }

    /// A server on this engine, to be configured. Its clock is that of `runtime`.
    pub fn server<R: Runtime>(self, runtime: R) -> Builder<R> {
        let builder = Server::with_runtime(runtime);
        match self {
            #[cfg(all(target_os = "linux", feature = "async-std"))]
            Self::Workers => builder.workers(2),
            #[cfg(all(target_os = "linux", feature = "async-std"))]
            Self::Shards => builder.workers(2).sharded(true),
            _ => builder,
        }
    }
}

/// The runtime of a test: that of its engine, with a clock that can be put forward.
#[derive(Clone)]
pub struct TestRuntime {
    pub engine: Engine,
    executor: Executor,
    /// How many seconds its clock is ahead.
    ahead: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Executor {
    #[cfg(feature = "async-std")]
    AsyncStd,
    #[cfg(feature = "smol")]
    Smol,
    Plain(Plain),
}

pub type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

impl TestRuntime {
    pub fn start(engine: Engine) -> Self {
        let executor = match engine {
            #[cfg(feature = "async-std")]
            Engine::AsyncStd => Executor::AsyncStd,
            #[cfg(feature = "smol")]
            Engine::Smol => Executor::Smol,
            Engine::Executor => Executor::Plain(Plain::start()),
            #[cfg(all(target_os = "linux", feature = "async-std"))]
            Engine::Workers | Engine::Shards => Executor::AsyncStd,
        };
        Self {
            engine,
            executor,
            ahead: Arc::default(),
        }
    }

    /// The same engine on another runtime: a plain executor.
    pub fn elsewhere(&self) -> Self {
        Self {
            executor: Executor::Plain(Plain::start()),
            ..self.clone()
        }
    }

    /// Puts its clock forward, for all of its clones.
    pub fn put_forward(&self, time: Duration) {
        self.ahead.fetch_add(time.as_secs(), SeqCst);
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        // Boxed before the executor is looked at: else each future is compiled once for each.
        self.spawn_boxed(Box::pin(future));
    }

    /// Runs a future whose value nobody wants.
    pub fn run<T>(&self, future: impl Future<Output = T> + Send + 'static) {
        self.spawn(async move {
            let _unwanted = future.await;
        });
    }

    fn spawn_boxed(&self, future: Boxed) {
        match &self.executor {
            #[cfg(feature = "async-std")]
            Executor::AsyncStd => gracious::AsyncStd.spawn(future),
            #[cfg(feature = "smol")]
            Executor::Smol => gracious::Smol.spawn(future),
            Executor::Plain(plain) => plain.spawn(future),
        }
    }

    pub fn sleep(&self, duration: Duration) -> Boxed {
        match &self.executor {
            #[cfg(feature = "async-std")]
            Executor::AsyncStd => Box::pin(gracious::AsyncStd.sleep(duration)),
            #[cfg(feature = "smol")]
            Executor::Smol => Box::pin(gracious::Smol.sleep(duration)),
            Executor::Plain(plain) => Box::pin(plain.sleep(duration)),
        }
    }
}

impl Runtime for TestRuntime {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        self.spawn(future);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        self.sleep(duration)
    }

    fn now(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.ahead.load(SeqCst))
    }
}

/// A plain executor: two threads and a queue. It knows nothing of sockets.
#[derive(Clone)]
struct Plain {
    queue: async_channel::Sender<async_task::Runnable>,
}

impl Plain {
    fn start() -> Self {
        let (queue, runnables) = async_channel::unbounded::<async_task::Runnable>();
        for _ in 0..2 {
            let runnables = runnables.clone();
            thread::spawn(move || {
                while let Ok(runnable) = runnables.recv_blocking() {
                    runnable.run();
                }
            });
        }
        Self { queue }
    }
}

impl Runtime for Plain {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        let queue = self.queue.clone();
        // A task that is woken after the threads have gone is dropped.
        let schedule = move |runnable| drop(queue.try_send(runnable));
        let (runnable, task) = async_task::spawn(future, schedule);
        runnable.schedule();
        task.detach();
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        async move {
            async_io::Timer::after(duration).await;
        }
    }
}
