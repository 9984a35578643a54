//! Limits of time, of a line, of one peer's share, and what the surplus is told. That a limit of
//! connections is back-pressure is in `p13_back_pressure`.

use std::io;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Cause, Connection, EndedBy, ServerEvent};

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, echo, eventually, handing_over, read_in, unix_address};
use crate::support::peer::{at_home, cause_of, hears_nothing, is_cut, opened, passes, settled};

crate::on_every_runtime!(
    the_surplus_gets_the_message_and_a_clean_end,
    the_surplus_gets_a_clean_end_whatever_it_sent,
    an_empty_message_is_a_clean_end,
    the_rejected_take_no_permit,
    one_peer_gets_its_share,
    a_share_is_given_back,
    unix_peers_have_no_share,
    a_limit_of_zero_is_a_clear_error,
    an_idle_connection_is_ended,
    an_idle_connections_handler_can_say_goodbye,
    half_a_message_and_then_silence_times_out,
    a_handler_that_does_not_end_times_out_a_linger_later,
    what_comes_after_the_question_is_answered,
    a_handler_that_works_on_after_the_question_does_not_time_out,
    bytes_either_way_keep_a_connection,
    a_handler_at_work_is_not_idle,
    a_write_that_nobody_takes_is_idle,
    an_expired_connection_stays_expired,
    who_never_says_a_word_is_ended,
    who_said_a_word_in_time_may_be_silent,
    a_connection_of_age_ends_as_at_a_drain,
    a_connection_of_age_that_goes_on_is_aborted_a_deadline_later,
    a_limit_releases_the_permit,
    a_long_line_is_an_error_of_its_own,
    the_longest_line_is_no_error,
    a_line_that_a_reset_breaks_off_is_an_error,
    limits_end_with_the_server,
    #[cfg(target_os = "linux")]
    a_user_timeout_is_inherited,
    #[cfg(target_os = "linux")]
    a_user_timeout_ends_a_write_that_nobody_takes
);

#[cfg(target_os = "linux")]
crate::on_every_runtime_in_a_process!(
    a_limit_that_the_system_cannot_keep_is_said_at_bind: binds_with_few_descriptors, passes;
);

const SOON: Duration = Duration::from_millis(60);

/// Reads to the end, and tells how that was.
async fn read_on(mut conn: Connection) -> io::Result<()> {
    let mut bytes = [0; 64];
    while conn.read(&mut bytes).await? > 0 {}
    Ok(())
}

async fn the_surplus_gets_the_message_and_a_clean_end(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_connections(2)
        .reject_with("try again\n")
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let mut inside = [(); 2].map(|()| Client::of(&running));
    for client in &mut inside {
        assert_eq!(client.ask("hello"), "hello");
    }
    for id in 3..=5 {
        assert_eq!(Client::of(&running).rest(), "try again\n");
        assert_eq!(cause_of(id, &events).await, Cause::Rejected);
    }
    let [one, mut other] = inside;
    drop(one);
    eventually("there is a place", || running.handle().active() == 1);
    let mut next = Client::of(&running);
    assert_eq!(next.ask("hello"), "hello");
    assert_eq!(other.ask("still"), "still");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (3, 3));
}

async fn the_surplus_gets_a_clean_end_whatever_it_sent(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .listen(unix_address())
        .max_connections(1)
        .reject_with("try again\n")
        .bind()
        .await
        .unwrap();
    let addresses = server.local_addrs().to_vec();
    let running = server.spawn(echo);
    let mut inside = Client::of(&running);
    assert_eq!(inside.ask("hello"), "hello");
    running.handle().pause();
    for address in addresses.iter().cycle().take(10) {
        // It is unread when it is rejected.
        let mut client = Client::connect(address).unwrap();
        client.send(&"a request that nobody reads\n".repeat(100));
        running.handle().resume();
        assert_eq!(client.rest(), "try again\n");
        running.handle().pause();
    }
    drop(inside);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (1, 10));
}

async fn an_empty_message_is_a_clean_end(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_connections(1)
        .reject_with("")
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut inside = Client::of(&running);
    assert_eq!(inside.ask("hello"), "hello");
    assert_eq!(Client::of(&running).rest(), "");
    running.handle().shutdown();
    assert_eq!(settled(running.await).rejected, 1);
}

async fn the_rejected_take_no_permit(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_connections(1)
        .reject_with("x".repeat(1000))
        .linger(None)
        .linger_total(None)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let handle = running.handle();
    let mut inside = Client::of(&running);
    assert_eq!(inside.ask("hello"), "hello");
    // Its close waits for more of what it sends.
    let mut rejected = Client::of(&running);
    rejected.send("unread");
    eventually("it was rejected", || handle.stats().accepted == 2);
    drop(inside);
    assert_eq!(cause_of(1, &events).await, Cause::Peer);
    let mut next = Client::of(&running);
    assert_eq!(next.ask("hello"), "hello");
    drop(rejected);
    handle.shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.rejected), (2, 1));
}

async fn one_peer_gets_its_share(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_per_peer(2)
        .reject_with("enough\n")
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut clients = [(); 2].map(|()| Client::of(&running));
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    assert_eq!(Client::of(&running).rest(), "enough\n");
    // Another peer has a share of its own.
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let from: std::net::SocketAddr = crate::support::peer::loopback().parse().unwrap();
        socket.bind(&from.into()).unwrap();
        let address = running.handle().local_addrs()[0].as_tcp().unwrap();
        socket.connect(&address.into()).unwrap();
        let mut other = Client::Tcp(socket.into());
        assert_eq!(other.ask("hello"), "hello");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).rejected, 1);
}

async fn a_share_is_given_back(runtime: TestRuntime) {
    let server = at_home(&runtime).max_per_peer(1).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        assert_ne!(&order, b"p", "as the test wants it");
        if &order == b"d" {
            conn.detach()?;
        }
        io::Result::Ok(())
    });
    for (id, order) in ["c", "p", "d", "c", "x", "c"].iter().enumerate() {
        let mut client = Client::of(&running);
        client.send(order);
        is_cut(&mut client);
        let cause = cause_of(id as u64 + 1, &events).await;
        assert_ne!(cause, Cause::Rejected);
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).rejected, 0);
}

async fn unix_peers_have_no_share(runtime: TestRuntime) {
    let server = crate::support::server(runtime)
        .listen(unix_address())
        .max_per_peer(1)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut clients = [(); 3].map(|()| Client::of(&running));
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "hello");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 3);
}

async fn a_limit_of_zero_is_a_clear_error(runtime: TestRuntime) {
    let builders = [
        ("max_connections", at_home(&runtime).max_connections(0)),
        ("max_per_peer", at_home(&runtime).max_per_peer(0)),
        ("line_limit", at_home(&runtime).line_limit(0)),
        (
            "idle_timeout",
            at_home(&runtime).idle_timeout(Duration::ZERO),
        ),
        (
            "first_byte_timeout",
            at_home(&runtime).first_byte_timeout(Duration::ZERO),
        ),
        ("max_age", at_home(&runtime).max_age(Duration::ZERO)),
    ];
    for (name, builder) in builders {
        let error = builder.bind().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        assert!(error.to_string().contains(name), "{error}");
    }
    // No limit is no error.
    let unlimited = at_home(&runtime)
        .max_connections(None)
        .max_per_peer(None)
        .idle_timeout(None)
        .first_byte_timeout(None)
        .max_age(None)
        .deadline(Duration::ZERO);
    drop(unlimited.bind().await.unwrap());
}

async fn an_idle_connection_is_ended(runtime: TestRuntime) {
    let server = at_home(&runtime).idle_timeout(SOON).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let start = Instant::now();
    let mut silent = Client::of(&running);
    let mut one_word = Client::of(&running);
    one_word.send("hello\n");
    // A clean end both, and not before its time: without one, the first byte would be waited for.
    assert_eq!(silent.rest(), "");
    assert_eq!(one_word.rest(), "hello\n");
    assert!(start.elapsed() >= SOON);
    let mut ended = 0;
    while ended < 2 {
        if let ServerEvent::Closed { cause, age, .. } = events.recv().await.unwrap() {
            assert_eq!(cause, Cause::IdleTimeout);
            assert!(age >= SOON);
            ended += 1;
        }
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.idle), (2, 2));
}

async fn an_idle_connections_handler_can_say_goodbye(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .idle_timeout(SOON)
        .linger(HOUR)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        conn.write_all(&order).await?;
        // Either it reads on, or it watches for the question.
        match &order {
            b"r" => assert_eq!(conn.read(&mut order).await?, 0),
            _ => {
                conn.idle_when(gracious::IdleWhen::Never);
                let asked = conn.shutdown_requested();
                let read = async { conn.read(&mut order).await.map(drop).unwrap() };
                futures_lite::future::or(asked, read).await;
            }
        }
        assert!(conn.is_shutting_down());
        conn.write_all(b" 421 idle\n").await
    });
    let mut clients = ["r", "w"].map(|order| {
        let mut client = Client::of(&running);
        client.send(order);
        (client, order)
    });
    for (client, order) in &mut clients {
        assert_eq!(client.rest(), format!("{order} 421 idle\n"));
    }
    let mut ended = 0;
    while ended < 2 {
        if let ServerEvent::Closed { cause, .. } = events.recv().await.unwrap() {
            assert_eq!(cause, Cause::IdleTimeout);
            ended += 1;
        }
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.idle), (2, 2));
}

async fn half_a_message_and_then_silence_times_out(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .idle_timeout(SOON)
        .linger(SOON)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let start = Instant::now();
    let mut client = Client::of(&running);
    client.send("half");
    assert_eq!(client.rest(), "");
    assert!(start.elapsed() >= 2 * SOON);
    assert_eq!(cause_of(1, &events).await, Cause::IdleTimeout);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.limited.idle), (1, 1));
    assert!(report.is_clean(), "{report}");
}

async fn a_handler_that_does_not_end_times_out_a_linger_later(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .idle_timeout(SOON)
        .linger(SOON)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let (tell, told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        conn.idle_when(gracious::IdleWhen::Never);
        let first = conn.read(&mut [0]).await.unwrap_err().kind();
        let second = conn.read(&mut [0]).await.unwrap_err().kind();
        let written = conn.write(b"x").await.unwrap_err().kind();
        tell.send([first, second, written]).await.unwrap();
    });
    let start = Instant::now();
    let mut client = Client::of(&running);
    assert_eq!(client.rest(), "");
    assert!(start.elapsed() >= 2 * SOON);
    assert_eq!(told.recv().await.unwrap(), [io::ErrorKind::TimedOut; 3]);
    assert_eq!(cause_of(1, &events).await, Cause::IdleTimeout);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.idle), (1, 1));
}

async fn what_comes_after_the_question_is_answered(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .idle_timeout(SOON)
        .linger(HOUR)
        .bind()
        .await
        .unwrap();
    let (asked, is_asked) = async_channel::bounded(1);
    let running = server.spawn(async move |conn: Connection| {
        let requested = conn.shutdown_requested();
        let tell = async {
            requested.await;
            asked.send(()).await.unwrap();
            std::future::pending().await
        };
        futures_lite::future::or(echo(conn), tell).await
    });
    let mut client = Client::of(&running);
    // Half a line is no idle one's, so it is asked and goes on.
    client.send("half ");
    is_asked.recv().await.unwrap();
    client.send("a line\n");
    assert_eq!(client.rest(), "half a line\n");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.idle), (1, 1));
}

async fn a_handler_that_works_on_after_the_question_does_not_time_out(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .idle_timeout(SOON)
        .linger(SOON)
        .bind()
        .await
        .unwrap();
    let timer = runtime.clone();
    let running = server.spawn(async move |mut conn: Connection| {
        assert_eq!(conn.read(&mut [0]).await?, 0);
        timer.sleep(4 * SOON).await;
        conn.write_all(b"done").await
    });
    assert_eq!(Client::of(&running).rest(), "done");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.idle), (1, 1));
}

async fn bytes_either_way_keep_a_connection(runtime: TestRuntime) {
    let limit = Duration::from_secs(2);
    let server = at_home(&runtime).idle_timeout(limit).bind().await.unwrap();
    let events = server.handle().events();
    let timer = runtime.clone();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        let mut first = [0];
        reader.read_exact(&mut first).await?;
        if &first == b"w" {
            // The client is silent from here on, and the server is not, while a read waits.
            let talk = async {
                for _ in 0..12 {
                    timer.sleep(limit / 8).await;
                    writer.write_all(b".").await?;
                }
                writer.write_all(b"done").await
            };
            let listen = async { reader.read(&mut first).await.map(drop) };
            return futures_lite::future::or(talk, listen).await;
        }
        reader.read_to_end(&mut Vec::new()).await?;
        writer.write_all(b"done").await
    });
    let mut listener = Client::of(&running);
    listener.send("w");
    opened(1, &events).await;
    let mut speaker = Client::of(&running);
    for _ in 0..12 {
        runtime.sleep(limit / 8).await;
        speaker.send("s");
    }
    speaker.finish();
    assert_eq!(speaker.rest(), "done");
    assert_eq!(listener.rest(), "............done");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.idle), (2, 0));
}

async fn a_handler_at_work_is_not_idle(runtime: TestRuntime) {
    let server = at_home(&runtime).idle_timeout(SOON).bind().await.unwrap();
    let timer = runtime.clone();
    let running = server.spawn(async move |mut conn: Connection| {
        conn.read_exact(&mut [0]).await?;
        timer.sleep(4 * SOON).await;
        conn.write_all(b"done").await
    });
    let mut client = Client::of(&running);
    client.send("x");
    assert_eq!(client.rest(), "done");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.idle), (1, 0));
}

async fn a_write_that_nobody_takes_is_idle(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .idle_timeout(SOON)
        .linger(SOON)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| -> io::Result<()> {
        loop {
            conn.write_all(&[0; 65536]).await?;
        }
    });
    let client = Client::of(&running);
    assert_eq!(cause_of(1, &events).await, Cause::IdleTimeout);
    drop(client);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.limited.idle), (1, 1));
}

async fn an_expired_connection_stays_expired(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .first_byte_timeout(SOON)
        .bind()
        .await
        .unwrap();
    let (told, kinds) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let first = conn.read(&mut [0]).await.unwrap_err().kind();
        let second = conn.read(&mut [0]).await.unwrap_err().kind();
        let written = conn.write(b"x").await.unwrap_err().kind();
        told.send([first, second, written]).await.unwrap();
    });
    let mut client = Client::of(&running);
    assert_eq!(client.rest(), "");
    assert_eq!(kinds.recv().await.unwrap(), [io::ErrorKind::TimedOut; 3]);
    running.handle().shutdown();
    // Its handler took it well, and its end has a cause all the same.
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.first_byte), (1, 1));
}

async fn who_never_says_a_word_is_ended(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .first_byte_timeout(SOON)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| {
        // Speaking first does not count.
        conn.write_all(b"who is there?\n").await?;
        read_on(conn).await
    });
    let start = Instant::now();
    let mut client = Client::of(&running);
    assert_eq!(client.rest(), "who is there?\n");
    assert!(start.elapsed() >= SOON);
    assert_eq!(cause_of(1, &events).await, Cause::FirstByteTimeout);
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.limited.first_byte), (1, 1));
}

async fn who_said_a_word_in_time_may_be_silent(runtime: TestRuntime) {
    let limit = Duration::from_secs(2);
    let server = at_home(&runtime)
        .first_byte_timeout(limit)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    runtime.sleep(limit + SOON).await;
    assert_eq!(client.ask("still"), "still");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.first_byte), (1, 0));
}

async fn a_connection_of_age_ends_as_at_a_drain(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_age(SOON)
        .first_byte_grace(None)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let (asked, is_asked) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        if conn.read(&mut order).await? == 0 {
            assert_eq!(conn.ended_by(), Some(EndedBy::Drain));
            return Ok(());
        }
        // Inside a message, and asked in the middle of it.
        conn.shutdown_requested().await;
        assert!(conn.is_shutting_down());
        asked.send(()).await.unwrap();
        conn.write_all(b"done").await
    });
    let start = Instant::now();
    let mut idle = Client::of(&running);
    let mut busy = Client::of(&running);
    busy.send("x");
    is_asked.recv().await.unwrap();
    assert!(start.elapsed() >= SOON);
    assert_eq!((idle.rest(), busy.rest()), ("".into(), "done".into()));
    let mut ended = 0;
    while ended < 2 {
        if let ServerEvent::Closed { cause, .. } = events.recv().await.unwrap() {
            assert_eq!(cause, Cause::MaxAge);
            ended += 1;
        }
    }
    assert!(running.handle().is_serving());
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.limited.age), (2, 2));
}

async fn a_connection_of_age_that_goes_on_is_aborted_a_deadline_later(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_age(SOON)
        .deadline(SOON)
        .bind()
        .await
        .unwrap();
    let events = server.handle().events();
    let start = Instant::now();
    let running = server.spawn(async move |conn: Connection| {
        let _busy = conn.busy();
        std::future::pending::<()>().await;
    });
    let mut client = Client::of(&running);
    is_cut(&mut client);
    assert!(start.elapsed() >= 2 * SOON);
    assert_eq!(cause_of(1, &events).await, Cause::MaxAge);
    assert!(running.handle().is_serving());
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.aborted, report.limited.age), (1, 1));
}

async fn a_limit_releases_the_permit(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .max_connections(1)
        .first_byte_timeout(SOON)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(read_on);
    let mut silent = [(); 3].map(|()| Client::of(&running));
    for client in &mut silent {
        assert_eq!(client.rest(), "");
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.limited.first_byte, 3);
    // One that is closed and waits for its peer has no permit.
    assert!(report.peak <= 2, "{report}");
}

async fn a_long_line_is_an_error_of_its_own(runtime: TestRuntime) {
    let server = at_home(&runtime).line_limit(10).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    // It is not waited for the end of the line, of which there may be none.
    client.send(&"x".repeat(50_000));
    assert_eq!(client.rest(), "");
    let cause = cause_of(1, &events).await;
    let Cause::Error(error) = &cause else {
        panic!("{cause:?} instead of an error");
    };
    assert!(error.contains("10"), "{error}");
    running.handle().shutdown();
    assert_eq!(settled(running.await).failed, 1);
}

async fn the_longest_line_is_no_error(runtime: TestRuntime) {
    let server = at_home(&runtime).line_limit(10).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let conn = connections.recv().await.unwrap();
    client.send("0123456789\n\n012345678\r\n0123456789");
    client.finish();
    let (reader, writer) = conn.split();
    let mut lines = reader.lines();
    for expected in ["0123456789", "", "012345678", "0123456789"] {
        assert_eq!(lines.next().await.unwrap().unwrap(), expected);
    }
    assert!(lines.next().await.is_none());
    drop((lines, writer));
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_line_that_a_reset_breaks_off_is_an_error(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    client.send("half a line");
    read_in(&running.handle(), 17);
    let Client::Tcp(socket) = client else {
        unreachable!("it was asked for TCP");
    };
    // Closed with a reset.
    socket2::SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(socket);
    let cause = cause_of(1, &events).await;
    assert!(matches!(cause, Cause::Error(_)), "{cause:?}");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.panicked), (1, 0));
}

async fn limits_end_with_the_server(runtime: TestRuntime) {
    let hour = Duration::from_secs(3600);
    let server = at_home(&runtime)
        .idle_timeout(hour)
        .first_byte_timeout(hour)
        .max_age(hour)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut clients = [(); 3].map(|()| Client::of(&running));
    assert_eq!(clients[0].ask("hello"), "hello");
    hears_nothing(&mut clients[1]);
    running.handle().shutdown();
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(settled(running.await).completed, 3);
}

#[cfg(target_os = "linux")]
async fn a_user_timeout_is_inherited(runtime: TestRuntime) {
    // In whole milliseconds, above none.
    for (limit, expected) in [
        (Duration::from_millis(1500), 1500),
        (Duration::from_micros(1), 1),
        (Duration::MAX, i32::MAX as u64),
    ] {
        let server = at_home(&runtime).user_timeout(limit).bind().await.unwrap();
        let (running, connections) = handing_over(server);
        let _client = Client::of(&running);
        let conn = connections.recv().await.unwrap();
        let gracious::Socket::Tcp(socket) = conn.detach().unwrap().socket else {
            unreachable!("it was asked for TCP");
        };
        let inherited = socket2::SockRef::from(&socket).tcp_user_timeout().unwrap();
        assert_eq!(inherited, Some(Duration::from_millis(expected)));
        running.handle().shutdown();
        settled(running.await);
    }
    let error = at_home(&runtime).user_timeout(Duration::ZERO).bind().await;
    assert!(error.unwrap_err().to_string().contains("user_timeout"));
}

#[cfg(target_os = "linux")]
async fn a_user_timeout_ends_a_write_that_nobody_takes(runtime: TestRuntime) {
    let limit = Duration::from_millis(500);
    let server = at_home(&runtime).user_timeout(limit).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| -> io::Result<()> {
        loop {
            conn.write_all(&[0; 65536]).await?;
        }
    });
    let start = Instant::now();
    let _client = Client::of(&running);
    let cause = cause_of(1, &events).await;
    assert!(matches!(cause, Cause::Error(_)), "{cause:?}");
    assert!(start.elapsed() >= limit);
    running.handle().shutdown();
    assert_eq!(settled(running.await).failed, 1);
}

#[cfg(target_os = "linux")]
async fn binds_with_few_descriptors(runtime: TestRuntime) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use crate::support::peer::logged;

    let limit = Rlimit {
        current: Some(256),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let warnings = || {
        let logged = logged();
        let warned = logged.into_iter().filter(|line| line.starts_with("WARN"));
        warned.collect::<Vec<_>>()
    };
    drop(at_home(&runtime).bind().await.unwrap());
    let server = at_home(&runtime).max_connections(100).bind().await.unwrap();
    assert!(warnings().is_empty(), "{:?}", warnings());
    // What is open by then counts.
    for limit in [1000, 250] {
        let before = warnings().len();
        drop(
            at_home(&runtime)
                .max_connections(limit)
                .bind()
                .await
                .unwrap(),
        );
        let [warning] = &warnings()[before..] else {
            panic!("{:?}", warnings());
        };
        for word in [&*limit.to_string(), "256", "ulimit -n"] {
            assert!(warning.contains(word), "no `{word}` in `{warning}`");
        }
    }
    // A limit that is raised later, too.
    let before = warnings().len();
    server.handle().set_max_connections(2000).unwrap();
    assert!(warnings()[before].contains("2000"), "{:?}", warnings());
    server.handle().set_max_connections(50).unwrap();
    server.handle().set_max_connections(None).unwrap();
    assert_eq!(warnings().len(), before + 1);
}
