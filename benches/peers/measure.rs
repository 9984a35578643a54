//! Rounds: every server in turn.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use benches::load::{Interrupted, Load, Shape};
use benches::machine::{self, OnFirstCore};
use benches::process::ServerProcess;
use benches::servers::{FLOOR, REFERENCE, Server, TakesPart};
use jiff::Zoned;

use crate::machine::Machine;
use crate::results::{Interruption, Measurement, Mode, Results, Series};
use crate::workloads::{Work, Workload};

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) quick: bool,
    /// In place of the one that each workload has.
    pub(crate) reference: Option<&'static Server>,
    /// How many descriptors a process may have.
    pub(crate) descriptors: u64,
}

impl Plan {
    fn reference(&self, usual: &str) -> String {
        self.reference
            .map_or(usual, |server| server.name)
            .to_owned()
    }

    fn requests(&self, requests: u64) -> u64 {
        if self.quick { requests / 4 } else { requests }
    }

    fn idle_connections(&self) -> usize {
        let most = if self.quick { 2_000 } else { 10_000 };
        let room = self.descriptors.saturating_sub(DESCRIPTORS_OF_OUR_OWN);
        most.min(room.try_into().unwrap_or(usize::MAX))
    }
}

/// More than what a server or the load has open beside its connections.
const DESCRIPTORS_OF_OUR_OWN: u64 = 100;

pub(crate) fn measure(
    servers: &[&'static Server],
    workloads: &[&'static Workload],
    plan: &Plan,
) -> io::Result<Results> {
    let pinned = machine::is_pinned();
    let mut results = Results {
        mode: if pinned { Mode::Core } else { Mode::Free },
        date: Zoned::now().date().to_string(),
        machine: Machine::here(),
        rounds: plan.rounds,
        quick: plan.quick,
        measurements: Vec::new(),
        interruptions: Vec::new(),
    };
    for workload in workloads {
        if pinned && workload.is_apart() {
            eprintln!("{} is left out: there is one core for all", workload.name);
            continue;
        }
        let takes_part = |server: &&Server| {
            // There is no core to spin on where there is one for all.
            let spins_in_vain = pinned && server.takes_part == TakesPart::WithOneClient;
            workload.suits(server) && !spins_in_vain
        };
        let servers: Vec<_> = servers.iter().copied().filter(takes_part).collect();
        eprintln!(
            "{}: {} servers, {} rounds",
            workload.name,
            servers.len(),
            plan.rounds
        );
        match workload.work {
            Work::Traffic {
                shape,
                requests,
                apart,
            } => {
                let requests = plan.requests(requests);
                let round = |turn| traffic(&servers, shape, apart, requests, turn);
                results
                    .measurements
                    .push(costs(workload, &servers, plan, round)?);
            }
            Work::RedisBenchmark { requests } => {
                if !has_redis_benchmark() {
                    eprintln!("{} is left out: it is not installed", workload.name);
                    continue;
                }
                let requests = plan.requests(requests);
                let round = |turn| redis_benchmark(&servers, requests, turn);
                results
                    .measurements
                    .push(costs(workload, &servers, plan, round)?);
            }
            Work::Idle => results.measurements.extend(idle(&servers, plan)?),
            Work::Interruption => results.interruptions = interruptions(&servers, plan)?,
        }
    }
    Ok(results)
}

/// What a round found about one server.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Microseconds of processor time per request.
    cost: f64,
    /// Requests per second.
    rate: f64,
}

fn costs(
    workload: &Workload,
    servers: &[&'static Server],
    plan: &Plan,
    mut round: impl FnMut(usize) -> io::Result<Vec<Found>>,
) -> io::Result<Measurement> {
    let mut series: Vec<_> = servers
        .iter()
        .map(|server| Series::new(server.name))
        .collect();
    for turn in 0..plan.rounds as usize {
        for (series, found) in series.iter_mut().zip(round(turn)?) {
            series.values.push(found.cost);
            series.rates.push(found.rate);
        }
    }
    Ok(Measurement {
        workload: workload.name.to_owned(),
        quantity: format!("processor time per {}", workload.unit()),
        unit: "µs".to_owned(),
        reference: plan.reference(workload.references().next().unwrap_or(REFERENCE)),
        series,
    })
}

/// All of them, each first as often as any other, and next to changing neighbours: what drifts
/// falls on all alike.
fn order(servers: usize, turn: usize) -> impl Iterator<Item = usize> {
    (0..servers).map(move |place| {
        let place = if turn.is_multiple_of(2) {
            place
        } else {
            servers - 1 - place
        };
        (place + turn) % servers
    })
}

/// Turns for each server in a round: what disturbs the machine for a while hits several, and still
/// each is at work long enough for its caches to be its own.
const TURNS: usize = 3;

fn traffic(
    servers: &[&'static Server],
    shape: Shape,
    apart: bool,
    requests: u64,
    round: usize,
) -> io::Result<Vec<Found>> {
    let requests = requests.div_ceil(TURNS as u64);
    // New processes for each round, since a process can be lucky with where its memory is.
    let mut sides = servers
        .iter()
        .map(|server| about(server, || Side::start(server, shape, apart, requests)))
        .collect::<io::Result<Vec<_>>>()?;
    // Not sooner: a server is started on all cores.
    let _place = apart.then(OnFirstCore::new).transpose()?;
    for turn in 0..TURNS {
        for index in order(servers.len(), round + turn) {
            about(servers[index], || sides[index].spend(requests))?;
        }
    }
    let requests = (requests * TURNS as u64) as f64;
    let found = |side: &Side| Found {
        cost: side.processor.as_secs_f64() * 1e6 / requests,
        rate: requests / side.clock.as_secs_f64(),
    };
    Ok(sides.iter().map(found).collect())
}

/// A server, its load, and what they have taken.
struct Side {
    server: ServerProcess,
    load: Load,
    processor: Duration,
    clock: Duration,
}

impl Side {
    fn start(server: &Server, shape: Shape, apart: bool, requests: u64) -> io::Result<Self> {
        let server = ServerProcess::start(server)?;
        let mut load = Load::open(server.address(), shape)?;
        // It has its threads by now, and has seen more than one core: where there is one, nobody
        // spins.
        if apart {
            server.move_to(&machine::other_cores()?)?;
        }
        let _place = apart.then(OnFirstCore::new).transpose()?;
        // What is done once is not the price of a request.
        load.run(requests / 4)?;
        Ok(Self {
            server,
            load,
            processor: Duration::ZERO,
            clock: Duration::ZERO,
        })
    }

    fn spend(&mut self, requests: u64) -> io::Result<()> {
        let before = self.server.processor_time()?;
        let start = Instant::now();
        self.load.run(requests)?;
        self.clock += start.elapsed();
        self.processor += self.server.processor_time()?.saturating_sub(before);
        Ok(())
    }
}

fn has_redis_benchmark() -> bool {
    Command::new("redis-benchmark")
        .arg("--version")
        .output()
        .is_ok()
}

fn redis_benchmark(
    servers: &[&'static Server],
    requests: u64,
    round: usize,
) -> io::Result<Vec<Found>> {
    let mut found = vec![None; servers.len()];
    for index in order(servers.len(), round) {
        let server = servers[index];
        found[index] = Some(about(server, || {
            let server = ServerProcess::start(server)?;
            let before = server.processor_time()?;
            let output = Command::new("redis-benchmark")
                .args(["-h", &server.address().ip().to_string()])
                .args(["-p", &server.address().port().to_string()])
                .args([
                    "-t",
                    "ping_inline",
                    "-c",
                    "50",
                    "-n",
                    &requests.to_string(),
                    "--csv",
                ])
                .output()?;
            let spent = server.processor_time()?.saturating_sub(before);
            Ok(Found {
                cost: spent.as_secs_f64() * 1e6 / requests as f64,
                rate: rate_in(&String::from_utf8_lossy(&output.stdout))?,
            })
        })?);
    }
    Ok(found.into_iter().flatten().collect())
}

/// `"PING_INLINE","86956.52","0.373",…` after a line that names the columns.
fn rate_in(csv: &str) -> io::Result<f64> {
    let line = csv.lines().find(|line| line.starts_with("\"PING_INLINE\""));
    let rate = line.and_then(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok());
    rate.ok_or_else(|| io::Error::other(format!("redis-benchmark said {csv:?}")))
}

fn idle(servers: &[&'static Server], plan: &Plan) -> io::Result<Vec<Measurement>> {
    let connections = plan.idle_connections();
    let measurement = |quantity: &str, unit: &str, reference: &str| Measurement {
        workload: format!("{connections} idle connections"),
        quantity: quantity.to_owned(),
        unit: unit.to_owned(),
        reference: plan.reference(reference),
        series: servers
            .iter()
            .map(|server| Series::new(server.name))
            .collect(),
    };
    let mut memory = measurement("resident memory of each", "B", REFERENCE);
    let mut told = measurement("stop, until the last client saw it", "ms", FLOOR);
    let mut gone = measurement("stop, until the process was gone", "ms", FLOOR);
    for round in 0..plan.rounds as usize {
        for index in order(servers.len(), round) {
            about(servers[index], || {
                let mut server = ServerProcess::start(servers[index])?;
                // What the first connection makes a server allocate is not the price of the next.
                let first = Load::open(server.address(), Shape::clients(1))?;
                let before = server.resident_bytes()?;
                let idle = Load::open(server.address(), Shape::clients(connections))?;
                let grown = server.resident_bytes()?.saturating_sub(before);
                drop(first);
                let end = idle.see_the_end(&mut server)?;
                memory.series[index]
                    .values
                    .push(grown as f64 / connections as f64);
                told.series[index].values.push(end.told.as_secs_f64() * 1e3);
                gone.series[index].values.push(end.gone.as_secs_f64() * 1e3);
                server.wait()
            })?;
        }
    }
    Ok(vec![memory, told, gone])
}

fn interruptions(servers: &[&'static Server], plan: &Plan) -> io::Result<Vec<Interruption>> {
    let mut sums = vec![Interrupted::default(); servers.len()];
    for round in 0..plan.rounds as usize {
        for index in order(servers.len(), round) {
            about(servers[index], || {
                let mut server = ServerProcess::start(servers[index])?;
                let load = Load::open(server.address(), Shape::clients(INTERRUPTED).deep(16))?;
                let seen = load.interrupt(&mut server, BEFORE_THE_STOP)?;
                let sum = &mut sums[index];
                sum.answered += seen.answered;
                sum.truncated += seen.truncated;
                sum.reset += seen.reset;
                sum.closed += seen.closed;
                Ok(())
            })?;
        }
    }
    let named = servers.iter().zip(sums).map(|(server, seen)| Interruption {
        server: server.name.to_owned(),
        clients: plan.rounds as usize * INTERRUPTED,
        answered: seen.answered,
        truncated: seen.truncated,
        reset: seen.reset,
        closed: seen.closed,
    });
    Ok(named.collect())
}

/// Clients in the middle of their requests when a server is stopped.
const INTERRUPTED: usize = 50;
const BEFORE_THE_STOP: Duration = Duration::from_millis(100);

/// Says which server it was that failed.
fn about<T>(server: &Server, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    work().map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", server.name)))
}
