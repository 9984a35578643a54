//! Servers on `AsyncStd` and `Smol` themselves. What is promised is tested on a runtime that chooses
//! between them when it is run; here are what a user writes, `Server<AsyncStd>` and `Server<Smol>`,
//! and what they have to do for each promise: spawn, sleep and tell the time.
#![cfg(any(feature = "async-std", feature = "smol"))]

#[path = "support/mod.rs"]
mod support;

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use gracious::{Builder, Connection, Reason, Runtime, Server, State};

use crate::support::client::{
    Client, HOUR, answer_once, echo, handing_over, refuses, taken_in, unix_address, waits,
};
use crate::support::peer::{Counted, is_cut, loopback, settled};
use crate::support::{Body, DEADLINE, within};

/// Makes a `#[test]` on each of the runtimes out of each body: `async fn name(runtime: impl Runtime)`.
macro_rules! on_every_runtime_itself {
    ($runner:path; $on_async_std:ident $on_smol:ident; $($name:ident),* $(,)?) => {
        #[cfg(feature = "async-std")]
        mod $on_async_std {
            $crate::tests!($runner, gracious::AsyncStd; $($name: $name);*);
        }
        #[cfg(feature = "smol")]
        mod $on_smol {
            $crate::tests!($runner, gracious::Smol; $($name: $name);*);
        }
    };
}

on_every_runtime_itself!(
    crate::run; on_async_std on_smol;
    what_is_spawned_is_run_and_a_sleep_is_as_long_as_it_is_said,
    who_connects_as_soon_as_it_is_bound_is_served,
    serve_returns_the_report_when_a_client_has_stopped_it,
    serve_until_gives_the_value_of_its_work,
    at_a_stop_the_idle_see_the_end_and_the_busy_are_answered,
    a_dropped_serve_stops_the_server_and_frees_the_port,
    a_dropped_running_lets_those_inside_finish,
    a_server_that_was_never_served_closes,
    who_is_left_at_the_deadline_is_aborted,
    a_silent_connection_ends_after_its_time,
    a_panic_ends_one_connection_and_no_other,
    a_limit_holds_peers_back_until_one_leaves,
    halves_go_on_in_tasks_of_the_runtime,
);
#[cfg(target_os = "linux")]
on_every_runtime_itself!(
    crate::run; on_async_std_with_workers on_smol_with_workers;
    workers_serve_and_drain,
    shards_serve_and_drain,
    local_handlers_serve_and_drain,
);
#[cfg(target_os = "linux")]
on_every_runtime_itself!(
    crate::run_in_a_process; in_a_process_on_async_std in_a_process_on_smol;
    thousands_of_short_connections_leave_no_memory_behind,
);

fn run<R: Runtime>(runtime: R, _test: &str, body: &'static dyn Body<R>) {
    within(DEADLINE, move || async_io::block_on(body.begin(runtime)));
}

#[cfg(target_os = "linux")]
fn run_in_a_process<R: Runtime>(runtime: R, test: &'static str, body: &'static dyn Body<R>) {
    use crate::support::peer::{in_a_process, passes};

    in_a_process(
        test,
        move || async_io::block_on(body.begin(runtime)),
        &passes,
    );
}

/// A server on an address of its own, whose deadline is not what ends a test.
fn at_home<R: Runtime>(runtime: &R) -> Builder<R> {
    Server::with_runtime(runtime.clone())
        .listen(loopback())
        .deadline(HOUR)
}

async fn what_is_spawned_is_run_and_a_sleep_is_as_long_as_it_is_said(runtime: impl Runtime) {
    const SPAN: Duration = Duration::from_millis(20);
    let (tell, told) = async_channel::bounded(1);
    let inner = runtime.clone();
    runtime.spawn(async move {
        let before = inner.now();
        inner.sleep(SPAN).await;
        let after = inner.now();
        tell.send((thread::current().id(), after - before))
            .await
            .unwrap();
    });
    // This thread waits, so it was run by another.
    let (thread, slept) = told.recv_blocking().unwrap();
    assert_ne!(thread, thread::current().id());
    assert!(slept >= SPAN, "{slept:?}");
    // One too long for the clock waits.
    assert!(waits(Box::pin(runtime.sleep(Duration::MAX))).await);
}

async fn who_connects_as_soon_as_it_is_bound_is_served(runtime: impl Runtime) {
    let server = at_home(&runtime).listen(unix_address());
    let server = server.bind().await.unwrap();
    assert_eq!(server.handle().state(), State::Bound);
    let addresses = server.local_addrs().to_vec();
    let mut clients: Vec<_> = addresses
        .iter()
        .map(|address| Client::connect(address).unwrap())
        .collect();
    let running = server.spawn(answer_once);
    for client in &mut clients {
        client.send("hello\n");
        assert_eq!(client.rest(), "hello\n");
    }
    let report = settled(running.shutdown().await);
    assert_eq!((report.accepted, report.completed), (2, 2));
    assert_eq!(report.reason, Reason::Requested);
    assert!(addresses.iter().all(refuses));
}

async fn serve_returns_the_report_when_a_client_has_stopped_it(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    let visitor = thread::spawn(move || {
        let mut client = Client::connect(&address).unwrap();
        client.send("hello\nquit\n");
        client.rest()
    });
    let served = server.serve(async |conn: Connection| {
        let (reader, mut writer) = conn.split();
        let mut lines = reader.lines();
        while let Some(line) = lines.next().await {
            match line?.as_str() {
                "quit" => {
                    writer.write_all(b"bye\n").await?;
                    writer.handle().shutdown();
                }
                text => writer.write_all(format!("{text}\n").as_bytes()).await?,
            }
        }
        io::Result::Ok(())
    });
    let report = settled(served.await);
    assert_eq!((report.accepted, report.completed), (1, 1));
    assert_eq!(visitor.join().unwrap(), "hello\nbye\n");
}

async fn serve_until_gives_the_value_of_its_work(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    let (tell, told) = async_channel::bounded(1);
    let visitor = thread::spawn(move || {
        let mut client = Client::connect(&address).unwrap();
        assert_eq!(client.ask("hello"), "hello");
        tell.send_blocking(42).unwrap();
        client.rest()
    });
    let (value, report) = server.serve_until(echo, told.recv()).await.unwrap();
    assert_eq!(value, Some(Ok(42)));
    assert_eq!(settled(Ok(report)).completed, 1);
    assert_eq!(visitor.join().unwrap(), "");
}

async fn at_a_stop_the_idle_see_the_end_and_the_busy_are_answered(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            if line == "slow\n" {
                conn.shutdown_requested().await;
                told.send(()).await.unwrap();
            }
            conn.write_all(line.as_bytes()).await?;
            line.clear();
        }
        io::Result::Ok(())
    });
    let (mut idle, mut busy) = (Client::of(&running), Client::of(&running));
    for client in [&mut idle, &mut busy] {
        assert_eq!(client.ask("hello"), "hello");
    }
    busy.send("slow\n");
    running.handle().shutdown();
    assert_eq!(idle.rest(), "");
    is_told.recv().await.unwrap();
    assert_eq!(busy.rest(), "slow\n");
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_dropped_serve_stops_the_server_and_frees_the_port(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let mut client = Client::to(&server);
    let mut serve = Box::pin(server.serve(echo));
    assert!(waits(&mut serve).await);
    assert_eq!(client.ask("hello"), "hello");
    drop(serve);
    assert_eq!(client.rest(), "");
    let report = settled(Ok(handle.closed().await));
    assert_eq!(report.reason, Reason::Dropped);
    assert!(refuses(&address));
    let successor = Server::with_runtime(runtime).listen(address);
    drop(successor.bind().await.unwrap());
}

async fn a_dropped_running_lets_those_inside_finish(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let running = server.spawn(async |mut conn: Connection| {
        let _busy = conn.busy();
        conn.write_all(b"x").await?;
        conn.shutdown_requested().await;
        conn.write_all(b"y").await
    });
    let mut client = Client::of(&running);
    taken_in(&handle, 1);
    drop(running);
    assert_eq!(client.rest(), "xy");
    assert_eq!(settled(Ok(handle.closed().await)).completed, 1);
}

async fn a_server_that_was_never_served_closes(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let mut client = Client::to(&server);
    drop(server);
    let report = settled(Ok(handle.closed().await));
    assert_eq!((report.accepted, report.completed), (1, 0));
    assert_eq!(client.rest(), "");
    assert!(refuses(&address));
}

async fn who_is_left_at_the_deadline_is_aborted(runtime: impl Runtime) {
    const SOON: Duration = Duration::from_millis(50);
    let server = at_home(&runtime).deadline(SOON).bind().await.unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    let running = server.spawn(async move |_conn: Connection| {
        let _counted = Counted(counter);
        pending::<()>().await;
    });
    let mut clients = [(); 5].map(|()| Client::of(&running));
    taken_in(&running.handle(), 5);
    let begun = Instant::now();
    let report = settled(running.shutdown().await);
    assert!(begun.elapsed() >= SOON, "{:?}", begun.elapsed());
    assert_eq!((report.completed, report.aborted), (0, 5));
    assert_eq!((report.stragglers.len(), dropped.load(SeqCst)), (5, 5));
    clients.iter_mut().for_each(is_cut);
}

async fn a_silent_connection_ends_after_its_time(runtime: impl Runtime) {
    const SOON: Duration = Duration::from_millis(50);
    let server = at_home(&runtime).idle_timeout(SOON).bind().await.unwrap();
    let running = server.spawn(echo);
    let begun = Instant::now();
    let mut client = Client::of(&running);
    assert_eq!(client.rest(), "");
    assert!(begun.elapsed() >= SOON, "{:?}", begun.elapsed());
    settled(running.shutdown().await);
}

async fn a_panic_ends_one_connection_and_no_other(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(async |mut conn: Connection| {
        let mut order = [0];
        while conn.read(&mut order).await? > 0 {
            assert_ne!(order, *b"!", "as the test wants it");
            conn.write_all(&order).await?;
        }
        io::Result::Ok(())
    });
    let mut other = Client::of(&running);
    let mut panicking = Client::of(&running);
    panicking.send("x!");
    assert_eq!(panicking.rest(), "x");
    other.send("y");
    other.finish();
    assert_eq!(other.rest(), "y");
    let report = settled(running.shutdown().await);
    assert_eq!((report.panicked, report.completed), (1, 1));
}

async fn a_limit_holds_peers_back_until_one_leaves(runtime: impl Runtime) {
    let server = at_home(&runtime).max_connections(2).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut inside = [(); 2].map(|()| Client::of(&running));
    for client in &mut inside {
        assert_eq!(client.ask("hello"), "hello");
    }
    let mut waiting = Client::of(&running);
    waiting.send("let me in\n");
    assert_eq!(running.handle().active(), 2);
    drop(inside);
    assert_eq!(waiting.line(), "let me in");
    drop(waiting);
    let report = settled(running.shutdown().await);
    assert_eq!((report.completed, report.peak), (3, 2));
}

/// Their handler is over: they are the connection, wherever they are.
async fn halves_go_on_in_tasks_of_the_runtime(runtime: impl Runtime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let (mut reader, mut writer) = connections.recv().await.unwrap().split();
    let (pass, passed) = async_channel::unbounded();
    runtime.spawn(async move {
        let mut line = String::new();
        while reader.read_line(&mut line).await.unwrap() > 0 {
            pass.send(std::mem::take(&mut line)).await.unwrap();
        }
    });
    runtime.spawn(async move {
        while let Ok(line) = passed.recv().await {
            writer.write_all(line.as_bytes()).await.unwrap();
        }
    });
    for line in ["one", "two", "three"] {
        assert_eq!(client.ask(line), line);
    }
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

#[cfg(target_os = "linux")]
async fn workers_serve_and_drain(runtime: impl Runtime) {
    serves_and_drains(at_home(&runtime).workers(2)).await;
}

#[cfg(target_os = "linux")]
async fn shards_serve_and_drain(runtime: impl Runtime) {
    serves_and_drains(at_home(&runtime).workers(2).sharded(true)).await;
}

#[cfg(target_os = "linux")]
async fn serves_and_drains(builder: Builder<impl Runtime>) {
    let running = builder.bind().await.unwrap().spawn(echo);
    let mut clients = [(); 6].map(|()| Client::of(&running));
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    running.handle().shutdown();
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(settled(running.await).completed, 6);
}

/// Without workers of its own, a server brings threads for them, and the runtime's reactor.
#[cfg(target_os = "linux")]
async fn local_handlers_serve_and_drain(runtime: impl Runtime) {
    use std::cell::Cell;
    use std::rc::Rc;

    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn_local(|| {
        let lines = Rc::new(Cell::new(0));
        async move |mut conn: Connection| {
            let mut line = String::new();
            while conn.read_line(&mut line).await? > 0 {
                lines.set(lines.get() + 1);
                conn.write_all(line.as_bytes()).await?;
                line.clear();
            }
            io::Result::Ok(())
        }
    });
    let mut clients = [(); 6].map(|()| Client::of(&running));
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    let report = settled(running.shutdown().await);
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(report.completed, 6);
}

/// As each runtime has it: no box for every task hides what a task takes.
#[cfg(target_os = "linux")]
async fn thousands_of_short_connections_leave_no_memory_behind(runtime: impl Runtime) {
    use crate::support::client::eventually;
    use crate::support::peer::resident;

    // A Unix socket leaves no port in TIME_WAIT behind.
    let server = Server::with_runtime(runtime)
        .listen(unix_address())
        .idle_timeout(Duration::from_secs(60))
        .bind()
        .await
        .unwrap();
    let running = server.spawn(answer_once);
    let handle = running.handle();
    let visit = |times: usize| {
        for _ in 0..times {
            let mut client = Client::of(&running);
            client.send("hello\n");
            assert_eq!(client.rest(), "hello\n");
        }
        eventually("all are gone", || handle.active() == 0);
    };
    visit(2_000);
    let before = resident();
    visit(40_000);
    let grown = resident().saturating_sub(before);
    // A record alone is more than a hundred bytes: 40 000 of them would be 4 MB and more. Spare
    // buffers, which may come to be with threads that had none before, are 256 KiB a thread.
    assert!(grown < 2 << 20, "it grew by {grown} bytes");
    assert_eq!(settled(running.shutdown().await).accepted, 42_000);
}

#[cfg(all(feature = "async-std", feature = "smol"))]
#[test]
fn servers_on_two_runtimes_stop_as_one() {
    within(DEADLINE, || {
        async_io::block_on(async {
            let one = at_home(&gracious::AsyncStd).bind().await.unwrap();
            let other = at_home(&gracious::Smol).bind().await.unwrap();
            let set = gracious::ServerSet::new([one.handle(), other.handle()]);
            let (one, other) = (one.spawn(echo), other.spawn(echo));
            let mut clients = [Client::of(&one), Client::of(&other)];
            for client in &mut clients {
                assert_eq!(client.ask("hello"), "hello");
            }
            set.shutdown();
            for client in &mut clients {
                assert_eq!(client.rest(), "");
            }
            for running in [one, other] {
                assert_eq!(settled(running.await).completed, 1);
            }
        });
    });
}

/// What has no runtime named is async-std's.
#[cfg(feature = "async-std")]
#[test]
fn bind_and_builder_are_on_async_std() {
    within(DEADLINE, || {
        async_io::block_on(async {
            let bound: Server<gracious::AsyncStd> = Server::bind(loopback()).await.unwrap();
            let built: Builder<gracious::AsyncStd> = Server::builder().listen(loopback());
            for server in [bound, built.bind().await.unwrap()] {
                let running = server.spawn(echo);
                assert_eq!(Client::of(&running).ask("hello"), "hello");
                settled(running.shutdown().await);
            }
        });
    });
}
