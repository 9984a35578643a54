//! Listening sockets under a worker's poller.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};

use rustix::event::epoll::EventFlags;

use super::Poller;
use crate::sync::{MutexGuard, lock};

/// How many peers are expected at most when one is reported.
const MOST_EXPECTED: u32 = 64;
/// How many reports in a row have to be about as many peers as were expected, until twice as many
/// are expected.
const BEFORE_MORE: u32 = 8;

/// A listening socket under a worker's poller.
///
/// As long as a peer is queued, each wait of the poller reports it. So after a report the accept
/// loop need not accept until the queue is empty: it accepts as many peers as have come together of
/// late, which saves the last accept, the one that finds none.
#[derive(Debug)]
pub(crate) struct WatchedListener<L: AsFd> {
    socket: Arc<L>,
    registration: Arc<ListenerRegistration>,
    poller: Arc<Poller>,
    /// How many peers a report is expected to be about.
    expected: u32,
    /// How many more peers to accept until the next report is waited for.
    left: u32,
    /// How many reports in a row were about as many peers as expected, or more.
    fulfilled: u32,
}

impl<L: AsFd + Send + Sync + 'static> WatchedListener<L> {
    /// Registers a listening socket, which is in non-blocking mode.
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
    /// The socket of the standard library.
    pub(crate) fn get_ref(&self) -> &L {
        &self.socket
    }

    /// Polls for the next peer, with `accept` for the system call.
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

    /// Counts a report that was about as many peers as expected; expects more after enough of them.
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

/// What was reported of a listener, and what waits for it.
#[derive(Debug)]
struct Reports {
    /// Upgraded under the lock only, so that the listener is closed by its owner.
    listener: Weak<dyn AsFd + Send + Sync>,
    /// A peer was reported, and the accept loop has not taken that in yet.
    reported: bool,
    /// The poller was asked for no more reports: no accept loop waits for one, and they would come
    /// at every wait.
    muted: bool,
    /// Of the accept loop that waits for a report.
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

    /// Takes the listener out of the poller; closing it does not where another process has a
    /// descriptor of it. The waker is dropped, too: it would keep the accept loop's task alive, and
    /// that task the pool, and the pool the poller, which has this registration.
    fn remove(&self, listener: &impl AsFd, poller: &Poller) {
        poller.delete(listener);
        let waker = {
            let mut state = self.state();
            state.listener = Weak::<OwnedFd>::new();
            state.waker.take()
        };
        drop(waker);
    }

    /// Records that a peer is queued; gives the waker of the accept loop that waits for one. The
    /// second report in a row that no accept loop has waited for mutes the listener.
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

    /// The reports, locked.
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

    /// Accepts without waiting; gives the number of peers.
    fn accept_all(watched: &mut WatchedListener<TcpListener>) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut count = 0;
        while let Poll::Ready(accepted) = watched.poll_accept(&mut cx, TcpListener::accept) {
            accepted.unwrap();
            count += 1;
        }
        count
    }

    /// Else the driver of a server without a free permit would spin for as long as a peer is
    /// queued.
    #[test]
    fn who_is_queued_is_not_reported_again_and_again_while_nobody_accepts() {
        let (poller, mut watched, address) = listening();
        let mut batch = Batch::new();
        let mut reports = || poller.wait(&mut batch, false);
        for _ in 0..3 {
            let _clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
            // Of the connect, of the peers that are left, and the edge when the listener is muted.
            let reported = (0..10).map(|_| reports()).sum::<usize>();
            assert!((1..4).contains(&reported), "{reported} reports");
            assert_eq!(reports(), 0);
            // As soon as one is accepted, the others are reported again.
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
        let reported = (0..100).map(|_| poller.wait(&mut batch, false));
        let reported = reported.sum::<usize>();
        assert!((1..4).contains(&reported), "{reported} reports");
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
