//! What a run is to be: its seed, what was drawn from it, and what is left out.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::fault::Fault;
use super::random::Random;

/// The streams of random numbers that a seed gives.
pub(super) mod stream {
    pub(crate) const PLAN: u64 = 1;
    pub(crate) const ORDER: u64 = 2;
    pub(crate) const SCENARIO: u64 = 3;
    pub(crate) const DOORS: u64 = 1 << 20;
    pub(crate) const WIRES: u64 = 2 << 20;
    pub(crate) const PEERS: u64 = 3 << 20;
    pub(crate) const ACTS: u64 = 4 << 20;
    pub(crate) const HANDLERS: u64 = 5 << 20;
}

/// One run of a simulation, by which it can be made again. It prints as it is parsed: `17`, `17@240`
/// for the stop at that step, `17-peer2-fault4` without the third peer and the fifth fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub(super) seed: u64,
    /// The stop comes before this step.
    pub(super) stop_at: Option<u64>,
    pub(super) without: BTreeSet<Part>,
}

/// What can be left out of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Peer(usize),
    /// What is wrong with a peer.
    Manner(usize),
    Act(usize),
    /// A fault, by its place in `Fault::ALL`.
    Fault(usize),
}

/// What was drawn for a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) run: Run,
    faults: BTreeSet<Fault>,
    /// How many connections the server may have open at once.
    pub(super) descriptors: Option<usize>,
    /// A handler may panic of itself.
    pub(super) allows_panics: bool,
}

impl Plan {
    /// Draws a plan; each of these faults is on in half of all runs.
    pub(super) fn draw(run: Run, faults: &[Fault], allows_panics: bool) -> Self {
        let mut random = Random::new(run.seed, stream::PLAN);
        let mut on = BTreeSet::new();
        for fault in faults {
            if random.once_in(2) {
                on.insert(*fault);
            }
        }
        let descriptors = random.between(1, 6) as usize;
        for part in &run.without {
            if let Part::Fault(number) = part {
                on.remove(&Fault::ALL[*number]);
            }
        }
        Self {
            descriptors: on.contains(&Fault::Shortage).then_some(descriptors),
            faults: on,
            allows_panics,
            run,
        }
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = Fault> + '_ {
        self.faults.iter().copied()
    }

    pub(super) fn is_without(&self, part: Part) -> bool {
        self.run.without.contains(&part)
    }

    pub(super) fn random(&self, stream: u64) -> Random {
        Random::new(self.run.seed, stream)
    }

    /// What is wrong with a peer; nothing with half of them. A manner that is left out changes no other
    /// peer's.
    pub(super) fn manner(&self, peer: usize) -> Option<Fault> {
        let mut random = self.random(stream::PEERS + peer as u64);
        let is_fine = random.once_in(2) || self.is_without(Part::Manner(peer));
        let all = Fault::ALL.iter().copied().filter(|fault| fault.is_manner());
        let drawn = all.map(|fault| (random.next(), fault));
        let drawn: Vec<_> = drawn.filter(|(_, fault)| self.has(*fault)).collect();
        let (_, manner) = drawn.into_iter().max()?;
        (!is_fine).then_some(manner)
    }
}

impl Run {
    pub(super) fn of(seed: u64) -> Self {
        Self {
            seed,
            stop_at: None,
            without: BTreeSet::new(),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        if let Some(step) = self.stop_at {
            write!(f, "@{step}")?;
        }
        for part in &self.without {
            match part {
                Part::Peer(number) => write!(f, "-peer{number}")?,
                Part::Manner(number) => write!(f, "-manner{number}")?,
                Part::Act(number) => write!(f, "-act{number}")?,
                Part::Fault(number) => write!(f, "-fault{number}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Run {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no run: expected a seed, as 17, or what a failure printed");
        let mut parts = text.trim().split('-');
        let first = parts.next().unwrap_or_default();
        let (seed, step) = match first.split_once('@') {
            Some((seed, step)) => (seed, Some(step)),
            None => (first, None),
        };
        let mut run = Self::of(seed.parse().map_err(|_| wrong())?);
        run.stop_at = step.map(str::parse).transpose().map_err(|_| wrong())?;
        for part in parts {
            let digits = part.find(|c: char| c.is_ascii_digit()).ok_or_else(wrong)?;
            let (kind, number) = part.split_at(digits);
            let number: usize = number.parse().map_err(|_| wrong())?;
            run.without.insert(match kind {
                "peer" => Part::Peer(number),
                "manner" => Part::Manner(number),
                "act" => Part::Act(number),
                "fault" if number < Fault::ALL.len() => Part::Fault(number),
                _ => return Err(wrong()),
            });
        }
        Ok(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_prints_it_parses() {
        for text in ["0", "17@240", "17-peer2-manner1-act0-fault4"] {
            let run: Run = text.parse().unwrap();
            let again: Run = run.to_string().parse().unwrap();
            assert_eq!((run.to_string().len(), run), (text.len(), again));
        }
        for text in ["", "x", "1@", "1-peer", "1-fault99", "1-door3"] {
            text.parse::<Run>().unwrap_err();
        }
    }

    #[test]
    fn a_fault_that_is_left_out_changes_no_other() {
        for seed in 0..50 {
            let all = Plan::draw(Run::of(seed), Fault::ALL, false);
            for fault in all.faults() {
                let number = Fault::ALL.iter().position(|it| *it == fault).unwrap();
                let mut run = Run::of(seed);
                run.without.insert(Part::Fault(number));
                let plan = Plan::draw(run, Fault::ALL, false);
                assert!(all.faults().filter(|it| *it != fault).eq(plan.faults()));
            }
        }
    }
}
