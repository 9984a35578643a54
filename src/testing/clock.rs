//! The runtime of a simulated world: its executor, and its clock.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::world::{Timed, TimerKey, World};
use crate::runtime::Runtime;

/// The runtime of a simulated world, from [`Sim::runtime`](super::Sim::runtime).
///
/// Its clock stands still while a task can go on, and then jumps to the next timer. A handler that
/// waits for time takes its runtime as an argument, so that a test can give it this one:
///
/// ```
/// use std::io;
/// use std::time::Duration;
///
/// use futures_lite::AsyncWriteExt;
/// use gracious::{Connection, Runtime};
///
/// async fn slow(runtime: impl Runtime, mut conn: Connection) -> io::Result<()> {
///     runtime.sleep(Duration::from_secs(1)).await;
///     conn.write_all(b"hello\n").await
/// }
/// ```
#[derive(Clone)]
pub struct SimRuntime(Arc<World>);

impl SimRuntime {
    pub(super) fn new(world: &Arc<World>) -> Self {
        Self(world.clone())
    }
}

impl Runtime for SimRuntime {
    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(Box::pin(future));
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        Sleep::new(&self.0, duration)
    }

    fn now(&self) -> Instant {
        self.0.instant()
    }
}

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRuntime")
            .field("now", &self.0.now())
            .finish_non_exhaustive()
    }
}

/// A wait on a world's clock.
pub(super) struct Sleep {
    world: Arc<World>,
    /// `None` where the clock does not go that far.
    at: Option<Duration>,
    timer: Option<TimerKey>,
}

impl Sleep {
    pub(super) fn new(world: &Arc<World>, duration: Duration) -> Self {
        /// Farther than the clock goes, whose time is counted in nanoseconds.
        const FOREVER: Duration = Duration::from_secs(1 << 33);
        let at = world.now().checked_add(duration);
        Self {
            world: world.clone(),
            at: at.filter(|at| *at < FOREVER),
            timer: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(at) = this.at else {
            return Poll::Pending;
        };
        if at <= this.world.now() {
            return Poll::Ready(());
        }
        let is_set = this
            .timer
            .is_some_and(|timer| this.world.reset_timer(timer, cx.waker()));
        if !is_set {
            this.timer = Some(this.world.set_timer(at, Timed::Wake(cx.waker().clone())));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.world.clear_timer(timer);
        }
    }
}
