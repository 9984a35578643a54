//! What handlers, tracked work and owners do to their server.

use std::io;
use std::time::Duration;

use futures_lite::AsyncWriteExt;
use gracious::testing::{Fault, Sim, SimRuntime, Simulation, sometimes};
use gracious::{Connection, Runtime, ServerSet, State};

use crate::handlers::{echo, talk};

/// Does what the line says.
async fn obey(runtime: SimRuntime, conn: Connection) -> io::Result<()> {
    let (handle, control) = (conn.handle(), conn.control());
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await.transpose()? {
        match &*line {
            "stop" => handle.shutdown(),
            "stop and wait" => {
                handle.shutdown();
                let report = handle.closed().await;
                assert!(report.active > 0);
            }
            "sleep" => runtime.sleep(Duration::from_millis(700)).await,
            "end" => control.request_shutdown(),
            "abort me" => control.abort(),
            "fail" => return Err(io::Error::other("as it was told")),
            "leave" => {
                // The halves are closed in another task, and later.
                let later = runtime.clone();
                runtime.spawn(async move {
                    later.sleep(Duration::from_millis(300)).await;
                    let _ignored = writer.write_all(b"bye\n").await;
                    drop((lines, writer));
                });
                return Ok(());
            }
            "guard" => {
                let busy = control.busy();
                writer.write_all(b"wait\n").await?;
                runtime.sleep(Duration::from_millis(300)).await;
                drop(busy);
            }
            _ => {}
        }
        writer.write_all(b"done\n").await?;
    }
    Ok(())
}

const WORDS: [&str; 9] = [
    "stop",
    "stop and wait",
    "sleep",
    "end",
    "abort me",
    "fail",
    "leave",
    "guard",
    "nothing",
];

async fn handlers_of_all_kinds(sim: Sim) {
    let runtime = sim.runtime();
    let running = sim.serve(move |conn| obey(runtime, conn)).await;
    let handle = running.handle();
    for _ in 0..1 + sim.random(5) {
        let words = [(); 3].map(|()| WORDS[sim.random(WORDS.len())]);
        sim.visit(async move |peer| {
            for word in words {
                peer.write_all(format!("{word}\n").as_bytes()).await?;
                while let Some(line) = peer.read_line().await? {
                    if line != "wait" {
                        break;
                    }
                }
            }
            Ok(())
        });
    }
    sim.stop_sometime(&handle);
    if sim.random(4) == 0 {
        // The owner goes away: the stop goes on by itself.
        let pause = Duration::from_millis(sim.random(3000) as u64);
        sim.sleep(pause).await;
        sometimes(
            "a running server was dropped",
            handle.state() != State::Closed,
        );
        drop(running);
        handle.closed().await;
    } else {
        running.await.unwrap();
    }
}

#[test]
fn what_handlers_do_to_their_server_keeps_every_promise() {
    // Few get to the end of what they say here, and so hardly any begins it again.
    let simulation = Simulation::new(0..2000).without(Fault::NeverPause);
    simulation.run(handlers_of_all_kinds);
}

#[test]
fn tracked_work_is_waited_for_or_dropped() {
    Simulation::new(0..1000).run(|sim| async move {
        let deadline = Duration::from_millis(1 + sim.random(4000) as u64);
        let running = sim.start(sim.builder().deadline(deadline), echo).await;
        let handle = running.handle();
        for _ in 0..sim.random(3) {
            sim.visit(talk);
        }
        for _ in 0..sim.random(3) {
            let (runtime, waits) = (sim.runtime(), sim.random(3) == 0);
            let span = Duration::from_millis(sim.random(6000) as u64);
            let closed = handle.closed();
            let work = handle.track(async move {
                runtime.sleep(span).await;
                if waits {
                    closed.await;
                }
            });
            sim.runtime().spawn(async move { _ = work.await });
        }
        sim.stop_sometime(&handle);
        let report = running.await.unwrap();
        sometimes("work was dropped", report.dropped > 0);
        sometimes("work was waited for", !report.tracked_work.is_empty());
    });
}

#[test]
fn servers_that_stop_as_one_keep_every_promise() {
    Simulation::new(0..1000)
        .with(Fault::DeadListener)
        .run(|sim| async move {
            let one = sim
                .start(sim.builder().listener(sim.listener()), echo)
                .await;
            let other = sim.serve(echo).await;
            let (first, second) = (one.handle(), other.handle());
            let set = ServerSet::new([first.clone(), second.clone()]);
            for _ in 0..sim.random(6) {
                sim.visit(talk);
            }
            sim.stop_sometime(&first);
            assert_eq!(set.closed().await.len(), 2);
            drop((one, other));
            assert_eq!([first.state(), second.state()], [State::Closed; 2]);
        });
}
