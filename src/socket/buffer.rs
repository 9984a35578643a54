//! Read buffers, lent while there is something in them.
//!
//! 1. A connection that waits for its peer owns no buffer: it borrows one of its thread's when the
//!    kernel has something to read, and gives it back when the handler has consumed all of it.
//! 2. A buffer is given back to the thread that its connection is on by then, which need not be the
//!    thread that lent it: a buffer belongs to no thread.

use std::cell::RefCell;

/// The size of a buffer in bytes, and so what one read can bring: more than most messages, and
/// small enough that a position in a buffer fits 16 bits.
const SIZE: usize = 16 * 1024;

/// How many empty buffers a thread keeps; beyond that number they are freed.
const SPARE: usize = 16;

thread_local! {
    /// The thread's empty buffers.
    static POOL: RefCell<Vec<Box<Lent>>> = const { RefCell::new(Vec::new()) };
}

/// The bytes read and not yet consumed, in a lent buffer; none while there are none.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<Box<Lent>>);

/// A buffer with the positions of what is unread in it. The positions stand here, and not in
/// `Buffer`, so that a connection which waits has no room for them either.
#[derive(Debug)]
struct Lent {
    /// Where the unread bytes begin.
    start: u16,
    /// Where they end.
    end: u16,
    bytes: [u8; SIZE],
}

impl Buffer {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The bytes read and not yet consumed.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Some(lent) => &lent.bytes[lent.start as usize..lent.end as usize],
            None => &[],
        }
    }

    /// Borrows a buffer and lets `read` fill it; `read` gives how many bytes it wrote. The buffer
    /// is kept if that is not 0.
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

    /// A buffer with these bytes, of which one read has brought no more than a buffer holds.
    #[cfg(feature = "proxy")]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut buffer = Self::default();
        if !bytes.is_empty() {
            buffer.fill(|buf| {
                buf[..bytes.len()].copy_from_slice(bytes);
                (bytes.len(), ())
            });
        }
        buffer
    }

    /// Puts bytes in front of those that are unread; `false` where there is no room for both.
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

    /// Takes `amount` bytes off the front, at most what is there; gives how many it took. The last
    /// byte takes the buffer with it.
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

/// An empty buffer of this thread's, or a new one.
#[inline]
fn lend() -> Box<Lent> {
    // A thread that is ending has dropped its pool already.
    let spare = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| {
        Box::new(Lent {
            start: 0,
            end: 0,
            bytes: [0; SIZE],
        })
    })
}

/// Keeps an empty buffer for the thread's next read, or frees it.
#[inline]
fn take_back(lent: Box<Lent>) {
    // A thread that is ending has dropped its pool already, and frees the buffer.
    let _gone = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < SPARE {
            pool.push(lent);
        }
    });
}
