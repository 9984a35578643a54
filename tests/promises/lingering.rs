//! A closing connection waits for a peer that has not taken everything, and for one that sends until
//! it has been silent for a `linger`: `linger_total` in all.

use std::io;
use std::time::{Duration, Instant};

use gracious::{Connection, ServerEvent};

use crate::support::TestRuntime;
use crate::support::client::{Client, handing_over, tcp, write_now};

crate::on_every_runtime!(
    a_peer_that_sends_nothing_more_is_left_after_the_linger,
    the_linger_ends_in_any_case_after_its_total,
    a_peer_that_takes_everything_is_not_waited_for,
);

const SPAN: Duration = Duration::from_millis(300);

/// Writes as much as the kernel takes, and leaves.
async fn fill(mut conn: Connection) -> io::Result<()> {
    let chunk = [0; 65536];
    while let Some(written) = write_now(&mut conn, &chunk).await {
        written?;
    }
    Ok(())
}

async fn a_peer_that_sends_nothing_more_is_left_after_the_linger(runtime: TestRuntime) {
    let builder = tcp(runtime).linger(SPAN).linger_total(None);
    let (running, connections) = handing_over(builder.bind().await.unwrap());
    let events = running.handle().events();
    let mut client = Client::of(&running);
    client.send("nobody reads this\n");
    drop(connections.recv().await.unwrap());
    assert!(span_of_one(&events).await >= SPAN);
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, report.lingered_out), (1, 0));
}

async fn the_linger_ends_in_any_case_after_its_total(runtime: TestRuntime) {
    let builder = tcp(runtime).linger(None).linger_total(SPAN);
    let running = builder.bind().await.unwrap().spawn(fill);
    let events = running.handle().events();
    let _client = Client::of(&running);
    assert!(span_of_one(&events).await >= SPAN);
    let report = running.shutdown().await.unwrap();
    assert_eq!((report.completed, report.lingered_out), (1, 1));
}

async fn a_peer_that_takes_everything_is_not_waited_for(runtime: TestRuntime) {
    // If it were, this would not end.
    let builder = tcp(runtime).linger(None).linger_total(None);
    let running = builder.bind().await.unwrap().spawn(fill);
    let events = running.handle().events();
    let mut client = Client::of(&running);
    assert!(client.rest().len() >= 65536);
    // It never hangs up.
    span_of_one(&events).await;
    assert_eq!(running.shutdown().await.unwrap().completed, 1);
}

/// How long the first connection was open.
async fn span_of_one(events: &async_channel::Receiver<ServerEvent>) -> Duration {
    let mut opened = Instant::now();
    loop {
        match events.recv().await.unwrap() {
            ServerEvent::Opened { .. } => opened = Instant::now(),
            ServerEvent::Closed { age, .. } => return age.max(opened.elapsed()),
            _ => {}
        }
    }
}
