//! The course of a soak, and what it has to show in the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use clap::Parser;
use gracious::rustls::crypto::ring::default_provider;
use gracious::rustls::{ClientConfig, RootCertStore};
use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::clients::{Clients, Seen};
use crate::picture;
use crate::process::{Account, Sample, Soaked};
use crate::server::{self, ENGINES};

/// A mixed load on gracious, through stop after stop
#[derive(Debug, Parser)]
#[command(name = "soak", version)]
struct Options {
    /// For how long, all engines together
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    minutes: f64,
    /// Only engines with this in their names
    #[arg(long, value_name = "NAME", num_args = 1..)]
    engines: Vec<String>,
    /// Draw the process over time, to benches/results/soak.svg
    #[arg(long)]
    save: bool,
}

/// How long a generation serves.
const GENERATION: Duration = Duration::from_secs(2);
/// How often the process is looked at.
const STEP: Duration = Duration::from_millis(200);
/// How long descriptors and threads may take to go, once all servers are closed.
const PATIENCE: Duration = Duration::from_secs(20);
/// By how many mebibytes the process may have grown in the second half.
const GROWTH: f64 = 8.0;

/// What became of one engine.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) engine: &'static str,
    pub(crate) samples: Vec<Sample>,
    /// When a generation was asked to stop, in seconds.
    pub(crate) stops: Vec<f64>,
}

pub(crate) fn run() -> io::Result<bool> {
    let words: Vec<String> = std::env::args().filter(|word| word != "--bench").collect();
    if words.get(1).is_some_and(|word| word == "serve") {
        return server::run(&words[2..]).map(|()| true);
    }
    let options = Options::parse_from(words);
    let asked = |name: &str| {
        options.engines.is_empty() || options.engines.iter().any(|part| name.contains(&**part))
    };
    let engines: Vec<_> = ENGINES.into_iter().filter(|name| asked(name)).collect();
    let time = Duration::from_secs_f64(options.minutes * 60.0) / engines.len().max(1) as u32;
    let identity = Identity::make()?;
    println!(
        "| engine | stops | answered | unanswered | failures | accepted | completed | failed | panicked | aborted | MiB | descriptors | threads |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let (mut courses, mut all_well) = (Vec::new(), true);
    for engine in engines {
        let (course, is_well) = soak(engine, time, &identity)?;
        courses.push(course);
        all_well &= is_well;
    }
    if options.save {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/soak.svg");
        fs::write(&path, picture::of(&courses)?)?;
    }
    Ok(all_well)
}

/// Soaks one engine; gives whether all was as it should be.
fn soak(engine: &'static str, time: Duration, identity: &Identity) -> io::Result<(Course, bool)> {
    let mut server = Soaked::start(engine, &identity.certificate, &identity.key)?;
    let process = server.id();
    let start = Instant::now();
    // What the runtime starts at its first use is there before anything is compared.
    server.order("next")?;
    server.order("end")?;
    let before = Sample::of(process, 0.0)?;
    let (ports, _) = server.order("next")?;
    let ports =
        ports.ok_or_else(|| io::Error::other("the server does not say where it listens"))?;
    let seen = Arc::new(Seen::default());
    let clients = Clients::begin(ports, &identity.config, &seen);

    let mut course = Course {
        engine,
        samples: Vec::new(),
        stops: Vec::new(),
    };
    let mut accounts: Vec<Account> = Vec::new();
    let (sender, stopped) = std::sync::mpsc::channel();
    let (orders, next) = std::sync::mpsc::channel::<&str>();
    let server = std::thread::spawn(move || {
        while let Ok(word) = next.recv() {
            let done = server.order(word);
            if sender.send(done).is_err() {
                break;
            }
        }
        server
    });
    let gone = |_| io::Error::other("the server is gone");
    let mut asked = Instant::now();
    let mut is_stopping = false;
    while start.elapsed() < time || is_stopping {
        sleep(STEP);
        course
            .samples
            .push(Sample::of(process, start.elapsed().as_secs_f64())?);
        if let Ok(done) = stopped.try_recv() {
            accounts.extend(done?.1);
            (is_stopping, asked) = (false, Instant::now());
        } else if !is_stopping && asked.elapsed() > GENERATION {
            course.stops.push(start.elapsed().as_secs_f64());
            orders.send("next").map_err(|_| gone(()))?;
            is_stopping = true;
        }
    }
    clients.end();
    orders.send("end").map_err(|_| gone(()))?;
    accounts.extend(stopped.recv().map_err(|_| gone(()))??.1);

    let at_rest = Instant::now();
    let after = loop {
        let sample = Sample::of(process, start.elapsed().as_secs_f64())?;
        let is_less = sample.descriptors <= before.descriptors && sample.threads <= before.threads;
        if is_less || at_rest.elapsed() > PATIENCE {
            break sample;
        }
        sleep(STEP);
    };
    course.samples.push(after);
    drop(orders);
    drop(server.join());
    let is_well = judge(&course, &accounts, &seen, before, after);
    Ok((course, is_well))
}

/// Says what a soak came to, and whether that is well.
fn judge(
    course: &Course,
    accounts: &[Account],
    seen: &Seen,
    before: Sample,
    after: Sample,
) -> bool {
    let failures = seen.failures.lock().unwrap();
    let sum = |of: fn(&Account) -> u64| accounts.iter().map(of).sum::<u64>();
    let (early, late) = course.samples.split_at(course.samples.len() / 2);
    let most = |samples: &[Sample]| samples.iter().map(|it| it.mebibytes).fold(0.0, f64::max);
    let (early, late) = (most(early), most(late));
    println!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {early:.1}, {late:.1} | {}, {} | {}, {} |",
        course.engine,
        course.stops.len(),
        seen.answered.load(Relaxed),
        seen.unanswered.load(Relaxed),
        failures.len(),
        sum(|it| it.accepted),
        sum(|it| it.completed),
        sum(|it| it.failed),
        sum(|it| it.panicked),
        sum(|it| it.aborted),
        before.descriptors,
        after.descriptors,
        before.threads,
        after.threads,
    );
    for failure in failures.iter().take(20) {
        eprintln!("{}: {failure}", course.engine);
    }
    let unbalanced = accounts.iter().filter(|it| !it.balanced).count();
    let checks = [
        (
            failures.is_empty(),
            "a client that behaves has lost something",
        ),
        (unbalanced == 0, "an account does not balance"),
        (
            after.descriptors <= before.descriptors,
            "descriptors are left open",
        ),
        (after.threads <= before.threads, "threads are left"),
        (late <= early + GROWTH, "the process grows"),
    ];
    for (_, what) in checks.iter().filter(|(is_well, _)| !is_well) {
        eprintln!("{}: {what}", course.engine);
    }
    checks.iter().all(|(is_well, _)| *is_well)
}

/// The server's certificate and key, in files, and who trusts them.
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    config: Arc<ClientConfig>,
}

impl Identity {
    fn make() -> io::Result<Self> {
        let made = generate_simple_self_signed(["localhost".to_owned()]);
        let CertifiedKey { cert, key_pair } = made.map_err(io::Error::other)?;
        let base = std::env::temp_dir().join(format!("gracious-soak-{}", std::process::id()));
        let (certificate, key) = (base.with_extension("cert"), base.with_extension("key"));
        fs::write(&certificate, cert.pem())?;
        fs::write(&key, key_pair.serialize_pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).map_err(io::Error::other)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            certificate,
            key,
            config: Arc::new(config),
        })
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.certificate);
        let _gone = fs::remove_file(&self.key);
    }
}
