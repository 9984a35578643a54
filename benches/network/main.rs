//! gracious across a wide-area link, while it is stopped, beside a bare loop and a peer.
//!
//! ```text
//! cargo bench -p benches --bench network                            # every cell: hours
//! cargo bench -p benches --bench network -- --stops 20 --scenarios storm --trips 40
//! cargo bench -p benches --bench network -- --servers async-std tokio --losses 1
//! ```
//!
//! The link is made here, of two network namespaces and a relay that delays, loses and reorders
//! packets, which needs root. It is that of `tests/network`, which has some of these cells as tests.

#[cfg(target_os = "linux")]
#[path = "../../tests/network/rig/mod.rs"]
mod rig;
#[cfg(target_os = "linux")]
mod table;
#[cfg(target_os = "linux")]
mod tokio;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    table::run()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the link is made of what Linux has");
}
