//! Listeners that somebody else has made.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::{Bound, Tcp, Unix};
use crate::transport::Engine;

/// A listening socket that somebody else has made, for [`Builder::adopt`](crate::Builder::adopt).
pub struct Adopted(Kind);

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Adopted {
    pub(super) fn into_bound(self, engine: &Engine) -> io::Result<Box<dyn Bound>> {
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
