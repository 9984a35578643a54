//! The promises of each server of a run, looked after at every step and at the end.
//!
//! 1. The account balances at every step.
//! 2. Nothing is served, and nobody accepted, after `Closed`.
//! 3. Before time passes in a drain, each idle connection that waits to read has read its end.
//! 4. No time passes behind the deadline, or behind an abort, until the server is closed.
//! 5. What has arrived before connections were asked to end is read before one is ended as idle.
//! 6. All that was written before an orderly end arrives, and the end behind it.
//! 7. The door is shut before any connection is asked to end.
//! 8. Nobody is reset in the queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_channel::Receiver;

use super::handler::{Outcome, wire};
use super::network::Network;
use super::timeline::Who;
use super::wire::{End, PEER, SERVER};
use super::world::World;
use crate::handle::Handle;
use crate::lifecycle::{Phase, State};
use crate::report::{Cause, Stats};
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::shared::events::ServerEvent;
use crate::socket::readiness::{HalfState, flag};

#[derive(Default)]
pub(super) struct Watch {
    servers: Vec<Watched>,
    /// The step at which the reader of each wire last found nothing.
    reader_waited: BTreeMap<usize, u64>,
}

struct Watched {
    handle: Handle,
    events: Receiver<ServerEvent>,
    connections: BTreeMap<u64, Connection>,
    /// Connections were asked to end.
    is_told: bool,
    closed_at: Option<Duration>,
    has_met_limit: bool,
}

/// What is known of a connection.
#[derive(Debug, Default)]
struct Connection {
    wire: Option<usize>,
    /// The step of its handler's last poll.
    stepped: u64,
    outcome: Option<Outcome>,
    /// A fault of the plan has panicked in its handler, or hangs there.
    is_broken: bool,
    /// How much had arrived when connections were asked to end.
    arrived_when_told: Option<u64>,
    /// How much was read when the handler ended.
    read: u64,
    cause: Option<Cause>,
}

/// What goes against a promise: its kind, and in words.
type Complaint = (&'static str, String);

impl Watch {
    pub(super) fn add(&mut self, handle: Handle) -> usize {
        self.servers.push(Watched {
            events: handle.events(),
            handle,
            connections: BTreeMap::new(),
            is_told: false,
            closed_at: None,
            has_met_limit: false,
        });
        self.servers.len() - 1
    }

    pub(super) fn reader_waits(&mut self, wire: usize, step: u64) {
        self.reader_waited.insert(wire, step);
    }

    /// The handler of a connection begins.
    pub(super) fn begin(&mut self, server: usize, id: u64, wire: Option<usize>, step: u64) {
        let connection = self.connection(server, id);
        (connection.wire, connection.stepped) = (wire, step);
    }

    /// The handler of a connection is polled; gives what is wrong with that.
    pub(super) fn step(&mut self, server: usize, id: u64, step: u64) -> Option<String> {
        self.connection(server, id).stepped = step;
        let shared = self.servers[server].handle.shared();
        let is_late = shared.latch.phase() == Phase::Closed;
        is_late.then(|| format!("the handler of connection {id} goes on in a closed server"))
    }

    pub(super) fn broken(&mut self, server: usize, id: u64) {
        self.connection(server, id).is_broken = true;
    }

    /// The handler of a connection is gone.
    pub(super) fn end(&mut self, server: usize, id: u64, outcome: Outcome, read: u64) {
        // There is none any more where the world is taken down.
        if server < self.servers.len() {
            let connection = self.connection(server, id);
            (connection.outcome, connection.read) = (Some(outcome), read);
        }
    }

    fn connection(&mut self, server: usize, id: u64) -> &mut Connection {
        self.servers[server].connections.entry(id).or_default()
    }

    /// The handles, for what is done without this.
    pub(super) fn handles(&self) -> Vec<Handle> {
        self.servers
            .iter()
            .map(|server| server.handle.clone())
            .collect()
    }
}

/// Looks after the servers, after a step.
pub(super) fn after_step(world: &World) {
    let mut notes = Vec::new();
    let mut complaints = Vec::new();
    let mut watch = world.watch();
    let count = watch.servers.len();
    for (number, server) in watch.servers.iter_mut().enumerate() {
        let stats = server.handle.stats();
        if !balances(&stats) {
            complaints.push((
                "unbalanced",
                format!("the account of server {number} is {stats:?}"),
            ));
        }
        let shared = server.handle.shared().clone();
        let limit = shared.permits.is_limited() && !shared.has_permit();
        server.has_met_limit |= limit;
        while let Ok(event) = server.events.try_recv() {
            server.take(event, number, world.now(), &mut notes, &mut complaints);
        }
        let is_told =
            shared.latch.request().shut.is_some() && shared.latch.phase() == Phase::Draining;
        if is_told && !server.is_told {
            server.is_told = true;
            world.on_network(|network, _| server.told(&shared, network, world));
            let is_open = world.on_network(|network, _| network.takes_peers());
            if count == 1 && is_open {
                complaints.push((
                    "told too early",
                    "the door is not shut when connections are asked to end".into(),
                ));
            }
        }
    }
    drop(watch);
    for (who, what) in notes {
        world.note(who, &what, None);
    }
    complain(world, complaints);
}

/// Looks after the servers when nothing can go on, before time passes.
pub(super) fn before_time_passes(world: &World) {
    let mut complaints = Vec::new();
    let watch = world.watch();
    for (number, server) in watch.servers.iter().enumerate() {
        let shared = server.handle.shared();
        let phase = shared.latch.phase();
        if phase == Phase::Closed {
            continue;
        }
        let request = shared.latch.request().clone();
        let deadline = shared.deadline().filter(|_| phase >= Phase::Draining);
        if request.aborted.is_some() {
            complaints.push((
                "late abort",
                format!("server {number} was aborted, and is not closed"),
            ));
        } else if deadline.is_some_and(|deadline| deadline <= world.instant()) {
            complaints.push((
                "late",
                format!("server {number} is not closed at its deadline"),
            ));
        } else if server.is_told && phase == Phase::Draining && shared.config.spread.is_zero() {
            for (id, connection) in &server.connections {
                if let Some(state) = shared.registry.find(*id) {
                    let waited = connection
                        .wire
                        .and_then(|wire| watch.reader_waited.get(&wire));
                    complaints.extend(connection.idle(
                        *id,
                        &state,
                        waited == Some(&connection.stepped),
                    ));
                }
            }
        }
    }
    drop(watch);
    complain(world, complaints);
}

/// Looks after the servers at the end of a run.
pub(super) fn at_the_end(world: &World) {
    let mut complaints = Vec::new();
    let watch = world.watch();
    for (number, server) in watch.servers.iter().enumerate() {
        let stats = server.handle.stats();
        if server.closed_at.is_none() {
            complaints.push((
                "not closed",
                format!("server {number} is {}", server.handle.state()),
            ));
        }
        if stats.active > 0 || stats.tracked > 0 {
            let left = format!(
                "{} connections and {} tracked futures",
                stats.active, stats.tracked
            );
            complaints.push((
                "left",
                format!("server {number} has {left} when all is over"),
            ));
        }
        let panicked = |it: &&Connection| it.outcome == Some(Outcome::Panicked);
        let panicked = server.connections.values().filter(panicked).count() as u64;
        if stats.panicked > panicked || stats.panicked < panicked && stats.aborted == 0 {
            let text = format!(
                "{panicked} handlers panicked, and {} are counted",
                stats.panicked
            );
            complaints.push(("miscounted", text));
        }
        let config = &server.handle.shared().config;
        world.on_network(|network, _| {
            let accepted: u64 = network.doors.iter().map(|door| door.accepted).sum();
            if watch.servers.len() == 1 && accepted != stats.accepted {
                let text = format!(
                    "{accepted} peers were accepted, and {} are counted",
                    stats.accepted
                );
                complaints.push(("miscounted", text));
            }
            for connection in server.connections.values() {
                let Some(wire) = connection.wire.and_then(|wire| network.wires.get(wire)) else {
                    continue;
                };
                let limit = match connection.cause {
                    Some(Cause::IdleTimeout | Cause::FirstByteTimeout | Cause::MaxAge) => {
                        config.linger.min(config.linger_total)
                    }
                    _ => config.linger_total,
                };
                let [ours, peers] = &wire.ends;
                let complaint = connection.cut_off(wire.number, ours, peers, limit);
                complaints.extend(
                    complaint
                        .into_iter()
                        .chain(connection.unserved(wire.number)),
                );
            }
        });
        world.looked("the limit was reached", server.has_met_limit);
    }
    // A listener of a scenario's own may be closed as it likes.
    let has_servers = !watch.servers.is_empty();
    drop(watch);
    let lost = world.on_network(|network, _| std::mem::take(&mut network.lost_in_queue));
    for wire in lost.into_iter().filter(|_| has_servers) {
        complaints.push((
            "lost in the queue",
            format!("peer {wire} was queued when its listener was closed"),
        ));
    }
    complain(world, complaints);
}

fn complain(world: &World, complaints: Vec<Complaint>) {
    for (kind, text) in complaints {
        world.fail(kind, text);
    }
}

fn balances(stats: &Stats) -> bool {
    let ended = stats.completed + stats.failed + stats.panicked;
    stats.accepted == ended + stats.aborted + stats.detached + stats.rejected + stats.active
}

impl Watched {
    fn take(
        &mut self,
        event: ServerEvent,
        number: usize,
        now: Duration,
        notes: &mut Vec<(Who, String)>,
        complaints: &mut Vec<Complaint>,
    ) {
        match event {
            ServerEvent::State(state) => {
                notes.push((Who::Server(number), format!("is {state}")));
                let shared = self.handle.shared();
                // By the event, not by the phase: of one step's events this may not be the last.
                if state == State::Closed {
                    self.closed_at = Some(now);
                    // Where nothing happened at the deadline itself, time has passed it by.
                    if shared
                        .deadline()
                        .is_some_and(|deadline| deadline < shared.clock.now())
                    {
                        let text = format!("server {number} is closed after its deadline");
                        complaints.push(("late", text));
                    }
                }
            }
            ServerEvent::Opened { id, peer } => {
                self.connections.entry(id).or_default().wire = wire(&peer);
                if self.closed_at.is_some() {
                    let text = format!("{peer} was accepted by a closed server");
                    complaints.push(("served after the end", text));
                }
            }
            ServerEvent::Closed { id, cause, .. } => {
                let connection = self.connections.entry(id).or_default();
                let who = Who::Connection(connection.wire.unwrap_or(0));
                notes.push((who, format!("ended: {cause:?}")));
                connection.cause = Some(cause);
            }
            #[cfg(feature = "proxy")]
            ServerEvent::Proxied { id, peer } => {
                let wire = self.connections.entry(id).or_default().wire;
                let who = Who::Connection(wire.unwrap_or(0));
                notes.push((who, format!("comes from {peer}")));
            }
            ServerEvent::Missed(count) => {
                notes.push((Who::World, format!("missed {count} events")));
            }
        }
    }

    /// Connections are asked to end: what each is at now.
    fn told(&mut self, shared: &Arc<Shared>, network: &Network, world: &World) {
        for (id, connection) in &mut self.connections {
            let Some(state) = shared.registry.find(*id) else {
                continue;
            };
            let Some(wire) = connection.wire.and_then(|wire| network.wires.get(wire)) else {
                continue;
            };
            let end = &wire.ends[SERVER];
            // What a handler has not been able to read is no matter of this promise.
            if connection.outcome.is_none() && !state.has(flag::QUEUED) {
                connection.arrived_when_told = Some(end.arrived);
            }
            let is_running =
                connection.outcome.is_none() && !state.has(flag::QUEUED | flag::CLOSING);
            let reads = end.arrived - end.inbox.len() as u64;
            world.looked("a drain met a queued connection", state.has(flag::QUEUED));
            world.looked("a drain met one being closed", state.has(flag::CLOSING));
            world.looked(
                "a drain met an idle connection",
                is_running && !state.is_busy(),
            );
            world.looked(
                "a drain met a busy connection",
                is_running && state.is_busy(),
            );
            world.looked(
                "a drain met one before its first byte",
                is_running && end.arrived == 0,
            );
            world.looked(
                "a drain met unread input",
                is_running && !end.inbox.is_empty(),
            );
            let waits = state.writer.has(HalfState::WAITING);
            world.looked("a drain met a write that waits", is_running && waits);
            let half =
                is_running && reads > 0 && state.reader.has(HalfState::WAITING) && state.is_busy();
            world.looked("a drain met half a message", half);
        }
    }
}

impl Connection {
    /// What is wrong where an idle connection waits on in a drain; `reads` where its handler, polled
    /// last, has found nothing to read.
    fn idle(&self, id: u64, state: &ConnectionState, reads: bool) -> Option<Complaint> {
        let past = flag::DRAIN_ENDED | flag::PEER_ENDED | flag::ENDED_BY_SERVER | flag::QUEUED;
        let fresh = state.has(flag::FIRST_BYTE_GRACE)
            && state.received.load(std::sync::atomic::Ordering::SeqCst) == 0;
        let waits = state.has(flag::READER) && state.reader.has(HalfState::WAITING) && reads;
        let excused = state.has(past | flag::NEVER_IDLE) || fresh || self.is_broken;
        if !waits || excused || self.outcome.is_some() || state.is_busy() {
            return None;
        }
        let who = format!("connection {id}, of {},", state.peer());
        Some((
            "idle and waited for",
            format!("{who} is idle in a drain, and its read waits"),
        ))
    }

    /// What is wrong where a peer did not get all that was written, and the end.
    fn cut_off(&self, wire: usize, ours: &End, peers: &End, limit: Duration) -> Option<Complaint> {
        let is_orderly = !matches!(self.cause, None | Some(Cause::Aborted | Cause::Rejected));
        let lingered = match (ours.finished_at, ours.closed_at) {
            (Some(finished), Some(closed)) => closed - finished >= limit,
            _ => false,
        };
        // Who breaks off, or goes away without having read all, has what it wanted.
        let peer_left = peers.is_gone || ours.is_reset || peers.is_closed && !peers.is_ended;
        if !is_orderly || lingered || peer_left {
            return None;
        }
        if peers.arrived < ours.written {
            let (written, arrived) = (ours.written, peers.arrived);
            let text =
                format!("{written} bytes were written to peer {wire}, and {arrived} arrived");
            return Some(("lost bytes", text));
        }
        let text = || format!("peer {wire} has not seen the end of its connection");
        (!peers.is_ended).then(|| ("no end", text()))
    }

    /// What is wrong where a drain has ended a connection that had input.
    fn unserved(&self, wire: usize) -> Option<Complaint> {
        let arrived = self.arrived_when_told?;
        let is_lost = self.cause == Some(Cause::Drain) && self.read < arrived && !self.is_broken;
        let text = || {
            format!(
                "of peer {wire}, {arrived} bytes had arrived before the drain, and {} were read",
                self.read
            )
        };
        is_lost.then(|| ("unserved input", text()))
    }
}

/// A table of the connections, as both sides have them.
pub(super) fn sockets(network: &Network) -> String {
    let mut table = String::new();
    for wire in &network.wires {
        let [server, peer] = [&wire.ends[SERVER], &wire.ends[PEER]].map(End::to_string);
        let line = format!(
            "peer {:<3} {:>8.1?}  {server:<46} {peer}\n",
            wire.number, wire.latency
        );
        table.push_str(&line);
    }
    table
}
