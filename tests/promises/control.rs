//! What a handle can do to a server that is at work: pause and resume, a lame duck's time, asking or
//! cutting connections one by one, following futures, and letting a connection go.

use std::future::pending;
use std::io::{self, Read, Write};
use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures_lite::{AsyncBufReadExt, AsyncWriteExt};
use gracious::{Cause, Connection, EndedBy, Reason, ServerEvent, Socket, State};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, Visit, echo, eventually, handing_over, read_in, refuses, taken_in, unix_address,
    visit, waits,
};
use crate::support::peer::{Counted, at_home, cause_of, hears_nothing, is_cut, settled};

crate::on_every_runtime!(
    while_paused_new_peers_wait_and_those_inside_do_not,
    a_pause_takes_hold_of_a_loop_that_waits_for_a_peer,
    a_paused_server_that_stops_serves_those_who_wait,
    a_paused_server_has_no_lame_ducks_time,
    a_pause_before_serve_holds,
    a_lame_duck_serves_and_tells_nobody,
    a_lame_duck_turns_at_the_end_of_its_time,
    shutdown_within_cuts_a_lame_ducks_time_short,
    the_earliest_deadline_holds,
    connections_asked_to_close_do_and_serving_goes_on,
    connections_aborted_are_gone_and_serving_goes_on,
    one_connection_can_be_asked_to_close,
    one_connection_can_be_aborted,
    a_connection_that_is_gone_cannot_be_aborted,
    the_first_reason_is_kept,
    states_come_in_their_order,
    a_drain_waits_for_what_is_tracked,
    an_abort_drops_what_is_tracked,
    a_tracked_future_that_is_dropped_is_no_longer_waited_for,
    a_tracked_future_is_counted_apart,
    a_stop_names_the_work_it_waited_for,
    a_stop_names_the_work_it_dropped,
    work_without_a_name_is_named_by_its_place,
    work_that_nobody_polls_is_given_up_and_named,
    work_that_its_owner_drops_is_not_counted_as_dropped,
    idle_connections_are_told_over_a_span,
    a_span_ends_before_the_deadline,
    busy_connections_are_told_at_once,
    a_detached_connection_goes_on_without_its_server,
    a_detached_unix_connection_does_too,
    a_handler_goes_on_after_it_let_its_connection_go,
    shutdown_requested_tells_at_the_request,
    everything_can_be_called_on_a_closed_server
);

const SOON: Duration = Duration::from_millis(60);

async fn while_paused_new_peers_wait_and_those_inside_do_not(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(echo);
    let handle = running.handle();
    let mut inside = Client::of(&running);
    assert_eq!(inside.ask("hello"), "hello");
    handle.pause();
    assert_eq!(handle.state(), State::Paused);
    assert!(!handle.is_serving());
    handle.pause();
    let mut outside = Client::of(&running);
    outside.send("me\n");
    for _ in 0..20 {
        assert_eq!(inside.ask("still"), "still");
    }
    hears_nothing(&mut outside);
    assert_eq!(handle.stats().accepted, 1);
    handle.resume();
    assert_eq!(outside.line(), "me");
    assert_eq!(handle.state(), State::Serving);
    assert!(handle.is_serving());
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_pause_takes_hold_of_a_loop_that_waits_for_a_peer(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let handle = running.handle();
    // Again and again: nobody who comes after the pause gets in before the end of it.
    for id in 1..=20 {
        handle.pause();
        let mut client = Client::of(&running);
        client.send("me\n");
        handle.resume();
        assert_eq!(client.line(), "me");
        drop(client);
        assert_eq!(cause_of(id, &events).await, Cause::Peer);
    }
    handle.shutdown();
    settled(running.await);
    let mut states = Vec::new();
    while let Ok(event) = events.recv().await {
        states.extend(matches!(event, ServerEvent::State(_)).then_some(event));
    }
    assert_eq!(states.last(), Some(&ServerEvent::State(State::Closed)));
}

async fn a_paused_server_that_stops_serves_those_who_wait(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(echo);
    running.handle().pause();
    let mut clients = [(); 5].map(|()| Client::of(&running));
    for client in &mut clients {
        client.send("me\n");
    }
    running.handle().shutdown();
    for client in &mut clients {
        assert_eq!(client.rest(), "me\n");
    }
    assert_eq!(settled(running.await).completed, 5);
}

async fn a_paused_server_has_no_lame_ducks_time(runtime: TestRuntime) {
    let server = at_home(&runtime).lame_duck(HOUR).bind().await.unwrap();
    let running = server.spawn(echo);
    running.handle().pause();
    running.handle().shutdown();
    assert_eq!(settled(running.await).accepted, 0);
}

async fn a_pause_before_serve_holds(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    assert_eq!(handle.state(), State::Bound);
    handle.pause();
    let events = handle.events();
    let mut client = Client::to(&server);
    client.send("me\n");
    let running = server.spawn(echo);
    assert_eq!(
        events.recv().await.unwrap(),
        ServerEvent::State(State::Paused)
    );
    hears_nothing(&mut client);
    handle.resume();
    assert_eq!(client.line(), "me");
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_lame_duck_serves_and_tells_nobody(runtime: TestRuntime) {
    let server = at_home(&runtime).lame_duck(HOUR).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let handle = running.handle();
    let _before = Client::of(&running);
    let before = connections.recv().await.unwrap();
    handle.shutdown();
    // A load balancer is told before the door is shut.
    assert!(!handle.is_serving());
    assert_eq!(handle.state(), State::Draining);
    let mut during = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    conn.write_all(b"served\n").await.unwrap();
    assert_eq!(during.line(), "served");
    for told in [&before, &conn] {
        assert!(!told.is_shutting_down());
        assert!(waits(Box::pin(told.shutdown_requested())).await);
    }
    handle.abort();
    assert_eq!(settled(running.await).accepted, 2);
}

async fn a_lame_duck_turns_at_the_end_of_its_time(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .lame_duck(Duration::from_millis(100))
        .bind()
        .await
        .unwrap();
    let address = server.local_addrs()[0].clone();
    let (running, connections) = handing_over(server);
    let _client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    running.handle().shutdown();
    conn.shutdown_requested().await;
    assert!(refuses(&address));
    drop(conn);
    let report = settled(running.await);
    assert!(report.drain >= Duration::from_millis(100));
}

async fn shutdown_within_cuts_a_lame_ducks_time_short(runtime: TestRuntime) {
    let server = at_home(&runtime).lame_duck(HOUR).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(client.ask("still"), "still");
    running.handle().shutdown_within(Duration::from_millis(100));
    is_cut(&mut client);
    settled(running.await);
}

async fn the_earliest_deadline_holds(runtime: TestRuntime) {
    // The other order each: the later one changes nothing, the earlier one does.
    for spans in [[HOUR, Duration::ZERO], [Duration::ZERO, HOUR]] {
        let server = at_home(&runtime).bind().await.unwrap();
        let (begun, has_begun) = async_channel::bounded(1);
        let running = server.spawn(async move |_conn: Connection| {
            begun.send(()).await.unwrap();
            pending::<()>().await;
        });
        let _client = Client::of(&running);
        has_begun.recv().await.unwrap();
        for span in spans {
            running.handle().shutdown_within(span);
        }
        running.handle().shutdown_within(Duration::MAX);
        assert_eq!(settled(running.await).aborted, 1);
    }
}

async fn connections_asked_to_close_do_and_serving_goes_on(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .first_byte_grace(None)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            if line == "slow\n" {
                conn.shutdown_requested().await;
            }
            conn.write_all(line.as_bytes()).await?;
            line.clear();
        }
        assert_eq!(conn.ended_by(), Some(EndedBy::Drain));
        io::Result::Ok(())
    });
    let handle = running.handle();
    let (mut silent, mut idle, mut busy) = (
        Client::of(&running),
        Client::of(&running),
        Client::of(&running),
    );
    assert_eq!(idle.ask("hello"), "hello");
    busy.send("slow\n");
    eventually("it was read", || handle.stats().bytes_in == 11);
    taken_in(&handle, 3);
    handle.close_connections();
    assert_eq!(silent.rest(), "");
    assert_eq!(idle.rest(), "");
    assert_eq!(busy.rest(), "slow\n");
    assert_eq!(handle.state(), State::Serving);
    // Whoever comes now is not asked.
    let mut later = Client::of(&running);
    assert_eq!(later.ask("hello"), "hello");
    assert_eq!(later.ask("again"), "again");
    handle.shutdown();
    assert_eq!(later.rest(), "");
    assert_eq!(settled(running.await).completed, 4);
}

async fn connections_aborted_are_gone_and_serving_goes_on(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    let running = server.spawn(async move |conn: Connection| {
        let _counted = Counted(counter);
        echo(conn).await
    });
    let handle = running.handle();
    let mut clients = [(); 3].map(|()| Client::of(&running));
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    handle.abort_connections();
    clients.iter_mut().for_each(is_cut);
    let mut cut = 0;
    while cut < 3 {
        if let ServerEvent::Closed { cause, .. } = events.recv().await.unwrap() {
            assert_eq!(cause, Cause::Aborted);
            cut += 1;
        }
    }
    assert_eq!(dropped.load(SeqCst), 3);
    assert_eq!(handle.state(), State::Serving);
    let mut later = Client::of(&running);
    assert_eq!(later.ask("hello"), "hello");
    handle.shutdown();
    assert_eq!(later.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.aborted, report.completed), (3, 1));
    // They were not there any more when the server was asked to stop.
    assert!(report.stragglers.is_empty());
}

async fn one_connection_can_be_asked_to_close(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let handle = running.handle();
    // One after the other, so that the second of them is the second to be taken in.
    let mut clients = [(); 3].map(|()| {
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        client
    });
    assert!(handle.close_connection(2));
    assert_eq!(clients[1].rest(), "");
    assert_eq!(cause_of(2, &events).await, Cause::Drain);
    for id in [0, 2, 4] {
        assert!(!handle.close_connection(id));
    }
    for i in [0, 2] {
        assert_eq!(clients[i].ask("still"), "still");
    }
    assert_eq!(handle.state(), State::Serving);
    handle.shutdown();
    let report = settled(running.await);
    assert_eq!((report.aborted, report.completed), (0, 3));
}

async fn one_connection_can_be_aborted(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let handle = running.handle();
    // One after the other, so that the second of them is the second to be taken in.
    let mut clients = [(); 3].map(|()| {
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        client
    });
    let id = handle.connections()[1].id;
    assert_eq!(id, 2);
    assert!(handle.abort_connection(id));
    is_cut(&mut clients[1]);
    assert_eq!(cause_of(id, &events).await, Cause::Aborted);
    for i in [0, 2] {
        assert_eq!(clients[i].ask("still"), "still");
    }
    handle.shutdown();
    let report = settled(running.await);
    assert_eq!((report.aborted, report.completed), (1, 2));
}

async fn a_connection_that_is_gone_cannot_be_aborted(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let handle = running.handle();
    assert!(!handle.abort_connection(1));
    drop(Client::of(&running));
    cause_of(1, &events).await;
    for id in [0, 1, 2, u64::MAX] {
        assert!(!handle.abort_connection(id));
    }
    handle.shutdown();
    assert_eq!(settled(running.await).aborted, 0);
}

async fn the_first_reason_is_kept(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    handle.shutdown_because("the first");
    handle.shutdown_because(String::from("the second"));
    handle.shutdown();
    handle.shutdown_within(Duration::ZERO);
    let report = settled(server.serve(echo).await);
    assert_eq!(report.reason, Reason::Because("the first".into()));
    assert!(report.to_string().contains("the first"), "{report}");
}

async fn states_come_in_their_order(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let events = handle.events();
    assert_eq!(handle.state(), State::Bound);
    assert!(!handle.is_serving());
    let (begun, has_begun) = async_channel::bounded(1);
    let running = server.spawn(async move |_conn: Connection| {
        begun.send(()).await.unwrap();
        pending::<()>().await;
    });
    let _client = Client::of(&running);
    has_begun.recv().await.unwrap();
    assert!(handle.is_serving());
    handle.pause();
    handle.resume();
    handle.shutdown();
    assert_eq!(handle.state(), State::Draining);
    handle.abort();
    assert!(handle.state() != State::Draining);
    settled(running.await);
    assert_eq!(handle.state(), State::Closed);
    // Neither a pause nor a request changes that.
    handle.pause();
    handle.resume();
    handle.shutdown();
    assert_eq!(handle.state(), State::Closed);
    let mut states = Vec::new();
    while let Ok(event) = events.recv().await {
        if let ServerEvent::State(state) = event {
            states.push(state);
        }
    }
    let expected = [
        State::Serving,
        State::Paused,
        State::Serving,
        State::Draining,
        State::Aborting,
        State::Closed,
    ];
    assert_eq!(states, expected);
}

async fn a_drain_waits_for_what_is_tracked(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (finish, finished) = async_channel::bounded::<()>(1);
    let (value, result) = async_channel::bounded(1);
    let work = handle.track(async move {
        finished.recv().await.unwrap();
        42
    });
    runtime.spawn(async move { value.send(work.await).await.unwrap() });
    let mut running = server.spawn(echo);
    handle.shutdown();
    handle.shutdown_requested().await;
    assert!(waits(&mut running).await);
    assert_eq!((handle.stats().tracked, handle.active()), (1, 0));
    finish.send(()).await.unwrap();
    settled(running.await);
    assert_eq!(result.recv().await.unwrap(), Some(42));
}

async fn an_abort_drops_what_is_tracked(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = Counted(dropped.clone());
    let (value, result) = async_channel::bounded(1);
    let work = handle.track(async move {
        let _counted = counted;
        pending::<()>().await;
    });
    runtime.spawn(async move { value.send(work.await).await.unwrap() });
    let running = server.spawn(echo);
    handle.abort();
    settled(running.await);
    assert_eq!(dropped.load(SeqCst), 1);
    assert_eq!(result.recv().await.unwrap(), None);
}

async fn a_tracked_future_that_is_dropped_is_no_longer_waited_for(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let work = handle.track(pending::<()>());
    let mut running = server.spawn(echo);
    handle.shutdown();
    handle.shutdown_requested().await;
    assert!(waits(&mut running).await);
    drop(work);
    settled(running.await);
}

async fn a_tracked_future_is_counted_apart(runtime: TestRuntime) {
    let server = at_home(&runtime).max_connections(1).bind().await.unwrap();
    let handle = server.handle();
    let works = [(); 3].map(|()| handle.track(async {}));
    let running = server.spawn(echo);
    // They take nobody's place.
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    let stats = handle.stats();
    assert_eq!((stats.tracked, stats.active, stats.accepted), (3, 1, 1));
    for work in works {
        assert_eq!(work.await, Some(()));
    }
    assert_eq!(handle.stats().tracked, 0);
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 1);
    // There is nothing to wait for any more, and nothing to drop.
    assert_eq!(handle.stats().tracked, 0);
}

async fn a_stop_names_the_work_it_waited_for(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (finish, finished) = async_channel::bounded::<()>(4);
    for name in ["job", "job", "flush"] {
        let finished = finished.clone();
        let work = handle.track_as(name, async move { finished.recv().await });
        runtime.run(work);
    }
    // What is over when the stop comes was not waited for.
    assert_eq!(handle.track_as("early", async {}).await, Some(()));
    let mut running = server.spawn(echo);
    handle.shutdown();
    assert!(waits(&mut running).await);
    assert_eq!(handle.stats().tracked, 3);
    finish.close();
    let report = settled(running.await);
    let mut named: Vec<_> = report
        .tracked_work
        .iter()
        .map(|it| (&*it.name, it.count, it.dropped))
        .collect();
    named.sort_unstable();
    assert_eq!(named, [("flush", 1, 0), ("job", 2, 0)]);
    for work in &report.tracked_work {
        assert!(work.waited <= report.drain, "{report}");
    }
    let text = report.to_string();
    for word in ["; waited for ", "flush (", "job (2 of them, "] {
        assert!(text.contains(word), "no `{word}` in `{text}`");
    }
    assert!(!text.contains("dropped"), "{text}");
    assert_eq!(report.dropped, 0);
    assert!(report.is_clean());
    assert_eq!(report.report(), ExitCode::SUCCESS);
}

async fn a_stop_names_the_work_it_dropped(runtime: TestRuntime) {
    // At the deadline, and by an abort.
    for is_aborted in [false, true] {
        let server = at_home(&runtime).deadline(SOON).bind().await.unwrap();
        let handle = server.handle();
        let work = handle.track_as(format!("flush {}", 1), pending::<()>());
        let (value, result) = async_channel::bounded(1);
        runtime.spawn(async move { value.send(work.await).await.unwrap() });
        let running = server.spawn(echo);
        if is_aborted {
            handle.abort();
        } else {
            handle.shutdown();
        }
        let report = settled(running.await);
        assert_eq!(result.recv().await.unwrap(), None);
        let [work] = &report.tracked_work[..] else {
            panic!("{report}");
        };
        assert_eq!((&*work.name, work.count, work.dropped), ("flush 1", 1, 1));
        // Not by how much more than nothing: where the server's task gets no thread, the wait for the
        // server ends the drain in its place, soon after the listeners were shut.
        assert!(is_aborted || report.drain >= SOON, "{report}");
        assert!(is_aborted || !work.waited.is_zero(), "{report}");
        let text = report.to_string();
        assert!(text.contains("; dropped flush 1 ("), "{text}");
        assert!(!text.contains("waited"), "{text}");
        assert_eq!((report.aborted, report.dropped), (0, 1));
        assert!(!report.is_clean());
        assert_eq!(report.report(), ExitCode::FAILURE);
    }
}

async fn work_without_a_name_is_named_by_its_place(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let (finish, finished) = async_channel::bounded::<()>(1);
    let (work, line) = (handle.track(async move { finished.recv().await }), line!());
    runtime.run(work);
    let mut running = server.spawn(echo);
    handle.shutdown();
    assert!(waits(&mut running).await);
    finish.close();
    let report = settled(running.await);
    let name = &report.tracked_work[0].name;
    assert!(name.starts_with(&format!("{}:{line}:", file!())), "{name}");
}

async fn work_that_nobody_polls_is_given_up_and_named(runtime: TestRuntime) {
    let server = at_home(&runtime).deadline(SOON).bind().await.unwrap();
    let handle = server.handle();
    let _forgotten = handle.track_as("forgotten", pending::<()>());
    let running = server.spawn(echo);
    handle.shutdown();
    let report = settled(running.await);
    assert!(
        report.to_string().contains("; dropped forgotten ("),
        "{report}"
    );
    assert_eq!(report.report(), ExitCode::FAILURE);
}

async fn work_that_its_owner_drops_is_not_counted_as_dropped(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let work = handle.track_as("unwanted", pending::<()>());
    let mut running = server.spawn(echo);
    handle.shutdown();
    assert!(waits(&mut running).await);
    drop(work);
    let report = settled(running.await);
    assert!(report.is_clean(), "{report}");
    assert!(
        report.to_string().contains("; waited for unwanted ("),
        "{report}"
    );
}

/// Clients of an echo server that are idle, and one that is busy.
fn idle_and_busy(running: &gracious::Running, idle: usize) -> (Vec<Client>, Client) {
    let idle = (0..idle).map(|_| {
        let mut client = Client::of(running);
        assert_eq!(client.ask("hello"), "hello");
        client
    });
    let clients: Vec<_> = idle.collect();
    let mut busy = Client::of(running);
    assert_eq!(busy.ask("hello"), "hello");
    busy.send("half ");
    read_in(&running.handle(), 6 * (clients.len() as u64 + 1) + 5);
    (clients, busy)
}

async fn idle_connections_are_told_over_a_span(runtime: TestRuntime) {
    const SPAN: Duration = Duration::from_millis(600);
    let server = at_home(&runtime).spread(SPAN).bind().await.unwrap();
    let running = server.spawn(echo);
    let (clients, busy) = idle_and_busy(&running, 5);
    drop(busy);
    eventually("it is gone", || running.handle().active() == 5);
    let start = Instant::now();
    running.handle().shutdown();
    let ends: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            assert_eq!(client.rest(), "");
            start.elapsed()
        })
        .collect();
    settled(running.await);
    // Each at its time, the last at the end of the span.
    for (number, end) in ends.iter().enumerate().skip(1) {
        let due = SPAN * number as u32 / 5;
        assert!(*end >= due.saturating_sub(SPAN / 10), "{ends:?}");
    }
    assert!(ends[4] >= SPAN * 9 / 10, "{ends:?}");
}

async fn a_span_ends_before_the_deadline(runtime: TestRuntime) {
    let server = at_home(&runtime).spread(HOUR).bind().await.unwrap();
    let running = server.spawn(echo);
    let handle = running.handle();
    let (mut clients, busy) = idle_and_busy(&running, 3);
    drop(busy);
    eventually("it is gone", || handle.active() == 3);
    // The time goes on by leaps, which the server looks at when it is asked for something.
    let goes_on = |part: Duration| {
        runtime.put_forward(part);
        handle.shutdown_within(10 * HOUR);
    };
    handle.shutdown();
    assert_eq!(clients[0].rest(), "");
    // Each at its time, the last when a quarter of the time is left.
    goes_on(HOUR / 2);
    assert_eq!(clients[1].rest(), "");
    assert_eq!(clients[2].ask("still"), "still");
    goes_on(HOUR / 4);
    assert_eq!(clients[2].rest(), "");
    let report = settled(running.await);
    assert!(report.is_clean(), "{report}");
    assert!(report.drain < HOUR, "{report}");
}

async fn busy_connections_are_told_at_once(runtime: TestRuntime) {
    let server = at_home(&runtime).spread(HOUR).bind().await.unwrap();
    let running = server.spawn(echo);
    let handle = running.handle();
    let (mut idle, mut busy) = idle_and_busy(&running, 3);
    handle.shutdown();
    // The first of the span is told at its beginning; the others are served on.
    assert_eq!(idle[0].rest(), "");
    busy.send("a line\n");
    assert_eq!(busy.rest(), "half a line\n");
    assert_eq!(idle[1].ask("still"), "still");
    eventually("two are left", || handle.active() == 2);
    // A deadline that is given later shortens the span.
    handle.shutdown_within(Duration::from_secs(2));
    for client in &mut idle[1..] {
        assert_eq!(client.rest(), "");
    }
    settled(running.await);
}

/// Takes a line, and lets the connection go with what came after it.
async fn let_go(runtime: TestRuntime, builder: gracious::Builder<TestRuntime>) {
    let server = builder.max_connections(1).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    let events = server.handle().events();
    let (give, given) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        if line == "go\n" {
            // All of it is in our buffer by now.
            conn.fill_buf().await?;
            give.send(conn.detach()?).await.unwrap();
        }
        io::Result::Ok(())
    });
    let mut client = Client::connect(&address).unwrap();
    client.send("go\nand the rest");
    let detached = given.recv().await.unwrap();
    assert_eq!(cause_of(1, &events).await, Cause::Detached);
    assert_eq!(detached.unread, b"and the rest");
    // Its place is free, and the server does not wait for it.
    assert_eq!(visit(&address, "stay\n"), Visit::Closed(String::new()));
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.detached, report.completed), (1, 1));
    let mut text = [0; 6];
    match detached.socket {
        Socket::Tcp(mut socket) => {
            socket.set_nonblocking(false).unwrap();
            socket.write_all(b"yours\n").unwrap();
            assert_eq!(client.ask("hello"), "yours");
            socket.read_exact(&mut text).unwrap();
        }
        Socket::Unix(mut socket) => {
            socket.set_nonblocking(false).unwrap();
            socket.write_all(b"yours\n").unwrap();
            assert_eq!(client.ask("hello"), "yours");
            socket.read_exact(&mut text).unwrap();
        }
        other => panic!("{other:?} is no socket that was asked for"),
    }
    assert_eq!(&text, b"hello\n");
    assert_eq!(client.rest(), "");
    drop(runtime);
}

async fn a_detached_connection_goes_on_without_its_server(runtime: TestRuntime) {
    let builder = at_home(&runtime);
    let_go(runtime, builder).await;
}

async fn a_detached_unix_connection_does_too(runtime: TestRuntime) {
    let builder = crate::support::server(runtime.clone()).listen(unix_address());
    let_go(runtime, builder).await;
}

async fn a_handler_goes_on_after_it_let_its_connection_go(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (finish, finished) = async_channel::bounded::<()>(1);
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |conn: Connection| {
        let work = conn.handle().track(async move { finished.recv().await });
        let detached = conn.detach()?;
        // A drain waits for what it is told to wait for.
        assert!(work.await.is_some());
        drop(detached);
        told.send(()).await.unwrap();
        io::Result::Ok(())
    });
    let mut client = Client::of(&running);
    let handle = running.handle();
    eventually("it was let go", || handle.stats().detached == 1);
    handle.shutdown();
    assert_eq!(handle.stats().tracked, 1);
    finish.send(()).await.unwrap();
    settled(running.await);
    is_told.recv().await.unwrap();
    assert_eq!(client.rest(), "");
}

async fn shutdown_requested_tells_at_the_request(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let mut early = [(); 3].map(|()| Box::pin(handle.shutdown_requested()));
    for requested in &mut early {
        assert!(waits(requested).await);
    }
    // It need not be served for that.
    handle.shutdown();
    for requested in early {
        requested.await;
    }
    handle.shutdown_requested().await;
    settled(server.serve(echo).await);
    handle.shutdown_requested().await;
}

async fn everything_can_be_called_on_a_closed_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let handle = server.handle();
    handle.shutdown();
    let report = settled(server.serve(echo).await);
    handle.shutdown();
    handle.shutdown_because("too late");
    handle.shutdown_within(Duration::ZERO);
    handle.abort();
    handle.pause();
    handle.resume();
    handle.close_connections();
    handle.abort_connections();
    assert!(!handle.abort_connection(1));
    handle.set_max_connections(3).unwrap();
    assert_eq!(handle.local_addrs(), addresses);
    assert_eq!(handle.stats(), report.stats);
    assert!(handle.connections().is_empty());
    assert!(handle.events().recv().await.is_err());
    assert_eq!(handle.closed().await.reason, report.reason);
    handle.shutdown_requested().await;
    // What is tracked now is dropped, or goes on; it is not counted for good.
    let _whichever = handle.track(async { 42 }).await;
    assert_eq!(handle.stats().tracked, 0);
}
