//! The closer: one task a shard, which looks at the connections that are being closed until it may
//! close them. See [`close`] for when that is.
//!
//! Much of what decides is no event: that a peer's kernel has acknowledged everything, or that a
//! peer was silent for long enough. So sockets are looked at, soon after their end was sent and then
//! after pauses that double. Most of their peers have hung up by the first look. To wait for that, an
//! event, a timer and a turn of a task for each connection, costs several times what a look costs. A
//! transport of the user's own is looked at whenever it wakes the closer, too.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::close::{self, Found, Peer, discard, peer, poll_finish, seal, set_apart, take_back};
use super::task;
use crate::lifecycle::Phase;
use crate::log;
use crate::report::Cause;
use crate::runtime::Sleep;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::shared::ledger::CloseKind;
use crate::shared::lingering::{Lingering, MANY, Taken};
use crate::socket::budget;
use crate::socket::readiness::{Waiter, flag};

/// How long after its end was sent a connection is looked at first where few others follow it, and
/// how far apart the times of looks are: each is a turn of the timer's thread and of the closer.
const PAUSE: Duration = Duration::from_millis(20);
/// As `PAUSE`, where a permit or the end of a drain may depend on it.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
/// A peer that goes on sending, or taking, is not looked at less often.
const LONGEST_PAUSE: Duration = Duration::from_millis(128);

/// Closes the connections of a shard, until the server is closed.
pub(crate) struct Closer {
    shared: Arc<Shared>,
    shard: u16,
    /// Those that have not been looked at, as they were taken over, and the uptime of their first
    /// look.
    fresh: VecDeque<(Duration, Vec<Lingering>)>,
    fresh_count: usize,
    /// Those that have to be looked at again, by the uptime of that look and their id.
    waiting: BTreeMap<(Duration, u64), (Lingering, Progress)>,
    /// Those over transports of the user's own, each with the uptime of its next look.
    custom: Vec<(Duration, Lingering, Progress)>,
    /// The timer of the next look, and its uptime.
    timer: Option<(Duration, Sleep)>,
    /// Room for the connections that are taken over next.
    spare: Vec<Lingering>,
}

/// How far a close has come. All times are uptimes.
struct Progress {
    begun: Duration,
    /// When the peer last sent or took something.
    last: Duration,
    /// How much the peer had not taken at the last look, if that was told.
    behind: Option<usize>,
    /// How long the peer has to be silent where nothing is known of it, once that was asked for.
    quiet: Option<Duration>,
    /// How long until the next look.
    pause: Duration,
}

/// What a look decides.
enum Next {
    Close,
    Abort,
    LookAt(Duration),
}

impl Closer {
    pub(crate) fn new(shared: &Arc<Shared>, shard: u16) -> Self {
        Self {
            shared: shared.clone(),
            shard,
            fresh: VecDeque::new(),
            fresh_count: 0,
            waiting: BTreeMap::new(),
            custom: Vec::new(),
            timer: None,
            spare: Vec::new(),
        }
    }

    /// Takes connections over from their tasks.
    fn take_over(&mut self, taken: Taken, now: Duration, pause: Duration) {
        for lingering in taken.urgent {
            let progress = Progress::new(now, SHORT_PAUSE);
            if lingering.state.transport.finishes_at_once() {
                let at = round_up(now + SHORT_PAUSE, SHORT_PAUSE);
                let key = (at, lingering.state.id());
                self.waiting.insert(key, (lingering, progress));
            } else {
                self.custom.push((now, lingering, progress));
            }
        }
        if taken.others.is_empty() {
            self.spare = taken.others;
        } else {
            self.fresh_count += taken.others.len();
            self.fresh
                .push_back((round_up(now + pause, pause), taken.others));
        }
        if taken.in_a_hurry {
            self.hurry();
        }
    }

    /// Has all connections be looked at now, and soon again.
    fn hurry(&mut self) {
        for (at, _) in &mut self.fresh {
            *at = Duration::ZERO;
        }
        for ((_, id), (lingering, mut progress)) in std::mem::take(&mut self.waiting) {
            progress.pause = SHORT_PAUSE;
            let key = (Duration::ZERO, id);
            self.waiting.insert(key, (lingering, progress));
        }
    }

    /// Looks at the connections that are due; `false` where the turn was used up before.
    fn look_at_due(&mut self, now: Duration, pause: Duration, cx: &mut Context<'_>) -> bool {
        for (_, lingering, mut progress) in std::mem::take(&mut self.custom) {
            budget::begin_turn();
            // A transport of the user's own that panics ends its connection alone.
            let next = catch_unwind(AssertUnwindSafe(|| progress.look(&lingering, now, cx)));
            match next.unwrap_or_else(|panic| panicked(&lingering, &*panic)) {
                Next::LookAt(at) => self.custom.push((at, lingering, progress)),
                next => next.end(lingering),
            }
        }
        budget::begin_turn();
        while let Some((lingering, mut progress)) = self.pop_due(now, pause) {
            match progress.look(&lingering, now, cx) {
                Next::LookAt(at) => {
                    // There may be more to read: as soon as the others had their turn.
                    let is_due = at <= now;
                    let step = progress.pause.min(pause);
                    let at = if is_due { now } else { round_up(at, step) };
                    let key = (at, lingering.state.id());
                    self.waiting.insert(key, (lingering, progress));
                }
                next => next.end(lingering),
            }
            // A look is an operation, whatever it finds.
            budget::spend(0);
            if budget::is_used_up() {
                return false;
            }
        }
        true
    }

    /// The next connection that is due.
    fn pop_due(&mut self, now: Duration, pause: Duration) -> Option<(Lingering, Progress)> {
        while let Some((at, batch)) = self.fresh.front_mut() {
            if *at > now && self.fresh_count <= MANY {
                break;
            }
            if let Some(lingering) = batch.pop() {
                self.fresh_count -= 1;
                return Some((lingering, Progress::new(now, pause)));
            }
            self.spare = std::mem::take(batch);
            self.fresh.pop_front();
        }
        let first = self.waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// The uptime of the next look.
    fn next(&self) -> Option<Duration> {
        let fresh = self.fresh.front().map(|(at, _)| *at);
        let waiting = self.waiting.keys().next().map(|(at, _)| *at);
        let custom = self.custom.iter().map(|(at, ..)| *at).min();
        [fresh, waiting, custom].into_iter().flatten().min()
    }

    /// Arranges to be polled at that time.
    fn set_timer(&mut self, now: Duration, next: Duration, cx: &mut Context<'_>) {
        if self.timer.as_ref().is_none_or(|(at, _)| *at != next) {
            let span = next.saturating_sub(now);
            self.timer = Some((next, self.shared.clock.sleep(span)));
        }
        if let Some((_, sleep)) = &mut self.timer {
            if sleep.as_mut().poll(cx).is_ready() {
                self.timer = None;
                // A clock that stands still keeps no other task from running.
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl Future for Closer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = this.shared.uptime();
        let is_draining = this.shared.latch.phase() >= Phase::Draining;
        let pause = if is_draining { SHORT_PAUSE } else { PAUSE };
        let spare = std::mem::take(&mut this.spare);
        let queue = this.shared.lingering.of(this.shard);
        let taken = queue.take(spare, cx.waker().clone());
        if taken.is_over {
            return Poll::Ready(());
        }
        this.take_over(taken, now, pause);
        if !this.look_at_due(now, pause, cx) {
            return budget::yield_turn(cx);
        }
        match this.next() {
            Some(next) => this.set_timer(now, next, cx),
            None => this.timer = None,
        }
        if !this.fresh.is_empty() {
            this.shared.lingering.of(this.shard).set_timed();
        }
        Poll::Pending
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        // Where anything is left, the runtime is gone.
        let left = self.shared.lingering.of(self.shard).close();
        let fresh = self.fresh.drain(..).flat_map(|(_, batch)| batch);
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let waiting = waiting.map(|(lingering, _)| lingering);
        let custom = self.custom.drain(..).map(|(_, lingering, _)| lingering);
        let all: Vec<_> = left
            .into_iter()
            .chain(fresh)
            .chain(waiting)
            .chain(custom)
            .collect();
        if !all.is_empty() {
            log::warn!(
                target: "gracious",
                "aborted {} connections that were being closed: the runtime is gone, or panicked", all.len(),
            );
        }
        for lingering in all {
            lingering.state.abort();
            end_aborted(lingering);
        }
    }
}

impl Progress {
    fn new(now: Duration, pause: Duration) -> Self {
        Self {
            begun: now,
            last: now,
            behind: None,
            quiet: None,
            pause,
        }
    }

    /// Looks at a connection, and decides what becomes of it.
    fn look(&mut self, lingering: &Lingering, now: Duration, cx: &mut Context<'_>) -> Next {
        let state = &*lingering.state;
        if state.has(flag::ABORT) {
            // Who has everything, and was only waited for, is cut off from nothing.
            return match peer(state) {
                Peer::Safe | Peer::Unknown if state.has(flag::FINISHED) => Next::Close,
                _ => Next::Abort,
            };
        }
        let is_finished = poll_finish(state, cx);
        if is_finished && state.has(flag::PEER_ENDED) {
            return Next::Close;
        }
        let found = discard(state, cx);
        match found {
            Found::End if is_finished => return Next::Close,
            // What our end waits for is still to be sent.
            Found::End | Found::Nothing => {}
            Found::Some | Found::Much => {
                self.last = now;
                self.pause = SHORT_PAUSE;
            }
        }
        let quiet = if is_finished {
            self.quiet(state, now)
        } else {
            None
        };
        let quiet_until = quiet.map(|quiet| self.last.saturating_add(quiet));
        if quiet_until.is_some_and(|until| until <= now) && found == Found::Nothing {
            seal(state, cx);
            return Next::Close;
        }
        let config = &state.server.config;
        // A limit of time that has ended a connection leaves its peer no more than a linger.
        let total = if state.has(flag::EXPIRED) {
            config.linger.min(config.linger_total)
        } else {
            config.linger_total
        };
        let until = self.begun.saturating_add(total);
        if until <= now {
            state.server.registry.count_lingered_out();
            seal(state, cx);
            return Next::Close;
        }
        if found == Found::Much {
            return Next::LookAt(now);
        }
        let next = quiet_until.map_or(until, |quiet_until| quiet_until.min(until));
        let next = next.min(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Next::LookAt(next)
    }

    /// For how long the peer of a connection whose end was sent has to be silent; `None` as long as it
    /// has not everything.
    fn quiet(&mut self, state: &ConnectionState, now: Duration) -> Option<Duration> {
        let linger = state.server.config.linger;
        let peer = peer(state);
        let behind = match peer {
            Peer::Untold => None,
            Peer::Behind(behind) => Some(behind),
            Peer::Safe | Peer::Sends | Peer::Unknown => Some(0),
        };
        if behind < self.behind {
            self.last = now;
        }
        self.behind = behind;
        let ask = || state.transport.quiet().unwrap_or(linger);
        match peer {
            Peer::Safe => Some(Duration::ZERO),
            Peer::Sends | Peer::Untold => Some(linger),
            Peer::Unknown => {
                set_apart(state);
                Some(*self.quiet.get_or_insert_with(ask))
            }
            Peer::Behind(_) => {
                // So long an acknowledgment may take that is lost: this one is slow.
                let quiet = *self.quiet.get_or_insert_with(ask);
                if now.saturating_sub(self.begun) >= quiet {
                    take_back(state);
                }
                None
            }
        }
    }
}

impl Next {
    fn end(self, lingering: Lingering) {
        match self {
            Self::Abort => end_aborted(lingering),
            Self::Close | Self::LookAt(_) => end(lingering),
        }
    }
}

/// The next multiple of `step`: one timer serves all looks until then.
fn round_up(at: Duration, step: Duration) -> Duration {
    let steps = at.as_nanos().div_ceil(step.as_nanos());
    u64::try_from(steps * step.as_nanos()).map_or(Duration::MAX, Duration::from_nanos)
}

/// Leaves a connection to the closer of its shard.
pub(super) fn hand_over(state: Arc<ConnectionState>, outcome: Option<(CloseKind, Cause)>) {
    let server = state.server.clone();
    let queue = server.lingering.of(state.shard);
    if let Err(lingering) = queue.push(Lingering { state, outcome }) {
        // The runtime is gone, but for this task.
        close::now(&lingering.state);
        end(lingering);
    }
}

/// Closes a connection.
fn end(lingering: Lingering) {
    let Lingering { state, outcome } = lingering;
    if let Some((kind, cause)) = outcome {
        return task::finish(state, kind, cause);
    }
    // The handler goes on without it, and is waited for.
    state.transport.shutdown_both();
    state.set(flag::CLOSED | flag::FINISHED);
    state.wake(Waiter::Task);
}

/// Ends a connection that was aborted. Where its handler goes on, the task does that.
fn end_aborted(lingering: Lingering) {
    if lingering.outcome.is_some() {
        task::finish(lingering.state, CloseKind::Aborted, Cause::Aborted);
    }
}

fn panicked(lingering: &Lingering, panic: &(dyn Any + Send)) -> Next {
    let (id, message) = (lingering.state.id(), task::message(panic));
    log::error!(
        target: "gracious", conn = id;
        "the transport of connection {id} panicked while it was closed: {message}",
    );
    Next::Close
}
