//! The tracked connections of one server: a record each, and the ledger that balances.
//!
//! 1. A connection is in the ledger from the moment `accept` returned it until its socket is
//!    closed; the ledger's counts change together, under one lock.
//! 2. On the hot path nobody takes that lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::Duration;

use async_channel::Receiver;
use event_listener::Event;

use crate::handle::Shared;
use crate::lifecycle::State;
use crate::report::{AcceptErrors, Limited, Stats, Straggler, Waiting};
use crate::shared::connection::{Arrival, Record, bit};
use crate::sync::{lock, notify};

use crate::report::{Cause, ConnectionInfo};
use crate::shared::events::{Outbox, ServerEvent, Subscribers};
use crate::shared::id_map::ById;

/// How a connection ended, as the ledger counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Failed,
    Panicked,
    Aborted,
    Detached,
    Rejected,
}

#[derive(Debug)]
pub(crate) struct Group {
    ledger: Mutex<Ledger>,
    subscribers: Mutex<Subscribers>,
    /// Notified when a place may have become free, or a pause has ended.
    pub(crate) vacancy: Event,
    /// Notified when the group may be empty.
    pub(crate) empty: Event,
    /// Connections that hold a place.
    seated: AtomicUsize,
    max: AtomicUsize,
    paused: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    records: ById<Weak<Record>>,
    /// How many of them come from one address; kept only where that is limited.
    by_peer: HashMap<IpAddr, usize>,
    accepted: u64,
    completed: u64,
    failed: u64,
    panicked: u64,
    aborted: u64,
    detached: u64,
    rejected: u64,
    peak: u64,
    tracked: u64,
    /// Of those that ended.
    bytes_in: u64,
    bytes_out: u64,
    accept_errors: AcceptErrors,
    limited: Limited,
    /// Connections whose handlers wait for the server to close.
    insiders: u64,
    /// The drain was announced: it is to whoever comes now, too.
    told: bool,
    /// Everybody was cut: whoever comes now is, too.
    cut: bool,
    /// The server's task is gone; nobody else will note that the group is empty.
    pub(crate) orphaned: bool,
    /// Accept loops beside the server's own task. They may be about to take somebody in.
    doorkeepers: u64,
    pub(crate) stragglers: Vec<Straggler>,
    outbox: Outbox,
}

impl Group {
    pub(crate) fn new(max_connections: Option<usize>) -> Self {
        Self {
            ledger: Mutex::default(),
            subscribers: Mutex::default(),
            vacancy: Event::new(),
            empty: Event::new(),
            seated: AtomicUsize::new(0),
            max: AtomicUsize::new(max_connections.unwrap_or(usize::MAX)),
            paused: AtomicBool::new(false),
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub(crate) fn subscribe(&self) -> Receiver<ServerEvent> {
        let mut subscribers = lock(&self.subscribers);
        // What happened before is the others' to hear.
        let events = self.ledger().outbox.take();
        subscribers.tell(events);
        let receiver = subscribers.add(&mut self.ledger().outbox);
        drop(subscribers);
        self.deliver();
        receiver
    }

    pub(crate) fn publish(&self, state: State) {
        self.ledger().outbox.state(state);
        self.deliver();
    }

    /// Tells what is in the outbox. Who finds somebody at it leaves it to them: they look again
    /// after they have let go.
    fn deliver(&self) {
        while !self.ledger().outbox.is_empty() {
            let mut subscribers = match self.subscribers.try_lock() {
                Ok(subscribers) => subscribers,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let events = self.ledger().outbox.take();
            subscribers.tell(events);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.seated.load(SeqCst) >= self.max.load(SeqCst)
    }

    pub(crate) fn set_max(&self, max_connections: Option<usize>) {
        self.max
            .store(max_connections.unwrap_or(usize::MAX), SeqCst);
        notify(&self.vacancy);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(SeqCst)
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, SeqCst);
        notify(&self.vacancy);
    }

    /// Takes a peer in. From here on it is counted, wherever it ends.
    pub(crate) fn open(&self, server: &Arc<Shared>, arrival: Arrival) -> Arc<Record> {
        let accepted = server.uptime();
        let mut ledger = self.ledger();
        ledger.accepted += 1;
        let mut word = bit::READER | bit::WRITER | bit::HELD;
        if ledger.told {
            word |= bit::TOLD;
            if !server.config.first_byte_grace.is_zero() {
                word |= bit::GRACE;
            }
        }
        if ledger.cut {
            word |= bit::ABORT;
        }
        let id = ledger.accepted;
        let record = Arc::new(Record::new(id, server.clone(), arrival, word, accepted));
        ledger.records.push(record.id, Arc::downgrade(&record));
        ledger.peak = ledger.peak.max(ledger.records.len() as u64);
        ledger.outbox.opened(&record);
        let told = ledger.outbox.is_empty();
        drop(ledger);
        if !told {
            self.deliver();
        }
        record
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.max.load(SeqCst) < usize::MAX
    }

    /// Takes a connection's place from it.
    pub(crate) fn unseat(&self, record: &Record) {
        if record.set(bit::HELD) & bit::HELD == 0 {
            self.seated.fetch_sub(1, SeqCst);
            notify(&self.vacancy);
        }
    }

    /// Gives a connection its place; `false` where there is none.
    pub(crate) fn seat(&self, record: &Record) -> bool {
        let one_more = |seated| (seated < self.max.load(SeqCst)).then_some(seated + 1);
        let seated = self.seated.fetch_update(SeqCst, SeqCst, one_more).is_ok();
        if seated {
            record.clear(bit::HELD);
        }
        seated
    }

    /// Takes a connection's part of its peer's share; `false` where that is used up.
    pub(crate) fn take_share(&self, record: &Record, share: usize) -> bool {
        let Some(ip) = record.peer().ip() else {
            return true;
        };
        let mut ledger = self.ledger();
        let count = ledger.by_peer.entry(ip).or_default();
        let has_share = *count < share;
        if has_share {
            *count += 1;
            record.set(bit::SHARES);
        }
        has_share
    }

    /// Enters the end of a connection, whose socket is closed, into the ledger, once; `true` where
    /// that leaves the server to be closed by whoever is last. Where nobody listens to what happens,
    /// nobody asks for the `uptime`.
    pub(crate) fn close(
        &self,
        entry: Entry,
        ending: Ending,
        cause: Cause,
        uptime: impl FnOnce() -> Duration,
    ) -> bool {
        let mut ledger = self.ledger();
        let mut age = Duration::ZERO;
        if ledger.outbox.is_heard() {
            // Not under the lock: the clock is somebody else's code.
            drop(ledger);
            age = uptime().saturating_sub(entry.accepted);
            ledger = self.ledger();
        }
        ledger.records.remove(entry.id);
        *match ending {
            Ending::Completed => &mut ledger.completed,
            Ending::Failed => &mut ledger.failed,
            Ending::Panicked => &mut ledger.panicked,
            Ending::Aborted => &mut ledger.aborted,
            Ending::Detached => &mut ledger.detached,
            Ending::Rejected => &mut ledger.rejected,
        } += 1;
        match cause {
            Cause::IdleTimeout => ledger.limited.idle += 1,
            Cause::FirstByteTimeout => ledger.limited.first_byte += 1,
            Cause::MaxAge => ledger.limited.age += 1,
            _ => {}
        }
        if let Some(ip) = entry.shares {
            if let Some(count) = ledger.by_peer.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    ledger.by_peer.remove(&ip);
                }
            }
        }
        if entry.insider {
            ledger.insiders -= 1;
        }
        if entry.seated {
            self.seated.fetch_sub(1, SeqCst);
        }
        ledger.outbox.closed(&entry, cause, age);
        let quiet = ledger.is_quiet();
        let last = ledger.orphaned && ledger.is_empty();
        let told = ledger.outbox.is_empty();
        drop(ledger);
        if !told {
            self.deliver();
        }
        notify(&self.vacancy);
        if quiet {
            notify(&self.empty);
        }
        last
    }

    /// Announces the drain to everybody inside, and to whoever comes through the sweep.
    pub(crate) fn tell_all(&self, uptime: Duration) {
        self.ledger().told = true;
        self.tell_open(uptime);
    }

    /// Announces the drain to those inside now.
    pub(crate) fn tell_open(&self, uptime: Duration) {
        for record in self.records() {
            record.tell(uptime);
        }
    }

    /// Cuts everybody, and whoever comes from now on.
    pub(crate) fn abort_all(&self) {
        self.ledger().cut = true;
        self.abort_open();
    }

    /// Cuts those inside now.
    pub(crate) fn abort_open(&self) {
        for record in self.records() {
            record.abort();
        }
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Record>> {
        self.ledger().records.get(id)?.upgrade()
    }

    /// Strong for a moment only: a record's last owner closes its socket.
    fn records(&self) -> Vec<Arc<Record>> {
        self.ledger()
            .records
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Who is left, in the order they came.
    pub(crate) fn stragglers(&self, uptime: Duration) -> Vec<Straggler> {
        self.records()
            .iter()
            .map(|record| record.straggler(uptime))
            .collect()
    }

    /// Counts those that cannot be dropped, because they block their threads or wait behind one
    /// that does, as aborted.
    pub(crate) fn write_off(&self, uptime: Duration) {
        for record in self.records() {
            let blocked = record.is_inside();
            let Some(entry) = self.begin_end(&record) else {
                continue;
            };
            if blocked {
                let mut ledger = self.ledger();
                if let Some(straggler) = ledger.stragglers.iter_mut().find(|s| s.id == record.id) {
                    straggler.waiting = Waiting::Blocked;
                }
            }
            self.close(entry, Ending::Aborted, Cause::Aborted, || uptime);
        }
        let mut ledger = self.ledger();
        ledger.tracked = 0;
    }

    /// The connections whose handlers a thread is inside of now, and whom nobody has been told of,
    /// each with the number of its poll.
    #[cfg(target_os = "linux")]
    pub(crate) fn inside(&self) -> Vec<(u64, u32)> {
        let mut inside = Vec::new();
        for record in self.records() {
            if record.is_inside() && !record.has(bit::BLOCKED) {
                inside.push((record.id, record.polls()));
            }
        }
        inside
    }

    /// Tells the operator of handlers that block their threads, once each: those that are where
    /// they were. The others had just something to do.
    #[cfg(target_os = "linux")]
    pub(crate) fn name_blocked(&self, inside: &[(u64, u32)]) {
        for &(id, polls) in inside {
            let Some(record) = self.find(id) else {
                continue;
            };
            if polls % 2 == 1 && record.polls() == polls {
                record.set(bit::BLOCKED);
                log::warn!(
                    target: "gracious", conn = record.id, peer:% = record.peer();
                    "the handler of connection {} from {} blocks a thread", record.id, record.peer(),
                );
            }
        }
    }

    pub(crate) fn count_accept_error(&self, count: impl FnOnce(&mut AcceptErrors)) {
        count(&mut self.ledger().accept_errors);
    }

    pub(crate) fn post_doorkeeper(&self) {
        self.ledger().doorkeepers += 1;
    }

    pub(crate) fn relieve_doorkeeper(&self) {
        self.ledger().doorkeepers -= 1;
        notify(&self.vacancy);
        notify(&self.empty);
    }

    /// A future that is awaited at a drain, and counted apart.
    pub(crate) fn track(&self) {
        self.ledger().tracked += 1;
    }

    pub(crate) fn untrack(&self) {
        let mut ledger = self.ledger();
        ledger.tracked = ledger.tracked.saturating_sub(1);
        let quiet = ledger.is_quiet();
        drop(ledger);
        if quiet {
            notify(&self.empty);
        }
    }

    /// A handler begins to wait for its own server; `false` where its connection is no more.
    pub(crate) fn enter(&self, record: &Record) -> bool {
        let mut ledger = self.ledger();
        let word = record.set(bit::INSIDER);
        if word & bit::COUNTED != 0 {
            return false;
        }
        record.count_waits(|waits| waits + 1);
        if word & bit::INSIDER == 0 {
            ledger.insiders += 1;
        }
        drop(ledger);
        notify(&self.empty);
        true
    }

    pub(crate) fn leave(&self, record: &Record) {
        let mut ledger = self.ledger();
        if record.count_waits(|waits| waits - 1) > 0 {
            return;
        }
        // Where the connection's end has come in between, `close` takes the insider off.
        if record.clear(bit::INSIDER) & bit::COUNTED == 0 {
            ledger.insiders -= 1;
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let ledger = self.ledger();
        let records: Vec<_> = ledger.records.values().filter_map(Weak::upgrade).collect();
        let stats = ledger.stats(&records);
        // The records go after the lock: the last owner of one runs destructors.
        drop(ledger);
        stats
    }

    pub(crate) fn connections(&self, uptime: Duration) -> Vec<ConnectionInfo> {
        let info = |record: Arc<Record>| ConnectionInfo {
            id: record.id,
            peer: record.peer(),
            age: record.age(uptime),
            busy: record.is_busy(),
            waiting: record.waiting(),
            bytes_in: record.received.load(Relaxed),
            bytes_out: record.sent.load(Relaxed),
        };
        self.records().into_iter().map(info).collect()
    }
}

impl Ledger {
    pub(crate) fn active(&self) -> u64 {
        self.records.len() as u64
    }

    /// Nobody is left, or only those who wait for exactly that.
    pub(crate) fn is_quiet(&self) -> bool {
        self.active() <= self.insiders && self.tracked == 0 && !self.is_attended()
    }

    /// Connections and tracked futures.
    pub(crate) fn left(&self) -> u64 {
        self.active() + self.tracked
    }

    /// Nobody is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.tracked == 0 && !self.is_attended()
    }

    /// Somebody may yet be taken in.
    pub(crate) fn is_attended(&self) -> bool {
        self.doorkeepers > 0
    }

    fn stats(&self, records: &[Arc<Record>]) -> Stats {
        let moved = |count: fn(&Record) -> &AtomicU64| -> u64 {
            // The bytes of the others are in the ledger.
            let open = records.iter().filter(|record| !record.has(bit::COUNTED));
            open.map(|record| count(record).load(Relaxed)).sum()
        };
        let errors = self.accept_errors;
        Stats {
            accepted: self.accepted,
            completed: self.completed,
            failed: self.failed,
            panicked: self.panicked,
            aborted: self.aborted,
            detached: self.detached,
            rejected: self.rejected,
            active: self.active(),
            peak: self.peak,
            tracked: self.tracked,
            accept_errors: errors.peer + errors.shortage + errors.listener,
            accept_errors_by: errors,
            limited: self.limited,
            bytes_in: self.bytes_in + moved(|record| &record.received),
            bytes_out: self.bytes_out + moved(|record| &record.sent),
        }
    }
}

/// What the ledger needs of a connection that ends, apart from its record: that is dropped first,
/// so that the socket is closed when the end is counted.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) accepted: Duration,
    seated: bool,
    insider: bool,
    shares: Option<IpAddr>,
}

impl Group {
    /// Begins the end of a connection; `None` where that has been done. Its bytes move from its
    /// record to the ledger, so that no sum ever goes back.
    pub(crate) fn begin_end(&self, record: &Record) -> Option<Entry> {
        let mut ledger = self.ledger();
        let word = record.set(bit::COUNTED);
        if word & bit::COUNTED != 0 {
            return None;
        }
        let entry = Entry {
            id: record.id,
            bytes_in: record.received.load(Relaxed),
            bytes_out: record.sent.load(Relaxed),
            accepted: record.accepted(),
            seated: word & bit::HELD == 0,
            insider: word & bit::INSIDER != 0,
            shares: (word & bit::SHARES != 0)
                .then(|| record.peer().ip())
                .flatten(),
        };
        ledger.bytes_in += entry.bytes_in;
        ledger.bytes_out += entry.bytes_out;
        Some(entry)
    }
}
