//! Sockets that are registered once and edge-triggered: nothing is lost between two edges, and what
//! others do with a descriptor harms nobody.

use std::fs;
use std::future::{Future, poll_fn};
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, future};
use gracious::{Connection, Running, Runtime, Server};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::support::TestRuntime;
use crate::support::client::{
    Client, HOUR, echo, eventually, fill, handing_over, rounds, unix_address,
};
use crate::support::peer::{cause_of, hears_nothing, loopback, settled};
use crate::{on_workers, on_workers_in_a_process, plain, with_workers};

on_workers!(
    an_edge_that_comes_during_a_read_is_not_lost,
    an_end_that_comes_with_data_is_read,
    input_behind_urgent_data_is_read,
    input_behind_descriptors_is_read,
    who_never_stops_sending_leaves_the_others_their_turn,
    one_task_may_read_from_many_connections,
    the_halves_go_on_at_once_in_two_tasks,
    a_vectored_write_arrives_whole,
    input_that_nobody_reads_is_discarded_as_fast_as_it_can_be_read,
    input_that_no_event_has_told_of_is_read_at_a_stop,
);

on_workers_in_a_process!(
    a_socket_is_registered_once_and_for_writing_when_there_is_no_room,
    a_duplicate_that_outlives_its_connection_concerns_nobody,
    a_detached_socket_leaves_the_poller,
    a_socket_that_is_detached_elsewhere_leaves_the_poller,
    sockets_are_closed_in_children,
);

/// Read and written on a thread that is no worker, so that edges come at any time.
async fn an_edge_that_comes_during_a_read_is_not_lost(workers: usize) {
    const BYTES: usize = 3;
    let server = with_workers(workers).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let Client::Tcp(mut client) = Client::of(&running) else {
        unreachable!()
    };
    client.set_nodelay(true).unwrap();
    let (mut reader, writer) = connections.recv().await.unwrap().split();
    let rounds = rounds(2000);
    let (read, is_read) = mpsc::channel();
    let reading = thread::spawn(move || {
        // More than there is: each read is a short one.
        let (mut bytes, mut total) = ([0; 64], 0);
        while let Ok(n @ 1..) = async_io::block_on(reader.read(&mut bytes)) {
            total += n;
            read.send(total).unwrap();
        }
    });
    let mut total = 0;
    for round in 1..=rounds {
        for _ in 0..BYTES {
            client.write_all(b".").unwrap();
        }
        while total < round * BYTES {
            total = is_read
                .recv_timeout(Duration::from_secs(20))
                .unwrap_or_else(|_| panic!("{total} bytes read of {}", round * BYTES));
        }
    }
    drop(client);
    reading.join().unwrap();
    drop(writer);
    running.handle().shutdown();
    settled(running.await);
}

/// One edge for both, and no other will come.
async fn an_end_that_comes_with_data_is_read(workers: usize) {
    let server = with_workers(workers).listen(unix_address());
    let server = server.bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let (running, connections) = handing_over(server);
    for address in addresses.iter().cycle().take(20) {
        let mut client = Client::connect(address).unwrap();
        let mut conn = connections.recv().await.unwrap();
        client.send("all");
        client.finish();
        note_what_has_come(&running, &connections).await;
        assert_eq!(read_to_end(&mut conn).await, b"all");
        drop(conn);
        assert_eq!(client.rest(), "");
    }
    running.handle().shutdown();
    settled(running.await);
}

/// The first connection is asked to end, and whoever waits for that has the client of the second send
/// something. Then the second is asked, and its reader is run before the poller looks again.
async fn input_that_no_event_has_told_of_is_read_at_a_stop(workers: usize) {
    struct Sends(UnixStream);
    impl Wake for Sends {
        fn wake(self: Arc<Self>) {
            (&self.0).write_all(b"hello\n").unwrap();
        }
    }
    for _ in 0..10 {
        let server = with_workers(workers).listen(unix_address());
        let server = server.bind().await.unwrap();
        let address = server.local_addrs()[1].clone();
        let (give, given) = async_channel::bounded(1);
        let running = server.spawn(async move |conn: Connection| match conn.id() {
            1 => drop(give.send(conn).await),
            _ => drop(echo(conn).await),
        });
        let _first = Client::connect(&address).unwrap();
        let conn = given.recv().await.unwrap();
        let mut client = Client::connect(&address).unwrap();
        // The second has had the time for its first byte.
        assert_eq!(client.ask("hello"), "hello");
        let Client::Unix(socket) = client.twin() else {
            unreachable!()
        };
        let sends = Waker::from(Arc::new(Sends(socket)));
        let mut is_told = pin!(conn.shutdown_requested());
        assert!(
            is_told
                .as_mut()
                .poll(&mut Context::from_waker(&sends))
                .is_pending()
        );
        running.handle().shutdown();
        assert_eq!(client.line(), "hello");
        assert_eq!(client.rest(), "");
        drop(conn);
        settled(running.await);
    }
}

/// A read stops at the mark, and what is behind it is no new edge.
async fn input_behind_urgent_data_is_read(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    for all_at_once in [true, false].into_iter().cycle().take(20) {
        let mut client = Client::of(&running);
        let mut conn = connections.recv().await.unwrap();
        client.send("before");
        if !all_at_once {
            assert_eq!(read_exactly(&mut conn, 6).await, b"before");
        }
        let Client::Tcp(socket) = &client else {
            unreachable!()
        };
        rustix::net::send(socket, b"!", SendFlags::OOB).unwrap();
        client.send("behind");
        if all_at_once {
            note_what_has_come(&running, &connections).await;
            assert_eq!(read_exactly(&mut conn, 6).await, b"before");
        }
        assert_eq!(read_exactly(&mut conn, 6).await, b"behind");
        client.send("after");
        assert_eq!(read_exactly(&mut conn, 5).await, b"after");
    }
    running.handle().shutdown();
    settled(running.await);
}

/// A read of a Unix socket stops after a message with descriptors, which are dropped.
async fn input_behind_descriptors_is_read(workers: usize) {
    let server = with_workers(workers).listen(unix_address());
    let server = server.bind().await.unwrap();
    let address = server.local_addrs()[1].clone();
    let (running, connections) = handing_over(server);
    for _ in 0..20 {
        let mut client = Client::connect(&address).unwrap();
        let mut conn = connections.recv().await.unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        for text in ["one", "two"] {
            let descriptors = [rustix::fd::AsFd::as_fd(&theirs)];
            let mut space = [std::mem::MaybeUninit::uninit(); 64];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            let Client::Unix(socket) = &client else {
                unreachable!()
            };
            let text = [IoSlice::new(text.as_bytes())];
            rustix::net::sendmsg(socket, &text, &mut control, SendFlags::empty()).unwrap();
        }
        drop(theirs);
        client.send("three");
        note_what_has_come(&running, &connections).await;
        assert_eq!(read_exactly(&mut conn, 11).await, b"onetwothree");
        // Nobody has them any more.
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    }
    running.handle().shutdown();
    settled(running.await);
}

/// One never finds its socket empty; the other is answered all the same, before that one is done.
async fn who_never_stops_sending_leaves_the_others_their_turn(workers: usize) {
    const MUCH: usize = 6000;
    let server = with_workers(workers).bind().await.unwrap();
    let handle = server.handle();
    let answered = Arc::new(AtomicBool::new(false));
    let is_answered = answered.clone();
    let (begin, begun) = async_channel::bounded::<()>(1);
    let (send, sent) = async_channel::bounded::<()>(1);
    let running = server.spawn(async move |mut conn: Connection| {
        if conn.id() == 2 {
            conn.read_exact(&mut [0; 1]).await?;
            is_answered.store(true, SeqCst);
            return conn.write_all(b"answer\n").await;
        }
        conn.read_exact(&mut [0; 1]).await?;
        begin.send_blocking(()).unwrap();
        // The other's request comes while this thread is in this handler.
        sent.recv_blocking().unwrap();
        for _ in 1..MUCH {
            conn.read_exact(&mut [0; 1]).await?;
        }
        assert!(is_answered.load(SeqCst), "not answered meanwhile");
        conn.write_all(b"done\n").await
    });
    let mut endless = Client::of(&running);
    let mut other = Client::of(&running);
    eventually("both are in", || handle.stats().accepted == 2);
    endless.send(&".".repeat(MUCH));
    begun.recv().await.unwrap();
    other.send("?");
    send.send(()).await.unwrap();
    assert_eq!(endless.line(), "done");
    assert_eq!(other.line(), "answer");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

/// However many: a look that finds nothing is no part of its turn.
async fn one_task_may_read_from_many_connections(workers: usize) {
    const MANY: usize = 100;
    let server = with_workers(workers).bind().await.unwrap();
    let (give, given) = async_channel::unbounded();
    let running = server.spawn(async move |conn: Connection| {
        if conn.id() < MANY as u64 {
            give.send(conn).await.unwrap();
            return;
        }
        // The last reads for all of them.
        let mut all = vec![conn];
        while all.len() < MANY {
            all.push(given.recv().await.unwrap());
        }
        all.sort_by_key(Connection::id);
        while !all.is_empty() {
            let mut byte = [0; 1];
            let (at, read) = poll_fn(|cx| {
                for (at, conn) in all.iter_mut().enumerate() {
                    if let Poll::Ready(read) = Pin::new(conn).poll_read(cx, &mut byte) {
                        return Poll::Ready((at, read));
                    }
                }
                Poll::Pending
            })
            .await;
            assert_eq!(read.unwrap(), 1);
            all.remove(at).write_all(&byte).await.unwrap();
        }
    });
    let mut clients = Vec::new();
    for id in 1..=MANY as u64 {
        clients.push(Client::of(&running));
        eventually("it is next", || running.handle().stats().accepted == id);
    }
    // The last first.
    while let Some(mut client) = clients.pop() {
        client.send("x");
        assert_eq!(client.rest(), "x");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, MANY as u64);
}

async fn the_halves_go_on_at_once_in_two_tasks(workers: usize) {
    const MUCH: usize = 4 << 20;
    let server = with_workers(workers).listen(unix_address());
    let server = server.bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let running = server.spawn(async move |conn: Connection| {
        let (mut reader, mut writer) = conn.split();
        let reading = async_std::task::spawn(async move {
            let (mut bytes, mut total) = (vec![0; 10_000], 0);
            while let n @ 1.. = reader.read(&mut bytes).await.unwrap() {
                total += n;
            }
            total
        });
        writer.write_all(&vec![b'.'; MUCH]).await?;
        assert_eq!(reading.await, MUCH);
        writer.write_all(b"all").await
    });
    for address in &addresses {
        let mut client = Client::connect(address).unwrap();
        let mut twin = client.twin();
        let sending = thread::spawn(move || {
            twin.send(&",".repeat(MUCH));
            twin.finish();
        });
        let reply = client.rest();
        assert_eq!((reply.len(), &reply[MUCH..]), (MUCH + 3, "all"));
        sending.join().unwrap();
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

/// Also where it fits in parts only.
async fn a_vectored_write_arrives_whole(workers: usize) {
    let server = with_workers(workers).listen(unix_address());
    let server = server.bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let parts: Vec<Vec<u8>> = (0..200).map(|i| vec![b'a' + i % 26; 40_000]).collect();
    let whole = parts.concat();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let written = conn.write_vectored(slices).await?;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    });
    for address in &addresses {
        let reply = Client::connect(address).unwrap().rest();
        assert!(reply.as_bytes() == whole, "{} bytes", reply.len());
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

/// A clock on which no pause is ever over.
#[derive(Clone)]
struct Stopped(TestRuntime);

impl Runtime for Stopped {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        self.0.spawn(future);
    }

    fn sleep(&self, _: Duration) -> impl Future<Output = ()> + Send + 'static {
        future::pending()
    }
}

/// The close of a connection does not wait for a clock while there is something to read.
async fn input_that_nobody_reads_is_discarded_as_fast_as_it_can_be_read(workers: usize) {
    const MUCH: usize = 32 << 20;
    let server = Server::with_runtime(Stopped(plain())).workers(workers);
    let server = server.listen(loopback()).deadline(HOUR);
    let (running, connections) = handing_over(server.bind().await.unwrap());
    let Client::Tcp(client) = Client::of(&running) else {
        unreachable!()
    };
    let mut client = async_io::Async::new(client).unwrap();
    let mut conn = connections.recv().await.unwrap();
    let (input, mut read) = (vec![b'.'; MUCH], vec![0; MUCH]);
    let both = future::zip(client.write_all(&input), conn.read_exact(&mut read));
    let (written, read) = both.await;
    written.and(read).unwrap();
    // By now the kernel takes in advance as much as it ever does.
    assert!(fill(&mut client).await > 0);
    client.get_ref().shutdown(Shutdown::Write).unwrap();
    conn.write_all(b"enough").await.unwrap();
    drop(conn);
    assert_eq!(read_to_end(&mut client).await, b"enough");
    running.handle().shutdown();
    settled(running.await);
}

async fn a_socket_is_registered_once_and_for_writing_when_there_is_no_room(workers: usize) {
    const OUT: u32 = 0x4;
    let server = with_workers(workers).bind().await.unwrap();
    let before = registered();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    let mine = || -> Vec<_> {
        let now = registered().into_iter();
        now.filter(|it| !before.contains(it)).collect()
    };
    client.send("hello");
    assert_eq!(read_exactly(&mut conn, 5).await, b"hello");
    conn.write_all(b"hello").await.unwrap();
    let [(socket, events)] = mine()[..] else {
        panic!("{:?} are registered", mine());
    };
    assert_eq!(events & EDGES, EDGES);
    assert_eq!(events & OUT, 0, "there was room for all that was written");
    let full = fill(&mut conn).await;
    assert_eq!(mine(), [(socket, events | OUT)]);
    // The room that was asked for is told of, every time.
    let mut bytes = vec![0; 5 + full];
    let reading = thread::spawn(move || {
        client.read_exact(&mut bytes).unwrap();
        client
    });
    conn.write_all(b"there is room").await.unwrap();
    let mut client = reading.join().unwrap();
    let writing = async {
        conn.write_all(&vec![b'.'; 32 << 20]).await.unwrap();
        drop(conn);
    };
    let reading = thread::spawn(move || client.rest().len());
    writing.await;
    assert_eq!(reading.join().unwrap(), 13 + (32 << 20));
    eventually("it is registered no more", || mine().is_empty());
    running.handle().shutdown();
    settled(running.await);
}

/// What happens to the old socket wakes no future, and least of all one of the connection that has
/// its slot by now.
async fn a_duplicate_that_outlives_its_connection_concerns_nobody(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let before = sockets();
    let events = server.handle().events();
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = polls.clone();
    let running = server.spawn(async move |mut conn: Connection| {
        match conn.id() {
            // The second line is the last, and not answered.
            1 => {
                let mut lines = String::new();
                conn.read_line(&mut lines).await?;
                conn.write_all(lines.as_bytes()).await?;
                lines.clear();
                return conn.read_line(&mut lines).await.map(drop);
            }
            2 => {}
            _ => return echo(conn).await,
        }
        let mut line = String::new();
        let mut reading = pin!(futures_lite::AsyncBufReadExt::read_line(
            &mut conn, &mut line
        ));
        poll_fn(|cx| {
            counted.fetch_add(1, SeqCst);
            reading.as_mut().poll(cx)
        })
        .await?;
        conn.write_all(line.as_bytes()).await
    });

    let mut old = Client::of(&running);
    assert_eq!(old.ask("hello"), "hello");
    // Two sockets came: the server's is not the client's.
    let own = own_descriptor(&old);
    let theirs: Vec<_> = sockets()
        .into_iter()
        .filter(|it| !before.contains(it) && *it != own)
        .collect();
    let [theirs] = theirs[..] else {
        panic!("{theirs:?} are new, and {own}");
    };
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let duplicate: OwnedFd = pidfd_getfd(&pidfd, theirs, PidfdGetfdFlags::empty()).unwrap();
    // And a child that has inherited it, and nothing else keeps it.
    fcntl_setfd(&duplicate, FdFlags::empty()).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    drop((duplicate, pidfd));

    old.send("end\n");
    assert_eq!(old.rest(), "");
    cause_of(1, &events).await;
    let mut new = Client::of(&running);
    eventually("it waits", || polls.load(SeqCst) > 0);
    let mut third = Client::of(&running);
    assert_eq!(third.ask("here"), "here");
    let polled = polls.load(SeqCst);
    for _ in 0..100 {
        // Input at a socket that is still registered.
        old.send("x");
        assert_eq!(third.ask("here"), "here");
    }
    drop(old);
    assert_eq!(third.ask("here"), "here");
    assert_eq!(polls.load(SeqCst), polled, "it was woken for the other");
    hears_nothing(&mut new);
    assert_eq!(new.ask("mine"), "mine");
    drop(child.stdin.take());
    child.wait().unwrap();
    drop((new, third));
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 3);
}

async fn a_detached_socket_leaves_the_poller(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let before = registered();
    let (running, connections) = handing_over(server);
    let mut clients = Vec::new();
    let mut detached = Vec::new();
    for _ in 0..10 {
        clients.push(Client::of(&running));
        let conn = connections.recv().await.unwrap();
        detached.push(conn.detach().unwrap());
    }
    let handle = running.handle();
    eventually("they are counted", || handle.stats().detached == 10);
    eventually("nobody is registered", || registered() == before);
    // They live.
    for (client, detached) in clients.iter_mut().zip(&detached) {
        client.send("x");
        let gracious::Socket::Tcp(socket) = &detached.socket else {
            unreachable!()
        };
        (&*socket).write_all(b"hello\n").unwrap();
        assert_eq!(client.line(), "hello");
    }
    handle.shutdown();
    settled(running.await);
}

/// On another thread than the one that serves it, which forgets it at once.
async fn a_socket_that_is_detached_elsewhere_leaves_the_poller(workers: usize) {
    const MANY: u64 = 100;
    let server = with_workers(workers).bind().await.unwrap();
    let before = registered();
    let (give, given) = async_channel::unbounded();
    let (over, is_over) = async_channel::bounded::<()>(1);
    let running = server.spawn(async move |conn: Connection| {
        give.send(conn).await.unwrap();
        while !is_over.is_closed() {
            future::yield_now().await;
        }
    });
    let mut kept = Vec::new();
    for _ in 0..MANY {
        let client = Client::of(&running);
        let conn = given.recv().await.unwrap();
        kept.push((client, conn.detach().unwrap()));
    }
    let handle = running.handle();
    eventually("they are counted", || handle.stats().detached == MANY);
    over.close();
    eventually("nobody is registered", || registered() == before);
    handle.shutdown();
    settled(running.await);
}

/// Every descriptor of the engine is, and every socket of it is non-blocking.
async fn sockets_are_closed_in_children(workers: usize) {
    const NONBLOCK: u32 = 0o4000;
    const CLOEXEC: u32 = 0o2_000_000;
    let before = descriptors();
    let server = with_workers(workers).listen(unix_address());
    let server = server.bind().await.unwrap();
    let addresses = server.local_addrs().to_vec();
    let (running, connections) = handing_over(server);
    for address in &addresses {
        let client = Client::connect(address).unwrap();
        let _conn = connections.recv().await.unwrap();
        let mut blocking = 0;
        for descriptor in descriptors() {
            if before.contains(&descriptor) {
                continue;
            }
            let flags = info(descriptor, "flags:").map(|flags| u32::from_str_radix(&flags, 8));
            // One of them has read the directory.
            let Some(flags) = flags.map(Result::unwrap) else {
                continue;
            };
            assert_eq!(flags & CLOEXEC, CLOEXEC, "{descriptor}: {flags:o}");
            if flags & NONBLOCK == 0 && sockets().contains(&descriptor) {
                blocking += 1;
                assert_eq!(descriptor, own_descriptor(&client));
            }
        }
        assert_eq!(blocking, 1, "the client's is");
    }
    running.handle().shutdown();
    settled(running.await);
}

/// Waits until the engine has noted all that has come so far: a peer that came after it was
/// accepted.
async fn note_what_has_come(running: &Running, connections: &Receiver<Connection>) {
    let _later = Client::of(running);
    connections.recv().await.unwrap();
}

async fn read_exactly(reader: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    // More room than there are bytes: each read is a short one.
    let (mut read, mut bytes) = (Vec::new(), [0; 1000]);
    while read.len() < length {
        let room = if length == 1 { 1 } else { bytes.len() };
        let n = reader.read(&mut bytes[..room]).await.unwrap();
        assert!(n > 0, "an end after {read:?}");
        read.extend(&bytes[..n]);
    }
    read
}

async fn read_to_end(reader: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    reader.read_to_end(&mut read).await.unwrap();
    read
}

/// Edge-triggered, which other pollers of this process are not.
const EDGES: u32 = 1 << 31;

/// What is registered with an edge-triggered poller of this process, and for which events.
fn registered() -> Vec<(u32, u32)> {
    let mut all = Vec::new();
    for descriptor in descriptors() {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"));
        for line in info.unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("tfd:") {
                let socket = words.next().unwrap().parse().unwrap();
                let events = u32::from_str_radix(words.nth(1).unwrap(), 16).unwrap();
                if events & EDGES != 0 {
                    all.push((socket, events));
                }
            }
        }
    }
    all
}

fn descriptors() -> Vec<i32> {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.map(|it| it.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

fn sockets() -> Vec<i32> {
    let is_socket = |descriptor: &i32| {
        let link = fs::read_link(format!("/proc/self/fd/{descriptor}"));
        link.is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    descriptors().into_iter().filter(is_socket).collect()
}

fn info(descriptor: i32, word: &str) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix(word))?;
    Some(line.trim().to_owned())
}

fn own_descriptor(client: &Client) -> i32 {
    use std::os::fd::AsRawFd;
    match client {
        Client::Tcp(socket) => socket.as_raw_fd(),
        Client::Unix(socket) => socket.as_raw_fd(),
    }
}
