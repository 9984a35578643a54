//! The world itself: what it finds, what it says of it, and that a seed decides everything.

use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use gracious::testing::{Fault, Sim, Simulation, simulate, sometimes};
use gracious::{Connection, Runtime};

use crate::handlers::{echo, talk};

/// What a simulation says that fails.
fn failure(simulation: Simulation, scenario: impl AsyncFn(Sim) + Copy + 'static) -> String {
    let run = move || {
        simulation
            .fixed()
            .run(move |sim| async move { scenario(sim).await })
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("the simulation does not fail");
    *panic.downcast::<String>().unwrap()
}

#[track_caller]
fn says(failure: &str, words: &[&str]) {
    for word in words {
        assert!(failure.contains(word), "`{word}` is not in: {failure}");
    }
}

#[test]
fn a_failure_names_its_seed_and_shows_what_happened_and_how_to_see_it_again() {
    let simulation = Simulation::new(5..100);
    let failure = failure(simulation, async |sim| {
        let running = sim.serve(echo).await;
        for _ in 0..4 {
            sim.visit(talk);
        }
        sim.stop_sometime(&running.handle());
        let report = running.await.unwrap();
        assert!(report.accepted < 2, "two have come");
    });
    says(
        &failure,
        &["fails, panicked: the scenario: two have come", "with seed "],
    );
    says(
        &failure,
        &[
            "stopped (requested)",
            "sockets:",
            "is draining",
            "GRACIOUS_SEED=",
        ],
    );
    // Two peers are enough for it, with nothing wrong.
    says(&failure, &["-peer", "2 accepted"]);
}

#[test]
fn what_waits_for_ever_is_found() {
    let hangs = failure(Simulation::new(0..5), async |sim| {
        let running = sim.serve(echo).await;
        running.await.unwrap();
    });
    says(&hangs, &["fails, hangs", "the scenario"]);
    let left = failure(Simulation::new(0..5), async |sim| {
        sim.spawn(pending());
        let running = sim.serve(echo).await;
        running.shutdown().await.unwrap();
    });
    says(&left, &["fails, hangs"]);
}

#[test]
fn time_from_elsewhere_is_found() {
    let hangs = failure(Simulation::new(0..5), async |_sim| {
        async_io::Timer::after(Duration::from_secs(3600)).await;
    });
    says(&hangs, &["fails, hangs", "do not exist in it"]);
}

#[test]
fn a_thread_that_wakes_a_task_is_found() {
    let foreign = failure(Simulation::new(0..5), async |_sim| {
        let mut is_woken = false;
        future::poll_fn(|cx| {
            if std::mem::replace(&mut is_woken, true) {
                return Poll::Ready(());
            }
            let waker = cx.waker().clone();
            thread::spawn(move || waker.wake()).join().unwrap();
            Poll::Pending
        })
        .await;
    });
    says(&foreign, &["fails, not deterministic", "another thread"]);
}

#[test]
fn what_never_lets_time_pass_is_found() {
    let spins = failure(Simulation::new(0..5), async |_sim| {
        loop {
            future::yield_now().await;
        }
    });
    says(&spins, &["fails, spins"]);
}

#[test]
fn what_is_no_seeds_is_found() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let differs = failure(Simulation::new(0..5), async |sim| {
        sim.sleep(Duration::from_secs(CALLS.fetch_add(1, SeqCst)))
            .await;
    });
    says(&differs, &["seed 0 does not decide everything"]);
}

#[test]
fn what_should_sometimes_be_so_and_never_is_fails() {
    let never = failure(Simulation::new(0..5), async |_sim| {
        sometimes("it rains", false)
    });
    says(&never, &["never came to pass: [\"it rains\"]"]);
    let never = failure(Simulation::new(0..5).expect("it snows"), async |_sim| ());
    says(&never, &["never came to pass: it snows"]);
    let idle = failure(
        Simulation::new(0..300).faults(&[Fault::Vanish]),
        async |_sim| (),
    );
    says(&idle, &["never came to pass: [\"vanish\"]"]);
    Simulation::new(0..5)
        .fixed()
        .run(|sim| async move { sometimes("the seed is odd", sim.seed() % 2 == 1) });
}

#[test]
fn a_handler_that_panics_of_itself_is_found() {
    async fn picky(mut conn: Connection) -> io::Result<()> {
        let mut word = [0; 5];
        conn.read_exact(&mut word).await?;
        assert_eq!(&word, b"hello");
        Ok(())
    }
    let panics = failure(Simulation::new(0..50), async |sim| {
        let running = sim.serve(picky).await;
        sim.visit(async |peer| peer.write_all(b"howdy").await);
        sim.stop_sometime(&running.handle());
        running.await.unwrap();
    });
    says(&panics, &["fails, handler panicked: the handler of peer 0"]);
}

#[test]
fn time_passes_when_nothing_can_go_on() {
    let begun = std::time::Instant::now();
    simulate(0..10, |sim| async move {
        let runtime = sim.runtime();
        let before = runtime.now();
        sim.sleep(Duration::from_secs(1800)).await;
        assert_eq!(runtime.now() - before, Duration::from_secs(1800));
        assert_eq!(sim.now(), Duration::from_secs(1800));
    });
    assert!(begun.elapsed() < Duration::from_secs(60));
}
