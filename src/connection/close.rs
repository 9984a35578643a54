//! The orderly end of a connection: our end is sent, and the socket is closed as soon as that can
//! harm the peer no more.
//!
//! Closing a TCP socket with unread input resets the connection, and so does input that comes after
//! the close. A reset destroys what the peer has not received yet, and fails its writes before it
//! has read why. Closing a Unix socket does much of that harm, too. So our end comes first, and then
//! one question: may the peer still be harmed?
//!
//! 1. *No*: it has ended its side, too, or broken the connection. Or it was idle when a drain ended
//!    it, has everything, our end included, and nothing has come since. The socket is closed at once.
//! 2. *It has not everything yet*: it is read from and waited for, however slow it is.
//! 3. *It sends* what the handler has not read, or has sent it before: it is read from until its end,
//!    or until it was silent for a `linger`.
//! 4. *Nothing is known*: a handler has returned by itself, and an early answer to an upload looks
//!    just so; or a drain has ended an idle connection, and our end may be lost on its way, and the
//!    peer's next request meet a closed socket. Until the peer's end, or until it was silent for as
//!    long as a segment takes that was lost and is sent again. Input makes it the third case.
//!
//! `linger_total` bounds it all. In the fourth case, which is that of all servers that close first,
//! the connection's permit is another's meanwhile, and in the second for as long as an acknowledgment
//! may take: else round trips would throttle such a server.
//!
//! What is done here needs no waiting; a connection that has to wait is its shard's [`closer`]'s.
//!
//! [`closer`]: super::closer

use std::io;
use std::task::{Context, Poll, Waker};

use crate::shared::connection::ConnectionState;
use crate::socket::budget;
use crate::socket::buffer::Buffer;
use crate::socket::readiness::{HalfState, flag, is_tls};
use crate::sync::notify;

/// How many turns a connection gets that is closed without waiting.
const TURNS_WITHOUT_WAITING: usize = 8;

/// What is known of the peer of a connection that is being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Nothing can harm it.
    Safe,
    /// It has so many bytes still to take.
    Behind(usize),
    /// It has everything, and sends or has sent what nobody has read.
    Sends,
    /// It has everything; whether it sends is not known.
    Unknown,
    /// Neither the system nor the transport tells what it has.
    Untold,
}

/// What a look for input has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing more will come.
    End,
    /// As much as this turn may read; there may be more.
    Much,
    Some,
    Nothing,
}

/// Sends our end; `Ready` where the socket may be closed at once, else it is the closer's.
pub(super) fn begin(state: &ConnectionState, cx: &mut Context<'_>) -> Poll<()> {
    if !poll_finish(state, cx) {
        return Poll::Pending;
    }
    let word = state.word();
    if word & flag::PEER_ENDED != 0 {
        return Poll::Ready(());
    }
    // Nobody waits for the answer otherwise, and the closer will mostly find the peer's end.
    if word & flag::DRAIN_ENDED == 0 && !state.server.permits.is_limited() {
        return Poll::Pending;
    }
    budget::begin_turn();
    if discard(state, cx) == Found::End {
        return Poll::Ready(());
    }
    match peer(state) {
        Peer::Safe => {
            seal(state, cx);
            return Poll::Ready(());
        }
        // An acknowledgment takes a round trip at best.
        Peer::Behind(_) | Peer::Unknown => set_apart(state),
        Peer::Sends | Peer::Untold => {}
    }
    Poll::Pending
}

/// Brings a connection as far to its end as needs no waiting.
pub(crate) fn now(state: &ConnectionState) {
    let cx = &mut Context::from_waker(Waker::noop());
    poll_finish(state, cx);
    for _ in 0..TURNS_WITHOUT_WAITING {
        budget::begin_turn();
        if discard(state, cx) != Found::Much {
            break;
        }
    }
    seal(state, cx);
}

/// The last act before the close of a Unix socket: lets the peer write no more, then reads what is
/// there, since input that is unread at the close turns the peer's end into a reset. In this order:
/// input that came between a last read and the close would be unread. A TCP peer has its end by then.
pub(super) fn seal(state: &ConnectionState, cx: &mut Context<'_>) {
    if state.transport.refuse_input() {
        while matches!(discard(state, cx), Found::Some | Found::Much) {
            budget::begin_turn();
        }
    }
}

/// Sends our end, unless that was done; gives whether it is sent. Only TLS and a
/// transport of the user's own may have to wait for that.
///
/// Also where the peer has ended: to close our descriptor would send our end only where it is the
/// last, and a forked child has a copy.
pub(super) fn poll_finish(state: &ConnectionState, cx: &mut Context<'_>) -> bool {
    if state.has(flag::FINISHED) {
        return true;
    }
    // Where it fails there is no peer to tell.
    let is_finished = state.poll_finish(cx).is_ready();
    if is_finished {
        state.set(flag::FINISHED);
    }
    is_finished
}

/// Whether the peer of a connection whose end was sent may still be harmed, and why.
pub(super) fn peer(state: &ConnectionState) -> Peer {
    let Some(left) = state.transport.unacknowledged() else {
        return Peer::Untold;
    };
    if left.bytes > 0 {
        Peer::Behind(left.bytes)
    } else if state.reader.has(HalfState::UNREAD) {
        Peer::Sends
    } else if state.has(flag::DRAIN_ENDED) && !(left.end && may_lose_packets(state)) {
        Peer::Safe
    } else {
        Peer::Unknown
    }
}

/// Whether something may be lost on the way to this peer. On this machine the end has arrived when it
/// is sent, and its acknowledgment may take 40 ms, for which no stop has to wait.
fn may_lose_packets(state: &ConnectionState) -> bool {
    !state.peer().ip().is_some_and(|ip| ip.is_loopback())
}

/// Notes that the peer has sent what nobody reads.
fn note_input(state: &ConnectionState) {
    if !state.reader.has(HalfState::UNREAD) {
        state.reader.set(HalfState::UNREAD);
        // Over TLS it may be no more than the peer's answer to our end.
        if state.has(flag::DRAIN_ENDED) && !is_tls(state.word()) {
            state.server.registry.count_unserved_input();
        }
    }
    take_back(state);
}

/// Has a connection that is being closed give its permit to another, unless its peer sends. Where as
/// many are apart already as the limit allows it keeps its permit.
pub(super) fn set_apart(state: &ConnectionState) {
    let server = &state.server;
    if state.has(flag::QUEUED | flag::APART) || state.reader.has(HalfState::UNREAD) {
        return;
    }
    if !server.permits.set_apart() {
        return;
    }
    if state.set(flag::APART) & flag::COUNTED != 0 {
        // Its end was counted in between, as that of a connection with a permit.
        server.permits.take_back();
    } else if server.config.max_per_peer.is_some() {
        server.registry.release_peer_permit(state);
    }
    notify(&server.permits.released);
}

/// Takes a permit again for a connection apart, whose peer takes its time or has more to say, over
/// the limit if need be.
pub(super) fn take_back(state: &ConnectionState) {
    let server = &state.server;
    // One whose end was counted in between was counted as apart.
    if state.has(flag::APART) && state.clear(flag::APART) & flag::COUNTED == 0 {
        server.permits.take_back();
        if server.config.max_per_peer.is_some() {
            server.registry.take_peer_permit_back(state);
        }
    }
}

/// Reads what is there, as much as is left of the turn, and throws it away, which is noted. Only a transport of the
/// user's own arranges a wake-up for what comes later.
pub(super) fn discard(state: &ConnectionState, cx: &mut Context<'_>) -> Found {
    let mut found = Found::Nothing;
    while !budget::is_used_up() {
        let mut buffer = Buffer::default();
        let read = buffer.fill(|buf| {
            let read = state.transport.try_read(state.word(), cx, buf);
            (*read.as_ref().unwrap_or(&0), read)
        });
        match read {
            Ok(0) => return Found::End,
            Ok(bytes) => {
                found = Found::Some;
                note_input(state);
                budget::spend(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return found,
            // Reset, most likely: there is nobody left to wait for.
            Err(_) => return Found::End,
        }
    }
    Found::Much
}
