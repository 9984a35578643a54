//! The user's handler, watched.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::fault::Fault;
use super::plan::stream;
use super::timeline::Who;
use super::world::World;
use crate::address::Address;
use crate::connection::Connection;
use crate::handler::Handler;

/// A handler whose steps are watched, and which panics or hangs where the plan says so.
#[derive(Clone)]
pub(super) struct Watched<H> {
    pub(super) handler: H,
    pub(super) world: Arc<World>,
    /// The number of its server.
    pub(super) server: usize,
}

/// What became of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Returned,
    Failed,
    Panicked,
    Dropped,
}

impl<H: Handler> Handler for Watched<H> {
    fn run(self, connection: Connection) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let id = connection.id();
        let wire = wire(&connection.peer_addr());
        self.world
            .watch()
            .begin(self.server, id, wire, self.world.step());
        let plan = &self.world.plan;
        let mut random = plan.random(stream::HANDLERS + wire.unwrap_or(0) as u64);
        let breaks = [Fault::HandlerPanic, Fault::HandlerHang].into_iter();
        let breaks: Vec<_> = breaks
            .filter(|fault| plan.has(*fault) && random.once_in(4))
            .collect();
        let after = random.magnitude(16);
        WatchedFuture {
            future: self.handler.run(connection),
            breaks: breaks.first().map(|fault| (after, *fault)),
            is_hung: false,
            steps: Steps {
                world: self.world,
                server: self.server,
                id,
                wire: wire.unwrap_or(0),
                outcome: Outcome::Dropped,
            },
        }
    }
}

/// The number of a peer, by its address.
pub(super) fn wire(peer: &Address) -> Option<usize> {
    let Address::Custom(name) = peer else {
        return None;
    };
    name.strip_prefix("peer ")?.parse().ok()
}

pin_project! {
    struct WatchedFuture<F> {
        #[pin]
        future: F,
        // After so many steps it does this.
        breaks: Option<(u64, Fault)>,
        is_hung: bool,
        // Dropped last: the handler is gone by then.
        steps: Steps,
    }
}

struct Steps {
    world: Arc<World>,
    server: usize,
    id: u64,
    wire: usize,
    outcome: Outcome,
}

impl<F: Future<Output = io::Result<()>>> Future for WatchedFuture<F> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let Steps {
            world,
            server,
            id,
            wire,
            ..
        } = this.steps;
        let late = world.watch().step(*server, *id, world.step());
        if let Some(complaint) = late {
            world.fail("served after the end", complaint);
        }
        if let Some((left, fault)) = this.breaks {
            if *left == 0 {
                world.fired(*fault);
                world.note(Who::Connection(*wire), fault.name(), None);
                let panics = *fault == Fault::HandlerPanic;
                *this.breaks = None;
                world.watch().broken(*server, *id);
                if panics {
                    this.steps.outcome = Outcome::Panicked;
                    // Without the hook, which would print it.
                    resume_unwind(Box::new("a fault of the simulation"));
                }
                *this.is_hung = true;
            } else {
                *left -= 1;
            }
        }
        if *this.is_hung {
            return Poll::Pending;
        }
        match catch_unwind(AssertUnwindSafe(|| this.future.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => {
                this.steps.outcome = match result {
                    Ok(()) => Outcome::Returned,
                    Err(_) => Outcome::Failed,
                };
                Poll::Ready(result)
            }
            Err(panic) => {
                this.steps.outcome = Outcome::Panicked;
                let message = crate::connection::task::message(&*panic);
                let text = format!("the handler of peer {wire} panicked: {message}");
                if !world.plan.allows_panics {
                    world.fail("handler panicked", text);
                }
                resume_unwind(panic)
            }
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        let outcome = self.outcome;
        let what = match outcome {
            Outcome::Returned => "its handler returned",
            Outcome::Failed => "its handler failed",
            Outcome::Panicked => "its handler panicked",
            Outcome::Dropped => "its handler is dropped",
        };
        self.world.note(Who::Connection(self.wire), what, None);
        let read = self.world.on_network(|network, _| {
            let wire = network.wires.get(self.wire)?;
            let end = &wire.ends[super::wire::SERVER];
            Some(end.arrived - end.inbox.len() as u64)
        });
        self.world
            .watch()
            .end(self.server, self.id, outcome, read.unwrap_or(0));
    }
}
