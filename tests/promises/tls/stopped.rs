//! A stop, wherever it comes in a conversation: what was begun is finished, and every end is TLS's own
//! first.

use std::future::pending;
use std::io::{Read, Write};
use std::time::Duration;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use gracious::{Cause, Connection, EndedBy, Waiting};

use super::{Secure, secured};
use crate::support::TestRuntime;
use crate::support::client::{HOUR, echo, eventually};
use crate::support::peer::{cause_of, settled};

crate::on_every_runtime!(
    idle_connections_see_a_clean_end,
    a_request_under_way_is_answered_in_full,
    half_a_record_at_the_stop_is_waited_for,
    a_record_that_came_just_before_the_stop_is_served,
    input_that_tls_holds_back_is_served,
    a_first_request_after_the_handshake_is_waited_for,
    an_abort_ends_connections_with_tls,
    a_client_that_does_not_read_ends_at_the_deadline,
    half_a_record_and_then_silence_ends_at_the_deadline,
    unread_input_destroys_nothing,
    what_is_not_sent_at_the_end_is_sent,
    an_idle_timeout_ends_cleanly,
    the_end_can_be_sent_by_the_handler,
);

const SOON: Duration = Duration::from_millis(200);

async fn idle_connections_see_a_clean_end(runtime: TestRuntime) {
    let server = secured(runtime)
        .first_byte_grace(None)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            conn.write_all(line.as_bytes()).await?;
            line.clear();
        }
        assert_eq!(conn.ended_by(), Some(EndedBy::Drain));
        std::io::Result::Ok(())
    });
    let mut clients = [(); 5].map(|()| Secure::of(&running));
    for client in &mut clients[1..] {
        assert_eq!(client.ask("hello"), "hello");
    }
    // The first has never said a word; its handshake is over.
    let handle = running.handle();
    eventually("no handshakes", || handle.stats().handshakes == 0);
    handle.shutdown();
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(settled(running.await).completed, 5);
}

async fn a_request_under_way_is_answered_in_full(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        conn.handle().shutdown();
        conn.shutdown_requested().await;
        conn.write_all(&line.repeat(100_000).into_bytes()).await
    });
    let mut client = Secure::of(&running);
    client.send("hello\n");
    assert!(client.rest() == "hello\n".repeat(100_000));
    assert_eq!(settled(running.await).completed, 1);
}

async fn half_a_record_at_the_stop_is_waited_for(runtime: TestRuntime) {
    let running = secured(runtime).bind().await.unwrap().spawn(echo);
    // Cut inside the header, and inside what follows.
    let mut clients = [2, 10].map(|cut| {
        let mut client = Secure::of(&running);
        assert_eq!(client.ask("first"), "first");
        let record = client.encrypt("second\n");
        client.socket.write_all(&record[..cut]).unwrap();
        (client, record, cut)
    });
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    let handle = running.handle();
    eventually("busy", || handle.connections().iter().all(|it| it.busy));
    for (client, record, cut) in &mut clients {
        client.socket.write_all(&record[*cut..]).unwrap();
        assert_eq!(client.rest(), "second\n");
    }
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_record_that_came_just_before_the_stop_is_served(runtime: TestRuntime) {
    for _ in 0..10 {
        let server = secured(runtime.clone()).bind().await.unwrap();
        let running = server.spawn(echo);
        let mut client = Secure::of(&running);
        assert_eq!(client.ask("first"), "first");
        client.send("second\n");
        running.handle().shutdown();
        assert_eq!(client.rest(), "second\n");
        assert_eq!(settled(running.await).completed, 1);
    }
}

async fn input_that_tls_holds_back_is_served(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        // Each read is smaller than the record, and is answered: between two of them everything that
        // was read is answered, and yet there is more.
        let mut word = [0; 4];
        loop {
            match conn.read(&mut word).await? {
                0 => return std::io::Result::Ok(()),
                read => conn.write_all(&word[..read]).await?,
            }
            if !conn.is_shutting_down() {
                conn.handle().shutdown();
                conn.shutdown_requested().await;
            }
        }
    });
    let mut client = Secure::of(&running);
    let said: String = (0..1000).map(|n| format!("{n:04}")).collect();
    client.send(&said);
    assert_eq!(client.rest(), said);
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_first_request_after_the_handshake_is_waited_for(runtime: TestRuntime) {
    let server = secured(runtime.clone())
        .first_byte_grace(HOUR)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut client = Secure::of(&running);
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    assert_eq!(client.ask("hello"), "hello");
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn an_abort_ends_connections_with_tls(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let _conn = conn;
        pending::<std::io::Result<()>>().await
    });
    let mut client = Secure::of(&running);
    let handle = running.handle();
    eventually("no handshakes", || handle.stats().handshakes == 0);
    handle.abort();
    assert_eq!(settled(running.await).aborted, 1);
    // Force sends no end of TLS: what came may not be all.
    assert!(client.read(&mut [0]).is_err());
}

async fn a_client_that_does_not_read_ends_at_the_deadline(runtime: TestRuntime) {
    let server = secured(runtime).deadline(SOON).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        conn.write_all(&vec![b'.'; 64 << 20]).await
    });
    let mut client = Secure::of(&running);
    client.send("hello\n");
    let handle = running.handle();
    eventually("a write that waits", || {
        handle.connections()[0].waiting == Waiting::Write
    });
    handle.shutdown();
    let report = settled(running.await);
    assert_eq!(report.aborted, 1);
    assert_eq!(report.stragglers[0].waiting, Waiting::Write);
}

async fn half_a_record_and_then_silence_ends_at_the_deadline(runtime: TestRuntime) {
    let server = secured(runtime).deadline(SOON).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Secure::of(&running);
    assert_eq!(client.ask("first"), "first");
    let record = client.encrypt("second\n");
    client.socket.write_all(&record[..10]).unwrap();
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(report.aborted, 1);
    assert!(report.stragglers[0].busy);
}

async fn unread_input_destroys_nothing(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        // And no more of what it sends.
        conn.write_all(&vec![b'.'; 1 << 20]).await
    });
    let mut client = Secure::of(&running);
    client.send("hello\n");
    let upload = ".".repeat(200_000);
    for chunk in upload.as_bytes().chunks(50_000) {
        client.tls.writer().write_all(chunk).unwrap();
        let bytes = client.encrypt("");
        client.socket.write_all(&bytes).unwrap();
    }
    assert_eq!(client.rest().len(), 1 << 20);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn what_is_not_sent_at_the_end_is_sent(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let (full, is_full) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        // Until the kernel has no room for all that a write has made.
        let mut written = 0;
        let chunk = vec![b'.'; 64 << 10];
        while let Some(n) = futures_lite::future::poll_once(conn.write(&chunk)).await {
            written += n?;
        }
        full.send(written).await.unwrap();
        std::io::Result::Ok(())
    });
    let mut client = Secure::of(&running);
    let written = is_full.recv().await.unwrap();
    running.handle().shutdown();
    assert_eq!(client.rest().len(), written);
    assert_eq!(settled(running.await).completed, 1);
}

async fn an_idle_timeout_ends_cleanly(runtime: TestRuntime) {
    let server = secured(runtime).idle_timeout(SOON).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(echo);
    let mut client = Secure::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    assert_eq!(client.rest(), "");
    assert_eq!(cause_of(1, &events).await, Cause::IdleTimeout);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn the_end_can_be_sent_by_the_handler(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        conn.write_all(b"that is all\n").await?;
        conn.close().await?;
        assert!(conn.write_all(b"no more").await.is_err());
        let mut rest = String::new();
        conn.read_to_string(&mut rest).await?;
        assert_eq!(rest, "thanks");
        std::io::Result::Ok(())
    });
    let mut client = Secure::of(&running);
    assert_eq!(client.rest(), "that is all\n");
    client.send("thanks");
    client.finish();
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}
