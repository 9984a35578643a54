//! Listening sockets under a worker's poller.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};

use rustix::event::epoll::EventFlags;

use super::Poller;
use crate::sync::{MutexGuard, lock};

/// How many peers may be expected at once.
const MOST_EXPECTED: u32 = 64;
/// How often as many came as were expected, before twice as many are.
const BEFORE_MORE: u32 = 8;

/// A listening socket under a worker's poller.
///
/// As long as somebody is queued, each wait of the poller says so. So nobody has to accept until
/// there is nobody left: only as many are taken as have come of late, which saves the last accept.
#[derive(Debug)]
pub(crate) struct WatchedListener<L: AsFd> {
    socket: Arc<L>,
    registration: Arc<ListenerRegistration>,
    poller: Arc<Poller>,
    /// How many peers a report is taken to be about.
    expected: u32,
    /// How many of them have not been looked for.
    left: u32,
    /// How many reports in a row were about as many at least.
    fulfilled: u32,
}

impl<L: AsFd + Send + Sync + 'static> WatchedListener<L> {
    pub(crate) fn new(socket: L, poller: Arc<Poller>) -> io::Result<Self> {
        let socket = Arc::new(socket);
        Ok(Self {
            registration: ListenerRegistration::new(&socket, &poller)?,
            socket,
            poller,
            expected: 1,
            left: 0,
            fulfilled: 0,
        })
    }
}

impl<L: AsFd> WatchedListener<L> {
    pub(crate) fn get_ref(&self) -> &L {
        &self.socket
    }

    /// One poll of accept.
    pub(crate) fn poll_accept<T>(
        &mut self,
        cx: &mut Context<'_>,
        accept: impl Fn(&L) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            if self.left == 0 {
                ready!(
                    self.registration
                        .poll_queued(&*self.socket, &self.poller, cx)
                )?;
                self.left = self.expected;
            }
            match accept(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.expected = (self.expected - self.left).max(1);
                    (self.left, self.fulfilled) = (0, 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                accepted => {
                    self.left -= 1;
                    if self.left == 0 {
                        self.expect_more();
                    }
                    return Poll::Ready(accepted);
                }
            }
        }
    }

    fn expect_more(&mut self) {
        self.fulfilled += 1;
        if self.fulfilled == BEFORE_MORE {
            self.expected = (self.expected * 2).min(MOST_EXPECTED);
            self.fulfilled = 0;
        }
    }
}

impl<L: AsFd> Drop for WatchedListener<L> {
    fn drop(&mut self) {
        self.registration.remove(&*self.socket, &self.poller);
    }
}

/// A listener's registration with a poller, which reports it as long as a peer is queued.
#[derive(Debug)]
pub(crate) struct ListenerRegistration {
    key: u64,
    state: Mutex<Reports>,
}

#[derive(Debug)]
struct Reports {
    /// Strong under the lock only, so that the listener is closed by its owner.
    listener: Weak<dyn AsFd + Send + Sync>,
    /// A peer was queued, and no accept has been tried since.
    reported: bool,
    /// No future waits for reports, so none are made: they would come at every wait.
    muted: bool,
    waker: Option<Waker>,
}

impl ListenerRegistration {
    fn new<L: AsFd + Send + Sync + 'static>(
        listener: &Arc<L>,
        poller: &Poller,
    ) -> io::Result<Arc<Self>> {
        let weak: Weak<L> = Arc::downgrade(listener);
        let registration = poller.add_listener(|key| Self {
            key,
            state: Mutex::new(Reports {
                listener: weak,
                reported: false,
                muted: false,
                waker: None,
            }),
        });
        poller.add(listener, registration.key, EventFlags::IN)?;
        Ok(registration)
    }

    /// Waits until a peer may be queued.
    fn poll_queued(
        &self,
        listener: &impl AsFd,
        poller: &Poller,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if std::mem::take(&mut state.reported) {
            return Poll::Ready(Ok(()));
        }
        if state.muted {
            poller.modify(listener, self.key, EventFlags::IN)?;
            state.muted = false;
        }
        let old = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Takes the listener out of the poller, which others may hold open. A waker that is left here
    /// would keep the accept loop's task, and with it the pool and the poller, for ever.
    fn remove(&self, listener: &impl AsFd, poller: &Poller) {
        poller.delete(listener);
        let waker = {
            let mut state = self.state();
            state.listener = Weak::<OwnedFd>::new();
            state.waker.take()
        };
        drop(waker);
    }

    /// Records that a peer is queued; gives the waker of the accept loop that waits for it.
    pub(super) fn report(&self, poller: &Poller) -> Option<Waker> {
        let mut state = self.state();
        if state.reported && state.waker.is_none() && !state.muted {
            if let Some(listener) = state.listener.upgrade() {
                // epoll reports HUP whatever is asked for; EPOLLET makes that one report. The
                // EPOLL_CTL_MOD itself causes one more.
                let muted = poller.modify(&*listener, self.key, EventFlags::ET);
                state.muted = muted.is_ok();
            }
        }
        state.reported = true;
        state.waker.take()
    }

    fn state(&self) -> MutexGuard<'_, Reports> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::task::Waker;

    use super::super::epoll::Batch;
    use super::super::registration::tests::Nothing;
    use super::*;

    fn listening() -> (Arc<Poller>, WatchedListener<TcpListener>, SocketAddr) {
        let poller = Arc::new(Poller::new::<Nothing>().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let watched = WatchedListener::new(listener, poller.clone()).unwrap();
        (poller, watched, address)
    }

    /// How many are there without a wait.
    fn accept_all(watched: &mut WatchedListener<TcpListener>) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut count = 0;
        while let Poll::Ready(accepted) = watched.poll_accept(&mut cx, TcpListener::accept) {
            accepted.unwrap();
            count += 1;
        }
        count
    }

    /// Else the driver of a server that is full would run in circles for as long as anybody queues.
    #[test]
    fn who_is_queued_is_not_reported_again_and_again_while_nobody_accepts() {
        let (poller, mut watched, address) = listening();
        let mut batch = Batch::new();
        let mut reports = || poller.wait(&mut batch, false);
        for _ in 0..3 {
            let _clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
            // Of the connect, the one that is left, and its edge where that was the last.
            let told = (0..10).map(|_| reports()).sum::<usize>();
            assert!((1..4).contains(&told), "{told} reports");
            assert_eq!(reports(), 0);
            // As soon as somebody does, the others are.
            let mut accepted = 0;
            while accepted < 3 {
                accepted += accept_all(&mut watched);
                assert!(accepted == 3 || reports() > 0, "only {accepted} were taken");
            }
            assert_eq!(accept_all(&mut watched), 0);
        }
    }

    /// As another process that shares the listener may do; that cannot be turned off.
    #[test]
    fn nor_is_a_listener_that_was_shut() {
        let (poller, watched, _address) = listening();
        let shared = socket2::SockRef::from(watched.get_ref());
        shared.shutdown(std::net::Shutdown::Both).unwrap();
        let mut batch = Batch::new();
        let told = (0..100).map(|_| poller.wait(&mut batch, false));
        let told = told.sum::<usize>();
        assert!((1..4).contains(&told), "{told} reports");
    }

    #[test]
    fn as_many_are_taken_at_once_as_come_at_once() {
        let (poller, mut watched, address) = listening();
        let mut batch = Batch::new();
        let mut most = 0;
        for _ in 0..200 {
            let _clients = [(); 8].map(|()| TcpStream::connect(address).unwrap());
            let mut accepted = accept_all(&mut watched);
            while accepted < 8 {
                assert!(
                    poller.wait(&mut batch, false) > 0,
                    "only {accepted} were taken"
                );
                let together = accept_all(&mut watched);
                most = most.max(together);
                accepted += together;
            }
        }
        assert_eq!(most, 8);
    }
}
