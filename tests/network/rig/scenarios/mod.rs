//! What is done to a server, and which clients are there when it stops.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use super::link::{Link, SERVER};
use super::load::Tally;
use super::process::Process;
use super::relay::{Conditions, Random};
use super::server::{Config, User};
use super::table::{Row, Watch};

pub mod cut_cables;
pub mod half_closed;
pub mod keep_alive;
pub mod slow_readers;
pub mod storm;
pub mod successor;

use cut_cables::cut_cables;
use half_closed::half_closed;
use keep_alive::keep_alive;
use slow_readers::slow_readers;
use storm::storm;
use successor::{Joins, successor};

/// Measures one cell, with so many stops.
pub type Scenario = fn(&Link, Cell, u32) -> Row;

/// All that tell of clients what became of them.
pub const SCENARIOS: [(&str, Scenario); 9] = [
    ("storm", |link, cell, stops| storm(link, cell, stops, false)),
    ("storm, half closed", |link, cell, stops| {
        storm(link, cell, stops, true)
    }),
    ("keep-alive", |link, cell, stops| {
        keep_alive(link, cell, stops, false)
    }),
    ("keep-alive, lame duck", |link, cell, stops| {
        keep_alive(link, cell, stops, true)
    }),
    ("slow readers of 8 MiB", slow_readers),
    ("half-closed peers", half_closed),
    ("cut cables", cut_cables),
    ("successor joins after", |link, cell, stops| {
        successor(link, cell, stops, Joins::AfterTheStop)
    }),
    ("successor joins before", |link, cell, stops| {
        successor(link, cell, stops, Joins::BeforeTheStop)
    }),
];

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

/// A cell while it is measured: its servers, one after the other on one port, and what they did.
struct Run<'a> {
    link: &'a Link,
    cell: Cell,
    address: SocketAddr,
    random: Random,
    watch: Watch,
    row: Row,
}

impl<'a> Run<'a> {
    /// Each cell has a port of its own: what the one before has left behind, closed connections
    /// that keep their ports for a minute, is not what is measured.
    #[track_caller]
    fn begin(link: &'a Link, cell: Cell, scenario: &'static str) -> Self {
        static PORT: AtomicU16 = AtomicU16::new(7000);
        let port = PORT.fetch_add(1, SeqCst);
        link.relay.mend();
        link.relay.set(cell.conditions());
        Self {
            link,
            cell,
            address: SocketAddr::from((SERVER, port)),
            random: Random::new(u64::from(port)),
            watch: Watch::begin(link),
            row: Row::new(scenario, cell),
        }
    }

    fn config(&self) -> Config {
        Config::new(self.address)
    }

    #[track_caller]
    fn start(&self, config: &Config) -> Process {
        Process::start(self.link, self.cell.kind, self.cell.user, config)
    }

    /// A moment within the way of a packet, so that stops fall into different ones.
    fn moment(&mut self) -> Duration {
        Duration::from_millis(20).mul_f64(self.random.share())
    }

    /// The stop is over, and this is what its clients saw.
    #[track_caller]
    fn stopped(&mut self, tally: Tally, server: Process) {
        let (account, took) = server.end();
        self.row.tally.add(tally);
        self.row.stops.push(took);
        self.row.accounts.push(account);
    }

    #[track_caller]
    fn end(self) -> Row {
        self.watch.end(self.link, self.row)
    }
}

/// Long enough for a server and its clients to be well under way.
const A_WHILE: Duration = Duration::from_millis(400);
