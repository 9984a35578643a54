//! Version 1: one line of text.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::header::{ProxyHeader, start, wrong};
use crate::address::Address;

/// What a header of version 1 begins with.
pub(super) const BEGIN: &[u8] = b"PROXY ";

/// The longest line that the specification allows, with its end.
const LONGEST: usize = 107;

/// Reads a header that begins with `BEGIN`, as far as it goes.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<(ProxyHeader, usize)>> {
    let line = &bytes[..bytes.len().min(LONGEST)];
    // An end that is none is found at once: the rest of the line may never come.
    let end = line.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
    let line = match end {
        Some(end) => match &line[end..] {
            [b'\r', b'\n', ..] => &line[..end],
            [b'\r'] if end + 1 < LONGEST => return Ok(None),
            [b'\r'] => return Err(too_long()),
            [b'\r', ..] => return Err(malformed("CRLF at its end", "a bare CR", &line[..end])),
            _ => return Err(malformed("CRLF at its end", "a bare LF", &line[..end])),
        },
        None if line.len() < LONGEST => return Ok(None),
        None => return Err(too_long()),
    };
    let (source, destination) = addresses(line)?;
    let header = ProxyHeader {
        version: 1,
        is_local: false,
        source,
        destination,
        extensions: [].into(),
    };
    Ok(Some((header, line.len() + 2)))
}

type Pair = (Option<Address>, Option<Address>);

/// Reads the line without its end.
fn addresses(line: &[u8]) -> io::Result<Pair> {
    let rest = &line[BEGIN.len().min(line.len())..];
    if rest == b"UNKNOWN" || rest.starts_with(b"UNKNOWN ") {
        // What follows is to be ignored.
        return Ok((None, None));
    }
    let text = std::str::from_utf8(rest).map_err(|_| malformed("ASCII", "other bytes", line))?;
    let words: Vec<_> = text.split(' ').collect();
    let is_ipv6 = match words[0] {
        "TCP4" => false,
        "TCP6" => true,
        found => {
            let found = format!("\"{}\"", start(found.as_bytes()));
            return Err(malformed("TCP4, TCP6 or UNKNOWN", &found, line));
        }
    };
    let [_, source, destination, source_port, destination_port] = words[..] else {
        let found = format!("{} words", words.len() - 1);
        return Err(malformed("two addresses and two ports", &found, line));
    };
    let address = |ip, port| -> io::Result<_> {
        let ip = self::ip(ip, is_ipv6, line)?;
        Ok(Some(Address::Tcp(SocketAddr::new(
            ip,
            self::port(port, line)?,
        ))))
    };
    Ok((
        address(source, source_port)?,
        address(destination, destination_port)?,
    ))
}

fn ip(text: &str, is_ipv6: bool, line: &[u8]) -> io::Result<IpAddr> {
    let ip = match is_ipv6 {
        true => text.parse().map(IpAddr::V6),
        false => text.parse().map(IpAddr::V4),
    };
    let expected = if is_ipv6 {
        "an IPv6 address"
    } else {
        "an IPv4 address"
    };
    ip.map_err(|_| malformed(expected, &format!("\"{}\"", text.escape_debug()), line))
}

/// Reads a port in decimal digits, without a sign or leading zeros.
fn port(text: &str, line: &[u8]) -> io::Result<u16> {
    let is_plain =
        text.bytes().all(|it| it.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let port = text.parse().ok().filter(|_| is_plain);
    let found = || format!("\"{}\"", text.escape_debug());
    port.ok_or_else(|| malformed("a port from 0 to 65535", &found(), line))
}

fn too_long() -> io::Error {
    wrong(format!(
        "PROXY v1: expected the end of the line within {LONGEST} bytes, found none"
    ))
}

fn malformed(expected: &str, found: &str, line: &[u8]) -> io::Error {
    let line = line.escape_ascii();
    wrong(format!(
        "PROXY v1: expected {expected}, found {found} in \"{line}\""
    ))
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    fn read(text: &str) -> Result<Option<(String, usize)>, String> {
        let parsed = parse(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(parsed.map(|(header, length)| {
            assert_eq!((header.version, header.is_local), (1, false));
            let ends = [header.source, header.destination];
            let ends = ends.map(|it| it.map_or("-".to_owned(), |it| it.to_string()));
            (ends.join(" "), length)
        }))
    }

    #[test]
    fn a_line_says_who_is_there_however_it_comes() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        assert_eq!(longest.len(), 107);
        for (line, expected) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
                "192.0.2.1:56324 198.51.100.2:443",
            ),
            (
                "PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 0 65535\r\n",
                "[2001:db8::1]:0 [::ffff:1.2.3.4]:65535",
            ),
            ("PROXY UNKNOWN\r\n", "- -"),
            ("PROXY UNKNOWN ffff::1 what not 1 2\r\n", "- -"),
            (&longest, "- -"),
        ] {
            for end in 0..line.len() {
                assert_eq!(read(&line[..end]), Ok(None), "{:?}", &line[..end]);
            }
            for behind in ["", "GET /", "\r\n", "PROXY UNKNOWN\r\n"] {
                let found = read(&format!("{line}{behind}"));
                assert_eq!(found, Ok(Some((expected.to_owned(), line.len()))));
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_expected() {
        let long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
        for (line, expected) in [
            (
                "GET / HTTP/1.1\r\n",
                "a PROXY header, found \"GET / HTTP/1.1\\r\\n\"",
            ),
            ("proxy TCP4 ", "a PROXY header"),
            ("PROXY\r\n", "a PROXY header"),
            (
                "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
                "TCP4, TCP6 or UNKNOWN, found \"\"",
            ),
            (
                "PROXY UNKNOWNX\r\n",
                "TCP4, TCP6 or UNKNOWN, found \"UNKNOWNX\"",
            ),
            (
                "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
                "TCP4, TCP6 or UNKNOWN",
            ),
            (
                "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
                "two ports, found 3 words",
            ),
            (
                "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
                "two ports, found 5 words",
            ),
            (
                "PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
                "two ports, found 5 words",
            ),
            (
                "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
                "an IPv4 address, found \"01.2.3.4\"",
            ),
            (
                "PROXY TCP4 ::1 ::1 1 2\r\n",
                "an IPv4 address, found \"::1\"",
            ),
            (
                "PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
                "an IPv6 address, found \"1.2.3.4\"",
            ),
            ("PROXY TCP6 fe80::1%1 ::1 1 2\r\n", "an IPv6 address"),
            (
                "PROXY TCP4 1.2.3.4 1.2.3.4 080 2\r\n",
                "a port from 0 to 65535, found \"080\"",
            ),
            (
                "PROXY TCP4 1.2.3.4 1.2.3.4 1 00\r\n",
                "a port from 0 to 65535, found \"00\"",
            ),
            (
                "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
                "a port from 0 to 65535, found \"+1\"",
            ),
            (
                "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
                "a port from 0 to 65535",
            ),
            (
                "PROXY TCP4 1.2.3.4 1.2.3.4  2\r\n",
                "a port from 0 to 65535, found \"\"",
            ),
            ("PROXY UNKNOWN\n", "CRLF at its end, found a bare LF"),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\nGET", "found a bare LF"),
            ("PROXY UNKNOWN\rX", "CRLF at its end, found a bare CR"),
            ("PROXY \r\n", "TCP4, TCP6 or UNKNOWN"),
            (&long, "the end of the line within 107 bytes"),
        ] {
            let error = read(line).unwrap_err();
            assert!(
                error.contains(&format!("expected {expected}")) || error.contains(expected),
                "{error}"
            );
        }
        // A line that has no room for its end any more.
        let mut late = format!("PROXY UNKNOWN {}\r", "f".repeat(92));
        assert_eq!(late.len(), 107);
        assert!(read(&late).is_err());
        late.push('\n');
        assert!(read(&late).is_err());
    }
}
