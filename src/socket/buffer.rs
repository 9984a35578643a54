//! Read buffers, lent while there is something in them.
//!
//! A connection that waits for its peer owns no buffer: it borrows one of its thread's when the
//! kernel has something to read and gives it back when the handler has consumed it all.

use std::cell::RefCell;

/// What one read can bring: more than most messages, and a position in it fits 16 bits.
const SIZE: usize = 16 * 1024;

/// How many empty buffers a thread keeps; beyond it they are freed.
const SPARE: usize = 16;

thread_local! {
    static POOL: RefCell<Vec<Box<Lent>>> = const { RefCell::new(Vec::new()) };
}

/// The bytes read and not yet consumed, in a lent buffer; none while there are none.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<Box<Lent>>);

/// What is lent. Where the bytes are in it goes with it: a connection that waits has no room for that
/// either.
#[derive(Debug)]
struct Lent {
    start: u16,
    end: u16,
    bytes: [u8; SIZE],
}

impl Buffer {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Some(lent) => &lent.bytes[lent.start as usize..lent.end as usize],
            None => &[],
        }
    }

    /// Borrows a buffer, lets `read` fill it, and keeps it if it did.
    #[inline]
    pub(crate) fn fill<R>(&mut self, read: impl FnOnce(&mut [u8]) -> (usize, R)) -> R {
        debug_assert!(self.is_empty());
        let mut lent = lend();
        let (filled, result) = read(&mut lent.bytes);
        if filled == 0 {
            take_back(lent);
        } else {
            debug_assert!(filled <= SIZE);
            (lent.start, lent.end) = (0, filled as u16);
            self.0 = Some(lent);
        }
        result
    }

    /// Puts bytes in front of what is there; `false` where there is no room for both.
    #[cfg(feature = "http")]
    pub(crate) fn unread(&mut self, bytes: &[u8]) -> bool {
        let both = [bytes, self.bytes()].concat();
        if both.len() > SIZE {
            return false;
        }
        self.consume(usize::MAX);
        if !both.is_empty() {
            self.fill(|buf| {
                buf[..both.len()].copy_from_slice(&both);
                (both.len(), ())
            });
        }
        true
    }

    /// Takes `amount` bytes off the front, at most what is there; says how many it took.
    #[inline]
    pub(crate) fn consume(&mut self, amount: usize) -> usize {
        let Some(mut lent) = self.0.take() else {
            return 0;
        };
        let there = (lent.end - lent.start) as usize;
        if amount >= there {
            take_back(lent);
            return there;
        }
        lent.start += amount as u16;
        self.0 = Some(lent);
        amount
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.consume(usize::MAX);
    }
}

#[inline]
fn lend() -> Box<Lent> {
    // Where the thread is ending and its pool is gone, a buffer is simply allocated.
    let spare = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| {
        Box::new(Lent {
            start: 0,
            end: 0,
            bytes: [0; SIZE],
        })
    })
}

#[inline]
fn take_back(lent: Box<Lent>) {
    let _gone = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < SPARE {
            pool.push(lent);
        }
    });
}
