//! What is special about workers; all other promises are run on them, too, from the same bodies.
//!
//! Every body is run with one worker and with two. Where it counts threads or descriptors, or reads
//! the log, it is run in a process of its own.
#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

use gracious::Builder;

use crate::support::peer::at_home;
use crate::support::{Plain, TestRuntime};

mod blocking;
mod guests;
mod local_handlers;
mod shards;
mod sockets;
mod threads;

/// A server with workers, on an address of its own. Its clock, and what there is to do outside of
/// its handlers, is a plain executor's.
fn with_workers(workers: usize) -> Builder<Plain> {
    at_home(&Plain::start()).workers(workers)
}

/// Makes two `#[test]`s out of each body: `async fn name(workers: usize)`.
macro_rules! on_workers {
    ($($name:ident),* $(,)?) => {
        mod on_one_worker {
            $(#[test] fn $name() {
                $crate::support::run::<$crate::support::Plain, _>(|_| super::$name(1));
            })*
        }
        mod on_two_workers {
            $(#[test] fn $name() {
                $crate::support::run::<$crate::support::Plain, _>(|_| super::$name(2));
            })*
        }
    };
}
use on_workers;

/// The same, each in a process of its own.
macro_rules! on_workers_in_a_process {
    ($($name:ident),* $(,)?) => {
        mod in_a_process_on_one_worker {
            $(#[test] fn $name() {
                $crate::support::peer::process::<$crate::support::Plain, _>(
                    concat!(module_path!(), "::", stringify!($name)),
                    |_| super::$name(1),
                    $crate::support::peer::passes,
                );
            })*
        }
        mod in_a_process_on_two_workers {
            $(#[test] fn $name() {
                $crate::support::peer::process::<$crate::support::Plain, _>(
                    concat!(module_path!(), "::", stringify!($name)),
                    |_| super::$name(2),
                    $crate::support::peer::passes,
                );
            })*
        }
    };
}
use on_workers_in_a_process;
