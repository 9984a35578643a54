//! What happened in a run, in order: a number that two runs can be compared by, and, where a run is
//! looked at, lines to read.

use std::fmt;
use std::time::Duration;

/// Who did something, or to whom it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    World,
    Scenario,
    Server(usize),
    /// A task of the server's, or one that was spawned beside it.
    Task(u64),
    /// A peer, or its connection at the server's side.
    Peer(usize),
    Connection(usize),
    Act(usize),
}

/// The order of all that happened.
#[derive(Debug)]
pub(super) struct Timeline {
    hash: u64,
    /// `None` where nobody will read it.
    lines: Option<Vec<Line>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    at: Duration,
    step: u64,
    who: Who,
    what: String,
}

impl Timeline {
    pub(super) fn new(is_read: bool) -> Self {
        Self {
            hash: 0xCBF2_9CE4_8422_2325,
            lines: is_read.then(Vec::new),
        }
    }

    /// The number that is the same for two runs in which the same happened, and the lines.
    pub(super) fn take(&mut self) -> (u64, Vec<Line>) {
        (self.hash, self.lines.take().unwrap_or_default())
    }

    /// Adds what happened: words, and a number that belongs to them.
    pub(super) fn add(
        &mut self,
        at: Duration,
        step: u64,
        who: Who,
        what: &str,
        count: Option<u64>,
    ) {
        let (kind, which) = who.code();
        // Of the words the beginning will do: this is done many times a step.
        let mut words = [0; 8];
        words
            .iter_mut()
            .zip(what.bytes())
            .for_each(|(to, byte)| *to = byte);
        self.mix(at.as_nanos() as u64 ^ step << 40);
        self.mix(u64::from_le_bytes(words) ^ (what.len() as u64) << 56);
        self.mix(kind << 56 ^ which << 40 ^ count.unwrap_or(u64::MAX));
        if let Some(lines) = &mut self.lines {
            let what = match count {
                Some(count) => format!("{what} {count}"),
                None => what.to_owned(),
            };
            let line = Line {
                at,
                step,
                who,
                what,
            };
            lines.push(line);
        }
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number)
            .wrapping_mul(0x0000_0100_0000_01B3)
            .rotate_left(29);
    }
}

impl Who {
    fn code(self) -> (u64, u64) {
        match self {
            Self::World => (0, 0),
            Self::Scenario => (1, 0),
            Self::Server(number) => (2, number as u64),
            Self::Task(number) => (3, number),
            Self::Peer(number) => (4, number as u64),
            Self::Connection(number) => (5, number as u64),
            Self::Act(number) => (6, number as u64),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World => f.pad("the world"),
            Self::Scenario => f.pad("the scenario"),
            Self::Server(0) => f.pad("the server"),
            Self::Server(number) => f.pad(&format!("server {number}")),
            Self::Task(number) => f.pad(&format!("task {number}")),
            Self::Peer(number) => f.pad(&format!("peer {number}")),
            Self::Connection(number) => f.pad(&format!("  its connection {number}")),
            Self::Act(number) => f.pad(&format!("act {number}")),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at.as_secs_f64();
        write!(
            f,
            "{seconds:>11.6} s  {:>6}  {:<18}  {}",
            self.step, self.who, self.what
        )
    }
}
