//! Shutting a TCP listener that stays open, on Linux.
//!
//! To close a listener resets the peers in its queue, and those whose handshake is under way. So a
//! listener is first shut: new peers are refused, and all others are accepted as before. No call of
//! the system does just that; two others amount to it:
//!
//! - **No interface.** A listener that is bound to an interface (`SO_BINDTOIFINDEX`, Linux 5.7) is
//!   found for packets of that interface alone. Bound to one that does not exist, it is found for
//!   none, and a new SYN is refused at once. The kernel looks for a handshake under way before it
//!   looks for a listener, so such a handshake completes; the queue is not touched; an accepted
//!   socket is not bound. This needs no privilege, unless the listener is bound to an interface
//!   already.
//! - **A filter** that drops new SYNs, for a process with `CAP_NET_ADMIN`. Their senders try again
//!   a second later. The filter also drops the repeated SYN of a peer whose SYN-ACK was lost, so
//!   that handshake is never completed.
//!
//! 1. Both act on the socket, not on the descriptor, so neither is used on a socket that others may
//!    hold: it would be shut for them, too. The first cannot be undone without a privilege.
//! 2. Sockets that share the peers of one port (`SO_REUSEPORT`) are shut together. The kernel would
//!    go on dealing peers out to those that are shut, and drop what it deals to them: the SYN is
//!    repeated a second later.

use std::io;
use std::net::TcpListener;
use std::num::NonZeroU32;

use socket2::{SockFilter, SockRef};

/// The number of an interface that does not exist: the kernel counts interfaces up from 1.
const NO_INTERFACE: NonZeroU32 = NonZeroU32::new(i32::MAX as u32).expect("not 0");

/// The means by which a listener is shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// It is bound to an interface that does not exist.
    NoInterface,
    /// It gets a filter that drops new SYNs.
    Filter,
    /// There is none: peers come until the listener is closed.
    None,
}

impl Means {
    /// Finds out by which means this process may shut a listener. That leaves the listener as it
    /// was, if it does not listen yet.
    pub(super) fn find(listener: &SockRef<'_>) -> Self {
        if may_rebind(listener) {
            Self::NoInterface
        } else if may_filter(listener) {
            Self::Filter
        } else {
            Self::None
        }
    }

    /// The means for a listener that listens already, and so cannot be tried with a filter, which its
    /// peers would notice: where it may not be bound to another interface the filter is tried when it
    /// is to be shut.
    #[cfg(feature = "handover")]
    pub(super) fn of_listening(listener: &SockRef<'_>) -> Self {
        match may_rebind(listener) {
            true => Self::NoInterface,
            false => Self::Filter,
        }
    }

    /// Shuts a listener; `false` where there is no means to, and new peers still come.
    ///
    /// # Errors
    /// The system's, where it refuses what it allowed when the listener was bound.
    pub(super) fn shut(self, listener: &TcpListener) -> io::Result<bool> {
        let listener = SockRef::from(listener);
        let mut error = None;
        if self == Self::NoInterface {
            match bind_to_no_interface(&listener) {
                Ok(()) => return Ok(true),
                Err(refused) => error = Some(refused),
            }
        }
        if self != Self::None {
            match listener.attach_filter(&NO_SYN) {
                Ok(()) => return Ok(true),
                Err(refused) => error = error.or(Some(refused)),
            }
        }
        match error {
            Some(error) => Err(io::Error::new(
                error.kind(),
                format!("new peers still come while it is swept, some may be reset: {error}"),
            )),
            None => Ok(false),
        }
    }
}

/// Whether a listener may be bound to another interface. Binding it to the one it has, or to none
/// if it has none, is refused in the same cases and changes nothing.
fn may_rebind(listener: &SockRef<'_>) -> bool {
    let same = listener.device_index_v4();
    same.and_then(|index| listener.bind_device_by_index_v4(index))
        .is_ok()
}

/// Whether a listener may be given the filter: it is given it, and loses it again.
fn may_filter(listener: &SockRef<'_>) -> bool {
    listener
        .attach_filter(&NO_SYN)
        .and_then(|()| listener.detach_filter())
        .is_ok()
}

/// Binds a listener to the interface that does not exist, and checks that it is.
fn bind_to_no_interface(listener: &SockRef<'_>) -> io::Result<()> {
    listener.bind_device_by_index_v4(Some(NO_INTERFACE))?;
    // A sandbox that stands in for a kernel may accept the option and ignore it.
    match listener.device_index_v4()? {
        Some(NO_INTERFACE) => Ok(()),
        other => Err(io::Error::other(format!(
            "bound to the interface {other:?} in place of none"
        ))),
    }
}

/// A filter that drops what would open a connection, a segment with SYN and without ACK. Segments
/// of a handshake under way pass.
const NO_SYN: [SockFilter; 5] = {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
};

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;

    /// As any user: the queue stays, new peers are refused at once, and what was accepted is bound
    /// to nothing.
    #[test]
    fn a_listener_that_is_shut_keeps_its_queue_and_takes_nobody_new() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert_eq!(Means::find(&SockRef::from(&listener)), Means::NoInterface);
            let port = listener.local_addr().unwrap().port();
            let connect = || match address {
                "[::1]:0" => TcpStream::connect(("::1", port)),
                _ => TcpStream::connect(("127.0.0.1", port)),
            };
            let queued = connect().unwrap();
            assert!(Means::NoInterface.shut(&listener).unwrap());
            assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer.port(), queued.local_addr().unwrap().port());
            let bound = SockRef::from(&accepted).device_index_v4().unwrap();
            assert_eq!(bound, None);
        }
    }
}
