//! A handler with a bug that only a stop at the wrong moment shows, and the simulation that finds it.
//!
//! ```sh
//! cargo run --example simulation --features testing     # in a crate, `simulate` is in a `#[test]`
//! ```

mod usage;

use std::io;
use std::panic::catch_unwind;

use futures_lite::AsyncWriteExt;
use gracious::Connection;
use gracious::testing::{Coverage, Peer, simulate};

/// Takes mail. Between the two answers everything is answered, so a stop ends the connection there: it
/// takes a guard to say that the message goes on.
async fn mail(conn: Connection, is_careful: bool) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let (mut lines, mut message) = (reader.lines(), None);
    while let Some(line) = lines.next().await.transpose()? {
        match &*line {
            "DATA" => {
                message = is_careful.then(|| writer.busy());
                writer.write_all(b"354 go on\n").await?;
            }
            "." => {
                writer.write_all(b"250 kept\n").await?;
                message = None;
            }
            _ => {}
        }
    }
    drop(message);
    Ok(())
}

async fn send(peer: &mut Peer) -> io::Result<()> {
    peer.write_all(b"DATA\n").await?;
    if peer.read_line().await?.is_some() {
        peer.write_all(b"hello\n.\n").await?;
        let answer = peer.read_line().await?;
        assert_eq!(
            answer.as_deref(),
            Some("250 kept"),
            "what was begun was not finished"
        );
    } // else the stop came first, and nothing was begun
    Ok(())
}

fn simulated(is_careful: bool) -> Coverage {
    simulate(0..500, |sim| async move {
        let running = sim.serve(move |conn| mail(conn, is_careful)).await;
        (0..2).for_each(|_| sim.visit(send));
        sim.stop_sometime(&running.handle());
        running.await.unwrap();
    })
}

fn main() {
    usage::words("simulation", []);
    let failure = catch_unwind(|| simulated(false)).expect_err("the bug is not found");
    println!("without a guard: {}", failure.downcast::<String>().unwrap());
    println!("with a guard: {}", simulated(true));
}
