//! Real processes that replace each other: each generation is this test's program, started anew by the
//! one before, which gives its sockets to it.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncWriteExt, future};
use gracious::{Address, Connection, Handle, Handover};

use crate::support::TestRuntime;
use crate::support::client::{Client, Visit, rounds, unix_path, visit};
use crate::support::peer::{Process, logged, settled, tell};

crate::on_every_runtime_in_a_process!(
    programs_replace_each_other_under_load_and_turn_nobody_away: generation, replaces_under_load;
    a_successor_that_is_never_ready_leaves_the_old_one_serving: generation, tries_bad_successors;
    a_program_is_replaced_without_a_descriptor_left: generation, replaces_when_starved;
    a_stop_during_an_upgrade_kills_the_successor: generation, stops_during_an_upgrade;
);

const GENERATION: &str = "GRACIOUS_TEST_GENERATION";
const MODE: &str = "GRACIOUS_TEST_MODE";
const PATH: &str = "GRACIOUS_TEST_PATH";

/// The files that have all descriptors.
static STARVED: Mutex<Vec<File>> = Mutex::new(Vec::new());

pub(crate) fn number() -> u32 {
    std::env::var(GENERATION).map_or(1, |it| it.parse().unwrap())
}

/// What starts the next generation, which behaves as `mode` says.
fn next(mode: &str, path: &str) -> Command {
    if mode == "missing" {
        return Command::new("/nowhere/at/all");
    }
    if mode == "other" {
        // Another program altogether, which ends well and takes nothing over.
        return Command::new("true");
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(std::env::args_os().skip(1))
        .env(GENERATION, (number() + 1).to_string())
        .env(MODE, mode)
        .env(PATH, path);
    command
}

/// One generation's life.
async fn generation(runtime: TestRuntime) {
    let handover = Handover::inherit().unwrap();
    let is_first = std::env::var(PATH).is_err();
    assert_eq!(handover.has_predecessor(), !is_first);
    // A program that this one starts otherwise finds nothing, nor does a second call.
    assert!(!Handover::inherit().unwrap().has_predecessor());
    let path = std::env::var(PATH).unwrap_or_else(|_| unix_path().display().to_string());
    let mode = std::env::var(MODE).unwrap_or_default();
    if mode == "ends" {
        std::process::exit(0);
    }
    let server = crate::support::server(runtime)
        .handover(&handover)
        .handover_timeout(Duration::from_millis(if is_first { 3000 } else { 20_000 }))
        .listen_named("tcp", "127.0.0.1:0")
        .listen_named("unix", Address::Unix(path.clone().into()))
        .bind()
        .await
        .unwrap();
    if is_first {
        tell("address", &server.local_addrs()[0]);
        tell("path", &path);
    }
    if mode == "crashes" {
        std::process::abort();
    }
    if mode == "hangs" {
        tell("hangs", std::process::id());
        future::pending::<()>().await;
    }
    let running = server.spawn(async move |conn| answer(conn, &path).await);
    handover.ready().await.unwrap();
    tell("said", format!("{} serves", number()));
    let report = settled(running.await);
    assert!(report.is_clean(), "{report}");
    tell("said", format!("{} ended: {}", number(), report.reason));
}

/// Answers lines: some are orders, and the others come back with the generation's number.
async fn answer(conn: Connection, path: &str) -> std::io::Result<()> {
    let (reader, mut writer) = conn.split();
    let handle = writer.handle();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        let reply = obey(&line?, &handle, path).await;
        writer.write_all(format!("{reply}\n").as_bytes()).await?;
    }
    Ok(())
}

pub(crate) async fn obey(line: &str, handle: &Handle, path: &str) -> String {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("upgrade", mode) => match handle.hand_over(next(mode, path)).await {
            Ok(_) => "done".to_owned(),
            Err(error) => error.to_string(),
        },
        ("stop", _) => {
            handle.shutdown();
            "stopping".to_owned()
        }
        ("warnings", _) => {
            let warned = logged();
            let warned = warned.iter().filter(|it| it.contains("not handed over"));
            warned.count().to_string()
        }
        ("starve", _) => {
            use rustix::process::{Resource, getrlimit, setrlimit};
            let mut limit = getrlimit(Resource::Nofile);
            limit.current = Some(256);
            setrlimit(Resource::Nofile, limit).unwrap();
            let mut files = STARVED.lock().unwrap();
            while let Ok(file) = File::open("/dev/null") {
                files.push(file);
            }
            files.len().to_string()
        }
        _ => format!("{} {line}", number()),
    }
}

/// What the generations say, in whatever order: two of them go on at a time.
#[track_caller]
pub(crate) fn hears<const N: usize>(process: &mut Process, said: [String; N]) {
    let mut awaited = said.to_vec();
    while !awaited.is_empty() {
        let said = process.hear("said");
        let known = awaited.iter().position(|it| *it == said);
        awaited.remove(known.unwrap_or_else(|| panic!("{said:?} in place of {awaited:?}")));
    }
}

fn addresses(process: &mut Process) -> [Address; 2] {
    let tcp = process.address();
    let unix = Address::Unix(process.hear("path").into());
    hears(process, ["1 serves".into()]);
    [tcp, unix]
}

#[track_caller]
fn order(address: &Address, line: &str) -> String {
    Client::connect(address).unwrap().ask(line)
}

fn replaces_under_load(mut process: Process) {
    let addresses = addresses(&mut process);
    let is_over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = addresses
        .iter()
        .cycle()
        .take(4)
        .enumerate()
        .map(|(number, address)| {
            let (address, is_over) = (address.clone(), is_over.clone());
            thread::spawn(move || match number < 2 {
                true => visits(&address, &is_over),
                false => keeps_alive(&address, &is_over),
            })
        })
        .collect();
    let upgrades = rounds(4) as u32;
    for generation in 2..=upgrades + 1 {
        assert_eq!(order(&addresses[0], "upgrade"), "done");
        let (old, new) = (generation - 1, generation);
        let said = [format!("{old} ended: handed over"), format!("{new} serves")];
        hears(&mut process, said);
        for address in &addresses {
            assert_eq!(order(address, "hello"), format!("{generation} hello"));
        }
    }
    is_over.store(true, SeqCst);
    for client in load {
        assert!(client.join().unwrap() > 0);
    }
    assert_eq!(order(&addresses[1], "stop"), "stopping");
    hears(&mut process, [format!("{} ended: requested", upgrades + 1)]);
    let Address::Unix(path) = &addresses[1] else {
        unreachable!()
    };
    assert!(!path.exists());
    process.ends_with(0);
}

/// One request a connection, without a pause.
fn visits(address: &Address, is_over: &AtomicBool) -> u64 {
    let mut served = 0;
    while !is_over.load(SeqCst) {
        let mut client = Client::connect(address).unwrap();
        let answer = client.ask("hello");
        assert!(answer.ends_with(" hello"), "{answer}");
        client.finish();
        assert_eq!(client.rest(), "");
        served += 1;
    }
    served
}

/// Many requests a connection. A request may be on its way when its connection looks idle: it is then
/// not answered, but neither is it reset, and asked again it is.
fn keeps_alive(address: &Address, is_over: &AtomicBool) -> u64 {
    use std::io::{BufRead, BufReader, Write};
    let mut served = 0;
    while !is_over.load(SeqCst) {
        let mut client = BufReader::new(Client::connect(address).unwrap());
        loop {
            // Where the server has ended it, the read says so.
            let _read_tells = client.get_mut().write_all(b"hello\n");
            let mut line = String::new();
            if client.read_line(&mut line).unwrap() == 0 {
                break;
            }
            assert!(line.ends_with(" hello\n"), "{line:?}");
            served += 1;
            if is_over.load(SeqCst) {
                break;
            }
        }
    }
    served
}

fn tries_bad_successors(mut process: Process) {
    let addresses = addresses(&mut process);
    let mut inside = Client::connect(&addresses[0]).unwrap();
    assert_eq!(inside.ask("hello"), "1 hello");
    let ended = "the successor ended, or gave up, before it was ready";
    let bad = [
        ("missing", "cannot start the successor"),
        ("other", ended),
        ("ends", ended),
        ("crashes", ended),
        ("hangs", "the successor was not ready within 3s"),
    ];
    for (tried, (mode, why)) in (1..).zip(bad) {
        let said = order(&addresses[1], &format!("upgrade {mode}"));
        assert!(said.contains(why), "{mode}: {said}");
        assert_eq!(
            order(&addresses[1], "warnings"),
            tried.to_string(),
            "{mode}"
        );
        for address in &addresses {
            assert_eq!(order(address, "hello"), "1 hello");
        }
        assert_eq!(inside.ask("hello"), "1 hello");
    }
    // And then a good one.
    assert_eq!(order(&addresses[1], "upgrade"), "done");
    assert_eq!(inside.rest(), "");
    drop(inside);
    hears(
        &mut process,
        ["1 ended: handed over".into(), "2 serves".into()],
    );
    assert_eq!(order(&addresses[0], "stop"), "stopping");
    process.ends_with(0);
}

fn replaces_when_starved(mut process: Process) {
    let addresses = addresses(&mut process);
    let mut inside = Client::connect(&addresses[0]).unwrap();
    let starved: usize = inside.ask("starve").parse().unwrap();
    assert!(starved > 10, "{starved}");
    // They wait: there is no descriptor to accept them with.
    let mut waiting: Vec<_> = addresses
        .iter()
        .cycle()
        .take(20)
        .map(|it| Client::connect(it).unwrap())
        .collect();
    assert_eq!(inside.ask("upgrade"), "done");
    for client in &mut waiting {
        let answer = client.ask("hello");
        assert!(answer.ends_with(" hello"), "{answer}");
    }
    assert_eq!(inside.rest(), "");
    drop((inside, waiting));
    hears(
        &mut process,
        ["1 ended: handed over".into(), "2 serves".into()],
    );
    let Visit::Closed(said) = visit(&addresses[0], "stop\n") else {
        panic!("nobody there");
    };
    assert_eq!(said, "stopping\n");
    hears(&mut process, ["2 ended: requested".into()]);
    process.ends_with(0);
}

fn stops_during_an_upgrade(mut process: Process) {
    let addresses = addresses(&mut process);
    let mut upgrading = Client::connect(&addresses[0]).unwrap();
    upgrading.send("upgrade hangs\n");
    let successor: i32 = process.hear("hangs").parse().unwrap();
    // Another has its turn.
    let said = order(&addresses[1], "upgrade");
    assert_eq!(said, "another successor has its turn");
    assert_eq!(order(&addresses[1], "stop"), "stopping");
    assert_eq!(upgrading.line(), "the server was asked to stop, and does");
    assert_eq!(upgrading.rest(), "");
    drop(upgrading);
    hears(&mut process, ["1 ended: requested".into()]);
    process.ends_with(0);
    let gone = || {
        let pid = rustix::process::Pid::from_raw(successor).unwrap();
        // A zombie, until init has reaped it.
        let state = std::fs::read_to_string(format!("/proc/{successor}/stat"));
        rustix::process::test_kill_process(pid).is_err()
            || state.is_ok_and(|it| it.contains(") Z "))
    };
    crate::support::client::eventually("it is killed", gone);
}
