//! The threads: when there are how many, what each does, and that they end.

use std::collections::BTreeSet;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncBufReadExt, AsyncWriteExt};
use gracious::{Connection, Reason, Server};

use crate::support::client::{Client, HOUR, echo, eventually, handing_over};
use crate::support::peer::{logged, settled};
use crate::support::{DEADLINE, within};
use crate::{on_workers, on_workers_in_a_process, plain, with_workers};

on_workers!(
    handlers_run_on_the_workers,
    work_at_hand_is_done_by_as_many_threads_as_there_are_workers,
    a_server_that_spins_serves,
    two_servers_with_workers_serve_side_by_side,
    an_idle_server_answers_who_wakes_it_from_elsewhere,
);

on_workers_in_a_process!(
    the_threads_end_with_the_server,
    a_server_that_was_never_served_leaves_no_thread,
    where_it_cannot_be_bound_no_thread_is_left,
    the_threads_stay_for_a_handler_that_has_detached_its_connection,
    a_waker_that_somebody_keeps_keeps_no_poller,
    many_wakes_from_elsewhere_cost_few_writes,
    a_server_whose_poller_fails_for_good_ends_with_the_error,
);

/// The threads of servers with workers in this process, by name.
pub(super) fn own_threads() -> Vec<String> {
    let names = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        // It may end meanwhile.
        fs::read_to_string(task.unwrap().path().join("comm")).ok()
    });
    let mut names: Vec<_> = names
        .filter(|name| name.starts_with("gracious-"))
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort();
    names
}

fn worker() -> Option<String> {
    let name = thread::current().name()?.to_owned();
    name.starts_with("gracious-").then_some(name)
}

async fn handlers_run_on_the_workers(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let running = server.spawn(async |mut conn: Connection| {
        let line = format!("{}\n", worker().unwrap());
        conn.write_all(line.as_bytes()).await
    });
    let line = Client::of(&running).rest();
    assert!(line.starts_with("gracious-"), "{line}");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn work_at_hand_is_done_by_as_many_threads_as_there_are_workers(workers: usize) {
    const CLIENTS: usize = 32;
    let server = with_workers(workers).bind().await.unwrap();
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let held_up = Arc::new(AtomicBool::new(false));
    let (see, was_held_up) = (seen.clone(), held_up.clone());
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            let begun = Instant::now();
            see.lock().unwrap().insert(worker().unwrap());
            // Work, and much more of it than a wake-up is.
            while begun.elapsed() < Duration::from_millis(1) {}
            conn.write_all(line.as_bytes()).await?;
            if begun.elapsed() > Duration::from_millis(40) {
                // Somebody else has had this thread's core, and another thread may take over.
                was_held_up.store(true, SeqCst);
            }
            line.clear();
        }
        io::Result::Ok(())
    });
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::of(&running)).collect();
    let mut all = BTreeSet::new();
    eventually("all have worked", || {
        for client in &mut clients {
            client.send("work\n");
        }
        for client in &mut clients {
            assert_eq!(client.line(), "work");
        }
        // By the answers to these, and not by what took over for another before.
        let now = std::mem::take(&mut *seen.lock().unwrap());
        all.extend(now.iter().cloned());
        now.len() == workers
    });
    if !held_up.load(SeqCst) {
        assert_eq!(all.len(), workers, "{all:?}");
    }
    drop(clients);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, CLIENTS as u64);
}

async fn a_server_that_spins_serves(workers: usize) {
    let spans = [Duration::ZERO, Duration::from_micros(50), HOUR];
    for span in spans {
        let server = with_workers(workers).spin(span).bind().await.unwrap();
        let (ask, asked) = async_channel::unbounded::<String>();
        let running = server.spawn(async move |mut conn: Connection| {
            if conn.id() > 1 {
                return echo(conn).await;
            }
            // What comes from elsewhere, too.
            while let Ok(line) = asked.recv().await {
                conn.write_all(line.as_bytes()).await?;
            }
            Ok(())
        });
        let mut told = Client::of(&running);
        eventually("it is the first", || running.handle().stats().accepted == 1);
        let mut client = Client::of(&running);
        for _ in 0..50 {
            assert_eq!(client.ask("hello"), "hello");
            ask.send("from elsewhere\n".into()).await.unwrap();
            assert_eq!(told.line(), "from elsewhere");
        }
        drop((ask, client));
        running.handle().shutdown();
        assert_eq!(settled(running.await).completed, 2);
    }
}

fn test(body: impl Future<Output = ()> + Send + 'static) {
    within(DEADLINE, || async_io::block_on(body));
}

/// There is no other thread that could, and it is no error.
#[test]
fn without_workers_nobody_spins() {
    test(async {
        let server = Server::with_runtime(plain()).spin(Duration::from_secs(1));
        let server = server.listen("127.0.0.1:0").bind().await.unwrap();
        let running = server.spawn(echo);
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        drop(client);
        running.handle().shutdown();
        assert_eq!(settled(running.await).completed, 1);
    });
}

#[test]
fn no_workers_at_all_are_a_clear_error() {
    test(async {
        let error = with_workers(0).bind().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("workers is 0"), "{error}");
        // Not asked for is no error.
        let server = Server::with_runtime(plain()).workers(None);
        let _server = server.listen("127.0.0.1:0").bind().await.unwrap();
    });
}

/// And one wakes the handlers of the other; what ends with one is its own.
async fn two_servers_with_workers_serve_side_by_side(workers: usize) {
    let (give, given) = async_channel::unbounded::<String>();
    let first = with_workers(workers).bind().await.unwrap();
    let first = first.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            give.send(std::mem::take(&mut line)).await.unwrap();
            conn.write_all(b"sent\n").await?;
        }
        io::Result::Ok(())
    });
    let second = with_workers(3 - workers).bind().await.unwrap();
    let second = second.spawn(async move |mut conn: Connection| {
        while let Ok(line) = given.recv().await {
            conn.write_all(line.as_bytes()).await?;
        }
        conn.write_all(b"over\n").await
    });
    let (mut asks, mut hears) = (Client::of(&first), Client::of(&second));
    for number in 0..200 {
        assert_eq!(asks.ask(&number.to_string()), "sent");
        assert_eq!(hears.line(), number.to_string());
    }
    drop(asks);
    let mut third = Client::of(&first);
    assert_eq!(third.ask("last"), "sent");
    assert_eq!(hears.line(), "last");
    first.handle().shutdown();
    assert_eq!(settled(first.await).completed, 2);
    assert_eq!(hears.rest(), "over\n");
    second.handle().shutdown();
    assert_eq!(settled(second.await).completed, 1);
}

/// The driver sleeps in the poller, and no socket has an event for it.
async fn an_idle_server_answers_who_wakes_it_from_elsewhere(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    let (ask, asked) = async_channel::bounded::<u32>(1);
    let (reply, replied) = async_channel::bounded(1);
    let answering = async_std::task::spawn(async move {
        // Not on a worker: what it does wakes one from elsewhere.
        while let Ok(number) = replied.recv().await {
            ask.send(number).await.unwrap();
        }
    });
    let other = with_workers(workers).bind().await.unwrap();
    let other = other.spawn(async move |mut conn: Connection| {
        for number in 0..2000 {
            reply.send(number).await.unwrap();
            assert_eq!(asked.recv().await.unwrap(), number);
        }
        reply.close();
        conn.write_all(b"done\n").await
    });
    assert_eq!(Client::of(&other).rest(), "done\n");
    answering.await;
    conn.write_all(b"hello\n").await.unwrap();
    drop(conn);
    assert_eq!(client.rest(), "hello\n");
    other.handle().shutdown();
    assert_eq!(settled(other.await).completed, 1);
    running.handle().shutdown();
    settled(running.await);
}

async fn the_threads_end_with_the_server(workers: usize) {
    for _ in 0..3 {
        let server = with_workers(workers).bind().await.unwrap();
        let running = server.spawn(echo);
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        eventually("all are there", || own_threads().len() == workers + 1);
        running.handle().shutdown();
        assert_eq!(client.rest(), "");
        assert_eq!(settled(running.await).completed, 1);
        eventually("no thread is left", || own_threads().is_empty());
    }
}

async fn a_server_that_was_never_served_leaves_no_thread(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let mut queued = Client::to(&server);
    drop(server);
    assert_eq!(queued.rest(), "");
    eventually("no thread is left", || own_threads().is_empty());
}

async fn where_it_cannot_be_bound_no_thread_is_left(workers: usize) {
    let first = with_workers(workers).bind().await.unwrap();
    let taken = first.local_addrs()[0].to_string();
    let threads = own_threads().len();
    with_workers(workers)
        .listen(taken)
        .bind()
        .await
        .unwrap_err();
    eventually("those of one server", || own_threads().len() <= workers + 1);
    assert!(threads <= workers + 1);
    drop(first);
    eventually("no thread is left", || own_threads().is_empty());
}

async fn a_waker_that_somebody_keeps_keeps_no_poller(workers: usize) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let mut before = None;
    // The reactor of async-std has pollers, too, which are there after the first.
    for _ in 0..3 {
        let server = with_workers(workers).bind().await.unwrap();
        let keep = kept.clone();
        let running = server.spawn(async move |conn: Connection| {
            poll_fn(|cx| {
                keep.lock().unwrap().push(cx.waker().clone());
                Poll::Ready(())
            })
            .await;
            echo(conn).await
        });
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        running.handle().shutdown();
        assert_eq!(client.rest(), "");
        assert_eq!(settled(running.await).completed, 1);
        eventually("no thread is left", || own_threads().is_empty());
        let before = *before.get_or_insert_with(pollers);
        eventually("no poller is left", || pollers() <= before);
    }
    for waker in kept.lock().unwrap().drain(..) {
        // Nobody is there.
        waker.wake();
    }
}

/// How many there are in this process.
fn pollers() -> usize {
    poller_descriptors().len()
}

fn poller_descriptors() -> BTreeSet<i32> {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    let pollers = all.map(|it| it.unwrap().path()).filter(|path| {
        fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("eventpoll"))
    });
    let number = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    pollers.map(number).collect()
}

/// Somebody else has closed its descriptor, and it is another file's by now.
async fn a_server_whose_poller_fails_for_good_ends_with_the_error(workers: usize) {
    // So that the reactor has its own.
    async_io::Timer::after(Duration::ZERO).await;
    let others = poller_descriptors();
    let server = with_workers(workers).bind().await.unwrap();
    let ours = poller_descriptors();
    let running = server.spawn(echo);
    let handle = running.handle();
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    let nothing = fs::File::open("/dev/null").unwrap();
    for &poller in ours.difference(&others) {
        // SAFETY: the server alone uses that descriptor, and never through memory. That its calls fail
        // from here on is what this test is about.
        assert_eq!(unsafe { libc::dup2(nothing.as_raw_fd(), poller) }, poller);
    }
    // The wait that is under way ends with what comes next.
    let _next = Client::of(&running);
    let error = running.await.unwrap_err();
    assert!(
        error.to_string().starts_with("cannot wait for events: "),
        "{error}"
    );
    assert_eq!(client.rest(), "");
    let Reason::Listener(reason) = settled(Ok(handle.closed().await)).reason else {
        panic!("another reason");
    };
    assert_eq!(reason, error.to_string());
    let errors = logged()
        .into_iter()
        .filter(|line| line.starts_with("ERROR"));
    assert_eq!(errors.count(), 1);
    eventually("no thread is left", || own_threads().is_empty());
}

async fn the_threads_stay_for_a_handler_that_has_detached_its_connection(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (go, start) = async_channel::bounded::<()>(1);
    let (tell, told) = async_channel::bounded(1);
    let running = server.spawn(async move |conn: Connection| {
        let _detached = conn.detach().unwrap();
        start.recv().await.unwrap();
        tell.send(worker().unwrap()).await.unwrap();
    });
    let _client = Client::of(&running);
    eventually("it is detached", || running.handle().stats().detached == 1);
    running.handle().shutdown();
    assert_eq!(settled(running.await).detached, 1);
    go.send(()).await.unwrap();
    assert!(told.recv().await.unwrap().starts_with("gracious-"));
    eventually("no thread is left", || own_threads().is_empty());
}

/// A thread that sleeps is woken once, and one that is awake not at all.
async fn many_wakes_from_elsewhere_cost_few_writes(workers: usize) {
    const HANDLERS: usize = 100;
    const WAKES: usize = 100;
    // Another poller's is there before.
    async_io::Timer::after(Duration::from_millis(1)).await;
    let others = wakes_written();
    let server = with_workers(workers).bind().await.unwrap();
    let wakers = Arc::new(Mutex::new(Vec::<Waker>::new()));
    let leave = wakers.clone();
    let (block, blocked) = async_channel::unbounded::<()>();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut is_left = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut is_left, true) {
                return Poll::Ready(());
            }
            leave.lock().unwrap().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        // The task that is woken first keeps its thread until all are.
        let _over = blocked.recv_blocking();
        conn.write_all(b"woken\n").await
    });
    let mut clients: Vec<_> = (0..HANDLERS).map(|_| Client::of(&running)).collect();
    eventually("all wait", || wakers.lock().unwrap().len() == HANDLERS);
    let wakers = std::mem::take(&mut *wakers.lock().unwrap());
    let written = || {
        let all = wakes_written().into_iter();
        let ours: Vec<_> = all
            .filter(|(id, _)| others.iter().all(|it| it.0 != *id))
            .collect();
        assert_eq!(ours.len(), 1, "one for each poller: {ours:?}");
        ours[0].1
    };
    let before = written();
    for _ in 0..WAKES {
        wakers.iter().for_each(Waker::wake_by_ref);
    }
    let cost = written() - before;
    block.close();
    for client in &mut clients {
        assert_eq!(client.rest(), "woken\n");
    }
    // One, and a few where a blocked thread was replaced meanwhile.
    assert!((1..HANDLERS as u64 / 4).contains(&cost), "{cost} writes");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, HANDLERS as u64);
}

/// What each event counter of this process has counted, by its id: those that nobody reads count
/// for ever.
fn wakes_written() -> Vec<(u64, u64)> {
    let all = fs::read_dir("/proc/self/fdinfo").unwrap();
    let counter = |entry: io::Result<fs::DirEntry>| {
        let info = fs::read_to_string(entry.unwrap().path()).ok()?;
        let word = |name| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.map(|line| line.trim().to_owned())
        };
        let count = u64::from_str_radix(&word("eventfd-count:")?, 16).unwrap();
        let id = word("eventfd-id:")?.parse().unwrap();
        Some((id, count))
    };
    all.filter_map(counter).collect()
}
