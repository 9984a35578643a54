//! Shards: a listening socket, a poller and a thread a worker. That they keep the promises is shown
//! with those, on every engine; here is what is special about them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use gracious::{Address, Connection, Handle, Listener, Server};

use crate::plain;
use crate::support::client::{Client, answer_once, echo, eventually, unix_address};
use crate::support::peer::{loopback, settled};
use crate::support::program::no_copy_is_left;
use crate::support::{DEADLINE, TestRuntime, within};

/// How many sockets of this machine listen on `address`.
fn listening_on(address: &Address) -> usize {
    const LISTEN: &str = "0A";
    let Address::Tcp(SocketAddr::V4(address)) = address else {
        panic!("{address} is not looked for here");
    };
    let hexadecimal = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(address.ip().octets()),
        address.port()
    );
    no_copy_is_left();
    let sockets = BufReader::new(File::open("/proc/net/tcp").unwrap()).lines();
    // Those that listen come first. Behind them are all that were connected of late: other tests
    // leave tens of thousands.
    let listening = sockets.skip(1).map_while(|line| {
        let line = line.unwrap();
        let mut columns = line.split_whitespace().skip(1);
        let address = columns.next().unwrap().to_owned();
        (columns.nth(1) == Some(LISTEN)).then_some(address)
    });
    listening.filter(|address| *address == hexadecimal).count()
}

fn shards(count: usize) -> gracious::Builder<TestRuntime> {
    Server::with_runtime(plain()).workers(count).sharded(true)
}

fn test(body: impl AsyncFnOnce() + Send + 'static) {
    within(std::time::Duration::from_secs(30), move || {
        async_std::task::block_on(body());
    });
}

#[test]
fn each_worker_listens_on_a_socket_of_its_own() {
    test(async || {
        let server = shards(3).listen(loopback()).bind().await.unwrap();
        let handle = server.handle();
        // One address all the same, for those who look at the server.
        assert_eq!(
            (handle.local_addrs().len(), handle.listeners().len()),
            (1, 1)
        );
        let address = handle.local_addrs()[0].clone();
        assert_eq!(listening_on(&address), 3);
        let running = server.spawn(echo);
        running.shutdown().await.unwrap();
        assert_eq!(listening_on(&address), 0);
    });
}

#[test]
fn the_queues_of_all_its_sockets_are_a_listeners_queue() {
    const QUEUED: usize = 20;
    test(async || {
        let server = shards(2).listen(loopback()).bind().await.unwrap();
        let handle = server.handle();
        let clients = [(); QUEUED].map(|()| Client::to(&server));
        // The last ACK of a handshake may be under way still.
        eventually("all queued", || {
            handle.listeners()[0].queued == Some(QUEUED as u32)
        });
        let running = server.spawn(answer_once);
        for mut client in clients {
            client.send("hello\n");
            assert_eq!(client.rest(), "hello\n");
        }
        assert_eq!(settled(running.shutdown().await).completed, QUEUED as u64);
    });
}

/// The worker that this runs on. Another thread may have taken over for it: one that is kept from
/// its core for long looks blocked.
fn worker() -> String {
    let thread = thread::current();
    let name = thread.name().and_then(|name| name.rsplit_once('-'));
    name.expect("a worker's thread").0.to_owned()
}

/// Which workers ran handlers, and for how many connections each.
type Served = Arc<Mutex<HashMap<String, usize>>>;

async fn noting_the_worker(conn: Connection, served: Served) -> std::io::Result<()> {
    *served.lock().unwrap().entry(worker()).or_default() += 1;
    answer_once(conn).await
}

fn visit_until(handle: &Handle, mut enough: impl FnMut() -> bool) {
    let mut visits = 0;
    while !enough() {
        assert!(visits < 1000, "the kernel deals out evenly enough for this");
        visits += 1;
        let mut client = Client::connect(&handle.local_addrs()[0]).unwrap();
        client.send("hello\n");
        assert_eq!(client.rest(), "hello\n");
    }
}

#[test]
fn every_worker_serves() {
    test(async || {
        let server = shards(2).listen(loopback()).bind().await.unwrap();
        let served = Served::default();
        let into = served.clone();
        let running = server.spawn(move |conn| noting_the_worker(conn, into));
        visit_until(&running.handle(), || served.lock().unwrap().len() == 2);
        settled(running.shutdown().await);
    });
}

#[test]
fn what_comes_through_one_socket_is_dealt_out_in_turn() {
    const EACH: usize = 10;
    test(async || {
        let adopted = TcpListener::bind("127.0.0.1:0").unwrap();
        let sources = [shards(2).listen(unix_address()), shards(2).adopt(adopted)];
        for builder in sources {
            let server = builder.bind().await.unwrap();
            let served = Served::default();
            let into = served.clone();
            let running = server.spawn(move |conn| noting_the_worker(conn, into));
            for _ in 0..2 * EACH {
                let mut client = Client::of(&running);
                client.send("hello\n");
                assert_eq!(client.rest(), "hello\n");
            }
            settled(running.shutdown().await);
            let served = served.lock().unwrap();
            assert_eq!(served.values().copied().collect::<Vec<_>>(), [EACH, EACH]);
        }
    });
}

#[test]
fn a_connection_stays_with_its_worker() {
    test(async || {
        let server = shards(2).listen(loopback()).bind().await.unwrap();
        let running = server.spawn(async |conn: Connection| {
            let mut workers = HashSet::new();
            for _ in 0..20 {
                workers.insert(worker());
                // Woken from elsewhere.
                let (tell, told) = async_channel::bounded(1);
                thread::spawn(move || tell.send_blocking(()));
                told.recv().await.unwrap();
            }
            assert_eq!(workers.len(), 1);
            answer_once(conn).await
        });
        let mut clients = [(); 4].map(|()| Client::of(&running));
        for client in &mut clients {
            client.send("hello\n");
            assert_eq!(client.rest(), "hello\n");
        }
        assert_eq!(settled(running.shutdown().await).completed, 4);
    });
}

#[test]
fn a_port_that_somebody_listens_on_is_an_error_as_ever() {
    test(async || {
        let first = shards(2).listen(loopback()).bind().await.unwrap();
        let address = first.local_addrs()[0].clone();
        let error = shards(2).listen(address.clone()).bind().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        // Nothing of the second is left, and the first is as it was.
        assert_eq!(listening_on(&address), 2);
        let first = first.spawn(echo);
        assert_eq!(Client::of(&first).ask("hello"), "hello");
        settled(first.shutdown().await);
    });
}

#[test]
fn a_port_can_be_shared_by_whoever_asks_for_it() {
    test(async || {
        fn sharing(address: &str) -> gracious::Builder<TestRuntime> {
            shards(2).listen(address).reuse_port(true)
        }
        let first = sharing(loopback().as_str()).bind().await.unwrap();
        let address = first.local_addrs()[0].clone();
        let second = sharing(&address.to_string()).bind().await.unwrap();
        assert_eq!(listening_on(&address), 4);
        drop((first, second));
        assert_eq!(listening_on(&address), 0);
    });
}

#[test]
fn shards_need_workers() {
    test(async || {
        let builder = Server::with_runtime(plain())
            .listen("127.0.0.1:0")
            .sharded(true);
        let error = builder.bind().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(
            error.to_string(),
            "sharded without workers: expected `workers(n)` beside it"
        );
    });
}

/// Without that, the shard that hears of a free permit first would serve its own queue for ever.
#[test]
fn a_limit_starves_no_shard() {
    const QUEUED: usize = 200;
    test(async || {
        let server = shards(2).listen(loopback()).max_connections(1);
        let server = server.bind().await.unwrap();
        let mut clients: Vec<_> = (0..QUEUED).map(|_| Client::to(&server)).collect();
        for client in &mut clients {
            client.send("hello\n");
        }
        let order = Arc::new(Mutex::new(Vec::new()));
        let into = order.clone();
        let running = server.spawn(async move |conn: Connection| {
            into.lock().unwrap().push(worker());
            answer_once(conn).await
        });
        for mut client in clients {
            assert_eq!(client.rest(), "hello\n");
        }
        let report = settled(running.shutdown().await);
        assert_eq!(report.completed, QUEUED as u64);
        // One that is closed and waits for its peer has no permit.
        assert!(report.peak <= 2, "{report}");
        let order = order.lock().unwrap();
        // In turn as long as both have somebody queued, which is long: the kernel deals out evenly.
        let turns = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(turns > QUEUED / 4, "{turns} changes in {order:?}");
    });
}

/// Calls its function when it is cloned, as a handler is for each connection.
struct OnClone<F>(F);

impl<F: Fn() + Clone> Clone for OnClone<F> {
    fn clone(&self) -> Self {
        (self.0)();
        Self(self.0.clone())
    }
}

/// What a handler does before it comes to its future is done on the thread of an accept loop, and so
/// is its clone. One that blocks there keeps the peers of that loop waiting, and no others.
#[test]
fn a_handler_that_is_slow_to_begin_stops_its_own_shard_alone() {
    const OTHERS: usize = 32;
    for blocks_at_clone in [true, false] {
        test(async move || {
            let server = shards(2).listen(loopback()).bind().await.unwrap();
            let (begin, begun) = mpsc::channel();
            let (unblock, blocked) = mpsc::channel::<()>();
            // The first connection takes it.
            let once = Arc::new(Mutex::new(None));
            let first = once.clone();
            let block = move || {
                let taken: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)> =
                    first.lock().unwrap().take();
                if let Some((begin, blocked)) = taken {
                    begin.send(()).unwrap();
                    // Until the other end is dropped.
                    let _dropped = blocked.recv();
                }
            };
            let at_clone = OnClone(block.clone());
            let running = server.spawn(move |conn| {
                let _with_the_handler = &at_clone;
                if !blocks_at_clone {
                    block();
                }
                answer_once(conn)
            });
            // From here on; that a handler is also cloned at the start is nobody's concern.
            *once.lock().unwrap() = Some((begin, blocked));
            let mut clients = vec![Client::of(&running)];
            clients[0].send("hello\n");
            begun.recv_timeout(DEADLINE).unwrap();
            // The kernel deals half of them out to each shard.
            for _ in 0..OTHERS {
                let mut client = Client::of(&running);
                client.send("hello\n");
                clients.push(client);
            }
            let handle = running.handle();
            eventually("the other shard serves", || handle.stats().completed > 0);
            drop(unblock);
            for client in &mut clients {
                assert_eq!(client.rest(), "hello\n");
            }
            let report = settled(running.shutdown().await);
            assert_eq!(report.completed, OTHERS as u64 + 1);
        });
    }
}

/// Each shard has a handler to clone; where there cannot be one there is no server.
#[test]
fn a_handler_that_cannot_be_cloned_for_each_shard_ends_the_server_with_an_error() {
    test(async || {
        let server = shards(2).listen(loopback()).bind().await.unwrap();
        let mut client = Client::to(&server);
        let cannot = || assert!(thread::panicking(), "as the test wants it");
        let at_clone = OnClone(cannot);
        let running = server.spawn(move |conn| {
            let _with_the_handler = &at_clone;
            answer_once(conn)
        });
        let handle = running.handle();
        let error = running.await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the handler's clone panicked: as the test wants it"
        );
        // Cleanly, whoever had come.
        assert_eq!(client.rest(), "");
        assert_eq!(settled(Ok(handle.closed().await)).rejected, 1);
    });
}

/// A listener of the user's own, which gives the peers that the test sends it.
struct Sent(async_channel::Receiver<UnixStream>);

impl Listener for Sent {
    type Io = smol::Async<UnixStream>;

    async fn accept(&mut self) -> io::Result<(Self::Io, Address)> {
        match self.0.recv().await {
            Ok(peer) => Ok((smol::Async::new(peer)?, Address::Unnamed)),
            Err(_) => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("sent".into()))
    }

    fn unacknowledged(_: &Self::Io) -> Option<usize> {
        Some(0)
    }

    fn quiet(_: &Self::Io) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn shut(&mut self) {
        self.0.close();
    }
}

/// Under a limit each accept loop looks at the listeners of all. The loop that waits at one of the
/// user's own is to hear of its next peer all the same.
#[test]
fn a_listener_that_another_loop_has_looked_at_is_still_waited_for() {
    test(async || {
        let (send, sent) = async_channel::unbounded();
        let builder = shards(2).listen(loopback()).listener(Sent(sent));
        let server = builder.max_connections(100).bind().await.unwrap();
        let running = server.spawn(answer_once);
        for _ in 0..50 {
            // Through the socket of either shard: its loop then looks at the other's.
            let mut client = Client::of(&running);
            client.send("hello\n");
            assert_eq!(client.rest(), "hello\n");
            let (client, peer) = UnixStream::pair().unwrap();
            send.try_send(peer).unwrap();
            let mut client = Client::Unix(client);
            client.send("hello\n");
            assert_eq!(client.rest(), "hello\n");
        }
        assert_eq!(settled(running.shutdown().await).completed, 100);
    });
}
