//! What a handle can do is done at any step.

use std::time::Duration;

use gracious::testing::{Fault, Sim, Simulation, sometimes};
use gracious::{IdleWhen, State};

use crate::handlers::{echo, talk};

/// Every control of a handle comes at a step of its own, and the stop, too.
async fn every_control(sim: Sim) {
    let limit = 1 + sim.random(4);
    let builder = sim.builder().max_connections(limit);
    let running = sim.start(builder, echo).await;
    for _ in 0..sim.random(7) {
        sim.visit(talk);
    }
    let handle = running.handle();
    let act = |name, act: fn(&gracious::Handle)| {
        let handle = handle.clone();
        if sim.random(3) == 0 {
            sim.sometime(name, move || act(&handle));
        }
    };
    act("pause", |handle| handle.pause());
    act("resume", |handle| handle.resume());
    act("a limit of 1", |handle| {
        handle.set_max_connections(1).unwrap()
    });
    act("no limit", |handle| {
        handle.set_max_connections(None).unwrap()
    });
    act("close_connections", |handle| handle.close_connections());
    act("abort_connections", |handle| handle.abort_connections());
    act("close_connection", |handle| _ = handle.close_connection(1));
    act("abort_connection", |handle| _ = handle.abort_connection(2));
    act("a deadline of 2 s", |handle| {
        handle.shutdown_within(Duration::from_secs(2))
    });
    act("abort", |handle| handle.abort());
    sim.stop_sometime(&handle);
    let report = running.await.unwrap();
    sometimes("somebody was rejected", report.rejected > 0);
    sometimes(
        "a deadline passed",
        report.aborted > 0 && report.drain > Duration::from_secs(1),
    );
    sometimes(
        "a permit was waited for in the drain",
        report.stats.peak > limit as u64,
    );
    assert_eq!(handle.state(), State::Closed);
}

#[test]
fn controls_at_any_step_keep_every_promise() {
    let coverage = Simulation::new(0..2000)
        .with(Fault::HandlerPanic)
        .with(Fault::HandlerHang)
        .expect("the limit was reached")
        .expect("a drain met a queued connection")
        .run(every_control);
    assert!(
        coverage.count("a drain met one being closed") > 0,
        "{coverage}"
    );
}

/// What is configured comes in all its combinations.
async fn every_option(sim: Sim) {
    let seconds = |count: usize| Duration::from_millis(1 + sim.random(count * 1000) as u64);
    let mut builder = sim.builder();
    if sim.random(2) == 0 {
        builder = builder.lame_duck(seconds(3));
    }
    if sim.random(2) == 0 {
        builder = builder.deadline(seconds(8));
    }
    if sim.random(3) == 0 {
        builder = builder.spread(seconds(3));
    }
    if sim.random(3) == 0 {
        builder = builder.first_byte_grace(seconds(2));
    }
    if sim.random(3) == 0 {
        builder = builder.first_byte_timeout(seconds(3));
    }
    if sim.random(3) == 0 {
        builder = builder.idle_timeout(seconds(3));
    }
    if sim.random(3) == 0 {
        builder = builder.max_age(seconds(5));
    }
    if sim.random(3) == 0 {
        builder = builder.max_connections(1 + sim.random(3));
        if sim.random(2) == 0 {
            builder = builder.reject_with("no room\n");
        }
    }
    builder = match sim.random(4) {
        0 => builder.idle_when(IdleWhen::Unguarded),
        1 => builder.idle_when(IdleWhen::Quiet(seconds(1))),
        _ => builder,
    };
    let running = sim.start(builder, echo).await;
    for _ in 0..sim.random(6) {
        sim.visit(async |peer| {
            use futures_lite::AsyncWriteExt;
            for word in ["hello", "again"] {
                peer.write_all(format!("{word}\n").as_bytes()).await?;
                match peer.read_line().await?.as_deref() {
                    Some("no room") | None => return Ok(()),
                    Some(line) => assert_eq!(line, word),
                }
            }
            Ok(())
        });
    }
    sim.stop_sometime(&running.handle());
    let report = running.await.unwrap();
    sometimes("an idle time-out", report.limited.idle > 0);
    sometimes("a first byte too late", report.limited.first_byte > 0);
    sometimes("a connection too old", report.limited.age > 0);
}

#[test]
fn options_in_all_combinations_keep_every_promise() {
    Simulation::new(0..2000).run(every_option);
}
