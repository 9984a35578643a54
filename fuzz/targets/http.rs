//! Bytes that may be HTTP, stopped in between: every request that a service was given is answered whole,
//! and the server comes to its end.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use arbitrary::Arbitrary;
use gracious::web::{self, Request, Response};
use gracious::{Server, State};
use gracious_fuzz::{Door, World};
use libfuzzer_sys::fuzz_target;

const BODY: &str = "<the whole of it>";

#[derive(Arbitrary, Debug)]
struct Input {
    at_once: u8,
    /// How many milliseconds pass behind each piece.
    pieces: Vec<(Vec<u8>, u16)>,
    stops_behind: u8,
    http2: bool,
}

fuzz_target!(|input: Input| {
    let (world, door) = (World::default(), Door::default());
    let server = Server::with_runtime(world.clone()).listener(door.clone());
    let server = world.block_on(server.bind()).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let answer = move |request: Request| {
        if request.method() != "HEAD" && request.method() != "CONNECT" {
            count.fetch_add(1, SeqCst);
        }
        async { Response::new(BODY.to_owned()) }
    };
    let running = server.spawn(web::serve(answer));
    let handle = running.handle();
    let client = door.connect(usize::from(input.at_once) + 1).unwrap();
    world.settle();
    if input.http2 {
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    }
    let mut is_http1 = !input.http2;
    let mut seen = Vec::new();
    for (number, (piece, pause)) in input.pieces.iter().enumerate() {
        client.send(piece);
        seen.extend(piece);
        if usize::from(input.stops_behind) == number {
            handle.shutdown();
        }
        world.pass(Duration::from_millis((*pause).into()));
    }
    is_http1 &= !seen.starts_with(b"PRI");
    handle.shutdown();
    world.pass(Duration::from_secs(30));
    assert_eq!(handle.state(), State::Closed);
    let said = client.received();
    if is_http1 {
        let bodies = said.windows(BODY.len()).filter(|it| *it == BODY.as_bytes());
        assert_eq!(bodies.count(), asked.load(SeqCst), "{}", said.escape_ascii());
    }
    let report = world.block_on(handle.closed());
    assert_eq!(report.accepted, report.completed + report.failed + report.aborted, "{report}");
    drop((running, client));
    world.settle();
    assert_eq!(world.tasks(), 0);
});
