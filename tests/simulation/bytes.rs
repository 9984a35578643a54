//! Every byte that was written arrives, whole, in its order, and the end behind it.

use std::io;

use futures_lite::AsyncWriteExt;
use gracious::Connection;
use gracious::testing::{Fault, Sim, Simulation, sometimes};

/// Answers a number with so many bytes.
async fn fill(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await.transpose()? {
        let count = line.parse().map_err(io::Error::other)?;
        let mut reply: Vec<u8> = (0..count).map(|at| b'a' + (at % 26) as u8).collect();
        reply.push(b'\n');
        writer.write_all(&reply).await?;
    }
    Ok(())
}

async fn much_is_asked_for(sim: Sim) {
    let running = sim.serve(fill).await;
    for _ in 0..sim.random(4) {
        let count = sim.random(2000);
        sim.visit(async move |peer| {
            peer.write_all(format!("{count}\n").as_bytes()).await?;
            if let Some(line) = peer.read_line().await? {
                assert_eq!(line.len(), count);
                assert!(
                    line.bytes()
                        .enumerate()
                        .all(|(at, byte)| byte == b'a' + (at % 26) as u8)
                );
            }
            Ok(())
        });
    }
    sim.stop_sometime(&running.handle());
    running.await.unwrap();
}

#[test]
fn a_large_reply_arrives_whole_whenever_the_stop_comes() {
    Simulation::new(0..1000)
        .expect("a drain met a write that waits")
        .run(much_is_asked_for);
}

/// Answers the first line, and does not read on.
async fn early(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    lines.next().await.transpose()?;
    writer.write_all(&[b'.'; 500]).await
}

#[test]
fn an_early_answer_arrives_although_more_is_sent() {
    // The handler is gone after one line, and with it what a peer could go on with.
    let simulation = Simulation::new(0..1000).without(Fault::NeverPause);
    simulation.run(|sim| async move {
        let running = sim.serve(early).await;
        for _ in 0..sim.random(4) {
            let (lines, handle) = (sim.random(8), running.handle());
            sim.visit(async move |peer| {
                for _ in 0..=lines {
                    if peer.write_all(b"a line of an upload\n").await.is_err() {
                        break;
                    }
                }
                let reply = peer.read_to_the_end().await?;
                // Where both sides write and neither reads, the deadline comes.
                let is_whole = reply.is_empty() || reply.len() == 500;
                assert!(is_whole || handle.stats().aborted > 0, "{}", reply.len());
                sometimes("an early answer arrived whole", reply.len() == 500);
                Ok(())
            });
        }
        sim.stop_sometime(&running.handle());
        running.await.unwrap();
    });
}
