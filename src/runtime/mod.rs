//! The executor and the clock that a server runs on. Only the files of this folder know an
//! executor.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use crate::sync::assert_unlocked;

#[cfg(feature = "async-std")]
mod async_std;
#[cfg(feature = "smol")]
mod smol;

#[cfg(feature = "async-std")]
pub use self::async_std::AsyncStd;
#[cfg(feature = "smol")]
pub use self::smol::Smol;

/// An executor and a clock.
///
/// Everything a server does happens in futures it gives to [`spawn`](Self::spawn), and every time
/// it looks at or waits for comes from [`now`](Self::now) and [`sleep`](Self::sleep), so that a
/// runtime of one's own, in a test a simulated one, controls the whole of it. Sockets are driven
/// by `async-io`, which works under any executor.
///
/// A runtime is a value: a server clones it freely, so it should be cheap to clone.
///
/// Its methods are called on whatever thread needs them, also on the threads of a server with
/// [`workers`](crate::Builder::workers), on which no runtime was entered. One that needs to be
/// entered, such as tokio, keeps a handle of itself and enters that in both methods; where one of
/// them panics, the connections that depend on it are aborted.
///
/// ```
/// use std::future::Future;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use gracious::{Runtime, Server};
///
/// #[derive(Clone)]
/// struct Mine(Arc<smol::Executor<'static>>);
///
/// impl Runtime for Mine {
///     fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
///         self.0.spawn(future).detach();
///     }
///     fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
///         async move { drop(async_io::Timer::after(duration).await) }
///     }
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let executor = Arc::new(smol::Executor::new());
/// let runtime = Mine(executor.clone());
/// smol::block_on(executor.run(async {
///     let server = Server::with_runtime(runtime).listen("127.0.0.1:0").bind().await?;
///     server.handle().shutdown();
///     server.serve(|_conn| async {}).await?;
///     Ok(())
/// }))
/// # }
/// ```
pub trait Runtime: Clone + Send + Sync + 'static {
    /// Starts `future` as a task of its own, which goes on until it ends or the runtime does.
    ///
    /// Nothing waits for the task through the runtime: a server counts itself what it started.
    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static;

    /// Waits for `duration`; one too long for the clock waits forever.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static;

    /// The time on the clock that [`sleep`](Self::sleep) goes by: monotonic.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A runtime's clock without the runtime's type: a server's state, and with it every connection,
/// handle and timer, knows the runtime only as this.
pub(crate) trait Clock: Send + Sync {
    fn now(&self) -> Instant;
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// A wait for an instant of a runtime's clock.
pub(crate) type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<R: Runtime> Clock for R {
    fn now(&self) -> Instant {
        assert_unlocked();
        Runtime::now(self)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        assert_unlocked();
        Box::pin(Runtime::sleep(self, duration))
    }
}

/// Waits with a timer of `async-io`, the reactor that async-std and smol share.
#[cfg(any(feature = "async-std", feature = "smol"))]
async fn timer(duration: Duration) {
    async_io::Timer::after(duration).await;
}

/// Waits until `when`, forever where there is no such time.
pub(crate) async fn sleep_until(clock: &dyn Clock, when: Option<Instant>) {
    let Some(when) = when else {
        return std::future::pending().await;
    };
    loop {
        let left = when.saturating_duration_since(clock.now());
        if left.is_zero() {
            return;
        }
        clock.sleep(left).await;
        // On a clock that stands still, as a test's may, a sleep can end at once and leave the time
        // as it was: without this the loop would keep the thread from every other task.
        futures_lite::future::yield_now().await;
    }
}
