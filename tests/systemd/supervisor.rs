//! systemd, as far as a service knows it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::support::client::{PATIENCE, unix_path};
use crate::support::peer::Process;

/// systemd, as far as a service knows it.
pub(crate) struct Systemd {
    socket: UnixDatagram,
    name: String,
    pub(crate) path: Option<PathBuf>,
}

impl Systemd {
    pub(crate) fn at_a_path() -> Self {
        let path = unix_path();
        let socket = UnixDatagram::bind(&path).unwrap();
        let name = path.to_str().unwrap().to_owned();
        Self::new(socket, name, Some(path))
    }

    pub(crate) fn at_an_abstract_name() -> Self {
        let name = unix_path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Self::new(socket, format!("@{name}"), None)
    }

    fn new(socket: UnixDatagram, name: String, path: Option<PathBuf>) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, name, path }
    }

    /// Starts a process of the service.
    pub(crate) fn start(
        &self,
        test: &str,
        environment: &[(&str, &str)],
        passed: Vec<OwnedFd>,
    ) -> Process {
        let mut command = process(test, environment, passed);
        command.env("NOTIFY_SOCKET", &self.name);
        Process::run(command, test)
    }

    /// The next message, with the descriptor that came along.
    #[track_caller]
    pub(crate) fn message(&self) -> (String, Option<OwnedFd>) {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = recvmsg(&self.socket, &mut parts, &mut ancillary, flags)
            .expect("a message")
            .bytes;
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let fd = fds.last();
        (String::from_utf8(text[..length].to_vec()).unwrap(), fd)
    }

    /// The next message with a line that begins like this; others are passed over.
    #[track_caller]
    pub(crate) fn hears(&self, line: &str) -> String {
        loop {
            let (message, _fd) = self.message();
            if message.lines().any(|it| it.starts_with(line)) {
                return message;
            }
        }
    }

    /// Waits until no sign of life has come for as long as the watchdog has patience.
    #[track_caller]
    pub(crate) fn misses_the_watchdog_for(&self, interval: Duration) {
        let start = Instant::now();
        let mut last = start;
        self.socket.set_read_timeout(Some(interval / 4)).unwrap();
        while last.elapsed() < interval {
            let mut text = [0; 4096];
            if let Ok(length) = self.socket.recv(&mut text) {
                if text[..length].starts_with(b"WATCHDOG") {
                    last = Instant::now();
                }
            }
            assert!(start.elapsed() < PATIENCE, "it is said to live");
        }
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// The next message that begins like this, and none with this line before it.
    #[track_caller]
    pub(crate) fn hears_without(&self, begins: &str, line: &str) {
        loop {
            let (message, _fd) = self.message();
            assert!(!message.lines().any(|it| it == line), "{message}");
            if message.starts_with(begins) {
                return;
            }
        }
    }

    /// Whether nothing has come so far.
    pub(crate) fn has_heard_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let received = self.socket.recv(&mut [0; 4096]);
        self.socket.set_nonblocking(false).unwrap();
        received.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.path
            .iter()
            .for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// The test binary as systemd starts a service: with descriptors from 3 on, and variables that have its
/// process id.
#[allow(unsafe_code)]
pub(crate) fn process(test: &str, environment: &[(&str, &str)], passed: Vec<OwnedFd>) -> Command {
    let mut command = Command::new("sh");
    let script = r#"
        [ "$LISTEN_PID" = own ] && export LISTEN_PID=$$
        [ "$WATCHDOG_PID" = own ] && export WATCHDOG_PID=$$
        [ "$SYSTEMD_EXEC_PID" = own ] && export SYSTEMD_EXEC_PID=$$
        exec "$0" "$@""#;
    command.args(["-c", script]);
    command
        .arg(std::env::current_exe().unwrap())
        .args(Process::args(test));
    for name in [
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "SYSTEMD_EXEC_PID",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(name);
    }
    if !passed.is_empty() {
        command
            .env("LISTEN_PID", "own")
            .env("LISTEN_FDS", passed.len().to_string());
    }
    command.envs(environment.iter().copied());
    let pass = move || {
        // Out of the way first: one may have the number that another is to get.
        let high: Vec<RawFd> = passed
            .iter()
            // SAFETY: the descriptor is open, and the copy is this process's alone.
            .map(|fd| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100) })
            .collect();
        for (fd, number) in high.into_iter().zip(3..) {
            // SAFETY: this process becomes another program, which has no other use for the number.
            unsafe { libc::dup2(fd, number) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls, and one allocation, of which glibc's `fork`
    // takes care.
    unsafe { command.pre_exec(pass) };
    command
}
