//! Addresses: what a server is asked to listen on, what it is bound to, who its peers are.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::SocketAddr as UnixAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a server listens, or where a peer comes from.
///
/// What an `Address` prints, it parses: `127.0.0.1:8888`, `[::1]:8888`, `localhost:8888`, `:8888`,
/// `unix:/run/app.sock`, `unix:@abstract`, `custom:NAME`. In the name of a Unix socket every byte
/// that is not printable ASCII, and `%` itself, is written `%XX`; a path that begins with `@` is
/// written `unix:%40…`, because a bare `@` means the abstract namespace.
///
/// ```
/// use gracious::Address;
///
/// let address: Address = "unix:/run/app.sock".parse()?;
/// assert_eq!(address.to_string(), "unix:/run/app.sock");
/// assert!("127.0.0.1".parse::<Address>().is_err()); // no port
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A host name and a port, resolved when the server binds; an empty name, as in `:8888`, is every
    /// address of this machine, of both families. A bound server and a peer never have one.
    Host(String, u16),
    /// A Unix socket in the file system.
    Unix(PathBuf),
    /// A Unix socket in Linux's abstract namespace, without its leading zero byte.
    Abstract(Vec<u8>),
    /// A Unix socket without a name, as clients mostly are. Prints as `unix:`.
    Unnamed,
    /// An address of a transport of the user's own.
    Custom(String),
}

impl Address {
    /// The IP address, if this is an address of TCP; an IPv4 address that a dual-stack listener
    /// shows as `::ffff:a.b.c.d` is given as IPv4.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip().to_canonical()),
            _ => None,
        }
    }

    /// The socket address, if this is an address of TCP.
    #[must_use]
    pub fn as_tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            _ => None,
        }
    }

    /// The path, if this is a Unix socket in the file system.
    #[must_use]
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            _ => None,
        }
    }

    /// The address of a Unix socket as the standard library gives it.
    pub(crate) fn from_unix(address: &UnixAddr) -> Self {
        if let Some(path) = address.as_pathname() {
            return Self::Unix(path.to_path_buf());
        }
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            if let Some(name) = address.as_abstract_name() {
                return Self::Abstract(name.to_vec());
            }
        }
        Self::Unnamed
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => {
                let bytes = path.as_os_str().as_bytes();
                f.write_str("unix:")?;
                if let Some(rest) = bytes.strip_prefix(b"@") {
                    f.write_str("%40")?;
                    return escape(f, rest);
                }
                escape(f, bytes)
            }
            Self::Abstract(name) => {
                f.write_str("unix:@")?;
                escape(f, name)
            }
            Self::Unnamed => f.write_str("unix:"),
            Self::Custom(name) => write!(f, "custom:{name}"),
        }
    }
}

impl FromStr for Address {
    type Err = io::Error;

    /// # Errors
    /// `InvalidInput`, naming what was found and what was expected.
    fn from_str(text: &str) -> io::Result<Self> {
        if let Some(name) = text.strip_prefix("custom:") {
            return Ok(Self::Custom(name.to_owned()));
        }
        if let Some(name) = text.strip_prefix("unix:") {
            return match name.strip_prefix('@') {
                _ if name.is_empty() => Ok(Self::Unnamed),
                Some(name) => Ok(Self::Abstract(
                    unescape(name).ok_or_else(|| malformed(text))?,
                )),
                None => {
                    let bytes = unescape(name).ok_or_else(|| malformed(text))?;
                    Ok(Self::Unix(OsString::from_vec(bytes).into()))
                }
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| malformed(text))?;
        let port = port.parse().map_err(|_| malformed(text))?;
        // A colon left in the host is an IPv6 address without its brackets, or a mistake. No host at
        // all stands for every address of this machine.
        if host.contains([':', '/', ' ', '[', ']']) {
            return Err(malformed(text));
        }
        Ok(Self::Host(host.to_owned(), port))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// For clients: an address of TCP as it is, a host name resolved, which blocks; an empty name is this
/// machine's loopback.
///
/// # Errors
/// `InvalidInput` for an address that is not of TCP; the resolver's.
impl ToSocketAddrs for Address {
    type Iter = std::vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        match self {
            Self::Tcp(address) => Ok(vec![*address].into_iter()),
            Self::Host(host, port) if host.is_empty() => ("localhost", *port).to_socket_addrs(),
            Self::Host(host, port) => (host.as_str(), *port).to_socket_addrs(),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{other}` is no address of TCP: expected HOST:PORT"),
            )),
        }
    }
}

/// What [`Builder::listen`](crate::Builder::listen) takes: text, a socket address, an IP address
/// or a host name with a port, an [`Address`].
///
/// Text that is no address is an error of `bind`, not a panic here.
#[derive(Clone, Debug)]
pub struct Target(Result<Address, String>);

impl Target {
    /// The address, or the error of text that is none, which `bind` gives.
    pub(crate) fn into_address(self) -> io::Result<Address> {
        self.0.map_err(|text| malformed(&text))
    }
}

impl From<&str> for Target {
    fn from(text: &str) -> Self {
        Self(text.parse().map_err(|_| text.to_owned()))
    }
}

impl From<&String> for Target {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<String> for Target {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self(Ok(address))
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self(Ok(address.into()))
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Target {
    fn from((ip, port): (I, u16)) -> Self {
        SocketAddr::new(ip.into(), port).into()
    }
}

/// The compact form of `Address::Unnamed`: no peer connects from it.
pub(crate) const NO_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

/// The compact form of an address, which takes 6 bytes, and whether it stands for an IPv6 address
/// that maps it (`::ffff:a.b.c.d`, as peers of a dual-stack listener have). Most peers have one;
/// any other address is given back as it is.
pub(crate) fn shorten(address: Address) -> Result<(SocketAddrV4, bool), Address> {
    let short = match &address {
        Address::Unnamed => return Ok((NO_ADDRESS, false)),
        Address::Tcp(SocketAddr::V4(address)) => Some((*address, false)),
        Address::Tcp(SocketAddr::V6(address))
            if address.flowinfo() == 0 && address.scope_id() == 0 =>
        {
            let mapped = address.ip().to_ipv4_mapped();
            mapped.map(|ip| (SocketAddrV4::new(ip, address.port()), true))
        }
        _ => None,
    };
    short
        .filter(|(short, _)| *short != NO_ADDRESS)
        .ok_or(address)
}

/// The address that [`shorten`] made this compact form of.
pub(crate) fn lengthen(address: SocketAddrV4, is_mapped: bool) -> Address {
    if address == NO_ADDRESS {
        Address::Unnamed
    } else if is_mapped {
        Address::Tcp((address.ip().to_ipv6_mapped(), address.port()).into())
    } else {
        Address::Tcp(address.into())
    }
}

/// The error of text that is no address.
fn malformed(text: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("`{text}` is not an address: expected HOST:PORT, unix:PATH or unix:@NAME"),
    )
}

/// Writes the name of a Unix socket: `%XX` for each byte that is not printable ASCII, and for `%`.
fn escape(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for &byte in bytes {
        match byte {
            b'%' => f.write_str("%25")?,
            b' '..=b'~' => write!(f, "{}", byte as char)?,
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

/// Reads what [`escape`] wrote; `None` where two hexadecimal digits do not follow a `%`.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = OsStr::new(text).as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
        if !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = &tail[2..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_prints_it_parses() {
        let mut addresses = vec![
            Address::Unnamed,
            Address::Tcp(([127, 0, 0, 1], 0).into()),
            Address::Tcp("[::1]:80".parse().unwrap()),
            Address::Tcp("[fe80::1%3]:80".parse().unwrap()),
            Address::Host("localhost".into(), 8080),
            Address::Host(String::new(), 8080),
            Address::Custom("memory 1".into()),
        ];
        for name in [
            &b"/run/x.sock"[..],
            b"relative",
            b"@odd",
            b"50%",
            b"a b\n\xff",
            b"%41",
        ] {
            addresses.push(Address::Unix(OsString::from_vec(name.to_vec()).into()));
            addresses.push(Address::Abstract(name.to_vec()));
        }
        for address in addresses {
            let text = address.to_string();
            assert_eq!(
                text.parse::<Address>().unwrap(),
                address,
                "printed as {text}"
            );
        }
    }

    #[test]
    fn text_that_is_no_address_is_named_in_the_error() {
        for text in [
            "",
            ":",
            "127.0.0.1",
            "host:",
            "host:port",
            "::1:80",
            "h:70000",
            "a b:1",
            "unix:%4",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn an_address_that_was_shortened_is_what_it_was() {
        let is_short = |address: &Address| match shorten(address.clone()) {
            Ok((short, is_mapped)) => {
                assert_eq!(lengthen(short, is_mapped), *address);
                true
            }
            Err(same) => {
                assert_eq!(same, *address);
                false
            }
        };
        for short in ["127.0.0.1:80", "0.0.0.0:1", "[::ffff:10.1.2.3]:65535"] {
            assert!(is_short(&Address::Tcp(short.parse().unwrap())), "{short}");
        }
        assert!(is_short(&Address::Unnamed));
        let others = [
            "[::1]:80",
            "[::ffff:10.1.2.3%7]:80",
            "[::ffff:0.0.0.0]:0",
            "0.0.0.0:0",
        ];
        for other in others {
            assert!(!is_short(&Address::Tcp(other.parse().unwrap())), "{other}");
        }
        assert!(!is_short(&Address::Unix("a.sock".into())));
        assert!(!is_short(&Address::Custom("a peer".into())));
    }
}
