//! Clients that never pause: they ask without waiting for replies, and read these as they come.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::protocol::{PING, PONG};

/// So many clients on one thread, until this is dropped.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    /// Bytes of replies.
    received: AtomicU64,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    /// Bytes that were sent of the request which is on its way.
    at: usize,
}

impl Flood {
    /// Connects, and begins to ask.
    ///
    /// # Errors
    /// Those of the sockets.
    pub fn begin(server: SocketAddr, clients: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut all = Vec::new();
        for index in 0..clients {
            let stream = TcpStream::connect(server)?;
            stream.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(index as u64);
            let both = epoll::EventFlags::IN | epoll::EventFlags::OUT;
            epoll::add(&epoll, &stream, data, both)?;
            all.push(Client { stream, at: 0 });
        }
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        let thread = thread::spawn(move || {
            // A server that is stopped ends it, too.
            let _ = its.go_on(&epoll, &mut all);
        });
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// How many requests have been answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.received.load(Relaxed) / PONG.len() as u64
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn go_on(&self, epoll: &OwnedFd, clients: &mut [Client]) -> io::Result<()> {
        let requests = PING.repeat(64 * 1024 / PING.len());
        let mut replies = vec![0; 256 * 1024];
        let mut events = Vec::with_capacity(clients.len().max(1));
        // It is asked this often whether it is over.
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        while !self.is_over.load(Relaxed) {
            epoll::wait(epoll, spare_capacity(&mut events), Some(&timeout))?;
            for event in events.drain(..) {
                let flags = event.flags;
                let client = &mut clients[event.data.u64() as usize];
                if flags.contains(epoll::EventFlags::OUT) {
                    let sent = unless_blocked(client.stream.write(&requests[client.at..]))?;
                    client.at = (client.at + sent) % PING.len();
                }
                if flags.contains(epoll::EventFlags::IN) {
                    let received = unless_blocked(client.stream.read(&mut replies))?;
                    if received == 0 {
                        return Ok(());
                    }
                    self.received.fetch_add(received as u64, Relaxed);
                }
            }
        }
        Ok(())
    }
}

fn unless_blocked(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        moved => moved,
    }
}
