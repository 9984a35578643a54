//! A PROXY header ends in one place, however much of it has come and whatever is behind it.
#![no_main]

use std::io;

use gracious::ProxyHeader;
use libfuzzer_sys::fuzz_target;

/// The longest header of version 2: its own 16 bytes, and all that their length can say.
const LONGEST: usize = 16 + u16::MAX as usize;

/// Past this length not every beginning is tried: that would be the square of it.
const TRIED: usize = 600;

fuzz_target!(|bytes: &[u8]| {
    begins_well(bytes);
    // Few find the twelve bytes, or a line's end, by themselves.
    begins_well(&[b"\r\n\r\n\0\r\nQUIT\n", bytes].concat());
    begins_well(&[b"PROXY ", bytes, b"\r\n"].concat());
    if let Some((kinds, rest)) = bytes.split_first_chunk::<2>() {
        let length = u16::try_from(rest.len()).unwrap_or(u16::MAX).to_be_bytes();
        begins_well(&[&b"\r\n\r\n\0\r\nQUIT\n"[..], kinds, &length, rest].concat());
    }
});

fn begins_well(bytes: &[u8]) {
    let whole = ProxyHeader::parse(bytes);
    let beginnings = (0..bytes.len()).filter(|it| *it < TRIED || bytes.len() - it < TRIED);
    match &whole {
        Ok(Some((header, length))) => {
            assert!((1..=bytes.len().min(LONGEST)).contains(length));
            is_sound(header);
            for end in beginnings {
                let part = ProxyHeader::parse(&bytes[..end]).expect("it is one's beginning");
                assert_eq!(part.is_some(), end >= *length);
                if let Some(part) = part {
                    assert_eq!((&part.0, part.1), (header, *length));
                }
            }
        }
        Ok(None) => {
            assert!(bytes.len() < LONGEST, "this is waited for for ever");
            for end in beginnings {
                assert!(matches!(ProxyHeader::parse(&bytes[..end]), Ok(None)));
            }
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(!error.to_string().is_empty());
            // No more bytes make a header of it.
            assert!(ProxyHeader::parse(&[bytes, &[0; 300], b"\r\n"].concat()).is_err());
            for end in beginnings {
                assert!(!matches!(ProxyHeader::parse(&bytes[..end]), Ok(Some(_))));
            }
        }
    }
}

fn is_sound(header: &ProxyHeader) {
    assert_eq!(header.source.is_some(), header.destination.is_some());
    assert!(!(header.is_local && header.source.is_some()));
    for (kind, value) in header.extensions() {
        assert!(header.version == 2 && value.len() <= u16::MAX.into());
        assert!(header.extension(kind).is_some());
    }
    let _all_of_it = format!("{header:?}{:?}{:?}", header.authority(), header.unique_id());
}
