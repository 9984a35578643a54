//! What happens in a server, sent to its subscribers.

use std::collections::VecDeque;
use std::time::Duration;

use async_channel::{Receiver, Sender, TrySendError};

use crate::address::Address;
use crate::lifecycle::State;
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

/// The events of a server on their way to its subscribers.
///
/// 1. Events are queued under the registry's lock, in the order in which they were counted. A new
///    subscriber is queued among them: it is sent what was queued after it.
/// 2. They are sent without that lock, since to send is to wake a receiver. One thread sends at a
///    time; a thread that finds another at it leaves its events to that one, which looks at the queue
///    again when it has sent what it took. So the waker of a receiver may ask the server whatever it
///    likes, and a waker that takes long keeps the receivers waiting, and no other thread.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// There is a subscriber, or was one: that does not go back.
    has_subscribers: bool,
    queue: VecDeque<Queued>,
    /// The last state on the way to the end.
    state: Option<State>,
    /// The subscribers that are sent what is queued; empty while a thread sends.
    subscribers: Vec<Subscriber>,
    /// A thread sends.
    is_sending: bool,
}

#[derive(Debug)]
enum Queued {
    Event(ServerEvent),
    Subscriber(Subscriber),
}

#[derive(Debug)]
struct Subscriber {
    sender: Sender<ServerEvent>,
    missed: u64,
}

impl EventQueue {
    pub(super) fn opened(&mut self, id: u64, peer: impl FnOnce() -> Address) {
        self.push(|| ServerEvent::Opened { id, peer: peer() });
    }

    /// Queues a change of the state. The thread that raises the phase is not always the first to
    /// come here: no state is sent after a later one, and the drain before what follows it.
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

    pub(super) fn has_subscribers(&self) -> bool {
        self.has_subscribers
    }

    pub(super) fn push(&mut self, event: impl FnOnce() -> ServerEvent) {
        if self.has_subscribers {
            self.queue.push_back(Queued::Event(event()));
        }
    }

    /// A receiver of what is queued from now on.
    pub(super) fn subscribe(&mut self) -> Receiver<ServerEvent> {
        let (sender, receiver) = async_channel::bounded(CAPACITY);
        // After the end there is nothing to be sent, and the channel ends here.
        if self.state != Some(State::Closed) {
            self.has_subscribers = true;
            let subscriber = Subscriber { sender, missed: 0 };
            self.queue.push_back(Queued::Subscriber(subscriber));
        }
        receiver
    }

    /// Takes what there is to send; `None` where there is nothing, or another thread sends. It is
    /// given back with [`end_delivery`](Self::end_delivery).
    pub(super) fn begin_delivery(&mut self) -> Option<Delivery> {
        if self.queue.is_empty() || self.is_sending {
            return None;
        }
        self.is_sending = true;
        Some(Delivery {
            queue: std::mem::take(&mut self.queue),
            subscribers: std::mem::take(&mut self.subscribers),
        })
    }

    /// What a delivery has left is sent before what was queued meanwhile.
    pub(super) fn end_delivery(&mut self, delivery: &mut Delivery) {
        self.is_sending = false;
        self.subscribers = std::mem::take(&mut delivery.subscribers);
        if !delivery.queue.is_empty() {
            delivery.queue.append(&mut self.queue);
            self.queue = std::mem::take(&mut delivery.queue);
        }
    }
}

/// Events, and the subscribers to be sent them, while a thread sends.
#[derive(Debug)]
pub(super) struct Delivery {
    queue: VecDeque<Queued>,
    subscribers: Vec<Subscriber>,
}

impl Delivery {
    /// Sends every event to every subscriber; the end of the server is the end of the channels.
    pub(super) fn send(&mut self) {
        assert_unlocked();
        while let Some(next) = self.queue.pop_front() {
            match next {
                Queued::Subscriber(subscriber) => self.subscribers.push(subscriber),
                Queued::Event(event) => {
                    self.subscribers
                        .retain_mut(|subscriber| subscriber.send(&event));
                    if event == ServerEvent::State(State::Closed) {
                        self.subscribers.drain(..).for_each(Subscriber::end);
                    }
                }
            }
        }
    }
}

impl Subscriber {
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

    /// Ends the channel. A receiver that missed events is told so in place of the oldest that it has
    /// not taken.
    fn end(self) {
        if self.missed > 0 {
            let sent = self.sender.try_send(ServerEvent::Missed(self.missed));
            if let Err(TrySendError::Full(_)) = sent {
                let _gone = self.sender.force_send(ServerEvent::Missed(self.missed + 1));
            }
        }
    }
}
