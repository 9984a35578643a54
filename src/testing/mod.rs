//! A simulated world for a server and its handlers: many runs, each decided by a seed, in an in-memory
//! network and on a clock of its own (feature `testing`).
//!
//! ```
//! use std::io;
//!
//! use futures_lite::AsyncWriteExt;
//! use gracious::Connection;
//! use gracious::testing::simulate;
//!
//! async fn shout(conn: Connection) -> io::Result<()> {
//!     let (reader, mut writer) = conn.split();
//!     let mut lines = reader.lines();
//!     while let Some(line) = lines.next().await.transpose()? {
//!         writer.write_all(format!("{}\n", line.to_uppercase()).as_bytes()).await?;
//!     }
//!     Ok(())
//! }
//!
//! // in a plain #[test]
//! simulate(0..100, |sim| async move {
//!     let running = sim.serve(shout).await;
//!     for _ in 0..3 {
//!         sim.visit(async |peer| {
//!             peer.write_all(b"hello\n").await?;
//!             // Whenever the stop comes: a whole answer, or a clean end.
//!             if let Some(line) = peer.read_line().await? {
//!                 assert_eq!(line, "HELLO");
//!             }
//!             Ok(())
//!         });
//!     }
//!     sim.stop_sometime(&running.handle());
//!     running.await.unwrap();
//! });
//! ```
//!
//! The server is the whole server, unchanged; its [`Runtime`](crate::Runtime) and its
//! [`Listener`](crate::Listener) are the world's. Of the tasks that can go on the seed picks the next;
//! time passes only when none can, and then at once. Half of the peers behave, and the others have one
//! of the [`Fault`]s. After every step, before time passes, and at the end of a run the server's promises
//! are checked. What goes against one fails the run, and so does a panic of the scenario, a script or
//! a handler, and a run in which nothing can go on and something is left.
//!
//! A run that fails is made smaller by leaving out peers and faults, and printed with its timeline, its
//! report and its sockets, and with the command that makes it again.
//!
//! `docs/testing.md` in the repository has more.

mod clock;
mod coverage;
mod executor;
mod fault;
mod handler;
mod listener;
mod network;
mod peer;
mod plan;
mod random;
mod sim;
mod simulation;
mod timeline;
mod watch;
mod wire;
mod world;

use std::future::Future;
use std::ops::Range;

pub use self::clock::SimRuntime;
pub use self::coverage::Coverage;
pub use self::fault::Fault;
pub use self::listener::{SimListener, SimStream};
pub use self::peer::Peer;
pub use self::sim::Sim;
pub use self::simulation::Simulation;

/// Runs a scenario once for each seed, each time in a world of its own: a [`Simulation`] with every
/// default.
///
/// # Panics
/// As [`Simulation::run`].
#[track_caller]
pub fn simulate<F>(seeds: Range<u64>, scenario: impl Fn(Sim) -> F) -> Coverage
where
    F: Future<Output = ()> + 'static,
{
    Simulation::new(seeds).run(scenario)
}

/// Says that this should sometimes be so: a simulation in which it is looked for, and is so in none of
/// its runs, fails. It may be called in a scenario, in a script, or in a handler; outside of a simulation
/// it does nothing.
pub fn sometimes(what: &str, is_so: bool) {
    if let Some(world) = world::World::current() {
        world.wanted(what, is_so);
    }
}
