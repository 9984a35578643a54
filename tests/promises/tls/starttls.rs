//! STARTTLS: a connection that begins in the clear and goes on with TLS.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use async_channel::Sender;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use gracious::Connection;

use super::{Secure, client_config, localhost};
use crate::support::TestRuntime;
use crate::support::client::{Client, tcp};
use crate::support::peer::settled;

crate::on_every_runtime!(
    a_connection_goes_on_with_tls,
    what_was_sent_in_the_clear_is_never_read_as_if_it_were_safe,
    a_handshake_that_is_sent_with_the_command_is_taken,
    a_client_that_says_nothing_more_times_out,
    an_abort_ends_it,
    a_drain_finishes_it,
    it_begins_once,
);

/// A protocol of lines, with STARTTLS as SMTP has it.
async fn mail(mut conn: Connection) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        if conn.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        if line != "STARTTLS\n" {
            let safe = if conn.tls().is_some() {
                "safe"
            } else {
                "plain"
            };
            conn.write_all(format!("{safe} {line}").as_bytes()).await?;
            continue;
        }
        conn.write_all(b"go ahead\n").await?;
        conn.start_tls(localhost()).await?;
    }
}

fn secure(client: Client) -> Secure {
    Secure::over(client, "localhost", client_config(None, None))
}

async fn a_connection_goes_on_with_tls(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(mail);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "plain hello");
    assert_eq!(client.ask("STARTTLS"), "go ahead");
    let mut client = secure(client);
    client.shake().unwrap();
    assert_eq!(client.ask("hello"), "safe hello");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.completed, report.failed_handshakes), (1, 0));
}

async fn what_was_sent_in_the_clear_is_never_read_as_if_it_were_safe(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(mail);
    // Somebody in between has added a command, in front of the client's own handshake.
    let mut client = Client::of(&running);
    client.send("STARTTLS\nsteal\n");
    assert_eq!(client.line(), "go ahead");
    let mut client = secure(client);
    assert!(client.shake().is_err());
    let mut told = Vec::new();
    let _end = client.socket.read_to_end(&mut told);
    assert!(!told.windows(5).any(|it| it == b"steal"), "{told:?}");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.failed_handshakes), (1, 1));
    // "go ahead", and no answer to what was added.
    assert_eq!(report.bytes_out, 9);
}

async fn a_handshake_that_is_sent_with_the_command_is_taken(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(mail);
    let mut client = secure(Client::of(&running));
    let hello = client.encrypt("");
    let mut eager = b"STARTTLS\n".to_vec();
    eager.extend(hello);
    client.socket.write_all(&eager).unwrap();
    assert_eq!(client.socket.line(), "go ahead");
    client.shake().unwrap();
    assert_eq!(client.ask("hello"), "safe hello");
    client.finish();
    assert_eq!(client.rest(), "");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_client_that_says_nothing_more_times_out(runtime: TestRuntime) {
    let server = tcp(runtime)
        .tls_handshake_timeout(Duration::from_millis(100))
        .linger(Duration::from_millis(100));
    let running = server.bind().await.unwrap().spawn(mail);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("STARTTLS"), "go ahead");
    let mut told = Vec::new();
    client.read_to_end(&mut told).unwrap();
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.failed_handshakes), (1, 1));
}

async fn an_abort_ends_it(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(mail);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("STARTTLS"), "go ahead");
    running.handle().abort();
    assert_eq!(settled(running.await).aborted, 1);
}

async fn a_drain_finishes_it(runtime: TestRuntime) {
    let running = tcp(runtime).bind().await.unwrap().spawn(mail);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("STARTTLS"), "go ahead");
    let mut client = secure(client);
    let hello = client.encrypt("");
    client.socket.write_all(&hello[..100]).unwrap();
    running.handle().shutdown();
    running.handle().shutdown_requested().await;
    client.socket.write_all(&hello[100..]).unwrap();
    client.shake().unwrap();
    let bytes = client.encrypt("");
    client.socket.write_all(&bytes).unwrap();
    assert_eq!(client.rest(), "");
    let report = settled(running.await);
    assert_eq!((report.completed, report.failed_handshakes), (1, 0));
}

async fn it_begins_once(runtime: TestRuntime) {
    let (tell, told): (Sender<ErrorKind>, _) = async_channel::bounded(1);
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        conn.start_tls(localhost()).await?;
        let error = conn.start_tls(localhost()).await.unwrap_err();
        tell.send(error.kind()).await.unwrap();
        conn.write_all(b"still there\n").await?;
        conn.read(&mut [0]).await.map(drop)
    });
    let mut client = secure(Client::of(&running));
    client.shake().unwrap();
    let bytes = client.encrypt("");
    client.socket.write_all(&bytes).unwrap();
    assert_eq!(told.recv().await.unwrap(), ErrorKind::InvalidInput);
    assert_eq!(client.line(), "still there");
    client.finish();
    assert_eq!(client.rest(), "");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}
