//! What is special about workers; all other promises are run on them, too, from the same bodies.
//!
//! Every body is run with one worker and with two. Where it counts threads or descriptors, or reads
//! the log, it is run in a process of its own.
#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

use gracious::Builder;

use crate::support::peer::{at_home, in_a_process, passes};
use crate::support::{Body, DEADLINE, Engine, TestRuntime, within};

mod blocking;
mod guests;
mod local_handlers;
mod shards;
mod sockets;
mod threads;

/// A server with workers, on an address of its own. Its clock, and what there is to do outside of
/// its handlers, is a plain executor's.
fn with_workers(workers: usize) -> Builder<TestRuntime> {
    at_home(&plain()).workers(workers)
}

fn plain() -> TestRuntime {
    TestRuntime::start(Engine::Executor)
}

/// Makes two `#[test]`s out of each body: `async fn name(workers: usize)`.
macro_rules! on_workers {
    ($($name:ident),* $(,)?) => {
        mod on_one_worker {
            $crate::tests!($crate::run, 1; $($name: $name);*);
        }
        mod on_two_workers {
            $crate::tests!($crate::run, 2; $($name: $name);*);
        }
    };
}
use on_workers;

/// The same, each in a process of its own.
macro_rules! on_workers_in_a_process {
    ($($name:ident),* $(,)?) => {
        mod in_a_process_on_one_worker {
            $crate::tests!($crate::run_in_a_process, 1; $($name: $name);*);
        }
        mod in_a_process_on_two_workers {
            $crate::tests!($crate::run_in_a_process, 2; $($name: $name);*);
        }
    };
}
use on_workers_in_a_process;

fn run(workers: usize, _test: &str, body: &'static dyn Body<usize>) {
    within(DEADLINE, move || async_io::block_on(body.begin(workers)));
}

fn run_in_a_process(workers: usize, test: &'static str, body: &'static dyn Body<usize>) {
    in_a_process(
        test,
        move || async_io::block_on(body.begin(workers)),
        &passes,
    );
}
