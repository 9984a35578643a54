//! What two processes say to each other at a handover: messages over a Unix stream, some with a socket.
//!
//! A message is its kind, the length of what follows in four bytes, and that; numbers are in the
//! machine's byte order, since both ends are on it. The kinds are for ever, what follows is of a
//! [`VERSION`]: so programs of two versions understand each other's refusal.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::address::Address;
use crate::listener::handover::{Inode, Offer};

/// Counted up where a message changes.
pub(super) const VERSION: u32 = 1;

/// A successor asks for the sockets: the version.
pub(super) const TAKE: u8 = b'T';
/// A predecessor begins: the version, the number of sockets.
pub(super) const HELLO: u8 = b'H';
/// One socket, with what it is.
pub(super) const SOCKET: u8 = b'S';
/// The socket at which a handover is asked for, with the same.
pub(super) const TRIGGER: u8 = b'A';
/// The successor serves: the numbers of what it has taken over.
pub(super) const READY: u8 = b'R';
/// The sockets are the successor's, and the predecessor drains.
pub(super) const GO: u8 = b'G';
/// It does not come to that: why, in words.
pub(super) const NO: u8 = b'N';

const HEADER: usize = 5;
/// The longest message, which is a READY of all addresses that there can be.
const LONGEST: usize = 2 * 65536;

pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) body: Vec<u8>,
    pub(super) socket: Option<OwnedFd>,
}

/// Sends a message; `WouldBlock` where `wait` is false and the other end has not read enough yet.
pub(super) fn send(
    stream: &UnixStream,
    kind: u8,
    body: &[u8],
    socket: Option<BorrowedFd<'_>>,
    wait: bool,
) -> io::Result<()> {
    let mut message = vec![kind];
    message.extend((body.len() as u32).to_ne_bytes());
    message.extend(body);
    let sockets: Vec<_> = socket.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut sent = 0;
    while sent < message.len() {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !sockets.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&sockets));
        }
        let mut flags = SendFlags::NOSIGNAL;
        // A message that was begun is sent to its end: it is short.
        flags.set(SendFlags::DONTWAIT, !wait && sent == 0);
        let rest = [IoSlice::new(&message[sent..])];
        sent += retry_on_intr(|| sendmsg(stream, &rest, &mut control, flags))?;
    }
    Ok(())
}

/// Receives a message.
///
/// # Errors
/// `UnexpectedEof` where the other end is gone, `InvalidData` where it speaks otherwise.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Message> {
    let mut header = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut socket = None;
    let mut got = 0;
    while got < HEADER {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let mut rest = [IoSliceMut::new(&mut header[got..])];
            recvmsg(stream, &mut rest, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                socket = sockets.last().or(socket);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got += received.bytes;
    }
    let length = u32::from_ne_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > LONGEST {
        return Err(malformed());
    }
    let mut body = vec![0; length];
    let mut stream = stream;
    stream.read_exact(&mut body)?;
    Ok(Message {
        kind: header[0],
        body,
        socket,
    })
}

/// Waits until there is something to be read; gives what `gives_up` says where that comes first.
pub(super) fn readable<T>(
    stream: &UnixStream,
    mut gives_up: impl FnMut() -> Option<T>,
) -> io::Result<Result<(), T>> {
    loop {
        if let Some(why) = gives_up() {
            return Ok(Err(why));
        }
        let mut state = [PollFd::new(stream, PollFlags::IN)];
        let slice = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_EVERY.subsec_nanos().into(),
        };
        match poll(&mut state, Some(&slice)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(Ok(())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// How often a wait for the other process looks whether it is to be given up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The body of a SOCKET, or a TRIGGER.
pub(super) fn describe(
    number: u16,
    name: &str,
    address: &Address,
    inode: Option<Inode>,
) -> Vec<u8> {
    let (device, file) = inode.unwrap_or_default();
    let mut body = number.to_ne_bytes().to_vec();
    body.push(inode.is_some().into());
    body.extend(device.to_ne_bytes());
    body.extend(file.to_ne_bytes());
    body.extend((name.len() as u32).to_ne_bytes());
    body.extend(name.as_bytes());
    body.extend(address.to_string().as_bytes());
    body
}

/// Adds a socket to the others of its address.
pub(super) fn add(offers: &mut Vec<Offer>, message: Message) -> io::Result<()> {
    let (kind @ (SOCKET | TRIGGER), Some(socket)) = (message.kind, message.socket) else {
        return Err(malformed());
    };
    let mut body = &message.body[..];
    let number = u16::from_ne_bytes(take(&mut body)?);
    let [has_inode] = take(&mut body)?;
    let device = u64::from_ne_bytes(take(&mut body)?);
    let file = u64::from_ne_bytes(take(&mut body)?);
    let length = u32::from_ne_bytes(take(&mut body)?) as usize;
    if let Some(offer) = offers.iter_mut().find(|it| it.number == number) {
        offer.sockets.push(socket);
        return Ok(());
    }
    let (name, address) = body.split_at_checked(length).ok_or_else(malformed)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| malformed());
    offers.push(Offer {
        number,
        name: text(name)?,
        address: text(address)?.parse().map_err(|_| malformed())?,
        inode: (has_inode != 0).then_some((device, file)),
        sockets: vec![socket],
        is_trigger: kind == TRIGGER,
    });
    Ok(())
}

/// The next bytes of a body, as many as the value has.
pub(super) fn take<const N: usize>(body: &mut &[u8]) -> io::Result<[u8; N]> {
    let (taken, rest) = body.split_first_chunk().ok_or_else(malformed)?;
    *body = rest;
    Ok(*taken)
}

pub(super) fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the other process does not speak of a handover",
    )
}

/// The words of a NO.
pub(super) fn words(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sockets_of_one_address_come_together_and_those_of_two_do_not() {
        let (here, there) = UnixStream::pair().unwrap();
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let at: Address = "unix:/run/a: b.sock".parse().unwrap();
        // Two with one name and one address are two.
        for (number, socket) in [(0, &sockets[0]), (7, &sockets[1]), (0, &sockets[2])] {
            let body = describe(number, "web", &at, Some((1, 2)));
            send(&here, SOCKET, &body, Some(socket.as_fd()), false).unwrap();
        }
        let mut offers = Vec::new();
        for _ in 0..3 {
            add(&mut offers, receive(&there).unwrap()).unwrap();
        }
        let counts = offers.iter().map(|it| (it.number, it.sockets.len()));
        assert_eq!(counts.collect::<Vec<_>>(), [(0, 2), (7, 1)]);
        assert_eq!(offers[1].address, at);
        assert_eq!(
            (offers[0].name.as_str(), offers[0].inode),
            ("web", Some((1, 2)))
        );
        let second: TcpListener = offers.remove(1).sockets.remove(0).into();
        let expected = sockets[1].local_addr().unwrap();
        assert_eq!(second.local_addr().unwrap(), expected);
    }

    #[test]
    fn who_says_something_else_is_not_understood() {
        use std::io::Write;
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(
            receive(&there).err().unwrap().kind(),
            io::ErrorKind::InvalidData
        );
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert_eq!(
            receive(&there).err().unwrap().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
