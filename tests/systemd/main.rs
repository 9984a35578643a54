//! What systemd does with a service, and is told by it: each test's parent is systemd, with a
//! NOTIFY_SOCKET of its own and sockets that it passes, and its children are processes of the service.
//!
//! The ignored ones need Debian's package `systemd`, for its real tools.

#![cfg(target_os = "linux")]

mod supervisor;
#[path = "../support/mod.rs"]
mod support;
mod units;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use futures_lite::future;
use gracious::{Address, Runtime};

use crate::supervisor::Systemd;
use crate::support::client::{Client, echo, refuses, unix_path};
use crate::support::peer::{half_of, logged, orders, tell};
use crate::support::{Body, Engine, TestRuntime};

tests_on_every_engine!(
    crate::as_a_service;
    on_async_std on_smol on_workers on_shards on_an_executor_of_ones_own;
    a_service_is_ready_when_it_accepts_and_counts_its_drain_down: is_one_service, hears_its_life;
    the_watchdog_hears_of_a_service_that_lives: is_one_service, is_its_watchdog;
    the_watchdog_hears_nothing_while_one_of_two_servers_is_stuck: has_one_stuck, misses_it;
    a_service_of_two_servers_is_ready_when_both_are: is_two_servers, hears_of_both;
    sockets_that_are_passed_are_served_by_their_names: takes_what_is_passed, passes_two;
    a_restart_loses_nobody_where_the_listeners_are_stored: has_its_listeners_stored, restarts_it;
    listeners_that_are_not_stored_are_swept_and_closed: has_its_listeners_stored, stores_nothing;
    a_stored_socket_of_another_address_is_not_served: has_its_listeners_stored, passes_another
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
    tell("inherited", format!("{:?}", inherited()));
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
                "fail to tell" => {
                    while !logged().iter().any(|it| it.contains("cannot tell systemd")) {
                        async_io::Timer::after(Duration::from_millis(1)).await;
                    }
                    tell("failed", "");
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

/// A runtime that wakes nobody while it is stuck, and says for how long it was asked to sleep.
#[derive(Clone)]
struct Stuck(TestRuntime, Arc<AtomicBool>);

impl Runtime for Stuck {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        self.0.spawn(future);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let Self(runtime, is_stuck) = self.clone();
        if !is_stuck.load(SeqCst) {
            tell("sleeps", format!("{duration:?}"));
        }
        async move {
            runtime.sleep(duration).await;
            while is_stuck.load(SeqCst) {
                runtime.sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn has_one_stuck(runtime: TestRuntime) {
    let is_stuck = Arc::new(AtomicBool::new(false));
    let one = runtime
        .engine
        .server(Stuck(runtime.clone(), is_stuck.clone()));
    let one = one.listen("127.0.0.1:0").notify().bind().await.unwrap();
    let other = support::server(runtime).listen("127.0.0.1:0").notify();
    let other = other.bind().await.unwrap();
    let running = [one.spawn(echo), other.spawn(echo)];
    tell("bound", "");
    let orders = orders();
    loop {
        match orders.recv().await.unwrap().as_str() {
            "stick" => is_stuck.store(true, SeqCst),
            "go on" => is_stuck.store(false, SeqCst),
            _ => break,
        }
    }
    for server in running {
        let _report = server.shutdown().await.unwrap();
    }
}

fn misses_it(test: &'static str) {
    let systemd = Systemd::at_a_path();
    let interval = Duration::from_millis(400);
    let environment = [("WATCHDOG_USEC", "400000"), ("WATCHDOG_PID", "own")];
    let mut service = systemd.start(test, &environment, Vec::new());
    for _beat in 0..3 {
        systemd.hears("WATCHDOG=1");
    }
    // Half of what it has: a busy machine's delays are no reason to be killed.
    while service.hear("sleeps") != format!("{:?}", interval / 2) {}
    service.tell("stick");
    // As systemd does, which would kill it now.
    systemd.misses_the_watchdog_for(interval);
    service.tell("go on");
    systemd.hears("WATCHDOG=1");
    service.tell("stop");
    service.ends_with(0);
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
    tell("address", &one.local_addrs()[0]);
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
    let mut client = Client::connect(&service.address()).unwrap();
    service.hear("bound");
    // It is served, and the service is not ready.
    assert_eq!(client.ask("hello"), "hello");
    client.send("he");
    assert!(systemd.has_heard_nothing());
    service.tell("serve");
    systemd.hears("READY=1");
    service.tell("stop one");
    // One of its servers does, the service does not.
    systemd.hears_without("STATUS=draining", "STOPPING=1");
    assert_eq!(client.ask("llo"), "hello");
    service.hear("stopped");
    while !systemd.has_heard_nothing() {
        // The rest of its countdown.
    }
    service.tell("stop the other");
    systemd.hears("STOPPING=1");
    service.ends_with(0);
}

async fn takes_what_is_passed(runtime: TestRuntime) {
    let builder = support::server(runtime).listen_systemd_named("admin");
    serves(builder.listen_systemd()).await;
}

/// Those of the first two descriptors that systemd passes which a program that this one starts would
/// have, too: it would hold the port.
fn inherited() -> Vec<i32> {
    let is_inherited = |descriptor: &i32| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"));
        let flags = info.unwrap_or_default();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_some_and(|it| {
            let flags = i32::from_str_radix(it.trim(), 8).unwrap();
            flags & libc::O_CLOEXEC == 0
        })
    };
    (3..5).filter(is_inherited).collect()
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
        assert_eq!(service.hear("inherited"), "[]");
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
    // How many peers each process has at least: the busy one, and those that it finds in the queues.
    let mut expected = 1;
    for _round in 0..3 {
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
        waiting.extend(come(12));
        service.tell("stop");
        systemd.hears("STOPPING=1");
        systemd.hears("STATUS=draining: 1 left");
        waiting.extend(come(20));
        assert_eq!(busy.ask("llo"), "hello");
        let report = service.hear("report");
        let (before, _) = report.split_once(" accepted").unwrap();
        let accepted: usize = before.rsplit(' ').next().unwrap().parse().unwrap();
        // An accept loop that hears of the pause a moment later takes one more. (There are three at most.)
        let more = accepted - expected;
        assert!(more <= 3, "{more} more: {report}");
        expected = 1 + waiting.len() - more;
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

fn passes_another(test: &'static str) {
    let systemd = Systemd::at_a_path();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(free.local_addr().unwrap());
    drop(free);
    let another = TcpListener::bind("127.0.0.1:0").unwrap();
    // Two addresses may have one name, which is of 255 characters at most, and of some alone.
    let name = format!("gracious {address}").replace(':', ".");
    let said = address.to_string();
    let environment = [
        ("FDSTORE", "8"),
        ("ADDRESSES", said.as_str()),
        ("LISTEN_FDNAMES", name.as_str()),
    ];
    let mut service = systemd.start(test, &environment, vec![another.into()]);
    assert_eq!(service.address(), address);
    // Nor is it left to programs that this one starts.
    assert_eq!(service.hear("inherited"), "[]");
    service.hear("bound");
    service.tell("serve");
    systemd.hears("READY=1");
    assert_eq!(Client::connect(&address).unwrap().ask("hello"), "hello");
    service.tell("stop");
    service.ends_with(0);
}

fn stores_nothing(test: &'static str) {
    // Too few, or not said; or systemd is not there to be sent them.
    for (size, is_there) in [("1", true), ("", true), ("8", false)] {
        let systemd = Systemd::at_a_path();
        let addresses = addresses();
        let said = addresses.each_ref().map(ToString::to_string).join(" ");
        let environment = [("FDSTORE", size), ("ADDRESSES", said.as_str())];
        let mut service = systemd.start(test, &environment, Vec::new());
        service.hear("bound");
        let mut clients = addresses.each_ref().map(|it| Client::connect(it).unwrap());
        if is_there {
            service.tell("serve");
            systemd.hears("READY=1");
        } else {
            drop(systemd);
            service.tell("serve");
            service.tell("fail to tell");
            service.hear("failed");
        }
        for client in &mut clients {
            assert_eq!(client.ask("hello"), "hello");
        }
        service.tell("pause");
        service.hear("paused");
        // Those in the queue are this process's own.
        let queued = addresses.each_ref().map(|address| {
            let mut client = Client::connect(address).unwrap();
            client.send("hello\n");
            client
        });
        service.tell("stop");
        for client in &mut clients {
            assert_eq!(client.rest(), "");
        }
        for mut client in queued {
            assert_eq!(client.rest(), "hello\n");
        }
        let warning = match is_there {
            true => "FileDescriptorStoreMax=",
            false => "cannot tell systemd `FDSTORE=1",
        };
        while !service.hear("warned").contains(warning) {}
        assert!(service.hear("report").contains(": 4 accepted"));
        service.ends_with(0);
        assert!(addresses.iter().all(refuses));
    }
}
