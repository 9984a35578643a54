//! What the library does not do yet: shown by these tests, and judged as soon as it is said here
//! that it does.

/// It gives up peers that acknowledge nothing, after a time that can be set.
pub(crate) const GIVES_UP_THE_UNREACHABLE: bool = false;

/// It keeps the socket of an idle connection until the peer has acknowledged its end. Where it does
/// not, a request that crosses the end is answered by a reset, which a peer whose end was lost, or
/// was overtaken on its way, sees in its place.
pub(crate) const WAITS_FOR_ITS_END_TO_ARRIVE: bool = false;
