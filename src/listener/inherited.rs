//! Listening sockets that were made elsewhere. Others may hold the same socket, so a stop changes
//! nothing that belongs to the socket and not to our descriptor of it.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::RawListener;
use super::tcp::Tcp;
use super::unix::Unix;
use crate::transport::Engine;

/// A listening socket that was made elsewhere, for [`Builder::adopt`](crate::Builder::adopt).
pub struct Adopted(Kind);

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Adopted {
    /// Registers the socket with the engine.
    pub(super) fn into_raw(self, engine: &Engine) -> io::Result<Box<dyn RawListener>> {
        Ok(match self.0 {
            Kind::Tcp(listener) => Box::new(Tcp::adopt(listener, engine)?),
            Kind::Unix(listener) => Box::new(Unix::adopt(listener, engine)?),
        })
    }
}

impl From<TcpListener> for Adopted {
    fn from(listener: TcpListener) -> Self {
        Self(Kind::Tcp(listener))
    }
}

impl From<UnixListener> for Adopted {
    fn from(listener: UnixListener) -> Self {
        Self(Kind::Unix(listener))
    }
}

impl fmt::Debug for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tcp(listener) => listener.fmt(f),
            Kind::Unix(listener) => listener.fmt(f),
        }
    }
}
