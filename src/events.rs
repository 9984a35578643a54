//! What happens in a server, told as it happens.

use std::time::Duration;

use async_channel::{Receiver, Sender, TrySendError};

use crate::address::Address;
use crate::group::{Entry, Record};
use crate::shutdown::State;

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

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Its handler returned, of itself.
    Handler,
    /// Its handler returned after the peer had ended its side.
    Peer,
    /// Its handler returned after a drain had ended its reads.
    Drain,
    /// Its handler returned this error.
    Error(String),
    /// Its handler panicked.
    Panic,
    /// It was cut: at the deadline, by an abort, or with the runtime.
    Aborted,
    /// [`Builder::idle_timeout`](crate::Builder::idle_timeout).
    IdleTimeout,
    /// [`Builder::first_byte_timeout`](crate::Builder::first_byte_timeout).
    FirstByteTimeout,
    /// [`Builder::max_age`](crate::Builder::max_age).
    MaxAge,
    /// There was no place for it.
    Rejected,
    /// Its handler took it out of the server.
    Detached,
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
    pub(crate) fn add(&mut self) -> Receiver<ServerEvent> {
        let (sender, receiver) = async_channel::bounded(CAPACITY);
        self.0.push(Subscriber { sender, missed: 0 });
        receiver
    }

    pub(crate) fn opened(&mut self, record: &Record) {
        self.publish(|| ServerEvent::Opened {
            id: record.id,
            peer: record.peer.clone(),
        });
    }

    pub(crate) fn closed(&mut self, entry: &Entry, cause: Cause, age: Duration) {
        self.publish(|| ServerEvent::Closed {
            id: entry.id,
            cause,
            age,
            bytes_in: entry.bytes_in,
            bytes_out: entry.bytes_out,
        });
    }

    pub(crate) fn state(&mut self, state: State) {
        self.publish(|| ServerEvent::State(state));
    }

    /// Ends every receiver's stream.
    pub(crate) fn end(&mut self) {
        self.0.clear();
    }

    fn publish(&mut self, event: impl FnOnce() -> ServerEvent) {
        if self.0.is_empty() {
            return;
        }
        let event = event();
        self.0.retain_mut(|subscriber| subscriber.tell(&event));
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
}
