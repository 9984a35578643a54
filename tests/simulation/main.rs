//! The server in a simulated world: its promises in every order of events that some thousands of seeds
//! make, and the world itself, held against real sockets.
//!
//! ```sh
//! cargo test --all-features --test simulation                          # some thousand seeds
//! GRACIOUS_SEEDS=0..1000000 cargo test --release --all-features --test simulation
//! ```

mod bytes;
mod controls;
#[cfg(target_os = "linux")]
mod ends;
mod found;
mod handlers;
mod inside;
mod stops;
mod worlds;
