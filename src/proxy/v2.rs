//! Version 2: a signature, a length, addresses and extensions.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;

use super::header::{ProxyHeader, wrong};
use crate::address::Address;

/// What a header of version 2 begins with.
pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The length of what every header has: the signature, a command, a family, and a length.
const FIXED: usize = 16;

/// The longest header behind that. The specification allows 65 535 bytes; a client's certificate with
/// the names in it is some thousand.
const LONGEST: usize = 8192;

/// The type of the extension that holds the header's checksum.
const CRC32C: u8 = 0x03;

/// Reads a header that begins with `SIGNATURE`, as far as it goes.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<(ProxyHeader, usize)>> {
    // Each byte is looked at as soon as it is there: what is wrong may never be completed.
    let is_local = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(found) if found >> 4 != 2 => {
            let version = found >> 4;
            return Err(wrong(format!(
                "PROXY v2: expected version 2, found {version}"
            )));
        }
        Some(found) => {
            let command = found & 0xf;
            return Err(wrong(format!(
                "PROXY v2: expected the command LOCAL (0) or PROXY (1), found {command}"
            )));
        }
    };
    let Some(&family) = bytes.get(13) else {
        return Ok(None);
    };
    // Streams and datagrams: a proxy may have got from the one what it sends as the other.
    let least = match family {
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ if is_local => 0,
        _ => {
            return Err(wrong(format!(
                "PROXY v2: expected a family and a transport that are specified, found {family:#04x}"
            )));
        }
    };
    let Some(length) = bytes.get(14..FIXED) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length > LONGEST {
        return Err(wrong(format!(
            "PROXY v2: expected a header of at most {LONGEST} bytes, found {length}"
        )));
    }
    if length < least && !is_local {
        return Err(wrong(format!(
            "PROXY v2: expected at least {least} bytes for the addresses of family {family:#04x}, \
             found {length}"
        )));
    }
    let Some(header) = bytes.get(..FIXED + length) else {
        return Ok(None);
    };
    let mut parsed = ProxyHeader {
        version: 2,
        is_local,
        source: None,
        destination: None,
        extensions: [].into(),
    };
    // What a proxy says of itself is to be skipped, whatever it is.
    if !is_local {
        let (addresses, extensions) = header[FIXED..].split_at(least);
        (parsed.source, parsed.destination) = self::addresses(addresses);
        check(header, FIXED + least)?;
        parsed.extensions = extensions.into();
    }
    Ok(Some((parsed, header.len())))
}

/// The addresses of a block, whose length says of which family they are.
fn addresses(block: &[u8]) -> (Option<Address>, Option<Address>) {
    let (source, destination) = match block.len() {
        12 => (ip::<4>(block, 0, 8), ip::<4>(block, 4, 10)),
        36 => (ip::<16>(block, 0, 32), ip::<16>(block, 16, 34)),
        216 => (unix(&block[..108]), unix(&block[108..])),
        _ => return (None, None),
    };
    (Some(source), Some(destination))
}

/// The IP address and the port at these places of the block.
fn ip<const BYTES: usize>(block: &[u8], at: usize, port: usize) -> Address
where
    std::net::IpAddr: From<[u8; BYTES]>,
{
    let mut ip = [0; BYTES];
    ip.copy_from_slice(&block[at..at + BYTES]);
    let port = u16::from_be_bytes([block[port], block[port + 1]]);
    Address::Tcp(SocketAddr::new(ip.into(), port))
}

/// The Unix address of a field that is filled up with zeros; one that begins with a zero is abstract.
fn unix(field: &[u8]) -> Address {
    let (is_abstract, name) = match field {
        [0, name @ ..] => (true, name),
        name => (false, name),
    };
    let end = match is_abstract {
        // A zero within it is a part of its name.
        true => name
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1),
        false => name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len()),
    };
    match &name[..end] {
        [] => Address::Unnamed,
        name if is_abstract => Address::Abstract(name.to_vec()),
        name => Address::Unix(OsString::from_vec(name.to_vec()).into()),
    }
}

/// Checks the extensions, which begin at `from`, and the checksum, if one of them is that.
fn check(header: &[u8], from: usize) -> io::Result<()> {
    let mut extensions = Extensions(&header[from..]);
    let mut checksum = None;
    loop {
        let at = header.len() - extensions.0.len();
        match extensions.next() {
            None => break,
            Some(Ok((CRC32C, value))) => {
                let Ok(value) = <[u8; 4]>::try_from(value) else {
                    let found = value.len();
                    return Err(wrong(format!(
                        "PROXY v2: expected 4 bytes of checksum, found {found}"
                    )));
                };
                if checksum
                    .replace((at + 3, u32::from_be_bytes(value)))
                    .is_some()
                {
                    return Err(wrong("PROXY v2: expected one checksum, found two"));
                }
            }
            Some(extension) => drop(extension?),
        }
    }
    let Some((at, said)) = checksum else {
        return Ok(());
    };
    let mut found = Crc32c::default();
    found.add(&header[..at]);
    found.add(&[0; 4]);
    found.add(&header[at + 4..]);
    let found = found.sum();
    if found != said {
        return Err(wrong(format!(
            "PROXY v2: expected a header with the checksum {said:#010x}, found one with {found:#010x}"
        )));
    }
    Ok(())
}

/// The extensions of a header: each a type, a length of two bytes, and a value.
pub(super) struct Extensions<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Extensions<'a> {
    type Item = io::Result<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let all = std::mem::take(&mut self.0);
        if all.is_empty() {
            return None;
        }
        let [kind, high, low, rest @ ..] = all else {
            let found = all.len();
            return Some(Err(wrong(format!(
                "PROXY v2: expected an extension with its length, found {found} bytes"
            ))));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, rest)) = rest.split_at_checked(length) else {
            let left = rest.len();
            return Some(Err(wrong(format!(
                "PROXY v2: expected {length} bytes of the extension {kind:#04x}, found {left}"
            ))));
        };
        self.0 = rest;
        Some(Ok((*kind, value)))
    }
}

/// The checksum of RFC 3720 (Castagnoli).
struct Crc32c(u32);

/// The remainders of the single bytes, by the reflected polynomial.
const REMAINDERS: [u32; 256] = {
    let mut remainders = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = remainder & 1;
            remainder >>= 1;
            if carry == 1 {
                remainder ^= 0x82f6_3b78;
            }
            bit += 1;
        }
        remainders[byte] = remainder;
        byte += 1;
    }
    remainders
};

impl Default for Crc32c {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc32c {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let index = (self.0 as u8 ^ byte) as usize;
            self.0 = self.0 >> 8 ^ REMAINDERS[index];
        }
    }

    fn sum(&self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProxyHeader, parse};
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];

    /// Over IPv4, with the right checksum between two other extensions.
    fn checked() -> Vec<u8> {
        let extensions = b"\x02\0\x04a.be\x03\0\x04\0\0\0\0\x05\0\x02id";
        let mut header = header(0x21, 0x11, &[&IPV4[..], extensions].concat());
        let mut sum = Crc32c::default();
        sum.add(&header);
        let at = FIXED + 12 + 7 + 3;
        header[at..at + 4].copy_from_slice(&sum.sum().to_be_bytes());
        header
    }

    fn read(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, String> {
        parse(bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        for (bytes, expected) in [
            (&b"123456789"[..], 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
        ] {
            let mut sum = Crc32c::default();
            bytes.chunks(5).for_each(|chunk| sum.add(chunk));
            assert_eq!(sum.sum(), expected);
        }
    }

    #[test]
    fn a_header_says_who_is_there_however_it_comes() {
        let ipv6 = [&[0x20; 16][..], &[0xfd; 16], &[0, 80, 1, 187]].concat();
        let mut unix = [0; 216];
        unix[..11].copy_from_slice(b"/run/a.sock");
        unix[108..114].copy_from_slice(b"\0name\0");
        unix[114] = b'x';
        let unix_ends = "unix:/run/a.sock unix:@name%00x";
        let cases = [
            (checked(), "192.0.2.1:56324 198.51.100.2:443"),
            (
                header(0x21, 0x12, &IPV4),
                "192.0.2.1:56324 198.51.100.2:443",
            ),
            (
                header(0x21, 0x21, &ipv6),
                "[2020:2020:2020:2020:2020:2020:2020:2020]:80 [fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:443",
            ),
            (header(0x21, 0x31, &unix), unix_ends),
            (header(0x21, 0x31, &[0; 216]), "unix: unix:"),
            (header(0x21, 0x00, b""), "- -"),
            (header(0x21, 0x00, b"\x04\0\x01."), "- -"),
            (header(0x20, 0x00, b""), "- -"),
            (header(0x20, 0x11, &IPV4), "- -"),
            (header(0x20, 0x5f, b"what not"), "- -"),
        ];
        for (bytes, expected) in cases {
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(None), "{end}");
            }
            for behind in [&b""[..], b"GET /", &bytes] {
                let (header, length) = read(&[&bytes, behind].concat()).unwrap().unwrap();
                let ends = [header.source, header.destination];
                let ends = ends.map(|it| it.map_or("-".to_owned(), |it| it.to_string()));
                assert_eq!((ends.join(" "), length), (expected.to_owned(), bytes.len()));
                assert_eq!(header.is_local, bytes[12] == 0x20);
                assert_eq!(header.version, 2);
            }
        }
    }

    #[test]
    fn extensions_can_be_read() {
        let (header, _) = read(&checked()).unwrap().unwrap();
        assert_eq!(header.authority(), Some("a.be"));
        assert_eq!(header.unique_id(), Some(&b"id"[..]));
        assert_eq!(header.protocol(), None);
        let kinds: Vec<_> = header
            .extensions()
            .map(|(kind, value)| (kind, value.len()))
            .collect();
        assert_eq!(kinds, [(2, 4), (3, 4), (5, 2)]);
    }

    #[test]
    fn any_bit_that_is_wrong_fails_the_checksum_or_something_before() {
        let good = checked();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match read(&bytes) {
                Err(_) => {}
                // A longer one is waited for.
                Ok(None) => assert!((14..16).contains(&(bit / 8)), "{bit}"),
                // What a proxy says of itself is skipped; and a checksum that is none any more is not
                // looked at.
                Ok(Some((header, _))) => {
                    let is_checked = header.extension(CRC32C).is_some();
                    assert!(header.is_local || !is_checked, "{bit}");
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_expected() {
        let with = |extensions: &[u8]| header(0x21, 0x11, &[&IPV4[..], extensions].concat());
        let too_long = header(0x21, 0x11, &[0; LONGEST + 1]);
        let mut wrong_sum = checked();
        wrong_sum[FIXED + 12 + 7 + 3] ^= 1;
        for (bytes, expected) in [
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), "a PROXY header"),
            (header(0x11, 0x11, &IPV4), "version 2, found 1"),
            (header(0x22, 0x11, &IPV4), "LOCAL (0) or PROXY (1), found 2"),
            (header(0x21, 0x41, &IPV4), "are specified, found 0x41"),
            (header(0x21, 0x10, &IPV4), "are specified, found 0x10"),
            (header(0x21, 0x01, &IPV4), "are specified, found 0x01"),
            (header(0x21, 0x13, &IPV4), "are specified, found 0x13"),
            (
                header(0x21, 0x11, &IPV4[..11]),
                "at least 12 bytes for the addresses of family 0x11, found 11",
            ),
            (header(0x21, 0x21, &[0; 35]), "at least 36 bytes"),
            (header(0x21, 0x31, &[0; 215]), "at least 216 bytes"),
            (too_long, "at most 8192 bytes, found 8193"),
            (with(b"\x04"), "an extension with its length, found 1 bytes"),
            (
                with(b"\x04\0"),
                "an extension with its length, found 2 bytes",
            ),
            (
                with(b"\x04\0\x02."),
                "2 bytes of the extension 0x04, found 1",
            ),
            (with(b"\x03\0\x03..."), "4 bytes of checksum, found 3"),
            (
                with(b"\x03\0\x04....\x03\0\x04...."),
                "one checksum, found two",
            ),
            (wrong_sum, "a header with the checksum 0x"),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(
                error.contains(&format!("expected {expected}")) || error.contains(expected),
                "{error}"
            );
        }
    }
}
