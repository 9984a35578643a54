//! A server is stopped sometime, among peers of all manners.

use std::io;

use futures_lite::AsyncWriteExt;
use gracious::Connection;
use gracious::testing::{Peer, simulate};

async fn echo(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await.transpose()? {
        writer.write_all(format!("{line}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn talk(peer: &mut Peer) -> io::Result<()> {
    for word in ["hello", "again", "bye"] {
        peer.write_all(format!("{word}\n").as_bytes()).await?;
        match peer.read_line().await? {
            Some(line) => assert_eq!(line, word),
            None => return Ok(()),
        }
    }
    Ok(())
}

#[test]
fn a_stop_at_any_time_keeps_every_promise() {
    simulate(0..2000, |sim| async move {
        let running = sim.serve(echo).await;
        for _ in 0..sim.random(5) {
            sim.visit(talk);
        }
        sim.stop_sometime(&running.handle());
        running.await.unwrap();
    });
}
