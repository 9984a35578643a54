//! How many instructions of its own a server executes per request, with limits.
//!
//! ```text
//! cargo bench -p benches --no-default-features --bench instructions
//! ```
//!
//! Time is no guard against a hot path that grows: a busy machine hides more than it costs.
//! Instructions hardly depend on who else is there. callgrind counts them, those of the kernel left
//! out, once for some requests and once for twice as many; the difference is what requests cost,
//! without the start and the end of the process.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match counts::run() {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
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
mod counts {
    use std::{env, fs, io, process};

    use benches::load::{Load, Shape};
    use benches::machine;
    use benches::process::ServerProcess;
    use benches::servers;

    /// A server, what is asked of it, and how many instructions that may take.
    struct Subject {
        server: &'static str,
        work: &'static str,
        shape: Shape,
        /// How many requests are made at a time, before the server comes to rest.
        wave: u64,
        waves: u64,
        limit: u64,
    }

    /// A limit is a quarter above what was counted when it was set: compilers and dependencies
    /// differ, and a hot path that grows is noticed. Lower it when the path gets shorter.
    const SUBJECTS: &[Subject] = &[
        Subject::request("gracious workers(1)", 1_240),
        Subject::request("gracious workers(1), read", 1_050),
        Subject::connection("gracious workers(1)", 7_500),
        Subject::request("gracious async-std", 2_530),
        Subject::connection("gracious async-std", 11_300),
    ];

    /// What more than one thread has a part in depends a little on how they meet, which others on the
    /// machine have a part in: what is too much every time is too much.
    const TRIES: usize = 3;

    impl Subject {
        const fn request(server: &'static str, limit: u64) -> Self {
            Self {
                server,
                work: "request, 50 clients",
                shape: Shape::clients(50),
                wave: 50,
                waves: 100,
                limit,
            }
        }

        const fn connection(server: &'static str, limit: u64) -> Self {
            Self {
                server,
                work: "short connection",
                shape: Shape::clients(1).hanging_up(),
                wave: 1,
                waves: 200,
                limit,
            }
        }

        fn count(&self) -> io::Result<u64> {
            let once = self.instructions(self.waves)?;
            let twice = self.instructions(2 * self.waves)?;
            Ok(twice.saturating_sub(once) / (self.waves * self.wave))
        }

        /// Those of the whole life of a server that is asked so many waves of requests.
        fn instructions(&self, waves: u64) -> io::Result<u64> {
            let counts = env::temp_dir().join(format!("instructions.{}", process::id()));
            let tool = [
                "valgrind".to_owned(),
                "--tool=callgrind".to_owned(),
                "--quiet".to_owned(),
                format!("--callgrind-out-file={}", counts.display()),
            ];
            let mut process = ServerProcess::start_under(&tool, servers::find(self.server)?)?;
            let mut load = Load::open(process.address(), self.shape)?;
            for _ in 0..waves {
                load.run(self.wave)?;
                process.processor_time()?;
            }
            drop(load);
            process.stop();
            process.wait()?;
            let text = fs::read_to_string(&counts)?;
            fs::remove_file(&counts)?;
            let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
            total
                .and_then(|total| total.trim().parse().ok())
                .ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        "callgrind has written no totals",
                    )
                })
        }
    }

    pub(super) fn run() -> io::Result<bool> {
        if servers::serve_if_asked()? {
            return Ok(true);
        }
        // On one core, the server runs when all clients have asked, and not whenever one has.
        if !machine::is_pinned() {
            return Err(machine::start_again_pinned());
        }
        let mut all_within = true;
        for subject in SUBJECTS {
            let mut count = subject.count()?;
            for _ in 1..TRIES {
                if count > subject.limit {
                    count = count.min(subject.count()?);
                }
            }
            let within = count <= subject.limit;
            all_within &= within;
            println!(
                "{:<25} {:<19} {count:>6} instructions, limit {:>6}{}",
                subject.server,
                subject.work,
                subject.limit,
                if within { "" } else { ": too many" },
            );
        }
        Ok(all_within)
    }
}
