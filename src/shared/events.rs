//! What happens in a server, sent to those who subscribed.

use std::time::Duration;

use async_channel::{Receiver, Sender, TrySendError};

use crate::address::Address;
use crate::lifecycle::State;
use crate::report::Cause;

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

/// The events that happened and are not sent yet: pushed under the registry's lock, in the order in
/// which they were counted, and sent without it, since to wake a receiver runs somebody else's code.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// There is a subscriber, or was one: that does not go back.
    has_subscribers: bool,
    events: Vec<ServerEvent>,
    /// The last state on the way to the end.
    state: Option<State>,
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
            self.events.push(event());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<ServerEvent> {
        std::mem::take(&mut self.events)
    }
}

#[derive(Debug, Default)]
pub(super) struct Subscribers(Vec<Subscriber>);

#[derive(Debug)]
struct Subscriber {
    sender: Sender<ServerEvent>,
    missed: u64,
}

impl Subscribers {
    /// Adds a subscriber, which is sent what is pushed to `queue` from now on.
    pub(super) fn add(&mut self, queue: &mut EventQueue) -> Receiver<ServerEvent> {
        let (sender, receiver) = async_channel::bounded(CAPACITY);
        if queue.state != Some(State::Closed) {
            queue.has_subscribers = true;
            self.0.push(Subscriber { sender, missed: 0 });
        }
        receiver
    }

    /// Sends events to every subscriber; the end of the server is the end of the channels.
    pub(super) fn send(&mut self, events: Vec<ServerEvent>) {
        for event in events {
            self.0.retain_mut(|subscriber| subscriber.send(&event));
            if event == ServerEvent::State(State::Closed) {
                self.0.drain(..).for_each(Subscriber::end);
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
