//! A simulation: many runs of one scenario, and what is said of one that fails.

use std::env;
use std::fmt::Write;
use std::future::Future;
use std::ops::Range;
use std::panic::Location;
use std::thread;
use std::time::{Duration, Instant};

use super::coverage::Coverage;
use super::executor::{self, Limits};
use super::fault::Fault;
use super::plan::{Part, Plan, Run};
use super::sim::{LAST_STEP, Sim};
use super::timeline::Line;
use super::watch;
use super::world::{Failure, Looked, World};

/// A fault that was on in so many runs has to have come to pass in one.
const RUNS_FOR_A_FAULT: u64 = 100;
/// One run in so many is made twice, to see whether the seed decides everything.
const RUNS_FOR_A_COPY: u64 = 16;
/// So many lines of a timeline are printed, the last ones.
const LINES: usize = 400;

/// Many runs of one scenario, each in a world of its own; what [`simulate`](super::simulate) does, to be
/// configured.
///
/// ```
/// use gracious::testing::{Fault, Simulation};
///
/// let coverage = Simulation::new(0..200)
///     .without(Fault::Shortage)
///     .run(|sim| async move {
///         let running = sim.serve(async |conn: gracious::Connection| drop(conn)).await;
///         sim.visit(async |peer| peer.read_to_the_end().await.map(drop));
///         sim.stop_sometime(&running.handle());
///         running.await.unwrap();
///     });
/// println!("{coverage}");
/// ```
#[derive(Clone, Debug)]
#[must_use = "a simulation does nothing until it is run"]
pub struct Simulation {
    seeds: Range<u64>,
    faults: Vec<Fault>,
    limits: Limits,
    stops_at_every_step: bool,
    allows_panics: bool,
    is_fixed: bool,
    expected: Vec<&'static str>,
}

/// What is to be known of a run that is over.
struct Outcome {
    failure: Option<Failure>,
    hash: u64,
    steps: u64,
    fired: Vec<Fault>,
    looked: Vec<(String, Looked)>,
    lines: Vec<Line>,
    /// The reports of the servers, and the table of sockets.
    account: String,
    /// Everything that can be left out.
    parts: Vec<Part>,
}

impl Simulation {
    /// A run for each of these seeds, with the faults [`OUTSIDE`](Fault::OUTSIDE) of handlers.
    pub fn new(seeds: Range<u64>) -> Self {
        Self {
            seeds,
            faults: Fault::OUTSIDE.to_vec(),
            limits: Limits {
                time: Duration::from_secs(3600),
                steps: 1_000_000,
            },
            stops_at_every_step: false,
            allows_panics: false,
            is_fixed: false,
            expected: Vec::new(),
        }
    }

    /// Which faults there may be, in place of those before.
    pub fn faults(mut self, faults: &[Fault]) -> Self {
        self.faults = faults.to_vec();
        self
    }

    /// Adds a fault.
    pub fn with(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Takes a fault away.
    pub fn without(mut self, fault: Fault) -> Self {
        self.faults.retain(|it| *it != fault);
        self
    }

    /// Makes a run for every step at which the stop of [`Sim::stop_sometime`] can come, for each seed:
    /// once at each poll of any task, from the beginning to where the run would end without it, but 256 at
    /// most.
    pub fn stop_at_every_step(mut self) -> Self {
        self.stops_at_every_step = true;
        self
    }

    /// Lets handlers panic of themselves, which fails a run otherwise.
    pub fn allow_panics(mut self) -> Self {
        self.allows_panics = true;
        self
    }

    /// Makes these runs whatever the environment says: for a seed that has once found something, and is
    /// kept as a test.
    pub fn fixed(mut self) -> Self {
        self.is_fixed = true;
        self
    }

    /// Wants something to come to pass in one run at least, that [`Coverage::count`] counts; the
    /// simulation fails where it does not.
    pub fn expect(mut self, what: &'static str) -> Self {
        self.expected.push(what);
        self
    }

    /// How much time may pass in a world until all is over; an hour unless said otherwise.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limits.time = limit;
        self
    }

    /// How many steps a run may take, each the poll of a task; a million unless said otherwise.
    pub fn step_limit(mut self, steps: u64) -> Self {
        self.limits.steps = steps;
        self
    }

    /// Makes the runs, and gives what came to pass in them.
    ///
    /// Three environment variables change which: `GRACIOUS_SEED` makes the one run that a failure has
    /// printed, `GRACIOUS_SEEDS=0..1000000` others than the test says, and `GRACIOUS_SECONDS=20` as
    /// many, from the first of these seeds on, as there is time for.
    ///
    /// # Panics
    /// Where a run fails: with what is wrong, the run's timeline, the report, and the sockets, after
    /// everything was left out that the failure can do without. Also where something expected never
    /// came to pass, or the same seed makes two different runs.
    #[track_caller]
    pub fn run<F>(self, scenario: impl Fn(Sim) -> F) -> Coverage
    where
        F: Future<Output = ()> + 'static,
    {
        let place = Location::caller();
        let mut coverage = Coverage::default();
        if let Some(run) = variable("GRACIOUS_SEED") {
            let run: Run = run
                .parse()
                .unwrap_or_else(|wrong| panic!("GRACIOUS_SEED: {wrong}"));
            self.try_run(&run, &scenario, &mut coverage, place);
            println!(
                "{}",
                self.story(&run, &scenario, &self.run_once(&run, &scenario, true))
            );
            return coverage;
        }
        let variable = |name| variable(name).filter(|_| !self.is_fixed);
        let seeds = variable("GRACIOUS_SEEDS").map_or(self.seeds.clone(), |text| range(&text));
        let until = variable("GRACIOUS_SECONDS").map(|text| {
            let seconds = text
                .parse()
                .expect("GRACIOUS_SECONDS is a number of seconds");
            Instant::now() + Duration::from_secs(seconds)
        });
        let seeds = if until.is_some() {
            seeds.start..u64::MAX
        } else {
            seeds
        };
        for seed in seeds {
            if until.is_some_and(|until| until <= Instant::now()) {
                break;
            }
            let mut run = Run::of(seed);
            if !self.stops_at_every_step {
                self.try_run(&run, &scenario, &mut coverage, place);
                continue;
            }
            run.stop_at = Some(u64::MAX);
            let steps = self.try_run(&run, &scenario, &mut coverage, place);
            for step in 1..steps.min(LAST_STEP) {
                run.stop_at = Some(step);
                self.try_run(&run, &scenario, &mut coverage, place);
            }
        }
        // Fewer runs than the test asks for may have had no luck.
        let asked_for = self.seeds.end.saturating_sub(self.seeds.start);
        if coverage.runs() >= asked_for {
            self.judge(&coverage);
        }
        println!("{place}: {coverage}");
        coverage
    }

    /// Fails where something that was expected never came.
    fn judge(&self, coverage: &Coverage) {
        // A stop at every step makes many runs of few seeds.
        let least = if self.stops_at_every_step {
            u64::MAX
        } else {
            RUNS_FOR_A_FAULT
        };
        let idle = coverage.idle_faults(least);
        assert!(
            idle.is_empty(),
            "faults that were on and never came to pass: {idle:?}\n{coverage}"
        );
        let never = coverage.never();
        assert!(
            never.is_empty(),
            "never came to pass: {never:?}\n{coverage}"
        );
        for what in &self.expected {
            assert!(
                coverage.count(what) > 0,
                "never came to pass: {what}\n{coverage}"
            );
        }
    }

    /// Makes a run, and now and then makes it again; gives its steps.
    fn try_run<F>(
        &self,
        run: &Run,
        scenario: &impl Fn(Sim) -> F,
        coverage: &mut Coverage,
        place: &Location<'_>,
    ) -> u64
    where
        F: Future<Output = ()> + 'static,
    {
        let plan = self.plan(run);
        coverage.begin(plan.faults().map(Fault::name));
        let outcome = self.run_once(run, scenario, false);
        coverage.end(outcome.steps);
        outcome
            .fired
            .iter()
            .for_each(|fault| coverage.fired(fault.name()));
        outcome
            .looked
            .iter()
            .for_each(|(what, came)| coverage.looked(what, *came));
        if let Some(failure) = &outcome.failure {
            self.fail(run, failure, scenario, place);
        }
        if coverage.runs() % RUNS_FOR_A_COPY == 1 {
            let again = self.run_once(run, scenario, false);
            if again.hash != outcome.hash {
                self.differ(run, scenario, place);
            }
        }
        outcome.steps
    }

    fn plan(&self, run: &Run) -> Plan {
        Plan::draw(run.clone(), &self.faults, self.allows_panics)
    }

    fn run_once<F>(&self, run: &Run, scenario: &impl Fn(Sim) -> F, is_read: bool) -> Outcome
    where
        F: Future<Output = ()> + 'static,
    {
        let world = World::new(self.plan(run), is_read);
        executor::run(&world, self.limits, scenario);
        let mut account = String::new();
        if is_read {
            for handle in world.watch().handles() {
                let _written = writeln!(account, "{}", handle.shared().report());
            }
            let sockets = world.on_network(|network, _| watch::sockets(network));
            let _written = write!(
                account,
                "\nsockets: the server's side, and the peer's\n{sockets}"
            );
        }
        let (peers, acts) = world.on_network(|network, _| (network.wires.len(), world.acts()));
        let on = |fault: &Fault| {
            Fault::ALL
                .iter()
                .position(|it| it == fault)
                .map(Part::Fault)
        };
        let faults: Vec<_> = world.plan.faults().collect();
        let parts = faults.iter().filter_map(on);
        let parts = parts.chain((0..acts).map(Part::Act));
        let parts = parts
            .chain((0..peers).map(Part::Manner))
            .chain((0..peers).map(Part::Peer));
        let (hash, lines) = world.timeline().take();
        let outcome = Outcome {
            failure: world.failure(),
            hash,
            steps: world.step(),
            fired: world.take_fired().into_iter().collect(),
            looked: world.take_looked().into_iter().collect(),
            lines,
            account,
            parts: parts.collect(),
        };
        world.clear();
        outcome
    }

    /// Says what is wrong with a run, after all was left out that it is wrong without.
    fn fail<F>(
        &self,
        run: &Run,
        failure: &Failure,
        scenario: &impl Fn(Sim) -> F,
        place: &Location<'_>,
    ) -> !
    where
        F: Future<Output = ()> + 'static,
    {
        let (mut least, mut tries) = (run.clone(), 0);
        let parts = self.run_once(run, scenario, false).parts;
        for part in parts.into_iter().rev() {
            let is_gone = |peer| least.without.contains(&Part::Peer(peer));
            if matches!(part, Part::Manner(peer) if is_gone(peer)) {
                continue;
            }
            let mut less = least.clone();
            less.without.insert(part);
            tries += 1;
            let fails = self.run_once(&less, scenario, false).failure;
            if fails.is_some_and(|it| it.kind == failure.kind) {
                least = less;
            }
        }
        let outcome = self.run_once(&least, scenario, true);
        let failure = outcome.failure.clone().unwrap_or_else(|| failure.clone());
        let test = thread::current().name().unwrap_or("TEST").to_owned();
        let story = self.story(&least, scenario, &outcome);
        panic!(
            "a simulated run fails, {}: {}\n\n{story}\n\
             at {place}, with seed {}; {} parts of it were left out in {tries} tries.\n\
             The same run again:\n    GRACIOUS_SEED={least} cargo test --all-features -- --exact {test} --nocapture\n",
            failure.kind,
            failure.text,
            run.seed,
            least.without.len(),
        );
    }

    /// A run's timeline and account, to be read.
    fn story<F>(&self, run: &Run, _of: &impl Fn(Sim) -> F, outcome: &Outcome) -> String {
        let mut story = format!("run {run}, with these faults on: ");
        let faults: Vec<_> = self.plan(run).faults().map(Fault::name).collect();
        let _written = writeln!(
            story,
            "{}\n",
            if faults.is_empty() {
                "none".into()
            } else {
                faults.join(", ")
            }
        );
        let skipped = outcome.lines.len().saturating_sub(LINES);
        if skipped > 0 {
            let _written = writeln!(story, "({skipped} lines before these)");
        }
        for line in &outcome.lines[skipped..] {
            let _written = writeln!(story, "{line}");
        }
        let _written = write!(story, "\n{}", outcome.account);
        story
    }

    /// Says where two runs of the same seed part.
    fn differ<F>(&self, run: &Run, scenario: &impl Fn(Sim) -> F, place: &Location<'_>) -> !
    where
        F: Future<Output = ()> + 'static,
    {
        let [one, other] = [(); 2].map(|()| self.run_once(run, scenario, true).lines);
        let same = one
            .iter()
            .zip(&other)
            .take_while(|(one, other)| one == other)
            .count();
        let line = |lines: &[Line]| {
            lines
                .get(same)
                .map_or("nothing more".into(), Line::to_string)
        };
        panic!(
            "{place}: seed {} does not decide everything: two runs part after {same} lines\n{}\n{}\n\
             Time that is not the world's, a map with a random order, or a thread may be the reason.",
            run.seed,
            line(&one),
            line(&other),
        );
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn range(text: &str) -> Range<u64> {
    let parse = || {
        let (first, last) = text.split_once("..")?;
        Some(first.parse().ok()?..last.parse().ok()?)
    };
    parse().unwrap_or_else(|| panic!("GRACIOUS_SEEDS is `{text}`: expected a range, as 0..1000000"))
}
