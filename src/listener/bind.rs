//! Binding: all that a builder was asked to listen on, in that order, or nothing.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::custom::CustomListener;
use super::inherited::Adopted;
use super::unix::Unix;
use super::{AnyListener, ErasedListener, Listener, RawListener, Security, tcp};
use crate::address::{Address, Target};
use crate::config::Config;
use crate::transport::Engine;

/// What a builder was asked to listen on.
pub(crate) enum Source {
    Target(Target, Option<Security>),
    Adopted(Adopted),
    Custom(Arc<dyn ErasedListener>),
}

impl Source {
    /// A listener of the user's own.
    pub(crate) fn custom(listener: impl Listener) -> Self {
        Self::Custom(Arc::new(CustomListener::new(listener)))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(target, _) => target.fmt(f),
            Self::Adopted(adopted) => adopted.fmt(f),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// What listens at one address.
pub(crate) struct Bound {
    /// One, or, on TCP, as many as there are engines, one for each shard.
    pub(crate) sockets: Vec<AnyListener>,
    pub(crate) tls: Option<Security>,
}

/// Binds everything, in the order of `sources`, or nothing. Gives for each address its listeners.
///
/// # Errors
/// The first source that cannot be bound, with its address. What was bound before is closed.
pub(crate) async fn bind(
    sources: Vec<Source>,
    config: &Config,
    engines: &[Engine],
) -> io::Result<Vec<Bound>> {
    if sources.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "nothing to listen on: expected an address or a listener before `bind`",
        ));
    }
    // All names are resolved before the first is bound: an IPv6 socket takes IPv4 peers, too,
    // unless one of the other addresses is IPv4 with the same port, and so has to know them all.
    let mut resolved = Vec::new();
    for source in sources {
        let mut tls = None;
        let it = match source {
            Source::Target(target, security) => {
                tls = security;
                match target.into_address()? {
                    Address::Tcp(address) => Resolved::Tcp(vec![address]),
                    Address::Host(host, port) => Resolved::Tcp(tcp::resolve(host, port).await?),
                    address @ (Address::Unix(_) | Address::Abstract(_)) => Resolved::Unix(address),
                    address => {
                        let message = format!(
                            "cannot listen on `{address}`: expected HOST:PORT, unix:PATH or unix:@NAME"
                        );
                        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                    }
                }
            }
            Source::Adopted(adopted) => {
                Resolved::Bound(AnyListener::Socket(adopted.into_raw(&engines[0])?))
            }
            Source::Custom(listener) => Resolved::Bound(AnyListener::Custom(listener)),
        };
        resolved.push((it, tls));
    }
    let mut all: Vec<SocketAddr> = Vec::new();
    for (it, _) in &resolved {
        if let Resolved::Tcp(addresses) = it {
            all.extend(addresses);
        }
    }
    let mut bound: Vec<Bound> = Vec::new();
    for (it, tls) in resolved {
        let sockets = match it {
            Resolved::Tcp(addresses) => {
                let all = tcp::bind_all(&addresses, &all, config, engines)?;
                let all = all.into_iter();
                all.map(|sockets| sockets.into_iter().map(socket).collect())
                    .collect()
            }
            Resolved::Unix(address) => {
                let socket = Unix::bind(address, config, &engines[0]).await?;
                vec![vec![self::socket(socket)]]
            }
            Resolved::Bound(listener) => vec![vec![listener]],
        };
        bound.extend(sockets.into_iter().map(|sockets| Bound {
            sockets,
            tls: tls.clone(),
        }));
    }
    Ok(bound)
}

/// A source whose name is resolved.
enum Resolved {
    /// The addresses of one name.
    Tcp(Vec<SocketAddr>),
    Unix(Address),
    /// A listener that was made elsewhere.
    Bound(AnyListener),
}

fn socket(listener: impl RawListener + 'static) -> AnyListener {
    AnyListener::Socket(Box::new(listener))
}

/// The error of an address that cannot be bound, with the address in its message.
pub(super) fn cannot_listen(address: &Address, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
