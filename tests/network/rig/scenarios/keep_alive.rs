//! Clients who ask again and again on one connection, until it ends.

use std::net::SocketAddr;
use std::time::Duration;

use async_channel::{Receiver, Sender};
use async_io::Timer;
use futures_lite::FutureExt;
use smol::LocalExecutor;

use super::{Cell, Run};
use crate::rig::link::Link;
use crate::rig::load::{Client, LATE, Outcome, Tally, at_client, late, reset, within};
use crate::rig::relay::Random;
use crate::rig::server::ENGINES;
use crate::rig::table::Row;

/// A server that stops either tells its idle clients at once, whose next requests may be on their
/// way, or, with a lame duck, asks each in its next answer to hang up.
#[track_caller]
pub fn keep_alive(link: &Link, cell: Cell, stops: u32, lame_duck: bool) -> Row {
    let scenario = if lame_duck {
        "keep-alive, lame duck"
    } else {
        "keep-alive"
    };
    let mut run = Run::begin(link, cell, scenario);
    let mut config = run.config();
    if lame_duck {
        // All have asked once more by then, also those whose packets have to be sent again.
        let repeated = Duration::from_secs(if cell.loss_percent == 0 { 0 } else { 2 });
        config.lame_duck = cell.round_trip() * 2 + THOUGHT * 4 + repeated;
    }
    if !ENGINES.iter().any(|engine| engine.name == cell.kind) {
        // Others do not end idle connections, but with their process.
        config.deadline = Duration::from_secs(2);
    }
    for stop in 0..stops {
        let mut server = run.start(&config);
        let moment = run.moment();
        let tally = at_client(link, async || {
            let (answer, answers) = async_channel::unbounded();
            let tasks = LocalExecutor::new();
            let stopping = async {
                let clients = (0..CLIENTS).map(|number| {
                    let seed = u64::from(stop * CLIENTS + number);
                    tasks.spawn(ask_until_the_end(run.address, seed, answer.clone()))
                });
                let clients: Vec<_> = clients.collect();
                for _ in 0..CLIENTS {
                    under_way(&answers).await;
                }
                Timer::after(moment).await;
                server.stop();
                let mut tally = Tally::default();
                for client in clients {
                    tally.add(client.await);
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
/// How long a client thinks between an answer and its next request, at most.
const THOUGHT: Duration = Duration::from_millis(60);

/// Waits until one more client has had its third answer.
pub(super) async fn under_way(answers: &Receiver<()>) {
    let answers = within(LATE, answers.recv()).await;
    answers.expect("answers").unwrap();
}

/// Asks until the server asks it to hang up, or does so itself.
pub(super) async fn ask_until_the_end(
    address: SocketAddr,
    seed: u64,
    under_way: Sender<()>,
) -> Tally {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut client = match Client::connect(address, None).await {
        Ok(client) => client,
        Err(error) => {
            tally.count(0, reset(&error));
            return tally;
        }
    };
    let port = client.port;
    for number in 0.. {
        let thought = THOUGHT.mul_f64(random.share());
        let think = async {
            Timer::after(thought).await;
            None
        };
        let ended = async { Some(client.read(&mut [0]).await) };
        match think.or(ended).await {
            None => {}
            // Between two requests: nothing is lost.
            Some(Ok(0)) => return tally,
            Some(Ok(_)) => {
                tally.count(port, Outcome::Reset("answered unasked".to_owned()));
                return tally;
            }
            Some(Err(error)) => {
                tally.count(port, reset(&error));
                return tally;
            }
        }
        let request = format!("say {number}\n");
        let line = async {
            client.write(request.as_bytes()).await?;
            client.line().await
        };
        let line = within(LATE, line).await.unwrap_or_else(late);
        let (outcome, goes_on) = match line.map(|line| String::from_utf8(line).unwrap()) {
            Err(error) => (reset(&error), false),
            Ok(line) if line == format!("{number}\n") => (Outcome::Served, true),
            Ok(line) if line == format!("{number} close\n") => (Outcome::Served, false),
            Ok(line) if line.is_empty() => (Outcome::Unanswered, false),
            Ok(line) => (Outcome::Truncated(line.len()), false),
        };
        tally.count(port, outcome);
        if number == 2 {
            // Ignoring that nobody waits for it any more.
            let _ = under_way.try_send(());
        }
        if !goes_on {
            break;
        }
    }
    tally
}
