//! Peers whose cable is cut: neither an end nor a reset ever comes from them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_channel::{Receiver, Sender};
use async_io::Timer;
use smol::{LocalExecutor, Task};

use super::keep_alive::{ask_until_the_end, under_way};
use super::{Cell, Run};
use crate::rig::link::Link;
use crate::rig::load::{Client, LATE, Tally, at_client, within};
use crate::rig::table::Row;

/// A server that stops while some of its peers are gone, beside others who are not.
#[track_caller]
pub fn cut_cables(link: &Link, cell: Cell, stops: u32) -> Row {
    let mut run = Run::begin(link, cell, "cut cables");
    let mut config = run.config();
    config.deadline = CUT_DEADLINE;
    for stop in 0..stops {
        let mut server = run.start(&config);
        let tally = at_client(link, async || {
            let (answer, answers) = async_channel::unbounded();
            let tasks = LocalExecutor::new();
            let stopping = async {
                let cut = Cut::off(&tasks, link, run.address).await;
                let healthy = (0..HEALTHY).map(|number| {
                    let seed = u64::from(stop * HEALTHY + number);
                    tasks.spawn(ask_until_the_end(run.address, seed, answer.clone()))
                });
                let healthy: Vec<_> = healthy.collect();
                for _ in 0..HEALTHY {
                    under_way(&answers).await;
                }
                server.stop();
                let mut tally = Tally::default();
                for client in healthy {
                    tally.add(client.await);
                }
                drop(cut);
                tally
            };
            tasks.run(stopping).await
        });
        run.stopped(tally, server);
    }
    run.end()
}

/// A server that is to find out by itself that peers are gone, and is stopped when it should have.
#[track_caller]
pub fn unreachable(link: &Link, cell: Cell, stops: u32) -> Row {
    let mut run = Run::begin(link, cell, "unreachable peers");
    let mut config = run.config();
    config.given_up_after = Some(GIVEN_UP_AFTER);
    for _ in 0..stops {
        let mut server = run.start(&config);
        at_client(link, async || {
            let tasks = LocalExecutor::new();
            let stopping = async {
                let cut = Cut::off(&tasks, link, run.address).await;
                // The limit is about time, and so is this test: half as long again, as probes and
                // repeated packets come at intervals.
                Timer::after(GIVEN_UP_AFTER.mul_f64(1.5) + cell.round_trip() * 2).await;
                server.stop();
                drop(cut);
            };
            tasks.run(stopping).await;
        });
        run.stopped(Tally::default(), server);
    }
    run.end()
}

/// How long a drain may take with peers that are gone.
pub const CUT_DEADLINE: Duration = Duration::from_secs(2);
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(3);
/// How many clients of each sort are cut off: those that send, those that are sent to, and idle
/// ones.
pub const CUT_OF_A_SORT: u32 = 4;
pub const HEALTHY: u32 = 10;

/// Clients that are there, and do not know that the server does not hear them.
struct Cut {
    _clients: Vec<Task<()>>,
}

impl Cut {
    /// Lets clients connect, and cuts each off when it is under way.
    async fn off(tasks: &LocalExecutor<'_>, link: &Link, address: SocketAddr) -> Self {
        let (port, ports): (Sender<u16>, Receiver<u16>) = async_channel::unbounded();
        let mut clients = Vec::new();
        for _ in 0..CUT_OF_A_SORT {
            let (sends, is_sent_to, idles) = (port.clone(), port.clone(), port.clone());
            clients.push(tasks.spawn(ignoring(send(address, sends))));
            clients.push(tasks.spawn(ignoring(be_sent_to(address, is_sent_to))));
            clients.push(tasks.spawn(ignoring(idle(address, idles))));
        }
        let mut under_way = Vec::new();
        for _ in 0..3 * CUT_OF_A_SORT {
            let port = within(LATE, ports.recv()).await;
            under_way.push(port.expect("a client under way").unwrap());
        }
        // To the idle ones nothing is owed as soon as they have acknowledged all, which they put off.
        Timer::after(link.relay.conditions().round_trip + DELAYED_ACK).await;
        for port in under_way {
            link.relay.cut(port);
        }
        // What was on its way when the cables were cut has arrived, one answer included that may
        // have caused another.
        Timer::after(link.relay.conditions().round_trip * 2 + IN_FLIGHT).await;
        Self { _clients: clients }
    }
}

const IN_FLIGHT: Duration = Duration::from_millis(100);
/// The kernel's longest is 200 ms.
const DELAYED_ACK: Duration = Duration::from_millis(300);

/// Whatever a client meets behind a cable that is cut is no matter.
async fn ignoring(client: impl Future<Output = io::Result<()>>) {
    let _ = client.await;
}

async fn send(address: SocketAddr, under_way: Sender<u16>) -> io::Result<()> {
    let mut client = Client::connect(address, None).await?;
    client.write(b"take\n").await?;
    let piece = vec![b'x'; 16 << 10];
    for number in 0.. {
        client.write(&piece).await?;
        if number == 16 {
            let _ = under_way.try_send(client.port);
        }
    }
    Ok(())
}

async fn be_sent_to(address: SocketAddr, under_way: Sender<u16>) -> io::Result<()> {
    let mut client = Client::connect(address, None).await?;
    client.write(b"give 1000000000\n").await?;
    let (mut piece, mut got) = (vec![0; 16 << 10], 0);
    let mut told = false;
    loop {
        got += client.read(&mut piece).await?;
        if got > 256 << 10 && !told {
            told = true;
            let _ = under_way.try_send(client.port);
        }
    }
}

async fn idle(address: SocketAddr, under_way: Sender<u16>) -> io::Result<()> {
    let mut client = Client::connect(address, None).await?;
    client.write(b"say hello\n").await?;
    client.line().await?;
    let _ = under_way.try_send(client.port);
    client.read(&mut [0]).await?;
    Ok(())
}
