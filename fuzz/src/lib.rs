//! A world in which the same input does the same: an executor of one thread, a clock that is put
//! forward, a transport in memory.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_task::Runnable;
use futures_io::{AsyncRead, AsyncWrite};
use gracious::{Address, Listener, Runtime};

/// More polls in a row than anything here needs: a task that wakes itself for ever.
const MOST_POLLS: usize = 100_000;

/// The executor and its clock.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    queue: Mutex<VecDeque<Runnable>>,
    begun: Instant,
    time: Mutex<Time>,
    tasks: AtomicUsize,
}

#[derive(Default)]
struct Time {
    passed: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    count: u64,
}

impl Default for World {
    fn default() -> Self {
        Self(Arc::new(Inner {
            queue: Mutex::default(),
            begun: Instant::now(),
            time: Mutex::default(),
            tasks: AtomicUsize::new(0),
        }))
    }
}

impl Runtime for World {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        let counted = Counted::new(self.0.clone());
        let inner = self.0.clone();
        let future = async move {
            let _counted = counted;
            future.await;
        };
        let (runnable, task) = async_task::spawn(future, move |runnable| {
            inner.queue.lock().unwrap().push_back(runnable);
        });
        task.detach();
        runnable.schedule();
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        let mut time = self.0.time.lock().unwrap();
        time.count += 1;
        let key = (time.passed.saturating_add(duration), time.count);
        drop(time);
        Sleep(self.0.clone(), key)
    }

    fn now(&self) -> Instant {
        self.0.begun + self.0.time.lock().unwrap().passed
    }
}

impl World {
    /// Runs all tasks up to where they wait.
    pub fn settle(&self) {
        for _ in 0..MOST_POLLS {
            let next = self.0.queue.lock().unwrap().pop_front();
            match next {
                Some(runnable) => _ = runnable.run(),
                None => return,
            }
        }
        panic!("a task wakes itself for ever");
    }

    /// Puts the clock forward, timer by timer, and settles at each.
    pub fn pass(&self, span: Duration) {
        self.settle();
        let until = self.0.time.lock().unwrap().passed.saturating_add(span);
        loop {
            let mut time = self.0.time.lock().unwrap();
            let next = time.timers.keys().next().copied();
            let Some(key) = next.filter(|(at, _)| *at <= until) else {
                time.passed = until;
                drop(time);
                return self.settle();
            };
            time.passed = time.passed.max(key.0);
            let waker = time.timers.remove(&key);
            drop(time);
            if let Some(waker) = waker {
                waker.wake();
            }
            self.settle();
        }
    }

    /// How many tasks have not ended.
    pub fn tasks(&self) -> usize {
        self.0.tasks.load(SeqCst)
    }

    /// Runs a future of the caller's to its end, which must not need the clock.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..10 {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return value;
            }
            self.settle();
        }
        panic!("it waits for something that does not come");
    }
}

struct Counted(Arc<Inner>);

impl Counted {
    fn new(inner: Arc<Inner>) -> Self {
        inner.tasks.fetch_add(1, SeqCst);
        Self(inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, SeqCst);
    }
}

struct Sleep(Arc<Inner>, (Duration, u64));

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut time = self.0.time.lock().unwrap();
        if time.passed >= self.1.0 {
            return Poll::Ready(());
        }
        time.timers.insert(self.1, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let gone = self.0.time.lock().unwrap().timers.remove(&self.1);
        drop(gone);
    }
}

/// One end of a connection in memory.
pub struct Pipe {
    input: Arc<Mutex<Half>>,
    output: Arc<Mutex<Half>>,
    /// How many bytes one read gives at most.
    pub at_once: usize,
}

#[derive(Default)]
struct Half {
    bytes: VecDeque<u8>,
    ended: bool,
    reader: Option<Waker>,
}

fn change(half: &Mutex<Half>, change: impl FnOnce(&mut Half)) {
    let mut half = half.lock().unwrap();
    change(&mut half);
    let reader = half.reader.take();
    drop(half);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// The two ends of a connection.
pub fn pipe() -> (Pipe, Pipe) {
    let (there, back) = (Arc::default(), Arc::default());
    let end = |input: &Arc<_>, output: &Arc<_>| Pipe {
        input: Arc::clone(input),
        output: Arc::clone(output),
        at_once: usize::MAX,
    };
    (end(&there, &back), end(&back, &there))
}

impl Pipe {
    /// Sends the other end something; nothing where it is gone.
    pub fn send(&self, bytes: &[u8]) {
        change(&self.output, |half| {
            if !half.ended {
                half.bytes.extend(bytes);
            }
        });
    }

    /// Ends this side of the conversation.
    pub fn finish(&self) {
        change(&self.output, |half| half.ended = true);
    }

    /// What has come by now.
    pub fn received(&self) -> Vec<u8> {
        self.input.lock().unwrap().bytes.drain(..).collect()
    }

    /// Whether the other end has ended its side.
    pub fn is_ended(&self) -> bool {
        self.input.lock().unwrap().ended
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut half = self.input.lock().unwrap();
        if half.bytes.is_empty() && !half.ended {
            half.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let most = buf.len().min(self.at_once);
        Poll::Ready(io::Read::read(&mut half.bytes, &mut buf[..most]))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.output.lock().unwrap().ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.send(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for half in [&self.input, &self.output] {
            change(half, |half| half.ended = true);
        }
    }
}

/// Where peers connect to.
#[derive(Clone, Default)]
pub struct Door(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    peers: VecDeque<Pipe>,
    is_shut: bool,
    waiting: Option<Waker>,
}

impl Door {
    /// Connects, unless the door is shut.
    pub fn connect(&self, at_once: usize) -> Option<Pipe> {
        let (mut server, client) = pipe();
        server.at_once = at_once;
        let mut queue = self.0.lock().unwrap();
        if queue.is_shut {
            return None;
        }
        queue.peers.push_back(server);
        let waiting = queue.waiting.take();
        drop(queue);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        Some(client)
    }

    /// How many peers were not accepted yet.
    pub fn queued(&self) -> usize {
        self.0.lock().unwrap().peers.len()
    }
}

impl Listener for Door {
    type Io = Pipe;

    async fn accept(&mut self) -> io::Result<(Pipe, Address)> {
        std::future::poll_fn(|cx| {
            let mut queue = self.0.lock().unwrap();
            match queue.peers.pop_front() {
                Some(peer) => Poll::Ready(Ok((peer, Address::Custom("peer".into())))),
                None => {
                    queue.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("door".into()))
    }

    fn unacknowledged(io: &Pipe) -> Option<usize> {
        Some(io.output.lock().unwrap().bytes.len())
    }

    fn quiet(_: &Pipe) -> Option<Duration> {
        Some(Duration::from_millis(5))
    }

    fn shut(&mut self) {
        self.0.lock().unwrap().is_shut = true;
    }
}
