//! The floor: one thread, edge-triggered epoll, and nothing but what has to be done.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{SocketFlags, accept_with};

use super::{exit_on_stop, listener};
use crate::protocol::{BUFFER, replies, rest_of_replies};

pub(super) fn serve() -> io::Result<()> {
    exit_on_stop();
    let listener = listener()?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let listening = EventData::new_u64(LISTENER);
    epoll::add(
        &epoll,
        &listener,
        listening,
        EventFlags::IN | EventFlags::ET,
    )?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = Vec::with_capacity(1024);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            if event.data.u64() == LISTENER {
                while let Some(stream) = unless_blocked(accept(&listener))? {
                    let key = stream.as_raw_fd() as usize;
                    epoll::add(&epoll, &stream, EventData::new_u64(key as u64), INPUT)?;
                    if connections.len() <= key {
                        connections.resize_with(key + 1, || None);
                    }
                    connections[key] = Some(Connection::new(stream));
                }
                continue;
            }
            let place = &mut connections[event.data.u64() as usize];
            let Some(connection) = place else { continue };
            // Nothing fails here but because of the peer, and it ends that connection.
            if !connection.advance(&epoll, event.flags).unwrap_or(false) {
                *place = None;
            }
        }
    }
}

const INPUT: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);
const LISTENER: u64 = u64::MAX;

fn accept(listener: &TcpListener) -> io::Result<OwnedFd> {
    Ok(accept_with(
        listener,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
    )?)
}

/// Where a connection is, in place of a task.
struct Connection {
    stream: TcpStream,
    buffer: [u8; BUFFER],
    /// Bytes of replies for which there was no room.
    unsent: usize,
}

impl Connection {
    fn new(stream: OwnedFd) -> Self {
        Self {
            stream: stream.into(),
            buffer: [0; BUFFER],
            unsent: 0,
        }
    }

    /// Reads and answers until there is nothing left, or no room; `false` at the peer's end.
    fn advance(&mut self, epoll: &OwnedFd, flags: EventFlags) -> io::Result<bool> {
        // A short read has emptied the socket, unless the end is what comes next.
        let mut more = self.send(epoll)?;
        while more {
            let Some(len) = unless_blocked(self.stream.read(&mut self.buffer))? else {
                break;
            };
            if len == 0 {
                return Ok(false);
            }
            self.unsent = replies(&self.buffer[..len]).len();
            let ends = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            more = self.send(epoll)? && (len == BUFFER || ends);
        }
        Ok(true)
    }

    /// Whether everything could be sent; if not, the room for it will be an event.
    fn send(&mut self, epoll: &OwnedFd) -> io::Result<bool> {
        while self.unsent > 0 {
            let Some(sent) = unless_blocked(self.stream.write(rest_of_replies(self.unsent)))?
            else {
                let key = EventData::new_u64(self.stream.as_raw_fd() as u64);
                epoll::modify(epoll, &self.stream, key, INPUT | EventFlags::OUT)?;
                return Ok(false);
            };
            self.unsent -= sent;
        }
        Ok(true)
    }
}

fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(err) => Err(err),
    }
}
