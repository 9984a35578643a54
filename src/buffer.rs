//! Read buffers, lent while there is something in them.
//!
//! A connection that waits for its peer owns no buffer: it borrows one of its thread's when the
//! kernel has something to read and gives it back when the handler has consumed it all.

use std::cell::RefCell;

/// What one read can bring: more than most messages, and a position in it fits 16 bits.
const SIZE: usize = 16 * 1024;

type Storage = Box<[u8; SIZE]>;

/// How many empty buffers a thread keeps; beyond it they are freed.
const SPARE: usize = 16;

thread_local! {
    static POOL: RefCell<Vec<Storage>> = const { RefCell::new(Vec::new()) };
}

/// The bytes read and not yet consumed, in a lent buffer; none while there are none.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    storage: Option<Storage>,
    start: u16,
    end: u16,
}

impl Buffer {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.storage {
            Some(storage) => &storage[self.start as usize..self.end as usize],
            None => &[],
        }
    }

    /// Borrows a buffer, lets `read` fill it, and keeps it if it did.
    #[inline]
    pub(crate) fn fill<R>(&mut self, read: impl FnOnce(&mut [u8]) -> (usize, R)) -> R {
        debug_assert!(self.is_empty());
        let mut storage = lend();
        let (filled, result) = read(&mut storage[..]);
        if filled == 0 {
            take_back(storage);
        } else {
            debug_assert!(filled <= SIZE);
            (self.start, self.end) = (0, filled as u16);
            self.storage = Some(storage);
        }
        result
    }

    /// Takes `amount` bytes off the front, at most what is there; says how many it took.
    #[inline]
    pub(crate) fn consume(&mut self, amount: usize) -> usize {
        let amount = amount.min((self.end - self.start) as usize);
        self.start += amount as u16;
        if self.is_empty() {
            if let Some(storage) = self.storage.take() {
                take_back(storage);
            }
        }
        amount
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.consume(usize::MAX);
    }
}

#[inline]
fn lend() -> Storage {
    // Where the thread is ending and its pool is gone, a buffer is simply allocated.
    let spare = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| Box::new([0; SIZE]))
}

#[inline]
fn take_back(storage: Storage) {
    let _gone = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < SPARE {
            pool.push(storage);
        }
    });
}
