//! A server that lives as long as a piece of work, and a handler of a type of its own.

use std::future::pending;
use std::io;
use std::time::Duration;

use futures_lite::AsyncWriteExt;
use gracious::{Connection, Handler, Reason, Running};

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, echo, refuses, tcp};

crate::on_every_runtime!(
    the_end_of_the_work_stops_the_server,
    an_error_of_the_work_stops_it_as_well,
    a_stop_lets_the_work_go_on_to_its_end,
    the_deadline_drops_the_work,
    an_abort_drops_the_work,
    dropping_the_scope_drops_the_work_and_stops_the_server,
    a_handler_can_be_a_type,
    ten_thousand_idle_connections_end_together,
);

async fn the_end_of_the_work_stops_the_server(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let mut client = Client::to(&server);
    let (value, report) = server
        .serve_until(echo, async { client.ask("hello") })
        .await
        .unwrap();
    assert_eq!(value.as_deref(), Some("hello"));
    assert_eq!(report.reason, Reason::WorkEnded);
    assert_eq!((report.completed, report.tracked), (1, 0));
    assert_eq!(client.rest(), "");
}

async fn an_error_of_the_work_stops_it_as_well(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let work = async { Err::<(), _>(io::Error::other("no luck")) };
    let (value, report) = server.serve_until(echo, work).await.unwrap();
    assert_eq!(value.unwrap().unwrap_err().to_string(), "no luck");
    assert_eq!(report.reason, Reason::WorkEnded);
}

async fn a_stop_lets_the_work_go_on_to_its_end(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let (handle, address) = (server.handle(), server.local_addrs()[0].clone());
    let work = async {
        handle.shutdown();
        // The server is stopped but for this.
        while !refuses(&address) {}
        42
    };
    let (value, report) = server.serve_until(echo, work).await.unwrap();
    assert_eq!((value, report.reason), (Some(42), Reason::Requested));
}

async fn the_deadline_drops_the_work(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    server.handle().shutdown_within(Duration::from_millis(50));
    let (value, _report) = server.serve_until(echo, pending::<()>()).await.unwrap();
    assert_eq!(value, None);
}

async fn an_abort_drops_the_work(runtime: TestRuntime) {
    let server = tcp(runtime).deadline(HOUR).bind().await.unwrap();
    let handle = server.handle();
    let work = async {
        handle.abort();
        pending::<()>().await;
    };
    let (value, _report) = server.serve_until(echo, work).await.unwrap();
    assert_eq!(value, None);
}

async fn dropping_the_scope_drops_the_work_and_stops_the_server(runtime: TestRuntime) {
    let server = tcp(runtime).bind().await.unwrap();
    let handle = server.handle();
    let mut scope = Box::pin(server.serve_until(echo, pending::<()>()));
    assert!(crate::support::client::waits(&mut scope).await);
    assert_eq!(handle.stats().tracked, 1);
    drop(scope);
    let report = handle.closed().await;
    assert_eq!(
        (report.reason.clone(), report.tracked),
        (Reason::Dropped, 0)
    );
}

async fn a_handler_can_be_a_type(runtime: TestRuntime) {
    #[derive(Clone)]
    struct Greeter(&'static str);

    impl Handler for Greeter {
        async fn run(self, mut conn: Connection) -> io::Result<()> {
            conn.write_all(self.0.as_bytes()).await
        }
    }

    let running = tcp(runtime.clone())
        .bind()
        .await
        .unwrap()
        .spawn_with(Greeter("hello"));
    assert_eq!(Client::of(&running).rest(), "hello");
    running.shutdown().await.unwrap();
    let server = tcp(runtime).bind().await.unwrap();
    let mut client = Client::to(&server);
    server.handle().shutdown();
    assert_eq!(
        server.serve_with(Greeter("bye")).await.unwrap().completed,
        1
    );
    assert_eq!(client.rest(), "bye");
}

async fn ten_thousand_idle_connections_end_together(runtime: TestRuntime) {
    // Both ends are in this process, five engines may be at it at a time, and other tests beside them: together they
    // take five eighths of the descriptors at most.
    let most = descriptors() / 16;
    let running = tcp(runtime).bind().await.unwrap().spawn(echo);
    let mut clients: Vec<_> = (0..most.min(10_000)).map(|_| asked(&running)).collect();
    let handle = running.handle();
    handle.shutdown();
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
    let report = running.await.unwrap();
    assert_eq!(report.completed, clients.len() as u64);
}

fn asked(running: &Running) -> Client {
    let mut client = Client::of(running);
    assert_eq!(client.ask("hello"), "hello");
    client
}

#[cfg(target_os = "linux")]
fn descriptors() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(not(target_os = "linux"))]
fn descriptors() -> u64 {
    1024
}
