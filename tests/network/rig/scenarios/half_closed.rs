//! Clients who have said all they will ever say, and wait for the answers.

use std::net::SocketAddr;
use std::time::Duration;

use async_channel::Sender;
use async_io::Timer;
use smol::LocalExecutor;

use super::{Cell, Run};
use crate::rig::link::Link;
use crate::rig::load::{Client, LATE, Outcome, Tally, at_client, reset, within};
use crate::rig::table::Row;

/// A server that stops while it works on the first of three requests of peers whose end it has.
#[track_caller]
pub fn half_closed(link: &Link, cell: Cell, stops: u32) -> Row {
    let mut run = Run::begin(link, cell, "half-closed peers");
    for _ in 0..stops {
        let mut server = run.start(&run.config());
        let moment = run.moment();
        let tally = at_client(link, async || {
            let (connect, connects) = async_channel::unbounded();
            let tasks = LocalExecutor::new();
            let stopping = async {
                let clients =
                    (0..CLIENTS).map(|_| tasks.spawn(ask_and_end(run.address, connect.clone())));
                let clients: Vec<_> = clients.collect();
                for _ in 0..CLIENTS {
                    within(LATE, connects.recv())
                        .await
                        .expect("a connect")
                        .unwrap();
                }
                // The last one's requests arrive meanwhile, and the first is worked on.
                Timer::after(cell.round_trip() / 2 + WORK / 2 + moment).await;
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

const CLIENTS: u32 = 50;
const WORK: Duration = Duration::from_millis(200);

async fn ask_and_end(address: SocketAddr, connected: Sender<()>) -> (u16, Outcome) {
    let client = Client::connect(address, None).await;
    // Ignoring that nobody waits for it any more.
    let _ = connected.try_send(());
    let mut client = match client {
        Ok(client) => client,
        Err(error) => return (0, reset(&error)),
    };
    let work = WORK.as_millis();
    let request = format!("wait {work} one\nwait {work} two\nbye three\n");
    let outcome = client.converse(&request, "one\ntwo\nthree\n", true).await;
    (client.port, outcome)
}
