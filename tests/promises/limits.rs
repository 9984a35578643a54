//! Limits of time, of a line, of one peer's share, and what the surplus is told. That a limit of
//! connections is back-pressure is in `p13_back_pressure`.

use std::io;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Cause, Connection, EndedBy, ServerEvent};

use crate::support::TestRuntime;
use crate::support::client::{Client, echo, eventually, handing_over, unix_address};
use crate::support::peer::{at_home, cause_of, hears_nothing, is_cut, opened, settled};

crate::on_every_runtime!(
    the_surplus_gets_the_message_and_a_clean_end,
    the_surplus_gets_a_clean_end_whatever_it_sent,
    an_empty_message_is_a_clean_end,
    the_rejected_take_nobodys_place,
    one_peer_gets_its_share,
    a_share_is_given_back,
    unix_peers_have_no_share,
    a_limit_of_zero_is_a_clear_error,
    an_idle_connection_is_ended,
    bytes_either_way_keep_a_connection,
    a_handler_at_work_is_not_idle,
    a_write_that_nobody_takes_is_idle,
    an_expired_connection_stays_expired,
    who_never_says_a_word_is_ended,
    who_said_a_word_in_time_may_be_silent,
    a_connection_of_age_ends_as_at_a_drain,
    a_connection_of_age_that_goes_on_is_aborted_a_deadline_later,
    a_limit_frees_the_place,
    a_long_line_is_an_error_of_its_own,
    the_longest_line_is_no_error,
    limits_end_with_the_server
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

async fn the_rejected_take_nobodys_place(runtime: TestRuntime) {
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
    let running = server.spawn(async move |conn: Connection| {
        let error = read_on(conn).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        Err(error)
    });
    let start = Instant::now();
    let mut silent = Client::of(&running);
    let mut one_word = Client::of(&running);
    one_word.send("hello");
    // A clean end both, and not before its time.
    assert_eq!(silent.rest(), "");
    assert_eq!(one_word.rest(), "");
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
    assert_eq!((report.failed, report.limited.idle), (2, 2));
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
    let server = at_home(&runtime).idle_timeout(SOON).bind().await.unwrap();
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
    assert_eq!((report.completed, report.limited.idle), (1, 1));
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

async fn a_limit_frees_the_place(runtime: TestRuntime) {
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
    assert_eq!((report.limited.first_byte, report.peak), (3, 1));
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
