//! What a server says of its health, and until when: to HTTP probes, and to HAProxy's agent-check.
//!
//! The ignored ones need curl, and HAProxy.

#![cfg(target_os = "linux")]

mod kubernetes;
mod programs;
#[path = "../support/mod.rs"]
mod support;

use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use gracious::{Address, Connection, Handle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, PATIENCE, echo, eventually, refuses, taken_in, unix_address,
};
use crate::support::peer::{Process, at_home, orders, settled, tell};

on_every_runtime!(
    a_probe_hears_of_each_state_and_of_the_stop_before_the_door_is_shut,
    a_probe_is_no_peer,
    silent_clients_keep_no_probe_waiting,
    a_unix_path_can_be_asked_and_is_removed_last,
    a_server_that_is_never_served_answers_until_it_is_dropped,
    an_address_in_use_is_named,
);

alone_on_every_runtime!(handlers_that_block_all_threads_are_seen_by_the_liveness_alone,);

on_every_runtime_in_a_process!(
    a_probe_is_answered_where_no_descriptor_is_left: has_no_descriptor, asks_in_the_shortage;
);

/// What an HTTP probe gets: the status, and the text.
#[track_caller]
fn get(address: &Address, path: &str) -> (u16, String) {
    let mut client = Client::connect(address).unwrap();
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: probe\r\n\r\n"));
    let response = client.rest();
    let (head, body) = response
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{response:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3]
        .parse()
        .unwrap();
    let length = format!("Content-Length: {}\r\n", body.len());
    assert!(head.contains(&length), "{response}");
    (status, body.trim_end().to_owned())
}

/// What an agent gets, which says nothing.
#[track_caller]
fn agent(address: &Address) -> String {
    Client::connect(address).unwrap().rest()
}

fn asked(handle: &Handle) -> Address {
    handle.health_addrs()[0].clone()
}

fn says(text: &str) -> (u16, String) {
    let is_well = ["ready", "alive"].contains(&text);
    (if is_well { 200 } else { 503 }, text.to_owned())
}

async fn a_probe_hears_of_each_state_and_of_the_stop_before_the_door_is_shut(runtime: TestRuntime) {
    let server = at_home(&runtime).health("127.0.0.1:0").lame_duck(HOUR);
    let server = server.bind().await.unwrap();
    let handle = server.handle();
    let health = asked(&handle);
    assert_eq!(get(&health, "/ready"), says("starting"));
    assert_eq!(get(&health, "/live"), says("alive"));
    assert_eq!(agent(&health), "drain\n");
    let running = server.spawn(echo);
    eventually("it is ready", || get(&health, "/ready") == says("ready"));
    assert_eq!(agent(&health), "up ready\n");
    handle.pause();
    assert_eq!(get(&health, "/ready"), says("paused"));
    handle.resume();
    assert_eq!(get(&health, "/ready"), says("ready"));
    let mut before = Client::of(&running);
    assert_eq!(before.ask("hello"), "hello");
    handle.shutdown();
    // At once, and while the door is open.
    assert_eq!(get(&health, "/ready"), says("draining"));
    assert_eq!(agent(&health), "drain\n");
    let mut after = Client::of(&running);
    assert_eq!(after.ask("hello"), "hello");
    after.send("he");
    // The end of the lame duck, and of all the others.
    handle.shutdown_within(HOUR / 2);
    assert_eq!(before.rest(), "");
    assert!(refuses(&handle.local_addrs()[0]));
    assert_eq!(get(&health, "/ready"), says("draining"));
    assert_eq!(get(&health, "/live"), says("alive"));
    assert_eq!(after.ask("llo"), "hello");
    assert_eq!(after.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.accepted, report.completed), (2, 2));
    assert!(refuses(&health));
    // For a successor in this process.
    let next = at_home(&runtime)
        .health(health.clone())
        .bind()
        .await
        .unwrap();
    assert_eq!(get(&health, "/ready"), says("starting"));
    drop(next);
}

async fn a_probe_is_no_peer(runtime: TestRuntime) {
    let server = at_home(&runtime).health("127.0.0.1:0").max_connections(1);
    let running = server.bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    let health = asked(&handle);
    // The one that there may be is there.
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    let _waits = Client::of(&running);
    // Other shards may not have begun yet.
    eventually("the server is ready", || {
        get(&health, "/ready") == says("ready")
    });
    for _ in 0..20 {
        assert_eq!(get(&health, "/ready"), says("ready"));
    }
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.active), (1, 1));
    assert_eq!(handle.local_addrs().len(), 1);
    // A half-asked question does not hold up the stop.
    let mut half = Client::connect(&health).unwrap();
    half.send("GET /ready HT");
    handle.shutdown();
    drop(client);
    assert_eq!(settled(running.await).active, 0);
}

async fn silent_clients_keep_no_probe_waiting(runtime: TestRuntime) {
    let server = at_home(&runtime).health("127.0.0.1:0");
    let running = server.bind().await.unwrap().spawn(echo);
    let health = asked(&running.handle());
    // More than are answered at once.
    let silent: Vec<_> = (0..150)
        .map(|_| Client::connect(&health).unwrap())
        .collect();
    assert_eq!(get(&health, "/live"), says("alive"));
    for mut client in silent {
        assert_eq!(client.rest(), "up ready\n");
    }
    // What is no request at all.
    let mut client = Client::connect(&health).unwrap();
    client.send("state\n");
    assert_eq!(client.rest(), "up ready\n");
    let mut client = Client::connect(&health).unwrap();
    client.send("GET / HTTP/1.1\r\n\r\n");
    assert!(client.rest().starts_with("HTTP/1.1 404 "));
    let _report = settled(running.shutdown().await);
}

async fn a_unix_path_can_be_asked_and_is_removed_last(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .health(unix_address())
        .health("127.0.0.1:0");
    let running = server.bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    let path = handle.health_addrs()[0].as_path().unwrap().to_owned();
    let mut client = Client::of(&running);
    client.send("he");
    taken_in(&handle, 1);
    eventually("it is ready", || {
        get(&asked(&handle), "/ready") == says("ready")
    });
    handle.shutdown();
    eventually("the door is shut", || refuses(&handle.local_addrs()[0]));
    assert_eq!(agent(&asked(&handle)), "drain\n");
    assert_eq!(get(&handle.health_addrs()[1], "/ready"), says("draining"));
    assert!(path.exists());
    handle.abort();
    let _report = running.await;
    assert!(!path.exists());
}

async fn a_server_that_is_never_served_answers_until_it_is_dropped(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .health("127.0.0.1:0")
        .bind()
        .await
        .unwrap();
    let health = asked(&server.handle());
    assert_eq!(get(&health, "/ready"), says("starting"));
    drop(server);
    assert!(refuses(&health));
}

async fn an_address_in_use_is_named(runtime: TestRuntime) {
    let one = at_home(&runtime)
        .health("127.0.0.1:0")
        .bind()
        .await
        .unwrap();
    let health = asked(&one.handle());
    // Where others may share the port of peers nobody shares this one.
    let other = at_home(&runtime).reuse_port(true).health(health.clone());
    let error = other.bind().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&health.to_string()), "{error}");
}

/// The executors have one thread each; the test's own has two.
async fn handlers_that_block_all_threads_are_seen_by_the_liveness_alone(runtime: TestRuntime) {
    let server = at_home(&runtime).health("127.0.0.1:0");
    let server = server.bind().await.unwrap();
    let (blocked, blocks) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(std::sync::Mutex::new(released));
    let running = server.spawn(move |_conn: Connection| {
        let (blocked, released) = (blocked.clone(), released.clone());
        async move {
            blocked.send(()).unwrap();
            let _ended = released.lock().unwrap().recv();
        }
    });
    let handle = running.handle();
    let health = asked(&handle);
    eventually("it is ready", || get(&health, "/ready") == says("ready"));
    let _clients = [Client::of(&running), Client::of(&running)];
    blocks.recv_timeout(PATIENCE).unwrap();
    if !runtime.engine.has_workers() && runtime.engine == support::Engine::Executor {
        blocks.recv_timeout(PATIENCE).unwrap();
    }
    // Busy is not dead.
    assert_eq!(get(&health, "/live"), says("alive"));
    assert_eq!(get(&health, "/ready"), says("ready"));
    runtime.put_forward(Duration::from_secs(60));
    if runtime.engine.has_workers() {
        // Another thread takes the place of one that is blocked.
        eventually("the task runs", || get(&health, "/live") == says("alive"));
    } else {
        let (status, text) = get(&health, "/live");
        assert!(status == 503 && text.starts_with("stuck for 6"), "{text}");
    }
    drop(release);
    eventually("the task runs", || get(&health, "/live") == says("alive"));
    assert_eq!(settled(running.shutdown().await).aborted, 0);
}

async fn has_no_descriptor(runtime: TestRuntime) {
    let server = at_home(&runtime).health("127.0.0.1:0");
    let running = server.bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    tell("address", &handle.local_addrs()[0]);
    tell("address", &handle.health_addrs()[0]);
    let orders = orders();
    let limit = getrlimit(Resource::Nofile);
    let mut filling = Vec::new();
    loop {
        match orders.recv().await.unwrap().as_str() {
            "fill" => {
                let few = Rlimit {
                    current: Some(200),
                    ..limit
                };
                setrlimit(Resource::Nofile, few).unwrap();
                filling.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
            }
            "free" => filling.clear(),
            _ => break,
        }
        tell("done", "");
    }
    let _report = settled(running.shutdown().await);
}

fn asks_in_the_shortage(mut process: Process) {
    let (address, health) = (process.address(), process.address());
    eventually("it is ready", || get(&health, "/ready") == says("ready"));
    // The descriptor of a probe that was answered may be free a moment later.
    let is_short = |process: &mut Process| {
        process.tell("fill");
        process.hear("done");
        get(&health, "/ready") == says("short of descriptors")
    };
    // Before any peer has found it out.
    for _ in 0..3 {
        eventually("it is short", || is_short(&mut process));
        assert_eq!(get(&health, "/live"), says("alive"));
        eventually("the agent hears", || {
            is_short(&mut process) && agent(&health) == "drain\n"
        });
    }
    let mut client = Client::connect(&address).unwrap();
    client.send("hello\n");
    for _ in 0..3 {
        eventually("it is short", || is_short(&mut process));
    }
    process.tell("free");
    process.hear("done");
    assert_eq!(client.line(), "hello");
    eventually("it is ready", || get(&health, "/ready") == says("ready"));
    process.tell("stop");
    process.ends_with(0);
}
