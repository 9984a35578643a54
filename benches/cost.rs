//! What tracking and the graceful stop cost: `gracious` against a bare accept-and-spawn loop.
//!
//! ```text
//! cargo bench --bench cost --all-features                       # async-std and smol
//! cargo bench --bench cost --all-features -- --pin              # servers and load on one core
//! cargo bench --bench cost --all-features -- --pin '50 clients' # some of it
//! ```
//!
//! Every server is a process of its own and answers each line with `+PONG`. What counts is the
//! processor time the server used per request (or per connection that comes, asks once and goes),
//! and the memory it holds per idle connection. The time the clients took is given as a ratio only,
//! for it says more about the load and the machine; a single client's is its round trip.
//!
//! Two servers are measured in turns within each round, and their ratio is taken there, because a
//! machine drifts by more between two runs than `gracious` may cost. `--pin` is the mode with the
//! least noise. Unpinned, the two threads of a server and the load compete for the cores, and the
//! spread tells how far a figure can be believed.

#[cfg(target_os = "linux")]
#[path = "cost/compare.rs"]
mod compare;

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    compare::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("this benchmark reads the processor time of its servers from Linux's /proc");
}
