//! A successor takes the listening sockets over, and until it is ready nothing about the old server
//! changes. Here both are in one process; `upgrades.rs` has real ones.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use gracious::{Address, Builder, Handover, Reason, Running, State};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, PATIENCE, Visit, answer_once, assert_balance, echo, eventually, refuses, rounds,
    transports, unix_path, visit,
};
use crate::support::peer::settled;

crate::on_every_runtime!(
    a_successor_takes_the_sockets_and_their_queues,
    nothing_changes_until_the_successor_is_ready,
    a_successor_that_gives_up_leaves_everything_as_it_was,
    one_successor_at_a_time,
    a_successor_that_is_late_is_refused,
    a_stop_during_a_handover_goes_on_and_says_so,
    a_server_that_stops_hands_nothing_over,
    without_a_predecessor_there_is_nothing_to_take,
    a_successor_of_another_version_is_refused,
    what_the_successor_does_not_name_is_swept,
    another_configuration_gets_sockets_of_its_own,
    each_listener_has_an_identity_of_its_own,
    two_names_that_are_alike_are_refused,
    a_name_with_two_addresses_is_taken_over_whole,
    every_socket_of_more_shards_is_served,
    fewer_sockets_than_shards_are_dealt_out,
    a_path_belongs_to_the_successor,
    a_successor_stops_as_any_server,
    handovers_under_a_storm_turn_nobody_away,
    an_operator_is_told_how_it_went,
    a_socket_that_is_no_path_of_ours_is_not_listened_at,
);

/// A server that can be asked for a handover at `trigger`.
fn at(trigger: &Path, runtime: &TestRuntime) -> Builder<TestRuntime> {
    crate::support::server(runtime.clone())
        .deadline(HOUR)
        .hand_over_at(trigger, || Command::new("false"))
}

/// Waits until the successor can connect: the socket is answered in the runtime.
#[track_caller]
fn there(path: &Path) {
    eventually("the socket is there", || UnixStream::connect(path).is_ok());
}

async fn take(trigger: &Path) -> Handover {
    there(trigger);
    Handover::take(trigger).await.unwrap()
}

async fn old_of(server: Builder<TestRuntime>) -> (Running, Vec<Address>) {
    let running = server.bind().await.unwrap().spawn(echo);
    let addresses = running.handle().local_addrs().to_vec();
    (running, addresses)
}

async fn a_successor_takes_the_sockets_and_their_queues(runtime: TestRuntime) {
    for target in transports() {
        let trigger = unix_path();
        let named = || at(&trigger, &runtime).listen_named("it", target.as_str());
        let (mut old, addresses) = old_of(named()).await;
        // Again and again: a successor is a predecessor.
        for _ in 0..3 {
            let mut inside = Client::of(&old);
            assert_eq!(inside.ask("hello"), "hello");
            old.handle().pause();
            let mut queued: Vec<_> = (0..30).map(|_| Client::of(&old)).collect();

            let handover = take(&trigger).await;
            assert!(handover.has_predecessor());
            assert_eq!(handover.names(), ["it"]);
            let new = named().handover(&handover).bind().await.unwrap();
            assert_eq!(new.local_addrs(), addresses);
            let new = new.spawn(echo);
            handover.ready().await.unwrap();
            assert!(!handover.has_predecessor());
            assert_eq!(inside.rest(), "");
            drop(inside);
            let report = settled(old.await);
            assert_eq!(report.reason, Reason::HandedOver);
            assert_eq!((report.accepted, report.completed), (1, 1));

            for client in &mut queued {
                assert_eq!(client.ask("hello"), "hello");
            }
            assert_eq!(Client::of(&new).ask("hello"), "hello");
            drop(queued);
            eventually("they are gone", || new.handle().active() == 0);
            old = new;
            // One that is inside was accepted by the next.
            old = again(old, &trigger, &named).await;
        }
        settled(old.shutdown().await);
        assert!(refuses(&addresses[0]));
        eventually("the path is removed", || !trigger.exists());
    }
}

/// Hands over once more, so that the counts are those of a new server.
async fn again(old: Running, trigger: &Path, named: &impl Fn() -> Builder<TestRuntime>) -> Running {
    let handover = take(trigger).await;
    let new = named()
        .handover(&handover)
        .bind()
        .await
        .unwrap()
        .spawn(echo);
    handover.ready().await.unwrap();
    settled(old.await);
    new
}

async fn nothing_changes_until_the_successor_is_ready(runtime: TestRuntime) {
    let trigger = unix_path();
    let named = || at(&trigger, &runtime).listen_named("it", "127.0.0.1:0");
    let (old, addresses) = old_of(named()).await;
    let mut inside = Client::of(&old);
    assert_eq!(inside.ask("hello"), "hello");
    let handover = take(&trigger).await;
    let new = named().handover(&handover).bind().await.unwrap();
    for _ in 0..10 {
        // Bound, and not served: all peers are the old one's.
        assert_eq!(
            Client::connect(&addresses[0]).unwrap().ask("hello"),
            "hello"
        );
    }
    assert_eq!(inside.ask("hello"), "hello");
    assert_eq!(old.handle().state(), State::Serving);
    let new = new.spawn(echo);
    handover.ready().await.unwrap();
    // Again it is no error.
    handover.ready().await.unwrap();
    assert_eq!(inside.rest(), "");
    drop(inside);
    let report = settled(old.await);
    assert_eq!(report.completed, 11);
    settled(new.shutdown().await);
}

async fn a_successor_that_gives_up_leaves_everything_as_it_was(runtime: TestRuntime) {
    for target in transports() {
        let trigger = unix_path();
        let named = || at(&trigger, &runtime).listen_named("it", target.as_str());
        let (old, addresses) = old_of(named()).await;
        let mut inside = Client::of(&old);
        assert_eq!(inside.ask("hello"), "hello");
        for served in [false, true] {
            let handover = take(&trigger).await;
            let new = named().handover(&handover).bind().await.unwrap();
            match served {
                false => drop(new),
                true => drop(settled(new.spawn(echo).shutdown().await)),
            }
            drop(handover);
            assert_eq!(inside.ask("hello"), "hello");
            assert_eq!(
                Client::connect(&addresses[0]).unwrap().ask("hello"),
                "hello"
            );
        }
        // The next one has its turn.
        let handover = taken_when_free(&trigger).await;
        let new = named()
            .handover(&handover)
            .bind()
            .await
            .unwrap()
            .spawn(echo);
        handover.ready().await.unwrap();
        drop(inside);
        settled(old.await);
        settled(new.shutdown().await);
    }
}

/// Takes over when the successor before is known to be gone.
async fn taken_when_free(trigger: &Path) -> Handover {
    there(trigger);
    loop {
        match Handover::take(trigger).await {
            Ok(handover) => return handover,
            Err(error) => assert!(error.to_string().contains("another successor"), "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

async fn one_successor_at_a_time(runtime: TestRuntime) {
    let trigger = unix_path();
    let named = || at(&trigger, &runtime).listen_named("it", "127.0.0.1:0");
    let (old, _) = old_of(named()).await;
    let first = take(&trigger).await;
    let refused = Handover::take(&trigger).await.unwrap_err();
    assert!(
        refused.to_string().contains("another successor"),
        "{refused}"
    );
    let refused = old.handle().hand_over(Command::new("true")).await;
    assert_eq!(
        refused.unwrap_err().kind(),
        std::io::ErrorKind::ResourceBusy
    );
    let new = named().handover(&first).bind().await.unwrap().spawn(echo);
    first.ready().await.unwrap();
    settled(old.await);
    settled(new.shutdown().await);
}

async fn a_successor_that_is_late_is_refused(runtime: TestRuntime) {
    let trigger = unix_path();
    let named = || at(&trigger, &runtime).listen_named("it", "127.0.0.1:0");
    let (old, addresses) = old_of(named().handover_timeout(Duration::from_millis(200))).await;
    let handover = take(&trigger).await;
    let late = named()
        .handover(&handover)
        .bind()
        .await
        .unwrap()
        .spawn(echo);
    eventually("it is late", || {
        let again = async_io::block_on(Handover::take(&trigger));
        again.is_ok()
    });
    let refused = handover.ready().await.unwrap_err();
    assert!(
        refused.to_string().contains("was not ready within 200ms"),
        "{refused}"
    );
    settled(late.shutdown().await);
    assert_eq!(
        Client::connect(&addresses[0]).unwrap().ask("hello"),
        "hello"
    );
    settled(old.shutdown().await);
    assert!(refuses(&addresses[0]));
}

async fn a_stop_during_a_handover_goes_on_and_says_so(runtime: TestRuntime) {
    let trigger = unix_path();
    let named = || at(&trigger, &runtime).listen_named("it", "127.0.0.1:0");
    let (old, _) = old_of(named()).await;
    let handover = take(&trigger).await;
    let new = named()
        .handover(&handover)
        .bind()
        .await
        .unwrap()
        .spawn(echo);
    old.handle().shutdown_because("enough");
    assert_eq!(settled(old.await).reason, Reason::Because("enough".into()));
    let refused = handover.ready().await.unwrap_err();
    assert!(
        refused.to_string().contains("was asked to stop"),
        "{refused}"
    );
    // The socket was shut for both.
    let _has_failed = new.shutdown().await;
}

async fn a_server_that_stops_hands_nothing_over(runtime: TestRuntime) {
    let trigger = unix_path();
    let server = at(&trigger, &runtime).listen_named("it", "127.0.0.1:0");
    let server = server.bind().await.unwrap();
    let unserved = server.handle().hand_over(Command::new("true")).await;
    assert!(unserved.unwrap_err().to_string().contains("not served"));
    let running = server.spawn(echo);
    let mut busy = Client::of(&running);
    assert_eq!(busy.ask("hello"), "hello");
    busy.send("hal");
    eventually("half a message", || running.handle().stats().bytes_in == 9);
    running.handle().shutdown();
    let stopping = running.handle().hand_over(Command::new("true")).await;
    assert!(
        stopping
            .unwrap_err()
            .to_string()
            .contains("was asked to stop")
    );
    assert_eq!(running.handle().state(), State::Draining);
    busy.send("f\n");
    assert_eq!(busy.rest(), "half\n");
    drop(busy);
    assert_eq!(settled(running.await).reason, Reason::Requested);
}

async fn without_a_predecessor_there_is_nothing_to_take(runtime: TestRuntime) {
    let inherited = Handover::inherit().unwrap();
    let taken = Handover::take(unix_path()).await.unwrap();
    for handover in [inherited, taken] {
        assert!(!handover.has_predecessor());
        let trigger = unix_path();
        let server = at(&trigger, &runtime).listen_named("it", "127.0.0.1:0");
        let running = server.handover(&handover).bind().await.unwrap().spawn(echo);
        handover.ready().await.unwrap();
        assert_eq!(Client::of(&running).ask("hello"), "hello");
        settled(running.shutdown().await);
    }
}

async fn a_successor_of_another_version_is_refused(runtime: TestRuntime) {
    let trigger = unix_path();
    let (old, _) = old_of(at(&trigger, &runtime).listen_named("it", "127.0.0.1:0")).await;
    there(&trigger);
    let mut stranger = UnixStream::connect(&trigger).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut ask = vec![b'T'];
    ask.extend(4_u32.to_ne_bytes());
    ask.extend(99_u32.to_ne_bytes());
    stranger.write_all(&ask).unwrap();
    let mut answer = Vec::new();
    stranger.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[0], b'N');
    let words = String::from_utf8_lossy(&answer[5..]);
    assert_eq!(words, "a successor of version 99: expected 1");
    // And what is no handover at all.
    for noise in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"T",
        b"T\xff\xff\xff\xffxx",
        b"",
    ] {
        let mut stranger = UnixStream::connect(&trigger).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        stranger.write_all(noise).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _reset = stranger.read_to_end(&mut answer);
    }
    assert_eq!(Client::of(&old).ask("hello"), "hello");
    let handover = take(&trigger).await;
    drop(handover);
    settled(old.shutdown().await);
}

async fn what_the_successor_does_not_name_is_swept(runtime: TestRuntime) {
    for target in transports() {
        let trigger = unix_path();
        let both = at(&trigger, &runtime).listen_named("kept", "127.0.0.1:0");
        let (old, addresses) = old_of(both.listen_named("left", target.as_str())).await;
        old.handle().pause();
        let mut queued: Vec<_> = addresses
            .iter()
            .map(|it| Client::connect(it).unwrap())
            .collect();
        for client in &mut queued {
            client.send("hello\n");
        }
        let handover = take(&trigger).await;
        let new = at(&trigger, &runtime).handover(&handover);
        let new = new
            .listen_named("kept", "127.0.0.1:0")
            .bind()
            .await
            .unwrap();
        assert_eq!(new.local_addrs(), &addresses[..1]);
        assert_eq!(handover.names(), ["left"]);
        let new = new.spawn(answer_once);
        handover.ready().await.unwrap();
        for client in &mut queued {
            assert_eq!(client.line(), "hello");
        }
        drop(queued);
        // What was left is the old one's, and what was taken the new one's.
        assert_eq!(settled(old.await).completed, 1);
        assert!(refuses(&addresses[1]));
        if let Address::Unix(path) = &addresses[1] {
            assert!(!path.exists());
        }
        assert_eq!(settled(new.shutdown().await).completed, 1);
    }
}

async fn another_configuration_gets_sockets_of_its_own(runtime: TestRuntime) {
    let trigger = unix_path();
    let (old, addresses) = old_of(at(&trigger, &runtime).listen_named("it", "127.0.0.1:0")).await;
    let handover = take(&trigger).await;
    let new = at(&trigger, &runtime).handover(&handover);
    let new = new.listen_named("it", "127.0.0.2:0").bind().await.unwrap();
    assert!(new.local_addrs()[0].to_string().starts_with("127.0.0.2:"));
    let new = new.spawn(echo);
    handover.ready().await.unwrap();
    settled(old.await);
    assert!(refuses(&addresses[0]));
    assert_eq!(Client::of(&new).ask("hello"), "hello");
    settled(new.shutdown().await);
}

async fn each_listener_has_an_identity_of_its_own(runtime: TestRuntime) {
    let trigger = unix_path();
    let named = |names: [&'static str; 2]| {
        let server = at(&trigger, &runtime).listen_named(names[0], "127.0.0.1:0");
        server.listen_named(names[1], "127.0.0.1:0")
    };
    let (old, addresses) = old_of(named(["one", "other"])).await;
    let handover = take(&trigger).await;
    // In another order: it is the name that counts.
    let new = named(["other", "one"])
        .handover(&handover)
        .bind()
        .await
        .unwrap();
    let swapped = [addresses[1].clone(), addresses[0].clone()];
    assert_eq!(new.local_addrs(), swapped);
    let new = new.spawn(async |mut conn: gracious::Connection| {
        let line = format!("{}\n", conn.local_addr()?);
        futures_lite::AsyncWriteExt::write_all(&mut conn, line.as_bytes()).await
    });
    handover.ready().await.unwrap();
    settled(old.await);
    for address in &addresses {
        let Visit::Closed(said) = visit(address, "") else {
            panic!("nobody at {address}");
        };
        assert_eq!(said, format!("{address}\n"));
    }
    // Each is one listener, and shutting one leaves the other.
    assert!(new.handle().shut(0));
    assert!(refuses(&addresses[1]));
    assert!(!refuses(&addresses[0]));
    settled(new.shutdown().await);
}

async fn two_names_that_are_alike_are_refused(runtime: TestRuntime) {
    let server = crate::support::server(runtime).listen_named("it", "127.0.0.1:0");
    let refused = server
        .listen_named("it", "127.0.0.1:0")
        .bind()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    assert!(refused.to_string().contains("\"it\""), "{refused}");
}

async fn a_name_with_two_addresses_is_taken_over_whole(runtime: TestRuntime) {
    let trigger = unix_path();
    let named = || at(&trigger, &runtime).listen_named("it", "localhost:0");
    let (old, addresses) = old_of(named()).await;
    let handover = take(&trigger).await;
    let new = named().handover(&handover).bind().await.unwrap();
    let port = |it: &Address| it.to_string().parse::<SocketAddr>().unwrap().port();
    assert_eq!(new.local_addrs().len(), addresses.len());
    assert!(
        new.local_addrs()
            .iter()
            .all(|it| port(it) == port(&addresses[0]))
    );
    let new = new.spawn(echo);
    handover.ready().await.unwrap();
    settled(old.await);
    for address in &addresses {
        assert_eq!(Client::connect(address).unwrap().ask("hello"), "hello");
    }
    settled(new.shutdown().await);
}

/// Hands a server of so many shards over to one of the test's engine, and visits that.
async fn from_shards_to(old: Builder<TestRuntime>, new: Builder<TestRuntime>, trigger: PathBuf) {
    let old = old.listen_named("it", "127.0.0.1:0").backlog(64);
    let (old, addresses) = old_of(old.hand_over_at(&trigger, || Command::new("false"))).await;
    old.handle().pause();
    // In the queues of all sockets, as the kernel deals them out.
    let mut queued: Vec<_> = (0..40).map(|_| Client::of(&old)).collect();
    let handover = take(&trigger).await;
    let new = new.listen_named("it", "127.0.0.1:0").handover(&handover);
    let new = new.bind().await.unwrap().spawn(echo);
    handover.ready().await.unwrap();
    settled(old.await);
    for client in &mut queued {
        assert_eq!(client.ask("hello"), "hello");
    }
    for _ in 0..100 {
        assert_eq!(
            Client::connect(&addresses[0]).unwrap().ask("hello"),
            "hello"
        );
    }
    drop(queued);
    settled(new.shutdown().await);
    assert!(refuses(&addresses[0]));
}

async fn every_socket_of_more_shards_is_served(runtime: TestRuntime) {
    let sharded = crate::support::server(runtime.clone())
        .workers(5)
        .sharded(true);
    from_shards_to(sharded, crate::support::server(runtime), unix_path()).await;
}

async fn fewer_sockets_than_shards_are_dealt_out(runtime: TestRuntime) {
    let sharded = crate::support::server(runtime.clone())
        .workers(5)
        .sharded(true);
    from_shards_to(crate::support::server(runtime), sharded, unix_path()).await;
}

async fn a_path_belongs_to_the_successor(runtime: TestRuntime) {
    let (trigger, path) = (unix_path(), unix_path());
    let named = || at(&trigger, &runtime).listen_named("it", Address::Unix(path.clone()));
    let (old, _) = old_of(named()).await;
    let new = again(old, &trigger, &named).await;
    assert_eq!(Client::of(&new).ask("hello"), "hello");
    assert!(path.exists());
    settled(new.shutdown().await);
    assert!(!path.exists());
}

/// The sockets are its own by then: new peers are refused at once, and the queue is served.
async fn a_successor_stops_as_any_server(runtime: TestRuntime) {
    for target in transports() {
        let trigger = unix_path();
        let named = || at(&trigger, &runtime).listen_named("it", target.as_str());
        let (old, addresses) = old_of(named()).await;
        let new = again(old, &trigger, &named).await;
        let mut busy = Client::of(&new);
        assert_eq!(busy.ask("hello"), "hello");
        busy.send("hal");
        eventually("half a message", || new.handle().stats().bytes_in == 9);
        new.handle().pause();
        let mut queued: Vec<_> = (0..30).map(|_| Client::of(&new)).collect();
        for client in &mut queued {
            client.send("hello\n");
        }
        new.handle().shutdown();
        eventually("it is closed", || new.handle().listeners().is_empty());
        assert!(refuses(&addresses[0]));
        for client in &mut queued {
            assert_eq!(client.rest(), "hello\n");
        }
        busy.send("f\n");
        assert_eq!(busy.rest(), "half\n");
        drop((busy, queued));
        assert_eq!(settled(new.await).completed, 31);
    }
}

async fn handovers_under_a_storm_turn_nobody_away(runtime: TestRuntime) {
    for target in transports() {
        let trigger = unix_path();
        let named = || at(&trigger, &runtime).listen_named("it", target.as_str());
        let mut old = named().bind().await.unwrap().spawn(answer_once);
        let address = old.handle().local_addrs()[0].clone();
        let is_over = Arc::new(AtomicBool::new(false));
        let storm = [(); 3].map(|()| {
            let (address, is_over) = (address.clone(), is_over.clone());
            thread::spawn(move || {
                let mut served = 0_u64;
                while !is_over.load(SeqCst) {
                    let answer = visit(&address, "hello\n");
                    assert_eq!(answer, Visit::Closed("hello\n".into()));
                    served += 1;
                }
                served
            })
        });
        let mut completed = 0;
        for _ in 0..rounds(10) {
            eventually("some are served", || old.handle().stats().completed > 5);
            let handover = take(&trigger).await;
            let new = named().handover(&handover).bind().await.unwrap();
            let new = new.spawn(answer_once);
            handover.ready().await.unwrap();
            let report = settled(old.await);
            assert_balance(&report.stats);
            assert_eq!(report.reason, Reason::HandedOver);
            completed += report.completed;
            old = new;
        }
        is_over.store(true, SeqCst);
        let served: u64 = storm.map(|it| it.join().unwrap()).iter().sum();
        completed += settled(old.shutdown().await).completed;
        assert_eq!(completed, served);
    }
}

async fn an_operator_is_told_how_it_went(runtime: TestRuntime) {
    let trigger = unix_path();
    // `false` ends at once, and takes nothing over.
    let (old, _) = old_of(at(&trigger, &runtime).listen_named("it", "127.0.0.1:0")).await;
    there(&trigger);
    let mode = std::fs::metadata(&trigger).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (line, expected) in [
        (
            "upgrade\n",
            "not handed over: the successor ended, or gave up, before it was ready\n",
        ),
        ("please\n", "expected a line: upgrade\n"),
    ] {
        let mut operator = UnixStream::connect(&trigger).unwrap();
        operator.set_read_timeout(Some(PATIENCE)).unwrap();
        operator.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        operator.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, expected);
    }
    assert_eq!(Client::of(&old).ask("hello"), "hello");
    settled(old.shutdown().await);
    eventually("the path is removed", || !trigger.exists());
}

async fn a_socket_that_is_no_path_of_ours_is_not_listened_at(runtime: TestRuntime) {
    let trigger = unix_path();
    std::fs::write(&trigger, "a file").unwrap();
    let server = at(&trigger, &runtime).listen_named("it", "127.0.0.1:0");
    let refused = server.bind().await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse, "{refused}");
    assert_eq!(std::fs::read_to_string(&trigger).unwrap(), "a file");
    std::fs::remove_file(&trigger).unwrap();
}
