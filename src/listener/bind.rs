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
use super::{AnyListener, ErasedListener, Inherited, Legacy, Listener, RawListener, Security, tcp};
use crate::address::{Address, Target};
use crate::config::Config;
use crate::transport::Engine;

/// What a builder was asked to listen on.
pub(crate) struct Source {
    pub(crate) kind: Kind,
    pub(crate) tls: Option<Security>,
    /// It stays open through a drain.
    pub(crate) keeps_open: bool,
    /// A successor may take it over, and so it may be taken over of a predecessor, by this name.
    pub(crate) name: Option<String>,
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
            name: None,
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
    #[cfg_attr(not(all(feature = "handover", target_os = "linux")), allow(dead_code))]
    pub(crate) name: Option<String>,
    /// Its sockets are a predecessor's.
    #[cfg_attr(not(all(feature = "handover", target_os = "linux")), allow(dead_code))]
    pub(crate) legacy: Option<Legacy>,
}

/// Binds everything, in the order of `sources`, or nothing. Gives for each address its listeners.
/// `beside` are the addresses that the server is bound to already, and `inherited` what is taken over
/// where it was asked for by its name, before anything is bound.
///
/// # Errors
/// The first source that cannot be bound, with its address. What was bound before is closed.
pub(crate) async fn bind(
    sources: Vec<Source>,
    config: &Config,
    engines: &[Engine],
    beside: &[Address],
    inherited: Option<&Inherited>,
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
            name,
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
            Kind::Systemd(passed) => {
                for adopted in systemd::take(passed.as_deref())? {
                    let listener = AnyListener::Socket(adopted.into_raw(&engines[0])?);
                    let listener = Resolved::Bound(listener);
                    let handed = Vec::new();
                    resolved.push((listener, handed, tls.clone(), keeps_open, name.clone()));
                }
                continue;
            }
        };
        let handed = taken_over(inherited, name.as_deref(), &it, engines)?;
        resolved.push((it, handed, tls, keeps_open, name));
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
    for (it, handed, tls, keeps_open, name) in resolved {
        // One that is kept open has an accept loop of its own, and not one in each shard.
        let engines = if keeps_open { &engines[..1] } else { engines };
        #[cfg(feature = "systemd")]
        let (it, stored) = take_stored(it, config, engines)?;
        #[cfg(not(feature = "systemd"))]
        let stored = Vec::new();
        let fresh = match it {
            // All of its addresses were stored.
            Resolved::Tcp(addresses) if addresses.is_empty() => Vec::new(),
            Resolved::Tcp(addresses) => {
                let rest = left_to_bind(addresses, &handed)?;
                match tcp::bind_all(&rest, &all, config, engines) {
                    // Of a name whose other addresses were taken over.
                    Err(error) if !handed.is_empty() && tcp::is_not_ours(&error) => Vec::new(),
                    _ if rest.is_empty() && !handed.is_empty() => Vec::new(),
                    sockets => sockets?,
                }
                .into_iter()
                .map(|sockets| sockets.into_iter().map(socket).collect())
                .collect()
            }
            Resolved::Unix(_) if !handed.is_empty() => Vec::new(),
            Resolved::Unix(address) => {
                let socket = Unix::bind(address, config, &engines[0]).await?;
                vec![vec![self::socket(socket)]]
            }
            Resolved::Bound(listener) => vec![vec![listener]],
        };
        let handed = handed.into_iter().map(|(it, legacy)| (it, Some(legacy)));
        let rest = stored.into_iter().chain(fresh).map(|it| (it, None));
        bound.extend(handed.chain(rest).map(|(sockets, legacy)| Bound {
            sockets,
            tls: tls.clone(),
            keeps_open,
            name: name.clone(),
            legacy,
        }));
    }
    Ok(bound)
}

/// The sockets of each address that were taken over.
type Handed = Vec<(Vec<AnyListener>, Legacy)>;

/// Takes over what a predecessor has left under a name, of these addresses.
#[cfg(all(feature = "handover", target_os = "linux"))]
fn taken_over(
    inherited: Option<&Inherited>,
    name: Option<&str>,
    resolved: &Resolved,
    engines: &[Engine],
) -> io::Result<Handed> {
    let (Some(inherited), Some(name)) = (inherited, name) else {
        return Ok(Vec::new());
    };
    let offers = match resolved {
        Resolved::Tcp(addresses) => inherited.take_tcp(name, addresses),
        Resolved::Unix(address) => inherited.take_unix(name, address),
        Resolved::Bound(_) => Vec::new(),
    };
    offers.into_iter().map(|it| it.adopt(engines)).collect()
}

#[cfg(not(all(feature = "handover", target_os = "linux")))]
fn taken_over(
    _inherited: Option<&Inherited>,
    _name: Option<&str>,
    _resolved: &Resolved,
    _engines: &[Engine],
) -> io::Result<Handed> {
    Ok(Vec::new())
}

/// What of a name's addresses was not taken over; where its port is any, that of the others.
fn left_to_bind(mut addresses: Vec<SocketAddr>, handed: &Handed) -> io::Result<Vec<SocketAddr>> {
    for (sockets, _) in handed {
        if let Address::Tcp(taken) = sockets[0].local_addr()? {
            addresses.retain(|it| it.ip() != taken.ip());
            for address in addresses.iter_mut().filter(|it| it.port() == 0) {
                address.set_port(taken.port());
            }
        }
    }
    Ok(addresses)
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
