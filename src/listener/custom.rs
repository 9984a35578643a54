//! Listeners of the user's own.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};
use futures_lite::future;

use super::{ErasedListener, Listener};
use crate::address::Address;
use crate::log;
use crate::socket::{Incoming, Stream};
use crate::sync::{assert_unlocked, lock, wake_by_ref};

/// How often, and after which pauses, a stop looks whether a thread has left the listener's code. An
/// accept that is polled takes microseconds; one that blocks its thread is not waited for.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);

/// A listener of the user's own.
///
/// 1. The user's code is run by one thread at a time, which takes the listener out of its place and
///    puts it back. A thread that finds the place empty does without; an accept loop leaves its waker
///    there, and is woken when the listener is back.
/// 2. An accept that waits borrows the listener, and dropping it to get the listener back would drop
///    its waker, too. So the future owns the listener and gives it back: with a peer, or as soon as it
///    is asked to.
pub(crate) struct CustomListener<L: Listener> {
    place: Mutex<Place<L>>,
    local_addr: io::Result<Address>,
    /// Asks a waiting accept to give the listener back.
    release: Arc<AtomicBool>,
}

struct Place<L: Listener> {
    state: State<L>,
    /// The accept loop's waker: while the listener is in its place, the one that a waiting accept has;
    /// while it is out, that of a loop which came meanwhile.
    waker: Option<Waker>,
    shut: Shut,
}

enum State<L: Listener> {
    Here(Holding<L>),
    /// A thread runs the user's code.
    Out,
    /// The user's code has panicked.
    Lost,
}

/// The listener, by itself or in an accept that waits.
enum Holding<L: Listener> {
    Idle(L),
    Accepting(Accepting<L>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shut {
    No,
    /// It is done when the listener is put back.
    Asked,
    Done,
}

/// What a thread has taken out.
struct Taken<L: Listener> {
    holding: Holding<L>,
    /// The waker that a waiting accept has.
    waker: Option<Waker>,
}

type Accepting<L> = Pin<Box<dyn Future<Output = (L, Option<Accepted<L>>)> + Send>>;
type Accepted<L> = io::Result<(<L as Listener>::Io, Address)>;

impl<L: Listener> CustomListener<L> {
    pub(super) fn new(listener: L) -> Self {
        Self {
            local_addr: listener.local_addr(),
            place: Mutex::new(Place {
                state: State::Here(Holding::Idle(listener)),
                waker: None,
                shut: Shut::No,
            }),
            release: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Takes the listener out; where it is out already, does `otherwise` to its place.
    fn take(&self, otherwise: impl FnOnce(&mut Place<L>)) -> io::Result<Option<Taken<L>>> {
        let mut place = lock(&self.place);
        match std::mem::replace(&mut place.state, State::Out) {
            State::Here(holding) => Ok(Some(Taken {
                holding,
                waker: place.waker.take(),
            })),
            State::Out => {
                otherwise(&mut place);
                Ok(None)
            }
            State::Lost => {
                place.state = State::Lost;
                Err(lost())
            }
        }
    }

    /// As [`take`](Self::take), but gives a thread that has the listener a moment to put it back.
    fn take_soon(&self) -> io::Result<Option<Taken<L>>> {
        for _ in 0..TRIES {
            let taken = self.take(|_| ())?;
            if taken.is_some() {
                return Ok(taken);
            }
            thread::sleep(PAUSE);
        }
        self.take(|_| ())
    }

    /// Puts the listener back, or leaves its place empty for good where it was lost; `waker` is the
    /// one that a waiting accept has.
    fn put_back(&self, mut holding: Option<Holding<L>>, mut waker: Option<Waker>) {
        let mut place = lock(&self.place);
        if place.shut == Shut::Asked {
            place.shut = Shut::Done;
            drop(place);
            holding = holding.and_then(|holding| {
                let shut = self.shut_now(holding);
                shut.inspect_err(cannot_shut).ok()
            });
            // The accept that had it waits no more.
            waker.take().iter().for_each(wake_by_ref);
            place = lock(&self.place);
        }
        place.state = holding.map_or(State::Lost, State::Here);
        let missed = std::mem::replace(&mut place.waker, waker);
        drop(place);
        missed.iter().for_each(wake_by_ref);
    }

    /// Polls the accept that waits, or begins one, then puts the listener back. Gives the waker too
    /// where no accept waits any more that has it.
    fn poll(&self, taken: Taken<L>) -> (Poll<io::Result<(Incoming, Address)>>, Option<Waker>) {
        let Taken { holding, waker } = taken;
        let mut accepting = match holding {
            Holding::Idle(listener) => accept(listener, self.release.clone()),
            Holding::Accepting(accepting) => accepting,
        };
        let polled = guarded(|| {
            let waker = waker.as_ref().unwrap_or(Waker::noop());
            accepting.as_mut().poll(&mut Context::from_waker(waker))
        });
        match polled {
            Ok(Poll::Pending) => {
                self.put_back(Some(Holding::Accepting(accepting)), waker);
                (Poll::Pending, None)
            }
            Ok(Poll::Ready((listener, accepted))) => {
                self.put_back(Some(Holding::Idle(listener)), None);
                let accepted = accepted.unwrap_or(Err(io::ErrorKind::Interrupted.into()));
                (Poll::Ready(accepted.map(custom::<L>)), waker)
            }
            Err(error) => {
                self.put_back(None, None);
                (Poll::Ready(Err(error)), waker)
            }
        }
    }

    /// Polls for others than the accept loop; `WouldBlock` where no peer is queued, or the listener is
    /// out.
    fn poll_once(&self, taken: Option<Taken<L>>) -> io::Result<(Incoming, Address)> {
        let no_peer = || Err(io::ErrorKind::WouldBlock.into());
        let Some(taken) = taken else {
            return no_peer();
        };
        // With the waker of the accept loop: its accept goes on waiting.
        let (accepted, waker) = self.poll(taken);
        waker.iter().for_each(wake_by_ref);
        match accepted {
            Poll::Ready(accepted) => accepted,
            Poll::Pending => no_peer(),
        }
    }

    /// Lets no new peer in. One that has come to a waiting accept is given out first.
    fn shut_now(&self, holding: Holding<L>) -> io::Result<Holding<L>> {
        let (mut listener, accepted) = self.recall(holding)?;
        guarded(|| listener.shut())?;
        Ok(match accepted {
            None => Holding::Idle(listener),
            some => Holding::Accepting(Box::pin(future::ready((listener, some)))),
        })
    }

    /// The listener, out of an accept that may be waiting.
    fn recall(&self, holding: Holding<L>) -> io::Result<(L, Option<Accepted<L>>)> {
        let mut accepting = match holding {
            Holding::Idle(listener) => return Ok((listener, None)),
            Holding::Accepting(accepting) => accepting,
        };
        self.release.store(true, SeqCst);
        let mut cx = Context::from_waker(Waker::noop());
        let returned = guarded(|| accepting.as_mut().poll(&mut cx));
        self.release.store(false, SeqCst);
        match returned? {
            Poll::Ready(returned) => Ok(returned),
            Poll::Pending => Err(lost()),
        }
    }
}

impl<L: Listener> ErasedListener for CustomListener<L> {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, Address)>> {
        let mut waker = Some(cx.waker().clone());
        match self.take(|place| std::mem::swap(&mut place.waker, &mut waker))? {
            Some(Taken { holding, .. }) => self.poll(Taken { holding, waker }).0,
            None => Poll::Pending,
        }
    }

    fn try_accept(&self) -> io::Result<(Incoming, Address)> {
        let taken = self.take(|_| ())?;
        self.poll_once(taken)
    }

    fn sweep(&self) -> io::Result<(Incoming, Address)> {
        let taken = self.take_soon()?;
        self.poll_once(taken)
    }

    fn local_addr(&self) -> io::Result<Address> {
        match &self.local_addr {
            Ok(address) => Ok(address.clone()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }

    fn shut(&self) {
        {
            let mut place = lock(&self.place);
            if place.shut != Shut::No {
                return;
            }
            place.shut = Shut::Asked;
        }
        // Whichever thread puts the listener back next does it, now or when it has left the listener's
        // code.
        match self.take_soon() {
            Ok(Some(Taken { holding, waker })) => self.put_back(Some(holding), waker),
            Ok(None) => {}
            Err(error) => cannot_shut(&error),
        }
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

fn custom<L: Listener>((io, peer): (L::Io, Address)) -> (Incoming, Address) {
    let stream = CustomStream::<L>(io);
    (Incoming::Custom(Box::new(Mutex::new(stream))), peer)
}

/// A connection over a transport of the user's own, with what its listener knows of such.
struct CustomStream<L: Listener>(L::Io);

impl<L: Listener> Stream for CustomStream<L> {
    fn unacknowledged(&self) -> Option<usize> {
        L::unacknowledged(&self.0)
    }

    fn quiet(&self) -> Option<Duration> {
        L::quiet(&self.0)
    }
}

impl<L: Listener> AsyncRead for CustomStream<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<L: Listener> AsyncWrite for CustomStream<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// A panic of the user's ends the listener, not the server's task.
fn guarded<T>(code: impl FnOnce() -> T) -> io::Result<T> {
    assert_unlocked();
    catch_unwind(AssertUnwindSafe(code)).map_err(|_| lost())
}

fn lost() -> io::Error {
    io::Error::other("the listener was lost in a panic of its own code")
}

fn cannot_shut(error: &io::Error) {
    log::warn!(target: "gracious", "cannot shut a listener: {error}");
}
