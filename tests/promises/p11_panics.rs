//! Promise 11. **A panic is one connection's end**: caught, counted, logged with the peer; the
//! server, the drain and the others go on.

use std::future::{Future, pending};
use std::io;
use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Cause, Connection, Handler};

use crate::support::TestRuntime;
use crate::support::client::{Client, echo, taken_in};
use crate::support::peer::{
    Counted, OnDrop, at_home, cause_of, is_cut, logged, orders, passes, settled, tell,
};

crate::on_every_runtime!(
    a_panic_ends_one_connection_and_no_other,
    a_panic_after_the_stop_was_asked_for_does_not_hold_it_up,
    two_panics_at_once_in_a_drain_are_both_counted,
    the_last_handler_of_a_drain_may_panic,
    a_panicking_destructor_at_an_abort_harms_nobody_else,
    a_panic_before_the_first_await_is_no_different,
    a_closure_that_panics_before_it_gives_a_future_is_no_different,
    a_handler_that_cannot_be_cloned_without_a_panic_ends_that_connection,
    a_panic_may_carry_anything
);
crate::on_every_runtime_in_a_process!(
    a_panic_is_logged_with_its_peer: logs_a_panic, names_the_peer
);

async fn a_panic_ends_one_connection_and_no_other(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| {
        let mut order = [0];
        while conn.read(&mut order).await? > 0 {
            assert_ne!(order, *b"!", "as the test wants it");
            conn.write_all(&order).await?;
        }
        io::Result::Ok(())
    });
    let mut other = Client::of(&running);
    other.send("a");
    taken_in(&running.handle(), 1);
    let mut panicking = Client::of(&running);
    panicking.send("x!");
    // What it had written arrives; its end is as orderly as any.
    assert_eq!(panicking.rest(), "x");
    assert_eq!(cause_of(2, &events).await, Cause::Panic);
    other.send("b");
    let mut later = Client::of(&running);
    later.send("c");
    running.handle().shutdown();
    assert_eq!((other.rest(), later.rest()), ("ab".into(), "c".into()));
    let report = settled(running.await);
    assert_eq!((report.panicked, report.completed), (1, 2));
}

async fn a_panic_after_the_stop_was_asked_for_does_not_hold_it_up(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| -> io::Result<()> {
        conn.handle().shutdown();
        panic!("as the test wants it");
    });
    let mut client = Client::of(&running);
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).panicked, 1);
}

async fn two_panics_at_once_in_a_drain_are_both_counted(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(3);
    let running = server.spawn(async move |mut conn: Connection| {
        let _busy = conn.busy();
        let mut order = [0];
        conn.read_exact(&mut order).await?;
        begun.send(()).await.unwrap();
        conn.shutdown_requested().await;
        assert_ne!(order, *b"!", "as the test wants it");
        conn.write_all(&order).await
    });
    let mut clients = ["!", "!", "x"].map(|order| {
        let mut client = Client::of(&running);
        client.send(order);
        client
    });
    for _ in &clients {
        has_begun.recv().await.unwrap();
    }
    running.handle().shutdown();
    assert_eq!(clients.each_mut().map(Client::rest), ["", "", "x"]);
    let report = settled(running.await);
    assert_eq!((report.panicked, report.completed), (2, 1));
}

async fn the_last_handler_of_a_drain_may_panic(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::bounded(2);
    let events = server.handle().events();
    let running = server.spawn(async move |mut conn: Connection| {
        let _busy = conn.busy();
        begun.send(()).await.unwrap();
        conn.read_exact(&mut [0]).await?;
        assert_ne!(conn.id(), 1, "as the test wants it");
        io::Result::Ok(())
    });
    let mut last = Client::of(&running);
    has_begun.recv().await.unwrap();
    let mut first = Client::of(&running);
    has_begun.recv().await.unwrap();
    running.handle().shutdown();
    first.send("x");
    assert_eq!(cause_of(2, &events).await, Cause::Handler);
    last.send("x");
    let report = settled(running.await);
    assert_eq!((report.panicked, report.completed), (1, 1));
    assert_eq!((first.rest(), last.rest()), ("".into(), "".into()));
}

async fn a_panicking_destructor_at_an_abort_harms_nobody_else(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let (begun, has_begun) = async_channel::unbounded();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    let running = server.spawn(async move |conn: Connection| {
        // Dropped after the one that panics.
        let _counted = Counted(counter);
        let id = conn.id();
        let _panics = OnDrop(move || assert_ne!(id, 2, "as the test wants it"));
        begun.send(()).await.unwrap();
        pending::<()>().await;
    });
    let mut clients: [Client; 4] = std::array::from_fn(|_| Client::of(&running));
    for _ in &clients {
        has_begun.recv().await.unwrap();
    }
    running.handle().abort();
    let report = settled(running.await);
    assert_eq!(report.aborted + report.panicked, 4);
    assert_eq!(dropped.load(SeqCst), 4);
    clients.iter_mut().for_each(is_cut);
}

async fn a_panic_before_the_first_await_is_no_different(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| {
        assert_eq!(conn.id() % 2, 0, "as the test wants it");
        echo(conn).await
    });
    panicking_and_not(runtime, running).await;
}

async fn a_closure_that_panics_before_it_gives_a_future_is_no_different(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(|conn: Connection| {
        assert_eq!(conn.id() % 2, 0, "as the test wants it");
        echo(conn)
    });
    panicking_and_not(runtime, running).await;
}

async fn a_handler_that_cannot_be_cloned_without_a_panic_ends_that_connection(
    runtime: TestRuntime,
) {
    /// Counts its clones, once the server has started: shards have a handler each by then.
    #[derive(Default)]
    struct Moody {
        clones: Arc<AtomicUsize>,
        has_started: Arc<AtomicBool>,
    }

    impl Clone for Moody {
        fn clone(&self) -> Self {
            if self.has_started.load(SeqCst) {
                let clones = self.clones.fetch_add(1, SeqCst) + 1;
                assert_eq!(clones % 2, 0, "as the test wants it");
            }
            Self {
                clones: self.clones.clone(),
                has_started: self.has_started.clone(),
            }
        }
    }

    impl Handler for Moody {
        fn run(self, conn: Connection) -> impl Future<Output = io::Result<()>> + Send + 'static {
            echo(conn)
        }
    }

    let server = at_home(&runtime).bind().await.unwrap();
    let moody = Moody::default();
    let has_started = moody.has_started.clone();
    let running = server.spawn_with(moody);
    has_started.store(true, SeqCst);
    panicking_and_not(runtime, running).await;
}

/// Every other connection panics, from the first on; six times.
async fn panicking_and_not(_runtime: TestRuntime, running: gracious::Running) {
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut panicking = Client::of(&running);
        assert_eq!(panicking.rest(), "");
        let mut client = Client::of(&running);
        assert_eq!(client.ask("hello"), "hello");
        clients.push(client);
    }
    running.handle().shutdown();
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    let report = settled(running.await);
    assert_eq!((report.panicked, report.completed), (6, 6));
}

async fn a_panic_may_carry_anything(runtime: TestRuntime) {
    let server = at_home(&runtime).bind().await.unwrap();
    let running = server.spawn(async move |conn: Connection| -> io::Result<()> {
        match conn.id() {
            1 => panic_any(42),
            2 => panic_any(format!("{:?}", conn.peer_addr())),
            _ => panic_any(OnDrop(|| {})),
        }
    });
    for _ in 0..3 {
        assert_eq!(Client::of(&running).rest(), "");
    }
    running.handle().shutdown();
    assert_eq!(settled(running.await).panicked, 3);
}

async fn logs_a_panic(runtime: TestRuntime) {
    let orders = orders();
    let server = at_home(&runtime).bind().await.unwrap();
    tell("address", &server.local_addrs()[0]);
    let running = server.spawn(async move |_conn: Connection| -> io::Result<()> {
        panic!("as the test wants it");
    });
    let peer = orders.recv().await.unwrap();
    running.handle().shutdown();
    assert_eq!(settled(running.await).panicked, 1);
    let named = |line: &String| {
        line.starts_with("ERROR") && line.contains(&peer) && line.contains("as the test wants it")
    };
    let logged = logged();
    assert_eq!(
        logged.iter().filter(|it| named(it)).count(),
        1,
        "{logged:?}"
    );
}

fn names_the_peer(mut process: crate::support::peer::Process) {
    let mut client = Client::connect(&process.address()).unwrap();
    let Client::Tcp(socket) = &client else {
        unreachable!("it was asked for TCP");
    };
    let name = socket.local_addr().unwrap().to_string();
    assert_eq!(client.rest(), "");
    process.tell(&name);
    passes(process);
}
