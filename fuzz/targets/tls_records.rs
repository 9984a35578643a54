//! Records end where their headers say, however the stream is cut into pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/tls/records.rs"]
#[allow(unreachable_pub)]
mod records;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (stream, cuts) = input;
    let mut whole = records::Records::default();
    whole.advance(&stream);
    let mut pieces = records::Records::default();
    let mut rest = &stream[..];
    for cut in cuts {
        let (piece, behind) = rest.split_at(rest.len().min(cut.into()));
        pieces.advance(piece);
        rest = behind;
    }
    pieces.advance(rest);
    assert_eq!(whole.is_inside(), pieces.is_inside());
    assert_eq!(whole.is_inside(), is_inside(&stream));
});

/// The same, by what RFC 8446 says of a record: five bytes, the last two of which are a length.
fn is_inside(mut stream: &[u8]) -> bool {
    while let [_, _, _, high, low, content @ ..] = stream {
        let Some((_, rest)) = content.split_at_checked(u16::from_be_bytes([*high, *low]).into()) else {
            return true;
        };
        stream = rest;
    }
    !stream.is_empty()
}
