//! What happens in a server, told as it happens.

use std::time::Duration;

use async_channel::{Receiver, Sender, TrySendError};

use crate::address::Address;
use crate::lifecycle::State;
use crate::report::Cause;
use crate::shared::connection::Record;
use crate::shared::registry::Entry;

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

/// What has happened and is not told yet: written under the ledger's lock, in the order in which
/// it was counted, and told without it, since to wake a receiver is somebody else's code.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Somebody listens.
    heard: bool,
    events: Vec<ServerEvent>,
    /// The last state on the way to the end.
    state: Option<State>,
}

impl Outbox {
    pub(crate) fn opened(&mut self, record: &Record) {
        self.put(|| ServerEvent::Opened {
            id: record.id,
            peer: record.peer(),
        });
    }

    pub(crate) fn closed(&mut self, entry: &Entry, cause: Cause, age: Duration) {
        self.put(|| ServerEvent::Closed {
            id: entry.id,
            cause,
            age,
            bytes_in: entry.bytes_in,
            bytes_out: entry.bytes_out,
        });
    }

    /// Who raises the phase is not always the first to tell of it: no state is told after a later
    /// one, and the drain before what follows it.
    pub(crate) fn state(&mut self, state: State) {
        let drains = |state: &State| state.rank() >= State::Draining.rank();
        if drains(&state) || self.state.is_some() {
            if self.state.is_some_and(|told| told.rank() >= state.rank()) {
                return;
            }
            if self.state.is_none() && state != State::Draining {
                self.put(|| ServerEvent::State(State::Draining));
            }
            self.state = Some(state);
        }
        self.put(|| ServerEvent::State(state));
    }

    /// Whether somebody listens, or has: that does not go back.
    pub(crate) fn is_heard(&self) -> bool {
        self.heard
    }

    fn put(&mut self, event: impl FnOnce() -> ServerEvent) {
        if self.heard {
            self.events.push(event());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn take(&mut self) -> Vec<ServerEvent> {
        std::mem::take(&mut self.events)
    }
}

/// Those who listen.
#[derive(Debug, Default)]
pub(crate) struct Subscribers(Vec<Subscriber>);

#[derive(Debug)]
struct Subscriber {
    sender: Sender<ServerEvent>,
    missed: u64,
}

impl Subscribers {
    /// One more, who is told what is put into `outbox` from now on.
    pub(crate) fn add(&mut self, outbox: &mut Outbox) -> Receiver<ServerEvent> {
        let (sender, receiver) = async_channel::bounded(CAPACITY);
        if outbox.state != Some(State::Closed) {
            outbox.heard = true;
            self.0.push(Subscriber { sender, missed: 0 });
        }
        receiver
    }

    /// Tells everybody; the end of the server is the end of the channels.
    pub(crate) fn tell(&mut self, events: Vec<ServerEvent>) {
        for event in events {
            self.0.retain_mut(|subscriber| subscriber.tell(&event));
            if event == ServerEvent::State(State::Closed) {
                self.0.drain(..).for_each(Subscriber::end);
            }
        }
    }
}

impl Subscriber {
    /// Never waits; `false` where nobody listens any more.
    fn tell(&mut self, event: &ServerEvent) -> bool {
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

    /// A receiver that missed something is told so in place of the oldest that it has not taken.
    fn end(self) {
        if self.missed > 0 {
            let told = self.sender.try_send(ServerEvent::Missed(self.missed));
            if let Err(TrySendError::Full(_)) = told {
                let _gone = self.sender.force_send(ServerEvent::Missed(self.missed + 1));
            }
        }
    }
}
