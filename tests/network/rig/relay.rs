//! The wire between two TUN devices.
//!
//! 1. What it does to a packet is decided when it comes in, by a seed and the packet's number.
//! 2. A packet is lost, or it leaves half a round trip and a jitter later, behind all before it;
//!    unless it is one of those that are held back and overtaken.
//! 3. Every packet lost is written down.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::take;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::sys;

/// What becomes of packets on their way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// There and back, without the jitter.
    pub round_trip: Duration,
    /// How much longer one way takes at most.
    pub jitter: Duration,
    /// The share of packets that are lost, in each direction.
    pub loss: f64,
    /// The share of packets that are held back for [`HELD_BACK`], so that others overtake them.
    pub reordered: f64,
}

impl Conditions {
    /// Nothing happens to a packet.
    pub const NONE: Self = Self {
        round_trip: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        reordered: 0.0,
    };

    /// A way of that length: the longer, the more it jitters, and one packet in a hundred is
    /// overtaken by those behind it.
    pub const fn wide_area(round_trip_ms: u64, loss: f64) -> Self {
        Self {
            round_trip: Duration::from_millis(round_trip_ms),
            jitter: Duration::from_millis(round_trip_ms / 20),
            loss,
            reordered: if round_trip_ms == 0 { 0.0 } else { 0.01 },
        }
    }
}

/// How much later than it should a packet leaves that is reordered.
pub const HELD_BACK: Duration = Duration::from_millis(3);

/// The relay, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The thread ends when the other end of its pair is closed.
    end: Option<UnixStream>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    conditions: Conditions,
    /// The client's ports whose cable is cut.
    cut: HashSet<u16>,
    lost: Vec<Lost>,
    relayed: u64,
    /// The longest that a packet left later than it should.
    latest: Duration,
}

impl Relay {
    /// Starts it, between the client's device and the server's.
    pub fn start(client: File, server: File, seed: u64) -> io::Result<Self> {
        let (end, ended) = UnixStream::pair()?;
        let shared = Arc::new(Shared {
            start: Instant::now(),
            state: Mutex::new(State {
                conditions: Conditions::NONE,
                cut: HashSet::new(),
                lost: Vec::new(),
                relayed: 0,
                latest: Duration::ZERO,
            }),
        });
        let wire = Wire {
            devices: [client, server],
            shared: shared.clone(),
            random: Random::new(seed),
            under_way: BinaryHeap::new(),
            last: [Instant::now(); 2],
            number: 0,
        };
        let thread = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || wire.run(&ended))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            end: Some(end),
        })
    }

    /// From the next packet on.
    pub fn set(&self, conditions: Conditions) {
        self.state().conditions = conditions;
    }

    pub fn conditions(&self) -> Conditions {
        self.state().conditions
    }

    /// Nothing from or to this port of the client's passes any more.
    pub fn cut(&self, port: u16) {
        self.state().cut.insert(port);
    }

    /// All cables are whole again.
    pub fn mend(&self) {
        self.state().cut.clear();
    }

    /// The packets lost since this was asked last. Those of a cut cable are not among them.
    pub fn lost(&self) -> Vec<Lost> {
        take(&mut self.state().lost)
    }

    /// How many packets have come out since this was asked last, and how much later than it should
    /// the latest of them.
    pub fn relayed(&self) -> (u64, Duration) {
        let mut state = self.state();
        (take(&mut state.relayed), take(&mut state.latest))
    }

    /// How long it has run: the clock of [`Lost::at`].
    pub fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

/// A packet that was lost.
#[derive(Clone, Debug)]
pub struct Lost {
    pub at: Duration,
    pub to_server: bool,
    /// The client's; 0 where it was no TCP segment.
    pub port: u16,
    pub flags: u8,
    /// Of what the segment carries.
    pub length: usize,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = if self.to_server { "server" } else { "client" };
        write!(f, "at {:.3} s to the {to}:", self.at.as_secs_f64())?;
        for (bit, name) in [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (ACK, "ACK")] {
            if self.flags & bit != 0 {
                write!(f, " {name}")?;
            }
        }
        write!(f, ", {} bytes", self.length)
    }
}

const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The client's device is the first, the server's the second.
struct Wire {
    devices: [File; 2],
    shared: Arc<Shared>,
    random: Random,
    under_way: BinaryHeap<Reverse<Packet>>,
    /// When the last packet from each side is due, of those that stay in order.
    last: [Instant; 2],
    number: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    /// Two that are due at once stay in order.
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

impl Wire {
    fn run(mut self, ended: &UnixStream) {
        // Ignoring that it may not be had: the relay then is late more often, and says so.
        let _ = sys::be_urgent();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let wait = self.forward();
            let [client, server] = &self.devices;
            let mut polled = [
                PollFd::new(client, PollFlags::IN),
                PollFd::new(server, PollFlags::IN),
                PollFd::new(ended, PollFlags::IN),
            ];
            let timeout = wait.map(|wait| Timespec {
                tv_sec: wait.as_secs() as _,
                tv_nsec: wait.subsec_nanos() as _,
            });
            match poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("cannot wait for packets: {error}"),
            }
            if !polled[2].revents().is_empty() {
                return;
            }
            for from in 0..2 {
                self.take_from(from, &mut buffer);
            }
        }
    }

    /// Sends on what is due, and says how long it is until the next one is.
    fn forward(&mut self) -> Option<Duration> {
        loop {
            let now = Instant::now();
            let due = self.under_way.peek()?.0.due;
            if due > now {
                return Some(due - now);
            }
            let Reverse(packet) = self.under_way.pop()?;
            // Ignoring a device that is full: the peers see a lost packet, and the kernel counts it.
            let _ = (&self.devices[packet.to]).write(&packet.bytes);
            let mut state = self.shared.state.lock().unwrap();
            state.relayed += 1;
            state.latest = state.latest.max(now - due);
        }
    }

    fn take_from(&mut self, from: usize, buffer: &mut [u8]) {
        // Bounded, so that what is due in the other direction leaves in time.
        for _ in 0..IN_A_ROW {
            match (&self.devices[from]).read(buffer) {
                Ok(length) => self.take(from, &buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("cannot read packets: {error}"),
            }
        }
    }

    fn take(&mut self, from: usize, bytes: &[u8]) {
        let now = Instant::now();
        let segment = Segment::parse(bytes);
        let port = segment.map_or(0, |it| if from == 0 { it.source } else { it.target });
        let mut state = self.shared.state.lock().unwrap();
        let conditions = state.conditions;
        // All are drawn, whatever the conditions: a packet's fate hangs on its number alone.
        let [loss, jitter, reordered] = [(); 3].map(|()| self.random.share());
        if state.cut.contains(&port) {
            return;
        }
        if loss < conditions.loss {
            state.lost.push(Lost {
                at: now - self.shared.start,
                to_server: from == 0,
                port,
                flags: segment.map_or(0, |it| it.flags),
                length: segment.map_or(bytes.len(), |it| it.length),
            });
            return;
        }
        drop(state);
        let mut due = now + conditions.round_trip / 2 + conditions.jitter.mul_f64(jitter);
        if reordered < conditions.reordered {
            due += conditions.jitter + HELD_BACK;
        } else {
            due = due.max(self.last[from]);
            self.last[from] = due;
        }
        self.number += 1;
        self.under_way.push(Reverse(Packet {
            due,
            number: self.number,
            to: 1 - from,
            bytes: bytes.to_vec(),
        }));
    }
}

const IN_A_ROW: usize = 64;

/// What is to be known of a TCP segment.
#[derive(Clone, Copy)]
struct Segment {
    source: u16,
    target: u16,
    flags: u8,
    length: usize,
}

impl Segment {
    fn parse(packet: &[u8]) -> Option<Self> {
        let (protocol, header) = match packet.first()? >> 4 {
            4 => (*packet.get(9)?, usize::from(packet[0] & 15) * 4),
            // Extension headers do not occur here.
            6 => (*packet.get(6)?, 40),
            _ => return None,
        };
        let tcp = packet.get(header..)?;
        if i32::from(protocol) != libc::IPPROTO_TCP || tcp.len() < 20 {
            return None;
        }
        Some(Self {
            source: u16::from_be_bytes([tcp[0], tcp[1]]),
            target: u16::from_be_bytes([tcp[2], tcp[3]]),
            flags: tcp[13],
            length: tcp.len().saturating_sub(usize::from(tcp[12] >> 4) * 4),
        })
    }
}

/// The generator `SplitMix64`.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1, without 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
