//! What systemd does with a service, and is told by it: each test's parent is systemd, with a
//! NOTIFY_SOCKET of its own and sockets that it passes, and its children are processes of the service.
//!
//! The ignored ones need Debian's package `systemd`, for its real tools.

#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use futures_lite::future;
use gracious::{Address, Smol};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::support::client::{Client, PATIENCE, echo, refuses, unix_path};
use crate::support::peer::{Process, half_of, logged, orders, tell};
use crate::support::program::{Program, eventually};
use crate::support::{Body, Engine, TestRuntime};

tests_on_every_engine!(
    crate::as_a_service;
    on_async_std on_smol on_workers on_shards on_an_executor_of_ones_own;
    a_service_is_ready_when_it_accepts_and_counts_its_drain_down: is_one_service, hears_its_life;
    the_watchdog_hears_of_a_service_that_lives: is_one_service, is_its_watchdog;
    a_service_of_two_servers_is_ready_when_both_are: is_two_servers, hears_of_both;
    sockets_that_are_passed_are_served_by_their_names: takes_what_is_passed, passes_two;
    a_restart_loses_nobody_where_the_listeners_are_stored: has_its_listeners_stored, restarts_it;
    listeners_that_are_not_stored_are_swept_and_closed: has_its_listeners_stored, stores_nothing
);

/// Runs one half of a test: the parent is given the test's name, to start processes for.
fn as_a_service(
    engine: Engine,
    test: &'static str,
    child: &'static dyn Body<TestRuntime>,
    parent: &'static (dyn Fn(&'static str) + Sync),
) {
    half_of(test, move || support::drive(engine, child), parent);
}

/// systemd, as far as a service knows it.
struct Systemd {
    socket: UnixDatagram,
    name: String,
    path: Option<PathBuf>,
}

impl Systemd {
    fn at_a_path() -> Self {
        let path = unix_path();
        let socket = UnixDatagram::bind(&path).unwrap();
        let name = path.to_str().unwrap().to_owned();
        Self::new(socket, name, Some(path))
    }

    fn at_an_abstract_name() -> Self {
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
    fn start(&self, test: &str, environment: &[(&str, &str)], passed: Vec<OwnedFd>) -> Process {
        let mut command = process(test, environment, passed);
        command.env("NOTIFY_SOCKET", &self.name);
        Process::run(command, test)
    }

    /// The next message, with the descriptor that came along.
    #[track_caller]
    fn message(&self) -> (String, Option<OwnedFd>) {
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
    fn hears(&self, line: &str) -> String {
        loop {
            let (message, _fd) = self.message();
            if message.lines().any(|it| it.starts_with(line)) {
                return message;
            }
        }
    }

    /// Whether nothing has come so far.
    fn has_heard_nothing(&self) -> bool {
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
fn process(test: &str, environment: &[(&str, &str)], passed: Vec<OwnedFd>) -> Command {
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

/// Serves, bound and served when it is told to; the end of its input stops it.
async fn serves(builder: gracious::Builder<TestRuntime>) {
    let server = builder
        .deadline(Duration::from_secs(60))
        .bind()
        .await
        .unwrap();
    let orders = orders();
    for address in server.local_addrs() {
        tell("address", address);
    }
    tell("bound", "");
    while orders.recv().await.unwrap() != "serve" {}
    let running = server.spawn(echo);
    let handle = running.handle();
    let obeys = async {
        while let Ok(order) = orders.recv().await {
            match order.as_str() {
                "reload" => drop(handle.reloading()),
                "pause" => {
                    handle.pause();
                    tell("paused", "");
                }
                "stop" => handle.shutdown(),
                other => panic!("{other}"),
            }
        }
        future::pending().await
    };
    let report = future::or(running, obeys).await.unwrap();
    for line in logged().iter().filter(|line| line.starts_with("WARN")) {
        tell("warned", line);
    }
    tell("report", report);
    tell("logged", "");
}

async fn is_one_service(runtime: TestRuntime) {
    serves(support::server(runtime).listen("127.0.0.1:0").notify()).await;
}

fn hears_its_life(test: &'static str) {
    for systemd in [Systemd::at_a_path(), Systemd::at_an_abstract_name()] {
        let mut service = systemd.start(test, &[("WATCHDOG_USEC", "60000000")], Vec::new());
        let address = service.address();
        service.hear("bound");
        assert!(systemd.has_heard_nothing(), "ready before it accepts");
        service.tell("serve");
        let ready = systemd.hears("READY=1");
        assert!(
            ready.contains(&format!("STATUS=serving on {address}")),
            "{ready}"
        );
        service.tell("reload");
        let reloading = systemd.hears("RELOADING=1");
        assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
        assert_eq!(systemd.hears("READY=1"), "READY=1");
        let mut client = Client::connect(&address).unwrap();
        assert_eq!(client.ask("hello"), "hello");
        // Half a request keeps the connection busy.
        client.send("he");
        service.tell("stop");
        systemd.hears("STOPPING=1");
        let mut last = f64::INFINITY;
        // A second apart.
        for _ in 0..if systemd.path.is_some() { 2 } else { 1 } {
            let told = systemd.hears("STATUS=draining: 1 left, ");
            let (_, rest) = told.split_once("left, ").unwrap();
            let seconds: f64 = rest.split(' ').next().unwrap().parse().unwrap();
            assert!(seconds < last && seconds > 50.0, "{told}");
            last = seconds;
            assert!(told.ends_with("\nEXTEND_TIMEOUT_USEC=10000000"), "{told}");
        }
        assert_eq!(client.ask("llo"), "hello");
        assert_eq!(client.rest(), "");
        service.ends_with(0);
    }
}

fn is_its_watchdog(test: &'static str) {
    let systemd = Systemd::at_a_path();
    let environment = [("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "own")];
    let mut service = systemd.start(test, &environment, Vec::new());
    service.hear("bound");
    service.tell("serve");
    for _ in 0..5 {
        assert_eq!(systemd.hears("WATCHDOG=1"), "WATCHDOG=1");
    }
    service.tell("stop");
    service.ends_with(0);

    // What is meant for another process is nobody else's.
    let environment = [("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")];
    let mut service = systemd.start(test, &environment, Vec::new());
    service.hear("bound");
    service.tell("serve");
    while !systemd.message().0.starts_with("READY=1") {}
    service.tell("stop");
    service.ends_with(0);
    while !systemd.has_heard_nothing() {
        assert!(!systemd.message().0.contains("WATCHDOG"));
    }
}

async fn is_two_servers(runtime: TestRuntime) {
    let bind = || {
        let server = support::server(runtime.clone()).listen("127.0.0.1:0");
        server.notify().bind()
    };
    // Those that are bound are waited for, but for one that is dropped.
    let one = bind().await.unwrap();
    let other = bind().await.unwrap();
    drop(bind().await.unwrap());
    let one = one.spawn(echo);
    tell("bound", "");
    let orders = orders();
    orders.recv().await.unwrap();
    let other = other.spawn(echo);
    orders.recv().await.unwrap();
    let _report = one.shutdown().await.unwrap();
    tell("stopped", "one");
    orders.recv().await.unwrap();
    let _report = other.shutdown().await.unwrap();
}

fn hears_of_both(test: &'static str) {
    let systemd = Systemd::at_a_path();
    let mut service = systemd.start(test, &[], Vec::new());
    service.hear("bound");
    assert!(systemd.has_heard_nothing());
    service.tell("serve");
    systemd.hears("READY=1");
    service.tell("stop one");
    service.hear("stopped");
    while !systemd.has_heard_nothing() {
        // What there was is a status at most: the service does not stop.
    }
    service.tell("stop the other");
    systemd.hears("STOPPING=1");
    service.ends_with(0);
}

async fn takes_what_is_passed(runtime: TestRuntime) {
    let builder = support::server(runtime).listen_systemd_named("admin");
    serves(builder.listen_systemd()).await;
}

fn passes_two(test: &'static str) {
    let systemd = Systemd::at_a_path();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = unix_path();
    let unix = UnixListener::bind(&path).unwrap();
    let addresses = [
        Address::Unix(path.clone()),
        Address::Tcp(tcp.local_addr().unwrap()),
    ];
    let passed = || {
        vec![
            tcp.try_clone().unwrap().into(),
            unix.try_clone().unwrap().into(),
        ]
    };
    for _restart in 0..2 {
        let names = [("LISTEN_FDNAMES", "web:admin")];
        let mut service = systemd.start(test, &names, passed());
        // Taken by name first, and then the rest.
        assert_eq!([service.address(), service.address()], addresses);
        service.tell("serve");
        for address in &addresses {
            assert_eq!(Client::connect(address).unwrap().ask("hello"), "hello");
        }
        service.tell("stop");
        service.ends_with(0);
        // systemd listens on.
        assert!(addresses.iter().all(|address| !refuses(address)));
    }
    std::fs::remove_file(path).unwrap();
}

async fn has_its_listeners_stored(runtime: TestRuntime) {
    let mut builder = support::server(runtime).store_listeners();
    for address in std::env::var("ADDRESSES").unwrap().split(' ') {
        builder = builder.listen(address);
    }
    serves(builder).await;
}

/// A TCP port that nobody listens on, and a path.
fn addresses() -> [Address; 2] {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    [
        Address::Tcp(free.local_addr().unwrap()),
        Address::Unix(unix_path()),
    ]
}

fn restarts_it(test: &'static str) {
    let systemd = Systemd::at_a_path();
    let addresses = addresses();
    let said = addresses.each_ref().map(ToString::to_string).join(" ");
    let mut environment = vec![("FDSTORE", "8"), ("ADDRESSES", said.as_str())];
    let mut service = systemd.start(test, &environment, Vec::new());
    service.hear("bound");
    service.tell("serve");
    // By what a socket is, and not by its descriptor.
    let mut stored = BTreeMap::new();
    loop {
        let (message, fd) = systemd.message();
        match fd {
            Some(fd) => {
                let name = message.strip_prefix("FDSTORE=1\nFDNAME=").unwrap();
                let name = name.strip_suffix("\nFDPOLL=0").unwrap().to_owned();
                let inode = rustix::fs::fstat(&fd).unwrap().st_ino;
                assert!(stored.insert(inode, (name, fd)).is_none());
            }
            None if message.starts_with("READY=1") => break,
            None => panic!("{message}"),
        }
    }
    assert!(stored.len() >= 2, "{stored:?}");
    let mut busy = Client::connect(&addresses[0]).unwrap();
    busy.send("he");
    let mut waiting = Vec::new();
    for round in 0..3 {
        // A stop with a connection that takes its time; others come all the while.
        assert_eq!(busy.ask("llo"), "hello");
        busy.send("he");
        service.tell("pause");
        service.hear("paused");
        let come = |count| {
            addresses.iter().cycle().take(count).map(|address| {
                let mut client = Client::connect(address).unwrap();
                client.send("hello\n");
                client
            })
        };
        // In the queue when the door would be shut, and after it.
        waiting.extend(come(4));
        service.tell("stop");
        systemd.hears("STOPPING=1");
        systemd.hears("STATUS=draining: 1 left");
        waiting.extend(come(20));
        assert_eq!(busy.ask("llo"), "hello");
        let report = service.hear("report");
        let accepted = format!(": {} accepted", if round == 0 { 1 } else { 25 });
        assert!(report.contains(&accepted), "{report}");
        service.ends_with(0);

        let mut passed: Vec<_> = stored
            .values()
            .map(|(_, fd)| fd.try_clone().unwrap())
            .collect();
        let mut names: Vec<_> = stored.values().map(|(name, _)| name.clone()).collect();
        // One that the service does not listen on any more.
        passed.push(TcpListener::bind("127.0.0.1:0").unwrap().into());
        names.push("gracious 127.0.0.1.1".to_owned());
        let names = names.join(":");
        environment.retain(|(name, _)| *name != "LISTEN_FDNAMES");
        let mut with_names = environment.clone();
        with_names.push(("LISTEN_FDNAMES", &names));
        service = systemd.start(test, &with_names, passed);
        service.hear("bound");
        service.tell("serve");
        assert_eq!(
            systemd.hears("FDSTOREREMOVE=1"),
            "FDSTOREREMOVE=1\nFDNAME=gracious 127.0.0.1.1"
        );
        systemd.hears("READY=1");
        for mut client in waiting.drain(..) {
            assert_eq!(client.line(), "hello");
        }
        busy = Client::connect(&addresses[0]).unwrap();
        busy.send("he");
    }
    assert_eq!(busy.ask("llo"), "hello");
    service.tell("stop");
    service.ends_with(0);
    assert!(addresses.iter().all(|address| !refuses(address)));
    std::fs::remove_file(addresses[1].as_path().unwrap()).unwrap();
}

fn stores_nothing(test: &'static str) {
    let systemd = Systemd::at_a_path();
    // Too few, or not said.
    for size in ["1", ""] {
        let addresses = addresses();
        let said = addresses.each_ref().map(ToString::to_string).join(" ");
        let environment = [("FDSTORE", size), ("ADDRESSES", said.as_str())];
        let mut service = systemd.start(test, &environment, Vec::new());
        service.hear("bound");
        let mut clients = addresses.each_ref().map(|it| Client::connect(it).unwrap());
        service.tell("serve");
        systemd.hears("READY=1");
        service.tell("stop");
        for client in &mut clients {
            assert_eq!(client.rest(), "");
        }
        while !service.hear("warned").contains("FileDescriptorStoreMax=") {}
        assert!(service.hear("report").contains(": 2 accepted"));
        service.ends_with(0);
        assert!(addresses.iter().all(refuses));
    }
}

// What does not depend on the engine.

/// Says why it could not be bound, or serves and says what it was warned of.
fn binds() {
    smol::block_on(async {
        let builder = gracious::Server::with_runtime(Smol).notify();
        match builder.listen_systemd().bind().await {
            Err(error) => tell("error", error),
            Ok(server) => tell("bound", server),
        }
    });
}

#[test]
fn what_systemd_cannot_have_said_is_named() {
    let test = "systemd::what_systemd_cannot_have_said_is_named";
    half_of(test, binds, |test| {
        let listening = || -> OwnedFd { TcpListener::bind("127.0.0.1:0").unwrap().into() };
        let unbound = || -> OwnedFd {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            socket.unwrap().into()
        };
        let file = || -> OwnedFd { std::fs::File::open("/dev/null").unwrap().into() };
        let datagrams = || -> OwnedFd { UdpSocket::bind("127.0.0.1:0").unwrap().into() };
        for (environment, passed, said) in [
            (
                vec![],
                None,
                "systemd has passed no socket: LISTEN_FDS is not set",
            ),
            (
                vec![("LISTEN_FDS", "two")],
                Some(listening()),
                "LISTEN_FDS is \"two\": expected a number",
            ),
            (
                vec![("LISTEN_PID", "1")],
                Some(listening()),
                "to process 1 (LISTEN_PID), and this is process",
            ),
            (
                vec![("LISTEN_FDS", "2")],
                Some(listening()),
                "descriptor 4 (`unknown`), which LISTEN_FDS counts, is not open",
            ),
            (
                vec![("LISTEN_FDS", "0")],
                Some(listening()),
                "systemd has passed no socket that is not taken",
            ),
            (
                vec![("LISTEN_FDNAMES", "web:admin")],
                Some(listening()),
                "LISTEN_FDNAMES has 2 names",
            ),
            (
                vec![],
                Some(unbound()),
                "systemd's `unknown`: descriptor 3 is a socket that does not listen",
            ),
            (
                vec![("LISTEN_FDNAMES", "web")],
                Some(file()),
                "systemd's `web`: descriptor 3 is no socket",
            ),
            (
                vec![],
                Some(datagrams()),
                "descriptor 3 is a socket of another type",
            ),
            (
                vec![("NOTIFY_SOCKET", "run/notify")],
                Some(listening()),
                "NOTIFY_SOCKET is \"run/notify\"",
            ),
            (
                vec![("NOTIFY_SOCKET", "/run/notify"), ("WATCHDOG_USEC", "soon")],
                Some(listening()),
                "WATCHDOG_USEC is \"soon\": expected a number",
            ),
        ] {
            let command = process(test, &environment, passed.into_iter().collect());
            let mut service = Process::run(command, test);
            let error = service.hear("error");
            assert!(error.contains(said), "{error}");
            service.ends_with(0);
        }
    });
}

/// Serves for a moment, and tells what it was warned of.
fn is_warned() {
    smol::block_on(async {
        let builder = gracious::Server::with_runtime(Smol)
            .listen("127.0.0.1:0")
            .notify();
        let builder = match std::env::var("HEARS").is_ok() {
            true => builder.stop_on_signals().deadline(None),
            false => builder,
        };
        let server = builder.bind().await.unwrap();
        server.handle().shutdown();
        server.serve(echo).await.unwrap();
        let warned: Vec<_> = logged()
            .into_iter()
            .filter(|it| it.starts_with("WARN"))
            .collect();
        tell("warned", warned.join("; "));
    });
}

#[test]
fn a_unit_that_does_not_fit_is_warned_of() {
    let test = "systemd::a_unit_that_does_not_fit_is_warned_of";
    half_of(test, is_warned, |test| {
        let systemd = Systemd::at_a_path();
        let mut service = systemd.start(test, &[("SYSTEMD_EXEC_PID", "own")], Vec::new());
        let warned = service.hear("warned");
        let sigterm = "WARN SIGTERM, by which systemd stops a service, ends this process at once";
        assert!(warned.starts_with(sigterm), "{warned}");
        assert!(!warned.contains("Type=notify"), "{warned}");
        service.ends_with(0);

        let environment = [("SYSTEMD_EXEC_PID", "own"), ("HEARS", "1")];
        let mut service = Process::run(process(test, &environment, Vec::new()), test);
        let warned = service.hear("warned");
        assert!(warned.contains("expected `Type=notify`"), "{warned}");
        assert!(
            warned.contains("a drain of this server may take any time"),
            "{warned}"
        );
        assert!(!warned.contains("SIGTERM"), "{warned}");
        service.ends_with(0);

        // Who is no service is not warned.
        let mut service = Process::run(process(test, &[("HEARS", "1")], Vec::new()), test);
        assert_eq!(service.hear("warned"), "");
        service.ends_with(0);
    });
}

// systemd's own tools.

/// A client of a program that has just been started.
fn connecting(address: &Address) -> Client {
    eventually("it listens", || Client::connect(address).ok())
}

#[test]
#[ignore = "needs systemd-socket-activate"]
fn systemd_socket_activate_starts_the_example_with_the_first_connection() {
    let [tcp, unix] = addresses();
    let (port, path) = (tcp.to_string(), unix.as_path().unwrap().to_owned());
    let mut command = Command::new("systemd-socket-activate");
    command
        .args(["-l", &port, "-l"])
        .arg(&path)
        .arg("--fdname=web:admin");
    command.arg(Program::example_path("service"));
    let mut service = Program::start(command);
    let mut client = connecting(&tcp);
    assert_eq!(client.ask("hello"), "hello");
    assert_eq!(service.line(), format!("bound on {tcp}, {unix}"));
    assert_eq!(Client::connect(&unix).unwrap().ask("hello"), "hello");
    assert!(!service.has_ended());
    service.kill("TERM");
    assert_eq!(client.rest(), "");
    assert_eq!(service.end().status, 0);
    std::fs::remove_file(path).unwrap();
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_analyze_accepts_the_units() {
    let folder = unix_path();
    std::fs::create_dir(&folder).unwrap();
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/systemd");
    let example = Program::example_path("service");
    let mut copies = Vec::new();
    for unit in std::fs::read_dir(units).unwrap() {
        let unit = unit.unwrap();
        let text = std::fs::read_to_string(unit.path()).unwrap();
        let text = text.replace("/usr/local/bin/service", example.to_str().unwrap());
        let copy = folder.join(unit.file_name());
        std::fs::write(&copy, text).unwrap();
        copies.push(copy);
    }
    assert_eq!(copies.len(), 3);
    let verify = || {
        let mut command = Command::new("systemd-analyze");
        command
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .args(&copies);
        Program::start(command).end()
    };
    verify().assert(0);
    // It would have complained.
    std::fs::write(&copies[0], "[Service]\nType=notified\n").unwrap();
    assert_ne!(verify().err, "");
    std::fs::remove_dir_all(folder).unwrap();
}
