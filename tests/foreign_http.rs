//! HTTP and WebSocket clients of other projects, against real servers, while these are stopped.
//!
//! Each test names what it needs on the machine; `cargo test --all-features -- --ignored` runs
//! them.
#![cfg(all(feature = "async-std", feature = "signals", feature = "http"))]

#[path = "support/program.rs"]
mod program;

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use async_std::task;
use gracious::{AsyncStd, Builder, Running, Server, web};

use program::{PATIENCE, Program, eventually};

/// Starts a line of shell.
#[track_caller]
fn shell(line: &str) -> Program {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]);
    Program::start(command)
}

#[track_caller]
fn wait<T>(future: impl Future<Output = T>) -> T {
    task::block_on(async_std::future::timeout(PATIENCE, future)).expect("did not end in time")
}

/// Starts the example on a free port; gives its URL.
#[track_caller]
fn example() -> (Program, String) {
    let http = Program::example("http", &["127.0.0.1:0"]);
    let address = http.addresses().remove(0);
    (http, format!("http://{address}"))
}

/// A Python that has the package `websockets`: that of `.ci/run`, or else the machine's.
fn python() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    let tools = target.join("ci-tools/bin/python3");
    if tools.exists() {
        tools
    } else {
        "python3".into()
    }
}

/// One that is idle, and one that is owed answers.
#[test]
#[ignore = "needs python3 with websockets"]
fn python_websockets_are_answered_and_told_why_the_server_goes() {
    let server = Program::example("websocket", &["127.0.0.1:0"]);
    let url = format!("ws://{}/", server.addresses()[0]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/websocket.py");
    let start = |messages: &str| {
        let mut command = Command::new(python());
        command.args([script, &url, messages]);
        Program::start(command)
    };
    let (idle, busy) = (start("1"), start("200"));
    assert_eq!((idle.line(), busy.line()), ("sent".into(), "sent".into()));
    server.kill("TERM");
    for (client, answers) in [(idle, "1"), (busy, "200")] {
        let answers = format!("{answers} answers");
        assert_eq!(
            client.end().assert(0).out,
            [&answers, "1001 the server goes"]
        );
    }
    server.end().assert(0);
}

#[test]
#[ignore = "needs curl"]
fn curl_gets_its_answer_through_a_stop_in_either_version() {
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let (http, url) = example();
        let curl = |path: &str| {
            let options = "--silent --show-error --write-out '%{http_version} %{http_code}\\n'";
            shell(&format!("curl {version} {options} {url}{path}"))
        };
        let said = match version {
            "--http1.1" => "1.1 ",
            _ => "2 ",
        };
        let ended = curl("/").end();
        assert_eq!(ended.assert(0).out, ["hello", &format!("{said}200")]);
        let ended = curl("/nowhere").end();
        let missing = ["nothing at /nowhere", &format!("{said}404")];
        assert_eq!(ended.assert(0).out, missing);
        let slow = curl("/slow --verbose --stderr -");
        while !slow.line().starts_with("> GET /slow ") {}
        http.kill("TERM");
        let ended = slow.end();
        let late = ["better late than never", &format!("{said}200")];
        ended.assert(0);
        assert!(
            late.iter()
                .all(|it| ended.out.iter().any(|line| line == it)),
            "{ended:?}"
        );
        http.end().assert(0);
    }
}

const SIZE: usize = 20 << 20;

/// Gives what it is sent, piece by piece.
async fn echo(request: web::Request) -> web::Response<hyper::body::Incoming> {
    web::Response::new(request.into_body())
}

/// Both at once: an upload and a streamed reply of the same 20 MB, in the middle of which the stop comes.
#[test]
#[ignore = "needs curl"]
fn curl_sends_and_gets_20_megabytes_through_a_stop_in_either_version() {
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let server = wait(Server::bind("127.0.0.1:0")).unwrap();
        let running = server.spawn(web::serve(echo));
        let handle = running.handle();
        let address = &handle.local_addrs()[0];
        let options = "--silent --show-error --limit-rate 16M --data-binary @- --output - ";
        let curl = format!("curl {version} {options} http://{address}/ | wc -c");
        let curl = shell(&format!("sh -c 'head -c {SIZE} /dev/zero | {curl}'"));
        eventually("some of the answer", || {
            (handle.stats().bytes_out > 1 << 20).then_some(())
        });
        let report = wait(running.shutdown()).unwrap();
        assert_eq!(curl.end().assert(0).out, [SIZE.to_string()], "{version}");
        assert_eq!((report.accepted, report.completed), (1, 1), "{report}");
    }
}

/// How many requests a number in wrk's report counts.
fn count(out: &[String], what: &str) -> u64 {
    let line = out.iter().find(|line| line.contains(what));
    let count = line.and_then(|line| line.split_whitespace().next());
    count.map_or(0, |count| count.parse().unwrap())
}

async fn hello(_request: web::Request) -> Result<web::Response<String>, Infallible> {
    Ok(web::Response::new("hello\n".into()))
}

/// Its successor has a lame duck's time to join the port.
fn start(builder: Builder<AsyncStd>) -> Running {
    let builder = builder
        .reuse_port(true)
        .lame_duck(Duration::from_millis(300));
    let server = wait(builder.deadline(None).bind()).unwrap();
    server.spawn(web::serve(hello))
}

#[test]
#[ignore = "needs wrk"]
fn wrk_loses_none_of_200_000_requests_while_one_server_follows_the_other() {
    let (mut requests, mut stops) = (0, 0);
    let mut running = start(Server::builder().listen("127.0.0.1:0"));
    let address = running.handle().local_addrs()[0].clone();
    while requests < 200_000 {
        let mut wrk = shell(&format!("wrk -t2 -c50 -d8s http://{address}/"));
        while !wrk.has_ended() {
            let handle = running.handle();
            let before = handle.stats().bytes_out;
            eventually("requests, or the end of wrk", || {
                (handle.stats().bytes_out > before + 100_000 || wrk.has_ended()).then_some(())
            });
            if wrk.has_ended() {
                break;
            }
            handle.shutdown();
            let next = start(Server::builder().listen(address.clone()));
            let report = wait(running).unwrap();
            // But for those that wrk left in the middle of a request, at its own end.
            if !wrk.has_ended() {
                assert_eq!(report.accepted, report.completed, "{report}");
            }
            running = next;
            stops += 1;
        }
        let ended = wrk.end();
        assert_eq!(ended.status, 0, "{ended:?}");
        let wrong = ended
            .out
            .iter()
            .any(|line| line.contains("errors") || line.contains("Non-2xx"));
        assert!(!wrong, "{ended:?}");
        requests += count(&ended.out, " requests in ");
    }
    wait(running.shutdown()).unwrap();
    println!("{requests} requests, {stops} stops");
    assert!(stops > 3, "{stops}");
}
