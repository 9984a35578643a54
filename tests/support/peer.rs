//! Peers of a server under test, what a server's account must show, and tests that need a process
//! of their own.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_channel::Receiver;
use gracious::{Address, Builder, Cause, Handle, Report, ServerEvent};

use super::client::{Client, HOUR, assert_balance};
use super::program::start_test;
use super::{Body, Engine, TestRuntime};

/// An address of its own for each server, where the system has more than one: no other process can
/// bind its port after it, so what is refused there is refused by this server alone.
pub fn loopback() -> String {
    if cfg!(not(target_os = "linux")) {
        return "127.0.0.1:0".into();
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let unique = (std::process::id() << 8) | (NEXT.fetch_add(1, SeqCst) & 0xff);
    let address = 0x7f40_0000 | (unique & 0x003f_ffff);
    format!("{}:0", Ipv4Addr::from(address))
}

/// A server on an address of its own, to be configured. Its drain takes as long as it takes, so
/// what a test waits for is not the deadline.
pub fn at_home(runtime: &TestRuntime) -> Builder<TestRuntime> {
    crate::support::server(runtime.clone())
        .listen(loopback())
        .deadline(HOUR)
}

/// The report of a server that is closed: it balances, and nothing is left.
#[track_caller]
pub fn settled(report: io::Result<Report>) -> Report {
    let report = report.unwrap();
    assert_balance(&report);
    assert_eq!((report.active, report.tracked), (0, 0), "{report}");
    report
}

/// Asks for all that takes a lock of the server's: from where code of the user's is called.
#[track_caller]
pub fn ask_for_everything(handle: &Handle) {
    let (listeners, connections) = (handle.listeners(), handle.connections());
    assert!(listeners.len() <= handle.local_addrs().len());
    assert!(connections.len() as u64 <= handle.stats().accepted);
    drop((handle.events(), handle.to_string()));
}

/// Why the connection `id` ended, from a receiver of events.
pub async fn cause_of(id: u64, events: &Receiver<ServerEvent>) -> Cause {
    loop {
        match events.recv().await.unwrap() {
            ServerEvent::Closed { id: it, cause, .. } if it == id => return cause,
            _ => {}
        }
    }
}

/// Waits until the connection `id` is accepted.
pub async fn opened(id: u64, events: &Receiver<ServerEvent>) {
    loop {
        match events.recv().await.unwrap() {
            ServerEvent::Opened { id: it, .. } if it == id => return,
            _ => {}
        }
    }
}

/// Counts that it was dropped.
#[derive(Debug)]
pub struct Counted(pub Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Calls its function when it is dropped.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The server ended this conversation, cleanly or not.
#[track_caller]
pub fn is_cut(client: &mut Client) {
    match io::copy(client, &mut io::sink()) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} instead of an end"),
    }
}

/// There is neither something to read nor an end.
#[track_caller]
pub fn hears_nothing(client: &mut Client) {
    let set_nonblocking = |client: &Client, on| match client {
        Client::Tcp(socket) => socket.set_nonblocking(on).unwrap(),
        Client::Unix(socket) => socket.set_nonblocking(on).unwrap(),
    };
    set_nonblocking(client, true);
    let read = client.read(&mut [0]);
    set_nonblocking(client, false);
    match read {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("{other:?} instead of silence"),
    }
}

// Tests in a process of their own: the test binary starts itself again, for one test, and what is
// the child then runs the other half of it.

/// Names the test that a process was started for.
const CHILD: &str = "GRACIOUS_TEST_CHILD";

/// What a test in a process of its own may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// The process of a test, seen from its parent.
pub struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Process {
    fn start(name: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(Self::args(name));
        Self::run(command, name)
    }

    /// What the test binary runs one test by.
    pub fn args(name: &str) -> [&str; 4] {
        [name, "--exact", "--nocapture", "--test-threads=1"]
    }

    /// Runs a command, which is to become the test binary with its [`args`](Self::args).
    pub fn run(mut command: Command, name: &str) -> Self {
        command
            .env(CHILD, name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = start_test(&mut command);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut errors = child.stderr.take().unwrap();
        let (line, lines) = mpsc::channel();
        thread::spawn(move || {
            for said in stdout.lines().map_while(Result::ok) {
                if let Some((_, said)) = said.split_once('@') {
                    let _gone = line.send(said.to_owned());
                }
            }
        });
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _cut_short = errors.read_to_string(&mut text);
            text
        });
        Self {
            child,
            lines,
            stderr: Some(stderr),
        }
    }

    /// What the child tells under this word; what it tells before is passed over.
    #[track_caller]
    pub fn hear(&mut self, word: &str) -> String {
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => {
                    let (told, text) = line.split_once(' ').unwrap_or((&line, ""));
                    if told == word {
                        return text.to_owned();
                    }
                }
                Err(_) => {
                    let _ended = self.child.kill();
                    panic!("the child did not say {word:?}: {}", self.stderr());
                }
            }
        }
    }

    /// The address that the child serves on.
    #[track_caller]
    pub fn address(&mut self) -> Address {
        self.hear("address").parse().unwrap()
    }

    /// Tells the child something, which it gets from [`orders`].
    #[track_caller]
    pub fn tell(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends the child as nothing can prepare for.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of the child.
    pub fn ends(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        (status, self.stderr())
    }

    #[track_caller]
    pub fn ends_with(self, code: i32) {
        let (status, stderr) = self.ends();
        assert_eq!(status.code(), Some(code), "{status}: {stderr}");
    }

    #[track_caller]
    pub fn dies_of(self, signal: i32) {
        let (status, stderr) = self.ends();
        assert_eq!(status.signal(), Some(signal), "{status}: {stderr}");
    }

    fn stderr(&mut self) -> String {
        self.stderr
            .take()
            .map_or_else(String::new, |stderr| stderr.join().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, but for a failed test.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A parent with nothing to do but to see that the child's half of the test does not fail.
#[track_caller]
pub fn passes(process: Process) {
    process.ends_with(0);
}

/// The child tells its parent something.
pub fn tell(word: &str, text: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    writeln!(out, "@{word} {text}").unwrap();
    out.flush().unwrap();
}

/// What the parent tells the child.
pub fn orders() -> Receiver<String> {
    let (order, orders) = async_channel::unbounded();
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            let _nobody = order.try_send(line);
        }
    });
    orders
}

/// Runs one half of a test, the child's on an engine.
pub fn run_in_a_process(
    engine: Engine,
    test: &'static str,
    child: &'static dyn Body<TestRuntime>,
    parent: &'static (dyn Fn(Process) + Sync),
) {
    in_a_process(test, move || super::drive(engine, child), parent);
}

/// Runs one half of a test: the child's in the process that was started for it, else the parent's.
pub fn in_a_process(
    test: &'static str,
    child: impl FnOnce() + Send + 'static,
    parent: &'static (dyn Fn(Process) + Sync),
) {
    half_of(test, child, |name| parent(Process::start(name)));
}

/// As [`in_a_process`], with a parent that starts the processes itself, by the test's name.
pub fn half_of(
    test: &'static str,
    child: impl FnOnce() + Send + 'static,
    parent: impl FnOnce(&'static str) + Send + 'static,
) {
    let (_crate, name) = test.split_once("::").unwrap();
    if std::env::var(CHILD).is_ok_and(|it| it == name) {
        // Taken before the tests' own logger is.
        log::set_logger(&LOG).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        super::within(DEADLINE, child);
    } else {
        super::within(DEADLINE, move || parent(name));
    }
}

/// The lines that a child's server has logged, with their levels: `WARN cannot accept`.
pub fn logged() -> Vec<String> {
    LOG.0.lock().unwrap().clone()
}

/// Has a child's logger call this for whatever its server logs, on every level.
pub fn on_log(call: impl Fn() + Send + Sync + 'static) {
    assert!(ON_LOG.set(Box::new(call)).is_ok());
    log::set_max_level(log::LevelFilter::Trace);
}

static LOG: Log = Log(Mutex::new(Vec::new()));

static ON_LOG: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

struct Log(Mutex<Vec<String>>);

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "gracious" && metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target() == "gracious" {
            ON_LOG.get().into_iter().for_each(|call| call());
        }
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            self.0.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

/// How many descriptors this process has open.
#[cfg(target_os = "linux")]
pub fn open_descriptors() -> usize {
    // One of them reads the directory.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// How many threads this process has.
#[cfg(target_os = "linux")]
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// How much memory this process has in use, in bytes.
#[cfg(target_os = "linux")]
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// The CPU time that this process has used.
#[cfg(target_os = "linux")]
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Forks. The new process has this thread alone, runs `child` and exits.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn fork(child: impl Fn()) -> i32 {
    // SAFETY: the new process runs `child` alone, which a test has chosen for that, and ends without
    // what is run at an orderly exit.
    unsafe {
        match libc::fork() {
            0 => {
                // One that a failed test leaves behind ends, too.
                libc::alarm(60);
                child();
                libc::_exit(0)
            }
            pid => pid,
        }
    }
}

/// How a forked process ended, as `wait` tells it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn status_of(forked: i32) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is valid for writes.
    let waited = unsafe { libc::waitpid(forked, &mut status, 0) };
    assert_eq!(waited, forked);
    status
}
