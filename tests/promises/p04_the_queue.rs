//! Promise 4. **Nobody who was let in is reset**, on TCP and on Unix: here, the peers in the
//! kernel's queue. The sweep heeds no limit: a peer over the limit is queued without a handler,
//! gets a permit as other connections end, and at the deadline a clean close (`rejected`).
//! Handshakes under way are waited for, for `handshake_grace` at most. Without descriptors (EMFILE)
//! the sweep waits for one until the deadline.

use std::future::pending;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use async_io::Async;
use gracious::{Address, Connection, Listener, Running, State, Waiting};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, Visit, answer_once, assert_balance, echo, eventually, handing_over, on, reading,
    refuses, rounds, tcp, transports, unix_address, visit, waits,
};

crate::on_every_runtime!(
    a_full_queue_is_served_at_a_stop,
    a_queue_that_sent_nothing_is_closed_cleanly,
    a_server_that_is_never_served_closes_its_queue_cleanly,
    who_waits_at_a_paused_server_is_served_at_a_stop,
    who_waits_behind_the_limit_is_served_as_others_end,
    who_waits_behind_the_limit_is_closed_cleanly_at_the_deadline,
    stops_under_a_storm_of_connects_reset_nobody,
    #[cfg(target_os = "linux")]
    handshakes_under_way_are_waited_for,
    a_kept_sweep_ends_by_itself,
    a_listener_that_fails_once_it_is_shut_does_not_hold_up_the_stop,
);

crate::alone_on_every_runtime!(
    a_sweep_of_tcp_without_descriptors_waits_for_one,
    a_sweep_of_unix_without_descriptors_waits_for_one,
    a_kept_sweep_without_descriptors_waits_for_one,
    a_sweep_of_tcp_without_descriptors_goes_on_as_connections_end,
    a_sweep_of_unix_without_descriptors_goes_on_as_connections_end,
    a_sweep_without_descriptors_ends_at_the_deadline,
);

const QUEUED: usize = 50;

async fn a_full_queue_is_served_at_a_stop(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let mut queued: Vec<_> = (0..QUEUED).map(|_| Client::to(&server)).collect();
        for (i, client) in queued.iter_mut().enumerate() {
            client.send(&format!("hello from {i}\n"));
        }
        server.handle().shutdown();
        let queued = reading(queued);
        let report = server.serve(echo).await.unwrap();
        for (i, said) in queued.join().unwrap().iter().enumerate() {
            assert_eq!(*said, format!("hello from {i}\n"));
        }
        assert_eq!((report.accepted, report.completed), (50, 50));
    }
}

async fn a_queue_that_sent_nothing_is_closed_cleanly(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).first_byte_grace(None);
        let server = server.bind().await.unwrap();
        let mut queued: Vec<_> = (0..QUEUED).map(|_| Client::to(&server)).collect();
        server.handle().shutdown();
        let report = server.serve(echo).await.unwrap();
        for client in &mut queued {
            assert_eq!(client.rest(), "");
        }
        assert_eq!((report.accepted, report.completed), (50, 50));
    }
}

async fn a_server_that_is_never_served_closes_its_queue_cleanly(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let handle = server.handle();
        let mut queued: Vec<_> = (0..QUEUED).map(|_| Client::to(&server)).collect();
        for client in &mut queued[..QUEUED / 2] {
            client.send("never read\n");
        }
        drop(server);
        for client in &mut queued {
            assert_eq!(client.rest(), "");
        }
        assert!(refuses(&handle.local_addrs()[0]));
        let report = handle.closed().await;
        assert_eq!((report.accepted, report.rejected), (50, 50));
    }
}

async fn who_waits_at_a_paused_server_is_served_at_a_stop(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let handle = server.handle();
        handle.pause();
        let running = server.spawn(echo);
        eventually("a paused server", || handle.state() == State::Paused);
        let mut queued: Vec<_> = (0..QUEUED).map(|_| Client::of(&running)).collect();
        for client in &mut queued {
            client.send("hello\n");
        }
        assert_eq!(handle.stats().accepted, 0);
        let queued = reading(queued);
        let report = running.shutdown().await.unwrap();
        assert_eq!(queued.join().unwrap(), ["hello\n"; 50]);
        assert_eq!((report.accepted, report.completed), (50, 50));
    }
}

/// A server with one permit, which is in use, and a queue of peers; asked to stop.
async fn one_served_and_others_queued(
    runtime: TestRuntime,
    address: &str,
    deadline: Option<Duration>,
) -> (Running, Served, Vec<Client>) {
    let server = on(address, runtime).max_connections(1).deadline(deadline);
    let (running, connections) = handing_over(server.bind().await.unwrap());
    let client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    let mut queued: Vec<_> = (0..QUEUED).map(|_| Client::of(&running)).collect();
    for client in &mut queued {
        client.send("hello\n");
    }
    assert_eq!(running.handle().stats().accepted, 1);
    running.handle().shutdown();
    conn.shutdown_requested().await;
    let served = Served {
        client,
        conn,
        connections,
    };
    (running, served, queued)
}

struct Served {
    client: Client,
    conn: Connection,
    connections: async_channel::Receiver<Connection>,
}

async fn who_waits_behind_the_limit_is_served_as_others_end(runtime: TestRuntime) {
    for address in transports() {
        let (running, served, queued) =
            one_served_and_others_queued(runtime.clone(), &address, None).await;
        let handle = running.handle();
        // All are accepted, and none of them has a handler.
        assert_eq!(handle.stats().accepted, 51);
        let without = handle.connections().split_off(1);
        assert!(
            without.iter().all(|it| it.waiting == Waiting::Limit),
            "{without:?}"
        );
        assert!(served.connections.is_empty());
        drop(served.conn);
        let mut first = served.client;
        assert_eq!(first.rest(), "");
        let queued = reading(queued);
        for _ in 0..QUEUED {
            let conn = served.connections.recv().await.unwrap();
            // There is one permit, and no other connection got one.
            assert!(served.connections.is_empty());
            answer_once(conn).await.unwrap();
        }
        assert_eq!(queued.join().unwrap(), ["hello\n"; QUEUED]);
        let report = running.await.unwrap();
        assert_eq!((report.accepted, report.completed), (51, 51));
    }
}

async fn who_waits_behind_the_limit_is_closed_cleanly_at_the_deadline(runtime: TestRuntime) {
    for address in transports() {
        let deadline = Some(Duration::from_millis(100));
        let (running, _inside, mut queued) =
            one_served_and_others_queued(runtime.clone(), &address, deadline).await;
        let report = running.await.unwrap();
        assert_eq!(report.accepted, 51);
        assert_eq!((report.aborted, report.rejected), (1, 50), "{report}");
        for client in &mut queued {
            assert_eq!(client.rest(), "");
        }
    }
}

/// A bare loop that closes its listener reset 430 clients in 20 such stops.
async fn stops_under_a_storm_of_connects_reset_nobody(runtime: TestRuntime) {
    for round in 0..rounds(20) {
        let address = &transports()[round % 2];
        let server = on(address, runtime.clone()).first_byte_grace(HOUR);
        let running = server.bind().await.unwrap().spawn(answer_once);
        let handle = running.handle();
        let served = Arc::new(AtomicU64::new(0));
        let storm: Vec<_> = (0..8)
            .map(|_| {
                let (served, address) = (served.clone(), handle.local_addrs()[0].clone());
                // Until the door is shut.
                thread::spawn(move || {
                    loop {
                        match visit(&address, "hello\n") {
                            Visit::Closed(reply) if reply == "hello\n" => {
                                served.fetch_add(1, SeqCst);
                            }
                            last => return last,
                        }
                    }
                })
            })
            .collect();
        eventually("a storm", || served.load(SeqCst) >= 50);
        let report = running.shutdown().await.unwrap();
        let mut closed = 0;
        for thread in storm {
            match thread.join().unwrap() {
                Visit::Refused => {}
                // Its handshake was finished after the sweep, and before the listener was closed.
                Visit::Closed(reply) if reply.is_empty() => closed += 1,
                other => panic!("{other:?}, {report}"),
            }
        }
        assert_eq!(report.completed, served.load(SeqCst), "{report}");
        assert_eq!(report.rejected, closed, "{report}");
        assert_eq!(report.accepted, report.completed + report.rejected);
    }
}

/// A listener that waits for a first byte keeps peers that have sent nothing as handshakes under way.
/// They have been answered, and believe to be connected. When all of them go on at once, a look for
/// handshakes finds none while most are in the queue.
#[cfg(target_os = "linux")]
async fn handshakes_under_way_are_waited_for(runtime: TestRuntime) {
    const UNDER_WAY: usize = 100;
    let server = on("127.0.0.1:0", runtime).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    let running = server.spawn(echo);
    let mut idle = Client::of(&running);
    assert_eq!(idle.ask("hello"), "hello");
    defer_accept(&address);
    let mut clients: Vec<_> = (0..UNDER_WAY).map(|_| Client::of(&running)).collect();
    running.handle().shutdown();
    // Whoever is told finds the listener as it stays: kept, or closed.
    assert_eq!(idle.rest(), "");
    assert!(refuses(&address));
    for client in &mut clients {
        client.send("hello\n");
    }
    assert_eq!(reading(clients).join().unwrap(), vec!["hello\n"; UNDER_WAY]);
    let report = running.await.unwrap();
    assert_eq!(report.completed, UNDER_WAY as u64 + 1);
}

/// Has the listener at this address, which is one of this process, wait for the first byte of a peer.
#[cfg(target_os = "linux")]
fn defer_accept(address: &Address) {
    let address = address.as_tcp().unwrap();
    let seconds: libc::c_int = 30;
    let is_done = std::fs::read_dir("/proc/self/fd").unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        let descriptor: i32 = name.to_str().unwrap().parse().unwrap();
        // SAFETY: it is used at once. One that another test has closed meanwhile is no listener at
        // this address.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let socket = socket2::SockRef::from(&descriptor);
        let is_it = socket.is_listener().unwrap_or(false)
            && socket
                .local_addr()
                .is_ok_and(|it| it.as_socket() == Some(address));
        // SAFETY: the option is one C int, which is what is pointed to for the time of the call.
        is_it
            && unsafe {
                libc::setsockopt(
                    descriptor.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_DEFER_ACCEPT,
                    (&raw const seconds).cast(),
                    size_of_val(&seconds) as libc::socklen_t,
                ) == 0
            }
    });
    assert!(is_done, "there is no listener at {address}");
}

async fn a_kept_sweep_ends_by_itself(runtime: TestRuntime) {
    let addresses = [
        vec!["127.0.0.1:0".to_owned()],
        vec![unix_address()],
        vec!["127.0.0.1:0".to_owned(), unix_address()],
    ];
    for addresses in addresses {
        let mut builder = on(&addresses[0], runtime.clone());
        for address in &addresses[1..] {
            builder = builder.listen(address);
        }
        let server = builder
            .handshake_grace(Duration::from_millis(20))
            .bind()
            .await
            .unwrap();
        let mut queued: Vec<_> = server
            .local_addrs()
            .iter()
            .map(|address| Client::connect(address).unwrap())
            .collect();
        for client in &mut queued {
            client.send("hello\n");
        }
        server.handle().shutdown();
        let queued = reading(queued);
        let report = server.serve(echo).await.unwrap();
        assert!(queued.join().unwrap().iter().all(|said| said == "hello\n"));
        assert_eq!(report.completed, addresses.len() as u64);
        assert_eq!(report.accept_errors, 0);
    }
}

/// A listener that is as good as gone once it is shut.
struct Gone(bool);

impl Listener for Gone {
    type Io = Async<UnixStream>;

    async fn accept(&mut self) -> io::Result<(Self::Io, Address)> {
        match self.0 {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("gone".into()))
    }

    fn shut(&mut self) {
        self.0 = true;
    }
}

async fn a_listener_that_fails_once_it_is_shut_does_not_hold_up_the_stop(runtime: TestRuntime) {
    for sweep in [Duration::ZERO, Duration::from_millis(20)] {
        let server = tcp(runtime.clone())
            .listener(Gone(false))
            .handshake_grace(sweep);
        let running = server.bind().await.unwrap().spawn(echo);
        running.shutdown().await.unwrap();
    }
}

/// No descriptor more than those that are open now, and those that the runtime's threads need.
async fn lack_descriptors(runtime: &TestRuntime) -> Lack {
    let (started, has_started) = async_channel::bounded(1);
    runtime.spawn(async move { started.send(()).await.unwrap() });
    has_started.recv().await.unwrap();
    let limit = getrlimit(Resource::Nofile);
    // A thread that starts may have a file open for a moment, and leave its number free.
    while let Ok(free) = std::fs::File::open("/dev/null") {
        let current = Some(u64::try_from(free.as_raw_fd()).unwrap());
        drop(free);
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    Lack(limit)
}

struct Lack(Rlimit);

impl Lack {
    fn end(self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

async fn a_sweep_of_tcp_without_descriptors_waits_for_one(runtime: TestRuntime) {
    waits_for_a_descriptor("127.0.0.1:0", Duration::ZERO, runtime).await;
}

async fn a_sweep_of_unix_without_descriptors_waits_for_one(runtime: TestRuntime) {
    waits_for_a_descriptor(&unix_address(), Duration::ZERO, runtime).await;
}

async fn a_kept_sweep_without_descriptors_waits_for_one(runtime: TestRuntime) {
    waits_for_a_descriptor("127.0.0.1:0", Duration::from_millis(50), runtime).await;
}

async fn waits_for_a_descriptor(address: &str, sweep: Duration, runtime: TestRuntime) {
    let builder = on(address, runtime.clone()).handshake_grace(sweep);
    let server = builder.bind().await.unwrap();
    let handle = server.handle();
    let mut queued: Vec<_> = (0..5).map(|_| Client::to(&server)).collect();
    for client in &mut queued {
        client.send("hello\n");
    }
    let lack = lack_descriptors(&runtime).await;
    handle.shutdown();
    let mut running = server.spawn(echo);
    let shortages = || handle.stats().accept_errors_by.shortage;
    eventually("several tries", || shortages() >= 3);
    assert!(waits(&mut running).await);
    lack.end();
    for client in &mut queued {
        assert_eq!(client.rest(), "hello\n");
    }
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.completed), (5, 5), "{report}");
    // It did not spin: twice as long a pause each time.
    assert!(report.accept_errors < 100, "{report}");
}

async fn a_sweep_of_tcp_without_descriptors_goes_on_as_connections_end(runtime: TestRuntime) {
    goes_on_as_connections_end("127.0.0.1:0", runtime).await;
}

async fn a_sweep_of_unix_without_descriptors_goes_on_as_connections_end(runtime: TestRuntime) {
    goes_on_as_connections_end(&unix_address(), runtime).await;
}

/// Each descriptor that is given back takes the next one in.
async fn goes_on_as_connections_end(address: &str, runtime: TestRuntime) {
    let builder = on(address, runtime.clone()).max_connections(1);
    let (running, connections) = handing_over(builder.bind().await.unwrap());
    let handle = running.handle();
    let mut first = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    let mut queued: Vec<_> = (0..5).map(|_| Client::of(&running)).collect();
    for client in &mut queued {
        client.send("hello\n");
    }
    let lack = lack_descriptors(&runtime).await;
    handle.shutdown();
    eventually("a shortage", || handle.stats().accept_errors > 0);
    drop(conn);
    assert_eq!(first.rest(), "");
    let queued = reading(queued);
    for _ in 0..5 {
        answer_once(connections.recv().await.unwrap())
            .await
            .unwrap();
    }
    assert_eq!(queued.join().unwrap(), ["hello\n"; 5]);
    let report = running.await.unwrap();
    lack.end();
    assert_eq!((report.accepted, report.completed), (6, 6), "{report}");
}

async fn a_sweep_without_descriptors_ends_at_the_deadline(runtime: TestRuntime) {
    let server = tcp(runtime.clone()).deadline(Duration::from_millis(100));
    let server = server.bind().await.unwrap();
    let _queued: Vec<_> = (0..5).map(|_| Client::to(&server)).collect();
    let lack = lack_descriptors(&runtime).await;
    server.handle().shutdown();
    let report = server.serve(echo).await.unwrap();
    lack.end();
    assert_eq!(report.accepted, 0);
    assert!(report.accept_errors > 0);
    assert_balance(&report);
}
