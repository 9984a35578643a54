//! Promise 16. **Signals are told the truth**: heard from `bind` on, once per process for all
//! servers with `stop_on_signals()`: the first SIGTERM or SIGINT drains them all (a drain already
//! under way it leaves alone), the next aborts; signals within 200 ms of the first, by the time of
//! their delivery, are one, even if no server is open any more; with none open a signal does again what
//! it does by default; the exit status says which it was.
//!
//! Every test is a process of its own that its parent sends signals to.

#![cfg(all(target_os = "linux", feature = "signals"))]

mod support;

use std::future::pending;
use std::io;
use std::net::TcpStream;
use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use gracious::{Address, Builder, Connection, Listener, Report, Runtime, Server, State};
use rustix::process::Signal;

use crate::support::TestRuntime;
use crate::support::client::{Client, echo, eventually};
use crate::support::peer::{
    Counted, Process, at_home, fork, is_cut, open_descriptors, orders, passes, settled, status_of,
    tell, threads,
};

const SIGINT: i32 = Signal::INT.as_raw();
const SIGTERM: i32 = Signal::TERM.as_raw();

on_every_runtime_in_a_process!(
    sigterm_drains: serves, sent_sigterm;
    sigint_drains: serves, sent_sigint;
    a_client_that_says_nothing_does_not_hold_it_up: serves, sent_sigint_beside_a_silent_client;
    the_second_sigterm_aborts: serves, sent_sigterm_twice;
    the_second_sigint_aborts: serves, sent_sigint_twice;
    the_second_may_be_the_other_one: serves, sent_one_and_the_other;
    signals_of_one_moment_are_one: raises_many_in_a_moment, drains_all_the_same;
    the_moment_is_that_of_delivery: hears_late, drains_all_the_same;
    signals_of_one_moment_are_one_where_nothing_is_open_any_more: raises_another_after_the_end, passes;
    a_second_signal_aborts_where_handlers_block_their_threads: serves, sent_two_while_blocked;
    a_signal_before_serve_ends_serve_at_once: is_bound_only, sent_sigterm_before_serve;
    a_server_that_nobody_serves_leaves_the_second_signal_its_default: is_never_served,
        killed_by_the_second;
    a_server_that_cannot_be_aborted_leaves_the_third_signal_its_default: is_stuck, killed_by_the_third;
    a_forked_process_dies_of_the_signal_and_the_server_goes_on: serves_and_forks, sent_to_the_fork;
    a_forked_process_hears_for_servers_of_its_own: forks_and_serves, sent_to_the_server_of_the_fork;
    a_drain_under_way_is_left_alone_by_the_first: serves_two, sent_one_in_a_drain;
    a_drain_under_way_is_aborted_by_the_second: serves_two, sent_two_in_a_drain;
    two_servers_hear_one_signal: serves_two, sent_sigterm_for_two;
    one_of_two_that_is_closed_leaves_the_other_to_hear: serves_two, sent_sigterm_after_one_closed;
    when_all_are_closed_sigterm_kills: is_closed, killed_by_sigterm;
    when_all_are_closed_sigint_kills: is_closed, killed_by_sigint;
    a_server_dropped_unserved_is_closed: is_dropped, killed_by_sigterm;
    a_server_that_did_not_ask_hears_nothing: does_not_ask, killed_by_sigterm;
    a_server_after_another_hears_again: serves_one_after_the_other, sent_sigterm_at_the_second;
    a_hundred_servers_leave_no_thread_and_no_descriptor_behind: comes_and_goes, passes;
);

fn hearing(runtime: &TestRuntime) -> Builder<TestRuntime> {
    at_home(runtime).deadline(None).stop_on_signals()
}

/// As `main` would: the report's own exit status, once everything is settled.
fn exit(report: io::Result<Report>) -> ! {
    let report = settled(report);
    tell("reason", &report.reason);
    let status = i32::from(report.report() != ExitCode::SUCCESS);
    std::process::exit(status)
}

/// Answers a line when it is told to stop, or never, or blocks its thread, as its peer wants it.
async fn answer(mut conn: Connection) -> io::Result<()> {
    let mut order = [0];
    if conn.read(&mut order).await? == 0 {
        return Ok(());
    }
    tell("begun", "");
    match &order {
        b"b" => std::thread::sleep(Duration::from_secs(3600)),
        b"s" => pending().await,
        _ => {}
    }
    conn.shutdown_requested().await;
    conn.read_exact(&mut order).await?;
    conn.write_all(b"done").await
}

async fn serves(runtime: TestRuntime) {
    let server = hearing(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    tell("address", &server.local_addrs()[0]);
    runtime.spawn(async move {
        handle.shutdown_requested().await;
        tell("draining", "");
    });
    let report = server
        .serve(async move |conn: Connection| {
            let _counted = Counted(counter);
            answer(conn).await
        })
        .await;
    tell("dropped", dropped.load(SeqCst));
    exit(report)
}

/// The client is inside a message when the signal comes, and gets its answer.
fn drained(mut process: Process, signal: Signal, name: &str) {
    let address = process.address();
    let mut busy = Client::connect(&address).unwrap();
    busy.send("x");
    process.hear("begun");
    process.signal(signal);
    process.hear("draining");
    busy.send("y");
    assert_eq!(busy.rest(), "done");
    assert_eq!(process.hear("reason"), name);
    process.ends_with(0);
}

fn sent_sigterm(process: Process) {
    drained(process, Signal::TERM, "SIGTERM");
}

fn sent_sigint(process: Process) {
    drained(process, Signal::INT, "SIGINT");
}

fn sent_sigint_beside_a_silent_client(mut process: Process) {
    let address = process.address();
    let mut silent = [(); 3].map(|()| Client::connect(&address).unwrap());
    process.signal(Signal::INT);
    for client in &mut silent {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(process.hear("reason"), "SIGINT");
    process.ends_with(0);
}

/// Lets so much time pass that the next signal is another.
fn a_moment_later() {
    std::thread::sleep(Duration::from_millis(250));
}

fn aborted(mut process: Process, first: Signal, second: Signal, name: &str) {
    let address = process.address();
    let mut stuck = Client::connect(&address).unwrap();
    stuck.send("s");
    process.hear("begun");
    process.signal(first);
    process.hear("draining");
    a_moment_later();
    process.signal(second);
    is_cut(&mut stuck);
    // Its destructors have run, and the first signal is the reason.
    assert_eq!(process.hear("dropped"), "1");
    assert_eq!(process.hear("reason"), name);
    process.ends_with(1);
}

fn sent_sigterm_twice(process: Process) {
    aborted(process, Signal::TERM, Signal::TERM, "SIGTERM");
}

fn sent_sigint_twice(process: Process) {
    aborted(process, Signal::INT, Signal::INT, "SIGINT");
}

fn sent_one_and_the_other(process: Process) {
    aborted(process, Signal::INT, Signal::TERM, "SIGINT");
}

/// Sends this thread a signal: it is delivered when this returns.
fn raise(signal: i32) {
    signal_hook::low_level::raise(signal).unwrap();
}

/// Begins to answer, has `meanwhile` done, and goes on when its client wants it to.
async fn serves_with(runtime: TestRuntime, meanwhile: fn(&Connection)) {
    let server = hearing(&runtime).bind().await.unwrap();
    let handle = server.handle();
    tell("address", &handle.local_addrs()[0]);
    let running = server.spawn(async move |mut conn: Connection| {
        conn.read_exact(&mut [0]).await?;
        meanwhile(&conn);
        conn.read_exact(&mut [0]).await?;
        conn.write_all(b"done").await
    });
    handle.shutdown_requested().await;
    tell("draining", "");
    exit(running.await)
}

async fn raises_many_in_a_moment(runtime: TestRuntime) {
    let raise_many = |_: &Connection| {
        [SIGTERM, SIGTERM, SIGINT, SIGTERM]
            .into_iter()
            .for_each(raise)
    };
    serves_with(runtime, raise_many).await;
}

/// What the first signal wakes keeps the thread that hears them from the second, until long after.
async fn hears_late(runtime: TestRuntime) {
    struct Late;
    impl Wake for Late {
        fn wake(self: Arc<Self>) {
            raise(SIGINT);
            std::thread::sleep(Duration::from_millis(600));
        }
    }
    let raise_two = |conn: &Connection| {
        let events = conn.handle().events();
        let mut next = Box::pin({
            let events = events.clone();
            async move { events.recv().await }
        });
        let waker = Waker::from(Arc::new(Late));
        let polled = next.as_mut().poll(&mut Context::from_waker(&waker));
        // What has happened was told to others: what comes next is the drain.
        assert!(polled.is_pending());
        std::mem::forget(next);
        raise(SIGTERM);
    };
    serves_with(runtime, raise_two).await;
}

fn drains_all_the_same(mut process: Process) {
    let mut busy = Client::connect(&process.address()).unwrap();
    busy.send("x");
    process.hear("draining");
    // An abort would have come by then.
    std::thread::sleep(Duration::from_millis(800));
    busy.send("y");
    assert_eq!(busy.rest(), "done");
    assert_eq!(process.hear("reason"), "SIGTERM");
    process.ends_with(0);
}

async fn raises_another_after_the_end(runtime: TestRuntime) {
    for _ in 0..100 {
        let server = hearing(&runtime).bind().await.unwrap();
        let running = server.spawn(echo);
        let start = Instant::now();
        raise(SIGTERM);
        assert_eq!(settled(running.await).reason.to_string(), "SIGTERM");
        // On a busy machine the moment may be over.
        if start.elapsed() < Duration::from_millis(150) {
            raise(SIGTERM);
            raise(SIGINT);
            a_moment_later();
            return;
        }
        a_moment_later();
    }
    panic!("no drain was over in a moment");
}

fn sent_two_while_blocked(mut process: Process) {
    let address = process.address();
    // As many as any of the executors has threads.
    let blocking = std::thread::available_parallelism().map_or(4, |count| count.get().max(4));
    let mut clients = Vec::new();
    for _ in 0..blocking {
        let mut client = Client::connect(&address).unwrap();
        client.send("b");
        clients.push(client);
    }
    process.hear("begun");
    process.signal(Signal::TERM);
    // Nobody may be left who could tell that it drains.
    a_moment_later();
    process.signal(Signal::TERM);
    clients.iter_mut().for_each(is_cut);
    assert_eq!(process.hear("reason"), "SIGTERM");
    process.ends_with(1);
}

async fn is_bound_only(runtime: TestRuntime) {
    let server = hearing(&runtime).bind().await.unwrap();
    tell("address", &server.local_addrs()[0]);
    server.handle().shutdown_requested().await;
    exit(server.serve(echo).await)
}

fn sent_sigterm_before_serve(mut process: Process) {
    let address = process.address();
    let mut queued = Client::connect(&address).unwrap();
    queued.send("hello\n");
    process.signal(Signal::TERM);
    // The client that was there before is served.
    assert_eq!(queued.rest(), "hello\n");
    assert_eq!(process.hear("reason"), "SIGTERM");
    process.ends_with(0);
}

async fn is_never_served(runtime: TestRuntime) {
    let server = hearing(&runtime).bind().await.unwrap();
    tell("address", &server.local_addrs()[0]);
    let handle = server.handle();
    handle.shutdown_requested().await;
    tell("requested", "");
    pending::<()>().await;
    drop(server);
}

fn killed_by_the_second(mut process: Process) {
    process.address();
    process.signal(Signal::TERM);
    process.hear("requested");
    a_moment_later();
    process.signal(Signal::TERM);
    process.dies_of(SIGTERM);
}

/// A runtime that runs nothing.
#[derive(Clone)]
struct Stuck;

impl Runtime for Stuck {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        std::mem::forget(future);
    }

    fn sleep(&self, _duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        pending()
    }
}

async fn is_stuck(runtime: TestRuntime) {
    let server = Server::with_runtime(Stuck)
        .listen("127.0.0.1:0")
        .stop_on_signals();
    let server = server.bind().await.unwrap();
    let handle = server.handle();
    tell("address", &handle.local_addrs()[0]);
    let _running = server.spawn(echo);
    handle.shutdown_requested().await;
    tell("requested", "");
    while handle.state() != State::Aborting {
        runtime.sleep(Duration::from_millis(1)).await;
    }
    tell("aborting", "");
    pending().await
}

fn killed_by_the_third(mut process: Process) {
    process.address();
    process.signal(Signal::TERM);
    process.hear("requested");
    a_moment_later();
    process.signal(Signal::TERM);
    process.hear("aborting");
    a_moment_later();
    process.signal(Signal::TERM);
    process.dies_of(SIGTERM);
}

/// Serves beside a forked process, which is sent a signal by its number.
async fn serves_and_forks(runtime: TestRuntime) {
    let server = hearing(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let address = handle.local_addrs()[0].clone();
    let running = server.spawn(echo);
    eventually("it serves", || handle.is_serving());
    let forked = fork(|| std::thread::sleep(Duration::from_secs(3600)));
    tell("address", address);
    tell("forked", forked);
    let status = status_of(forked);
    assert_eq!(libc::WTERMSIG(status), SIGTERM, "{status}");
    // Its parent has heard nothing: it serves, and is stopped by a signal of its own.
    assert!(handle.is_serving());
    tell("ended", "");
    exit(running.await)
}

fn sent_to_the_fork(mut process: Process) {
    let address = process.address();
    let forked: i32 = process.hear("forked").parse().unwrap();
    let forked = rustix::process::Pid::from_raw(forked).unwrap();
    rustix::process::kill_process(forked, Signal::TERM).unwrap();
    process.hear("ended");
    let mut client = Client::connect(&address).unwrap();
    assert_eq!(client.ask("hello"), "hello");
    process.signal(Signal::TERM);
    assert_eq!(client.rest(), "");
    assert_eq!(process.hear("reason"), "SIGTERM");
    process.ends_with(0);
}

/// A listener at which nobody comes.
struct Nobody;

impl Listener for Nobody {
    type Io = async_io::Async<TcpStream>;

    async fn accept(&mut self) -> io::Result<(Self::Io, Address)> {
        pending().await
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Unnamed)
    }

    fn shut(&mut self) {}
}

/// Binds a server in a forked process, which is what hears for it.
async fn forks_and_serves(runtime: TestRuntime) {
    let server = hearing(&runtime).bind().await.unwrap();
    let forked = fork(|| {
        // Of the runtimes there is nothing here but their locks, as they were. So it uses none.
        let server = Server::with_runtime(Stuck).listener(Nobody);
        let server = future::block_on(server.stop_on_signals().bind()).unwrap();
        tell("bound", std::process::id());
        future::block_on(server.handle().shutdown_requested());
        tell("requested", "");
    });
    assert_eq!(status_of(forked), 0);
    assert_eq!(server.handle().state(), State::Bound);
}

fn sent_to_the_server_of_the_fork(mut process: Process) {
    let forked: i32 = process.hear("bound").parse().unwrap();
    let forked = rustix::process::Pid::from_raw(forked).unwrap();
    rustix::process::kill_process(forked, Signal::TERM).unwrap();
    process.hear("requested");
    process.ends_with(0);
}

/// The first can be stopped by an order; the process ends with the reports of both.
async fn serves_two(runtime: TestRuntime) {
    let orders = orders();
    let first = hearing(&runtime).bind().await.unwrap();
    let second = hearing(&runtime).bind().await.unwrap();
    for server in [&first, &second] {
        tell("address", &server.local_addrs()[0]);
    }
    let handles = [first.handle(), second.handle()];
    let (first, second) = (first.spawn(answer), second.spawn(answer));
    let [one, other] = handles.clone();
    runtime.spawn(async move {
        while orders.recv().await.is_ok() {
            one.shutdown_because("an order");
            tell("ordered", "");
        }
    });
    runtime.spawn(async move {
        other.shutdown_requested().await;
        tell("heard", "");
    });
    let first = settled(first.await);
    tell("first", &first.reason);
    let second = settled(second.await);
    tell("second", &second.reason);
    let aborted = first.aborted + second.aborted;
    std::process::exit(i32::from(aborted > 0))
}

fn sent_one_in_a_drain(mut process: Process) {
    let (first, _second) = (process.address(), process.address());
    let mut busy = Client::connect(&first).unwrap();
    busy.send("x");
    process.hear("begun");
    process.tell("stop the first");
    process.hear("ordered");
    process.signal(Signal::TERM);
    // The other has heard it by now, so this one has, too.
    process.hear("heard");
    busy.send("y");
    assert_eq!(busy.rest(), "done");
    assert_eq!(process.hear("first"), "an order");
    assert_eq!(process.hear("second"), "SIGTERM");
    process.ends_with(0);
}

fn sent_two_in_a_drain(mut process: Process) {
    let (first, _second) = (process.address(), process.address());
    let mut stuck = Client::connect(&first).unwrap();
    stuck.send("s");
    process.hear("begun");
    process.tell("stop the first");
    process.hear("ordered");
    process.signal(Signal::TERM);
    process.hear("heard");
    a_moment_later();
    process.signal(Signal::TERM);
    is_cut(&mut stuck);
    assert_eq!(process.hear("first"), "an order");
    process.ends_with(1);
}

fn sent_sigterm_for_two(mut process: Process) {
    let addresses = [process.address(), process.address()];
    let mut idle = addresses.map(|address| Client::connect(&address).unwrap());
    process.signal(Signal::TERM);
    for client in &mut idle {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(process.hear("first"), "SIGTERM");
    assert_eq!(process.hear("second"), "SIGTERM");
    process.ends_with(0);
}

fn sent_sigterm_after_one_closed(mut process: Process) {
    let (_first, second) = (process.address(), process.address());
    process.tell("stop the first");
    assert_eq!(process.hear("first"), "an order");
    let mut idle = Client::connect(&second).unwrap();
    process.signal(Signal::TERM);
    assert_eq!(idle.rest(), "");
    assert_eq!(process.hear("second"), "SIGTERM");
    process.ends_with(0);
}

async fn wait_for_the_end() {
    tell("waiting", "");
    pending().await
}

async fn is_closed(runtime: TestRuntime) {
    for _ in 0..2 {
        let server = hearing(&runtime).bind().await.unwrap();
        server.handle().shutdown();
        settled(server.serve(echo).await);
    }
    wait_for_the_end().await;
}

async fn is_dropped(runtime: TestRuntime) {
    let server = hearing(&runtime).bind().await.unwrap();
    // A handle does not keep it open.
    let handle = server.handle();
    drop(server);
    handle.closed().await;
    wait_for_the_end().await;
}

async fn does_not_ask(runtime: TestRuntime) {
    let hears = hearing(&runtime).bind().await.unwrap();
    let handle = hears.handle();
    drop(hears);
    handle.closed().await;
    let server = at_home(&runtime).bind().await.unwrap();
    let _running = server.spawn(echo);
    wait_for_the_end().await;
}

fn killed_by_sigterm(mut process: Process) {
    process.hear("waiting");
    process.signal(Signal::TERM);
    process.dies_of(SIGTERM);
}

fn killed_by_sigint(mut process: Process) {
    process.hear("waiting");
    process.signal(Signal::INT);
    process.dies_of(SIGINT);
}

async fn serves_one_after_the_other(runtime: TestRuntime) {
    let first = hearing(&runtime).bind().await.unwrap();
    first.handle().shutdown();
    settled(first.serve(echo).await);
    let second = hearing(&runtime).bind().await.unwrap();
    tell("address", &second.local_addrs()[0]);
    exit(second.serve(answer).await)
}

fn sent_sigterm_at_the_second(mut process: Process) {
    let mut idle = Client::connect(&process.address()).unwrap();
    process.signal(Signal::TERM);
    assert_eq!(idle.rest(), "");
    assert_eq!(process.hear("reason"), "SIGTERM");
    process.ends_with(0);
}

async fn comes_and_goes(runtime: TestRuntime) {
    let mut before = None;
    for round in 0..100 {
        let server = hearing(&runtime).bind().await.unwrap();
        let running = server.spawn(echo);
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        running.handle().shutdown();
        settled(running.await);
        if round == 10 {
            before = Some((open_descriptors(), threads()));
        }
    }
    let (descriptors, started) = before.unwrap();
    eventually(&format!("{descriptors} descriptors as before"), || {
        open_descriptors() <= descriptors
    });
    // The runtime's own threads come and go.
    assert!(
        threads() <= started + 4,
        "{} threads, then {}",
        started,
        threads()
    );
}
