//! The system's way to wait for many sockets.

pub(super) mod epoll;
