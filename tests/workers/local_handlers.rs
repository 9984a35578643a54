//! `serve_local`: handlers that are not `Send`, each on the thread that it began on.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use gracious::{Builder, Connection, Reason, Server};

use crate::plain;
use crate::support::client::{Client, HOUR, eventually, taken_in, unix_address};
use crate::support::flood::{Flood, write_when_asked};
use crate::support::peer::{OnDrop, is_cut, loopback, settled};
use crate::support::{TestRuntime, within};

/// Every kind of server that local handlers can be served on: its own sockets a worker, one socket
/// for two workers, a runtime's reactor for as many workers as there are cores, a Unix socket.
fn kinds() -> [Builder<TestRuntime>; 4] {
    let builder = || Server::with_runtime(plain()).deadline(HOUR);
    [
        builder().listen(loopback()).workers(2).sharded(true),
        builder().listen(loopback()).workers(2),
        builder().listen(loopback()),
        builder().listen(unix_address()).workers(2),
    ]
}

/// Runs `body` on a server of each kind.
fn on_every_kind(body: impl AsyncFn(Server<TestRuntime>) + Send + 'static) {
    within(Duration::from_secs(60), move || {
        async_std::task::block_on(async {
            for builder in kinds() {
                body(builder.bind().await.unwrap()).await;
            }
        });
    });
}

/// Waits for one byte.
#[track_caller]
fn heard(client: &mut Client) {
    client.read_exact(&mut [0]).unwrap();
}

/// Answers lines, and counts them in what cannot be sent to another thread.
async fn echo(mut conn: Connection, lines: Rc<Cell<usize>>) -> io::Result<()> {
    let mut line = String::new();
    while conn.read_line(&mut line).await? > 0 {
        lines.set(lines.get() + 1);
        conn.write_all(line.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

#[test]
fn they_serve_and_drain_as_others_do() {
    on_every_kind(async |server| {
        let running = server.spawn_local(|| {
            let lines = Rc::new(Cell::new(0));
            move |conn| echo(conn, lines)
        });
        let mut clients = [(); 6].map(|()| Client::of(&running));
        for client in &mut clients {
            assert_eq!(client.ask("hello"), "hello");
        }
        // Idle ones see the end, and those who are inside it finish.
        let report = settled(running.shutdown().await);
        for client in &mut clients {
            assert_eq!(client.rest(), "");
        }
        assert_eq!((report.accepted, report.completed), (6, 6));
        assert_eq!(report.reason, Reason::Requested);
    });
}

#[test]
fn serve_local_waits_for_the_end() {
    on_every_kind(async |server| {
        let handle = server.handle();
        let address = handle.local_addrs()[0].clone();
        let client = thread::spawn(move || {
            let mut client = Client::connect(&address).unwrap();
            client.send("quit\n");
            client.rest()
        });
        let served = server.serve_local(|| {
            async move |mut conn: Connection| {
                let mut order = String::new();
                conn.read_line(&mut order).await?;
                assert_eq!(order, "quit\n");
                conn.handle().shutdown();
                conn.write_all(b"bye\n").await
            }
        });
        assert_eq!(settled(served.await).completed, 1);
        assert_eq!(client.join().unwrap(), "bye\n");
    });
}

#[test]
fn the_factory_is_called_once_a_worker_on_its_thread() {
    on_every_kind(async |server| {
        let made = Arc::new(Mutex::new(Vec::new()));
        let making = made.clone();
        let (strangers, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, strange) = (seen.clone(), strangers.clone());
        let running = server.spawn_local(move || {
            let home = thread::current().id();
            making.lock().unwrap().push(home);
            async move |mut conn: Connection| {
                if thread::current().id() != home {
                    strange.fetch_add(1, SeqCst);
                }
                counted.fetch_add(1, SeqCst);
                conn.write_all(b"x").await
            }
        });
        for _ in 0..20 {
            assert_eq!(Client::of(&running).rest(), "x");
        }
        let handle = running.handle();
        settled(running.shutdown().await);
        assert_eq!((strangers.load(SeqCst), seen.load(SeqCst)), (0, 20));
        let made = made.lock().unwrap();
        let threads: HashSet<ThreadId> = made.iter().copied().collect();
        assert_eq!(threads.len(), made.len(), "{handle}");
    });
}

#[test]
fn a_handler_never_leaves_its_thread() {
    on_every_kind(async |server| {
        let running = server.spawn_local(|| {
            async move |mut conn: Connection| {
                let home = Rc::new(thread::current().id());
                let here = || assert_eq!(*home, thread::current().id());
                let mut order = [0];
                while conn.read(&mut order).await? > 0 {
                    here();
                    // Woken from another thread,
                    let (tell, told) = async_channel::bounded(1);
                    thread::spawn(move || tell.send_blocking(()));
                    told.recv().await.unwrap();
                    here();
                    // by the reactor of async-std,
                    async_std::task::sleep(Duration::from_millis(1)).await;
                    here();
                    // and by this thread.
                    futures_lite::future::yield_now().await;
                    here();
                    conn.write_all(&order).await?;
                }
                io::Result::Ok(())
            }
        });
        let mut clients = [(); 8].map(|()| Client::of(&running));
        for _ in 0..5 {
            for client in &mut clients {
                client.send("x");
            }
            for client in &mut clients {
                heard(client);
            }
        }
        assert_eq!(settled(running.shutdown().await).completed, 8);
    });
}

#[test]
fn an_abort_drops_them_where_they_were_made() {
    on_every_kind(async |server| {
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let into = dropped.clone();
        let running = server.spawn_local(move || {
            async move |mut conn: Connection| {
                let home = thread::current().id();
                let _gone = OnDrop(|| into.lock().unwrap().push(home == thread::current().id()));
                conn.write_all(b"x").await?;
                std::future::pending::<io::Result<()>>().await
            }
        });
        let mut clients = [(); 5].map(|()| Client::of(&running));
        for client in &mut clients {
            heard(client);
        }
        running.handle().abort();
        let report = settled(running.await);
        assert_eq!(report.aborted, 5);
        assert_eq!(*dropped.lock().unwrap(), [true; 5]);
        clients.iter_mut().for_each(is_cut);
    });
}

#[test]
fn a_panic_is_one_connections_end() {
    on_every_kind(async |server| {
        let running = server.spawn_local(|| {
            async move |mut conn: Connection| {
                let mut order = [0];
                while conn.read(&mut order).await? > 0 {
                    assert_ne!(order, *b"!", "as the test wants it");
                    conn.write_all(&order).await?;
                }
                io::Result::Ok(())
            }
        });
        let mut others = [(); 4].map(|()| Client::of(&running));
        for _ in 0..4 {
            let mut panicking = Client::of(&running);
            panicking.send("x!");
            assert_eq!(panicking.rest(), "x");
        }
        for other in &mut others {
            other.send("y");
            heard(other);
        }
        let report = settled(running.shutdown().await);
        assert_eq!((report.panicked, report.completed), (4, 4));
    });
}

#[test]
fn who_writes_without_a_pause_leaves_the_others_their_turn() {
    on_every_kind(async |server| {
        let running = server.spawn_local(|| write_when_asked);
        let mut known = [(); 4].map(|()| Client::of(&running));
        for client in &mut known {
            assert_eq!(client.ask("hello"), "hello");
        }
        let floods = [(); 4].map(|()| Flood::of_replies(Client::of(&running)));
        for client in &mut known {
            assert_eq!(client.ask("still"), "still");
            assert_eq!(Client::of(&running).ask("new"), "new");
        }
        floods.iter().for_each(Flood::goes_on);
        drop((floods, known));
        settled(running.shutdown().await);
    });
}

#[test]
fn a_factory_that_panics_ends_the_server_with_an_error() {
    on_every_kind(async |server| {
        let mut client = Client::to(&server);
        let running = server.spawn_local(|| -> fn(Connection) -> std::future::Ready<()> {
            panic!("as the test wants it")
        });
        let handle = running.handle();
        let error = running.await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the factory of a worker's handler panicked: as the test wants it"
        );
        // Cleanly, whoever had come.
        assert_eq!(client.rest(), "");
        settled(Ok(handle.closed().await));
    });
}

#[test]
fn a_blocked_worker_does_not_stop_the_others_nor_the_deadline() {
    within(Duration::from_secs(60), || {
        async_std::task::block_on(async {
            // Of a Unix socket, connections are dealt out in turn: every other one blocks.
            let server = Server::with_runtime(plain())
                .listen(unix_address())
                .workers(2)
                .deadline(Duration::ZERO);
            let server = server.bind().await.unwrap();
            let (unblock, blocked) = mpsc::channel::<()>();
            let blocked = Arc::new(Mutex::new(blocked));
            let begun = Arc::new(AtomicUsize::new(0));
            let first = begun.clone();
            let running = server.spawn_local(move || {
                async move |mut conn: Connection| {
                    if first.fetch_add(1, SeqCst) == 0 {
                        // Until the other end is dropped.
                        let _dropped = blocked.lock().unwrap().recv();
                    }
                    conn.write_all(b"x").await
                }
            });
            let mut stuck = Client::of(&running);
            eventually("the first blocks", || begun.load(SeqCst) == 1);
            let mut served = Client::of(&running);
            assert_eq!(served.rest(), "x");
            let mut behind = Client::of(&running);
            taken_in(&running.handle(), 3);
            let mut served = Client::of(&running);
            assert_eq!(served.rest(), "x");
            let handle = running.handle();
            eventually("two are served", || handle.stats().completed == 2);
            // The drain is over all the same, with an account of those two.
            let report = running.shutdown().await.unwrap();
            assert_eq!(
                (report.completed, report.aborted, report.active),
                (2, 2, 0),
                "{report}"
            );
            assert_eq!(report.stragglers.len(), 2);
            drop(unblock);
            is_cut(&mut stuck);
            is_cut(&mut behind);
        });
    });
}

#[test]
fn what_they_share_on_a_thread_needs_no_lock() {
    on_every_kind(async |server| {
        let all = Arc::new(AtomicUsize::new(0));
        let sum = all.clone();
        let running = server.spawn_local(move || {
            let names = Rc::new(RefCell::new(Vec::new()));
            async move |mut conn: Connection| {
                let mut name = String::new();
                conn.read_line(&mut name).await?;
                names.borrow_mut().push(name);
                sum.fetch_add(1, SeqCst);
                let count = names.borrow().len();
                conn.write_all(format!("{count}\n").as_bytes()).await
            }
        });
        let mut counts = 0;
        for _ in 0..10 {
            let mut client = Client::of(&running);
            client.send("me\n");
            counts += client.rest().trim().parse::<usize>().unwrap();
        }
        assert_eq!(all.load(SeqCst), 10);
        assert!(counts >= 10);
        settled(running.shutdown().await);
    });
}

#[test]
fn a_dropped_server_goes_on_draining() {
    on_every_kind(async |server| {
        let handle = server.handle();
        let running = server.spawn_local(|| {
            async move |mut conn: Connection| {
                let _busy = conn.busy();
                conn.write_all(b"x").await?;
                conn.shutdown_requested().await;
                conn.write_all(b"y").await
            }
        });
        let mut client = Client::of(&running);
        heard(&mut client);
        drop(running);
        assert_eq!(client.rest(), "y");
        assert_eq!(settled(Ok(handle.closed().await)).completed, 1);
    });
}

#[test]
fn the_threads_end_with_the_server() {
    on_every_kind(async |server| {
        let (alive, ends) = mpsc::channel::<()>();
        let running = server.spawn_local(move || {
            // Goes with the handler, which goes with its thread.
            let alive = Rc::new(alive);
            move |conn: Connection| {
                drop((conn, alive));
                std::future::ready(())
            }
        });
        assert_eq!(Client::of(&running).rest(), "");
        settled(running.shutdown().await);
        assert_eq!(
            ends.recv_timeout(HOUR),
            Err(mpsc::RecvTimeoutError::Disconnected)
        );
    });
}

#[test]
fn a_handler_may_wait_for_the_stop_it_asks_for() {
    on_every_kind(async |server| {
        let running = server.spawn_local(|| {
            async move |conn: Connection| {
                let handle = conn.handle();
                handle.shutdown();
                assert_eq!(handle.closed().await.active, 1);
            }
        });
        let mut client = Client::of(&running);
        assert_eq!(client.rest(), "");
        assert_eq!(settled(running.await).completed, 1);
    });
}
