//! The PROXY protocol (feature `proxy`): whom a server believes who its client is, and how long it
//! waits to be told.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::address::Address;

mod header;
mod v1;
mod v2;

pub use self::header::ProxyHeader;
pub(crate) use self::header::parse;

/// The specification asks for 3 s at least, in which a lost segment is sent again; two of them in a row
/// are had in 5.
const TIMEOUT: Duration = Duration::from_secs(5);

/// From whom a server takes PROXY headers, for
/// [`Builder::proxy_protocol`](crate::Builder::proxy_protocol).
///
/// A proxy that connects for a client says in a header, before anything else, who that client is.
/// Whoever can connect could say so of themselves: so headers are taken from named networks alone.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    trusted: Result<Trusted, String>,
    takes_others: bool,
    pub(crate) timeout: Option<Duration>,
}

/// Who is trusted.
#[derive(Clone, Debug, Default)]
struct Trusted {
    networks: Vec<Network>,
    unix: bool,
}

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

/// What becomes of a new peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It has to send a header.
    Proxy,
    /// It is closed.
    Refused,
    /// What it sends is the conversation.
    AsItIs,
}

impl ProxyProtocol {
    /// Takes headers from the peers of these networks: each an IP address (`10.0.0.7`), or a network
    /// with the number of its leading bits (`10.0.0.0/8`, `fd00::/8`), or `unix` for whoever may connect
    /// to the server's Unix sockets.
    ///
    /// Such a peer *must* send one, of version 1 or 2. A peer from elsewhere is refused: it is accepted
    /// and closed, counted as [`rejected`](crate::Stats::rejected). See [`or_direct`](Self::or_direct).
    ///
    /// Text that is no network is an error of [`Builder::bind`](crate::Builder::bind), not a panic here;
    /// so is no network at all.
    pub fn from_trusted(networks: impl IntoIterator<Item = impl fmt::Display>) -> Self {
        let mut trusted = Trusted::default();
        let mut wrong = None;
        for text in networks {
            let text = text.to_string();
            match Network::parse(&text) {
                _ if text == "unix" => trusted.unix = true,
                Ok(network) => trusted.networks.push(network),
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        if trusted.networks.is_empty() && !trusted.unix {
            wrong = wrong.or_else(|| Some("no trusted network: expected at least one".into()));
        }
        Self {
            trusted: wrong.map_or(Ok(trusted), Err),
            takes_others: false,
            timeout: Some(TIMEOUT),
        }
    }

    /// Takes a peer from elsewhere as it is, instead of refusing it: no header is expected of it, and
    /// one that it sends all the same is the beginning of what its handler reads.
    #[must_use]
    pub fn or_direct(mut self) -> Self {
        self.takes_others = true;
        self
    }

    /// How long a header may take, from the accept to its last byte; 5 s by default. `None` waits for
    /// as long as it takes.
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// What cannot be meant is an error of `bind`.
    pub(crate) fn check(&self) -> io::Result<()> {
        match &self.trusted {
            Ok(_) => Ok(()),
            Err(message) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("proxy_protocol: {message}"),
            )),
        }
    }

    /// What becomes of a peer that connects from `address`.
    pub(crate) fn judge(&self, address: &Address) -> Peer {
        let is_trusted = self.trusted.as_ref().is_ok_and(|it| it.includes(address));
        match is_trusted {
            true => Peer::Proxy,
            false if self.takes_others => Peer::AsItIs,
            false => Peer::Refused,
        }
    }
}

impl Trusted {
    fn includes(&self, address: &Address) -> bool {
        match address {
            Address::Unix(_) | Address::Abstract(_) | Address::Unnamed => self.unix,
            _ => address
                .ip()
                .is_some_and(|ip| self.networks.iter().any(|it| it.includes(ip))),
        }
    }
}

impl Network {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |expected: &str| format!("`{text}` is no network: expected {expected}");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let forms = "an IP address, ADDRESS/BITS or `unix`";
        let address: IpAddr = address.parse().map_err(|_| wrong(forms))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| wrong(&format!("at most {most} bits")))?,
        };
        let network = Self { address, bits }.canonical();
        if network.first_bits(network.address) != Some(number(network.address)) {
            return Err(wrong(&format!("no bit set behind the first {bits}")));
        }
        Ok(network)
    }

    /// Peers of a dual-stack listener are known by their IPv4 addresses.
    fn canonical(self) -> Self {
        match self.address.to_canonical() {
            address if address != self.address && self.bits >= 96 => Self {
                address,
                bits: self.bits - 96,
            },
            _ => self,
        }
    }

    fn includes(self, ip: IpAddr) -> bool {
        let own = self.first_bits(self.address);
        ip.is_ipv4() == self.address.is_ipv4() && self.first_bits(ip) == own
    }

    /// The bits of an address that this network looks at; `None` where there are none.
    fn first_bits(self, ip: IpAddr) -> Option<u128> {
        let width: u8 = if ip.is_ipv4() { 32 } else { 128 };
        let behind = u32::from(width - self.bits);
        // To shift all bits out of a number is an overflow.
        let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
        Some(number(ip) & mask)
    }
}

/// The bits of an address.
fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(networks: &[&str], peer: &str) -> Peer {
        let protocol = ProxyProtocol::from_trusted(networks);
        protocol.check().unwrap();
        protocol.judge(&peer.parse().unwrap())
    }

    #[test]
    fn a_network_is_its_leading_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1:1", "11.0.0.0:1"),
            ("10.1.2.3", "10.1.2.3:1", "10.1.2.2:1"),
            ("192.168.0.128/25", "192.168.0.200:1", "192.168.0.127:1"),
            ("fd00::/8", "[fdff::1]:1", "[fe00::1]:1"),
            ("::1", "[::1]:1", "127.0.0.1:1"),
            ("0.0.0.0/0", "1.2.3.4:1", "[::1]:1"),
            ("::/0", "[::2]:1", "1.2.3.4:1"),
            // As a dual-stack listener shows its peers.
            ("10.0.0.0/8", "[::ffff:10.9.9.9]:1", "[::ffff:11.9.9.9]:1"),
            ("::ffff:10.0.0.0/104", "10.9.9.9:1", "11.9.9.9:1"),
            ("unix", "unix:", "127.0.0.1:1"),
            ("unix", "unix:/run/a.sock", "custom:127.0.0.1"),
        ] {
            assert_eq!(judge(&[network], inside), Peer::Proxy, "{network} {inside}");
            let found = judge(&[network], outside);
            assert_eq!(found, Peer::Refused, "{network} {outside}");
            let others = ["203.0.113.0/24", network];
            assert_eq!(judge(&others, inside), Peer::Proxy, "{network} {inside}");
        }
        assert_eq!(judge(&["127.0.0.1"], "unix:"), Peer::Refused);
        let direct = ProxyProtocol::from_trusted(["10.0.0.0/8"]).or_direct();
        assert_eq!(direct.judge(&"1.2.3.4:5".parse().unwrap()), Peer::AsItIs);
    }

    #[test]
    fn text_that_is_no_network_is_named_in_the_error() {
        for text in [
            "",
            "localhost",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.1/8",
            "fd00::1/8",
            "::/129",
            "10.0.0.0:80",
            "Unix",
        ] {
            let error = ProxyProtocol::from_trusted(["127.0.0.1", text])
                .check()
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
        let nobody: [&str; 0] = [];
        assert!(ProxyProtocol::from_trusted(nobody).check().is_err());
    }
}
