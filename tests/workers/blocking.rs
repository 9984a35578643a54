//! A handler that blocks its thread: the others are served, and the operator is told whose it is.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, future};
use gracious::{Connection, Handle, Running, Waiting};

use crate::support::client::{Client, echo, eventually, waits};
use crate::support::flood::{Flood, ReadyPeers};
use crate::support::peer::{logged, settled};
use crate::{on_workers, on_workers_in_a_process, with_workers};

use crate::threads::own_threads;

on_workers!(
    a_drain_waits_for_a_handler_that_blocks,
    who_is_woken_by_a_handler_that_blocks_is_served,
    a_handler_that_blocks_until_all_others_are_served_does_not_wait_in_vain,
);

on_workers_in_a_process!(
    a_handler_that_blocks_is_named_and_the_others_are_served,
    as_many_as_there_are_workers_may_block,
    the_threads_that_take_over_are_used_again,
    who_only_works_is_not_named,
    who_never_pauses_is_not_named,
    what_waits_behind_a_handler_that_blocks_is_served_beside_clients_that_never_pause,
);

/// Answers lines, and at the line `block` blocks its thread until the test lets it go.
fn blocking(
    server: gracious::Server<crate::support::TestRuntime>,
) -> (Running, Receiver<u64>, Sender<()>) {
    let (blocks, blocked) = async_channel::unbounded();
    let (let_go, go) = async_channel::unbounded();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            if line == "block\n" {
                blocks.send(conn.id()).await.unwrap();
                // Not an await: the thread sleeps.
                let _over = go.recv_blocking();
            }
            conn.write_all(line.as_bytes()).await?;
            line.clear();
        }
        io::Result::Ok(())
    });
    (running, blocked, let_go)
}

/// What the log says when the handler of the second connection blocks its thread.
fn second_blocks(handle: &Handle) -> String {
    let mut connections = handle.connections().into_iter();
    let second = connections.find(|connection| connection.id == 2).unwrap();
    format!(
        "WARN the handler of a connection from {} blocks a thread",
        second.peer
    )
}

/// The lines in the log about handlers that block.
fn named() -> Vec<String> {
    let lines = logged().into_iter();
    lines
        .filter(|line| line.contains("blocks a thread"))
        .collect()
}

async fn a_handler_that_blocks_is_named_and_the_others_are_served(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (running, blocked, let_go) = blocking(server);
    let mut other = Client::of(&running);
    assert_eq!(other.ask("hello"), "hello");
    let mut blocks = Client::of(&running);
    assert_eq!(blocks.ask("hello"), "hello");
    blocks.send("block\n");
    assert_eq!(blocked.recv().await.unwrap(), 2);
    for _ in 0..100 {
        assert_eq!(other.ask("still"), "still");
        assert_eq!(Client::of(&running).ask("new"), "new");
    }
    let name = second_blocks(&running.handle());
    eventually("it is named", || !named().is_empty());
    let_go.send(()).await.unwrap();
    assert_eq!(blocks.line(), "block");
    assert_eq!(blocks.ask("and on"), "and on");
    assert_eq!(other.ask("both"), "both");
    assert_eq!(named(), [name], "once");
    drop((blocks, other));
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 102);
}

/// And one more.
async fn as_many_as_there_are_workers_may_block(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (running, blocked, let_go) = blocking(server);
    let mut clients = Vec::new();
    for _ in 0..=workers {
        let mut client = Client::of(&running);
        client.send("block\n");
        blocked.recv().await.unwrap();
        clients.push(client);
        assert_eq!(Client::of(&running).ask("hello"), "hello");
    }
    eventually("all are named", || named().len() == workers + 1);
    for _ in &clients {
        let_go.send(()).await.unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.line(), "block");
        assert_eq!(client.ask("and on"), "and on");
    }
    drop(clients);
    running.handle().shutdown();
    settled(running.await);
}

async fn the_threads_that_take_over_are_used_again(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (running, blocked, let_go) = blocking(server);
    let mut client = Client::of(&running);
    let mut other = Client::of(&running);
    for _ in 0..10 {
        client.send("block\n");
        blocked.recv().await.unwrap();
        // Answered by another thread than the one that is blocked.
        assert_eq!(other.ask("still"), "still");
        let_go.send(()).await.unwrap();
        assert_eq!(client.line(), "block");
    }
    // The workers, one to take over, and the one that looks after them.
    let threads = own_threads();
    assert!(threads.len() <= workers + 2, "{threads:?}");
    drop((client, other));
    running.handle().shutdown();
    settled(running.await);
}

async fn a_drain_waits_for_a_handler_that_blocks(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (running, blocked, let_go) = blocking(server);
    let mut idle = Client::of(&running);
    assert_eq!(idle.ask("hello"), "hello");
    let mut client = Client::of(&running);
    client.send("block\n");
    blocked.recv().await.unwrap();
    let handle = running.handle();
    handle.shutdown();
    // All the others leave.
    assert_eq!(idle.rest(), "");
    eventually("it is the last", || handle.active() == 1);
    let mut running = running;
    assert!(waits(&mut running).await);
    assert_eq!(handle.connections()[0].waiting, Waiting::Handler);
    let_go.send(()).await.unwrap();
    assert_eq!(client.rest(), "block\n");
    let report = settled(running.await);
    assert_eq!(
        (report.completed, report.stragglers.len()),
        (2, 0),
        "{report}"
    );
}

/// Woken on a thread that does not get to it, also after another has taken over.
async fn who_is_woken_by_a_handler_that_blocks_is_served(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (ask, asked) = async_channel::unbounded::<Sender<u32>>();
    let running = server.spawn(async move |mut conn: Connection| {
        if conn.id() == 1 {
            while let Ok(reply) = asked.recv().await {
                reply.send(7).await.unwrap();
            }
        } else {
            conn.read_exact(&mut [0; 1]).await?;
            let (reply, replied) = async_channel::bounded(1);
            let number: u32 = async_io::block_on(async {
                let mut sum = 0;
                for _ in 0..3 {
                    ask.send(reply.clone()).await.unwrap();
                    sum += replied.recv().await.unwrap();
                }
                sum
            });
            ask.close();
            conn.write_all(format!("{number}\n").as_bytes()).await?;
        }
        io::Result::Ok(())
    });
    let _answers = Client::of(&running);
    let mut asks = Client::of(&running);
    asks.send("?");
    assert_eq!(asks.line(), "21");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

/// All are woken at once, and whoever is first blocks: what waits behind it is run by others.
async fn a_handler_that_blocks_until_all_others_are_served_does_not_wait_in_vain(workers: usize) {
    const OTHERS: usize = 50;
    let server = with_workers(workers).bind().await.unwrap();
    let (go, start) = async_channel::unbounded::<()>();
    let (served, serve) = mpsc::channel();
    // Whoever is first gets it.
    let first = Arc::new(Mutex::new(Some(serve)));
    let running = server.spawn(async move |mut conn: Connection| {
        start.recv().await.unwrap();
        let first = first.lock().unwrap().take();
        match first {
            Some(serve) => {
                // It is busy until then, but does not wait.
                for _ in 0..OTHERS {
                    serve.recv().unwrap();
                }
            }
            None => served.send(()).unwrap(),
        }
        conn.write_all(b"served\n").await
    });
    let mut clients: Vec<_> = (0..=OTHERS).map(|_| Client::of(&running)).collect();
    let handle = running.handle();
    eventually("all are in", || {
        handle.stats().accepted == clients.len() as u64
    });
    for _ in &clients {
        go.try_send(()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.rest(), "served\n");
    }
    handle.shutdown();
    assert_eq!(settled(running.await).completed, OTHERS as u64 + 1);
}

/// While one blocks, another's thread is always in its handler, and each time for a short while.
async fn who_only_works_is_not_named(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (go, is_over) = async_channel::bounded::<()>(1);
    let (blocks, blocked) = async_channel::bounded(1);
    let held_up = Arc::new(AtomicBool::new(false));
    let was_held_up = held_up.clone();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut byte = [0; 1];
        conn.read_exact(&mut byte).await?;
        if byte == *b"b" {
            blocks.send(()).await.unwrap();
            let _over = is_over.recv_blocking();
            return conn.write_all(b"x").await;
        }
        while !is_over.is_closed() {
            // What it takes to answer something.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(2) {}
            future::yield_now().await;
            if begun.elapsed() > Duration::from_millis(40) {
                // Somebody else has had this thread's core all the while.
                was_held_up.store(true, SeqCst);
            }
        }
        io::Result::Ok(())
    });
    let mut works = Client::of(&running);
    works.send("w");
    let mut client = Client::of(&running);
    client.send("b");
    blocked.recv().await.unwrap();
    let name = second_blocks(&running.handle());
    eventually("one is named", || !named().is_empty());
    // Another look or two at the threads.
    thread::sleep(Duration::from_millis(200));
    go.close();
    assert_eq!((works.rest(), client.rest()), (String::new(), "x".into()));
    let named = named();
    if !held_up.load(SeqCst) {
        assert_eq!(named, [name], "once");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

/// It goes round: its handler is left and entered again, however much input there is.
async fn who_never_pauses_is_not_named(workers: usize) {
    let server = with_workers(workers).listener(ReadyPeers(1));
    let server = server.deadline(Duration::ZERO).bind().await.unwrap();
    let handle = server.handle();
    let (go, is_over) = async_channel::bounded::<()>(1);
    let (blocks, blocked) = async_channel::bounded(1);
    let held_up = Arc::new(AtomicBool::new(false));
    let was_held_up = held_up.clone();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        let mut last = Instant::now();
        while conn.read_line(&mut line).await? > 0 {
            if line == "block\n" {
                blocks.send(()).await.unwrap();
                let _over = is_over.recv_blocking();
            }
            conn.write_all(line.as_bytes()).await?;
            line.clear();
            if last.elapsed() > Duration::from_millis(40) {
                // Somebody else has had this thread's core all the while.
                was_held_up.store(true, SeqCst);
            }
            last = Instant::now();
        }
        io::Result::Ok(())
    });
    eventually("one that never pauses is in", || handle.active() == 1);
    let mut client = Client::of(&running);
    client.send("block\n");
    blocked.recv().await.unwrap();
    let name = second_blocks(&handle);
    eventually("one is named", || !named().is_empty());
    // Another look or two at the threads.
    thread::sleep(Duration::from_millis(200));
    go.close();
    assert_eq!(client.line(), "block");
    let named = named();
    if !held_up.load(SeqCst) {
        assert_eq!(named, [name], "once");
    }
    drop(client);
    handle.shutdown();
    settled(running.await);
}

/// The thread that takes over has always something of its own to run.
async fn what_waits_behind_a_handler_that_blocks_is_served_beside_clients_that_never_pause(
    workers: usize,
) {
    const OTHERS: usize = 100;
    const FLOODS: usize = 4;
    let server = with_workers(workers).bind().await.unwrap();
    let (go, start) = async_channel::unbounded::<()>();
    let (let_go, is_let_go) = async_channel::unbounded::<()>();
    let running = server.spawn(async move |mut conn: Connection| {
        let id = conn.id() as usize;
        if id > OTHERS + 1 {
            return echo(conn).await;
        }
        if id > 1 {
            start.recv().await.unwrap();
            return conn.write_all(b"served\n").await;
        }
        conn.read_exact(&mut [0; 1]).await?;
        // They are woken on this thread, which does not get to them.
        for _ in 0..OTHERS {
            go.try_send(()).unwrap();
        }
        is_let_go.recv_blocking().unwrap();
        conn.write_all(b"unblocked\n").await
    });
    let mut blocks = Client::of(&running);
    let mut clients: Vec<_> = (0..OTHERS).map(|_| Client::of(&running)).collect();
    let handle = running.handle();
    eventually("all are in", || {
        handle.stats().accepted == clients.len() as u64 + 1
    });
    let floods: Vec<_> = (0..FLOODS)
        .map(|_| Flood::begin(Client::of(&running)))
        .collect();
    blocks.send("!");
    for client in &mut clients {
        assert_eq!(client.rest(), "served\n");
    }
    floods.iter().for_each(Flood::goes_on);
    let_go.send(()).await.unwrap();
    assert_eq!(blocks.rest(), "unblocked\n");
    drop(floods);
    handle.shutdown();
    settled(running.await);
}
