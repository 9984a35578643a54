//! A storm of connects, in the midst of which the server stops.

use super::{A_WHILE, Cell, Run};
use crate::rig::link::Link;
use crate::rig::load::{Gate, Storm, at_client};
use crate::rig::table::Row;

#[track_caller]
pub fn storm(link: &Link, cell: Cell, stops: u32, half_closed: bool) -> Row {
    let scenario = if half_closed {
        "storm, half closed"
    } else {
        "storm"
    };
    let mut run = Run::begin(link, cell, scenario);
    let storm = Storm {
        address: run.address,
        a_second: 1000,
        half_closed,
    };
    for _ in 0..stops {
        let mut server = run.start(&run.config());
        let stop = storm.connects_in(cell.round_trip() + A_WHILE + run.moment());
        let end = stop + storm.connects_in(cell.round_trip() + A_WHILE / 4);
        let tally = at_client(link, async || {
            let gate = Gate::default();
            let each = |number| {
                if number == stop {
                    gate.stopping.set(true);
                    server.stop();
                }
                number < end
            };
            storm.rage(&gate, each).await
        });
        run.stopped(tally, server);
    }
    run.end()
}
