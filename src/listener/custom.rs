//! Listeners of the user's own.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_lite::future;

use super::{Listener, RawListener};
use crate::address::Address;
use crate::socket::Incoming;

/// A listener of the user's own.
///
/// An accept that waits borrows the listener, and dropping it to get the listener back would drop
/// its waker, too. So the future owns the listener and gives it back: with a peer, or as soon as it
/// is asked to.
pub(crate) struct CustomListener<L: Listener> {
    state: State<L>,
    local_addr: io::Result<Address>,
    /// Asks a waiting accept to give the listener back.
    release: Arc<AtomicBool>,
    shut: bool,
}

enum State<L: Listener> {
    Idle(L),
    Accepting(Accepting<L>),
    /// While the listener is moved, and after a panic of the user's code.
    Lost,
}

type Accepting<L> = Pin<Box<dyn Future<Output = (L, Option<Accepted<L>>)> + Send>>;
type Accepted<L> = io::Result<(<L as Listener>::Io, Address)>;

impl<L: Listener> CustomListener<L> {
    pub(super) fn new(listener: L) -> Self {
        Self {
            local_addr: listener.local_addr(),
            state: State::Idle(listener),
            release: Arc::new(AtomicBool::new(false)),
            shut: false,
        }
    }

    /// The listener, out of an accept that may be waiting.
    fn recall(&mut self) -> io::Result<(L, Option<Accepted<L>>)> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(listener) => Ok((listener, None)),
            State::Accepting(mut accepting) => {
                self.release.store(true, SeqCst);
                let mut nobody = Context::from_waker(Waker::noop());
                let returned = guarded(|| accepting.as_mut().poll(&mut nobody));
                self.release.store(false, SeqCst);
                match returned? {
                    Poll::Ready(returned) => Ok(returned),
                    Poll::Pending => Err(lost()),
                }
            }
            State::Lost => Err(lost()),
        }
    }
}

impl<L: Listener> RawListener for CustomListener<L> {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, Address)>> {
        let mut accepting = match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(listener) => accept(listener, self.release.clone()),
            State::Accepting(accepting) => accepting,
            State::Lost => return Poll::Ready(Err(lost())),
        };
        match guarded(|| accepting.as_mut().poll(cx))? {
            Poll::Pending => {
                self.state = State::Accepting(accepting);
                Poll::Pending
            }
            Poll::Ready((listener, accepted)) => {
                self.state = State::Idle(listener);
                match accepted {
                    Some(accepted) => Poll::Ready(custom(accepted)),
                    None => Poll::Ready(Err(io::ErrorKind::Interrupted.into())),
                }
            }
        }
    }

    fn try_accept(&mut self) -> io::Result<(Incoming, Address)> {
        let (mut listener, mut accepted) = self.recall()?;
        if accepted.is_none() {
            let polled = guarded(|| {
                let accept = pin!(listener.accept());
                accept.poll(&mut Context::from_waker(Waker::noop()))
            });
            if let Poll::Ready(peer) = polled? {
                accepted = Some(peer);
            }
        }
        self.state = State::Idle(listener);
        custom(accepted.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        match &self.local_addr {
            Ok(address) => Ok(address.clone()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }

    fn shut(&mut self) {
        if std::mem::replace(&mut self.shut, true) {
            return;
        }
        match self.recall() {
            Ok((mut listener, accepted)) => {
                listener.shut();
                self.state = match accepted {
                    None => State::Idle(listener),
                    // One more had come; it is given out first.
                    some => State::Accepting(Box::pin(future::ready((listener, some)))),
                };
            }
            Err(error) => log::warn!(target: "gracious", "cannot shut a listener: {error}"),
        }
    }

    fn is_shut(&self) -> bool {
        self.shut
    }
}

fn accept<L: Listener>(mut listener: L, release: Arc<AtomicBool>) -> Accepting<L> {
    Box::pin(async move {
        let released = poll_fn(|_| match release.load(SeqCst) {
            true => Poll::Ready(None),
            false => Poll::Pending,
        });
        // The peer first: a release loses none that has been accepted.
        let accepted = future::or(async { Some(listener.accept().await) }, released).await;
        (listener, accepted)
    })
}

fn custom<I>(accepted: io::Result<(I, Address)>) -> io::Result<(Incoming, Address)>
where
    I: futures_io::AsyncRead + futures_io::AsyncWrite + Unpin + Send + 'static,
{
    accepted.map(|(io, peer)| (Incoming::Custom(Box::new(Mutex::new(io))), peer))
}

/// A panic of the user's ends the listener, not the server's task.
fn guarded<T>(poll: impl FnOnce() -> T) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(poll)).map_err(|_| lost())
}

fn lost() -> io::Error {
    io::Error::other("the listener was lost in a panic of its accept")
}
