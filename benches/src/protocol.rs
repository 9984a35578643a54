//! What is spoken: `+PONG` for each line, which is enough for `redis-benchmark -t ping_inline`.

pub const PING: &[u8] = b"PING\r\n";
pub const PONG: &[u8] = b"+PONG\r\n";

/// The read buffer of a handler that has one.
pub(crate) const BUFFER: usize = 1024;

/// One reply for each line that ends in the input, to be written at once.
pub(crate) fn replies(input: &[u8]) -> &'static [u8] {
    let lines = input.iter().filter(|byte| **byte == b'\n').count();
    &REPLIES[..lines * PONG.len()]
}

/// The last so many bytes of a series of replies.
pub(crate) fn rest_of_replies(len: usize) -> &'static [u8] {
    &REPLIES[REPLIES.len() - len..]
}

/// As many replies as a buffer full of the shortest lines asks for.
static REPLIES: [u8; BUFFER * PONG.len()] = {
    let mut replies = [0; BUFFER * PONG.len()];
    let mut at = 0;
    while at < replies.len() {
        replies[at] = PONG[at % PONG.len()];
        at += 1;
    }
    replies
};
