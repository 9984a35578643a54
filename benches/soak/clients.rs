//! The load: clients of every kind, each on a thread of its own, that go on until they are told to end.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use gracious::rustls::pki_types::ServerName;
use gracious::rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustix::net::sockopt;

use crate::server::Ports;

/// An answer that takes longer is late.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many bytes a slow reader asks for.
const BIG: usize = 512 * 1024;

/// What the clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answered: AtomicU64,
    /// A request on a connection that had been answered before, and was ended without a word: it was on
    /// its way when the server ended what was idle.
    pub(crate) unanswered: AtomicU64,
    /// What no server of this crate may do to a client that behaves.
    pub(crate) failures: Mutex<Vec<String>>,
}

/// Everybody, until this is ended.
#[derive(Debug)]
pub(crate) struct Clients {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How a client takes one turn: connects, asks, and hangs up.
type Turn = fn(&Place, &Seen) -> io::Result<()>;

/// Where clients connect.
pub(crate) struct Place {
    pub(crate) ports: Ports,
    pub(crate) tls: Arc<ClientConfig>,
    is_over: Arc<AtomicBool>,
}

/// The kinds of clients, how many there are of each, and whether they behave: an error is a failure
/// of the server's then.
const KINDS: [(&str, usize, bool, Turn); 9] = [
    ("churning", 3, true, churning),
    ("over TLS", 2, true, over_tls),
    ("of HTTP", 2, true, of_http),
    ("keeping alive", 3, true, keeping_alive),
    ("slow to read", 2, true, slow_to_read),
    ("slow to begin", 2, true, slow_to_begin),
    ("rude", 1, false, rude),
    ("panicking", 1, false, panicking),
    ("never pausing", 1, false, never_pausing),
];

impl Clients {
    pub(crate) fn begin(ports: Ports, tls: &Arc<ClientConfig>, seen: &Arc<Seen>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (name, count, behaves, turn) in KINDS {
            for _ in 0..count {
                let (seen, is_over) = (seen.clone(), is_over.clone());
                let place = Place {
                    ports,
                    tls: tls.clone(),
                    is_over,
                };
                threads.push(thread::spawn(move || {
                    while !place.is_over.load(Relaxed) {
                        if let (Err(error), true) = (turn(&place, &seen), behaves) {
                            let mut failures = seen.failures.lock().unwrap();
                            failures.push(format!("a client {name}: {error}"));
                        }
                    }
                }));
            }
        }
        Self { is_over, threads }
    }

    /// Waits for everybody's last turn.
    pub(crate) fn end(self) {
        self.is_over.store(true, Relaxed);
        for thread in self.threads {
            let _panicked = thread.join();
        }
    }
}

fn connect(to: std::net::SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads a line that is expected, whole.
fn expect(reader: &mut impl BufRead, expected: &str) -> io::Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.trim_end() == expected && line.ends_with('\n') {
        return Ok(());
    }
    let message = format!("expected {expected:?}, got {line:?}");
    Err(io::Error::new(ErrorKind::UnexpectedEof, message))
}

/// Reads to a clean end.
fn expect_end(mut reader: impl Read) -> io::Result<()> {
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest)?;
    if rest.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} bytes more than asked for",
        rest.len()
    )))
}

fn churning(place: &Place, seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.lines)?;
    stream.write_all(b"hello\n")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    expect(&mut reader, "hello")?;
    seen.answered.fetch_add(1, Relaxed);
    stream.shutdown(Shutdown::Write).ok();
    expect_end(reader)
}

fn over_tls(place: &Place, seen: &Seen) -> io::Result<()> {
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let tls = ClientConnection::new(place.tls.clone(), name).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(tls, connect(place.ports.tls)?));
    stream.get_mut().write_all(b"slow\n")?;
    expect(&mut stream, "slow")?;
    seen.answered.fetch_add(1, Relaxed);
    stream.get_mut().conn.send_close_notify();
    stream.get_mut().flush()?;
    expect_end(stream)
}

/// Asks until an answer says that it is the last.
fn of_http(place: &Place, seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.http)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    for _ in 0..2_000 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n")?;
        expect(&mut reader, "HTTP/1.1 200 OK")?;
        let (mut header, mut is_last) = (String::new(), false);
        while header != "\r\n" {
            header.clear();
            if reader.read_line(&mut header)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            is_last |= header == "connection: close\r\n";
        }
        let mut body = [0; 5];
        reader.read_exact(&mut body)?;
        seen.answered.fetch_add(1, Relaxed);
        if is_last {
            return expect_end(reader);
        }
    }
    Ok(())
}

/// Asks now and then on one connection, until the server ends it.
fn keeping_alive(place: &Place, seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.lines)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    for turn in 0..200 {
        if place.is_over.load(Relaxed) {
            break;
        }
        stream.write_all(b"still here\n")?;
        if turn > 0 && reader.fill_buf()?.is_empty() {
            seen.unanswered.fetch_add(1, Relaxed);
            return Ok(());
        }
        expect(&mut reader, "still here")?;
        seen.answered.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn slow_to_read(place: &Place, seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.lines)?;
    stream.write_all(format!("big {BIG}\n").as_bytes())?;
    let (mut left, mut buf) = (BIG + 1, [0; 32 * 1024]);
    while left > 0 {
        match stream.read(&mut buf)? {
            0 => return Err(io::Error::other(format!("{left} bytes are missing"))),
            read => left -= read,
        }
        sleep(Duration::from_millis(10));
    }
    seen.answered.fetch_add(1, Relaxed);
    stream.shutdown(Shutdown::Write).ok();
    expect_end(stream)
}

fn slow_to_begin(place: &Place, seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.lines)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    sleep(Duration::from_millis(200));
    for byte in b"at last\n" {
        stream.write_all(&[*byte])?;
        sleep(Duration::from_millis(5));
    }
    expect(&mut reader, "at last")?;
    seen.answered.fetch_add(1, Relaxed);
    Ok(())
}

/// Resets in the middle of a line.
fn rude(place: &Place, _seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.lines)?;
    stream.write_all(b"big 100000\nhalf a li")?;
    sleep(Duration::from_millis(3));
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(())
}

fn panicking(place: &Place, _seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.lines)?;
    stream.write_all(b"panic\n")?;
    let _end = stream.read(&mut [0])?;
    sleep(Duration::from_millis(3));
    Ok(())
}

/// Asks without waiting for replies.
fn never_pausing(place: &Place, _seen: &Seen) -> io::Result<()> {
    let mut stream = connect(place.ports.lines)?;
    let mut reader = stream.try_clone()?;
    let reading = thread::spawn(move || {
        let mut buf = vec![0; 64 * 1024];
        while reader.read(&mut buf).is_ok_and(|read| read > 0) {}
    });
    let requests = b"more\n".repeat(1000);
    while !place.is_over.load(Relaxed) && stream.write_all(&requests).is_ok() {}
    stream.shutdown(Shutdown::Both).ok();
    let _panicked = reading.join();
    Ok(())
}
