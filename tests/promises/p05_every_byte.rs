//! Promise 5. **Every byte a handler wrote arrives**, unread input or not, unless the peer resets,
//! the deadline passes or it is aborted. A client that reads to the end sees the end, not a reset.

use std::io::{self, IoSlice, Read, Write};
#[cfg(target_os = "linux")]
use std::net::TcpStream;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use gracious::{Builder, Connection, Waiting};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, answer_once, echo, eventually, fill, handing_over, on, rounds, tcp, transports,
    waits,
};

crate::on_every_runtime!(
    a_write_of_thousands_of_slices_arrives_whole,
    a_slow_reader_gets_a_large_reply_whole,
    a_slow_reader_gets_a_large_reply_whole_at_a_stop,
    a_client_that_has_ended_its_side_gets_the_whole_reply,
    #[cfg(target_os = "linux")]
    a_copy_of_the_socket_does_not_hold_back_our_end,
    a_client_that_writes_while_it_reads_slowly_gets_the_whole_reply,
    a_client_that_writes_before_it_reads_gets_the_whole_reply,
    a_client_that_goes_on_sending_gets_the_whole_reply,
    a_client_that_writes_after_the_end_reads_to_the_end,
    a_client_that_writes_as_the_end_comes_reads_to_the_end,
    clients_that_never_hang_up_are_not_waited_for,
    a_dropped_write_half_sends_the_end_and_leaves_the_other_side_open,
    a_handler_may_go_on_after_its_connection,
    a_handler_may_go_on_after_a_connection_that_was_slow_to_close,
);

/// More than all buffers on the way hold.
const LARGE: usize = 8 << 20;

/// Which byte comes at which place: none that is lost or doubled goes unnoticed.
fn large_reply() -> &'static [u8] {
    static REPLY: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..LARGE).map(|i| (i % 251) as u8).collect());
    &REPLY
}

/// One line, and more behind it than our buffer takes: it stays in the kernel, unread.
fn request() -> String {
    format!("the request\n{}", "nobody reads this\n".repeat(3000))
}

/// Answers the first line with a large reply, and leaves unread what comes behind it.
async fn reply_at_length(mut conn: Connection) -> io::Result<()> {
    let mut line = String::new();
    conn.read_line(&mut line).await?;
    conn.write_all(large_reply()).await
}

/// A client's patience is not what is tried here.
fn patient(address: &str, runtime: TestRuntime) -> Builder<TestRuntime> {
    on(address, runtime).linger(None).linger_total(None)
}

fn read_slowly(client: &mut Client) -> Vec<u8> {
    let mut reply = Vec::new();
    let mut buf = vec![0; 256 * 1024];
    loop {
        match client.read(&mut buf).expect("an end, not a reset") {
            0 => return reply,
            n => reply.extend_from_slice(&buf[..n]),
        }
        // The server has long ended its side, and waits.
        thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn assert_whole(reply: &[u8]) {
    assert_eq!(reply.len(), LARGE);
    assert!(reply == large_reply());
}

async fn a_slow_reader_gets_a_large_reply_whole(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(reply_at_length);
        let mut client = Client::of(&running);
        client.send(&request());
        assert_whole(&read_slowly(&mut client));
        // It has sent what nobody has read, and is waited for until it hangs up.
        drop(client);
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.accepted, report.completed), (1, 1));
        assert_eq!(report.bytes_out, LARGE as u64);
    }
}

async fn a_slow_reader_gets_a_large_reply_whole_at_a_stop(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(reply_at_length);
        let handle = running.handle();
        let mut clients: Vec<_> = (0..3).map(|_| Client::of(&running)).collect();
        for client in &mut clients {
            client.send(&request());
        }
        eventually("replies on the way", || {
            handle
                .connections()
                .iter()
                .filter(|it| it.bytes_out > 0)
                .count()
                == 3
        });
        handle.shutdown();
        let readers: Vec<_> = clients
            .into_iter()
            .map(|mut client| thread::spawn(move || read_slowly(&mut client)))
            .collect();
        for reader in readers {
            assert_whole(&reader.join().unwrap());
        }
        let report = running.await.unwrap();
        assert_eq!((report.accepted, report.completed), (3, 3));
    }
}

async fn a_client_that_has_ended_its_side_gets_the_whole_reply(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(reply_at_length);
        let handle = running.handle();
        let mut client = Client::of(&running);
        client.send(&request());
        client.finish();
        eventually("a reply on the way", || handle.stats().bytes_out > 0);
        handle.shutdown();
        assert_whole(&read_slowly(&mut client));
        assert_eq!(running.await.unwrap().completed, 1);
    }
}

/// To close our descriptor sends the end only where it is the last: a forked child has one, too.
#[cfg(target_os = "linux")]
async fn a_copy_of_the_socket_does_not_hold_back_our_end(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    let copy = copy_of_the_servers_socket(&client);
    client.finish();
    assert_eq!(client.rest(), "");
    drop(copy);
    assert_eq!(running.shutdown().await.unwrap().completed, 1);
}

/// Another descriptor of the socket at the server's end, which this process has, too.
#[cfg(target_os = "linux")]
fn copy_of_the_servers_socket(client: &Client) -> OwnedFd {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let Client::Tcp(client) = client else {
        panic!("only peers of TCP have a name");
    };
    let this_process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let number = entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        // Others close theirs meanwhile, or are no sockets.
        let Ok(copy) = pidfd_getfd(&this_process, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let copy = TcpStream::from(copy);
        if copy.peer_addr().ok() == client.local_addr().ok() {
            return copy.into();
        }
    }
    panic!("the server has no socket for this client");
}

/// What comes after our end must not find the socket closed while the reply is under way.
async fn a_client_that_writes_while_it_reads_slowly_gets_the_whole_reply(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(reply_at_length);
        let mut client = Client::of(&running);
        client.send(&request());
        let mut reply = Vec::new();
        let mut buf = vec![0; 64 * 1024];
        loop {
            match client.read(&mut buf).expect("an end, not a reset") {
                0 => break,
                n => reply.extend_from_slice(&buf[..n]),
            }
            // It is of no use to anybody, and once the server has closed it fails.
            let _unwanted = client.write_all(b"go on\n");
        }
        assert_whole(&reply);
        // One that writes after our end is waited for until it hangs up, or until it is silent.
        drop(client);
        assert_eq!(running.shutdown().await.unwrap().completed, 1);
    }
}

/// The handler is done, its reply in the kernels' hands, and what the client sends now would find a
/// socket that is closed already, and destroy what is still on its way.
async fn a_client_that_writes_before_it_reads_gets_the_whole_reply(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let (running, connections) = handing_over(server);
        let handle = running.handle();
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        let written = fill(&mut conn).await;
        drop(conn);
        eventually("an end, or a wait for one", || {
            let left = handle.connections();
            left.iter().all(|it| it.waiting == Waiting::Close)
        });
        for _ in 0..3 {
            client.send("go on\n");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(client.rest().len(), written);
        drop(client);
        assert_eq!(running.shutdown().await.unwrap().completed, 1);
    }
}

/// An upload that nobody wants, and that is still under way when the reply is complete.
async fn a_client_that_goes_on_sending_gets_the_whole_reply(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(async |mut conn: Connection| {
            let mut begun = vec![0; 100_000];
            conn.read_exact(&mut begun).await?;
            conn.write_all(b"no, thank you\n").await
        });
        let mut client = Client::of(&running);
        let mut upload = client.twin();
        let upload = thread::spawn(move || upload.write_all(&vec![b'x'; LARGE]));
        assert_eq!(client.rest(), "no, thank you\n");
        // All of it, or less: it is read while it comes without a pause.
        client.hang_up();
        let _all_or_less = upload.join().unwrap();
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.accepted, report.completed), (1, 1));
    }
}

async fn a_client_that_writes_after_the_end_reads_to_the_end(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(answer_once);
        let handle = running.handle();
        let mut clients: Vec<_> = (0..20).map(|_| Client::of(&running)).collect();
        for client in &mut clients {
            client.send("hello\n");
        }
        let is_unix = address.starts_with("unix:");
        if is_unix {
            // Before it has read its reply nobody closes.
            clients
                .iter_mut()
                .for_each(|it| assert_eq!(it.line(), "hello"));
        }
        // Nobody has hung up, and all are closed.
        eventually("closed connections", || handle.stats().completed == 20);
        for client in &mut clients {
            // Neither has to succeed; the first makes the kernel send a reset.
            let _gone = client.write_all(b"one more thing\n");
            let _gone = client.write_all(b"and another\n");
            assert_eq!(client.rest(), if is_unix { "" } else { "hello\n" });
        }
        running.shutdown().await.unwrap();
    }
}

/// Between the last look for input and the close there is a moment.
async fn a_client_that_writes_as_the_end_comes_reads_to_the_end(runtime: TestRuntime) {
    for address in transports() {
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(answer_once);
        for round in 0..rounds(200) {
            let mut client = Client::of(&running);
            client.send("hello\n");
            let mut more = client.twin();
            let more = thread::spawn(move || {
                for _ in 0..round % 64 {
                    std::hint::spin_loop();
                }
                while more.write_all(b"one more thing\n").is_ok() {}
            });
            let mut reply = String::new();
            let end = client.read_to_string(&mut reply);
            assert!(end.is_ok(), "{end:?} at {address} in round {round}");
            assert_eq!(reply, "hello\n");
            // TCP goes on until the server has closed, too.
            client.hang_up();
            more.join().unwrap();
        }
        running.shutdown().await.unwrap();
    }
}

async fn clients_that_never_hang_up_are_not_waited_for(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone())
            .linger(HOUR)
            .linger_total(HOUR);
        let running = server.bind().await.unwrap().spawn(answer_once);
        let mut clients: Vec<_> = (0..20).map(|_| Client::of(&running)).collect();
        for client in &mut clients {
            client.send("hello\n");
            assert_eq!(client.line(), "hello");
        }
        // They stay, and neither read nor write: there is no deadline, and the patience is long.
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.accepted, report.completed), (20, 20));
        for client in &mut clients {
            assert_eq!(client.rest(), "");
        }
    }
}

async fn a_dropped_write_half_sends_the_end_and_leaves_the_other_side_open(runtime: TestRuntime) {
    for address in transports() {
        let server = on(&address, runtime.clone()).bind().await.unwrap();
        let (running, connections) = handing_over(server);
        let mut client = Client::of(&running);
        let (mut reader, mut writer) = connections.recv().await.unwrap().split();
        writer.write_all(b"hello\n").await.unwrap();
        drop(writer);
        assert_eq!(client.rest(), "hello\n");
        client.send("and goodbye");
        client.finish();
        let mut said = String::new();
        reader.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "and goodbye");
        drop(reader);
        assert_eq!(running.shutdown().await.unwrap().completed, 1);
    }
}

async fn a_handler_may_go_on_after_its_connection(runtime: TestRuntime) {
    let (go_on, may_go_on) = async_channel::unbounded::<()>();
    let server = tcp(runtime).bind().await.unwrap();
    let mut running = server.spawn(async move |mut conn: Connection| {
        conn.write_all(b"bye\n").await?;
        drop(conn);
        for _ in 0..3 {
            may_go_on.recv().await.unwrap();
        }
        Ok::<_, io::Error>(())
    });
    let handle = running.handle();
    let mut client = Client::of(&running);
    // The end does not wait for the handler, and the stop does.
    assert_eq!(client.rest(), "bye\n");
    handle.shutdown();
    for _ in 0..3 {
        assert!(waits(&mut running).await);
        assert_eq!(handle.active(), 1);
        go_on.send(()).await.unwrap();
    }
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.completed), (1, 1));
}

/// The task around the handler is polled again after the close it waited for has come.
async fn a_handler_may_go_on_after_a_connection_that_was_slow_to_close(runtime: TestRuntime) {
    let (go_on, may_go_on) = async_channel::unbounded::<()>();
    let (done, is_done) = async_channel::unbounded::<usize>();
    let server = patient("127.0.0.1:0", runtime).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        conn.write_all(large_reply()).await?;
        drop(conn);
        for i in 0..3 {
            may_go_on.recv().await.unwrap();
            done.send(i).await.unwrap();
        }
        Ok::<_, io::Error>(())
    });
    let handle = running.handle();
    let mut client = Client::of(&running);
    let mut first = vec![0; LARGE / 2];
    client.read_exact(&mut first).unwrap();
    // The other half is in nobody's hands but the kernels': the close takes its time.
    let mut reply = first;
    reply.extend(read_slowly(&mut client));
    assert_whole(&reply);
    drop(client);
    for i in 0..3 {
        go_on.send(()).await.unwrap();
        assert_eq!(is_done.recv().await, Ok(i));
    }
    handle.shutdown();
    let report = running.await.unwrap();
    assert_eq!((report.accepted, report.completed), (1, 1));
}

/// One system call takes 1024 at most. The last ones, which are small together, are copied into one.
async fn a_write_of_thousands_of_slices_arrives_whole(runtime: TestRuntime) {
    for address in transports() {
        let text: String = (0..1000).map(|i| format!("{i:08} ")).collect();
        let sent = text.clone();
        let server = patient(&address, runtime.clone()).bind().await.unwrap();
        let running = server.spawn(async move |mut conn: Connection| {
            // Those that are empty are passed over.
            let mut slices = vec![IoSlice::new(b""); 2000];
            slices.extend(sent.as_bytes().chunks(3).map(IoSlice::new));
            let mut slices = &mut slices[..];
            while !slices.is_empty() {
                let written = conn.write_vectored(slices).await?;
                assert!(written > 0);
                IoSlice::advance_slices(&mut slices, written);
            }
            io::Result::Ok(())
        });
        assert_eq!(Client::of(&running).rest(), text);
        let report = running.shutdown().await.unwrap();
        assert_eq!((report.completed, report.failed), (1, 0));
    }
}
