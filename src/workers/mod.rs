//! Workers: threads of the server's own, under the same handlers.
//!
//! The sockets of such a server are registered once and edge-triggered with a poller of its own,
//! and its handlers are tasks of a run queue of its own. One thread drives: it waits for events,
//! and runs what they wake. The others sleep until what is there to run is worth a wake-up. Of
//! shards each has a poller, a queue and one thread to itself. Timers, files, channels and sockets
//! of async-std and smol work in these handlers as anywhere: they bring their own reactor.
//!
//! What needs a clock or a place outside the handlers stays with the runtime that the server was
//! made with.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

mod driver;
mod pool;

pub(crate) use self::driver::epoll::{Poller, Slot, Watch};
pub(crate) use self::pool::{Pool, PoolId, has_turn, pollers, start};

/// How many peers may be expected at once.
const MOST_EXPECTED: u32 = 64;
/// How often as many came as were expected, before twice as many are.
const BEFORE_MORE: u32 = 8;

/// A listening socket under a worker's poller.
///
/// As long as somebody is queued, each wait of the poller says so. So nobody has to accept until
/// there is nobody left: only as many are taken as have come of late, which saves the last accept.
#[derive(Debug)]
pub(crate) struct Watched<L: AsFd> {
    socket: Arc<L>,
    watch: Arc<Watch>,
    poller: Arc<Poller>,
    /// How many peers a report is taken to be about.
    expected: u32,
    /// How many of them have not been looked for.
    left: u32,
    /// How many reports in a row were about as many at least.
    fulfilled: u32,
}

impl<L: AsFd + Send + Sync + 'static> Watched<L> {
    pub(crate) fn new(socket: L, poller: Arc<Poller>) -> io::Result<Self> {
        let socket = Arc::new(socket);
        Ok(Self {
            watch: poller.watch(&socket)?,
            socket,
            poller,
            expected: 1,
            left: 0,
            fulfilled: 0,
        })
    }
}

impl<L: AsFd> Watched<L> {
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
                ready!(self.poller.poll_queued(&*self.socket, &self.watch, cx))?;
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

impl<L: AsFd> Drop for Watched<L> {
    fn drop(&mut self) {
        self.poller.unwatch(&*self.socket, &self.watch);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::task::Waker;

    use super::driver::epoll::Batch;
    use super::*;

    fn listening() -> (Arc<Poller>, Watched<TcpListener>, SocketAddr) {
        let poller = Arc::new(Poller::new().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let watched = Watched::new(listener, poller.clone()).unwrap();
        (poller, watched, address)
    }

    /// How many are there without a wait.
    fn accept_all(watched: &mut Watched<TcpListener>) -> usize {
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
