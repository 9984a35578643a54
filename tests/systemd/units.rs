//! What does not depend on the engine: what is wrong with a unit, and systemd's own tools.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;

use gracious::{Address, Smol};

use crate::addresses;
use crate::supervisor::{Systemd, process};
use crate::support::client::{Client, echo, unix_path};
use crate::support::peer::{Process, half_of, logged, tell};
use crate::support::program::{Program, eventually};

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
    let test = "systemd::units::what_systemd_cannot_have_said_is_named";
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
    let test = "systemd::units::a_unit_that_does_not_fit_is_warned_of";
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
