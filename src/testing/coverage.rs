//! What came to pass in the runs of a simulation, counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::world::Looked;

/// What came to pass in the runs of a simulation, and how often.
///
/// A count is of runs, not of times: "a drain met a busy connection: 812" says that it did in 812 runs,
/// with one connection or with ten. Its `Display` is a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    runs: u64,
    steps: u64,
    /// Faults that were on, and those that came to pass.
    faults: BTreeMap<&'static str, (u64, u64)>,
    /// What was looked for, and in how many runs it came.
    came: BTreeMap<String, u64>,
    /// What of that has to come.
    wanted: BTreeSet<String>,
}

impl Coverage {
    /// How many runs there were.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// How many times a task was polled, in all runs.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// In how many runs this came to pass: a fault, by what its `Display` prints; something that the
    /// simulation looks for itself; or what was given to [`sometimes`](super::sometimes).
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        let fault = self.faults.get(what).map(|(_, fired)| *fired);
        fault.or_else(|| self.came.get(what).copied()).unwrap_or(0)
    }

    /// A run begins with these faults on.
    pub(super) fn begin(&mut self, faults: impl Iterator<Item = &'static str>) {
        self.runs += 1;
        for fault in faults {
            self.faults.entry(fault).or_default().0 += 1;
        }
    }

    /// A run has ended, after so many steps.
    pub(super) fn end(&mut self, steps: u64) {
        self.steps += steps;
    }

    /// A fault came to pass in a run.
    pub(super) fn fired(&mut self, fault: &'static str) {
        self.faults.entry(fault).or_default().1 += 1;
    }

    /// Something was looked for in a run.
    pub(super) fn looked(&mut self, what: &str, Looked { came, is_wanted }: Looked) {
        if is_wanted && !self.wanted.contains(what) {
            self.wanted.insert(what.to_owned());
        }
        match self.came.get_mut(what) {
            Some(count) => *count += u64::from(came),
            None => _ = self.came.insert(what.to_owned(), u64::from(came)),
        }
    }

    /// The faults that were on in so many runs at least and never came to pass.
    pub(super) fn idle_faults(&self, runs: u64) -> Vec<&'static str> {
        let idle = self
            .faults
            .iter()
            .filter(|(_, (on, fired))| *on >= runs && *fired == 0);
        idle.map(|(fault, _)| *fault).collect()
    }
}

impl Coverage {
    /// What has to come, and never came.
    pub(super) fn never(&self) -> Vec<&str> {
        let wanted = self.wanted.iter().map(String::as_str);
        wanted.filter(|what| self.count(what) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs, {} steps", self.runs, self.steps)?;
        for (fault, (on, fired)) in &self.faults {
            writeln!(f, "{fired:>8}  {fault} (on in {on})")?;
        }
        for (what, count) in &self.came {
            writeln!(f, "{count:>8}  {what}")?;
        }
        Ok(())
    }
}
