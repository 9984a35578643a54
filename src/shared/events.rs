//! The events of a server, sent to its subscribers.
//!
//! 1. Events are pushed under the registry's lock, in the order in which they were counted, and
//!    sent without it: to wake a receiver runs code of others.
//! 2. One thread sends at a time. It takes the subscribers along, and finds what was pushed
//!    meanwhile when it brings them back. So every subscriber is sent events in their order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use async_channel::{Receiver, Sender, TrySendError};

use super::work::work_woken_by;
use crate::address::Address;
use crate::lifecycle::State;
use crate::log;
use crate::report::Cause;
use crate::sync::assert_unlocked;

/// How many events wait for a receiver before it misses some.
const CAPACITY: usize = 1024;

/// Something that happened in a server, from [`Handle::events`](crate::Handle::events).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerEvent {
    /// The server came into this state.
    State(State),
    /// A connection was accepted.
    Opened {
        /// Its id.
        id: u64,
        /// Its peer.
        peer: Address,
    },
    /// A connection's PROXY header has come.
    #[cfg(feature = "proxy")]
    Proxied {
        /// Its id.
        id: u64,
        /// The client, or the proxy where it names none.
        peer: Address,
    },
    /// A connection ended: its socket is closed.
    Closed {
        /// Its id.
        id: u64,
        /// Why.
        cause: Cause,
        /// How long after it was accepted.
        age: Duration,
        /// Bytes read from the peer.
        bytes_in: u64,
        /// Bytes written to the peer.
        bytes_out: u64,
    },
    /// This receiver was too slow, and missed so many events here.
    Missed(u64),
}

/// The events that are not sent yet, and the subscribers.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// There is a subscriber, here or with the thread that sends.
    has_subscribers: bool,
    events: Vec<ServerEvent>,
    /// How many events were pushed in all.
    pushed: u64,
    subscribers: Vec<Subscriber>,
    /// A thread has taken the subscribers, to send them events.
    is_sending: bool,
    /// The channels that tracked work reads are to be ended: only such work is left.
    ends_for_work: bool,
    /// The last state that was pushed, from `Draining` on.
    state: Option<State>,
}

impl EventQueue {
    /// Pushes the beginning of a connection.
    pub(super) fn opened(&mut self, id: u64, peer: impl FnOnce() -> Address) {
        self.push(|| ServerEvent::Opened { id, peer: peer() });
    }

    /// Pushes a change of the state. The thread that raises the phase to one state may come here
    /// after the thread that raises it to the next: no state is pushed after a later one, and
    /// `Draining` is pushed before all that follow it.
    pub(super) fn state(&mut self, state: State) {
        let drains = |state: &State| state.rank() >= State::Draining.rank();
        if drains(&state) || self.state.is_some() {
            if self.state.is_some_and(|last| last.rank() >= state.rank()) {
                return;
            }
            if self.state.is_none() && state != State::Draining {
                self.push(|| ServerEvent::State(State::Draining));
            }
            self.state = Some(state);
        }
        self.push(|| ServerEvent::State(state));
    }

    /// Whether there is a subscriber.
    pub(super) fn has_subscribers(&self) -> bool {
        self.has_subscribers
    }

    /// Pushes an event, if there is a subscriber.
    #[inline]
    pub(super) fn push(&mut self, event: impl FnOnce() -> ServerEvent) {
        if self.has_subscribers {
            self.events.push(event());
            self.pushed += 1;
        }
    }

    /// Adds a subscriber, which is sent the events that are pushed from now on. `work` is the
    /// tracked work that subscribes.
    pub(super) fn subscribe(&mut self, work: Vec<u64>) -> Receiver<ServerEvent> {
        let (sender, receiver) = async_channel::bounded(CAPACITY);
        if self.state != Some(State::Closed) {
            self.has_subscribers = true;
            self.subscribers.push(Subscriber {
                sender,
                missed: 0,
                from: self.pushed,
                work,
                is_over: false,
            });
        }
        receiver
    }

    /// Has the channels that tracked work reads end after the events that are pushed already. The thread
    /// that asked for the drain may not have pushed that event yet, and it comes before any end.
    pub(super) fn end_for_work(&mut self) {
        self.state(State::Draining);
        self.ends_for_work = self.has_subscribers;
    }

    /// Whether there is something to send, and no thread sends already.
    pub(super) fn has_to_send(&self) -> bool {
        !self.is_sending && (!self.events.is_empty() || self.ends_for_work)
    }

    /// Takes what there is to send, and all subscribers. `is_living` says of tracked work whether
    /// it has not ended.
    pub(super) fn take(&mut self, is_living: impl Fn(u64) -> bool) -> Sending {
        self.is_sending = true;
        let events = std::mem::take(&mut self.events);
        let mut subscribers = std::mem::take(&mut self.subscribers);
        let ends_for_work = std::mem::take(&mut self.ends_for_work);
        for subscriber in &mut subscribers {
            subscriber.work.retain(|id| is_living(*id));
            subscriber.is_over = ends_for_work && !subscriber.work.is_empty();
        }
        Sending {
            first: self.pushed - events.len() as u64,
            events,
            subscribers,
        }
    }

    /// Takes the subscribers back; gives the tracked work that reads events, as far as that is
    /// known.
    pub(super) fn put_back(&mut self, sent: Sending) -> Vec<u64> {
        self.is_sending = false;
        self.subscribers.extend(sent.subscribers);
        self.has_subscribers = !self.subscribers.is_empty();
        let read = self.subscribers.iter().flat_map(|it| &it.work);
        read.copied().collect()
    }
}

/// Events on their way to the subscribers.
#[derive(Debug)]
pub(super) struct Sending {
    /// The number of the first event, by those pushed before.
    first: u64,
    events: Vec<ServerEvent>,
    subscribers: Vec<Subscriber>,
}

impl Sending {
    /// Sends every subscriber the events that were pushed after it subscribed. The channels end
    /// with the server. `registry` is the address by which tracked work of this server is known.
    pub(super) fn send(&mut self, registry: usize) {
        assert_unlocked();
        let Self {
            first,
            events,
            subscribers,
        } = self;
        for (number, event) in (*first..).zip(events.drain(..)) {
            subscribers
                .retain_mut(|it| number < it.from || it.send_noting_readers(&event, registry));
            if event == ServerEvent::State(State::Closed) {
                subscribers.drain(..).for_each(Subscriber::end);
            }
        }
        let all = std::mem::take(subscribers);
        let (over, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it.is_over);
        *subscribers = others;
        for mut subscriber in over {
            subscriber.send_noting_readers(&ServerEvent::State(State::Closed), registry);
            subscriber.end();
        }
    }
}

/// A channel of events.
#[derive(Debug)]
struct Subscriber {
    sender: Sender<ServerEvent>,
    /// How many events found the channel full since the last that did not.
    missed: u64,
    /// The number of the first event that is sent.
    from: u64,
    /// The tracked work that is known to read this channel: it has subscribed, or an event woke it.
    work: Vec<u64>,
    /// The channel ends now: only work that reads such channels is left.
    is_over: bool,
}

impl Subscriber {
    /// Sends an event, and records which tracked work it woke; `false` where the receiver is gone.
    fn send_noting_readers(&mut self, event: &ServerEvent, registry: usize) -> bool {
        let send = || catch_unwind(AssertUnwindSafe(|| self.send(event)));
        let (sent, woken) = work_woken_by(registry, send);
        for id in woken {
            if !self.work.contains(&id) {
                self.work.push(id);
            }
        }
        // A waker that panics is its owner's affair. The event is in the channel by then.
        sent.unwrap_or_else(|_panic| {
            log::error!(target: "gracious", "the waker of a reader of events panicked");
            true
        })
    }

    /// Sends an event without waiting; `false` where the receiver is gone.
    fn send(&mut self, event: &ServerEvent) -> bool {
        if self.missed > 0 {
            match self.sender.try_send(ServerEvent::Missed(self.missed)) {
                Ok(()) => self.missed = 0,
                Err(TrySendError::Full(_)) => {
                    self.missed += 1;
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        match self.sender.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed += 1;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    /// Ends the channel. A receiver that missed events gets the number of them, if need be in place
    /// of the oldest event that it has not taken.
    fn end(self) {
        let end = || {
            if self.missed > 0 {
                let sent = self.sender.try_send(ServerEvent::Missed(self.missed));
                if let Err(TrySendError::Full(_)) = sent {
                    let _gone = self.sender.force_send(ServerEvent::Missed(self.missed + 1));
                }
            }
            // Wakes the receivers that wait, as the drop of the last sender would.
            self.sender.close();
        };
        if catch_unwind(AssertUnwindSafe(end)).is_err() {
            log::error!(target: "gracious", "the waker of a reader of events panicked");
        }
    }
}
