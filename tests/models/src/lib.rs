//! What threads do to each other in this crate, in every order of events.
//!
//! `lifecycle.rs`, `socket/readiness.rs`, `shared/activity.rs` and `shared/permits.rs` are compiled
//! here as they are: they take their atomics and locks from `crate::sync`, and here that is loom's.
//! What cannot be compiled without the rest is copied. A copied function is word for word the same,
//! which [`copies`] checks; where it is a sketch, it says of what.
//!
//! Orderings: loom takes an access that is `SeqCst` for `AcqRel`, and knows `SeqCst` of fences alone.
//! So here each such access has a fence beside it. In front of it, that also orders what came before;
//! behind it, what comes after; neither is so on every processor. Each test is run once with either,
//! so that what only one of them keeps from happening happens in the other run.
#![cfg(loom)]
#![allow(dead_code)]

#[path = "../../../src/shared/activity.rs"]
mod activity;
mod config;
mod connection;
#[path = "../../../src/idle.rs"]
mod idle;
#[path = "../../../src/lifecycle.rs"]
mod lifecycle;
#[path = "../../../src/shared/permits.rs"]
mod permits;
#[path = "../../../src/socket/readiness.rs"]
mod readiness_as_it_is;
mod sync;

mod socket {
    pub(crate) use crate::readiness_as_it_is as readiness;
}

#[cfg(test)]
mod copies;
#[cfg(test)]
mod on_connections;
#[cfg(test)]
mod on_servers;
#[cfg(test)]
mod on_workers;

/// Runs a test in every order of events in which a thread is interrupted `LOOM_MAX_PREEMPTIONS` times at
/// most, or twice.
#[cfg(test)]
fn explore(test: impl Fn() + Sync + Send + 'static) {
    let test = std::sync::Arc::new(test);
    for leading in [true, false] {
        sync::atomic::LEADING.set(leading);
        let test = test.clone();
        let mut model = loom::model::Builder::new();
        model.preemption_bound = model.preemption_bound.or(Some(2));
        model.max_branches = 20_000;
        model.check(move || test());
    }
}
