//! Sequences of operations on a server, against a model of its states and of its account.
#![no_main]

use std::future::pending;
use std::io;
use std::panic;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Once};
use std::time::Duration;

use arbitrary::Arbitrary;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Connection, Handle, Server, State, Stats};
use gracious_fuzz::{Door, Pipe, World};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Operation {
    Connect,
    /// To the client of this number, one of those that there are.
    Ask(u8, Question),
    Finish(u8),
    HangUp(u8),
    Pass(u16),
    Shutdown,
    ShutdownWithin(u16),
    Abort,
    Pause,
    Resume,
    SetMaxConnections(Option<u8>),
    CloseConnections,
    CloseConnection(u8),
    AbortConnections,
    AbortConnection(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Question {
    Echo,
    Return,
    Fail,
    Panic,
    Hang,
}

#[derive(Arbitrary, Debug)]
struct Input {
    max_connections: Option<u8>,
    operations: Vec<Operation>,
}

/// What the handlers came to.
#[derive(Default)]
struct Counts {
    running: AtomicUsize,
    begun: AtomicU64,
    returned: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    dropped: AtomicU64,
    /// The limit as it is now.
    max: AtomicUsize,
    over: AtomicUsize,
}

/// A handler that runs; where it is dropped before its end it says so.
struct Runs(Arc<Counts>, bool);

impl Runs {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.begun.fetch_add(1, SeqCst);
        let running = counts.running.fetch_add(1, SeqCst) + 1;
        if running > counts.max.load(SeqCst) {
            counts.over.fetch_add(1, SeqCst);
        }
        Self(counts.clone(), false)
    }

    fn ends(&mut self, count: fn(&Counts) -> &AtomicU64) {
        self.1 = true;
        count(&self.0).fetch_add(1, SeqCst);
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, SeqCst);
        }
    }
}

async fn talk(mut conn: Connection, counts: Arc<Counts>) -> io::Result<()> {
    let mut runs = Runs::new(&counts);
    loop {
        let mut question = [0];
        let read = conn.read(&mut question).await;
        match (read, question[0]) {
            (Err(error), _) => {
                runs.ends(|counts| &counts.failed);
                return Err(error);
            }
            (Ok(0), _) | (_, b'r') => {
                runs.ends(|counts| &counts.returned);
                return Ok(());
            }
            (_, b'f') => {
                runs.ends(|counts| &counts.failed);
                return Err(io::Error::other("asked to fail"));
            }
            (_, b'p') => {
                runs.ends(|counts| &counts.panicked);
                panic!("asked to panic");
            }
            (_, b'h') => pending().await,
            _ => {
                let written = conn.write_all(&question).await;
                if let Err(error) = written {
                    runs.ends(|counts| &counts.failed);
                    return Err(error);
                }
            }
        }
    }
}

/// A client, and what it may expect.
struct Client {
    pipe: Pipe,
    echoes: usize,
    /// It has asked for something behind which nothing is answered.
    is_over: bool,
    /// It has asked a question that keeps its connection busy for ever.
    hangs: bool,
    answered: usize,
}

/// What the model knows of the server.
struct Model {
    world: World,
    door: Door,
    handle: Handle,
    counts: Arc<Counts>,
    clients: Vec<Client>,
    connected: u64,
    /// Something was aborted, or may be by a deadline.
    has_force: bool,
    is_asked: bool,
    is_aborted: bool,
    is_paused: bool,
    last: State,
}

impl Model {
    fn client(&mut self, number: u8) -> Option<&mut Client> {
        let count = self.clients.len().max(1);
        self.clients.get_mut(usize::from(number) % count)
    }

    fn obey(&mut self, operation: &Operation) {
        match *operation {
            Operation::Connect if self.clients.len() < 24 => {
                if let Some(pipe) = self.door.connect(usize::MAX) {
                    self.connected += 1;
                    self.clients.push(Client {
                        pipe,
                        echoes: 0,
                        is_over: false,
                        hangs: false,
                        answered: 0,
                    });
                } else {
                    assert!(self.is_asked, "the door is shut, and nobody has asked for it");
                }
            }
            Operation::Connect => {}
            Operation::Ask(number, question) => {
                let Some(client) = self.client(number) else { return };
                let word = match question {
                    Question::Echo => b"e",
                    Question::Return => b"r",
                    Question::Fail => b"f",
                    Question::Panic => b"p",
                    Question::Hang => b"h",
                };
                client.pipe.send(word);
                if matches!(question, Question::Echo) && !client.is_over {
                    client.echoes += 1;
                }
                client.hangs |= matches!(question, Question::Hang) && !client.is_over;
                client.is_over |= !matches!(question, Question::Echo);
            }
            Operation::Finish(number) => {
                if let Some(client) = self.client(number) {
                    client.pipe.finish();
                    client.is_over = true;
                }
            }
            Operation::HangUp(number) => {
                let count = self.clients.len().max(1);
                if usize::from(number) % count < self.clients.len() {
                    drop(self.clients.remove(usize::from(number) % count));
                }
            }
            Operation::Pass(millis) => self.world.pass(Duration::from_millis(millis.into())),
            Operation::Shutdown => {
                self.handle.shutdown();
                self.is_asked = true;
                // Its deadline may come.
                self.has_force = true;
            }
            Operation::ShutdownWithin(millis) => {
                self.handle.shutdown_within(Duration::from_millis(millis.into()));
                self.is_asked = true;
                self.has_force = true;
            }
            Operation::Abort => {
                self.handle.abort();
                self.is_asked = true;
                self.is_aborted = true;
                self.has_force = true;
            }
            Operation::Pause => {
                self.handle.pause();
                self.is_paused = true;
            }
            Operation::Resume => {
                self.handle.resume();
                self.is_paused = false;
            }
            Operation::SetMaxConnections(max) => {
                let max = max.map(|max| usize::from(max) % 4 + 1);
                self.counts.max.store(max.unwrap_or(usize::MAX), SeqCst);
                self.handle.set_max_connections(max).unwrap();
            }
            Operation::CloseConnections => self.handle.close_connections(),
            Operation::CloseConnection(number) => {
                let _found = self.handle.close_connection(u64::from(number) % 16);
            }
            Operation::AbortConnections => {
                self.handle.abort_connections();
                self.has_force = true;
            }
            Operation::AbortConnection(number) => {
                let _found = self.handle.abort_connection(u64::from(number) % 16);
                self.has_force = true;
            }
        }
    }

    /// What holds at every moment.
    fn check(&mut self) {
        let (stats, state) = (self.handle.stats(), self.handle.state());
        balances(&stats);
        assert_eq!(stats.accepted, self.connected - self.door.queued() as u64 * u64::from(state != State::Closed));
        assert_eq!(self.counts.over.load(SeqCst), 0, "more handlers than the limit allows");
        let expected: &[State] = match (self.is_aborted, self.is_asked, self.is_paused) {
            (true, ..) => &[State::Closed],
            (_, true, _) => &[State::Draining, State::Aborting, State::Closed],
            (_, _, true) => &[State::Paused],
            _ => &[State::Serving],
        };
        assert!(expected.contains(&state), "{state} in place of one of {expected:?}");
        assert!(rank(self.last) <= rank(state), "{} and then {state}", self.last);
        self.last = state;
        for client in &mut self.clients {
            let said = client.pipe.received();
            assert!(said.iter().all(|byte| *byte == b'e'));
            client.answered += said.len();
            assert!(client.answered <= client.echoes, "an answer that nobody has asked for");
        }
        // What was asked of a server that serves is answered at once.
        let is_limited = self.counts.max.load(SeqCst) < usize::MAX;
        if state == State::Serving && !is_limited && !self.has_force && stats.completed + stats.failed + stats.panicked == 0 {
            for client in self.clients.iter().filter(|client| !client.is_over && !client.pipe.is_ended()) {
                assert_eq!(client.answered, client.echoes);
            }
        }
    }
}

fn balances(stats: &Stats) {
    let ended = stats.completed + stats.failed + stats.panicked + stats.aborted + stats.detached + stats.rejected;
    assert_eq!(stats.accepted, ended + stats.active, "{stats:?}");
}

fn rank(state: State) -> u8 {
    match state {
        State::Bound => 0,
        State::Serving | State::Paused => 1,
        State::Draining => 2,
        State::Aborting => 3,
        _ => 4,
    }
}

/// A handler's panic is none of the library's.
fn tell_panics_apart() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_asked = info.payload().downcast_ref::<&str>() == Some(&"asked to panic");
            if !is_asked {
                hook(info);
            }
        }));
    });
}

fuzz_target!(|input: Input| {
    tell_panics_apart();
    let (world, door) = (World::default(), Door::default());
    let counts = Arc::new(Counts::default());
    let max = input.max_connections.map(|max| usize::from(max) % 4 + 1);
    counts.max.store(max.unwrap_or(usize::MAX), SeqCst);
    let mut server = Server::with_runtime(world.clone()).listener(door.clone());
    if let Some(max) = max {
        server = server.max_connections(max);
    }
    let server = world.block_on(server.bind()).unwrap();
    let of_handlers = counts.clone();
    let running = server.spawn(async move |conn: Connection| talk(conn, of_handlers).await);
    world.settle();
    let mut model = Model {
        handle: running.handle(),
        world: world.clone(),
        door,
        counts: counts.clone(),
        clients: Vec::new(),
        connected: 0,
        has_force: false,
        is_asked: false,
        is_aborted: false,
        is_paused: false,
        last: State::Serving,
    };
    for operation in input.operations.iter().take(64) {
        model.obey(operation);
        world.settle();
        model.check();
    }
    let handle = model.handle.clone();
    let is_forced = model.has_force;
    let hangs = model.clients.iter().any(|client| client.hangs);
    handle.shutdown();
    // The deadline of 8 s, and what an abort takes; the clients read meanwhile.
    for _ in 0..90 {
        world.pass(Duration::from_millis(100));
        for client in &mut model.clients {
            client.answered += client.pipe.received().len();
        }
    }
    assert_eq!(handle.state(), State::Closed);
    let begun = counts.begun.load(SeqCst);
    let report = world.block_on(handle.closed());
    balances(&report);
    assert_eq!(report.active, 0);
    assert_eq!(counts.running.load(SeqCst), 0, "a handler has outlived its server");
    let count = |count: &AtomicU64| count.load(SeqCst);
    // An abort may come when a handler has ended and its connection has not.
    assert!(report.completed <= count(&counts.returned));
    assert!(report.failed <= count(&counts.failed));
    assert!(report.panicked <= count(&counts.panicked));
    assert!(report.aborted >= count(&counts.dropped));
    if !is_forced && !hangs {
        assert_eq!(report.completed, count(&counts.returned));
        assert_eq!(report.failed, count(&counts.failed));
        assert_eq!(report.panicked, count(&counts.panicked));
        assert_eq!(report.aborted, count(&counts.dropped));
        // Who was waited for has all its answers, but for the questions behind one that ends it.
        for client in &model.clients {
            assert!(client.answered <= client.echoes);
        }
    }
    drop((model, running));
    world.pass(Duration::from_secs(100));
    assert_eq!(counts.begun.load(SeqCst), begun, "a handler began after the end");
    assert_eq!(world.tasks(), 0, "tasks are left");
});
