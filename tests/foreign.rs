//! Clients of other projects, against real servers, while these are stopped.
//!
//! Each test names what it needs on the machine; `cargo test --all-features -- --ignored` runs
//! them.
#![cfg(all(feature = "async-std", feature = "signals"))]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use async_std::task;
use futures_lite::AsyncWriteExt;
use gracious::{AsyncStd, Builder, Connection, Running, Server};

use program::{Ended, PATIENCE, Program, eventually, no_copy_is_left};

/// Starts `quit` on a free port, or on what it is given.
#[track_caller]
fn quit(address: &str) -> (Program, String) {
    let quit = Program::example("quit", &[address]);
    let address = quit.addresses().remove(0);
    (quit, address)
}

/// Starts a Python script of `tests/foreign`.
#[track_caller]
fn python(script: &str, args: &[&str]) -> Program {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/");
    let mut command = Command::new("python3");
    command.arg(format!("{path}{script}")).args(args);
    Program::start(command)
}

/// Starts a line of shell.
#[track_caller]
fn shell(line: &str) -> Program {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]);
    Program::start(command)
}

/// A client that is connected.
#[track_caller]
fn talking(address: &str, text: &str) -> Program {
    let client = python("talk.py", &[address, text]);
    assert_eq!(client.line(), "connected");
    client
}

/// A server on a free port of this process, which keeps its listener until handshakes are finished.
fn here() -> Builder<AsyncStd> {
    Server::builder()
        .listen("127.0.0.1:0")
        .handshake_grace(Duration::from_millis(100))
}

#[track_caller]
fn wait<T>(future: impl Future<Output = T>) -> T {
    task::block_on(async_std::future::timeout(PATIENCE, future)).expect("did not end in time")
}

#[track_caller]
fn bind(builder: Builder<AsyncStd>) -> Server<AsyncStd> {
    wait(builder.bind()).unwrap()
}

fn port(running: &Running) -> u16 {
    running.handle().local_addrs()[0].as_tcp().unwrap().port()
}

/// A path that nothing else uses.
fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("gracious-{}-{name}", std::process::id()))
}

// asyncio

#[test]
#[ignore = "needs python3"]
fn asyncio_reads_to_the_end() {
    let path = format!("unix:{}", temporary("asyncio.sock").display());
    for address in ["127.0.0.1:0", &path] {
        let (quit, address) = quit(address);
        let client = talking(&address, "hello\\nquit\\n");
        assert_eq!(client.end().assert(0).out, ["hello", "bye", "the end"]);
        let ended = quit.end();
        ended.assert(0);
        assert!(
            ended.last().contains(": 1 accepted, 1 completed; "),
            "{ended:?}"
        );
    }
}

#[test]
#[ignore = "needs python3"]
fn asyncio_clients_are_answered_while_one_stops_the_server() {
    let (quit, address) = quit("127.0.0.1:0");
    let several = python("several.py", &[&address]);
    assert_eq!(several.end().assert(0).out, ["all is well"]);
    let ended = quit.end();
    ended.assert(0);
    assert!(ended.last().contains(": 23 accepted, "), "{ended:?}");
}

#[test]
#[ignore = "needs python3"]
fn a_signal_ends_a_silent_client_cleanly() {
    for signal in ["INT", "TERM"] {
        let (quit, address) = quit("127.0.0.1:0");
        let silent = talking(&address, "");
        quit.kill(signal);
        assert_eq!(silent.end().assert(0).out, ["the end"]);
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

#[test]
#[ignore = "needs python3"]
fn a_second_signal_cuts_short_what_the_first_lets_finish() {
    for signal in ["INT", "TERM"] {
        let (quit, address) = quit("127.0.0.1:0");
        let silent = talking(&address, "");
        let slow = talking(&address, "hello\\nslow\\nslow\\nslow\\n");
        assert_eq!(slow.line(), "hello");
        quit.kill(signal);
        // The silent one sees the end at once, or when its time for a first word is over.
        assert_eq!(silent.line(), "the end");
        // Signals of one moment are one.
        std::thread::sleep(Duration::from_millis(250));
        quit.kill(signal);
        let ended = quit.end();
        ended.assert(1);
        assert!(ended.last().contains(" aborted; "), "{ended:?}");
        let slow = slow.end();
        assert!(
            slow.out.iter().filter(|line| *line == "done").count() < 3,
            "{slow:?}"
        );
    }
}

// netcat

#[test]
#[ignore = "needs nc"]
fn netcat_gets_every_answer() {
    let (quit, address) = quit("127.0.0.1:0");
    let mut client = shell(&format!("nc -N {}", address.replace(':', " ")));
    client.say("hello\nslow\nquit\n");
    assert_eq!(client.end().assert(0).out, ["hello", "done", "bye"]);
    quit.end().assert(0);
}

// Redis

/// Just enough of Redis for its tools: `PING`, inline or not; anything else is an error.
async fn pong(conn: Connection, read: Arc<AtomicU64>) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        let mut line = line?;
        read.fetch_add(line.len() as u64 + 2, SeqCst);
        // A command of n words is `*n`, and a line for the length and one for the text of each.
        if let Some(words) = line
            .strip_prefix('*')
            .and_then(|count| count.parse::<usize>().ok())
        {
            let mut command = None;
            for _ in 0..2 * words {
                let Some(next) = lines.next().await else {
                    return Ok(());
                };
                let next = next?;
                read.fetch_add(next.len() as u64 + 2, SeqCst);
                if !next.starts_with('$') {
                    command.get_or_insert(next);
                }
            }
            line = command.unwrap_or_default();
        }
        let pong: &[u8] = if line.eq_ignore_ascii_case("ping") {
            b"+PONG\r\n"
        } else {
            b"-ERR only PING is known\r\n"
        };
        writer.write_all(pong).await?;
    }
    Ok(())
}

#[track_caller]
fn serve_pongs() -> (Running, Arc<AtomicU64>) {
    let read = Arc::new(AtomicU64::new(0));
    let count = read.clone();
    (bind(here()).spawn(|conn| pong(conn, count)), read)
}

/// Starts an example that serves on a free port; gives that.
#[track_caller]
fn example(name: &str, first: &[&str]) -> (Program, String) {
    let example = Program::example(name, &[first, &["127.0.0.1:0"]].concat());
    let address = example.addresses().remove(0);
    let (_, port) = address.rsplit_once(':').unwrap();
    (example, port.to_owned())
}

#[test]
#[ignore = "needs redis-cli"]
fn redis_cli_talks_to_the_example_and_shuts_it_down() {
    let (redis, port) = example("redis", &[]);
    let mut idle = shell(&format!("redis-cli -p {port}"));
    idle.say("ping\n");
    assert_eq!(idle.line(), "PONG");
    for (command, reply) in [
        ("echo 'two\nlines'", "twolines"),
        ("set greeting hello", "OK"),
        ("GET greeting", "hello"),
        ("del greeting nothing", "1"),
        ("get greeting", ""),
        ("info", "connected_clients:2"),
        ("set greeting", "ERR unknown command"),
        ("quit", "OK"),
        ("shutdown", "OK"),
    ] {
        let ended = shell(&format!("redis-cli -p {port} {command}")).end();
        ended.assert(0);
        assert!(
            ended.out.concat().starts_with(reply),
            "{command}: {ended:?}"
        );
    }
    redis.end().assert(0);
    idle.end();
}

#[test]
#[ignore = "needs redis-benchmark"]
fn redis_benchmark_measures_the_example_until_a_signal_stops_it() {
    let (redis, port) = example("redis", &[]);
    let benchmark = |requests| {
        let options = format!("-t ping,set,get -n {requests} -c 50 -P 16 -q");
        shell(&format!("redis-benchmark -p {port} {options}"))
    };
    let ended = benchmark(20_000).end();
    assert_eq!(ended.status, 0, "{ended:?}");
    let rates = (ended.out.iter()).filter(|line| line.contains("requests per second"));
    assert_eq!(rates.count(), 4, "{ended:?}");
    let endless = benchmark(1_000_000_000);
    let info = || {
        let ended = shell(&format!("redis-cli -p {port} info")).end();
        ended.assert(0).out.concat()
    };
    eventually("fifty clients at work", || {
        (info() == "connected_clients:51").then_some(())
    });
    redis.kill("TERM");
    redis.end().assert(0);
    let ended = endless.end();
    assert!(!ended.err.contains("reset"), "{ended:?}");
}

#[test]
#[ignore = "needs redis-benchmark"]
fn redis_benchmark_loses_no_answer_when_a_shutdown_comes() {
    let (running, read) = serve_pongs();
    let options = "-t ping_inline -n 100000000 -c 50 -q";
    let benchmark = shell(&format!("redis-benchmark -p {} {options}", port(&running)));
    eventually("a thousand requests", || {
        (read.load(SeqCst) > 6000).then_some(())
    });
    let start = Instant::now();
    let report = wait(running.shutdown()).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{report}");
    // The first end that it sees is that of the benchmark, and it resets its other connections.
    assert_eq!(
        report.accepted,
        report.completed + report.failed,
        "{report}"
    );
    // What arrived was taken, and answered, but for one request on each of those.
    let left = report.bytes_in - read.load(SeqCst);
    assert!(
        left <= 6 * report.failed,
        "{left} bytes were not taken: {report}"
    );
    let ended = benchmark.end();
    assert!(!ended.err.contains("reset"), "{ended:?}");
}

// chat

#[test]
#[ignore = "needs nc"]
fn netcat_users_chat_and_hear_that_the_server_goes() {
    let (chat, port) = example("chat", &[]);
    let join = |name: &str| {
        let mut user = shell(&format!("nc 127.0.0.1 {port}"));
        user.say(&format!("{name}\n{name}: here\n"));
        assert_eq!(user.line(), format!("{name}: here"));
        user
    };
    let (mut alice, bob) = (join("alice"), join("bob"));
    alice.say("bob, alice: hello\n");
    assert_eq!(
        (alice.line(), bob.line()),
        ("alice: hello".into(), "alice: hello".into())
    );
    let start = Instant::now();
    chat.kill("TERM");
    chat.end().assert(0);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    for user in [alice, bob] {
        assert_eq!(user.end().assert(0).out, ["the server goes"]);
    }
}

// proxy

#[test]
#[ignore = "needs nc"]
fn netcat_uploads_and_downloads_through_a_proxy_that_is_stopped() {
    const SIZE: usize = 20 << 20;
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = upstream.local_addr().unwrap().to_string();
    let (proxy, port) = example("proxy", &[&address]);
    let behind = |client: Program| (client, upstream.accept().unwrap().0);
    let (quiet, _behind) = behind(shell(&format!("nc 127.0.0.1 {port}")));
    let upload = format!("head -c {SIZE} /dev/zero | nc -N 127.0.0.1 {port}");
    let (upload, mut taker) = behind(shell(&upload));
    let (download, mut giver) = behind(shell(&format!("nc 127.0.0.1 {port} | wc -c")));
    // It gives without a pause, and for some time after the quiet one has ended.
    let is_ended = Arc::new(AtomicBool::new(false));
    let ended = is_ended.clone();
    let given = thread::spawn(move || {
        let (mut given, mut left) = (0, 100);
        while left > 0 {
            giver.write_all(&[b'.'; 1 << 16]).unwrap();
            given += 1 << 16;
            left -= u32::from(ended.load(SeqCst));
        }
        given
    });
    proxy.kill("TERM");
    quiet.end().assert(0);
    is_ended.store(true, SeqCst);
    let mut taken = Vec::new();
    taker.read_to_end(&mut taken).unwrap();
    assert_eq!(taken.len(), SIZE);
    taker.write_all(b"all is here\n").unwrap();
    drop(taker);
    assert_eq!(upload.end().assert(0).out, ["all is here"]);
    let given: usize = given.join().unwrap();
    assert_eq!(download.end().assert(0).out, [given.to_string()]);
    proxy.end().assert(0);
}

// HTTP

/// A body for one HTTP/1.0 request.
#[derive(Clone, Default)]
struct Body {
    bytes: Arc<[u8]>,
    answered: Arc<AtomicU64>,
}

async fn answer(conn: Connection, body: Body) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        if line?.is_empty() {
            let head = format!(
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
                body.bytes.len()
            );
            writer.write_all(head.as_bytes()).await?;
            writer.write_all(&body.bytes).await?;
            body.answered.fetch_add(1, SeqCst);
            return Ok(());
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs curl"]
fn curl_gets_a_long_answer_whole_from_a_server_that_stops() {
    let body = Body {
        bytes: vec![b'x'; 8 << 20].into(),
        ..Body::default()
    };
    let running = bind(here()).spawn(|conn| answer(conn, body));
    let options = "--silent --show-error --limit-rate 8M --output /dev/null --write-out '%{size_download}\\n'";
    // A body that the handler does not read: the server has unread input when it ends.
    let curl = shell(&format!(
        "curl {options} --http1.0 --data 'never read' http://127.0.0.1:{}/",
        port(&running)
    ));
    let handle = running.handle();
    eventually("some of the answer", || {
        (handle.stats().bytes_out > 0).then_some(())
    });
    let report = wait(running.shutdown()).unwrap();
    assert_eq!(curl.end().assert(0).out, [(8 << 20).to_string()]);
    assert_eq!((report.accepted, report.completed), (1, 1), "{report}");
}

#[track_caller]
fn wrk(port: u16, seconds: u32) -> Program {
    shell(&format!(
        "wrk -t2 -c50 -d{seconds}s http://127.0.0.1:{port}/"
    ))
}

/// How many requests wrk saw answered.
#[track_caller]
fn answered(wrk: &Ended) -> u64 {
    let found = wrk
        .out
        .iter()
        .find_map(|line| line.split_once(" requests in "));
    let (count, _) = found.unwrap_or_else(|| panic!("{wrk:?}"));
    count.trim().parse().unwrap()
}

#[test]
#[ignore = "needs wrk"]
fn wrk_gets_an_answer_on_every_connection_that_was_taken() {
    let body = Body::default();
    let shared = body.clone();
    let running = bind(here()).spawn(|conn| answer(conn, shared));
    let wrk = wrk(port(&running), 2);
    eventually("some answers", || {
        (body.answered.load(SeqCst) > 1000).then_some(())
    });
    let report = wait(running.shutdown()).unwrap();
    assert_eq!(report.accepted, report.completed, "{report}");
    // Before it begins, wrk looks whether it can connect, and says nothing.
    assert_eq!(report.completed, body.answered.load(SeqCst) + 1, "{report}");
    // From here on its connects are refused, which it counts among its errors.
    assert_eq!(answered(&wrk.end()), body.answered.load(SeqCst), "{report}");
}

#[test]
#[ignore = "needs wrk"]
fn wrk_sees_no_error_when_one_server_hands_over_to_the_next() {
    let start = |builder: Builder<AsyncStd>| {
        let body = Body::default();
        let shared = body.clone();
        (
            bind(builder.reuse_port(true)).spawn(|conn| answer(conn, shared)),
            body,
        )
    };
    let (mut running, mut body) = start(here());
    let address = running.handle().local_addrs()[0].clone();
    let wrk = wrk(port(&running), 8);
    // A client whose SYN is dropped while the listener is being closed tries again a second later.
    for _ in 0..3 {
        eventually("some answers", || {
            (body.answered.load(SeqCst) > 100).then_some(())
        });
        let builder = Server::builder().listen(address.clone());
        let next = start(builder.handshake_grace(Duration::from_millis(100)));
        let report = wait(running.shutdown()).unwrap();
        assert_eq!(report.accepted, report.completed, "{report}");
        (running, body) = next;
    }
    let ended = wrk.end();
    wait(running.shutdown()).unwrap();
    assert!(
        !ended.out.iter().any(|line| line.contains("Socket errors")),
        "{ended:?}"
    );
    assert!(answered(&ended) > 300, "{ended:?}");
}

// HAProxy

/// Answers one line in ten milliseconds; a health check says none.
async fn reply(conn: Connection, answered: Arc<AtomicU64>) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    if let Some(Ok(line)) = lines.next().await {
        task::sleep(Duration::from_millis(10)).await;
        writer.write_all(format!("{line}\n").as_bytes()).await?;
        answered.fetch_add(1, SeqCst);
    }
    Ok(())
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_turns_nobody_away_while_one_server_after_the_other_is_restarted() {
    let start = |address: &str| -> (Running, Arc<AtomicU64>) {
        let answered = Arc::new(AtomicU64::new(0));
        let count = answered.clone();
        let server = Server::builder()
            .listen(address)
            .handshake_grace(Duration::from_millis(100));
        (bind(server).spawn(|conn| reply(conn, count)), answered)
    };
    // Nobody else takes a port there while its server is restarted; other systems have one address.
    let address = match cfg!(target_os = "linux") {
        true => "127.32.0.1:0",
        false => "127.0.0.1:0",
    };
    let mut servers = [start(address), start(address)];
    let (front, config) = (temporary("haproxy.sock"), temporary("haproxy.cfg"));
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n \
         retries 3\n option redispatch 1\n\
         frontend front\n bind unix@{}\n default_backend servers\n\
         backend servers\n default-server check inter 20ms fall 1 rise 1\n \
         server a {}\n server b {}\n",
        front.display(),
        servers[0].0.handle().local_addrs()[0],
        servers[1].0.handle().local_addrs()[0],
    );
    fs::write(&config, text).unwrap();
    let haproxy = shell(&format!("haproxy -db -f {}", config.display()));
    eventually("HAProxy listens", || UnixStream::connect(&front).ok());

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let (front, stop) = (front.clone(), stop.clone());
            thread::spawn(move || -> io::Result<()> {
                while !stop.load(SeqCst) {
                    let mut client = UnixStream::connect(&front)?;
                    client.set_read_timeout(Some(PATIENCE))?;
                    let line = format!("client {number}\n");
                    client.write_all(line.as_bytes())?;
                    let mut answer = String::new();
                    client.read_to_string(&mut answer)?;
                    assert_eq!(answer, line);
                }
                Ok(())
            })
        })
        .collect();
    let served = |answered: &AtomicU64| {
        eventually("answers", || (answered.load(SeqCst) >= 20).then_some(()));
    };
    for index in [0, 1, 0, 1] {
        // Both are at work before one of them goes.
        servers.iter().for_each(|(_, answered)| served(answered));
        let address = servers[index].0.handle().local_addrs()[0].to_string();
        let handle = servers[index].0.handle();
        handle.shutdown();
        let report = wait(handle.closed());
        assert_eq!(report.aborted, 0, "{report}");
        no_copy_is_left();
        servers[index] = start(&address);
    }
    servers.iter().for_each(|(_, answered)| served(answered));
    stop.store(true, SeqCst);
    for client in clients {
        client.join().unwrap().unwrap();
    }
    drop(haproxy);
    for (running, _) in servers {
        wait(running.shutdown()).unwrap();
    }
    for path in [front, config] {
        fs::remove_file(path).unwrap();
    }
}
