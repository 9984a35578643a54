//! The way to a server from everywhere else: handlers, threads, signal tasks.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_channel::Receiver;
use futures_lite::future;
use pin_project_lite::pin_project;

use crate::accept::{Blame, FAILURES_IN_A_ROW, blame};
use crate::address::Address;
use crate::config::{Config, zero};
use crate::connection::close;
use crate::connection::task;
use crate::drain;
use crate::lifecycle::{Latch, Phase, Reason, State, earliest};
use crate::listener::Bound;
use crate::listener::set::{Accepted, Door};
use crate::progress::DrainProgress;
use crate::report::Cause;
use crate::report::{ConnectionInfo, ListenerInfo};
use crate::report::{Report, Stats};
use crate::runtime::{Clock, Runtime};
use crate::shared::connection::{Arrival, Record, bit};
use crate::shared::events::ServerEvent;
use crate::shared::registry::{Ending, Entry, Group};
use crate::sync::{lock, notify};
use crate::transport::{Engine, Transport};
#[cfg(target_os = "linux")]
use crate::workers::Pool;

/// A server's handle: stops it, watches it, and tells about it.
///
/// It can be cloned and sent anywhere. No method but the futures waits, so all can be called from a
/// handler, from a thread, from a task that waits for signals (not from a raw signal handler, which
/// may not take locks). A handle keeps nothing alive: a server is closed when it is, and its handles
/// then go on telling how it ended.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    /// The connection whose handler asked for this handle.
    inside: Option<u64>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            inside: None,
        }
    }

    pub(crate) fn inside(record: &Record) -> Self {
        Self {
            shared: record.server.clone(),
            inside: Some(record.id),
        }
    }

    /// Asks the server to stop gracefully.
    ///
    /// The listeners stop taking peers and are closed; idle connections see the end of their input,
    /// busy ones finish; what is left at the [`deadline`](crate::Builder::deadline) is aborted. It
    /// returns at once, may be called any number of times, from several threads, and before the
    /// server is served. The connections are not touched by this call: they are told when the door
    /// is shut.
    pub fn shutdown(&self) {
        self.shared.ask(Reason::Requested, None);
    }

    /// [`shutdown`](Self::shutdown), with a reason for the report and the log. The first is kept.
    pub fn shutdown_because(&self, reason: impl Into<Reason>) {
        self.shared.ask(reason.into(), None);
    }

    /// [`shutdown`](Self::shutdown), with a deadline `span` from now. The earliest deadline of all
    /// that were given holds; a lame duck's time is cut short by it.
    pub fn shutdown_within(&self, span: Duration) {
        let before = self.shared.clock.now().checked_add(span);
        self.shared.ask(Reason::Requested, before);
    }

    /// Ends the server now: every handler is dropped, every socket closed.
    ///
    /// The handlers' destructors have run when the server is closed, those of handlers that block
    /// their threads excepted.
    pub fn abort(&self) {
        self.shared.abort(Reason::Requested);
    }

    /// Takes no new peers until [`resume`](Self::resume): they wait in the kernel's queue. Those
    /// inside are not touched. A shutdown of a paused server serves those who wait, without a lame
    /// duck's time.
    pub fn pause(&self) {
        self.shared.set_paused(true);
    }

    /// Takes new peers again.
    pub fn resume(&self) {
        self.shared.set_paused(false);
    }

    /// Asks the connections that are open now to come to an end, as a drain does: idle ones see the
    /// end of their input, busy ones finish. There is no deadline; serving goes on.
    pub fn close_connections(&self) {
        self.shared.group.tell_open(self.shared.uptime());
    }

    /// Cuts the connections that are open now; serving goes on.
    pub fn abort_connections(&self) {
        self.shared.group.abort_open();
    }

    /// Cuts one connection; `false` if there is none of this id.
    pub fn abort_connection(&self, id: u64) -> bool {
        let found = self.shared.group.find(id);
        if let Some(record) = &found {
            record.abort();
        }
        found.is_some()
    }

    /// Changes [`max_connections`](crate::Builder::max_connections); those inside stay.
    ///
    /// # Errors
    /// `InvalidInput` for a limit of 0: to take nobody, [`pause`](Self::pause).
    pub fn set_max_connections(&self, limit: impl Into<Option<usize>>) -> io::Result<()> {
        let limit = limit.into();
        if limit == Some(0) {
            return Err(zero("max_connections"));
        }
        self.shared.group.set_max(limit);
        Ok(())
    }

    /// Where the server is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Whether the server takes new peers and means to go on: it is `false` from the first request
    /// to stop, before the door is shut. What a readiness probe wants to know.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.state() == State::Serving
    }

    /// Waits until somebody asks the server to stop.
    ///
    /// The future is owned and can be dropped at any time.
    pub fn shutdown_requested(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let shared = self.shared.clone();
        async move { shared.latch.reached(Phase::Draining).await }
    }

    /// Waits until the server is closed. It does not ask for it.
    ///
    /// In a handler, on the handle that its connection gave, it waits for all connections but those
    /// whose handlers wait likewise, which the report then counts as `active`; so it does not wait
    /// for itself.
    ///
    /// The future is owned and can be dropped at any time; the server goes on.
    pub fn closed(&self) -> impl Future<Output = Report> + Send + 'static + use<> {
        let shared = self.shared.clone();
        let inside = self.inside;
        async move {
            match inside
                .and_then(|id| shared.group.find(id))
                .and_then(|it| Inside::enter(&it))
            {
                Some(inside) => inside.quiet(&shared).await,
                None => drain::finished(shared).await,
            }
        }
    }

    /// The addresses the server was bound to, for as long as the handle lives.
    #[must_use]
    pub fn local_addrs(&self) -> &[Address] {
        &self.shared.addrs
    }

    /// How many connections are open.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.shared.group.ledger().active()
    }

    /// The counts as of now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.group.stats()
    }

    /// The open connections, in the order they came.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.group.connections(self.shared.uptime())
    }

    /// The listeners, in the order of [`local_addrs`](Self::local_addrs); none once the door is
    /// closed.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerInfo> {
        self.shared.listeners()
    }

    /// How the drain goes: how many are left, and how much time.
    ///
    /// The stream begins with the drain, has an item whenever the number changes and at least ten
    /// times a second, and ends, with one of 0, when the server is closed.
    pub fn drain_progress(&self) -> DrainProgress {
        DrainProgress::new(self.shared.clone())
    }

    /// What happens from now on. Every receiver is told everything; the server never waits for one,
    /// and tells a slow one how many events it missed. The channel ends when the server is closed.
    #[must_use]
    pub fn events(&self) -> Receiver<ServerEvent> {
        if self.state() == State::Closed {
            // The other end is gone already.
            return async_channel::bounded(1).1;
        }
        self.shared.group.subscribe()
    }

    /// Ties a future to the server: a drain waits for it, an abort drops what is inside.
    ///
    /// It runs where it is polled: awaited in place, or spawned. It is counted as
    /// [`tracked`](Stats::tracked) from this call until it has ended or is dropped, apart from the
    /// connections.
    pub fn track<F: Future>(&self, future: F) -> Tracked<F> {
        self.shared.group.track();
        Tracked {
            future: Some(future),
            aborted: Some(Box::pin(aborted(self.shared.clone()))),
            seat: Some(Track(self.shared.clone())),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("state", &self.state())
            .field("local_addrs", &self.local_addrs())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

async fn aborted(shared: Arc<Shared>) {
    shared.latch.reached(Phase::Aborting).await;
}

pin_project! {
    /// The future of [`Handle::track`]: `None` where an abort dropped what was inside.
    #[must_use = "a tracked future does nothing unless polled, and a drain waits for it"]
    pub struct Tracked<F> {
        #[pin]
        future: Option<F>,
        aborted: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
        seat: Option<Track>,
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let aborted = this
            .aborted
            .as_mut()
            .is_none_or(|aborted| aborted.as_mut().poll(cx).is_ready());
        let polled = match this.future.as_mut().as_pin_mut() {
            Some(future) if !aborted => match future.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(output) => Some(output),
            },
            _ => None,
        };
        // What is inside is gone before it is no longer counted.
        this.future.set(None);
        *this.aborted = None;
        *this.seat = None;
        Poll::Ready(polled)
    }
}

impl<F> fmt::Debug for Tracked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").finish_non_exhaustive()
    }
}

struct Track(Arc<Shared>);

impl Drop for Track {
    fn drop(&mut self) {
        self.0.group.untrack();
        self.0.conclude_if_orphaned();
    }
}

/// A handler that waits for its own server.
struct Inside {
    server: Arc<Shared>,
    id: u64,
}

impl Inside {
    fn enter(record: &Arc<Record>) -> Option<Self> {
        let server = record.server.clone();
        server.group.enter(record).then(|| Self {
            id: record.id,
            server,
        })
    }

    /// Waits until nobody is left but those who wait for that.
    async fn quiet(&self, shared: &Shared) -> Report {
        loop {
            let empty = shared.group.empty.listen();
            let changed = shared.latch.listen();
            if shared.latch.phase() == Phase::Closed {
                return shared.report();
            }
            // Once quiet it stays so: nobody comes any more. So all who wait are told the same.
            if shared.door_is_closed() && shared.group.ledger().is_quiet() {
                shared.quiet.get_or_init(|| shared.account());
                notify(&shared.group.empty);
            }
            if let Some(report) = shared.quiet.get() {
                return report.clone();
            }
            future::or(empty, changed).await;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(record) = self.server.group.find(self.id) {
            self.server.group.leave(&record);
        }
    }
}

/// What a server's task, its connections and its handles have in common.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Box<dyn Clock>,
    pub(crate) latch: Latch,
    pub(crate) group: Group,
    addrs: Vec<Address>,
    /// One a shard, each with an accept loop of its own; empty once the door is closed.
    doors: Vec<Mutex<Door>>,
    /// Whose turn it is to get a connection that came through no shard's own socket.
    #[cfg(target_os = "linux")]
    turn: AtomicUsize,
    /// Held by the loop that takes somebody in where doors share a limit: whose turn it is.
    gate: Mutex<usize>,
    /// Those whom the limit keeps out, and that were taken in all the same: by the sweep, or while
    /// the limit was lowered.
    held: Mutex<VecDeque<Arc<Record>>>,
    /// How many they are, stored under the lock: mostly none, which then needs no lock to be known.
    holding: AtomicUsize,
    /// When we last lacked something to accept with, in nanoseconds since the server was bound; 0
    /// where we do not.
    pub(crate) shortage: AtomicU64,
    bound: Instant,
    /// Since when somebody serves this server; set, too, where nobody ever will.
    served: OnceLock<Instant>,
    failure: Mutex<Option<io::Error>>,
    report: OnceLock<Report>,
    /// What handlers that wait inside are told, once only they are left.
    quiet: OnceLock<Report>,
    /// The threads that serve, where they are the server's own.
    #[cfg(target_os = "linux")]
    crew: OnceLock<Crew>,
    /// The servers that stop when this one does.
    pub(crate) companions: Mutex<Vec<Weak<Self>>>,
}

#[cfg(target_os = "linux")]
struct Crew {
    /// One a shard, after those that have no handlers.
    pools: Vec<Arc<Pool>>,
    /// How many of them only deal connections out.
    dealers: usize,
}

impl Shared {
    pub(crate) fn new(
        runtime: &impl Runtime,
        config: Config,
        listeners: Vec<Vec<Box<dyn Bound>>>,
    ) -> io::Result<Self> {
        let addrs = listeners
            .iter()
            .map(|sockets| sockets[0].local_addr())
            .collect::<io::Result<_>>()?;
        Ok(Self {
            latch: Latch::default(),
            group: Group::new(config.max_connections),
            config,
            clock: Box::new(runtime.clone()),
            addrs,
            doors: Door::all(listeners).into_iter().map(Mutex::new).collect(),
            #[cfg(target_os = "linux")]
            turn: AtomicUsize::new(0),
            gate: Mutex::new(0),
            held: Mutex::default(),
            holding: AtomicUsize::new(0),
            shortage: AtomicU64::new(0),
            bound: Runtime::now(runtime),
            served: OnceLock::new(),
            failure: Mutex::default(),
            report: OnceLock::new(),
            quiet: OnceLock::new(),
            #[cfg(target_os = "linux")]
            crew: OnceLock::new(),
            companions: Mutex::default(),
        })
    }

    pub(crate) fn addrs(&self) -> &[Address] {
        &self.addrs
    }

    /// How long ago the server was bound.
    pub(crate) fn uptime(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.bound)
    }

    pub(crate) fn state(&self) -> State {
        match self.latch.phase() {
            Phase::Bound => State::Bound,
            Phase::Serving if self.group.is_paused() => State::Paused,
            Phase::Serving => State::Serving,
            Phase::Draining => State::Draining,
            Phase::Aborting => State::Aborting,
            Phase::Closed => State::Closed,
        }
    }

    /// Takes the one right to serve; `false` where it is taken.
    pub(crate) fn claim(&self) -> bool {
        self.served.set(self.clock.now()).is_ok()
    }

    /// Has the server's tasks run on threads of its own; said before anybody is taken in.
    #[cfg(target_os = "linux")]
    pub(crate) fn employ(&self, pools: &[Arc<Pool>], dealers: usize) {
        let _first = self.crew.set(Crew {
            pools: pools.to_vec(),
            dealers,
        });
    }

    /// The pools, or none where the runtime runs the server's tasks.
    #[cfg(target_os = "linux")]
    fn pools(&self) -> &[Arc<Pool>] {
        self.crew.get().map_or(&[], |crew| &crew.pools)
    }

    /// How many pools, the first, only deal connections out.
    #[cfg(target_os = "linux")]
    pub(crate) fn dealers(&self) -> usize {
        self.crew.get().map_or(0, |crew| crew.dealers)
    }

    /// Who tells about the sockets of a shard's connections.
    fn engine(&self, shard: u16) -> Engine {
        #[cfg(target_os = "linux")]
        if let Some(pool) = self.pools().get(usize::from(shard)) {
            return Engine::Workers(pool.poller().clone());
        }
        let _of_all = shard;
        Engine::Reactor
    }

    /// The shard whose turn it is to get a connection.
    fn next_shard(&self) -> u16 {
        #[cfg(target_os = "linux")]
        if let Some(crew) = self.crew.get().filter(|crew| crew.pools.len() > 1) {
            let turn = self.turn.fetch_add(1, SeqCst);
            return (crew.dealers + turn % (crew.pools.len() - crew.dealers)) as u16;
        }
        0
    }

    /// How many accept loops there are.
    pub(crate) fn doors(&self) -> usize {
        self.doors.len()
    }

    fn listeners(&self) -> Vec<ListenerInfo> {
        let mut infos = BTreeMap::new();
        for door in &self.doors {
            for listening in &lock(door).listeners {
                let queued = listening.bound.queued();
                let info = infos
                    .entry(listening.address)
                    .or_insert_with(|| ListenerInfo {
                        address: self.addrs[usize::from(listening.address)].clone(),
                        queued: queued.and(Some(0)),
                    });
                info.queued = info.queued.zip(queued).map(|(sum, queued)| sum + queued);
            }
        }
        infos.into_values().collect()
    }

    pub(crate) fn served(&self) -> Option<Instant> {
        self.served.get().copied()
    }

    pub(crate) fn start(&self) {
        if self.latch.advance(Phase::Serving) {
            log::info!(target: "gracious", "{self}");
            self.publish(self.state());
        }
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        let before = self.state();
        self.group.set_paused(paused);
        let after = self.state();
        if before != after {
            self.publish(after);
        }
    }

    fn publish(&self, state: State) {
        self.group.publish(state);
    }

    pub(crate) fn ask(&self, reason: Reason, before: Option<Instant>) {
        if self.latch.ask(reason, self.clock.now(), before) {
            self.publish(State::Draining);
            self.announce(before);
        }
    }

    /// Ends the server now, also where nobody has asked for it yet: nobody is told to leave first.
    pub(crate) fn abort(&self, reason: Reason) {
        let first = self.latch.note(reason, self.clock.now(), None);
        self.abort_now();
        if first {
            self.announce(None);
        }
    }

    /// Says that the server was asked to stop, to the operator and to its companions.
    fn announce(&self, before: Option<Instant>) {
        let reason = self.latch.request().reason.clone();
        let reason = reason.unwrap_or(Reason::Requested);
        log::info!(target: "gracious", reason:%; "shutting down: {reason}");
        for companion in self.companions() {
            companion.ask(reason.clone(), before);
        }
    }

    pub(crate) fn companions(&self) -> Vec<Arc<Self>> {
        lock(&self.companions)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// How long peers are still taken after a request: those of companions count, too, since all
    /// doors are shut together.
    pub(crate) fn lame_duck(&self) -> Duration {
        let spans = self
            .companions()
            .into_iter()
            .map(|companion| companion.config.lame_duck);
        spans
            .chain([self.config.lame_duck])
            .max()
            .unwrap_or_default()
    }

    /// A listener that cannot go on.
    pub(crate) fn fail(&self, error: io::Error) {
        log::error!(target: "gracious", error:%; "a listener failed: {error}");
        self.ask(Reason::Listener(error.to_string()), None);
        *lock(&self.failure) = Some(error);
    }

    pub(crate) fn take_failure(&self) -> Option<io::Error> {
        lock(&self.failure).take()
    }

    /// Waits until the next peer may be taken.
    pub(crate) async fn place(&self) {
        while !self.has_place() {
            let vacancy = self.group.vacancy.listen();
            if self.has_place() {
                return;
            }
            vacancy.await;
        }
    }

    pub(crate) fn has_place(&self) -> bool {
        !self.group.is_paused() && (self.config.reject_with.is_some() || !self.group.is_full())
    }

    /// The next peer at a door, taken in; `None` where there is no place any more.
    ///
    /// Where several doors share a limit, whoever finds a place looks at all of them in turn: one
    /// door's loop may always be the first to hear of a place.
    pub(crate) fn poll_next(
        self: &Arc<Self>,
        own: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Arc<Record>>>> {
        let count = self.doors.len();
        let shares = count > 1 && self.group.is_limited();
        let mut gate = shares.then(|| lock(&self.gate));
        // A pause, or a lower limit, may have come while the listeners were quiet.
        if !self.has_place() {
            return Poll::Ready(None);
        }
        let Some(turn) = &mut gate else {
            let accepted = lock(&self.doors[own]).poll_accept(cx);
            return accepted.map(|accepted| Some(self.enter(own, accepted)));
        };
        for step in 0..count {
            let number = (**turn + step) % count;
            let mut door = lock(&self.doors[number]);
            let accepted = if number == own {
                door.poll_accept(cx)
            } else {
                door.try_accept()
            };
            drop(door);
            if let Poll::Ready(accepted) = accepted {
                **turn = number + 1;
                return Poll::Ready(Some(self.enter(number, accepted)));
            }
        }
        Poll::Pending
    }

    /// The next peer at any door, taken in.
    pub(crate) fn poll_any(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Arc<Record>>> {
        for (number, door) in self.doors.iter().enumerate() {
            let accepted = lock(door).poll_accept(cx);
            if let Poll::Ready(accepted) = accepted {
                return Poll::Ready(self.enter(number, accepted));
            }
        }
        Poll::Pending
    }

    /// Takes a peer into the group, and gives it its place if there is one.
    fn enter(
        self: &Arc<Self>,
        door: usize,
        accepted: io::Result<Accepted>,
    ) -> io::Result<Arc<Record>> {
        let Accepted {
            incoming,
            peer,
            address,
            sharded,
        } = accepted?;
        let shard = if sharded {
            door as u16
        } else {
            self.next_shard()
        };
        let transport = Transport::new(incoming, self.engine(shard))?;
        let arrival = Arrival {
            transport,
            peer,
            address,
            shard,
        };
        let record = self.group.open(self, arrival);
        // Nobody overtakes those who wait.
        if self.held_is_empty() {
            self.group.seat(&record);
        }
        Ok(record)
    }

    /// No new peers from here on, at any listener, those of companions included; Unix paths are
    /// removed.
    pub(crate) fn shut_doors(&self) {
        self.shut_door();
        for companion in self.companions() {
            companion.shut_door();
        }
    }

    fn shut_door(&self) {
        for door in &self.doors {
            for listening in &mut lock(door).listeners {
                listening.bound.shut();
            }
        }
    }

    /// Takes in whoever is queued; `false` where a shortage of ours left some.
    pub(crate) fn sweep(self: &Arc<Self>, admit: impl Fn(Arc<Record>)) -> bool {
        let mut all = true;
        for number in 0..self.doors.len() {
            all &= self.sweep_door(number, &admit);
        }
        all
    }

    fn sweep_door(self: &Arc<Self>, number: usize, admit: impl Fn(Arc<Record>)) -> bool {
        let (mut all, mut index, mut failures) = (true, 0, 0);
        loop {
            // The lock is not held while somebody is taken in.
            let accepted = match lock(&self.doors[number]).listeners.get_mut(index) {
                Some(listening) => listening.try_accept(),
                None => return all,
            };
            let blame = match self.enter(number, accepted) {
                Ok(record) => {
                    failures = 0;
                    admit(record);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => Some(blame(&error)),
            };
            failures += 1;
            match blame {
                Some(Blame::Peer) if failures < FAILURES_IN_A_ROW => {
                    self.group.count_accept_error(|errors| errors.peer += 1);
                    continue;
                }
                Some(Blame::Shortage) => {
                    self.group.count_accept_error(|errors| errors.shortage += 1);
                    all = false;
                }
                // The queue is empty, or this listener is of no use any more.
                _ => {}
            }
            (index, failures) = (index + 1, 0);
        }
    }

    /// Closes all listeners, without a runtime if need be: whoever is queued still is turned away.
    /// Done once.
    pub(crate) fn close_door(self: &Arc<Self>) {
        self.close_door_with(|record| self.turn_away(record));
    }

    /// Closes all listeners, after a last look for those who have been queued since the sweep.
    pub(crate) fn close_door_with(self: &Arc<Self>, admit: impl Fn(Arc<Record>)) {
        self.shut_door();
        self.sweep(admit);
        for door in &self.doors {
            let closed = std::mem::take(&mut lock(door).listeners);
            drop(closed);
        }
        notify(&self.group.vacancy);
        notify(&self.group.empty);
    }

    pub(crate) fn door_is_closed(&self) -> bool {
        let mut doors = self.doors.iter();
        doors.all(|door| lock(door).listeners.is_empty())
    }

    pub(crate) fn hold(&self, record: Arc<Record>) {
        {
            let mut held = lock(&self.held);
            held.push_back(record);
            self.holding.store(held.len(), SeqCst);
        }
        // Another accept loop may be faster than this one.
        if self.latch.phase() >= Phase::Aborting {
            self.turn_held_away();
        }
    }

    pub(crate) fn held_is_empty(&self) -> bool {
        self.holding.load(SeqCst) == 0
    }

    /// Who has waited longest for a place, if there is one.
    pub(crate) fn next_held(&self) -> Option<Arc<Record>> {
        if self.held_is_empty() {
            return None;
        }
        let mut held = lock(&self.held);
        if !self.group.seat(held.front()?) {
            return None;
        }
        let next = held.pop_front();
        self.holding.store(held.len(), SeqCst);
        next
    }

    /// Whoever waits for a place never had a handler to drop.
    fn turn_held_away(&self) {
        let held = {
            let mut held = lock(&self.held);
            self.holding.store(0, SeqCst);
            std::mem::take(&mut *held)
        };
        for record in held {
            self.turn_away(record);
        }
    }

    /// Closes a connection that never had a handler, cleanly, without waiting.
    pub(crate) fn turn_away(&self, record: Arc<Record>) {
        record.set(bit::REJECTED);
        close::now(&record);
        task::finish(record, Ending::Rejected, Cause::Rejected);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let request = self.latch.request();
        let spans = request.door.zip(self.config.deadline);
        earliest(
            spans.and_then(|(door, span)| door.checked_add(span)),
            request.before,
        )
    }

    /// Cuts everybody, now. Done once.
    pub(crate) fn abort_now(&self) {
        self.latch.request().aborted.get_or_insert(self.clock.now());
        self.turn_held_away();
        if self.latch.phase() < Phase::Aborting {
            let left = self.group.stragglers(self.uptime());
            // Before the phase rises: the end may come at any time from then on. The first list is
            // the longest.
            {
                let mut ledger = self.group.ledger();
                if ledger.stragglers.is_empty() {
                    ledger.stragglers = left.clone();
                }
            }
            self.publish(State::Aborting);
            if self.latch.advance(Phase::Aborting) {
                for straggler in &left {
                    log::warn!(
                        target: "gracious", conn = straggler.id, peer:% = straggler.peer;
                        "aborted connection {}: {straggler}", straggler.id,
                    );
                }
            }
        }
        // Whoever was held meanwhile; whoever is from now on is turned away by those who hold him.
        self.turn_held_away();
        self.group.abort_all();
    }

    /// Enters the end of a connection into the ledger.
    pub(crate) fn close_connection(&self, entry: Entry, ending: Ending, cause: Cause) {
        if self.group.close(entry, ending, cause, || self.uptime()) {
            self.conclude();
        }
    }

    /// How many are left.
    pub(crate) fn left(&self) -> u64 {
        self.group.ledger().left()
    }

    /// Waits until nobody is left.
    pub(crate) async fn empty(&self) {
        loop {
            let empty = self.group.empty.listen();
            if self.group.ledger().is_empty() {
                return;
            }
            empty.await;
        }
    }

    /// The server's task is gone: whoever is last closes the server.
    pub(crate) fn orphan(&self) {
        self.group.ledger().orphaned = true;
        self.turn_held_away();
        self.conclude_if_orphaned();
    }

    pub(crate) fn conclude_if_orphaned(&self) {
        let done = {
            let ledger = self.group.ledger();
            ledger.orphaned && ledger.is_empty()
        };
        if done {
            self.conclude();
        }
    }

    /// Closes the books. Done once.
    pub(crate) fn conclude(&self) {
        let first = self.report.set(self.account()).is_ok();
        // Also by who comes second, whose caller is told next: there is a report.
        self.latch.advance(Phase::Closed);
        if !first {
            return;
        }
        notify(&self.group.empty);
        log::info!(target: "gracious", "{}", self.report());
        self.publish(State::Closed);
        #[cfg(target_os = "linux")]
        for pool in self.pools() {
            pool.end();
        }
    }

    pub(crate) fn report(&self) -> Report {
        self.report.get().cloned().unwrap_or_else(|| self.account())
    }

    /// The account as of now.
    fn account(&self) -> Report {
        let request = self.latch.request().clone();
        let now = self.clock.now();
        Report {
            reason: request.reason.unwrap_or(Reason::Requested),
            stats: self.group.stats(),
            elapsed: now.saturating_duration_since(self.bound),
            drain: request
                .asked
                .map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked)),
            stragglers: self.group.ledger().stragglers.clone(),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("addrs", &self.addrs)
            .finish_non_exhaustive()
    }
}

/// The state and the addresses: `serving on 127.0.0.1:8888, unix:/run/app.sock`.
impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state())?;
        for (i, address) in self.addrs.iter().enumerate() {
            write!(f, "{}{address}", if i == 0 { " on " } else { ", " })?;
        }
        Ok(())
    }
}
