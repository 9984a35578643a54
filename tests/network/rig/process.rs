//! Servers seen from outside.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::link::Link;
use super::server::{Account, Config, SERVE, User};

/// A server in a process of its own at the server's end of a link. It is killed when this is
/// dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// While it is open, the server serves.
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    stopped: Option<Instant>,
}

impl Process {
    /// Starts a server and waits until it listens.
    #[track_caller]
    pub fn start(link: &Link, kind: &str, user: User, config: &Config) -> Self {
        let mut process = Self::launch(link, kind, user, config);
        process.hear("address");
        process
    }

    /// Starts a server, which may not listen yet.
    #[track_caller]
    pub fn launch(link: &Link, kind: &str, user: User, config: &Config) -> Self {
        // This very file, also where another user may not enter the directories it lies in.
        let mut command = Command::new("/proc/self/exe");
        command
            // The test that serves; other programs look at the variable alone.
            .args(["serves", "--exact", "--nocapture", "--test-threads=1"])
            .env(SERVE, format!("{kind}: {config}"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if user == User::Nobody {
            // The standard library gives up the supplementary groups, too.
            command.uid(65534).gid(65534);
        }
        let mut child = link.server.run(|| command.spawn()).unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut errors = child.stderr.take().unwrap();
        let (line, lines) = mpsc::channel();
        thread::spawn(move || {
            for said in output.lines().map_while(Result::ok) {
                // The test harness may have left its own line unfinished.
                if let Some((_, said)) = said.split_once('@') {
                    let _gone = line.send(said.to_owned());
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _cut_short = errors.read_to_string(&mut text);
            text
        });
        Self {
            input: child.stdin.take(),
            child,
            lines,
            errors: Some(errors),
            stopped: None,
        }
    }

    /// Waits until it listens.
    #[track_caller]
    pub fn listens(&mut self) {
        self.hear("address");
    }

    /// Asks it to stop.
    pub fn stop(&mut self) {
        self.stopped.get_or_insert_with(Instant::now);
        self.input = None;
    }

    /// Waits for its end, and says how long that took since it was asked to stop.
    #[track_caller]
    pub fn end(mut self) -> (Account, Duration) {
        self.stop();
        let account = self.hear("account").parse().unwrap();
        let took = self.stopped.unwrap().elapsed();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.errors());
        (account, took)
    }

    #[track_caller]
    fn hear(&mut self, word: &str) -> String {
        let start = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let (told, text) = line.split_once(' ').unwrap_or((&line, ""));
                    if told == word {
                        return text.to_owned();
                    }
                }
                Err(_) => {
                    let _ended = self.child.kill();
                    panic!("the server did not say {word:?}: {}", self.errors());
                }
            }
        }
    }

    fn errors(&mut self) -> String {
        let errors = self.errors.take();
        errors.map_or_else(String::new, |errors| errors.join().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, but for a failed test.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Longer than any deadline that is given to a server here.
const PATIENCE: Duration = Duration::from_secs(150);
