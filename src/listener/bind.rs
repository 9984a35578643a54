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
pub(crate) struct Source {
    pub(crate) kind: Kind,
    pub(crate) tls: Option<Security>,
    /// It stays open through a drain.
    pub(crate) keeps_open: bool,
}

pub(crate) enum Kind {
    Target(Target),
    Adopted(Adopted),
    Custom(Arc<dyn ErasedListener>),
}

impl Source {
    pub(crate) fn target(target: Target) -> Self {
        Self::new(Kind::Target(target))
    }

    pub(crate) fn adopted(adopted: Adopted) -> Self {
        Self::new(Kind::Adopted(adopted))
    }

    /// A listener of the user's own.
    pub(crate) fn custom(listener: impl Listener) -> Self {
        Self::new(Kind::Custom(Arc::new(CustomListener::new(listener))))
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            tls: None,
            keeps_open: false,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Target(target) => target.fmt(f),
            Kind::Adopted(adopted) => adopted.fmt(f),
            Kind::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// What listens at one address.
pub(crate) struct Bound {
    /// One, or, on TCP, as many as there are engines, one for each shard.
    pub(crate) sockets: Vec<AnyListener>,
    pub(crate) tls: Option<Security>,
    pub(crate) keeps_open: bool,
}

/// Binds everything, in the order of `sources`, or nothing. Gives for each address its listeners.
/// `beside` are the addresses that the server is bound to already.
///
/// # Errors
/// The first source that cannot be bound, with its address. What was bound before is closed.
pub(crate) async fn bind(
    sources: Vec<Source>,
    config: &Config,
    engines: &[Engine],
    beside: &[Address],
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
        let Source {
            kind,
            tls,
            keeps_open,
        } = source;
        let it = match kind {
            Kind::Target(target) => match target.into_address()? {
                Address::Tcp(address) => Resolved::Tcp(vec![address]),
                Address::Host(host, port) => Resolved::Tcp(tcp::resolve(host, port).await?),
                address @ (Address::Unix(_) | Address::Abstract(_)) => Resolved::Unix(address),
                address => {
                    let message = format!(
                        "cannot listen on `{address}`: expected HOST:PORT, unix:PATH or unix:@NAME"
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
            },
            Kind::Adopted(adopted) => {
                Resolved::Bound(AnyListener::Socket(adopted.into_raw(&engines[0])?))
            }
            Kind::Custom(listener) => Resolved::Bound(AnyListener::Custom(listener)),
        };
        resolved.push((it, tls, keeps_open));
    }
    let tcp = |address: &Address| match address {
        Address::Tcp(address) => Some(*address),
        _ => None,
    };
    let mut all: Vec<SocketAddr> = beside.iter().filter_map(tcp).collect();
    for (it, ..) in &resolved {
        if let Resolved::Tcp(addresses) = it {
            all.extend(addresses);
        }
    }
    let mut bound: Vec<Bound> = Vec::new();
    for (it, tls, keeps_open) in resolved {
        let sockets = match it {
            Resolved::Tcp(addresses) => {
                // One that is kept open has an accept loop of its own, and not one in each shard.
                let engines = if keeps_open { &engines[..1] } else { engines };
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
            keeps_open,
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
