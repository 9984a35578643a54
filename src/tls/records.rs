//! Where in a TLS record a stream is: rustls does not tell whether it holds half of one.

/// The length of a record's header: its type, its version, and the length of its content.
const HEADER: usize = 5;

/// Follows the records of a stream, by their headers alone.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// The header of a record that has begun, as far as it has come.
    header: [u8; HEADER],
    /// How many bytes of the header have come; 0 between two records.
    seen: usize,
    /// How many bytes of the content are still to come, once the header is complete.
    left: usize,
}

impl Records {
    /// Takes in the next bytes of the stream.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.seen < HEADER {
                self.header[self.seen] = *first;
                self.seen += 1;
                bytes = rest;
                if self.seen == HEADER {
                    self.left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                }
            } else {
                let content = self.left.min(bytes.len());
                self.left -= content;
                bytes = &bytes[content..];
            }
            if self.seen == HEADER && self.left == 0 {
                self.seen = 0;
            }
        }
    }

    /// Whether a record has begun and is not complete.
    pub(super) fn is_inside(&self) -> bool {
        self.seen > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with so many bytes of content.
    fn record(content: u16) -> Vec<u8> {
        let mut record = vec![23, 3, 3];
        record.extend(content.to_be_bytes());
        record.resize(HEADER + usize::from(content), 7);
        record
    }

    #[test]
    fn records_end_where_their_headers_say_however_they_come() {
        let stream = [record(1), record(0), record(300), record(16_384)].concat();
        let mut ends = Vec::new();
        let mut end = 0;
        for content in [1, 0, 300, 16_384] {
            end += HEADER + content;
            ends.push(end);
        }
        for step in [1, 2, 3, 7, 306, 1000, stream.len()] {
            let mut records = Records::default();
            let mut at = 0;
            for bytes in stream.chunks(step) {
                records.advance(bytes);
                at += bytes.len();
                assert_eq!(records.is_inside(), !ends.contains(&at), "{at} by {step}");
            }
        }
    }
}
