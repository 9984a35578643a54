//! What was measured, as a table.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use super::link::Link;
use super::load::{Incident, Tally};
use super::namespace::Counters;
use super::relay::Lost;
use super::scenarios::Cell;
use super::server::Account;

/// What one cell came to.
#[derive(Debug)]
pub struct Row {
    pub scenario: &'static str,
    pub cell: Cell,
    pub tally: Tally,
    /// How long each stop took, from the request to the end of the process.
    pub stops: Vec<Duration>,
    /// What each server said of itself.
    pub accounts: Vec<Account>,
    /// How much later than it should the relay has sent a packet on.
    pub relay_late: Duration,
    pub lost_packets: Vec<Lost>,
    pub client: Counters,
    pub server: Counters,
}

/// Notes what the link does while a cell is measured.
#[derive(Debug)]
pub struct Watch {
    client: Counters,
    server: Counters,
}

impl Watch {
    #[track_caller]
    pub fn begin(link: &Link) -> Self {
        // What an earlier cell lost.
        link.relay.lost();
        link.relay.relayed();
        Self {
            client: link.client.counters(),
            server: link.server.counters(),
        }
    }

    #[track_caller]
    pub fn end(self, link: &Link, row: Row) -> Row {
        Row {
            relay_late: link.relay.relayed().1,
            lost_packets: link.relay.lost(),
            client: link.client.counters().since(&self.client),
            server: link.server.counters().since(&self.server),
            ..row
        }
    }
}

impl Row {
    pub fn new(scenario: &'static str, cell: Cell) -> Self {
        Self {
            scenario,
            cell,
            tally: Tally::default(),
            stops: Vec::new(),
            accounts: Vec::new(),
            relay_late: Duration::ZERO,
            lost_packets: Vec::new(),
            client: Counters::default(),
            server: Counters::default(),
        }
    }

    fn line(&self) -> String {
        let tally = &self.tally;
        let mut stops = self.stops.clone();
        stops.sort();
        let (median, longest) = (stops[stops.len() / 2], stops[stops.len() - 1]);
        format!(
            "| {:26} | {:9} | {:5} | {:3} ms | {} % | {:6} | {:6} | {:6} | {:5} | {:5} | {:4} | {:5} | {:5} | {:5.2} s | {:5.2} s |",
            self.scenario,
            self.cell.kind,
            self.cell.user.to_string(),
            self.cell.round_trip_ms,
            self.cell.loss_percent,
            tally.asked(),
            tally.served,
            tally.refused,
            tally.reset,
            tally.truncated,
            tally.late,
            tally.unanswered,
            self.lost_packets.len(),
            median.as_secs_f64(),
            longest.as_secs_f64(),
        )
    }

    /// What is known about each of the first few that were lost: the packets of theirs that the
    /// relay dropped, and what the kernels counted.
    pub fn explanation(&self) -> String {
        if self.tally.incidents.is_empty() {
            return String::new();
        }
        let mut text = format!("  {}, {}:\n", self.scenario, self.cell);
        for incident in self.tally.incidents.iter().take(SHOWN) {
            let _infallible = writeln!(text, "    {incident}; {}", self.packets_of(incident));
        }
        let more = self.tally.incidents.len().saturating_sub(SHOWN);
        if more > 0 {
            let _infallible = writeln!(text, "    and {more} more");
        }
        for (whose, counters) in [("client", &self.client), ("server", &self.server)] {
            let _infallible = writeln!(text, "    the {whose}'s kernel: {}", counters.of_losses());
        }
        let _infallible = writeln!(
            text,
            "    the relay was late by {:.1?} at most",
            self.relay_late
        );
        text
    }

    fn packets_of(&self, incident: &Incident) -> String {
        let lost = self.lost_packets.iter();
        let lost: Vec<_> = lost
            .filter(|lost| lost.port == incident.port)
            .map(ToString::to_string)
            .collect();
        match &lost[..] {
            [] => "none of its packets was lost".to_owned(),
            lost => format!("lost {}", lost.join("; ")),
        }
    }
}

const SHOWN: usize = 5;

/// The table, and below it what explains it.
#[derive(Debug, Default)]
pub struct Table {
    pub rows: Vec<Row>,
}

impl Table {
    /// Says what is being measured, and how it went, as it goes.
    pub fn push(&mut self, row: Row) {
        if self.rows.is_empty() {
            say(HEAD);
        }
        say(&row.line());
        self.rows.push(row);
    }

    /// What explains the clients that were lost.
    pub fn explain(&self) {
        for row in &self.rows {
            say(row.explanation().trim_end());
        }
    }

    /// How many of those who were let in were lost, of how many who asked, where packets are lost.
    pub fn lossy(&self, kinds: impl Fn(&str) -> bool) -> (u64, u64) {
        let rows = self.rows.iter();
        let rows = rows.filter(|row| row.cell.loss_percent > 0 && kinds(row.cell.kind));
        rows.fold((0, 0), |(lost, asked), row| {
            (lost + row.tally.lost(), asked + row.tally.asked())
        })
    }
}

/// Whether a test passes or not, this is seen: `println` would be captured.
fn say(text: &str) {
    if !text.is_empty() {
        let _closed = writeln!(io::stdout(), "{text}");
    }
}

const HEAD: &str = "\
| scenario                   | server    | user  | trip   | loss | asked  | served | refused | reset | trunc | late | unans | lost  | stop    | longest |
|----------------------------|-----------|-------|--------|-----|--------|--------|--------|-------|-------|------|-------|-------|---------|---------|";

/// The rate which, with a certainty of 95 %, is not exceeded where `seen` of `tried` were lost.
pub fn upper_bound(seen: u64, tried: u64) -> f64 {
    // Of a Poisson distribution: the mean for which so few are seen one time in twenty.
    let probability = |mean: f64| {
        let mut term = (-mean).exp();
        let mut sum = term;
        for count in 1..=seen {
            term *= mean / count as f64;
            sum += term;
        }
        sum
    };
    let (mut low, mut high) = (0.0, 3.0 * seen as f64 + 10.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if probability(middle) > 0.05 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high / tried as f64
}
