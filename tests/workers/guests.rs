//! Futures of other runtimes inside handlers: they bring their own reactor and threads, and wake
//! the workers from there.

use std::future::poll_fn;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, StreamExt, future};
use gracious::Connection;

use crate::support::client::{Client, unix_path};
use crate::support::peer::settled;
use crate::support::program::starting;
use crate::{on_workers, with_workers};

on_workers!(
    timers_of_others_wake_handlers,
    files_of_others_are_read_in_handlers,
    processes_of_others_are_waited_for_in_handlers,
    channels_of_others_wake_handlers,
    tasks_of_others_are_awaited_in_handlers,
    sockets_of_others_serve_handlers_as_clients,
    a_waker_may_be_called_from_any_thread_any_number_of_times,
    a_waker_may_be_kept_and_called_after_the_end,
);

/// Serves one client with `handler`, which writes `done` at its end.
async fn serve_one<Fut>(workers: usize, handler: impl FnOnce() -> Fut + Clone + Send + 'static)
where
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let server = with_workers(workers).bind().await.unwrap();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        conn.read_line(&mut line).await?;
        handler().await?;
        let thread = thread::current().name().unwrap_or_default().to_owned();
        assert!(thread.starts_with("gracious-"), "on {thread:?}");
        conn.write_all(b"done\n").await
    });
    for _ in 0..5 {
        let mut client = Client::of(&running);
        assert_eq!(client.ask("go"), "done");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 5);
}

async fn timers_of_others_wake_handlers(workers: usize) {
    const SOON: Duration = Duration::from_millis(2);
    serve_one(workers, async || {
        async_std::task::sleep(SOON).await;
        smol::Timer::after(SOON).await;
        let mut interval = smol::Timer::interval(SOON);
        interval.next().await.unwrap();
        interval.next().await.unwrap();
        let late = async_std::future::timeout(SOON, future::pending::<()>()).await;
        assert!(late.is_err());
        Ok(())
    })
    .await;
}

async fn files_of_others_are_read_in_handlers(workers: usize) {
    serve_one(workers, async || {
        let path = unix_path();
        async_std::fs::write(&path, "one\n").await?;
        let mut file = smol::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .await?;
        file.write_all(b"two\n").await?;
        file.flush().await?;
        assert_eq!(async_std::fs::read_to_string(&path).await?, "one\ntwo\n");
        let mut lines =
            futures_lite::io::BufReader::new(smol::fs::File::open(&path).await?).lines();
        assert_eq!(lines.next().await.unwrap()?, "one");
        smol::fs::remove_file(&path).await
    })
    .await;
}

async fn processes_of_others_are_waited_for_in_handlers(workers: usize) {
    serve_one(workers, async || {
        let output = starting(|| smol::process::Command::new("echo").arg("hello").output());
        let output = output.await?;
        assert_eq!(output.stdout, b"hello\n");
        let mut cat = smol::process::Command::new("cat");
        cat.stdin(smol::process::Stdio::piped())
            .stdout(smol::process::Stdio::piped());
        let mut cat = starting(|| cat.spawn())?;
        let mut stdin = cat.stdin.take().unwrap();
        stdin.write_all(b"through a pipe").await?;
        drop(stdin);
        let mut said = String::new();
        cat.stdout.take().unwrap().read_to_string(&mut said).await?;
        assert_eq!(said, "through a pipe");
        assert!(cat.status().await?.success());
        Ok(())
    })
    .await;
}

async fn channels_of_others_wake_handlers(workers: usize) {
    serve_one(workers, async || {
        let (send, sent) = async_std::channel::bounded(1);
        let (reply, replied) = smol::channel::bounded(1);
        let other = thread::spawn(move || {
            for number in 0..100 {
                send.send_blocking(number).unwrap();
                assert_eq!(replied.recv_blocking(), Ok(number));
            }
        });
        while let Ok(number) = sent.recv().await {
            reply.send(number).await.unwrap();
        }
        other.join().unwrap();
        Ok(())
    })
    .await;
}

async fn tasks_of_others_are_awaited_in_handlers(workers: usize) {
    let elsewhere = || {
        thread::current()
            .name()
            .is_none_or(|it| !it.starts_with("gracious-"))
    };
    serve_one(workers, async move || {
        assert!(async_std::task::spawn(async move { elsewhere() }).await);
        assert!(smol::spawn(async move { elsewhere() }).await);
        assert!(blocking::unblock(elsewhere).await);
        assert!(async_std::task::spawn_blocking(elsewhere).await);
        // Many at once, which end in any order.
        let tasks: Vec<_> = (0..50).map(|i| smol::spawn(async move { i })).collect();
        for (i, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await, i);
        }
        let lock = Arc::new(async_std::sync::Mutex::new(0));
        let other = lock.clone();
        let adding = async_std::task::spawn(async move {
            for _ in 0..100 {
                *other.lock().await += 1;
            }
        });
        for _ in 0..100 {
            *lock.lock().await += 1;
        }
        adding.await;
        assert_eq!(*lock.lock().await, 200);
        Ok(())
    })
    .await;
}

/// A small database: it answers lines, in capitals.
fn database() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                for line in BufReader::new(&client).lines().map_while(Result::ok) {
                    let reply = format!("{}\n", line.to_uppercase());
                    let _gone = (&client).write_all(reply.as_bytes());
                }
            });
        }
    });
    address
}

async fn sockets_of_others_serve_handlers_as_clients(workers: usize) {
    async fn query(socket: impl futures_lite::AsyncRead + futures_lite::AsyncWrite + Unpin) {
        let mut socket = futures_lite::io::BufReader::new(socket);
        let mut line = String::new();
        for _ in 0..20 {
            socket.get_mut().write_all(b"hello\n").await.unwrap();
            socket.read_line(&mut line).await.unwrap();
            assert_eq!(std::mem::take(&mut line), "HELLO\n");
        }
    }
    let address = database();
    serve_one(workers, async move || {
        query(async_std::net::TcpStream::connect(address).await?).await;
        query(smol::net::TcpStream::connect(address).await?).await;
        query(smol::Async::<std::net::TcpStream>::connect(address).await?).await;
        Ok(())
    })
    .await;
}

async fn a_waker_may_be_called_from_any_thread_any_number_of_times(workers: usize) {
    const THREADS: usize = 4;
    const WAKES: usize = 2000;
    serve_one(workers, async || {
        let woken = Arc::new(AtomicUsize::new(0));
        let mut begun = false;
        poll_fn(|cx| {
            if !std::mem::replace(&mut begun, true) {
                for _ in 0..THREADS {
                    let (waker, woken) = (cx.waker().clone(), woken.clone());
                    thread::spawn(move || {
                        for _ in 0..WAKES {
                            // The last of them all counts.
                            woken.fetch_add(1, SeqCst);
                            waker.wake_by_ref();
                        }
                    });
                }
            }
            match woken.load(SeqCst) {
                all if all == THREADS * WAKES => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
        Ok(())
    })
    .await;
}

async fn a_waker_may_be_kept_and_called_after_the_end(workers: usize) {
    let server = with_workers(workers).bind().await.unwrap();
    let kept = Arc::new(Mutex::new(Vec::<Waker>::new()));
    let keep = kept.clone();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line).await? > 0 {
            poll_fn(|cx| {
                keep.lock().unwrap().push(cx.waker().clone());
                Poll::Ready(())
            })
            .await;
            conn.write_all(line.as_bytes()).await?;
            line.clear();
        }
        io::Result::Ok(())
    });
    let wake_all = |kept: Vec<Waker>| {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            kept.iter().for_each(Waker::wake_by_ref);
            kept.into_iter().for_each(Waker::wake);
            done.send(()).unwrap();
        });
        is_done.recv().unwrap();
    };
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    drop(client);
    let mut other = Client::of(&running);
    assert_eq!(other.ask("hello"), "hello");
    wake_all(kept.lock().unwrap().clone());
    assert_eq!(other.ask("and on"), "and on");
    drop(other);
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 2);
    let kept = std::mem::take(&mut *kept.lock().unwrap());
    wake_all(kept);
}
