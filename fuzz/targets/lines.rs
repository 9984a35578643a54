//! `Lines` against a model of it, of a stream that comes in pieces, and is stopped in between.
#![no_main]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use futures_lite::AsyncWriteExt;
use gracious::{Connection, EndedBy, Server, State};
use gracious_fuzz::{Door, World};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    limit: u8,
    /// How many bytes one read of the server's brings.
    at_once: u8,
    pieces: Vec<Vec<u8>>,
    /// Behind which piece the server is stopped.
    stops_behind: Option<u8>,
}

/// What a line is given out as: itself, or that it is too long, or that it is not UTF-8.
type Line = Result<String, bool>;

/// What is to be given out of all input, and whether it ends in half a line.
fn model(input: &[u8], limit: usize) -> (Vec<Line>, bool) {
    let mut lines = Vec::new();
    let mut rest = input;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.len() > limit {
            lines.push(Err(true));
            return (lines, false);
        }
        if end.is_none() && line.is_empty() {
            return (lines, false);
        }
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        lines.push(String::from_utf8(text.to_vec()).map_err(|_| false));
        match end {
            Some(end) => rest = &rest[end + 1..],
            None => return (lines, true),
        }
    }
}

fuzz_target!(|input: Input| {
    let (world, door) = (World::default(), Door::default());
    let limit = usize::from(input.limit) + 1;
    let server = Server::with_runtime(world.clone())
        .listener(door.clone())
        .line_limit(limit)
        .first_byte_grace(None);
    let server = world.block_on(server.bind()).unwrap();
    let taken = Arc::new(Mutex::new((Vec::<Line>::new(), None)));
    let given = taken.clone();
    let running = server.spawn(async move |conn: Connection| {
        let (reader, mut writer) = conn.split();
        let mut lines = reader.lines();
        while let Some(line) = lines.next().await {
            let line = line.map_err(|error| {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                error.to_string().contains("longer than")
            });
            given.lock().unwrap().0.push(line);
            writer.write_all(b"ok\n").await?;
        }
        given.lock().unwrap().1 = lines.get_ref().ended_by();
        Ok(())
    });
    let handle = running.handle();
    let client = door.connect(usize::from(input.at_once) + 1).unwrap();
    world.settle();
    let mut sent = Vec::new();
    let stops_behind = input.stops_behind.map(usize::from);
    let mut before_stop = None;
    for (number, piece) in input.pieces.iter().enumerate() {
        client.send(piece);
        sent.extend(piece);
        if stops_behind == Some(number) {
            // What has come by now is served, whatever of it was read.
            before_stop = Some(sent.len());
            handle.shutdown();
        }
        world.settle();
    }
    client.finish();
    world.settle();
    let (all, _) = model(&sent, limit);
    let (lines, ended_by) = taken.lock().unwrap().clone();
    assert_eq!(lines[..], all[..lines.len()]);
    match before_stop {
        None => assert_eq!(lines, all),
        Some(length) => {
            let (before, is_half) = model(&sent[..length], limit);
            // Half a line at the stop is waited for.
            let whole = before.len() - usize::from(is_half);
            assert!(lines.len() >= whole, "{lines:?} of {before:?}");
            if ended_by != Some(EndedBy::Drain) {
                assert_eq!(lines, all);
            } else {
                assert!(!is_half || lines.len() > whole, "half a line was idle");
            }
        }
    }
    handle.shutdown();
    drop(client);
    world.pass(Duration::from_secs(20));
    assert_eq!(handle.state(), State::Closed);
    let report = world.block_on(handle.closed());
    assert_eq!((report.accepted, report.completed), (1, 1), "{report}");
    drop(running);
    world.settle();
    assert_eq!(world.tasks(), 0);
});
