//! A server is stopped sometime, among peers of all manners.

use gracious::Reason;
use gracious::testing::{Fault, Sim, Simulation, simulate};

use crate::handlers::{echo, talk};

async fn a_stop_among_peers(sim: Sim) {
    let running = sim.serve(echo).await;
    for _ in 0..sim.random(5) {
        sim.visit(talk);
    }
    sim.stop_sometime(&running.handle());
    running.await.unwrap();
}

#[test]
fn a_stop_at_any_time_keeps_every_promise() {
    let coverage = simulate(0..2000, a_stop_among_peers);
    for state in [
        "an idle connection",
        "a busy connection",
        "half a message",
        "unread input",
    ] {
        assert!(
            coverage.count(&format!("a drain met {state}")) > 0,
            "{coverage}"
        );
    }
}

#[test]
fn a_stop_at_every_step_keeps_every_promise() {
    Simulation::new(0..40)
        .stop_at_every_step()
        .run(a_stop_among_peers);
}

#[test]
fn handlers_that_panic_or_hang_harm_nobody_else() {
    let simulation = Simulation::new(0..1000)
        .with(Fault::HandlerPanic)
        .with(Fault::HandlerHang);
    let coverage = simulation.run(a_stop_among_peers);
    assert!(coverage.count("handler hang") > 0, "{coverage}");
}

#[test]
fn a_listener_that_dies_stops_the_server_as_any_other_reason_does() {
    Simulation::new(0..1000)
        .with(Fault::DeadListener)
        .run(|sim| async move {
            let running = sim.serve(echo).await;
            for _ in 0..sim.random(5) {
                sim.visit(talk);
            }
            let handle = running.handle();
            sim.stop_sometime(&handle);
            let served = running.await;
            let report = handle.closed().await;
            assert_eq!(
                served.is_err(),
                matches!(report.reason, Reason::Listener(_))
            );
        });
}
