//! What a handler and its client say to each other.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use async_channel::Receiver;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, future};
use gracious::rustls::ProtocolVersion;
use gracious::{Connection, EndedBy};

use super::{Secure, client_config, localhost, secured};
use crate::support::TestRuntime;
use crate::support::client::{Client, echo, on, unix_address};
use crate::support::peer::settled;

crate::on_every_runtime!(
    both_versions_are_spoken,
    plain_and_tls_go_together_in_one_server,
    much_goes_both_ways_at_once,
    a_slow_reader_gets_everything,
    what_the_kernel_had_no_room_for_is_sent_though_nobody_writes,
    halves_may_be_on_two_threads,
    reads_of_any_size_get_every_byte,
    vectored_writes_arrive_in_order,
    an_end_of_ours_leaves_the_other_side_open,
    an_end_of_theirs_leaves_our_side_open,
    an_end_without_tls_own_is_an_end_between_two_records,
    an_end_inside_a_record_is_an_error,
    what_is_no_record_is_an_error,
    new_keys_are_answered,
    it_cannot_be_detached,
    halves_can_be_reunited,
);

async fn both_versions_are_spoken(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let info = conn.tls().unwrap();
        assert_eq!(info.server_name.as_deref(), Some("localhost"));
        assert_eq!((info.protocol, info.peer_certificates.len()), (None, 0));
        echo(conn).await
    });
    for (only, version) in [
        (true, ProtocolVersion::TLSv1_3),
        (false, ProtocolVersion::TLSv1_2),
    ] {
        let config = client_config(Some(only), None);
        let mut client = Secure::over(Client::of(&running), "localhost", config);
        client.shake().unwrap();
        assert_eq!(client.tls.protocol_version(), Some(version));
        assert_eq!(client.ask("hello"), "hello");
        assert_eq!(client.ask("again"), "again");
        client.finish();
        assert_eq!(client.rest(), "");
    }
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.failed_handshakes), (2, 0));
    // Of plaintext.
    assert_eq!((report.bytes_in, report.bytes_out), (24, 24));
}

async fn plain_and_tls_go_together_in_one_server(runtime: TestRuntime) {
    let server = on("127.0.0.1:0", runtime)
        .listen_tls(unix_address(), localhost())
        .bind()
        .await
        .unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let is_plain = conn.peer_addr().as_tcp().is_some();
        assert_eq!(conn.tls().is_none(), is_plain);
        echo(conn).await
    });
    let addresses = running.handle().local_addrs().to_vec();
    let mut plain = Client::connect(&addresses[0]).unwrap();
    let socket = Client::connect(&addresses[1]).unwrap();
    let mut secure = Secure::over(socket, "localhost", client_config(None, None));
    secure.shake().unwrap();
    assert_eq!(plain.ask("hello"), "hello");
    assert_eq!(secure.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(
        (plain.rest(), secure.rest()),
        (String::new(), String::new())
    );
    assert_eq!(settled(running.await).completed, 2);
}

const MUCH: usize = 8 << 20;

/// Bytes of which none is like its neighbour.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

async fn much_goes_both_ways_at_once(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        let upload = async {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).await?;
            assert!(received == pattern(MUCH));
            std::io::Result::Ok(())
        };
        let download = async {
            writer.write_all(&pattern(MUCH)).await?;
            writer.close().await
        };
        future::try_zip(upload, download).await?;
        std::io::Result::Ok(())
    });
    let mut client = Secure::of(&running);
    let mut sender = client.socket.twin();
    // Encrypted here and sent elsewhere, while this thread reads.
    let mut encrypted = Vec::new();
    for chunk in pattern(MUCH).chunks(32 << 10) {
        client.tls.writer().write_all(chunk).unwrap();
        while client.tls.wants_write() {
            client.tls.write_tls(&mut encrypted).unwrap();
        }
    }
    client.tls.send_close_notify();
    encrypted.extend(client.encrypt(""));
    let sent = thread::spawn(move || sender.write_all(&encrypted).unwrap());
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert!(received == pattern(MUCH));
    sent.join().unwrap();
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!(
        (report.completed, report.bytes_in, report.bytes_out),
        (1, MUCH as u64, MUCH as u64)
    );
}

async fn a_slow_reader_gets_everything(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running =
        server.spawn(async move |mut conn: Connection| conn.write_all(&pattern(MUCH)).await);
    let mut client = Secure::of(&running);
    let mut received: Vec<u8> = Vec::new();
    let mut some = vec![0; 256 << 10];
    while received.len() < MUCH {
        let read = client.read(&mut some).unwrap();
        assert!(read > 0, "an end after {} bytes", received.len());
        received.extend(&some[..read]);
        if received.len() % 7 == 0 {
            thread::yield_now();
        }
        if received.len() < MUCH / 2 {
            running.handle().shutdown();
        }
    }
    assert!(received == pattern(MUCH));
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

/// A write is done when its bytes are encrypted: what the kernel had no room for is then the task's to
/// send, while the handler waits for something else.
async fn what_the_kernel_had_no_room_for_is_sent_though_nobody_writes(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let (say, said) = async_channel::bounded(1);
    let (release, released) = async_channel::bounded::<()>(1);
    let running = server.spawn(async move |mut conn: Connection| {
        // Until several in a row have to wait, more than one for its turn: ciphertext is left then.
        let (mut written, mut waits) = (0, 0);
        while waits < 5 {
            match future::poll_once(conn.write(&[7; 16 << 10])).await {
                Some(n) => (written, waits) = (written + n?, 0),
                None => {
                    waits += 1;
                    future::yield_now().await;
                }
            }
        }
        say.send(written).await.unwrap();
        let _closed = released.recv().await;
        std::io::Result::Ok(())
    });
    let mut client = Secure::of(&running);
    let written = said.recv().await.unwrap();
    let mut received = vec![0; written];
    client.read_exact(&mut received).unwrap();
    assert!(received == vec![7; written]);
    release.close();
    assert_eq!(client.rest(), "");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.completed, report.bytes_out), (1, written as u64));
}

async fn halves_may_be_on_two_threads(runtime: TestRuntime) {
    let server = secured(runtime.clone()).bind().await.unwrap();
    let elsewhere = runtime.elsewhere();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        let (pass, passed): (_, Receiver<Vec<u8>>) = async_channel::bounded(2);
        elsewhere.run(async move {
            while let Ok(bytes) = passed.recv().await {
                writer.write_all(&bytes).await.unwrap();
            }
        });
        let mut some = vec![0; 10_000];
        loop {
            match reader.read(&mut some).await? {
                0 => return std::io::Result::Ok(()),
                read => pass.send(some[..read].to_vec()).await.unwrap(),
            }
        }
    });
    let mut client = Secure::of(&running);
    let mut sender = client.socket.twin();
    let mut encrypted = Vec::new();
    for chunk in pattern(MUCH / 4).chunks(30_000) {
        client.tls.writer().write_all(chunk).unwrap();
        while client.tls.wants_write() {
            client.tls.write_tls(&mut encrypted).unwrap();
        }
    }
    client.tls.send_close_notify();
    encrypted.extend(client.encrypt(""));
    let sent = thread::spawn(move || sender.write_all(&encrypted).unwrap());
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert!(received == pattern(MUCH / 4));
    sent.join().unwrap();
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn reads_of_any_size_get_every_byte(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut received: Vec<u8> = Vec::new();
        for size in [1, 2, 3, 5000, 1, 20_000, 7].into_iter().cycle() {
            let mut some = vec![0; size];
            match conn.read(&mut some).await? {
                0 => break,
                read => received.extend(&some[..read]),
            }
        }
        assert!(received == pattern(200_000));
        std::io::Result::Ok(())
    });
    let mut client = Secure::of(&running);
    for chunk in pattern(200_000).chunks(60_000) {
        client.tls.writer().write_all(chunk).unwrap();
        let bytes = client.encrypt("");
        client.socket.write_all(&bytes).unwrap();
    }
    client.finish();
    assert_eq!(client.rest(), "");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn vectored_writes_arrive_in_order(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let parts: Vec<_> = (0..500).map(|n| format!("part {n}\n")).collect();
        let slices: Vec<_> = parts
            .iter()
            .map(|part| std::io::IoSlice::new(part.as_bytes()))
            .collect();
        let whole: usize = parts.iter().map(String::len).sum();
        let written = conn.write_vectored(&slices).await?;
        conn.write_all(&parts.concat().as_bytes()[written..])
            .await?;
        assert!(written <= whole);
        conn.flush().await
    });
    let mut client = Secure::of(&running);
    let said: String = (0..500).map(|n| format!("part {n}\n")).collect();
    assert_eq!(client.rest(), said);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn an_end_of_ours_leaves_the_other_side_open(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        writer.write_all(b"the end\n").await?;
        drop(writer);
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await?;
        assert_eq!(answer, "heard");
        assert_eq!(reader.ended_by(), Some(EndedBy::Peer));
        std::io::Result::Ok(())
    });
    let mut client = Secure::of(&running);
    assert_eq!(client.rest(), "the end\n");
    client.send("heard");
    client.finish();
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn an_end_of_theirs_leaves_our_side_open(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut question = String::new();
        conn.read_to_string(&mut question).await?;
        conn.write_all(format!("{question} is heard\n").as_bytes())
            .await
    });
    let mut client = Secure::of(&running);
    client.send("this");
    client.finish();
    client.socket.finish();
    assert_eq!(client.rest(), "this is heard\n");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn an_end_without_tls_own_is_an_end_between_two_records(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        assert_eq!(conn.read(&mut [0]).await?, 0);
        assert_eq!(conn.ended_by(), Some(EndedBy::Peer));
        conn.write_all(line.as_bytes()).await
    });
    let mut client = Secure::of(&running);
    client.send("hello\n");
    client.socket.finish();
    assert_eq!(client.rest(), "hello\n");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

/// Serves one connection, whose reads must end with this.
async fn read_fails(
    runtime: TestRuntime,
    say: impl FnOnce(&mut Secure),
) -> (std::io::Error, Secure) {
    let server = secured(runtime).bind().await.unwrap();
    let (tell, told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        let error = conn.read(&mut [0]).await.unwrap_err();
        // And so it stays.
        assert_eq!(conn.read(&mut [0]).await.unwrap_err().kind(), error.kind());
        assert_eq!(conn.ended_by(), None);
        tell.send((error.kind(), error.to_string())).await.unwrap();
        Err(error)
    });
    let mut client = Secure::of(&running);
    client.send("hello\n");
    say(&mut client);
    let (kind, message) = told.recv().await.unwrap();
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.failed_handshakes), (1, 0));
    (std::io::Error::new(kind, message), client)
}

async fn an_end_inside_a_record_is_an_error(runtime: TestRuntime) {
    let (error, _client) = read_fails(runtime, |client| {
        let record = client.encrypt("the other half is lost");
        client
            .socket
            .write_all(&record[..record.len() - 3])
            .unwrap();
        client.socket.finish();
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(error.to_string(), "the peer has ended inside a TLS record");
}

async fn what_is_no_record_is_an_error(runtime: TestRuntime) {
    let (error, mut client) = read_fails(runtime, |client| {
        let mut record = client.encrypt("nobody has changed this");
        let last = record.last_mut().unwrap();
        *last = !*last;
        client.socket.write_all(&record).unwrap();
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(error.to_string(), "TLS: cannot decrypt peer's message");
    let told = client.read(&mut [0]).unwrap_err().to_string();
    assert_eq!(told, "received fatal alert: BadRecordMac");
}

async fn new_keys_are_answered(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Secure::of(&running);
    for round in ["one", "two", "three"] {
        client.tls.refresh_traffic_keys().unwrap();
        assert_eq!(client.ask(round), round);
    }
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn it_cannot_be_detached(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let message = Arc::<Mutex<String>>::default();
    let kept = message.clone();
    let running = server.spawn(async move |conn: Connection| {
        let error = conn.detach().unwrap_err();
        *kept.lock().unwrap() = error.to_string();
        std::io::Result::<()>::Err(error)
    });
    assert_eq!(Secure::of(&running).rest(), "");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.failed, report.detached), (1, 0));
    let message = message.lock().unwrap().clone();
    assert!(
        message.starts_with("only a plain connection can be detached"),
        "{message}"
    );
}

async fn halves_can_be_reunited(runtime: TestRuntime) {
    let server = secured(runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        writer.write_all(line.as_bytes()).await?;
        let mut conn = reader.reunite(writer).unwrap();
        let mut next = String::new();
        conn.read_line(&mut next).await?;
        conn.write_all((line + &next).as_bytes()).await
    });
    let mut client = Secure::of(&running);
    assert_eq!(client.ask("one"), "one");
    client.send("two\n");
    assert_eq!(client.rest(), "one\ntwo\n");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}
