//! The load: clients that wait for a reply before they ask again, all on one thread.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use super::servers::PONG;

#[derive(Clone, Copy)]
pub(crate) struct Shape {
    clients: usize,
    depth: u64,
    hang_up: bool,
}

impl Shape {
    pub(crate) const fn clients(clients: usize) -> Self {
        Self {
            clients,
            depth: 1,
            hang_up: false,
        }
    }

    /// Each client asks so many times in one write.
    pub(crate) const fn deep(self, depth: u64) -> Self {
        Self { depth, ..self }
    }

    /// Each client connects, asks, and closes when it has the reply; then another one comes.
    pub(crate) const fn hanging_up(self) -> Self {
        Self {
            hang_up: true,
            ..self
        }
    }
}

pub(crate) struct Load {
    server: SocketAddr,
    shape: Shape,
    epoll: OwnedFd,
    clients: Vec<Option<Client>>,
    /// As many requests as a client makes in one write.
    batch: Vec<u8>,
    /// Requests that the current run has yet to make.
    left: u64,
}

struct Client {
    stream: TcpStream,
    /// Bytes of replies that have not come yet.
    awaited: usize,
}

impl Load {
    /// Connects, unless clients do so for each request, and has each client answered once.
    pub(crate) fn open(server: SocketAddr, shape: Shape) -> io::Result<Self> {
        let mut load = Self {
            server,
            shape,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            clients: Vec::new(),
            batch: PING.repeat(shape.depth as usize),
            left: 0,
        };
        load.clients.resize_with(shape.clients, || None);
        if !shape.hang_up {
            for index in 0..shape.clients {
                // One after the other, or they would overflow the queue of the listener.
                let mut client = load.connect(index)?;
                client.stream.write_all(PING)?;
                client.stream.read_exact(&mut [0; PONG.len()])?;
                load.clients[index] = Some(client);
            }
        }
        Ok(load)
    }

    /// Returns when so many requests have been answered.
    pub(crate) fn run(&mut self, requests: u64) -> io::Result<()> {
        self.left = requests;
        for index in 0..self.clients.len() {
            self.ask(index)?;
        }
        let mut unanswered = requests as usize * PONG.len();
        let mut events = Vec::with_capacity(1024);
        let mut replies = [0; 1024];
        while unanswered > 0 {
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                let client = self.clients[index].as_mut().expect("it is connected");
                let len = client.stream.read(&mut replies)?;
                if len == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                unanswered -= len;
                client.awaited -= len;
                if client.awaited == 0 {
                    if self.shape.hang_up {
                        self.clients[index] = None;
                    }
                    self.ask(index)?;
                }
            }
        }
        Ok(())
    }

    /// Sends the next requests, if there are any left.
    fn ask(&mut self, index: usize) -> io::Result<()> {
        let requests = self.left.min(self.shape.depth);
        if requests == 0 {
            return Ok(());
        }
        self.left -= requests;
        let client = match self.clients[index].take() {
            Some(client) => client,
            None => self.connect(index)?,
        };
        let client = self.clients[index].insert(client);
        client.awaited = requests as usize * PONG.len();
        let batch = &self.batch[..requests as usize * PING.len()];
        client.stream.write_all(batch)
    }

    /// The socket blocks: nothing is read from it before epoll says so, and what is written fits.
    fn connect(&self, index: usize) -> io::Result<Client> {
        let stream = TcpStream::connect(self.server)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?;
        Ok(Client { stream, awaited: 0 })
    }
}

const PING: &[u8] = b"PING\r\n";
