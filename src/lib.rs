//! A socket server for async-std and smol that stops without losing a byte.

#![deny(unsafe_code)]

mod accept;
mod address;
mod buffer;
mod builder;
mod close;
mod connection;
mod drain;
mod events;
mod group;
mod handle;
mod handler;
mod limits;
mod listener;
mod progress;
mod report;
mod runtime;
mod server;
mod set;
mod shutdown;
#[cfg(feature = "signals")]
mod signals;
mod task;
mod transport;
#[cfg(target_os = "linux")]
mod workers;

pub use address::{Address, Target};
pub use builder::Builder;
pub use connection::{
    Busy, Connection, Credentials, Detached, EndedBy, Lines, ReadHalf, Socket, WriteHalf,
};
pub use events::{Cause, ServerEvent};
pub use group::ConnectionInfo;
pub use handle::{Handle, ListenerInfo, Tracked};
pub use handler::{Handler, Outcome};
pub use listener::{Adopted, Listener};
pub use progress::{DrainProgress, Progress};
pub use report::{AcceptErrors, Limited, Report, Stats, Straggler, Waiting};
#[cfg(feature = "async-std")]
pub use runtime::AsyncStd;
pub use runtime::Runtime;
#[cfg(feature = "smol")]
pub use runtime::Smol;
pub use server::{Running, Server};
pub use set::ServerSet;
pub use shutdown::{Reason, State};
