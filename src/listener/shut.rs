//! Keeping new peers out of a TCP listener that is still open, on Linux.
//!
//! To close a listener resets the peers in its queue, and those whose handshake is under way. So a
//! listener is first shut: new peers are refused, and all others are accepted as before. Nothing in
//! the system's interface says so; two things amount to it:
//!
//! - **No interface.** A listener that is bound to an interface (`SO_BINDTOIFINDEX`, Linux 5.7) is
//!   found for packets of that interface alone; bound to one that does not exist it is found for
//!   none, and a new SYN meets a refusal at once. A handshake under way is found before listeners
//!   are looked for, and completes; the queue is not touched; an accepted socket is not bound. It
//!   needs no privilege, unless the listener is bound to an interface already.
//! - **A filter** that drops new SYNs, for a process with `CAP_NET_ADMIN`. Their senders try again a
//!   second later; so does a peer whose SYN-ACK was lost, in vain.
//!
//! Both act on the socket, not on the descriptor: never used on a socket that others hold, too. The
//! first cannot be undone without a privilege. Of the sockets on one port that share its peers
//! (`SO_REUSEPORT`) it has to be used on all: the kernel would go on dealing peers out to those it
//! was used on, and drop them.

use std::io;
use std::net::TcpListener;
use std::num::NonZeroU32;

use socket2::{SockFilter, SockRef};

/// An interface that does not exist: the kernel gives out small numbers, and never this one.
const NO_INTERFACE: NonZeroU32 = NonZeroU32::new(i32::MAX as u32).expect("not 0");

/// What keeps new peers out of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    NoInterface,
    Filter,
    /// Nothing: peers come until the listener is closed.
    None,
}

impl Means {
    /// Finds out what this process may use on a listener, without an effect on it.
    pub(super) fn find(listener: &SockRef<'_>) -> Self {
        if may_rebind(listener) {
            Self::NoInterface
        } else if may_filter(listener) {
            Self::Filter
        } else {
            Self::None
        }
    }

    /// Keeps new peers out from here on; `false` where they still come.
    pub(super) fn shut(self, listener: &TcpListener) -> bool {
        let listener = SockRef::from(listener);
        let mut error = None;
        if self == Self::NoInterface {
            match bind_to_no_interface(&listener) {
                Ok(()) => return true,
                Err(refused) => error = Some(refused),
            }
        }
        if self != Self::None {
            match listener.attach_filter(&NO_SYN) {
                Ok(()) => return true,
                Err(refused) => error = error.or(Some(refused)),
            }
        }
        if let Some(error) = error {
            log::warn!(
                target: "gracious", error:%;
                "cannot keep new peers out while a listener is swept, some may be reset: {error}",
            );
        }
        false
    }
}

/// Binding a socket to the interface that it is bound to, or to none if it is not, changes nothing
/// and is refused where another interface would be.
fn may_rebind(listener: &SockRef<'_>) -> bool {
    let same = listener.device_index_v4();
    same.and_then(|index| listener.bind_device_by_index_v4(index))
        .is_ok()
}

/// The filter is there for an instant, before the socket listens.
fn may_filter(listener: &SockRef<'_>) -> bool {
    listener
        .attach_filter(&NO_SYN)
        .and_then(|()| listener.detach_filter())
        .is_ok()
}

fn bind_to_no_interface(listener: &SockRef<'_>) -> io::Result<()> {
    listener.bind_device_by_index_v4(Some(NO_INTERFACE))?;
    // A kernel, or what stands in for one, may take an option and do nothing.
    match listener.device_index_v4()? {
        Some(NO_INTERFACE) => Ok(()),
        other => Err(io::Error::other(format!(
            "bound to the interface {other:?} in place of none"
        ))),
    }
}

/// Drops what would open a connection, a segment with SYN and without ACK. What belongs to a
/// handshake under way passes.
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
            assert!(Means::NoInterface.shut(&listener));
            assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer.port(), queued.local_addr().unwrap().port());
            let bound = SockRef::from(&accepted).device_index_v4().unwrap();
            assert_eq!(bound, None);
        }
    }
}
