//! What was measured, and the files it is kept in.

use std::path::PathBuf;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::{chart, table};

/// A run, with the figures of every round: ratios are taken when they are shown.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Results {
    pub(crate) mode: Mode,
    pub(crate) date: String,
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) quick: bool,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) interruptions: Vec<Interruption>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Servers and load on one core.
    Core,
    /// Nothing is pinned.
    Free,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Measurement {
    pub(crate) workload: String,
    pub(crate) quantity: String,
    pub(crate) unit: String,
    /// The server that the others are compared with.
    pub(crate) reference: String,
    pub(crate) series: Vec<Series>,
}

/// The figures of one server, round by round.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Series {
    pub(crate) server: String,
    pub(crate) values: Vec<f64>,
    /// Requests per second, where requests are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rates: Vec<f64>,
}

/// What clients saw of stops in the middle of their requests, all rounds together.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Interruption {
    pub(crate) server: String,
    pub(crate) clients: usize,
    pub(crate) answered: u64,
    pub(crate) truncated: u64,
    pub(crate) reset: u64,
    pub(crate) closed: u64,
}

/// The middle of several figures, and their range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Results {
    /// The results of the last run of that mode that was saved.
    pub(crate) fn load(mode: Mode) -> io::Result<Option<Self>> {
        match fs::read_to_string(file(mode, "json")) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    pub(crate) fn save(&self) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file(self.mode, "json"), text + "\n")
    }

    /// Writes the table and the picture.
    pub(crate) fn draw(&self) -> io::Result<()> {
        fs::write(file(self.mode, "md"), table::of(self))?;
        fs::write(file(self.mode, "svg"), chart::of(self)?)?;
        eprintln!("written to {}", file(self.mode, "{json,md,svg}").display());
        Ok(())
    }

    /// What it was measured on, in two lines.
    pub(crate) fn circumstances(&self) -> [String; 2] {
        let Machine {
            processor,
            cores,
            kernel,
            compiler,
            packages,
        } = &self.machine;
        let place = match self.mode {
            Mode::Core => "server and load on one core".to_owned(),
            Mode::Free => format!("server and load on {cores} cores, unpinned"),
        };
        let quick = if self.quick { ", a quick run" } else { "" };
        [
            format!(
                "{processor}, {place}. {kernel}, {compiler}. {}, {} rounds{quick}.",
                self.date, self.rounds
            ),
            format!("{}.", packages.join(", ")),
        ]
    }
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Free => "free",
        }
    }
}

fn file(mode: Mode, extension: &str) -> PathBuf {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/results");
    PathBuf::from(directory).join(format!("{}.{extension}", mode.name()))
}

impl Measurement {
    /// Ratios to the reference, each taken within its round.
    pub(crate) fn ratios(&self, series: &Series) -> Option<Spread> {
        Spread::of(quotients(&series.values, &self.reference()?.values))
    }

    /// The same of the rates.
    pub(crate) fn rate_ratios(&self, series: &Series) -> Option<Spread> {
        Spread::of(quotients(&series.rates, &self.reference()?.rates))
    }

    fn reference(&self) -> Option<&Series> {
        self.series
            .iter()
            .find(|series| series.server == self.reference)
    }
}

fn quotients(values: &[f64], references: &[f64]) -> Vec<f64> {
    let pairs = values.iter().zip(references);
    pairs.map(|(value, reference)| value / reference).collect()
}

impl Series {
    pub(crate) fn new(server: &str) -> Self {
        Self {
            server: server.to_owned(),
            values: Vec::new(),
            rates: Vec::new(),
        }
    }
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        Some(Self {
            median: f64::midpoint(values[last / 2], values[last.div_ceil(2)]),
            min: values[0],
            max: values[last],
        })
    }
}
