//! What all tests share: the engines that every body is run on, and a deadline that fails.
#![allow(dead_code, unreachable_pub, clippy::manual_async_fn)]

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use gracious::Builder;

pub mod client;
pub mod engine;
pub mod flood;
pub mod peer;
pub mod program;

pub use engine::{Engine, TestRuntime};

/// Generous: on a busy machine nothing here takes a tenth of it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A test body, `async fn name(argument: A)`, behind one type for all: what runs it is compiled once.
pub trait Body<A>: Sync {
    fn begin(&self, argument: A) -> Pin<Box<dyn Future<Output = ()>>>;
}

impl<A, F, Fut> Body<A> for F
where
    F: Fn(A) -> Fut + Sync,
    Fut: Future<Output = ()> + 'static,
{
    fn begin(&self, argument: A) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self(argument))
    }
}

/// A server to be configured, on the engine that the test is run on. What the test has closed before
/// can be bound again.
pub fn server(runtime: TestRuntime) -> Builder<TestRuntime> {
    program::no_copy_is_left();
    runtime.engine.server(runtime)
}

/// Runs a test body to its end, or fails: also where it blocks its thread.
pub fn run(engine: Engine, _test: &str, body: &'static dyn Body<TestRuntime>) {
    within(DEADLINE, move || drive(engine, body));
}

/// Runs a test body to its end on this thread.
pub fn drive(engine: Engine, body: &dyn Body<TestRuntime>) {
    async_io::block_on(body.begin(TestRuntime::start(engine)));
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

/// Makes a `#[test]` on every engine out of each body: `async fn name(runtime: TestRuntime)`.
#[macro_export]
macro_rules! on_every_runtime {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        $crate::tests_on_every_engine!(
            $crate::support::run;
            on_async_std on_smol on_workers on_shards on_an_executor_of_ones_own;
            $($(#[$meta])* $name: $name);*
        );
    };
}

/// As `on_every_runtime!`, each test in a process of its own.
#[macro_export]
macro_rules! alone_on_every_runtime {
    ($($name:ident),* $(,)?) => {
        $crate::tests_on_every_engine!(
            $crate::support::client::run_alone;
            alone_on_async_std
            alone_on_smol
            alone_on_workers
            alone_on_shards
            alone_on_an_executor_of_ones_own;
            $($name: $name);*
        );
    };
}

/// Makes a `#[test]` on every engine, in a process of its own, out of each pair:
/// `async fn child(runtime: TestRuntime)` and `fn parent(process: Process)`.
#[macro_export]
macro_rules! on_every_runtime_in_a_process {
    ($($name:ident: $child:ident, $parent:ident);* $(;)?) => {
        $crate::tests_on_every_engine!(
            $crate::support::peer::run_in_a_process;
            in_a_process_on_async_std
            in_a_process_on_smol
            in_a_process_on_workers
            in_a_process_on_shards
            in_a_process_on_an_executor_of_ones_own;
            $($name: $child, $parent);*
        );
    };
}

/// Makes the tests of one macro above, in a module for each engine.
#[macro_export]
macro_rules! tests_on_every_engine {
    (
        $runner:path;
        $async_std:ident $smol:ident $workers:ident $shards:ident $executor:ident;
        $($tests:tt)*
    ) => {
        #[cfg(feature = "async-std")]
        mod $async_std {
            $crate::tests!($runner, $crate::support::Engine::AsyncStd; $($tests)*);
        }
        #[cfg(feature = "smol")]
        mod $smol {
            $crate::tests!($runner, $crate::support::Engine::Smol; $($tests)*);
        }
        #[cfg(all(target_os = "linux", feature = "async-std"))]
        mod $workers {
            $crate::tests!($runner, $crate::support::Engine::Workers; $($tests)*);
        }
        #[cfg(all(target_os = "linux", feature = "async-std"))]
        mod $shards {
            $crate::tests!($runner, $crate::support::Engine::Shards; $($tests)*);
        }
        mod $executor {
            $crate::tests!($runner, $crate::support::Engine::Executor; $($tests)*);
        }
    };
}

/// Makes a `#[test]` of each `name: function, function`, which are the parent module's: the runner
/// gets the argument, the test's full name and the functions.
#[macro_export]
macro_rules! tests {
    (
        $runner:path, $argument:expr;
        $($(#[$meta:meta])* $name:ident: $($function:ident),+);*
    ) => {
        $(
            #[test]
            $(#[$meta])*
            fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                $runner($argument, test, $(&super::$function),+);
            }
        )*
    };
}
