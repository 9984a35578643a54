//! When a connection is idle: between two messages, so that a drain may end it.

use std::time::Duration;

/// When a connection is idle, and so ended by a drain: declared for one by
/// [`Connection::idle_when`](crate::Connection::idle_when), for all of a server by
/// [`Builder::idle_when`](crate::Builder::idle_when).
///
/// With each of these a connection is busy while a [`busy`](crate::Connection::busy) guard lives
/// or a write waits for its peer.
///
/// | protocol | declare |
/// | --- | --- |
/// | requests and replies take turns | nothing: `Answered` |
/// | mostly reads; one-way; chat; input in a buffer of its own | `Unguarded`, with guards where needed |
/// | tunnels, proxies | `Quiet` |
/// | winds itself down: HTTP/2, WebSocket | `Never` |
///
/// A protocol that reads while it answers, as every HTTP server does, has to declare itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IdleWhen {
    /// Everything received was consumed and answered: a write that began after it was consumed has
    /// completed. The default.
    #[default]
    Answered,
    /// No guard lives, and everything received was consumed. Answers do not count.
    Unguarded,
    /// No byte has moved either way for so long. It costs a look at the clock an operation.
    Quiet(Duration),
    /// Never: reads do not end early. The handler watches
    /// [`shutdown_requested`](crate::Connection::shutdown_requested), or is
    /// [wound down](crate::Control::wind_down).
    Never,
}
