//! Promise 12. **Accept never spins and never dies of a peer.** A peer's error: next. Our shortage
//! (EMFILE, ENFILE, ENOBUFS, ENOMEM): back off 5 ms doubling to 1 s, one log line per episode, ended
//! at once by a shutdown or by the end of a connection of ours. A dead listener: shutdown with that
//! error, drained as any other.
//!
//! What no kernel does on demand is in `own_transport`, with listeners that fail as they are told.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use gracious::{Address, Connection};

use crate::support::TestRuntime;
use crate::support::client::{Client, Visit, echo, eventually, taken_in, visit};
use crate::support::peer::at_home;
use crate::support::peer::{Process, passes, settled};

crate::on_every_runtime!(a_peer_that_is_gone_before_it_is_accepted_harms_nobody);

#[cfg(target_os = "linux")]
crate::on_every_runtime_in_a_process!(
    without_descriptors_it_waits_says_so_once_and_serves_on: short_of_descriptors,
        serves_on_in_a_shortage;
    a_readiness_probe_is_told_of_a_shortage: short_of_descriptors, tells_of_a_shortage;
    a_shutdown_ends_a_shortage_and_loses_nobody: short_of_descriptors, stops_in_a_shortage;
    a_shutdown_in_a_shortage_that_does_not_pass_ends_at_the_deadline: short_of_descriptors,
        stops_at_the_deadline_of_a_shortage;
    many_short_connections_in_a_shortage_do_not_fill_the_log: short_of_descriptors,
        comes_and_goes_in_a_shortage;
    a_door_that_nobody_can_come_through_takes_no_processor_time: shut_doors, passes;
);

async fn a_peer_that_is_gone_before_it_is_accepted_harms_nobody(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    for _ in 0..5 {
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let client = client.unwrap();
        let address: SocketAddr = server.local_addrs()[0].as_tcp().unwrap();
        client.connect(&address.into()).unwrap();
        // Closed with a reset.
        client.set_linger(Some(Duration::ZERO)).unwrap();
    }
    let mut client = Client::to(&server);
    let running = server.spawn(echo);
    assert_eq!(client.ask("hello"), "hello");
    drop(client);
    eventually("the last one ends", || running.handle().active() == 0);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.completed + report.failed, report.accepted);
    assert!(report.completed >= 1);
}

/// The kernel reports as ready what was shut, for as long as it is open.
#[cfg(target_os = "linux")]
async fn shut_doors(runtime: TestRuntime) {
    use std::net::{Shutdown, TcpListener};

    use crate::support::client::{on, unix_address};
    use crate::support::peer::{cpu_time, loopback};

    const A_WHILE: Duration = Duration::from_secs(1);
    // In circles it would be nearly all of it.
    let takes_little = async |what: &str| {
        let before = cpu_time();
        runtime.sleep(A_WHILE).await;
        let used = cpu_time() - before;
        assert!(used < A_WHILE / 3, "{what}: it used {used:?}");
    };

    // By ourselves, while a handler goes on.
    let server = on(&unix_address(), runtime.clone());
    let running = server
        .bind()
        .await
        .unwrap()
        .spawn(async |conn: Connection| {
            let _busy = conn.busy();
            std::future::pending::<()>().await;
        });
    let _client = Client::of(&running);
    taken_in(&running.handle(), 1);
    running.handle().shutdown();
    takes_little("a drain").await;
    running.handle().abort();
    settled(running.await);

    // By another who holds the listener, while nobody here is to be taken in.
    let listener = TcpListener::bind(loopback()).unwrap();
    let other = listener.try_clone().unwrap();
    let server = crate::support::server(runtime.clone()).adopt(listener);
    let server = server.max_connections(1).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    socket2::SockRef::from(&other)
        .shutdown(Shutdown::Both)
        .unwrap();
    takes_little("a full server").await;
    // Then it is found out.
    drop(client);
    assert!(running.await.is_err());
}

/// How many connections the child has descriptors for.
const ROOM: usize = 8;

/// An echo server that has few descriptors, until it is told otherwise.
#[cfg(target_os = "linux")]
async fn short_of_descriptors(runtime: TestRuntime) {
    use crate::support::peer::{cpu_time, logged, orders, tell};

    let orders = orders();
    let server = at_home(&runtime)
        .deadline(Duration::from_secs(60))
        .bind()
        .await
        .unwrap();
    let handle = server.handle();
    let running = server.spawn(echo);
    // Whatever opens descriptors of its own at its first use has done so when this is served.
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    eventually("it is gone", || handle.active() == 0);
    set_descriptors(ROOM);
    tell("address", &handle.local_addrs()[0]);
    while let Ok(order) = orders.recv().await {
        let stats = handle.stats();
        let warnings = || {
            let logged = logged();
            let warned = logged.iter().filter(|line| line.starts_with("WARN"));
            warned.count()
        };
        match order.as_str() {
            "shortage" => {
                eventually("a shortage", || {
                    handle.stats().accept_errors_by.shortage > 0
                });
                tell("shortage", stats.active);
            }
            "idle" => {
                let (before, errors) = (cpu_time(), handle.stats().accept_errors);
                runtime.sleep(Duration::from_millis(1500)).await;
                let used = cpu_time() - before;
                assert!(used < Duration::from_millis(500), "it used {used:?}");
                // Twice in a row at the slowest pace, and a few more for the way there.
                let errors = handle.stats().accept_errors - errors;
                assert!(errors < 20, "{errors} errors in 1.5 s");
                tell("idle", errors);
            }
            "warnings" => tell("warnings", warnings()),
            "more" => {
                limit_descriptors(1000);
                tell("more", "");
            }
            "readiness" => tell("readiness", handle.is_serving() && !handle.stats().shortage),
            "ready" => {
                // Nobody need come for it.
                eventually("it is ready", || handle.is_serving());
                assert!(!handle.stats().shortage);
                tell("ready", "");
            }
            "within" => {
                handle.shutdown_within(Duration::from_secs(2));
                break;
            }
            _ => {
                handle.shutdown();
                break;
            }
        }
    }
    let report = settled(running.await);
    let failed = report.failed + report.panicked;
    assert_eq!(failed, 0, "{report}");
    tell(
        "report",
        format_args!("{} {}", report.completed, report.aborted),
    );
}

/// Leaves room for `room` descriptors more than are open.
#[cfg(target_os = "linux")]
fn set_descriptors(room: usize) {
    use std::fs::File;

    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let highest = open
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.parse::<usize>().ok())
        .max();
    limit_descriptors(highest.unwrap() + 1 + room);
    // There may be gaps below the highest.
    let mut filling: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    filling.truncate(filling.len() - room);
    filling.into_iter().for_each(std::mem::forget);
}

#[cfg(target_os = "linux")]
fn limit_descriptors(count: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = Rlimit {
        current: Some(count as u64),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// More clients than the child has room for; each has asked something.
#[cfg(target_os = "linux")]
fn crowd(address: &Address) -> Vec<Client> {
    (0..ROOM + 6)
        .map(|i| {
            let mut client = Client::connect(address).unwrap();
            client.send(&format!("{i}\n"));
            client
        })
        .collect()
}

#[cfg(target_os = "linux")]
fn tells_of_a_shortage(mut process: Process) {
    let address = process.address();
    let mut inside = Client::connect(&address).unwrap();
    assert_eq!(inside.ask("hello"), "hello");
    process.tell("readiness");
    assert_eq!(process.hear("readiness"), "true");
    let mut clients = crowd(&address);
    process.tell("shortage");
    process.hear("shortage");
    // For as long as it lasts.
    for _ in 0..2 {
        process.tell("readiness");
        assert_eq!(process.hear("readiness"), "false");
        process.tell("idle");
        process.hear("idle");
    }
    process.tell("more");
    process.hear("more");
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.line(), i.to_string());
    }
    process.tell("ready");
    process.hear("ready");
    process.tell("stop");
    assert_eq!(inside.rest(), "");
    process.hear("report");
    process.ends_with(0);
}

#[cfg(target_os = "linux")]
fn serves_on_in_a_shortage(mut process: Process) {
    let address = process.address();
    let mut inside = Client::connect(&address).unwrap();
    assert_eq!(inside.ask("hello"), "hello");
    let clients = crowd(&address);
    process.tell("shortage");
    process.hear("shortage");
    // Who is inside is served as ever, and nothing is done for the others.
    assert_eq!(inside.ask("still here"), "still here");
    process.tell("idle");
    process.hear("idle");
    assert_eq!(inside.ask("still here"), "still here");
    process.tell("warnings");
    assert_eq!(process.hear("warnings"), "1");
    // As one leaves another comes in, in whatever turn: of shards each has a queue.
    drop(inside);
    let leaving = clients.into_iter().enumerate().map(|(i, mut client)| {
        std::thread::spawn(move || {
            assert_eq!(client.line(), i.to_string());
            client.finish();
            assert_eq!(client.rest(), "");
        })
    });
    let leaving: Vec<_> = leaving.collect();
    for client in leaving {
        client.join().unwrap();
    }
    // A second episode, which ends without anybody's leaving.
    let mut clients = crowd(&address);
    process.tell("idle");
    process.hear("idle");
    process.tell("more");
    process.hear("more");
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.line(), i.to_string());
    }
    process.tell("stop");
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    let all = 2 * (ROOM + 6) + 2;
    assert_eq!(process.hear("report"), format!("{all} 0"));
    process.ends_with(0);
}

#[cfg(target_os = "linux")]
fn stops_in_a_shortage(mut process: Process) {
    let clients = crowd(&process.address());
    process.tell("shortage");
    process.hear("shortage");
    process.tell("stop");
    // Each needs the descriptor of another that has read its end.
    let all = clients.len() + 1;
    for (i, mut client) in clients.into_iter().enumerate() {
        assert_eq!(client.rest(), format!("{i}\n"));
    }
    assert_eq!(process.hear("report"), format!("{all} 0"));
    process.ends_with(0);
}

#[cfg(target_os = "linux")]
fn stops_at_the_deadline_of_a_shortage(mut process: Process) {
    let address = process.address();
    // Half a line each: busy until the deadline.
    let clients: Vec<_> = (0..ROOM + 6)
        .map(|_| {
            let mut client = Client::connect(&address).unwrap();
            client.send("half a line");
            client
        })
        .collect();
    process.tell("shortage");
    process.hear("shortage");
    process.tell("within");
    let report = process.hear("report");
    let aborted = report.split(' ').nth(1).unwrap();
    assert!(aborted.parse::<usize>().unwrap() >= 1, "{report}");
    process.ends_with(0);
    drop(clients);
}

#[cfg(target_os = "linux")]
fn comes_and_goes_in_a_shortage(mut process: Process) {
    let address = process.address();
    // They take all the room but for one.
    let mut holders = Vec::new();
    for _ in 1..ROOM - 2 {
        let mut holder = Client::connect(&address).unwrap();
        assert_eq!(holder.ask("hello"), "hello");
        holders.push(holder);
    }
    let visitors: Vec<_> = (0..4)
        .map(|_| {
            let address = address.clone();
            thread::spawn(move || {
                for _ in 0..50 {
                    let mut client = Client::connect(&address).unwrap();
                    assert_eq!(client.ask("hello"), "hello");
                }
            })
        })
        .collect();
    for visitor in visitors {
        visitor.join().unwrap();
    }
    process.tell("warnings");
    let warnings: usize = process.hear("warnings").parse().unwrap();
    assert!(warnings <= 20, "{warnings} lines for 200 connections");
    process.tell("stop");
    for mut holder in holders {
        assert_eq!(holder.rest(), "");
    }
    process.ends_with(0);
    assert_eq!(visit(&address, ""), Visit::Refused);
}
