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
pub(crate) enum Source {
    Target(Target, Option<Security>),
    Adopted(Adopted),
    Custom(Arc<dyn ErasedListener>),
    /// What systemd has passed: of this name, or all.
    #[cfg(feature = "systemd")]
    Systemd(Option<String>),
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
            #[cfg(feature = "systemd")]
            Self::Systemd(name) => f.debug_tuple("Systemd").field(name).finish(),
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
            #[cfg(feature = "systemd")]
            Source::Systemd(name) => {
                for adopted in systemd::take(name.as_deref())? {
                    let listener = AnyListener::Socket(adopted.into_raw(&engines[0])?);
                    resolved.push((Resolved::Bound(listener), None));
                }
                continue;
            }
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
        #[cfg(feature = "systemd")]
        let (it, stored) = take_stored(it, config, engines)?;
        #[cfg(not(feature = "systemd"))]
        let stored = Vec::new();
        let bound_now = match it {
            // All of its addresses were stored.
            Resolved::Tcp(addresses) if addresses.is_empty() => Vec::new(),
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
        let sockets = stored.into_iter().chain(bound_now);
        bound.extend(sockets.map(|sockets| Bound {
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
