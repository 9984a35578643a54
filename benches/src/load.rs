//! The load: clients that wait for a reply before they ask again, all on one thread.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::process::ServerProcess;
use crate::protocol::{PING, PONG};

/// How many clients there are, and what each does.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    clients: usize,
    depth: u64,
    hang_up: bool,
    until_the_end: bool,
    sleepless: bool,
}

impl Shape {
    /// Clients that stay and make one request at a time.
    #[must_use]
    pub const fn clients(clients: usize) -> Self {
        Self {
            clients,
            depth: 1,
            hang_up: false,
            until_the_end: false,
            sleepless: false,
        }
    }

    /// Each client asks so many times in one write.
    #[must_use]
    pub const fn deep(self, depth: u64) -> Self {
        Self { depth, ..self }
    }

    /// Each client connects, asks, and closes when it has the reply; then another one comes.
    #[must_use]
    pub const fn hanging_up(self) -> Self {
        Self {
            hang_up: true,
            ..self
        }
    }

    /// As [`hanging_up`](Self::hanging_up), but each client closes when it has seen the server's end.
    #[must_use]
    pub const fn until_the_end(self) -> Self {
        Self {
            hang_up: true,
            until_the_end: true,
            ..self
        }
    }

    /// Whether it is the servers that close first.
    #[must_use]
    pub const fn is_until_the_end(self) -> bool {
        self.until_the_end
    }

    /// The load never sleeps, so that no server waits for it to wake up: for servers that have
    /// another core.
    #[must_use]
    pub const fn sleepless(self) -> Self {
        Self {
            sleepless: true,
            ..self
        }
    }

    /// Whether a request is a connection.
    #[must_use]
    pub const fn hangs_up(self) -> bool {
        self.hang_up
    }
}

/// Clients of one server, which are quiet between two calls.
#[derive(Debug)]
pub struct Load {
    server: SocketAddr,
    shape: Shape,
    epoll: OwnedFd,
    clients: Vec<Option<Client>>,
    /// As many requests as a client makes in one write.
    batch: Vec<u8>,
    /// Requests that the current run has yet to make.
    left: u64,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    /// Bytes of replies that have not come yet.
    awaited: usize,
}

impl Load {
    /// Connects, unless clients do so for each request, and has each client answered once.
    ///
    /// # Errors
    /// Those of the sockets.
    pub fn open(server: SocketAddr, shape: Shape) -> io::Result<Self> {
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
    ///
    /// # Errors
    /// Those of the sockets; `UnexpectedEof` where a server hangs up.
    pub fn run(&mut self, requests: u64) -> io::Result<()> {
        self.left = requests;
        for index in 0..self.clients.len() {
            self.ask(index)?;
        }
        let mut unanswered = requests as usize * PONG.len();
        let mut ends = if self.shape.until_the_end {
            requests
        } else {
            0
        };
        let mut events = Vec::with_capacity(1024);
        let mut replies = [0; 1024];
        let timeout = self.shape.sleepless.then(Timespec::default);
        while unanswered > 0 || ends > 0 {
            epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref())?;
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                let client = self.clients[index].as_mut().expect("it is connected");
                let len = client.stream.read(&mut replies)?;
                if len == 0 && !(self.shape.until_the_end && client.awaited == 0) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                unanswered -= len;
                client.awaited -= len;
                if len == 0 {
                    ends -= 1;
                }
                if client.awaited == 0 && (len == 0 || !self.shape.until_the_end) {
                    if self.shape.hang_up {
                        self.clients[index] = None;
                    }
                    self.ask(index)?;
                }
            }
        }
        Ok(())
    }

    /// Stops the server while all clients are silent, and waits until it is gone. Each client hangs
    /// up when it sees the end.
    ///
    /// # Errors
    /// `TimedOut` where that does not happen.
    pub fn see_the_end(mut self, server: &mut ServerProcess) -> io::Result<End> {
        let process = server.end()?;
        let start = Instant::now();
        let gone = thread::spawn(move || {
            let patience = Timespec::try_from(PATIENCE).expect("it is some seconds");
            poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience))?;
            io::Result::Ok(start.elapsed())
        });
        server.stop();
        let mut events = Vec::with_capacity(1024);
        let mut left = self.clients.len();
        while left > 0 {
            self.wait(&mut events, start + PATIENCE)?;
            // Hung up or reset: it is the end.
            for event in events.drain(..) {
                self.clients[event.data.u64() as usize] = None;
                left -= 1;
            }
        }
        let told = start.elapsed();
        let gone = gone.join().expect("it does not panic")?;
        if gone >= PATIENCE {
            return Err(still_there());
        }
        Ok(End { told, gone })
    }

    /// Stops the server after a while in which all clients ask whenever they are answered, and
    /// tells what they saw of it.
    ///
    /// # Errors
    /// `TimedOut` where a server goes on.
    pub fn interrupt(
        mut self,
        server: &mut ServerProcess,
        after: Duration,
    ) -> io::Result<Interrupted> {
        self.left = u64::MAX;
        let mut seen = Interrupted::default();
        for index in 0..self.clients.len() {
            self.ask(index)?;
        }
        let mut events = Vec::with_capacity(1024);
        let mut replies = [0; 1024];
        let start = Instant::now();
        let mut stopped = false;
        while self.clients.iter().any(Option::is_some) {
            if !stopped && start.elapsed() >= after {
                server.stop();
                stopped = true;
            }
            self.wait(&mut events, start + PATIENCE)?;
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                let client = self.clients[index].as_mut().expect("it is connected");
                let whole = self.shape.depth as usize * PONG.len();
                let goes_on = match client.stream.read(&mut replies) {
                    Ok(0) if client.awaited == whole => {
                        seen.closed += 1;
                        false
                    }
                    Ok(0) => {
                        seen.truncated += 1;
                        false
                    }
                    Ok(len) => {
                        client.awaited -= len;
                        if client.awaited == 0 {
                            seen.answered += self.shape.depth;
                            // Where this fails, the next read tells how it ended.
                            let _ = client.stream.write_all(&self.batch);
                            client.awaited = whole;
                        }
                        true
                    }
                    Err(_) => {
                        seen.reset += 1;
                        false
                    }
                };
                if !goes_on {
                    self.clients[index] = None;
                }
            }
        }
        Ok(seen)
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        if epoll::wait(&self.epoll, spare_capacity(events), Some(&left))? == 0 {
            return Err(still_there());
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

/// How long after it was asked for an end came.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The last client has seen it.
    pub told: Duration,
    /// The process is gone.
    pub gone: Duration,
}

/// What clients saw of a stop in the middle of their requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interrupted {
    /// Requests, before the stop and after it.
    pub answered: u64,
    /// Clients that had a reply in part when the connection ended.
    pub truncated: u64,
    /// Clients whose connection was reset: what they had sent, and what was sent to them, is lost.
    pub reset: u64,
    /// Clients that saw an ordinary end instead of a reply: their request had crossed with it.
    pub closed: u64,
}

/// After that long, a server is taken to have ignored the stop.
const PATIENCE: Duration = Duration::from_secs(40);

fn still_there() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the server was asked to stop and has not",
    )
}
