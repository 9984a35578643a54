//! How many instructions of its own a server executes per request, with limits.
//!
//! ```text
//! cargo bench -p benches --no-default-features --bench instructions
//! ```
//!
//! Time is no guard against a hot path that grows: a busy machine hides more than it costs.
//! Instructions do not depend on who else is there. callgrind counts them, those of the kernel left
//! out, once for a start and some requests and once for many more; the difference is what these
//! cost. There is no end to be counted: the process is killed at rest.
//!
//! What is counted is the thread that serves, which is the one that has executed the most. Others
//! wake up by the clock, for the watch over workers or the timers of a runtime, and so more often
//! on a machine that is slow. With workers, that thread does everything. On async-std it is the
//! runtime's one thread; the one that drives the reactor meanwhile is in nobody's count, and which
//! of them takes an event is a matter of luck: that count varies, by less than a hundredth.
//!
//! What a server finds when it looks depends on who ran first. So it is halted while it is asked,
//! and comes to rest before it is halted again. That costs it a wait that is interrupted each time.

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
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::path::PathBuf;
    use std::{env, fs, process};

    use benches::machine;
    use benches::process::ServerProcess;
    use benches::protocol::{PING, PONG};
    use benches::servers;

    /// A server, what is asked of it, and how many instructions that may take.
    struct Subject {
        server: &'static str,
        work: &'static str,
        /// They ask all at once, before the server comes to rest.
        clients: usize,
        /// Whether others take their place before the server is asked again.
        hang_up: bool,
        /// Whether they close when they have seen the server's end.
        until_the_end: bool,
        waves: usize,
        limit: u64,
    }

    /// With workers a limit is a hundredth above the most that was counted when it was set; where the
    /// server closes first one binary's count varies by as much. With another compiler or other
    /// dependencies count again before the change is blamed. On async-std a limit is a quarter above.
    /// Lower it when the path gets shorter.
    const SUBJECTS: &[Subject] = &[
        Subject::request("gracious workers(1)", 915),
        Subject::request("gracious workers(1), read", 782),
        Subject::connection("gracious workers(1)", 5_476),
        Subject::closed_first("gracious workers(1), once", 4_850),
        Subject::request("gracious async-std", 2_530),
        Subject::connection("gracious async-std", 12_660),
        Subject::closed_first("gracious async-std, once", 12_660),
    ];

    impl Subject {
        const fn request(server: &'static str, limit: u64) -> Self {
            Self {
                server,
                work: "request, 50 clients",
                clients: 50,
                hang_up: false,
                until_the_end: false,
                waves: 200,
                limit,
            }
        }

        /// One client's end and the next one's request are there at once.
        const fn connection(server: &'static str, limit: u64) -> Self {
            Self {
                server,
                work: "short connection",
                clients: 1,
                hang_up: true,
                until_the_end: false,
                waves: 800,
                limit,
            }
        }

        /// The server closes first, and the client when it has seen that.
        const fn closed_first(server: &'static str, limit: u64) -> Self {
            Self {
                work: "closed first",
                until_the_end: true,
                clients: 50,
                waves: 60,
                ..Self::connection(server, limit)
            }
        }

        fn count(&self) -> io::Result<u64> {
            // Long enough for that thread to have overtaken the one that starts the process.
            let warm_up = self.waves / 4;
            let start = self.instructions(warm_up)?;
            let all = self.instructions(warm_up + self.waves)?;
            let requests = (self.waves * self.clients) as u64;
            // Rounded: one start can take a turn of a loop more than another.
            Ok((all.saturating_sub(start) + requests / 2) / requests)
        }

        /// Those of a server from its start on, after so many waves of requests.
        fn instructions(&self, waves: usize) -> io::Result<u64> {
            let counts = Counts::new()?;
            let server = ServerProcess::start_under(&counts.tool(), servers::find(self.server)?)?;
            let mut clients = Vec::new();
            server.processor_time()?;
            for _ in 0..waves {
                server.pause()?;
                if self.hang_up {
                    clients.clear();
                }
                while clients.len() < self.clients {
                    clients.push(TcpStream::connect(server.address())?);
                }
                for client in &mut clients {
                    client.write_all(PING)?;
                }
                server.resume()?;
                for client in &mut clients {
                    client.read_exact(&mut [0; PONG.len()])?;
                }
                if self.until_the_end {
                    for mut client in clients.drain(..) {
                        client.read_exact(&mut [0]).err().ok_or_else(goes_on)?;
                    }
                }
                server.processor_time()?;
            }
            server.terminate()?;
            counts.of_busiest_thread()
        }
    }

    fn goes_on() -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the server says more than it should",
        )
    }

    /// What callgrind writes: a file for each thread.
    struct Counts {
        directory: PathBuf,
    }

    impl Counts {
        fn new() -> io::Result<Self> {
            let name = format!("instructions.{}", process::id());
            let directory = env::temp_dir().join(name);
            fs::create_dir(&directory)?;
            Ok(Self { directory })
        }

        fn tool(&self) -> [String; 5] {
            [
                "valgrind".to_owned(),
                "--tool=callgrind".to_owned(),
                "--quiet".to_owned(),
                "--separate-threads=yes".to_owned(),
                format!("--callgrind-out-file={}/thread", self.directory.display()),
            ]
        }

        fn of_busiest_thread(&self) -> io::Result<u64> {
            let mut most = None;
            for file in fs::read_dir(&self.directory)? {
                let text = fs::read_to_string(file?.path())?;
                most = most.max(total(&text));
            }
            most.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "callgrind has written no totals",
                )
            })
        }
    }

    impl Drop for Counts {
        fn drop(&mut self) {
            // What cannot be removed is a few files in the directory for such.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    fn total(counts: &str) -> Option<u64> {
        let total = counts
            .lines()
            .find_map(|line| line.strip_prefix("totals: "));
        total?.trim().parse().ok()
    }

    pub(super) fn run() -> io::Result<bool> {
        if servers::serve_if_asked()? {
            return Ok(true);
        }
        // With one core, a runtime takes one thread.
        if !machine::is_pinned() {
            return Err(machine::start_again_pinned());
        }
        let mut all_within = true;
        for subject in SUBJECTS {
            let count = subject.count()?;
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
