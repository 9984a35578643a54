//! Sockets: what is known of one connection's, below everything that serves it.

pub(crate) mod buffer;
