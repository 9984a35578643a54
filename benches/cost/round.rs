//! A round: what a unit of work costs a bare server and `gracious`, measured in turns.

use std::io;
use std::time::{Duration, Instant};

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter};

use super::load::{Load, Shape};
use super::process::ServerProcess;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    units: u64,
    bare: f64,
    gracious: f64,
    /// How much longer the clients of `gracious` waited, where they did: a ratio, too.
    wait: Option<f64>,
}

impl Round {
    pub(crate) fn ratio(self) -> f64 {
        self.gracious / self.bare
    }
}

/// Takes rounds of so many requests, in microseconds of the server's processor time for each.
pub(crate) fn processor_time(
    runtime: &str,
    pair: [&str; 2],
    shape: Shape,
) -> impl FnMut(u64) -> io::Result<Round> {
    let mut sides = None;
    move |units| {
        let sides = match &mut sides {
            Some(sides) => sides,
            none => none.insert([
                Side::start(runtime, pair[0], shape)?,
                Side::start(runtime, pair[1], shape)?,
            ]),
        };
        let requests = units.div_ceil(TURNS);
        let mut spent = [Spent::default(); 2];
        for turn in 0..TURNS {
            // Each is first as often as the other, so that what drifts falls on both.
            for side in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
                let now = sides[side].spend(requests)?;
                spent[side].processor += now.processor;
                spent[side].clock += now.clock;
            }
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / (TURNS * requests) as f64;
        let [bare, gracious] = spent;
        Ok(Round {
            units,
            bare: micros(bare.processor),
            gracious: micros(gracious.processor),
            wait: Some(gracious.clock.div_duration_f64(bare.clock)),
        })
    }
}

/// An even number of turns for each server in a round: what disturbs the machine for a while hits
/// both, and still each is at work long enough for its caches to be its own.
const TURNS: u64 = 6;

/// A server and its load, which is quiet between two calls.
struct Side {
    server: ServerProcess,
    load: Load,
}

impl Side {
    fn start(runtime: &str, server: &str, shape: Shape) -> io::Result<Self> {
        let server = ServerProcess::start(runtime, server)?;
        let load = Load::open(server.address(), shape)?;
        Ok(Self { server, load })
    }

    fn spend(&mut self, requests: u64) -> io::Result<Spent> {
        let before = self.server.processor_time()?;
        let start = Instant::now();
        self.load.run(requests)?;
        let clock = start.elapsed();
        let processor = self.server.processor_time()?.saturating_sub(before);
        Ok(Spent { processor, clock })
    }
}

#[derive(Clone, Copy, Default)]
struct Spent {
    processor: Duration,
    clock: Duration,
}

/// Takes rounds of so many connections that asked once and then stay, in resident bytes for each.
pub(crate) fn resident_memory(
    runtime: &str,
    pair: [&str; 2],
) -> impl FnMut(u64) -> io::Result<Round> {
    move |units| {
        let connections = units.min(MOST_IDLE);
        let [bare, gracious] = pair.map(|server| {
            let server = ServerProcess::start(runtime, server)?;
            // What the first connection makes a server allocate is not the price of the next.
            let _first = Load::open(server.address(), Shape::clients(1))?;
            let before = server.resident_bytes()?;
            let _idle = Load::open(server.address(), Shape::clients(connections as usize))?;
            let grown = server.resident_bytes()?.saturating_sub(before);
            io::Result::Ok(grown as f64 / connections as f64)
        });
        Ok(Round {
            units,
            bare: bare?,
            gracious: gracious?,
            wait: None,
        })
    }
}

/// Stays below the descriptor limits and the port range of an ordinary system.
const MOST_IDLE: u64 = 10_000;

/// What criterion measures. Zero-sized: the value comes ready from a [`Round`].
pub(crate) struct TimesBare;

impl Measurement for TimesBare {
    type Intermediate = ();
    type Value = f64;

    fn start(&self) {}

    fn end(&self, (): ()) -> f64 {
        unreachable!("only `iter_custom` is used, which brings its own value")
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for TimesBare {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "x bare"
    }

    fn scale_throughputs(&self, _: f64, _: &Throughput, _: &mut [f64]) -> &'static str {
        unreachable!("a ratio has no throughput")
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "x bare"
    }
}

pub(crate) const SUMMARY_HEAD: &str =
    "       bare    gracious   ratio  (min to max, rounds)          time";

/// Medians of the rounds that were samples, and the range of their ratios.
pub(crate) fn summary(rounds: &[Round], unit: &str) -> Option<String> {
    // Rounds of another size than the last were criterion's warm-up.
    let size = rounds.last()?.units;
    let samples = rounds.iter().filter(|round| round.units == size);
    let sorted = |figure: fn(&Round) -> Option<f64>| {
        let mut figures: Vec<f64> = samples.clone().filter_map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures
    };
    let ratios = sorted(|round| Some(round.ratio()));
    let wait = median(&sorted(|round| round.wait));
    Some(format!(
        "{:>8.2} {unit} {:>8.2} {unit}   {:.3}  ({:.3} to {:.3}, {:>2})  {}",
        median(&sorted(|round| Some(round.bare)))?,
        median(&sorted(|round| Some(round.gracious)))?,
        median(&ratios)?,
        ratios.first()?,
        ratios.last()?,
        ratios.len(),
        wait.map_or_else(String::new, |wait| format!("{wait:>10.3}")),
    ))
}

fn median(sorted: &[f64]) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    Some((sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0)
}
