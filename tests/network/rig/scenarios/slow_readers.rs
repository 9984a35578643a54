//! Clients who take their time over a long answer.

use std::net::SocketAddr;
use std::time::Duration;

use async_channel::Sender;
use async_io::Timer;
use smol::LocalExecutor;

use super::{Cell, Run};
use crate::rig::handler::pattern;
use crate::rig::link::Link;
use crate::rig::load::{Client, LATE, Outcome, Tally, at_client, late, reset, within};
use crate::rig::table::Row;

/// A server that stops while 8 MiB are on their way to each of its clients.
#[track_caller]
pub fn slow_readers(link: &Link, cell: Cell, stops: u32) -> Row {
    let mut run = Run::begin(link, cell, "slow readers of 8 MiB");
    let mut config = run.config();
    // What one packet lost in a hundred leaves of a long way's bandwidth is little.
    config.deadline = Duration::from_secs(120);
    // Enough for the rate, and no more: the rest is the server's to keep.
    let in_flight = cell.round_trip().as_secs_f64() * A_SECOND as f64;
    let buffer = (in_flight as usize).max(64 << 10);
    for _ in 0..stops {
        let mut server = run.start(&config);
        let moment = run.moment();
        let tally = at_client(link, async || {
            let (begun, beginnings) = async_channel::unbounded();
            let tasks = LocalExecutor::new();
            let stopping = async {
                let clients = (0..READERS)
                    .map(|_| tasks.spawn(read_slowly(run.address, buffer, begun.clone())));
                let clients: Vec<_> = clients.collect();
                for _ in 0..READERS {
                    let begun = within(LATE * 2, beginnings.recv()).await;
                    begun.expect("part of the answer").unwrap();
                }
                Timer::after(moment).await;
                server.stop();
                let mut tally = Tally::default();
                for client in clients {
                    let (port, outcome) = client.await;
                    tally.count(port, outcome);
                }
                tally
            };
            tasks.run(stopping).await
        });
        run.stopped(tally, server);
    }
    run.end()
}

const READERS: u32 = 8;
const ANSWER: usize = 8 << 20;
/// The rate at which each reads, at most.
const A_SECOND: usize = 8 << 20;
const AT_ONCE: usize = 64 << 10;

async fn read_slowly(address: SocketAddr, buffer: usize, begun: Sender<()>) -> (u16, Outcome) {
    let mut client = match Client::connect(address, Some(buffer)).await {
        Ok(client) => client,
        Err(error) => return (0, reset(&error)),
    };
    let outcome = async {
        client.write(format!("give {ANSWER}\n").as_bytes()).await?;
        let (mut piece, mut got, mut told) = (vec![0; AT_ONCE], 0, false);
        loop {
            let read = client.read(&mut piece);
            let length = match within(LATE, read).await.unwrap_or_else(late) {
                Ok(0) if got == ANSWER => return Ok(Outcome::Served),
                Ok(0) => return Ok(Outcome::Truncated(got)),
                Ok(length) => length,
                Err(error) if got > 0 => {
                    return Ok(Outcome::Reset(format!("{error} after {got} bytes")));
                }
                Err(error) => return Err(error),
            };
            let mut rest = &piece[..length];
            while !rest.is_empty() {
                let expected = pattern(got, rest.len());
                if rest[..expected.len()] != *expected {
                    return Ok(Outcome::Reset(format!("other bytes from {got} on")));
                }
                got += expected.len();
                rest = &rest[expected.len()..];
            }
            if got >= AT_ONCE * 4 && !told {
                told = true;
                // Ignoring that nobody waits for it any more.
                let _ = begun.try_send(());
            }
            Timer::after(Duration::from_secs(1).mul_f64(length as f64 / A_SECOND as f64)).await;
        }
    };
    let outcome = outcome.await.unwrap_or_else(|error| reset(&error));
    (client.port, outcome)
}
