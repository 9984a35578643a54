//! Servers across a wide-area link, while they are stopped.
//!
//! The link is the test's own: two network namespaces, and a relay that delays, loses and reorders
//! packets by a seed. It needs root, and says so where it cannot be had.
//!
//! ```sh
//! cargo test --all-features --test network -- --ignored        # some cells: minutes
//! cargo bench -p benches --bench network                       # every cell, with peers: an hour
//! ```
#![cfg(target_os = "linux")]

mod connections;
mod door;
mod not_yet;
mod rig;
mod storms;
mod the_link;

use rig::server::{BARE, ENGINES, serve_if_asked};

/// What the processes run that are started as servers; a test that does nothing elsewhere.
#[test]
fn serves() {
    let mut kinds = ENGINES.to_vec();
    kinds.push(BARE);
    serve_if_asked(&kinds);
}
