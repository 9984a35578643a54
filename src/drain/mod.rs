//! A server's life as its own task lives it: accept, shut the door, drain, cut, report.
//!
//! What has to happen even if this task is never polled again, because a handler blocks its thread
//! or the runtime is gone, is done by [`Shared`]'s methods, none of which waits. Whoever waits for
//! the end of the server sees to it that they are called: see [`finished`].

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::AsyncWriteExt;
use futures_lite::future;

use crate::accept::spawn::Host;
use crate::accept::{Blame, Shortage, accept_until, blame};
use crate::connection::Connection;
use crate::connection::task::Task;
use crate::handle::Shared;
use crate::lifecycle::{Phase, Reason, earliest};
use crate::report::Report;
use crate::runtime::{Runtime, sleep_until};
use crate::shared::connection::{Record, bit};

/// How long, after everybody was cut, the next of them may take to be gone. Dropping a handler
/// takes microseconds; one that blocks its thread is not waited for.
const PATIENCE: Duration = Duration::from_millis(250);

/// How much later than the server's own task somebody else does its work.
const OVERDUE: Duration = Duration::from_millis(500);

/// How long a door that is shut is left alone after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// Serves until a shutdown, and drains.
pub(crate) fn run<R: Runtime>(
    shared: Arc<Shared>,
    host: Host<R>,
    serve: impl Fn(Arc<Record>) + Send + Sync + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    // Made here, not in the future: a runtime that is gone drops that without a poll.
    let orphan = Orphan(shared.clone());
    let desk = Desk {
        shared,
        host,
        serve,
    };
    async move {
        desk.run().await;
        drop(orphan);
    }
}

/// Ends a server that cannot begin to serve.
pub(crate) fn give_up(shared: &Arc<Shared>, error: io::Error) {
    shared.fail(error);
    drop(Orphan(shared.clone()));
}

/// Where peers are taken in: what all accept loops of a server have in common.
struct Desk<R, S> {
    shared: Arc<Shared>,
    host: Host<R>,
    /// Starts the handler of a connection that has its place.
    serve: S,
}

impl<R: Runtime, S: Fn(Arc<Record>) + Send + Sync + 'static> Desk<R, S> {
    async fn run(self) {
        let desk = Arc::new(self);
        let shared = &desk.shared;
        let admit = |record| desk.admit(record);

        shared.start();
        for door in 1..shared.doors() {
            let (desk, keeper) = (desk.clone(), Doorkeeper::new(shared));
            desk.host.clone().spawn(door as u16, async move {
                desk.accept(door).await;
                drop((desk, keeper));
            });
        }
        desk.accept(0).await;

        // All at once, before anybody waits or is told.
        shared.shut_doors();
        let swept = shared.sweep(admit);
        if swept && shared.config.sweep.is_zero() {
            shared.close_door_with(admit);
        }
        shared.latch.shut_at(shared.clock.now());
        shared.group.tell_all(shared.uptime());

        let settled = future::zip(keep_sweeping(shared, admit), seat_all(shared, &desk.serve));
        let drained = async {
            settled.await;
            shared.empty().await;
        };
        let late = async {
            future::or(deadline(shared), shared.latch.reached(Phase::Aborting)).await;
            cut(shared).await;
        };
        future::or(drained, late).await;
        shared.conclude();
    }

    /// Takes peers at one door until a shutdown, and through the lame duck's time.
    async fn accept(&self, door: usize) {
        let shared = &self.shared;
        let admit = |record| self.admit(record);
        let asked = shared.latch.reached(Phase::Draining);
        match accept_until(shared, door, asked, admit, &self.serve).await {
            Err(error) => return shared.fail(error),
            Ok(()) if shared.lame_duck().is_zero() || shared.group.is_paused() => return,
            Ok(()) => {}
        }
        let over = lame_duck(shared);
        if let Err(error) = accept_until(shared, door, over, admit, &self.serve).await {
            shared.fail(error);
        }
    }

    /// Sends a peer that was taken in to the handler, to the door again, or to wait for a place.
    fn admit(&self, record: Arc<Record>) {
        let shared = &self.shared;
        log::debug!(
            target: "gracious", conn = record.id, peer:% = record.peer();
            "connection {} from {}", record.id, record.peer(),
        );
        let share = shared.config.max_per_peer;
        if let Err(error) = record.transport.enroll(&record) {
            // Nobody would tell us when its peer has sent something.
            log::warn!(target: "gracious", error:%; "cannot watch a connection: {error}");
            shared.turn_away(record);
        } else if share.is_some_and(|share| !shared.group.take_share(&record, share)) {
            shared.group.unseat(&record);
            self.reject(record);
        } else if !record.has(bit::HELD) {
            (self.serve)(record);
        } else if shared.config.reject_with.is_some() {
            self.reject(record);
        } else {
            shared.hold(record);
        }
    }

    /// The other handler: for a peer that there is no place for.
    fn reject(&self, record: Arc<Record>) {
        record.set(bit::REJECTED);
        let message = self.shared.config.reject_with.clone().unwrap_or_default();
        let mut connection = Connection::new(record.clone());
        let refuse = async move { connection.write_all(&message).await };
        self.host.start(record.shard, Task::new(record, refuse));
    }
}

/// An accept loop beside the server's own task, which waits for its end.
struct Doorkeeper(Arc<Shared>);

impl Doorkeeper {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.group.post_doorkeeper();
        Self(shared.clone())
    }
}

impl Drop for Doorkeeper {
    fn drop(&mut self) {
        self.0.group.relieve_doorkeeper();
        self.0.conclude_if_orphaned();
    }
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
async fn keep_sweeping(shared: &Arc<Shared>, admit: impl Fn(Arc<Record>) + Copy) {
    let until = shared.clock.now().checked_add(shared.config.sweep);
    let mut shortage = Shortage::default();
    while !shared.door_is_closed() {
        let accepted = async { Some(poll_fn(|cx| shared.poll_any(cx)).await) };
        let over = async {
            sleep_until(&*shared.clock, until).await;
            None
        };
        // The time first: it ends also where peers, or errors, come without a pause.
        match future::or(over, accepted).await {
            Some(Ok(record)) => admit(record),
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
        // In this order: nobody is held once there is nobody who could.
        let attended = shared.group.ledger().is_attended();
        if shared.door_is_closed() && !attended && shared.held_is_empty() {
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
