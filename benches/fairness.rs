//! How long a new client waits beside clients that never pause.
//!
//! ```text
//! cargo bench -p benches --no-default-features --bench fairness          # 7 rounds
//! cargo bench -p benches --no-default-features --bench fairness -- 3
//! ```
//!
//! Some clients ask without waiting for replies; beside them one new client after the other connects,
//! asks once and reads the reply. What counts is the median of that in a round, and its ratio to
//! tokio's of the round: the figures are the medians of the rounds. Every server has as many threads
//! as there are cores, unless its name says otherwise, and shares these with the clients. A server
//! that lets new clients wait for seconds is asked no more in that round: what it took so far counts.
//!
//! The last column is how long after a stop an idle client sees its end, beside as many clients that
//! never pause as in the column before; of servers with a graceful stop only.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match waits::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the servers of this benchmark are for Linux");
}

#[cfg(target_os = "linux")]
mod waits {
    use std::io::{self, ErrorKind, Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::{Duration, Instant};
    use std::{env, thread};

    use benches::flood::Flood;
    use benches::process::ServerProcess;
    use benches::protocol::{PING, PONG};
    use benches::servers::{self, Family, REFERENCE};

    const SERVERS: &[&str] = &[
        REFERENCE,
        "tokio + TaskTracker",
        "async-std",
        "smol",
        "gracious async-std",
        "gracious smol",
        "gracious workers(1)",
        "gracious workers(2)",
        "gracious workers(2), sharded",
    ];

    /// How many clients never pause.
    const FLOODS: [usize; 4] = [0, 1, 4, 8];

    /// How many new clients come in a round, one after the other.
    const NEW: usize = 40;
    /// What they may take together, and how long one of them waits at most.
    const PATIENCE: Duration = Duration::from_secs(2);
    /// In between the server comes to what it has put off.
    const PAUSE: Duration = Duration::from_millis(2);

    /// What a round showed of a server, in milliseconds.
    #[derive(Clone, Default)]
    struct Round {
        /// The median of the new clients' waits, for each number of floods.
        medians: Vec<f64>,
        longest: f64,
        stop: Option<f64>,
        /// How many thousands of requests of the last floods were answered in a second.
        rate: f64,
    }

    pub(super) fn run() -> io::Result<()> {
        if servers::serve_if_asked()? {
            return Ok(());
        }
        let asked = env::args().find_map(|arg| arg.parse().ok());
        let rounds: usize = asked.unwrap_or(7);
        // By server, then by round.
        let mut all = vec![Vec::new(); SERVERS.len()];
        for number in 1..=rounds {
            for (name, rounds) in SERVERS.iter().zip(&mut all) {
                rounds.push(round(name)?);
            }
            eprintln!("round {number} of {rounds}");
        }
        print(&all);
        Ok(())
    }

    fn round(name: &str) -> io::Result<Round> {
        let mut round = Round::default();
        for floods in FLOODS {
            let server = servers::find(name)?;
            let mut process = ServerProcess::start(server)?;
            let mut idle = TcpStream::connect(process.address())?;
            ask(&mut idle)?;
            let flood = Flood::begin(process.address(), floods)?;
            // Until all of them have filled what can be filled.
            thread::sleep(Duration::from_millis(100));
            let (begun, before) = (Instant::now(), flood.answered());
            let mut waits = waits(process.address())?;
            let answered = flood.answered() - before;
            round.rate = answered as f64 / begun.elapsed().as_secs_f64() / 1000.0;
            round.medians.push(median(&mut waits));
            round.longest = round.longest.max(waits[waits.len() - 1]);
            if server.family != Family::Bare && floods == FLOODS[FLOODS.len() - 1] {
                let begun = Instant::now();
                process.stop();
                idle.set_read_timeout(Some(5 * PATIENCE))?;
                match idle.read(&mut [0]) {
                    // One whose time is up has waited for so long at least.
                    Ok(0) => {}
                    Err(error) if is_late(&error) => {}
                    other => return Err(io::Error::other(format!("{name}: {other:?}"))),
                }
                round.stop = Some(millis(begun.elapsed()));
            }
        }
        Ok(round)
    }

    /// How long new clients wait, in milliseconds.
    fn waits(server: SocketAddr) -> io::Result<Vec<f64>> {
        let begun = Instant::now();
        let mut waits = Vec::new();
        while waits.len() < NEW && begun.elapsed() < PATIENCE {
            let start = Instant::now();
            let mut client = TcpStream::connect(server)?;
            client.set_read_timeout(Some(PATIENCE))?;
            match ask(&mut client) {
                Err(error) if !is_late(&error) => return Err(error),
                _answered_or_late => waits.push(millis(start.elapsed())),
            }
            drop(client);
            thread::sleep(PAUSE);
        }
        Ok(waits)
    }

    fn ask(client: &mut TcpStream) -> io::Result<()> {
        client.write_all(PING)?;
        client.read_exact(&mut [0; PONG.len()])
    }

    fn is_late(error: &io::Error) -> bool {
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
    }

    fn print(all: &[Vec<Round>]) {
        print!("| a new client's wait beside |");
        for floods in FLOODS {
            print!(" {floods}, ms | ratio |");
        }
        println!(" longest | 1000/s | stop, ms |");
        println!("|---|{}", "---:|".repeat(2 * FLOODS.len() + 3));
        for (name, rounds) in SERVERS.iter().zip(all) {
            print!("| {name} |");
            for column in 0..FLOODS.len() {
                let wait = of_rounds(rounds, |round| Some(round.medians[column]));
                let ratios = rounds.iter().zip(&all[0]);
                let ratios = ratios.map(|(it, tokio)| it.medians[column] / tokio.medians[column]);
                let ratio = median(&mut ratios.collect::<Vec<_>>());
                print!(" {} | {ratio:.2} |", shown(wait));
            }
            let longest = rounds.iter().map(|round| round.longest).fold(0.0, f64::max);
            let rate = of_rounds(rounds, |round| Some(round.rate));
            let stop = of_rounds(rounds, |round| round.stop);
            let [longest, rate, stop] = [Some(longest), rate, stop].map(shown);
            println!(" {longest} | {rate} | {stop} |");
        }
    }

    fn of_rounds(rounds: &[Round], of: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = rounds.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| median(&mut values))
    }

    fn shown(value: Option<f64>) -> String {
        value.map_or(String::new(), |value| match value {
            100.0.. => format!("{value:.0}"),
            10.0.. => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        })
    }

    /// The median; sorts the values.
    fn median(values: &mut [f64]) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    fn millis(duration: Duration) -> f64 {
        duration.as_secs_f64() * 1000.0
    }
}
