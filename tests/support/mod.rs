//! What all tests share: the runtimes that every body is run on, and a deadline that fails.
#![allow(dead_code, unreachable_pub, clippy::manual_async_fn)]

use std::cell::Cell;
use std::future::Future;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use gracious::{Builder, Runtime, Server};

pub mod client;
pub mod peer;

/// Generous: on a busy machine nothing here takes a tenth of it.
const DEADLINE: Duration = Duration::from_secs(30);

/// A runtime that tests can be run on.
pub trait TestRuntime: Runtime {
    fn start() -> Self;

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        async_io::block_on(future)
    }
}

#[cfg(feature = "async-std")]
impl TestRuntime for gracious::AsyncStd {
    fn start() -> Self {
        Self
    }
}

#[cfg(feature = "smol")]
impl TestRuntime for gracious::Smol {
    fn start() -> Self {
        Self
    }
}

/// A plain executor: two threads and a queue. It knows nothing of sockets.
#[derive(Clone)]
pub struct Plain {
    queue: async_channel::Sender<async_task::Runnable>,
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

impl TestRuntime for Plain {
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

/// Who runs the handlers of this test's servers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Engine {
    Runtime,
    Workers,
    Shards,
}

thread_local! {
    static ENGINE: Cell<Engine> = const { Cell::new(Engine::Runtime) };
}

/// Whether this test's servers have workers of their own.
pub fn on_workers() -> bool {
    ENGINE.get() != Engine::Runtime
}

/// A server to be configured, on the engine that the test is run on.
pub fn server<R: Runtime>(runtime: R) -> Builder<R> {
    let builder = Server::with_runtime(runtime);
    #[cfg(target_os = "linux")]
    match ENGINE.get() {
        Engine::Runtime => {}
        Engine::Workers => return builder.workers(2),
        Engine::Shards => return builder.workers(2).sharded(true),
    }
    builder
}

/// async-std, with servers that have workers of their own, sharded or not.
#[cfg(all(target_os = "linux", feature = "async-std"))]
#[derive(Clone)]
pub struct Workers<const SHARDED: bool>;

#[cfg(all(target_os = "linux", feature = "async-std"))]
impl<const SHARDED: bool> Runtime for Workers<SHARDED> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        gracious::AsyncStd.spawn(future);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        gracious::AsyncStd.sleep(duration)
    }
}

#[cfg(all(target_os = "linux", feature = "async-std"))]
impl<const SHARDED: bool> TestRuntime for Workers<SHARDED> {
    fn start() -> Self {
        ENGINE.set(if SHARDED {
            Engine::Shards
        } else {
            Engine::Workers
        });
        Self
    }
}

/// Runs a test body to its end, or fails: also where it blocks its thread.
pub fn run<R: TestRuntime, F: Future<Output = ()> + 'static>(body: fn(R) -> F) {
    within(DEADLINE, move || {
        let runtime = R::start();
        runtime.block_on(body(runtime.clone()));
    });
}

/// Runs `body` on a thread of its own, and fails if that takes longer than `deadline`.
#[track_caller]
pub fn within<T: Send + 'static>(
    deadline: Duration,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    let _ = env_logger::builder().is_test(true).try_init();
    let (done, ended) = mpsc::channel();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let test = thread::Builder::new()
        .name(name)
        .spawn(move || done.send(body()))
        .unwrap();
    match ended.recv_timeout(deadline) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the test did not end within {deadline:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(test.join().map(drop).unwrap_err())
        }
    }
}

/// Makes a `#[test]` on every runtime and engine out of each body: `async fn name<R: TestRuntime>(runtime: R)`.
#[macro_export]
macro_rules! on_every_runtime {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        #[cfg(feature = "async-std")]
        mod on_async_std {
            $(#[test] $(#[$meta])* fn $name() {
                $crate::support::run::<gracious::AsyncStd, _>(super::$name);
            })*
        }
        #[cfg(feature = "smol")]
        mod on_smol {
            $(#[test] $(#[$meta])* fn $name() {
                $crate::support::run::<gracious::Smol, _>(super::$name);
            })*
        }
        #[cfg(all(target_os = "linux", feature = "async-std"))]
        mod on_workers {
            $(#[test] $(#[$meta])* fn $name() {
                $crate::support::run::<$crate::support::Workers<false>, _>(super::$name);
            })*
        }
        #[cfg(all(target_os = "linux", feature = "async-std"))]
        mod on_shards {
            $(#[test] $(#[$meta])* fn $name() {
                $crate::support::run::<$crate::support::Workers<true>, _>(super::$name);
            })*
        }
        mod on_an_executor_of_ones_own {
            $(#[test] $(#[$meta])* fn $name() {
                $crate::support::run::<$crate::support::Plain, _>(super::$name);
            })*
        }
    };
}
