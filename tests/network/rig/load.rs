//! Clients, and what becomes of them.
//!
//! All clients are tasks of one thread at the client's end of the link.

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use smol::LocalExecutor;
use socket2::{Domain, Socket, Type};

use super::link::Link;

/// Runs a load at the client's end of the link.
#[track_caller]
pub fn at_client<T: Send>(link: &Link, load: impl AsyncFnOnce() -> T + Send) -> T {
    link.client.run(|| {
        // Ignoring that it may not be had. The servers are what may be short of time.
        let _ = rustix::process::setpriority_process(None, -10);
        async_io::block_on(load())
    })
}

/// What became of what a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of the answer, and its end where the client waited for that.
    Served,
    /// The connect was refused while there was no server for it.
    Refused,
    /// The connection was reset, or ended before a byte of the answer.
    Reset(String),
    /// The connection ended within the answer.
    Truncated(usize),
    /// Nothing for [`LATE`].
    Late,
    /// An idle connection ended cleanly while the request was on its way.
    Unanswered,
}

/// When an answer does not come any more.
pub const LATE: Duration = Duration::from_secs(10);

/// What became of all.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub served: u64,
    pub refused: u64,
    pub reset: u64,
    pub truncated: u64,
    pub late: u64,
    pub unanswered: u64,
    pub incidents: Vec<Incident>,
}

/// A connection that did not go as it should.
#[derive(Clone, Debug)]
pub struct Incident {
    /// The client's.
    pub port: u16,
    pub what: String,
}

impl Tally {
    pub fn count(&mut self, port: u16, outcome: Outcome) {
        let what = match outcome {
            Outcome::Served => {
                self.served += 1;
                return;
            }
            Outcome::Refused => {
                self.refused += 1;
                return;
            }
            Outcome::Unanswered => {
                self.unanswered += 1;
                return;
            }
            Outcome::Reset(what) => {
                self.reset += 1;
                what
            }
            Outcome::Truncated(length) => {
                self.truncated += 1;
                format!("ended after {length} bytes")
            }
            Outcome::Late => {
                self.late += 1;
                "late".to_owned()
            }
        };
        self.incidents.push(Incident { port, what });
    }

    pub fn add(&mut self, other: Self) {
        self.served += other.served;
        self.refused += other.refused;
        self.reset += other.reset;
        self.truncated += other.truncated;
        self.late += other.late;
        self.unanswered += other.unanswered;
        self.incidents.extend(other.incidents);
    }

    pub fn asked(&self) -> u64 {
        self.served + self.refused + self.lost() + self.unanswered
    }

    /// Those who were let in, and not served.
    pub fn lost(&self) -> u64 {
        self.reset + self.truncated + self.late
    }
}

/// A connected socket, or one that connects.
#[derive(Debug)]
pub struct Client {
    stream: Async<TcpStream>,
    pub port: u16,
}

impl Client {
    /// Begins to connect. The receive buffer is what decides how much the server has to keep for a
    /// client that reads slowly.
    pub fn connecting(address: SocketAddr, receive_buffer: Option<usize>) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from(socket);
        Ok(Self {
            port: stream.local_addr()?.port(),
            stream: Async::new_nonblocking(stream)?,
        })
    }

    pub async fn connected(&self) -> io::Result<()> {
        self.stream.writable().await?;
        self.stream.get_ref().take_error()?.map_or(Ok(()), Err)
    }

    /// Connected within [`LATE`].
    pub async fn connect(address: SocketAddr, receive_buffer: Option<usize>) -> io::Result<Self> {
        let client = Self::connecting(address, receive_buffer)?;
        within(LATE, client.connected())
            .await
            .unwrap_or_else(late)?;
        Ok(client)
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).await
    }

    /// Sends no more, but goes on to read.
    pub fn end_writing(&self) -> io::Result<()> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write)
    }

    /// One line; without an end of line if the connection ends first, and empty if it ends at once.
    pub async fn line(&mut self) -> io::Result<Vec<u8>> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while line.last() != Some(&b'\n') {
            if self.read(&mut byte).await? == 0 {
                break;
            }
            line.push(byte[0]);
        }
        Ok(line)
    }

    /// Asks for something that is answered by exactly this and the end.
    pub async fn converse(&mut self, request: &str, answer: &str, half_closed: bool) -> Outcome {
        let conversation = async {
            self.write(request.as_bytes()).await?;
            if half_closed {
                self.end_writing()?;
            }
            let mut got = Vec::new();
            self.stream.read_to_end(&mut got).await?;
            Ok(got)
        };
        match within(LATE, conversation).await {
            None => Outcome::Late,
            Some(Err(error)) => reset(&error),
            Some(Ok(got)) => judge(&got, answer.as_bytes()),
        }
    }
}

/// What a whole answer says.
pub fn judge(got: &[u8], answer: &[u8]) -> Outcome {
    if got == answer {
        Outcome::Served
    } else if got.is_empty() {
        Outcome::Reset("ended without an answer".to_owned())
    } else if answer.starts_with(got) {
        Outcome::Truncated(got.len())
    } else {
        let (got, answer) = (
            String::from_utf8_lossy(got),
            String::from_utf8_lossy(answer),
        );
        Outcome::Reset(format!("answered {got:?}, expected {answer:?}"))
    }
}

/// What an error on a connection says.
pub fn reset(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::TimedOut => Outcome::Late,
        _ => Outcome::Reset(error.to_string()),
    }
}

/// `None` if it has not ended by then.
pub async fn within<T>(span: Duration, future: impl Future<Output = T>) -> Option<T> {
    let late = async {
        Timer::after(span).await;
        None
    };
    async { Some(future.await) }.or(late).await
}

pub fn late<T>() -> io::Result<T> {
    Err(ErrorKind::TimedOut.into())
}

/// Many clients one after the other, each with one request.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    pub address: SocketAddr,
    pub a_second: u32,
    /// Whether the clients end their side behind the request.
    pub half_closed: bool,
}

/// What the clients of a storm may meet.
#[derive(Debug, Default)]
pub struct Gate {
    /// The server was asked to stop: connects may be refused.
    pub stopping: Cell<bool>,
    /// Another server listens: a client that connects from now on is not refused.
    pub open_again: Cell<bool>,
}

impl Storm {
    pub fn connects_in(self, span: Duration) -> u32 {
        (span.as_secs_f64() * f64::from(self.a_second)) as u32
    }

    /// Lets a client connect as often as `each`, which is told its number, wants it, and waits for
    /// all of them.
    pub async fn rage(self, gate: &Gate, mut each: impl FnMut(u32) -> bool) -> Tally {
        // Borrowed by tasks, which end here or with this future.
        let tasks = LocalExecutor::new();
        let raging = async {
            let start = Instant::now();
            let mut clients = Vec::new();
            let mut number = 0;
            while each(number) {
                clients.push(tasks.spawn(self.one(number, gate)));
                number += 1;
                Timer::at(start + number * Duration::from_secs(1) / self.a_second).await;
            }
            let mut tally = Tally::default();
            for client in clients {
                let (port, outcome) = client.await;
                tally.count(port, outcome);
            }
            tally
        };
        tasks.run(raging).await
    }

    async fn one(self, number: u32, gate: &Gate) -> (u16, Outcome) {
        let mut client = match Client::connecting(self.address, None) {
            Ok(client) => client,
            Err(error) => return (0, reset(&error)),
        };
        let for_nobody = gate.open_again.get();
        let connected = within(LATE, client.connected()).await;
        let outcome = match connected.unwrap_or_else(late) {
            Ok(()) => {
                let (request, answer) = (format!("bye {number}\n"), format!("{number}\n"));
                client.converse(&request, &answer, self.half_closed).await
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                if !gate.stopping.get() {
                    Outcome::Reset("refused before the stop".to_owned())
                } else if for_nobody {
                    Outcome::Reset("refused although the successor listened".to_owned())
                } else {
                    Outcome::Refused
                }
            }
            Err(error) => reset(&error),
        };
        (client.port, outcome)
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}: {}", self.port, self.what)
    }
}
