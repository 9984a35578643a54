//! A server that takes over the port of one that stops.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;

use super::{A_WHILE, Cell, Run};
use crate::rig::link::Link;
use crate::rig::load::{Gate, Storm, at_client};
use crate::rig::process::Process;
use crate::rig::table::Row;

/// When the successor joins the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// While its predecessor serves: both do, for a while.
    BeforeTheStop,
    /// As soon as its predecessor was asked to stop; a client that comes in between is refused.
    AfterTheStop,
}

/// A storm of connects that goes on from one server to the next, both with `SO_REUSEPORT`.
#[track_caller]
pub fn successor(link: &Link, cell: Cell, stops: u32, joins: Joins) -> Row {
    let scenario = match joins {
        Joins::BeforeTheStop => "successor joins before",
        Joins::AfterTheStop => "successor joins after",
    };
    let mut run = Run::begin(link, cell, scenario);
    let mut config = run.config();
    config.reuse_port = true;
    let storm = Storm {
        address: run.address,
        a_second: 1000,
        half_closed: false,
    };
    for _ in 0..stops {
        let mut server = run.start(&config);
        let mut next = (joins == Joins::BeforeTheStop).then(|| run.start(&config));
        let stop = storm.connects_in(cell.round_trip() + A_WHILE + run.moment());
        let rest = storm.connects_in(cell.round_trip() + A_WHILE);
        let listens = AtomicBool::new(next.is_some());
        let (go, gone) = mpsc::channel();
        let tally = thread::scope(|scope| {
            // To start a process blocks, and the storm goes on meanwhile.
            let (run, config, listens) = (&run, &config, &listens);
            let starting = scope.spawn(move || {
                let started: Option<Process> = gone.recv().ok().map(|()| run.start(config));
                listens.store(true, SeqCst);
                started
            });
            let tally = at_client(link, async || {
                let (gate, mut end, mut go) = (Gate::default(), None, Some(go));
                let each = |number| {
                    if number == stop {
                        gate.stopping.set(true);
                        server.stop();
                        let go = go.take().unwrap();
                        if joins == Joins::AfterTheStop {
                            go.send(()).unwrap();
                        }
                    }
                    gate.open_again.set(listens.load(SeqCst));
                    if number > stop && gate.open_again.get() {
                        end.get_or_insert(number + rest);
                    }
                    end.is_none_or(|end| number < end)
                };
                storm.rage(&gate, each).await
            });
            next = starting.join().unwrap().or(next.take());
            tally
        });
        run.stopped(tally, server);
        let (account, _took) = next.unwrap().end();
        assert!(account.accepted > 0, "{cell}: the successor got nobody");
    }
    run.end()
}
