//! What a PROXY header says, and where it ends. Pure: bytes go in, and nothing else is asked.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{v1, v2};
use crate::address::Address;

/// The header that a proxy has sent before a client's first byte, from
/// [`Connection::proxy`](crate::Connection::proxy).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyHeader {
    /// The version of the protocol: 1, which is text, or 2.
    pub version: u8,
    /// The proxy connected for itself (`LOCAL`), as for a health check: there is no client.
    pub is_local: bool,
    /// The client's address; `None` where the header names none (`LOCAL`, `UNKNOWN`, or a family that is
    /// not specified).
    pub source: Option<Address>,
    /// The address that the client connected to, under the same conditions.
    pub destination: Option<Address>,
    /// The extensions as they came, each a type, a length and a value; checked.
    pub(super) extensions: Arc<[u8]>,
}

/// The types of some extensions.
mod kind {
    pub(super) const ALPN: u8 = 0x01;
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const UNIQUE_ID: u8 = 0x05;
}

impl ProxyHeader {
    /// Reads a header at the beginning of `bytes`, and gives it with its length; `None` where it is not
    /// complete yet. What is behind it is the client's.
    ///
    /// A server with [`Builder::proxy_protocol`](crate::Builder::proxy_protocol) does this by itself.
    ///
    /// # Errors
    /// `InvalidData`, naming what was found and what was expected, as soon as it is sure that these
    /// bytes begin no valid header, whatever comes behind them.
    pub fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        parse(bytes)
    }

    /// The extensions (TLVs) of a header of version 2, each with its type, in the order they came.
    pub fn extensions(&self) -> impl Iterator<Item = (u8, &[u8])> {
        v2::Extensions(&self.extensions).map_while(Result::ok)
    }

    /// The value of the first extension of this type.
    #[must_use]
    pub fn extension(&self, kind: u8) -> Option<&[u8]> {
        self.extensions()
            .find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The protocol that the client has agreed on with the proxy (ALPN).
    #[must_use]
    pub fn protocol(&self) -> Option<&[u8]> {
        self.extension(kind::ALPN)
    }

    /// The name by which the client asked for the server, as of the TLS that ends at the proxy (SNI).
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        std::str::from_utf8(self.extension(kind::AUTHORITY)?).ok()
    }

    /// What the proxy calls this connection.
    #[must_use]
    pub fn unique_id(&self) -> Option<&[u8]> {
        self.extension(kind::UNIQUE_ID)
    }
}

impl fmt::Debug for ProxyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            is_local,
            source,
            destination,
            extensions: _,
        } = self;
        f.debug_struct("ProxyHeader")
            .field("version", version)
            .field("is_local", is_local)
            .field("source", source)
            .field("destination", destination)
            .field("extensions", &self.extensions().collect::<Vec<_>>())
            .finish()
    }
}

/// As [`ProxyHeader::parse`].
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<(ProxyHeader, usize)>> {
    if begins(bytes, v1::BEGIN) {
        return v1::parse(bytes);
    }
    if begins(bytes, v2::SIGNATURE) {
        return v2::parse(bytes);
    }
    Err(wrong(format!(
        "expected a PROXY header, found \"{}\"",
        start(bytes)
    )))
}

/// Whether `bytes` begins with `expected`, as far as it goes.
fn begins(bytes: &[u8], expected: &[u8]) -> bool {
    let common = bytes.len().min(expected.len());
    bytes[..common] == expected[..common]
}

/// The beginning of what was found, for an error.
pub(super) fn start(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(16)].escape_ascii().to_string()
}

pub(super) fn wrong(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}
