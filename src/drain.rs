//! A server's life as its own task lives it: accept, shut the door, drain, cut, report.
//!
//! What has to happen even if this task is never polled again, because a handler blocks its thread
//! or the runtime is gone, is done by [`Shared`]'s methods, none of which waits. Whoever waits for
//! the end of the server sees to it that they are called: see [`finished`].

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_lite::AsyncWriteExt;
use futures_lite::future;

use crate::accept::{Accepted, Blame, Shortage, accept_until, blame};
use crate::connection::Connection;
use crate::group::{Record, bit};
use crate::handle::Shared;
use crate::handler::Handler;
use crate::report::Report;
use crate::runtime::{Runtime, sleep_until};
use crate::shutdown::{Phase, Reason, earliest};
use crate::task::Task;

/// How long, after everybody was cut, the next of them may take to be gone. Dropping a handler
/// takes microseconds; one that blocks its thread is not waited for.
const PATIENCE: Duration = Duration::from_millis(250);

/// How much later than the server's own task somebody else does its work.
const OVERDUE: Duration = Duration::from_millis(500);

/// How long a door that is shut is left alone after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// Serves until a shutdown, and drains.
pub(crate) fn run<R: Runtime, H: Handler>(
    shared: Arc<Shared>,
    runtime: R,
    handler: H,
) -> impl Future<Output = ()> + Send + 'static {
    // Made here, not in the future: a runtime that is gone drops that without a poll.
    let orphan = Orphan(shared.clone());
    async move {
        serve(shared, runtime, handler).await;
        drop(orphan);
    }
}

async fn serve<R: Runtime, H: Handler>(shared: Arc<Shared>, runtime: R, handler: H) {
    // A handler need not be `Sync`: what is shared here is the right to clone it.
    let handler = Mutex::new(handler);
    let serve = |record: Arc<Record>| {
        let connection = Connection::new(record.clone());
        // What a handler does before it comes to its future is its connection's affair, too.
        let made = catch_unwind(AssertUnwindSafe(|| {
            let handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
            let handler = handler.clone();
            handler.run(connection)
        }));
        match made {
            Ok(future) => runtime.spawn(Task::new(record, future)),
            Err(panic) => runtime.spawn(Task::panicked(record, &*panic)),
        }
    };
    let reject = |record: Arc<Record>| {
        let message = shared.config.reject_with.clone().unwrap_or_default();
        let connection = Connection::new(record.clone());
        runtime.spawn(Task::new(record, refuse(connection, message)));
    };
    let admit = |accepted| shared.admit(accepted, serve, reject);

    shared.start();
    let accepting = accept_until(&shared, shared.latch.reached(Phase::Draining), admit).await;
    match accepting {
        Err(error) => shared.fail(error),
        Ok(()) if shared.lame_duck().is_zero() || shared.group.is_paused() => {}
        Ok(()) => {
            if let Err(error) = accept_until(&shared, lame_duck(&shared), admit).await {
                shared.fail(error);
            }
        }
    }

    // All at once, before anybody waits or is told.
    shared.shut_doors();
    let swept = shared.sweep(admit);
    if swept && shared.config.sweep.is_zero() {
        shared.close_door_with(admit);
    }
    shared.latch.shut_at(shared.clock.now());
    shared.group.tell_all(shared.uptime());

    let settled = future::zip(keep_sweeping(&shared, admit), seat_all(&shared, serve));
    let drained = async {
        settled.await;
        shared.empty().await;
    };
    let late = async {
        future::or(deadline(&shared), shared.latch.reached(Phase::Aborting)).await;
        cut(&shared).await;
    };
    future::or(drained, late).await;
    shared.conclude();
}

/// The report, as soon as there is one.
///
/// While it waits it looks after the server: where the server's own task does not act in time, for
/// want of a thread, it acts in its place.
pub(crate) async fn finished(shared: Arc<Shared>) -> Report {
    let closed = async {
        shared.latch.reached(Phase::Closed).await;
    };
    let overdue = async {
        loop {
            let changed = shared.latch.listen();
            future::or(sleep_until(&*shared.clock, overdue(&shared)), changed).await;
            if overdue(&shared).is_some_and(|at| at <= shared.clock.now()) {
                return cut(&shared).await;
            }
        }
    };
    future::or(closed, overdue).await;
    shared.report()
}

/// When the server's own task should have acted.
fn overdue(shared: &Shared) -> Option<Instant> {
    let phase = shared.latch.phase();
    if phase < Phase::Draining {
        return None;
    }
    // One that is not served yet has no task that could be late.
    let served = shared.served()?;
    let request = shared.latch.request().clone();
    if let Some(aborted) = request.aborted {
        return aborted.checked_add(OVERDUE);
    }
    // Without the door's time, what it should have been.
    let door = request.door.or_else(|| {
        let begun = request.asked?.max(served);
        begun.checked_add(shared.lame_duck())
    });
    let deadline = door
        .zip(shared.config.deadline)
        .and_then(|(door, span)| door.checked_add(span));
    earliest(deadline, request.before)?.checked_add(OVERDUE)
}

/// Waits for the end of the lame duck's time, which a deadline inside it cuts short: the drain needs
/// that time.
async fn lame_duck(shared: &Shared) {
    let over = async {
        loop {
            let changed = shared.latch.listen();
            let request = shared.latch.request().clone();
            let over = request
                .asked
                .and_then(|asked| asked.checked_add(shared.lame_duck()));
            let is_over = over.is_some_and(|over| over <= shared.clock.now());
            if is_over
                || request
                    .before
                    .is_some_and(|before| over.is_none_or(|over| before < over))
            {
                return;
            }
            future::or(sleep_until(&*shared.clock, over), changed).await;
        }
    };
    future::or(over, shared.latch.reached(Phase::Aborting)).await;
}

/// Waits for the earliest deadline of all that were given, also of those that are given meanwhile.
async fn deadline(shared: &Shared) {
    loop {
        let changed = shared.latch.listen();
        let deadline = shared.deadline();
        if deadline.is_some_and(|deadline| deadline <= shared.clock.now()) {
            return;
        }
        future::or(sleep_until(&*shared.clock, deadline), changed).await;
    }
}

/// Accepts at the shut door whose handshake was under way, and whom there was no descriptor for.
async fn keep_sweeping(shared: &Arc<Shared>, admit: impl Fn(Accepted) + Copy) {
    let until = shared.clock.now().checked_add(shared.config.sweep);
    let mut shortage = Shortage::default();
    while !shared.door_is_closed() {
        let accepted = async { Some(std::future::poll_fn(|cx| shared.poll_accept(cx)).await) };
        let over = async {
            sleep_until(&*shared.clock, until).await;
            None
        };
        // The time first: it ends also where peers, or errors, come without a pause.
        match future::or(over, accepted).await {
            Some(Ok(accepted)) => admit(accepted),
            Some(Err(error)) if blame(&error) == Blame::Shortage => {
                shared
                    .group
                    .count_accept_error(|errors| errors.shortage += 1);
                shortage.pause(shared, &error).await;
            }
            // The peer's, and a listener's that is being closed anyway.
            Some(Err(_)) => shared.clock.sleep(ERROR_PAUSE).await,
            None if shared.sweep(admit) => shared.close_door_with(admit),
            None => {
                let error = io::Error::from_raw_os_error(libc::EMFILE);
                shortage.pause(shared, &error).await;
            }
        }
        future::yield_now().await;
    }
}

/// Gives those whom the limit kept out their places as others end.
async fn seat_all(shared: &Shared, serve: impl Fn(Arc<Record>)) {
    loop {
        let vacancy = shared.group.vacancy.listen();
        while let Some(record) = shared.next_held() {
            serve(record);
        }
        if shared.door_is_closed() && shared.held_is_empty() {
            return;
        }
        vacancy.await;
    }
}

/// Cuts whoever is left, and waits until they are gone, but not for those who cannot be dropped.
async fn cut(shared: &Arc<Shared>) {
    shared.abort_now();
    let mut left = u64::MAX;
    loop {
        let gone = async {
            shared.empty().await;
            true
        };
        let patience = async {
            shared.clock.sleep(PATIENCE).await;
            false
        };
        let now = shared.left();
        if future::or(gone, patience).await {
            break;
        }
        if now >= left || shared.left() >= now {
            shared.group.write_off(shared.uptime());
            break;
        }
        left = now;
    }
    // Now there are descriptors for those who are queued, so that they end cleanly.
    shared.close_door();
    shared.conclude();
}

/// The other handler: for a peer that there is no place for.
async fn refuse(mut connection: Connection, message: Vec<u8>) -> io::Result<()> {
    connection.write_all(&message).await
}

/// Sees to it that a server whose task is dropped is stopped, as far as that needs no runtime.
struct Orphan(Arc<Shared>);

impl Drop for Orphan {
    fn drop(&mut self) {
        let shared = &self.0;
        if shared.latch.phase() == Phase::Closed {
            return;
        }
        shared.ask(Reason::RuntimeGone, None);
        shared.close_door();
        shared.latch.shut_at(shared.clock.now());
        shared.group.tell_all(shared.uptime());
        shared.orphan();
    }
}

/// Takes a peer in: to the handler, to the door again, or to wait for a place.
impl Shared {
    fn admit(
        self: &Arc<Self>,
        accepted: Accepted,
        serve: impl Fn(Arc<Record>),
        reject: impl Fn(Arc<Record>),
    ) {
        let record = self.open(accepted);
        log::debug!(
            target: "gracious", conn = record.id, peer:% = record.peer();
            "connection {} from {}", record.id, record.peer(),
        );
        let share = self.config.max_per_peer;
        if let Err(error) = record.transport.enroll(&record) {
            // Nobody would tell us when its peer has sent something.
            log::warn!(target: "gracious", error:%; "cannot watch a connection: {error}");
            self.turn_away(record);
        } else if share.is_some_and(|share| !self.group.take_share(&record, share)) {
            record.set(bit::REJECTED);
            reject(record);
        } else if !self.group.is_full() && self.held_is_empty() {
            self.group.seat(&record);
            serve(record);
        } else if self.config.reject_with.is_some() {
            record.set(bit::REJECTED);
            reject(record);
        } else {
            self.hold(record);
        }
    }
}
