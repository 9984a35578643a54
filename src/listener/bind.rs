//! Binding: all that a builder was asked to listen on, in that order, or nothing.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::custom::CustomListener;
use super::inherited::Adopted;
#[cfg(feature = "systemd")]
use super::systemd;
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
    /// What systemd has passed: of this name, or all.
    #[cfg(feature = "systemd")]
    Systemd(Option<String>),
}

impl Source {
    pub(crate) fn target(target: Target) -> Self {
        Self::new(Kind::Target(target))
    }

    pub(crate) fn adopted(adopted: Adopted) -> Self {
        Self::new(Kind::Adopted(adopted))
    }

    /// What systemd has passed.
    #[cfg(feature = "systemd")]
    pub(crate) fn systemd(name: Option<String>) -> Self {
        Self::new(Kind::Systemd(name))
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
            #[cfg(feature = "systemd")]
            Kind::Systemd(name) => f.debug_tuple("Systemd").field(name).finish(),
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
            #[cfg(feature = "systemd")]
            Kind::Systemd(name) => {
                for adopted in systemd::take(name.as_deref())? {
                    let listener = AnyListener::Socket(adopted.into_raw(&engines[0])?);
                    resolved.push((Resolved::Bound(listener), tls.clone(), keeps_open));
                }
                continue;
            }
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
        #[cfg(feature = "systemd")]
        let (it, stored) = take_stored(it, config, engines)?;
        #[cfg(not(feature = "systemd"))]
        let stored = Vec::new();
        let bound_now = match it {
            // All of its addresses were stored.
            Resolved::Tcp(addresses) if addresses.is_empty() => Vec::new(),
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
        let sockets = stored.into_iter().chain(bound_now);
        bound.extend(sockets.map(|sockets| Bound {
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

/// Takes the sockets of a source that were stored by an earlier process of the service; gives what is
/// left to bind.
#[cfg(feature = "systemd")]
fn take_stored(
    source: Resolved,
    config: &Config,
    engines: &[Engine],
) -> io::Result<(Resolved, Vec<Vec<AnyListener>>)> {
    let mut stored = Vec::new();
    if !config.store_listeners {
        return Ok((source, stored));
    }
    let mut take = |address: &Address| -> io::Result<bool> {
        let groups = systemd::register(systemd::take_stored(address)?, engines)?;
        let found = !groups.is_empty();
        let any = |group: Vec<_>| group.into_iter().map(AnyListener::Socket).collect();
        stored.extend(groups.into_iter().map(any));
        Ok(found)
    };
    let left = match source {
        Resolved::Tcp(addresses) => {
            let mut left = Vec::new();
            for address in addresses {
                if !take(&Address::Tcp(address))? {
                    left.push(address);
                }
            }
            Resolved::Tcp(left)
        }
        Resolved::Unix(address) if take(&address)? => Resolved::Tcp(Vec::new()),
        other => other,
    };
    Ok((left, stored))
}

fn socket(listener: impl RawListener + 'static) -> AnyListener {
    AnyListener::Socket(Box::new(listener))
}

/// The error of an address that cannot be bound, with the address in its message.
pub(super) fn cannot_listen(address: &Address, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
