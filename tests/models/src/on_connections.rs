//! The word of a connection, its wakers, and what makes it busy.

use std::future::poll_fn;
use std::task::{Context, Poll};

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;

use crate::connection::ConnectionState;
use crate::explore;
use crate::socket::readiness::{HalfState, Waiter, flag, is_write_blocked, ticks};
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use crate::sync::{Mutex, lock, wake_by_ref};

const HALVES: u64 = flag::READER | flag::WRITER;

fn connection(flags: u64) -> Arc<ConnectionState> {
    Arc::new(ConnectionState::new(HALVES | flags))
}

/// What a driver does with an event: `Slab::on_events`.
fn on_event(state: &ConnectionState, readable: bool, writable: bool) {
    state.readiness.on_event(readable, writable, false, |waiter| {
        match state.readiness.task_waker(waiter) {
            Some(waker) => waker.wake_by_ref(),
            None => {
                if let Some(waker) = state.waker_of(waiter) {
                    wake_by_ref(&waker);
                }
            }
        }
    });
}

/// As `ConnectionState::notify_end`, without those who listen.
fn ask_to_end(state: &ConnectionState) {
    state.set(flag::DRAINING);
    state.wake(Waiter::Reader);
}

/// A socket that a poller reports on: `Registration::poll_read`.
struct Socket {
    /// How many messages are in the kernel.
    input: Mutex<usize>,
    empty_at: AtomicU32,
}

impl Socket {
    fn new() -> Self {
        Self {
            input: Mutex::new(0),
            empty_at: AtomicU32::new(u32::MAX),
        }
    }

    fn poll_read(&self, seen: u64) -> Poll<()> {
        if !self.may_read(seen) {
            return Poll::Pending;
        }
        let mut input = lock(&self.input);
        if *input > 0 {
            *input -= 1;
            return Poll::Ready(());
        }
        drop(input);
        self.empty_at.store(ticks(seen), Relaxed);
        Poll::Pending
    }

    fn may_read(&self, word: u64) -> bool {
        ticks(word) != self.empty_at.load(Relaxed)
    }
}

/// A read, as `ReadHalf::poll_receive` makes it.
fn poll_receive(state: &ConnectionState, socket: &Socket, cx: &Context<'_>) -> Poll<()> {
    loop {
        let word = state.word();
        if socket.poll_read(word).is_ready() {
            return Poll::Ready(());
        }
        state.register(Waiter::Reader, cx);
        if !socket.may_read(state.word()) {
            return Poll::Pending;
        }
    }
}

/// A read at a drain that finds nothing, as `ReadHalf::poll_receive_specially` makes it; ready where it
/// ends.
fn poll_end(state: &ConnectionState, cx: &Context<'_>) -> Poll<()> {
    state.reader.set(HalfState::WAITING);
    state.register(Waiter::Reader, cx);
    if state.word() & flag::DRAINING == 0 || state.is_busy() {
        return Poll::Pending;
    }
    state.reader.clear(HalfState::WAITING);
    state.set(flag::DRAIN_ENDED);
    Poll::Ready(())
}

#[test]
fn no_event_is_lost_on_a_reader() {
    explore(|| {
        let (state, socket) = (connection(0), Arc::new(Socket::new()));
        let (of_driver, kernel) = (state.clone(), socket.clone());
        let driver = thread::spawn(move || {
            for _ in 0..2 {
                *lock(&kernel.input) += 1;
                on_event(&of_driver, true, false);
            }
        });
        block_on(poll_fn(|cx| {
            state.register(Waiter::Task, cx);
            poll_receive(&state, &socket, cx)
        }));
        block_on(poll_fn(|cx| poll_receive(&state, &socket, cx)));
        driver.join().unwrap();
    });
}

#[test]
fn no_event_is_lost_on_a_reader_that_moves_to_another_task() {
    explore(|| {
        let (state, socket) = (connection(0), Arc::new(Socket::new()));
        let (of_driver, kernel) = (state.clone(), socket.clone());
        let driver = thread::spawn(move || {
            *lock(&kernel.input) += 1;
            on_event(&of_driver, true, false);
        });
        let mut is_polled = false;
        block_on(poll_fn(|cx| {
            state.register(Waiter::Task, cx);
            is_polled = poll_receive(&state, &socket, cx).is_ready();
            Poll::Ready(())
        }));
        if !is_polled {
            // A waker of another task, which is kept elsewhere.
            let elsewhere = thread::spawn({
                let (state, socket) = (state.clone(), socket.clone());
                move || block_on(poll_fn(|cx| poll_receive(&state, &socket, cx)))
            });
            elsewhere.join().unwrap();
        }
        driver.join().unwrap();
    });
}

/// The kernel has no room until the driver says so, once: `Registration::poll_write`.
#[test]
fn no_room_is_lost_on_a_writer() {
    explore(|| {
        let state = connection(flag::SPLIT);
        let room = Arc::new(Mutex::new(false));
        let (of_driver, kernel) = (state.clone(), room.clone());
        let driver = thread::spawn(move || {
            *lock(&kernel) = true;
            on_event(&of_driver, true, true);
        });
        block_on(poll_fn(|cx| {
            state.register(Waiter::Task, cx);
            loop {
                let seen = state.word();
                if !is_write_blocked(seen) {
                    if *lock(&room) {
                        return Poll::Ready(());
                    }
                    if !state.readiness.mark_write_blocked(seen) {
                        continue;
                    }
                }
                state.register(Waiter::Writer, cx);
                if is_write_blocked(state.word()) {
                    return Poll::Pending;
                }
            }
        }));
        driver.join().unwrap();
    });
}

#[test]
fn flags_and_events_do_not_overwrite_each_other() {
    explore(|| {
        let state = connection(0);
        let (of_driver, of_drain) = (state.clone(), state.clone());
        let driver = thread::spawn(move || on_event(&of_driver, true, true));
        let drain = thread::spawn(move || of_drain.set(flag::DRAINING));
        let seen = state.word();
        let is_marked = state.readiness.mark_write_blocked(seen);
        driver.join().unwrap();
        drain.join().unwrap();
        let word = state.word();
        assert_eq!(ticks(word), 1);
        assert!(word & flag::DRAINING != 0 && word & HALVES == HALVES);
        // The event has cleared the mark, or has kept it from being made.
        assert!(!is_write_blocked(word) || is_marked && ticks(seen) == 1);
    });
}

/// The halves are on two threads, and a third asks the connection to end while an answer is written.
/// The reader loads the counts without a fence behind its load of the flag, and may see them as they
/// were before the answer: then the wake-up by who has set the flag makes it look again.
#[test]
fn an_answer_raced_against_the_stop_ends_the_reader() {
    explore(|| {
        let state = connection(flag::SPLIT);
        state.mark_received(1);
        state.mark_consumed();
        let mut threads = Vec::new();
        block_on(poll_fn(|cx| {
            if threads.is_empty() {
                // It waits already.
                state.register(Waiter::Task, cx);
                assert!(poll_end(&state, cx).is_pending());
                let (of_writer, of_drain) = (state.clone(), state.clone());
                threads.push(thread::spawn(move || {
                    of_writer.mark_answered(of_writer.answerable());
                    of_writer.after_write(true);
                }));
                threads.push(thread::spawn(move || ask_to_end(&of_drain)));
            }
            poll_end(&state, cx)
        }));
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// The same, of a reader that waits already with a waker of its own.
#[test]
fn an_answer_raced_against_the_stop_ends_a_reader_that_waits_elsewhere() {
    explore(|| {
        let state = connection(flag::SPLIT);
        block_on(poll_fn(|cx| {
            state.register(Waiter::Task, cx);
            Poll::Ready(())
        }));
        state.mark_received(1);
        state.mark_consumed();
        let (of_reader, of_drain) = (state.clone(), state.clone());
        let reader = thread::spawn(move || block_on(poll_fn(|cx| poll_end(&of_reader, cx))));
        let drain = thread::spawn(move || ask_to_end(&of_drain));
        state.mark_answered(state.answerable());
        state.after_write(true);
        reader.join().unwrap();
        drain.join().unwrap();
    });
}

#[test]
fn the_end_of_a_guard_raced_against_the_stop_ends_the_reader() {
    explore(|| {
        let state = connection(0);
        state.begin_busy();
        let (of_guard, of_drain) = (state.clone(), state.clone());
        let guard = thread::spawn(move || of_guard.end_busy());
        let drain = thread::spawn(move || ask_to_end(&of_drain));
        block_on(poll_fn(|cx| {
            state.register(Waiter::Task, cx);
            poll_end(&state, cx)
        }));
        guard.join().unwrap();
        drain.join().unwrap();
    });
}

/// A write that is done in part is no answer: whoever looks while it goes on finds the connection
/// busy.
#[test]
fn half_an_answer_is_never_taken_for_a_whole() {
    explore(|| {
        let state = connection(flag::SPLIT);
        state.mark_received(1);
        state.mark_consumed();
        let of_writer = state.clone();
        let is_whole = Arc::new(AtomicUsize::new(0));
        let whole = is_whole.clone();
        let writer = thread::spawn(move || {
            let answerable = of_writer.answerable();
            // The first half, then a wait.
            of_writer.begin_answer(answerable);
            of_writer.before_wait(answerable);
            // The second.
            whole.store(1, Relaxed);
            of_writer.writer.clear(HalfState::WAITING | HalfState::UNANSWERED);
        });
        if !state.is_busy() {
            // What the clear has released.
            assert_eq!(is_whole.load(Relaxed), 1);
        }
        writer.join().unwrap();
    });
}

/// Input that the reader takes in while a write begins is not answered by that write.
#[test]
fn input_that_was_not_consumed_is_not_answered() {
    explore(|| {
        let state = connection(flag::SPLIT);
        let of_writer = state.clone();
        let writer = thread::spawn(move || {
            let answerable = of_writer.answerable();
            of_writer.mark_answered(answerable);
        });
        state.mark_received(1);
        writer.join().unwrap();
        // The handler has not consumed it, so nothing can have answered it.
        assert!(state.is_busy());
    });
}

#[test]
fn an_abort_wakes_every_waiter() {
    explore(|| {
        let state = connection(flag::SPLIT);
        let of_abort = state.clone();
        let abort = thread::spawn(move || {
            of_abort.set(flag::ABORT);
            for waiter in [Waiter::Task, Waiter::Reader, Waiter::Writer] {
                of_abort.wake(waiter);
            }
        });
        let of_writer = state.clone();
        let waits = |state: &ConnectionState, waiter, cx: &Context<'_>| {
            state.register(waiter, cx);
            match state.has(flag::ABORT) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        };
        let writer = thread::spawn(move || block_on(poll_fn(|cx| waits(&of_writer, Waiter::Writer, cx))));
        block_on(poll_fn(|cx| waits(&state, Waiter::Task, cx)));
        writer.join().unwrap();
        abort.join().unwrap();
    });
}

#[test]
fn an_abort_finds_a_detached_mark_or_keeps_it_away() {
    explore(|| {
        let state = connection(0);
        let of_abort = state.clone();
        let abort = thread::spawn(move || of_abort.set(flag::ABORT) & flag::DETACHED == 0);
        let is_detached = state.readiness.detach();
        assert_eq!(abort.join().unwrap(), !is_detached);
    });
}
