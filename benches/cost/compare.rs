//! Which servers are compared under which load, and the table of it.

mod load;
mod machine;
mod process;
mod round;
mod servers;

use std::time::Duration;
use std::{env, io};

use criterion::{Criterion, SamplingMode};

use load::Shape;
use round::{Round, TimesBare};

const RUNTIMES: &[&str] = &[
    "async-std",
    #[cfg(feature = "smol")]
    "smol",
];

const WORKLOADS: &[(&str, Work)] = &[
    ("1 client", Work::Traffic(Shape::clients(1))),
    ("50 clients", Work::Traffic(Shape::clients(50))),
    ("500 clients", Work::Traffic(Shape::clients(500))),
    (
        "50 clients, 16 deep",
        Work::Traffic(Shape::clients(50).deep(16)),
    ),
    ("churn", Work::Traffic(Shape::clients(1).hanging_up())),
    (
        "churn, 50 at once",
        Work::Traffic(Shape::clients(50).hanging_up()),
    ),
    ("idle", Work::Idle),
];

/// Requests or connections in one iteration, as criterion counts: enough that the first rounds of
/// its warm-up are not all overhead, for from them it reckons how many fill the time.
const UNITS: u64 = 1000;

/// What the servers do, and what its cost is counted in.
#[derive(Clone, Copy)]
enum Work {
    /// Microseconds of processor time per request, or per connection if each makes only one.
    Traffic(Shape),
    /// Bytes of resident memory per connection.
    Idle,
}

impl Work {
    /// The servers to compare, the bare one first.
    fn pairs(self) -> [[&'static str; 2]; 2] {
        match self {
            Self::Traffic(_) => [["bare", "gracious, read"], ["bare", "gracious, fill_buf"]],
            // A buffer the handler owns would hide what the server itself holds.
            Self::Idle => [
                ["bare", "gracious, read"],
                ["bare, no buffer", "gracious, fill_buf"],
            ],
        }
    }

    /// How to take a round. Servers start with the first one: criterion asks for none where the
    /// command line leaves a benchmark out.
    fn rounds<'a>(
        self,
        runtime: &'a str,
        pair: [&'a str; 2],
    ) -> Box<dyn FnMut(u64) -> io::Result<Round> + 'a> {
        match self {
            Self::Traffic(shape) => Box::new(round::processor_time(runtime, pair, shape)),
            Self::Idle => Box::new(round::resident_memory(runtime, pair)),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Traffic(_) => "µs",
            Self::Idle => "B ",
        }
    }
}

pub(crate) fn main() -> io::Result<()> {
    let mut args: Vec<String> = env::args().skip(1).collect();
    if let [command, runtime, server] = &args[..] {
        if command == "serve" {
            return servers::serve(runtime, server);
        }
    }
    if let Some(pin) = args.iter().position(|arg| arg == "--pin") {
        args.remove(pin);
        return Err(machine::start_again_pinned(&args));
    }
    machine::raise_descriptor_limit()?;

    // A sample of criterion's is a round of ours, and its value the ratio. So criterion warms up,
    // sizes the rounds, filters by name and compares with the last run. It takes one value a
    // sample, though, and shows means: the costs behind the ratios are kept here, for the table.
    let mut criterion = Criterion::default()
        .with_measurement(TimesBare)
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(8))
        .nresamples(10_000)
        .configure_from_args();
    let mut table = Vec::new();
    for &(workload, work) in WORKLOADS {
        let mut group = criterion.benchmark_group(workload);
        group.sampling_mode(SamplingMode::Flat);
        for &runtime in RUNTIMES {
            for pair in work.pairs() {
                let mut round = work.rounds(runtime, pair);
                let mut rounds = Vec::new();
                group.bench_function(format!("{runtime}, {}", pair[1]), |bencher| {
                    bencher.iter_custom(|iterations| {
                        let round = round(iterations * UNITS).expect("both servers answer");
                        rounds.push(round);
                        round.ratio() * iterations as f64
                    });
                });
                if let Some(figures) = round::summary(&rounds, work.unit()) {
                    table.push(format!(
                        "{workload:<20} {runtime:<10} {:<19} {figures}",
                        pair[1]
                    ));
                }
            }
        }
    }
    criterion.final_summary();

    println!("\n{}\n", machine::describe());
    println!("{:<51} {}", "", round::SUMMARY_HEAD);
    for row in table {
        println!("{row}");
    }
    Ok(())
}
