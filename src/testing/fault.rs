//! What may go wrong in a simulated world.

use std::fmt;

/// Something that goes wrong in a simulated world, as often and wherever the seed says.
///
/// Each run draws for each of the faults of its [`Simulation`](super::Simulation) whether they are on,
/// so that many runs have few of them, and few have all. A fault that was on in a hundred runs and
/// never came to pass fails the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Packets take their time, up to 60 ms, and some that were lost a fifth of a second more.
    Latency,
    /// A read gives less than there is, a write takes less than there is room for, or waits once, and
    /// buffers are small.
    Pieces,
    /// `accept` fails with what is a peer's or the network's fault.
    AcceptError,
    /// There are few descriptors: `accept` fails with `EMFILE` as long as so many connections are open.
    Shortage,
    /// The listener dies: `accept` fails with `EBADF` for good. The server stops with that error.
    DeadListener,
    /// A peer ends its side when it has said everything, and reads to the end.
    HalfClose,
    /// A peer resets its connection, in the middle of its script or behind it.
    Reset,
    /// A peer resets its connection as soon as it is connected, mostly before it is accepted.
    ResetInQueue,
    /// A peer reads little at once, with pauses of up to a quarter of a second.
    SlowReader,
    /// A peer says its first word up to three seconds late.
    SlowStart,
    /// A peer says nothing, and waits for the end.
    Silent,
    /// A peer is gone without a word, in the middle of its script or behind it: nothing of it comes any
    /// more, and nothing is acknowledged.
    Vanish,
    /// A peer begins its script again and again, until the server ends the connection or an operation
    /// fails.
    NeverPause,
    /// A handler panics at one of its steps.
    HandlerPanic,
    /// A handler never goes on behind one of its steps.
    HandlerHang,
}

impl Fault {
    /// All faults.
    pub const ALL: &'static [Self] = &[
        Self::Latency,
        Self::Pieces,
        Self::AcceptError,
        Self::Shortage,
        Self::DeadListener,
        Self::HalfClose,
        Self::Reset,
        Self::ResetInQueue,
        Self::SlowReader,
        Self::SlowStart,
        Self::Silent,
        Self::Vanish,
        Self::NeverPause,
        Self::HandlerPanic,
        Self::HandlerHang,
    ];

    /// The faults of the network and of peers, which a server meets wherever it runs: what a
    /// [`Simulation`](super::Simulation) has unless it is told otherwise. Left out are the dead
    /// listener, which makes the server return an error, and faults of handlers.
    pub const OUTSIDE: &'static [Self] = &[
        Self::Latency,
        Self::Pieces,
        Self::AcceptError,
        Self::Shortage,
        Self::HalfClose,
        Self::Reset,
        Self::ResetInQueue,
        Self::SlowReader,
        Self::SlowStart,
        Self::Silent,
        Self::Vanish,
        Self::NeverPause,
    ];

    /// Whether this is a manner of a peer, of which one has one at most.
    pub(super) fn is_manner(self) -> bool {
        matches!(
            self,
            Self::HalfClose
                | Self::Reset
                | Self::ResetInQueue
                | Self::SlowReader
                | Self::SlowStart
                | Self::Silent
                | Self::Vanish
                | Self::NeverPause
        )
    }

    /// As it is counted, printed and read again.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Pieces => "pieces",
            Self::AcceptError => "accept error",
            Self::Shortage => "shortage",
            Self::DeadListener => "dead listener",
            Self::HalfClose => "half-close",
            Self::Reset => "reset",
            Self::ResetInQueue => "reset in the queue",
            Self::SlowReader => "slow reader",
            Self::SlowStart => "slow start",
            Self::Silent => "silent",
            Self::Vanish => "vanish",
            Self::NeverPause => "never pausing",
            Self::HandlerPanic => "handler panic",
            Self::HandlerHang => "handler hang",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
