//! Promise 2. **One stop.** `shutdown` is idempotent, never blocks, never fails, may come before
//! `serve`, from a handler, a thread, a signal task, twice, from many at once. A request that comes
//! while nothing waits for one is not lost.

use std::io;
use std::sync::{Arc, Barrier};
use std::thread;

use futures_lite::{AsyncBufReadExt, AsyncWriteExt, StreamExt, future};
use gracious::{Cause, Connection, Reason, ServerEvent, State};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, assert_balance, echo, handing_over, on, read_in, reading, rounds, taken_in, tcp,
    transports, waits,
};

crate::on_every_runtime!(
    a_stop_before_serve_serves_whoever_is_queued,
    a_stop_long_before_serve_leaves_the_drain_its_whole_time,
    the_first_reason_is_kept,
    many_threads_can_stop_a_server_at_once,
    a_stop_is_asked_for_while_nobody_listens_yet,
    everybody_who_waits_for_the_end_gets_the_same_report,
    a_client_stops_the_server_and_reads_the_reply_to_the_end,
    others_finish_when_a_client_stops_the_server,
    what_was_pipelined_behind_the_last_request_does_no_harm,
    two_clients_stop_the_server_at_once,
    a_handler_that_stops_the_server_may_panic,
    a_handler_that_stops_the_server_may_fail,
);

/// Echoes lines, and stops the server at `quit`.
async fn talk(conn: Connection) -> io::Result<()> {
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
    Ok(())
}

async fn a_stop_before_serve_serves_whoever_is_queued(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let mut clients: Vec<_> = (0..5).map(|_| Client::to(&server)).collect();
        for client in &mut clients {
            client.send("hello\n");
        }
        let handle = server.handle();
        handle.shutdown();
        handle.shutdown();
        assert_eq!(handle.state(), State::Draining);
        assert!(!handle.is_serving());
        let clients = reading(clients);
        let report = server.serve(echo).await.unwrap();
        assert_eq!((report.accepted, report.completed), (5, 5));
        assert_eq!(clients.join().unwrap(), ["hello\n"; 5]);
    }
}

/// The deadline runs from the shutting of the listeners; the time between the request and `serve`
/// is not part of it.
async fn a_stop_long_before_serve_leaves_the_drain_its_whole_time(runtime: TestRuntime) {
    let server = tcp(runtime.clone()).deadline(std::time::Duration::from_secs(60));
    let server = server.bind().await.unwrap();
    let mut client = Client::to(&server);
    client.send("hello\n");
    server.handle().shutdown();
    runtime.put_forward(crate::support::client::HOUR);
    let report = server.serve(echo).await.unwrap();
    assert_eq!((report.accepted, report.completed), (1, 1), "{report}");
    assert_eq!(client.rest(), "hello\n");
}

async fn the_first_reason_is_kept(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let handle = running.handle();
    handle.shutdown_because("the first");
    handle.shutdown_because("the second");
    handle.shutdown();
    handle.shutdown_within(crate::support::client::HOUR);
    let report = running.shutdown().await.unwrap();
    assert_eq!(report.reason, Reason::Because("the first".into()));
    handle.shutdown_because("the last");
    assert_eq!(handle.closed().await.reason, report.reason);
}

async fn many_threads_can_stop_a_server_at_once(runtime: TestRuntime) {
    const THREADS: usize = 16;
    for _ in 0..rounds(10) {
        let (running, connections) = handing_over(tcp(runtime.clone()).bind().await.unwrap());
        let mut client = Client::of(&running);
        let conn = connections.recv().await.unwrap();
        let events = running.handle().events();
        let start = Arc::new(Barrier::new(THREADS));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (start, handle) = (start.clone(), running.handle());
                thread::spawn(move || {
                    start.wait();
                    handle.shutdown();
                })
            })
            .collect();
        // A request waits for nothing: all threads have asked, and the connection is still there.
        threads.into_iter().for_each(|it| it.join().unwrap());
        conn.shutdown_requested().await;
        assert_eq!(running.handle().state(), State::Draining);
        drop(conn);
        assert_eq!(client.rest(), "");
        let report = running.await.unwrap();
        assert_eq!((report.accepted, report.completed), (1, 1));
        let events: Vec<_> = events.collect().await;
        let draining = ServerEvent::State(State::Draining);
        assert_eq!(events.iter().filter(|it| **it == draining).count(), 1);
    }
}

async fn a_stop_is_asked_for_while_nobody_listens_yet(runtime: TestRuntime) {
    for round in 0..rounds(100) {
        let server = tcp(runtime.clone()).bind().await.unwrap();
        let handle = server.handle();
        let start = Arc::new(Barrier::new(2));
        let stopper = thread::spawn({
            let (start, handle) = (start.clone(), handle.clone());
            move || {
                start.wait();
                handle.shutdown();
            }
        });
        start.wait();
        for _ in 0..round * 10 {
            std::hint::spin_loop();
        }
        let (report, ()) = future::zip(server.serve(echo), handle.shutdown_requested()).await;
        assert_eq!(report.unwrap().reason, Reason::Requested);
        handle.shutdown_requested().await;
        stopper.join().unwrap();
    }
}

async fn everybody_who_waits_for_the_end_gets_the_same_report(runtime: TestRuntime) {
    let (running, connections) = handing_over(tcp(runtime).bind().await.unwrap());
    let handle = running.handle();
    let _client = Client::of(&running);
    let conn = connections.recv().await.unwrap();

    let mut before: Vec<_> = (0..4).map(|_| Box::pin(handle.closed())).collect();
    for closed in &mut before {
        assert!(waits(closed).await);
    }
    handle.shutdown();
    conn.shutdown_requested().await;
    let mut during: Vec<_> = (0..4).map(|_| Box::pin(handle.closed())).collect();
    for closed in &mut during {
        assert!(waits(closed).await);
    }
    // One that gives up leaves the others theirs.
    drop((before.pop(), during.pop()));
    drop(conn);
    let report = running.await.unwrap().to_string();
    for closed in before.into_iter().chain(during) {
        assert_eq!(closed.await.to_string(), report);
    }
    assert_eq!(handle.closed().await.to_string(), report);
}

async fn a_client_stops_the_server_and_reads_the_reply_to_the_end(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let mut client = Client::to(&server);
        client.send("hello\nquit\n");
        let client = reading(vec![client]);
        let report = server.serve(talk).await.unwrap();
        assert_eq!(client.join().unwrap(), ["hello\nbye\n"]);
        assert_eq!((report.accepted, report.completed), (1, 1));
        assert_eq!(report.reason, Reason::Requested);
    }
}

async fn others_finish_when_a_client_stops_the_server(runtime: TestRuntime) {
    let (finish, may_finish) = async_channel::bounded::<()>(1);
    let server = tcp(runtime).bind().await.unwrap();
    let mut running = server.spawn(async move |conn: Connection| {
        let (reader, mut writer) = conn.split();
        let mut lines = reader.lines();
        while let Some(line) = lines.next().await {
            let line = line?;
            match line.as_str() {
                "slow" => drop(may_finish.recv().await),
                "quit" => writer.handle().shutdown(),
                _ => {}
            }
            writer.write_all(format!("{line}!\n").as_bytes()).await?;
        }
        Ok::<_, io::Error>(())
    });
    let mut idle = Client::of(&running);
    assert_eq!(idle.ask("hello"), "hello!");
    let mut slow = Client::of(&running);
    slow.send("slow\n");
    read_in(&running.handle(), 6 + 5);
    let mut quit = Client::of(&running);
    assert_eq!(quit.ask("quit"), "quit!");
    // The idle one and the one that quit see the end, while the slow one is still at work.
    assert_eq!(idle.rest(), "");
    assert_eq!(quit.rest(), "");
    assert!(waits(&mut running).await);
    finish.send(()).await.unwrap();
    assert_eq!(slow.rest(), "slow!\n");
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.completed), (3, 3));
}

async fn what_was_pipelined_behind_the_last_request_does_no_harm(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let mut client = Client::to(&server);
        client.send("quit\n");
        client.send(&"never read\n".repeat(5000));
        let client = reading(vec![client]);
        let report = server
            .serve(async |mut conn: Connection| {
                let mut line = String::new();
                // The rest is more than our buffer takes: it stays in the kernel, unread.
                conn.read_line(&mut line).await?;
                conn.handle().shutdown();
                conn.write_all(b"bye\n").await
            })
            .await
            .unwrap();
        assert_eq!(client.join().unwrap(), ["bye\n"]);
        assert_eq!((report.accepted, report.completed), (1, 1));
    }
}

async fn two_clients_stop_the_server_at_once(runtime: TestRuntime) {
    let (running, connections) = handing_over(tcp(runtime).bind().await.unwrap());
    let mut clients = [Client::of(&running), Client::of(&running)];
    for client in &mut clients {
        client.send("quit\n");
    }
    let mut inside = Vec::new();
    for _ in &clients {
        // In the order in which their handlers ran.
        let mut conn = connections.recv().await.unwrap();
        let mut line = String::new();
        conn.read_line(&mut line).await.unwrap();
        inside.push(conn);
    }
    let start = Arc::new(Barrier::new(2));
    let threads: Vec<_> = inside
        .into_iter()
        .map(|mut conn| {
            let start = start.clone();
            thread::spawn(move || {
                start.wait();
                conn.handle().shutdown();
                async_io::block_on(conn.write_all(b"bye\n"))
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.rest(), "bye\n");
    }
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.completed), (2, 2));
}

async fn a_handler_that_stops_the_server_may_panic(runtime: TestRuntime) {
    let running = tcp(runtime)
        .bind()
        .await
        .unwrap()
        .spawn(|conn: Connection| async move {
            conn.handle().shutdown();
            if conn.id() > 0 {
                panic!("after the stop was asked for");
            }
        });
    let mut client = Client::of(&running);
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.panicked), (1, 1));
    assert_balance(&report);
    assert_eq!(client.rest(), "");
}

async fn a_handler_that_stops_the_server_may_fail(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(async |conn: Connection| {
        conn.handle().shutdown();
        Err::<(), _>(io::Error::other("nothing works today"))
    });
    let mut client = Client::of(&running);
    taken_in(&running.handle(), 1);
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.failed), (1, 1));
    assert_eq!(client.rest(), "");
    let events: Vec<_> = events.collect().await;
    let failed = |event: &&ServerEvent| match event {
        ServerEvent::Closed { cause, .. } => *cause == Cause::Error("nothing works today".into()),
        _ => false,
    };
    assert_eq!(events.iter().filter(failed).count(), 1, "{events:?}");
}
