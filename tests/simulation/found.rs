//! The seeds that have found something, each with its story.

use gracious::testing::Simulation;

use crate::handlers::echo;

/// The closer's last poll, in which it found that all was over, left its waker in the queue that wakes
/// it. A waker keeps its task's memory: so did every handle of a closed server, for as long as it lived.
#[test]
fn a_closed_server_keeps_no_waker_of_its_tasks() {
    Simulation::new(0..1).fixed().run(|sim| async move {
        let running = sim.serve(echo).await;
        sim.stop_sometime(&running.handle());
        running.await.unwrap();
    });
}
