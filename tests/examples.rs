//! The examples, run for real: what they print, nothing on standard error, their exit status.
#![cfg(all(feature = "async-std", feature = "signals"))]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use program::{PATIENCE, Program, eventually};

/// Starts `quit` on a free port.
#[track_caller]
fn quit() -> (Program, String) {
    let quit = Program::example("quit", &["127.0.0.1:0"]);
    let address = quit.addresses().remove(0);
    (quit, address)
}

#[track_caller]
fn connect(address: &str) -> BufReader<TcpStream> {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(client)
}

#[track_caller]
fn send(client: &mut BufReader<TcpStream>, text: &str) {
    client.get_mut().write_all(text.as_bytes()).unwrap();
}

#[track_caller]
fn line(client: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    line
}

#[track_caller]
fn rest(client: &mut BufReader<TcpStream>) -> String {
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn every_example_answers_what_it_does_not_know_with_its_usage() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let files = fs::read_dir(examples).unwrap().map(|it| it.unwrap().path());
    let mut tried = 0;
    for file in files.filter(|file| file.extension().is_some_and(|it| it == "rs")) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        // One that wants more features than these is not built beside the tests.
        if !program::path(name).exists() {
            continue;
        }
        for word in ["--help", "-x"] {
            let ended = Program::example(name, &[word]).end();
            assert_eq!((ended.status, ended.out.len()), (2, 0), "{name}: {ended:?}");
            let usage = format!("usage: {name}");
            assert!(ended.err.starts_with(&usage), "{name}: {ended:?}");
            assert_eq!(ended.err.lines().count(), 1, "{name}: {ended:?}");
        }
        tried += 1;
    }
    assert!(tried >= 11, "{tried}");
    for (name, word) in [
        ("scope", "values"),
        ("leaving_main", "start"),
        ("drain", "now"),
    ] {
        let ended = Program::example(name, &[word]).end();
        assert_eq!((ended.status, ended.out.len()), (2, 0), "{name}: {ended:?}");
    }
}

#[test]
fn quit_echoes_and_stops_cleanly() {
    let (quit, address) = quit();
    let mut client = connect(&address);
    send(&mut client, "hello\nquit\n");
    assert_eq!(rest(&mut client), "hello\nbye\n");
    let ended = quit.end();
    ended.assert(0);
    assert!(
        ended.last().starts_with("stopped (requested) after "),
        "{ended:?}"
    );
    assert!(
        ended
            .last()
            .contains(": 1 accepted, 1 completed; the drain took "),
        "{ended:?}"
    );
}

#[test]
fn quit_answers_the_slow_and_does_not_wait_for_the_silent() {
    let (quit, address) = quit();
    let mut silent = connect(&address);
    // Past the second that a new client has for its first word.
    std::thread::sleep(Duration::from_millis(1100));
    let mut slow = connect(&address);
    send(&mut slow, "hello\nslow\n");
    assert_eq!(line(&mut slow), "hello\n");
    let mut last = connect(&address);
    let start = Instant::now();
    send(&mut last, "quit\n");
    assert_eq!(rest(&mut last), "bye\n");
    assert_eq!(rest(&mut silent), "");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "the silent one waited for the slow one"
    );
    assert_eq!(rest(&mut slow), "done\n");
    let answered = Instant::now();
    let ended = quit.end();
    assert!(
        answered.elapsed() < Duration::from_secs(1),
        "{:?}",
        answered.elapsed()
    );
    ended.assert(0);
    assert!(
        ended.last().contains(": 3 accepted, 3 completed; "),
        "{ended:?}"
    );
}

#[test]
fn quit_listens_on_all_it_is_given() {
    let path = std::env::temp_dir().join(format!("gracious-quit-{}.sock", std::process::id()));
    let unix = format!("unix:{}", path.display());
    let quit = Program::example("quit", &["127.0.0.1:0", &unix]);
    let addresses = quit.addresses();
    assert_eq!(addresses[1], unix);
    let mut client = connect(&addresses[0]);
    send(&mut client, "over tcp\n");
    assert_eq!(line(&mut client), "over tcp\n");
    let mut other = UnixStream::connect(&path).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    other.write_all(b"over unix\nquit\n").unwrap();
    let mut reply = String::new();
    other.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "over unix\nbye\n");
    assert_eq!(rest(&mut client), "");
    let ended = quit.end();
    ended.assert(0);
    assert!(
        ended.last().contains(": 2 accepted, 2 completed; "),
        "{ended:?}"
    );
    assert!(!path.exists());
}

#[test]
fn quit_says_which_address_is_in_use() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let ended = Program::example("quit", &[&address]).end();
    assert_eq!((ended.status, ended.out.len()), (2, 0), "{ended:?}");
    assert!(ended.err.starts_with("quit: "), "{ended:?}");
    assert!(ended.err.contains(&address), "{ended:?}");
    assert!(ended.err.contains("in use"), "{ended:?}");
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
}

#[test]
fn quit_says_what_is_wrong_with_an_address() {
    for text in ["8888", "127.0.0.1", "localhost:http", "::1:8888"] {
        let ended = Program::example("quit", &[text]).end();
        assert_eq!((ended.status, ended.out.len()), (2, 0), "{ended:?}");
        assert!(
            ended.err.starts_with(&format!("quit: `{text}` ")),
            "{ended:?}"
        );
        assert!(ended.err.contains("expected HOST:PORT"), "{ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
    }
}

#[test]
fn quit_drains_at_a_signal() {
    for signal in ["INT", "TERM"] {
        let (quit, address) = quit();
        let mut slow = connect(&address);
        send(&mut slow, "hello\nslow\n");
        assert_eq!(line(&mut slow), "hello\n");
        quit.kill(signal);
        assert_eq!(rest(&mut slow), "done\n");
        let ended = quit.end();
        ended.assert(0);
        assert!(
            ended.last().starts_with(&format!("stopped (SIG{signal}) ")),
            "{ended:?}"
        );
        assert!(
            ended.last().contains(": 1 accepted, 1 completed; "),
            "{ended:?}"
        );
    }
}

/// It signals its child, and then the group that both are in: two signals, and one intention.
#[test]
#[cfg(target_os = "linux")]
fn quit_drains_when_timeout_ends_it() {
    for _ in 0..5 {
        let quit = Program::example_path("quit");
        let mut timeout = std::process::Command::new("timeout");
        timeout
            .args(["--preserve-status", "1"])
            .arg(quit)
            .arg("127.0.0.1:0");
        let timeout = Program::start(timeout);
        let address = timeout.addresses().remove(0);
        let mut slow = connect(&address);
        send(&mut slow, "slow\n");
        assert_eq!(rest(&mut slow), "done\n");
        let ended = timeout.end();
        ended.assert(0);
        assert!(ended.last().starts_with("stopped (SIGTERM) "), "{ended:?}");
    }
}

#[test]
fn quit_aborts_at_a_second_signal() {
    for (first, second) in [("INT", "INT"), ("TERM", "INT")] {
        let (quit, address) = quit();
        let mut slow = connect(&address);
        send(&mut slow, "hello\nslow\nslow\nslow\n");
        assert_eq!(line(&mut slow), "hello\n");
        let mut idle = connect(&address);
        send(&mut idle, "hello\n");
        assert_eq!(line(&mut idle), "hello\n");
        quit.kill(first);
        assert_eq!(rest(&mut idle), "");
        // Signals of one moment are one.
        std::thread::sleep(Duration::from_millis(250));
        quit.kill(second);
        let ended = quit.end();
        ended.assert(1);
        assert!(
            ended.last().starts_with(&format!("stopped (SIG{first}) ")),
            "{ended:?}"
        );
        assert!(ended.last().contains(" aborted; "), "{ended:?}");
        let slow = slow.get_ref().local_addr().unwrap();
        assert!(
            ended.last().contains(&format!("aborted: {slow} (busy, ")),
            "{ended:?}"
        );
    }
}

#[test]
fn client_reads_the_answers_to_their_end() {
    let (quit, address) = quit();
    let mut client = Program::example("client", &[&address]);
    client.say("hello\nslow\nquit\n");
    let ended = client.end();
    ended.assert(0);
    assert_eq!(ended.out, ["hello", "done", "bye"]);
    quit.end().assert(0);
}

#[test]
fn client_ends_when_the_server_hangs_up() {
    let (quit, address) = quit();
    let mut client = Program::example("client", &[&address]);
    client.say("hello\n");
    assert_eq!(client.line(), "hello");
    quit.kill("TERM");
    quit.end().assert(0);
    // Its standard input is still open.
    eventually("the client's end", || client.has_ended().then_some(()));
    client.end().assert(0);
}

#[test]
fn client_says_that_there_is_no_server() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let ended = Program::example("client", &[&address]).end();
    assert_eq!((ended.status, ended.out.len()), (1, 0), "{ended:?}");
    assert!(
        ended.err.starts_with(&format!("client: {address}: ")),
        "{ended:?}"
    );
}

#[test]
fn background_serves_beside_other_work_and_is_closed_after_it() {
    let background = Program::example("background", &[]);
    let on = background.addresses().remove(0);
    let ended = background.end();
    ended.assert(0);
    let [one, two, three, report, rest @ ..] = &ended.out[..] else {
        panic!("{ended:?}");
    };
    for (line, word) in [(one, "ONE"), (two, "TWO"), (three, "THREE")] {
        assert_eq!(line, &format!("serving on {on}, 1 active; it says {word}!"));
    }
    assert!(report.starts_with("stopped (requested) after "), "{report}");
    assert!(report.contains(": 1 accepted, 1 completed; "), "{report}");
    assert_eq!(rest[0], format!("closed on {on}; is_serving: false"));
    assert_eq!(rest[1], "the client reads 0 bytes more, and the end");
    assert!(
        rest[2].starts_with("a new client: Connection refused"),
        "{}",
        rest[2]
    );
    assert_eq!(rest.len(), 3);
}

#[cfg(feature = "testing")]
#[test]
fn simulation_finds_what_a_stop_breaks() {
    let ended = Program::example("simulation", &[]).end();
    // The panic of the failure is on standard error, too.
    let out = ended.out.join("\n");
    assert_eq!(ended.status, 0, "{out}");
    let found = "without a guard: a simulated run fails, panicked: peer 0: ";
    assert!(out.starts_with(found), "{out}");
    assert!(out.contains("with a guard: 500 runs"), "{out}");
}

#[test]
fn testing_finds_all_well() {
    let ended = Program::example("testing", &[]).end();
    assert_eq!(ended.assert(0).out, ["all is well"]);
}

/// Whatever ends the work: the server has drained, and the answer came in full.
#[track_caller]
fn scope(mode: &str, reason: &str, stop: impl FnOnce(&Program)) -> program::Ended {
    let scope = Program::example("scope", &[mode]);
    scope.addresses();
    stop(&scope);
    let mut ended = scope.end();
    let report = ended.out.remove(0);
    assert!(
        report.starts_with(&format!("stopped ({reason}) after ")),
        "{report}"
    );
    assert!(report.contains(": 1 accepted, 1 completed; "), "{report}");
    assert_eq!(ended.out.remove(0), "the client got \"an answer, in full\"");
    ended
}

#[test]
fn scope_ends_with_the_value_of_its_work() {
    let ended = scope("value", "its work ended", |_| {});
    assert_eq!(ended.assert(0).out, ["the work gave 42"]);
}

#[test]
fn scope_ends_with_the_error_of_its_work() {
    let ended = scope("error", "its work ended", |_| {});
    assert_eq!((ended.status, ended.out.len()), (1, 0), "{ended:?}");
    assert!(ended.err.starts_with("Error: "), "{ended:?}");
    assert!(ended.err.contains("/no/such/file"), "{ended:?}");
}

#[test]
fn scope_ends_with_the_cancellation_of_its_work() {
    let ended = scope("cancel", "dropped", |_| {});
    assert_eq!(ended.assert(0).out, ["the work was dropped"]);
}

#[test]
fn scope_ends_with_ctrl_c() {
    let ended = scope("wait", "SIGINT", |scope| scope.kill("INT"));
    assert_eq!(ended.assert(0).out, ["the work was dropped"]);
}

const WHOLE: &str = "child: 1048576 bytes, then the end";

/// Whichever way out of `main` is taken past a drain: the server has drained, task and child have
/// got what they were owed.
#[track_caller]
fn left(mode: &str, reason: &str) -> program::Ended {
    let start = Instant::now();
    let mut ended = Program::example("leaving_main", &[mode]).end();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let mut take = |text: &str| {
        let index = ended.out.iter().position(|line| line.contains(text));
        ended
            .out
            .remove(index.unwrap_or_else(|| panic!("no `{text}` in {ended:?}")))
    };
    let report = take("main: stopped");
    assert!(
        report.starts_with(&format!("main: stopped ({reason}) after ")),
        "{report}"
    );
    assert!(report.contains(": 1 accepted, 1 completed; "), "{report}");
    assert_eq!(take("task: "), "task: finished");
    assert_eq!(take("child: "), WHOLE);
    ended
}

#[test]
fn leaving_main_at_its_end_waits_for_the_drain() {
    let ended = left("end", "its work ended");
    assert_eq!(ended.assert(0).out, ["main: at its end"]);
}

#[test]
fn leaving_main_early_waits_for_the_drain() {
    let ended = left("early", "its work ended");
    assert!(ended.assert(0).out.is_empty(), "{ended:?}");
}

#[test]
fn leaving_main_with_an_error_waits_for_the_drain() {
    let ended = left("error", "its work ended");
    assert_eq!((ended.status, ended.out.len()), (1, 0), "{ended:?}");
    assert!(ended.err.contains("main returns this"), "{ended:?}");
}

#[test]
fn a_dropped_server_can_be_waited_for() {
    let ended = left("drop", "dropped");
    assert_eq!(ended.assert(0).out, ["main: at its end"]);
}

#[test]
fn a_dropped_server_nobody_waits_for_goes_with_the_process_and_writes_no_half_answer() {
    let ended = Program::example("leaving_main", &["forget"]).end();
    assert_eq!(
        ended.assert(0).out,
        ["main: at its end", "child: 0 bytes, then the end"]
    );
}

/// Half a line keeps the drain from its end, and the page is there as long as that takes.
#[cfg(all(feature = "http", feature = "metrics"))]
#[test]
fn metrics_are_shown_through_a_stop() {
    let metrics = Program::example("metrics", &["127.0.0.1:0", "127.0.0.1:0"]);
    let [address, page] = [(); 2].map(|()| metrics.addresses().remove(0));
    let scrape = || {
        let mut client = connect(&page);
        send(
            &mut client,
            "GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n",
        );
        rest(&mut client)
    };
    let shows = |what: &str| eventually(what, || scrape().contains(what).then_some(()));
    let mut client = connect(&address);
    send(&mut client, "hello\nhalf");
    assert_eq!(line(&mut client), "hello\n");
    shows("gracious_bytes_read_total 10\n");
    shows("gracious_state{state=\"serving\"} 1\n");
    shows("gracious_connections_active{state=\"busy\"} 1\n");
    metrics.kill("TERM");
    shows("gracious_state{state=\"draining\"} 1\n");
    send(&mut client, " a line\n");
    assert_eq!(rest(&mut client), "half a line\n");
    metrics.end_by_itself().assert(0);
}
