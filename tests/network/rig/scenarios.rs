//! What is done to a server, and who is there when it stops.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use super::link::{Link, SERVER};
use super::load::{Gate, Storm, Tally, at_client};
use super::process::Process;
use super::relay::{Conditions, Random};
use super::server::{Config, User};
use super::table::{Row, Watch};

/// A server, and the way to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    pub kind: &'static str,
    pub user: User,
    pub round_trip_ms: u64,
    pub loss_percent: u64,
}

impl Cell {
    pub const fn new(
        kind: &'static str,
        user: User,
        round_trip_ms: u64,
        loss_percent: u64,
    ) -> Self {
        Self {
            kind,
            user,
            round_trip_ms,
            loss_percent,
        }
    }

    pub fn round_trip(self) -> Duration {
        Duration::from_millis(self.round_trip_ms)
    }

    fn conditions(self) -> Conditions {
        Conditions::wide_area(self.round_trip_ms, self.loss_percent as f64 / 100.0)
    }

    /// Where its servers listen, one after the other.
    ///
    /// Each cell has a port of its own: what the one before has left behind, closed connections that
    /// keep their ports for a minute, is not what is measured.
    fn address(self, link: &Link) -> SocketAddr {
        static PORT: AtomicU16 = AtomicU16::new(7000);
        link.relay.set(self.conditions());
        SocketAddr::from((SERVER, PORT.fetch_add(1, SeqCst)))
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} as {}, {} ms, {} % lost",
            self.kind, self.user, self.round_trip_ms, self.loss_percent
        )
    }
}

/// A storm of connects, in the midst of which the server stops.
#[track_caller]
pub fn storms(link: &Link, cell: Cell, stops: u32, half_closed: bool) -> Row {
    let address = cell.address(link);
    let watch = Watch::begin(link);
    let mut random = Random::new(u64::from(address.port()));
    let (mut tally, mut took) = (Tally::default(), Vec::new());
    let storm = Storm {
        address,
        a_second: 1000,
        half_closed,
    };
    for _ in 0..stops {
        let mut server = Process::start(link, cell.kind, cell.user, &Config::new(address));
        // The stop meets the storm in another moment each time.
        let stop = storm.connects_in(cell.round_trip() + A_WHILE) + (random.next() % 20) as u32;
        let end = stop + storm.connects_in(cell.round_trip() + A_WHILE / 4);
        tally.add(at_client(link, async |_| {
            let gate = Gate::default();
            storm
                .rage(&gate, |number| {
                    if number == stop {
                        gate.stopping.set(true);
                        server.stop();
                    }
                    number < end
                })
                .await
        }));
        took.push(server.end().1);
    }
    let scenario = if half_closed {
        "storm, half closed"
    } else {
        "storm"
    };
    watch.end(link, scenario, cell, tally, took)
}

/// Long enough for a server and its clients to be well under way.
const A_WHILE: Duration = Duration::from_millis(400);
