//! Promise 14. **Dropping is stopping.** Loop, drain and deadline are tasks of the server;
//! `serve`'s future and `Running` only wait. Dropping them is `shutdown_because(Dropped)`, and the
//! stop goes on in the runtime, deadline included. A `Server` never served closes the same way. A
//! runtime that is dropped takes the handlers with it (`aborted`); the listeners are closed and
//! `closed()` resolves all the same.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Connection, Reason, Runtime, Server, State};

use crate::support::TestRuntime;
use crate::support::client::{Client, assert_balance, echo, handing_over, read_in, refuses, waits};
use crate::support::peer::{Counted, at_home, is_cut, loopback, passes, settled};

crate::on_every_runtime!(
    a_dropped_serve_stops_the_server_and_frees_the_port,
    a_serve_that_is_dropped_before_it_was_polled_stops_the_server,
    a_dropped_running_lets_those_inside_finish,
    a_dropped_running_has_a_deadline_nobody_waits_for,
    running_dropped_in_the_middle_of_a_drain_changes_nothing,
    a_dropped_wait_for_the_end_changes_nothing,
    a_server_that_was_never_served_closes,
    a_server_that_was_stopped_and_never_served_closes,
    a_dropped_serve_until_drops_its_work,
    a_handler_may_own_what_stops_its_server,
    a_runtime_that_takes_no_tasks_any_more_closes_the_server
);

#[cfg(target_os = "linux")]
crate::on_every_runtime_in_a_process!(
    a_forked_process_that_drops_a_server_leaves_it_to_its_parent: forks_and_drops, passes;
);

async fn a_dropped_serve_stops_the_server_and_frees_the_port(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let mut client = Client::to(&server);
    let mut serving = Box::pin(server.serve(echo));
    assert!(waits(&mut serving).await);
    assert_eq!(client.ask("hello"), "hello");
    drop(serving);
    // Its connections end, too.
    assert_eq!(client.rest(), "");
    let report = settled(Ok(handle.closed().await));
    assert_eq!(report.reason, Reason::Dropped);
    assert_eq!(report.completed, 1);
    assert_eq!(handle.state(), State::Closed);
    assert!(refuses(&address));
    drop(
        crate::support::server(runtime)
            .listen(address)
            .bind()
            .await
            .unwrap(),
    );
}

async fn a_serve_that_is_dropped_before_it_was_polled_stops_the_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let mut client = Client::to(&server);
    drop(server.serve(echo));
    assert!(refuses(&address));
    assert_eq!(client.rest(), "");
    let report = settled(Ok(handle.closed().await));
    assert_eq!(
        (report.reason.clone(), report.rejected),
        (Reason::Dropped, 1)
    );
}

async fn a_dropped_running_lets_those_inside_finish(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.read_exact(&mut order).await?;
        conn.write_all(b"done").await
    });
    let mut client = Client::of(&running);
    client.send("x");
    read_in(&handle, 1);
    drop(running);
    is_told.recv().await.unwrap();
    assert!(refuses(&address));
    client.send("y");
    assert_eq!(client.rest(), "done");
    let report = settled(Ok(handle.closed().await));
    assert_eq!(
        (report.reason.clone(), report.completed),
        (Reason::Dropped, 1)
    );
}

async fn a_dropped_running_has_a_deadline_nobody_waits_for(runtime: TestRuntime) {
    let server = at_home(&runtime)
        .deadline(Duration::from_millis(50))
        .bind()
        .await
        .unwrap();
    let handle = server.handle();
    let (begun, has_begun) = async_channel::bounded(1);
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    let running = server.spawn(async move |_conn: Connection| {
        let _counted = Counted(counter);
        begun.send(()).await.unwrap();
        pending::<()>().await;
    });
    let mut client = Client::of(&running);
    has_begun.recv().await.unwrap();
    drop(running);
    is_cut(&mut client);
    // No one asked before the end of the drain, and the report is there.
    let report = settled(Ok(handle.closed().await));
    assert_eq!((report.aborted, dropped.load(SeqCst)), (1, 1));
}

async fn running_dropped_in_the_middle_of_a_drain_changes_nothing(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (running, connections) = handing_over(server);
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    let handle = running.handle();
    handle.shutdown_because("the test wants it");
    conn.shutdown_requested().await;
    drop(running);
    conn.write_all(b"done").await.unwrap();
    drop(conn);
    assert_eq!(client.rest(), "done");
    let report = settled(Ok(handle.closed().await));
    assert_eq!(report.reason, Reason::Because("the test wants it".into()));
    assert_eq!(report.completed, 1);
}

async fn a_dropped_wait_for_the_end_changes_nothing(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let running = server.spawn(echo);
    let mut others = [(); 3].map(|()| Box::pin(handle.closed()));
    for closed in &mut others {
        assert!(waits(closed).await);
    }
    let [one, other, dropped] = others;
    drop(dropped);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    assert_eq!(handle.state(), State::Serving);
    handle.shutdown();
    let report = settled(running.await);
    for closed in [one.await, other.await, handle.closed().await] {
        assert_eq!(closed.to_string(), report.to_string());
    }
}

async fn a_server_that_was_never_served_closes(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let mut clients = [(); 5].map(|()| Client::to(&server));
    clients[0].send("unread");
    drop(server);
    assert!(refuses(&address));
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    let report = settled(Ok(handle.closed().await));
    assert_eq!(report.reason, Reason::Dropped);
    assert_eq!((report.accepted, report.rejected), (5, 5));
    drop(
        crate::support::server(runtime)
            .listen(address)
            .bind()
            .await
            .unwrap(),
    );
}

async fn a_server_that_was_stopped_and_never_served_closes(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    handle.shutdown();
    assert_eq!(handle.state(), State::Draining);
    let mut closed = Box::pin(handle.closed());
    assert!(waits(&mut closed).await);
    drop(server);
    let report = settled(Ok(closed.await));
    assert_eq!(report.reason, Reason::Requested);
    assert_eq!(handle.state(), State::Closed);
}

async fn a_dropped_serve_until_drops_its_work(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let handle = server.handle();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = Counted(dropped.clone());
    let work = async move {
        let _counted = counted;
        pending::<()>().await;
    };
    let mut serving = Box::pin(server.serve_until(echo, work));
    assert!(waits(&mut serving).await);
    assert_eq!(dropped.load(SeqCst), 0);
    drop(serving);
    assert_eq!(dropped.load(SeqCst), 1);
    let report = settled(Ok(handle.closed().await));
    assert_eq!(report.reason, Reason::Dropped);
}

async fn a_handler_may_own_what_stops_its_server(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (give, given) = async_channel::bounded(1);
    let handle = server.handle();
    let running = server.spawn(async move |mut conn: Connection| {
        let running: gracious::Running = given.recv().await.unwrap();
        conn.write_all(b"bye").await?;
        drop(running);
        std::io::Result::Ok(())
    });
    let mut client = Client::of(&running);
    give.send(running).await.unwrap();
    assert_eq!(client.rest(), "bye");
    let report = settled(Ok(handle.closed().await));
    assert_eq!(
        (report.reason.clone(), report.completed),
        (Reason::Dropped, 1)
    );
}

/// What is spawned on it is dropped.
#[derive(Clone)]
struct Gone(TestRuntime);

impl Runtime for Gone {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        drop(future);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        self.0.sleep(duration)
    }
}

async fn a_runtime_that_takes_no_tasks_any_more_closes_the_server(runtime: TestRuntime) {
    if runtime.engine.has_workers() {
        // Their tasks are not the runtime's.
        return;
    }
    let server = Server::with_runtime(Gone(runtime)).listen(loopback());
    let server = server.bind().await.unwrap();
    let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
    let mut client = Client::to(&server);
    let report = settled(server.serve(echo).await);
    assert_eq!(report.reason, Reason::RuntimeGone);
    assert_balance(&handle.stats());
    assert!(refuses(&address));
    is_cut(&mut client);
}

/// An executor that can be dropped with everything in it.
#[cfg(feature = "smol")]
mod on_an_executor_that_is_dropped {
    use std::sync::Weak;
    use std::thread::{self, JoinHandle};

    use async_channel::{Receiver, Sender};
    use smol::Executor;

    use super::*;
    use crate::support::within;

    /// Does not keep its executor: what is spawned after that has gone is dropped.
    #[derive(Clone)]
    struct Droppable(Weak<Executor<'static>>);

    impl Runtime for Droppable {
        fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
            if let Some(executor) = self.0.upgrade() {
                executor.spawn(future).detach();
            }
        }

        // As the trait has it: the future borrows nothing.
        #[allow(clippy::manual_async_fn)]
        fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
            async move {
                smol::Timer::after(duration).await;
            }
        }
    }

    struct Owner {
        executor: Arc<Executor<'static>>,
        stop: Sender<()>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Owner {
        fn start() -> (Droppable, Self) {
            let executor = Arc::new(Executor::new());
            let (stop, stopped): (Sender<()>, Receiver<()>) = async_channel::bounded(1);
            let run = || {
                let (executor, stopped) = (executor.clone(), stopped.clone());
                thread::spawn(move || _ = smol::block_on(executor.run(stopped.recv())))
            };
            let threads = vec![run(), run()];
            let runtime = Droppable(Arc::downgrade(&executor));
            let owner = Self {
                executor,
                stop,
                threads,
            };
            (runtime, owner)
        }

        /// No thread runs the tasks from here on; they are there still.
        fn halt(&mut self) {
            self.stop.close();
            for thread in self.threads.drain(..) {
                thread.join().unwrap();
            }
        }

        /// The tasks are dropped.
        fn end(mut self) {
            self.halt();
            assert_eq!(Arc::strong_count(&self.executor), 1);
        }
    }

    fn run<F: Future<Output = ()>>(body: impl FnOnce(Droppable, Owner) -> F + Send + 'static) {
        within(Duration::from_secs(30), move || {
            let (runtime, owner) = Owner::start();
            smol::block_on(body(runtime, owner));
        });
    }

    #[test]
    fn its_handlers_are_aborted_and_the_server_is_closed() {
        run(async |runtime, owner| {
            let server = Server::with_runtime(runtime).listen(loopback());
            let server = server.bind().await.unwrap();
            let (address, handle) = (server.local_addrs()[0].clone(), server.handle());
            let dropped = Arc::new(AtomicUsize::new(0));
            let counter = dropped.clone();
            let mut running = server.spawn(async move |conn: Connection| {
                let _counted = Counted(counter);
                echo(conn).await
            });
            let mut clients = [(); 5].map(|()| Client::of(&running));
            for client in &mut clients {
                assert_eq!(client.ask("hello"), "hello");
            }
            assert!(waits(&mut running).await);
            owner.end();
            assert_eq!(dropped.load(SeqCst), 5);
            let report = settled(running.await);
            assert_eq!((report.aborted, report.active), (5, 0));
            assert_eq!(report.reason, Reason::RuntimeGone);
            assert_eq!(handle.state(), State::Closed);
            assert!(refuses(&address));
            clients.iter_mut().for_each(is_cut);
        });
    }

    #[test]
    fn in_the_middle_of_a_drain_it_ends_it() {
        run(async |runtime, owner| {
            let server = Server::with_runtime(runtime).listen(loopback());
            let server = server.deadline(None).bind().await.unwrap();
            let (told, is_told) = async_channel::bounded(1);
            let running = server.spawn(async move |conn: Connection| {
                let _busy = conn.busy();
                conn.shutdown_requested().await;
                told.send(()).await.unwrap();
                pending::<()>().await;
            });
            let mut client = Client::of(&running);
            running.handle().shutdown_because("the test wants it");
            is_told.recv().await.unwrap();
            owner.end();
            let report = settled(running.await);
            assert_eq!(report.aborted, 1);
            assert_eq!(report.reason, Reason::Because("the test wants it".into()));
            is_cut(&mut client);
        });
    }

    #[test]
    fn before_it_was_driven_it_closes_the_server() {
        run(async |runtime, mut owner| {
            owner.halt();
            let server = Server::with_runtime(runtime).listen(loopback());
            let server = server.bind().await.unwrap();
            let address = server.local_addrs()[0].clone();
            let mut client = Client::to(&server);
            let running = server.spawn(echo);
            owner.end();
            let report = settled(running.await);
            assert_eq!(report.reason, Reason::RuntimeGone);
            assert!(refuses(&address));
            is_cut(&mut client);
        });
    }

    #[test]
    fn those_who_wait_for_a_permit_are_closed_cleanly() {
        run(async |runtime, owner| {
            let server = Server::with_runtime(runtime).listen(loopback());
            let server = server
                .max_connections(1)
                .deadline(None)
                .bind()
                .await
                .unwrap();
            let (told, is_told) = async_channel::bounded(1);
            let running = server.spawn(async move |conn: Connection| {
                conn.shutdown_requested().await;
                told.send(()).await.unwrap();
                pending::<()>().await;
            });
            let mut inside = Client::of(&running);
            crate::support::client::taken_in(&running.handle(), 1);
            let mut waiting = Client::of(&running);
            running.handle().shutdown();
            is_told.recv().await.unwrap();
            owner.end();
            let report = settled(running.await);
            assert_eq!((report.aborted, report.rejected), (1, 1));
            is_cut(&mut inside);
            assert_eq!(waiting.rest(), "");
        });
    }

    #[test]
    fn halves_that_live_elsewhere_are_aborted() {
        run(async |runtime, owner| {
            let server = Server::with_runtime(runtime).listen(loopback());
            let server = server.bind().await.unwrap();
            let (running, connections) = handing_over(server);
            let mut client = Client::of(&running);
            let mut conn = connections.recv().await.unwrap();
            owner.end();
            let report = settled(running.await);
            assert_eq!((report.accepted, report.aborted), (1, 1));
            let error = conn.write_all(b"too late").await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
            is_cut(&mut client);
        });
    }

    #[test]
    fn a_server_bound_on_one_that_is_gone_closes() {
        run(async |runtime, owner| {
            owner.end();
            let server = Server::with_runtime(runtime).listen(loopback());
            let server = server.bind().await.unwrap();
            let handle = server.handle();
            let report = settled(server.serve(echo).await);
            assert_eq!(report.reason, Reason::RuntimeGone);
            assert_eq!(handle.state(), State::Closed);
        });
    }
}

/// A process that is forked drops the server, bound and then served: it is its parent's.
#[cfg(target_os = "linux")]
async fn forks_and_drops(runtime: TestRuntime) {
    use std::sync::Mutex;

    use crate::support::client::{eventually, unix_address};
    use crate::support::peer::{fork, status_of};

    let server = at_home(&runtime)
        .listen(unix_address())
        .bind()
        .await
        .unwrap();
    let (addresses, handle) = (server.local_addrs().to_vec(), server.handle());
    // Each process has its own.
    let server = Mutex::new(Some(server));
    let connect = |address| Client::connect(address).unwrap();
    let mut early: Vec<_> = addresses.iter().map(connect).collect();
    let forked = fork(|| drop(server.lock().unwrap().take()));
    assert_eq!(status_of(forked), 0);
    let mut late: Vec<_> = addresses.iter().map(connect).collect();
    assert_eq!(handle.state(), State::Bound);
    let server = server.into_inner().unwrap().unwrap();
    let running = Mutex::new(Some(server.spawn(echo)));
    for client in early.iter_mut().chain(&mut late) {
        assert_eq!(client.ask("hello"), "hello");
    }
    let forked = fork(|| {
        handle.shutdown();
        handle.abort_connections();
        handle.abort();
        drop(running.lock().unwrap().take());
    });
    assert_eq!(status_of(forked), 0);
    // Of each listener, and of its poller, which a fork shares.
    for address in &addresses {
        assert_eq!(connect(address).ask("hello"), "hello");
    }
    for client in &mut early {
        assert_eq!(client.ask("still"), "still");
    }
    eventually("the last have left", || handle.active() == 4);
    assert!(handle.is_serving());
    handle.shutdown();
    let running = running.into_inner().unwrap().unwrap();
    assert_eq!(settled(running.await).completed, 6);
    // The one that bound it takes the path away.
    assert!(refuses(&addresses[1]));
}
