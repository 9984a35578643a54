//! Programs as child processes: what they say, line by line, and how they end. Every wait has a
//! deadline that fails, and a program that a failed test leaves behind is killed.
#![allow(dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;

/// Generous: on a busy machine nothing here takes a third of it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where Cargo builds an example of this package, which it does beside the tests.
pub fn path(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    profile.join("examples").join(example)
}

pub struct Program {
    name: String,
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status; that of a program killed by a signal is 128 and the signal's number.
    pub status: i32,
    /// The lines of standard output that were not read before.
    pub out: Vec<String>,
    /// Standard error.
    pub err: String,
}

impl Program {
    /// Starts one of this package's examples.
    #[track_caller]
    pub fn example(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(Self::example_path(name));
        command.args(args);
        Self::start(command)
    }

    #[track_caller]
    pub fn example_path(name: &str) -> PathBuf {
        let path = path(name);
        assert!(
            path.exists(),
            "no {}: `cargo test` builds the examples, `cargo test --test NAME` does not",
            path.display()
        );
        path
    }

    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let name = format!("{command:?}");
        command
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child =
            starting(|| command.spawn()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let out = lines(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let (say, err) = mpsc::channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            let _cut_short = stderr.read_to_end(&mut text);
            say.send(String::from_utf8_lossy(&text).into_owned())
        });
        Self {
            name,
            child,
            out,
            err,
        }
    }

    /// The next line of standard output.
    #[track_caller]
    pub fn line(&self) -> String {
        self.next()
            .unwrap_or_else(|| panic!("{} ended its output", self.name))
    }

    #[track_caller]
    fn next(&self) -> Option<String> {
        match self.out.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("{} said nothing for {PATIENCE:?}", self.name),
        }
    }

    /// The addresses that follow `on` in a line such as `listening on ADDRESS, ADDRESS`.
    #[track_caller]
    pub fn addresses(&self) -> Vec<String> {
        let line = self.line();
        let (_state, addresses) = line.split_once(" on ").unwrap();
        addresses.split(", ").map(str::to_owned).collect()
    }

    /// Writes to its standard input.
    #[track_caller]
    pub fn say(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// As `kill -NAME` in a shell, which has it built in.
    #[track_caller]
    pub fn kill(&self, name: &str) {
        let line = format!("kill -{name} {}", self.child.id());
        let mut shell = starting(|| Command::new("sh").args(["-c", &line]).spawn()).unwrap();
        assert!(shell.wait().unwrap().success());
    }

    /// Whether it has ended.
    #[track_caller]
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end, and for the end of its output: also in processes that have inherited
    /// that.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        self.close_stdin();
        self.end_by_itself()
    }

    /// As `end`, of a program whose input goes on.
    #[track_caller]
    pub fn end_by_itself(mut self) -> Ended {
        let mut out = Vec::new();
        while let Some(line) = self.next() {
            out.push(line);
        }
        let err = self
            .err
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let status = eventually(&self.name, || self.child.try_wait().unwrap());
        let status = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap());
        Ended { status, out, err }
    }
}

impl Ended {
    /// It said so much, nothing on standard error, and this is its exit status.
    #[track_caller]
    pub fn assert(&self, status: i32) -> &Self {
        assert_eq!((self.status, self.err.as_str()), (status, ""), "{self:?}");
        self
    }

    /// The last line of its output.
    #[track_caller]
    pub fn last(&self) -> &str {
        self.out
            .last()
            .unwrap_or_else(|| panic!("no output: {self:?}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to kill.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Waits for what sends no event.
#[track_caller]
pub fn eventually<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "never came to pass: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Held while a child is started. Until it has become its program it has a copy of every socket of
/// this process: what is closed here meanwhile is still bound, and peers can connect to it.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a child.
pub fn starting<T>(start: impl FnOnce() -> T) -> T {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    start()
}

/// Starts a test as a child, with its output in a pipe, and waits until it says that it runs: a child
/// that has been started closes its copies only a moment later.
pub fn start_test(command: &mut Command) -> Child {
    starting(|| {
        let child = command.spawn().unwrap();
        let out = child.stdout.as_ref().unwrap();
        let mut said = [PollFd::new(out, PollFlags::IN)];
        retry_on_intr(|| poll(&mut said, None)).unwrap();
        child
    })
}

/// Waits until no child has a copy of what this process has closed.
pub fn no_copy_is_left() {
    starting(|| ());
}

fn lines(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (say, said) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if say.send(line).is_err() {
                return;
            }
        }
    });
    said
}
