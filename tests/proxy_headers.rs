//! The reader of PROXY headers beside two others: what it takes, they take for the same; what they both
//! take, it takes, but for what it is stricter about, which is listed here.
//!
//! The inputs are made by a generator that begins with the same number every time: valid headers, headers
//! with something wrong in them, and pieces of both. `GRACIOUS_ROUNDS` asks for more of them.
#![cfg(feature = "proxy")]

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

use gracious::{Address, ProxyHeader};
use ppp::{HeaderResult, PartialResult, v1, v2};
use proxy_header::{Error, ParseConfig};

/// What a reader makes of an input.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// A header of this length, with these addresses, if it has any.
    Header(usize, Option<(Address, Address)>),
    Incomplete,
    Wrong(String),
}

fn ours(bytes: &[u8]) -> Read {
    match ProxyHeader::parse(bytes) {
        Ok(Some((header, length))) => Read::Header(length, header.source.zip(header.destination)),
        Ok(None) => Read::Incomplete,
        Err(error) => Read::Wrong(error.to_string()),
    }
}

fn tcp(ends: (impl Into<SocketAddr>, impl Into<SocketAddr>)) -> Option<(Address, Address)> {
    Some((Address::Tcp(ends.0.into()), Address::Tcp(ends.1.into())))
}

fn ppps(bytes: &[u8]) -> Read {
    let read = HeaderResult::parse(bytes);
    if read.is_incomplete() {
        return Read::Incomplete;
    }
    match read {
        HeaderResult::V1(Ok(header)) => {
            let addresses = match header.addresses {
                v1::Addresses::Unknown => None,
                v1::Addresses::Tcp4(it) => tcp((
                    (it.source_address, it.source_port),
                    (it.destination_address, it.destination_port),
                )),
                v1::Addresses::Tcp6(it) => tcp((
                    (it.source_address, it.source_port),
                    (it.destination_address, it.destination_port),
                )),
            };
            Read::Header(header.header.len(), addresses)
        }
        HeaderResult::V2(Ok(header)) => {
            let addresses = match header.addresses {
                _ if header.command == v2::Command::Local => None,
                v2::Addresses::Unspecified => None,
                v2::Addresses::IPv4(it) => tcp((
                    (it.source_address, it.source_port),
                    (it.destination_address, it.destination_port),
                )),
                v2::Addresses::IPv6(it) => tcp((
                    (it.source_address, it.source_port),
                    (it.destination_address, it.destination_port),
                )),
                v2::Addresses::Unix(it) => Some((unix(&it.source), unix(&it.destination))),
            };
            Read::Header(header.len(), addresses)
        }
        HeaderResult::V1(Err(error)) => Read::Wrong(error.to_string()),
        HeaderResult::V2(Err(error)) => Read::Wrong(error.to_string()),
    }
}

/// A Unix address of 108 bytes, by the rules of unix(7).
fn unix(field: &[u8; 108]) -> Address {
    let name = |bytes: &[u8]| {
        let end = bytes.iter().rposition(|it| *it != 0).map_or(0, |it| it + 1);
        bytes[..end].to_vec()
    };
    match field {
        [0, rest @ ..] if name(rest).is_empty() => Address::Unnamed,
        [0, rest @ ..] => Address::Abstract(name(rest)),
        path => {
            let path = path.split(|it| *it == 0).next().unwrap();
            Address::Unix(std::ffi::OsStr::from_bytes(path).into())
        }
    }
}

/// This one reads no Unix addresses.
fn proxy_headers(bytes: &[u8]) -> Read {
    match proxy_header::ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok((header, length)) => {
            let ends = header.proxied_address();
            let ends = ends.and_then(|it| tcp((it.source, it.destination)));
            Read::Header(length, ends)
        }
        Err(Error::BufferTooShort) => Read::Incomplete,
        Err(error) => Read::Wrong(error.to_string()),
    }
}

/// What this crate refuses and both others take, by its own words.
const STRICTER: [&str; 5] = [
    // `+80`; and `080`, which only one takes.
    "expected a port from 0 to 65535",
    // They look for CR in a line that names nobody.
    "found a bare LF",
    // Neither looks at the checksum, or at the extensions before they are asked for.
    "checksum",
    "the extension",
    "expected an extension",
];

/// The numbers of Marsaglia's xorshift.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn any<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    fn line(&mut self) -> Vec<u8> {
        let family = self.any(&["TCP4", "TCP6", "UNKNOWN", "TCP4", "TCP6", "UDP4", "TCP", ""]);
        let odd = ["1.2.3", "01.2.3.4", "::g", "", "fe80::1%1", "localhost"];
        let ip = |numbers: &mut Self| match family {
            _ if numbers.one_in(12) => numbers.any(&odd).to_owned(),
            "TCP6" if numbers.one_in(4) => "::ffff:1.2.3.4".to_owned(),
            "TCP6" => format!("2001:db8::{:x}", numbers.next() as u16),
            _ => format!("192.0.2.{}", numbers.next() as u8),
        };
        let (source, destination) = (ip(self), ip(self));
        let mut port = || match self.one_in(10) {
            true => self
                .any(&["080", "+1", "65536", "", "0", "00", "-1", "1a"])
                .to_owned(),
            false => (self.next() as u16).to_string(),
        };
        let ports = format!("{} {}", port(), port());
        let end = if self.one_in(10) {
            self.any(&["\n", "\r", "\r\r\n", " \r\n"])
        } else {
            "\r\n"
        };
        let rest = if self.one_in(3) { "payload\r\n" } else { "" };
        format!("PROXY {family} {source} {destination} {ports}{end}{rest}").into_bytes()
    }

    fn binary(&mut self) -> Vec<u8> {
        let command = if self.one_in(12) {
            self.next() as u8
        } else {
            0x20 | self.below(2) as u8
        };
        let families = [0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32];
        let family = match self.one_in(12) {
            true => self.next() as u8,
            false => families[self.below(families.len())],
        };
        let mut block = match family >> 4 {
            1 => self.bytes(12),
            2 => self.bytes(36),
            3 => {
                let mut block = vec![0; 216];
                for start in [0, 108] {
                    let length = self.below(108);
                    let name = self.bytes(length);
                    block[start..start + length].copy_from_slice(&name);
                }
                block
            }
            _ => Vec::new(),
        };
        while self.one_in(2) {
            let length = self.below(20);
            block.push(if self.one_in(20) {
                3
            } else {
                4 + self.below(40) as u8
            });
            block.extend((length as u16).to_be_bytes());
            block.extend(self.bytes(length));
        }
        if self.one_in(10) {
            block.truncate(self.below(block.len() + 1));
        }
        let length = (block.len() as u16).to_be_bytes();
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend([command, family, length[0], length[1]]);
        bytes.extend(block);
        if self.one_in(3) {
            bytes.extend(b"payload");
        }
        bytes
    }

    fn input(&mut self) -> Vec<u8> {
        let mut bytes = if self.one_in(2) {
            self.line()
        } else {
            self.binary()
        };
        if self.one_in(4) {
            bytes.truncate(self.below(bytes.len() + 1));
        }
        if self.one_in(8) && !bytes.is_empty() {
            let at = self.below(bytes.len());
            bytes[at] = self.next() as u8 & 0x7f;
        }
        bytes
    }
}

#[test]
fn two_other_readers_take_a_header_for_the_same() {
    let rounds = std::env::var("GRACIOUS_ROUNDS").ok();
    let rounds = rounds.and_then(|it| it.parse().ok()).unwrap_or(200_000);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut headers, mut incomplete, mut wrong, mut stricter) = (0, 0, 0, 0);
    for _ in 0..rounds {
        let bytes = numbers.input();
        let found = (ours(&bytes), ppps(&bytes), proxy_headers(&bytes));
        let shown = || format!("\"{}\": {found:?}", bytes.escape_ascii());
        match &found.0 {
            Read::Header(length, addresses) => {
                headers += 1;
                // Where a line names nobody its words are skipped; ppp waits for more behind five of them.
                let is_unknown = bytes.starts_with(b"PROXY UNKNOWN ");
                // What a proxy says of itself is skipped; they look at its family all the same.
                let is_local = bytes[0] == b'\r' && bytes[12] == 0x20;
                let is_same = |other: &Read, knows_unix: bool| match other {
                    Read::Header(other, ends) => {
                        let is_unix = matches!(
                            addresses,
                            Some((
                                Address::Unix(_) | Address::Abstract(_) | Address::Unnamed,
                                _
                            ))
                        );
                        length == other && (addresses == ends || is_unix && !knows_unix)
                    }
                    other => is_local || is_unknown && *other == Read::Incomplete,
                };
                assert!(is_same(&found.1, true), "{}", shown());
                assert!(is_same(&found.2, false), "{}", shown());
            }
            Read::Incomplete => {
                incomplete += 1;
                for other in [&found.1, &found.2] {
                    assert!(!matches!(other, Read::Header(..)), "{}", shown());
                }
            }
            Read::Wrong(error) => {
                wrong += 1;
                let is_taken = |other: &Read| matches!(other, Read::Header(..));
                if is_taken(&found.1) && is_taken(&found.2) {
                    stricter += 1;
                    let is_listed = STRICTER.iter().any(|it| error.contains(it));
                    assert!(is_listed, "{}", shown());
                }
            }
        }
    }
    println!(
        "{headers} headers, {incomplete} incomplete, {wrong} wrong, {stricter} of them here alone"
    );
    for count in [headers, incomplete, wrong] {
        assert!(count > rounds / 10, "{headers}, {incomplete}, {wrong}");
    }
    assert!(stricter > 0);
}

/// Whatever comes later: what was wrong stays wrong, what was a header stays that, and no piece of a
/// header is wrong.
#[test]
fn a_header_is_the_same_however_much_of_it_has_come() {
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    for _ in 0..2_000 {
        let bytes = numbers.input();
        let whole = ours(&bytes);
        for end in 0..bytes.len() {
            let piece = ours(&bytes[..end]);
            match (&piece, &whole) {
                (Read::Incomplete, _) => {}
                (Read::Header(..), _) => assert_eq!(piece, whole, "\"{}\"", bytes.escape_ascii()),
                (Read::Wrong(_), Read::Wrong(_)) => {}
                _ => panic!(
                    "\"{}\" at {end}: {piece:?}, {whole:?}",
                    bytes.escape_ascii()
                ),
            }
        }
    }
}
