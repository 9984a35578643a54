//! The in-memory network's ends against those of real sockets: each case is run in both, and what is
//! read, written and refused has to be the same.
//!
//! How much fits into the buffers is not the same, and in no transcript.

use std::future::Future;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::Pin;
use std::thread;
use std::time::Duration;

use async_io::Async;
use futures_lite::future::poll_once;
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use gracious::Listener;
use gracious::testing::{Fault, Peer, Sim, SimListener, SimStream, Simulation};

/// One side of a connection. Dropping it closes its descriptor.
trait End: AsyncRead + AsyncWrite + Unpin {
    fn half_close(&mut self);
    fn reset(self: Box<Self>);
}

type AnyEnd = Box<dyn End>;

impl End for Async<TcpStream> {
    fn half_close(&mut self) {
        self.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    fn reset(self: Box<Self>) {
        let stream = self.into_inner().unwrap();
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

impl End for SimStream {
    fn half_close(&mut self) {
        futures_lite::future::block_on(self.close()).unwrap();
    }

    fn reset(self: Box<Self>) {
        unreachable!("a server resets no connection by itself");
    }
}

impl End for Peer {
    fn half_close(&mut self) {
        Self::half_close(self);
    }

    fn reset(mut self: Box<Self>) {
        Self::reset(&mut self);
    }
}

/// Where a case is run.
enum Place {
    Sockets(TcpListener),
    World(SimListener),
}

/// Where a case is run, and what it has seen.
struct Stage {
    place: Option<Place>,
    sim: Option<Sim>,
    address: Option<std::net::SocketAddr>,
    seen: Vec<String>,
}

impl Stage {
    fn of_sockets() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            address: Some(listener.local_addr().unwrap()),
            place: Some(Place::Sockets(listener)),
            sim: None,
            seen: Vec::new(),
        }
    }

    fn of_world(sim: Sim) -> Self {
        Self {
            place: Some(Place::World(sim.listener())),
            address: None,
            sim: Some(sim),
            seen: Vec::new(),
        }
    }

    /// Waits until what was sent has arrived.
    async fn settle(&self) {
        match &self.sim {
            Some(sim) => sim.sleep(Duration::from_secs(2)).await,
            // On this machine it has when the call returns; this is for what the kernel does later.
            None => thread::sleep(Duration::from_millis(5)),
        }
    }

    async fn connect(&mut self) -> Option<AnyEnd> {
        let connected: io::Result<AnyEnd> = match (&self.sim, self.address) {
            (Some(sim), _) => sim.connect().await.map(|peer| Box::new(peer) as AnyEnd),
            (None, address) => TcpStream::connect(address.unwrap())
                .and_then(Async::new)
                .map(|stream| Box::new(stream) as AnyEnd),
        };
        let seen = connected.as_ref().map_or_else(failed, |_| "yes".into());
        self.seen.push(format!("connects: {seen}"));
        self.settle().await;
        connected.ok()
    }

    async fn accept(&mut self) -> AnyEnd {
        match self.place.as_mut().unwrap() {
            Place::Sockets(listener) => Box::new(Async::new(listener.accept().unwrap().0).unwrap()),
            Place::World(listener) => Box::new(listener.accept().await.unwrap().0),
        }
    }

    /// A connection: the server's end, and the peer's.
    async fn pair(&mut self) -> (AnyEnd, AnyEnd) {
        let peer = self.connect().await.unwrap();
        (self.accept().await, peer)
    }

    fn close_listener(&mut self) {
        self.place = None;
    }

    async fn say(&mut self, who: &str, end: &mut AnyEnd, text: &str) {
        let seen = match poll_once(end.write(text.as_bytes())).await {
            None => "waits".into(),
            Some(Ok(count)) => format!("{count} bytes"),
            Some(Err(error)) => failed(&error),
        };
        self.seen.push(format!("{who} writes: {seen}"));
        self.settle().await;
    }

    async fn hear(&mut self, who: &str, end: &mut AnyEnd) {
        let mut buffer = [0; 100];
        let seen = match poll_once(end.read(&mut buffer)).await {
            None => "waits".into(),
            Some(Ok(0)) => "the end".into(),
            Some(Ok(count)) => String::from_utf8_lossy(&buffer[..count]).into_owned(),
            Some(Err(error)) => failed(&error),
        };
        self.seen.push(format!("{who} reads: {seen}"));
        self.settle().await;
    }

    /// Writes until there is no room.
    async fn fill(&mut self, end: &mut AnyEnd) -> usize {
        let (mut written, block) = (0, [b'.'; 4096]);
        loop {
            match poll_once(end.write(&block)).await {
                Some(Ok(count)) => written += count,
                None => break,
                Some(Err(error)) => panic!("{error}"),
            }
            if self.sim.is_none() {
                continue;
            }
            self.settle().await;
        }
        self.seen.push("writes until there is no room".into());
        self.settle().await;
        written
    }

    /// Reads to the end, or to an error, and says whether all of it came.
    async fn hear_all(&mut self, who: &str, end: &mut AnyEnd, written: usize) {
        let (mut read, mut buffer) = (0, vec![0; 4096]);
        let how = loop {
            match end.read(&mut buffer).await {
                Ok(0) => break "the end".into(),
                Ok(count) => read += count,
                Err(error) => break failed(&error),
            }
        };
        let what = if read == written { "all" } else { "not all" };
        self.seen.push(format!("{who} reads {what}, then {how}"));
    }

    async fn half_close(&mut self, who: &str, end: &mut AnyEnd) {
        end.half_close();
        self.seen.push(format!("{who} ends its side"));
        self.settle().await;
    }

    async fn close(&mut self, who: &str, end: AnyEnd) {
        drop(end);
        self.seen.push(format!("{who} closes"));
        self.settle().await;
    }

    async fn reset(&mut self, who: &str, end: AnyEnd) {
        end.reset();
        self.seen.push(format!("{who} resets"));
        self.settle().await;
    }
}

fn failed(error: &io::Error) -> String {
    format!("{:?}", error.kind())
}

type Case = fn(Stage) -> Pin<Box<dyn Future<Output = Vec<String>>>>;

/// Runs a case with sockets, and in worlds without and with latency.
fn same_in_both(case: Case) {
    let with_sockets = async_io::block_on(case(Stage::of_sockets()));
    assert!(!with_sockets.is_empty());
    println!("{with_sockets:#?}");
    Simulation::new(0..20)
        .fixed()
        .faults(&[Fault::Latency])
        .run(move |sim| {
            let expected = with_sockets.clone();
            async move {
                let in_memory = case(Stage::of_world(sim)).await;
                assert_eq!(in_memory, expected, "in memory, and with sockets");
            }
        });
}

/// Makes a test of each case.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod alike {
            $(
                #[test]
                fn $name() {
                    super::same_in_both(|stage| Box::pin(super::$name(stage)));
                }
            )*
        }
    };
}

cases!(
    a_half_close_ends_one_direction,
    both_sides_half_close,
    a_write_behind_an_end_fails,
    a_reset_leaves_what_was_received,
    a_reset_is_told_once_to_a_read,
    a_reset_is_told_once_to_a_write,
    a_reset_in_the_queue_is_accepted,
    a_close_with_input_unread_is_a_reset,
    a_close_with_the_end_unread_is_an_end,
    a_close_with_input_and_the_end_unread_is_a_reset,
    a_write_to_a_closed_side_is_answered_with_a_reset,
    an_end_stays_when_a_reset_comes_behind_it,
    what_fits_is_written_and_the_rest_waits,
    a_close_lets_what_is_written_arrive,
    a_close_with_input_unread_loses_what_is_on_its_way,
    a_reset_ends_a_write_that_waits,
    a_closed_listener_resets_its_queue,
    a_closed_listener_refuses,
);

async fn a_half_close_ends_one_direction(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.hear("the server", &mut server).await;
    stage.say("the peer", &mut peer, "hello").await;
    stage.half_close("the peer", &mut peer).await;
    stage.hear("the server", &mut server).await;
    stage.hear("the server", &mut server).await;
    stage.say("the server", &mut server, "bye").await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.close("the server", server).await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.seen
}

async fn both_sides_half_close(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.half_close("the peer", &mut peer).await;
    stage.half_close("the server", &mut server).await;
    stage.hear("the server", &mut server).await;
    stage.hear("the peer", &mut peer).await;
    stage.close("the server", server).await;
    stage.hear("the peer", &mut peer).await;
    stage.seen
}

async fn a_write_behind_an_end_fails(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.half_close("the server", &mut server).await;
    stage.say("the server", &mut server, "more").await;
    stage.hear("the peer", &mut peer).await;
    stage.say("the peer", &mut peer, "hello").await;
    stage.hear("the server", &mut server).await;
    stage.seen
}

async fn a_reset_leaves_what_was_received(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.say("the peer", &mut peer, "hello").await;
    stage.reset("the peer", peer).await;
    stage.hear("the server", &mut server).await;
    stage.hear("the server", &mut server).await;
    stage.hear("the server", &mut server).await;
    stage.say("the server", &mut server, "bye").await;
    stage.seen
}

async fn a_reset_is_told_once_to_a_read(mut stage: Stage) -> Vec<String> {
    let (mut server, peer) = stage.pair().await;
    stage.reset("the peer", peer).await;
    stage.hear("the server", &mut server).await;
    stage.say("the server", &mut server, "hello").await;
    stage.hear("the server", &mut server).await;
    stage.seen
}

async fn a_reset_is_told_once_to_a_write(mut stage: Stage) -> Vec<String> {
    let (mut server, peer) = stage.pair().await;
    stage.reset("the peer", peer).await;
    stage.say("the server", &mut server, "hello").await;
    stage.hear("the server", &mut server).await;
    stage.say("the server", &mut server, "again").await;
    stage.seen
}

async fn a_reset_in_the_queue_is_accepted(mut stage: Stage) -> Vec<String> {
    let mut peer = stage.connect().await.unwrap();
    stage.say("the peer", &mut peer, "hello").await;
    stage.reset("the peer", peer).await;
    let mut server = stage.accept().await;
    stage.hear("the server", &mut server).await;
    stage.hear("the server", &mut server).await;
    stage.seen
}

async fn a_close_with_input_unread_is_a_reset(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.say("the peer", &mut peer, "hello").await;
    stage.say("the server", &mut server, "bye").await;
    stage.close("the server", server).await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.say("the peer", &mut peer, "again").await;
    stage.seen
}

async fn a_close_with_the_end_unread_is_an_end(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.half_close("the peer", &mut peer).await;
    stage.say("the server", &mut server, "bye").await;
    stage.close("the server", server).await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.seen
}

async fn a_close_with_input_and_the_end_unread_is_a_reset(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.say("the peer", &mut peer, "hello").await;
    stage.half_close("the peer", &mut peer).await;
    stage.say("the server", &mut server, "bye").await;
    stage.close("the server", server).await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.seen
}

async fn a_write_to_a_closed_side_is_answered_with_a_reset(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.say("the server", &mut server, "bye").await;
    stage.close("the server", server).await;
    stage.say("the peer", &mut peer, "hello").await;
    stage.say("the peer", &mut peer, "again").await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.seen
}

async fn an_end_stays_when_a_reset_comes_behind_it(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.say("the server", &mut server, "bye").await;
    stage.close("the server", server).await;
    stage.say("the peer", &mut peer, "hello").await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.say("the peer", &mut peer, "again").await;
    stage.seen
}

async fn what_fits_is_written_and_the_rest_waits(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    let written = stage.fill(&mut server).await;
    assert!(written > 0);
    stage.hear("the peer", &mut peer).await;
    stage.half_close("the server", &mut server).await;
    stage.hear_all("the peer", &mut peer, written - 100).await;
    stage.seen
}

async fn a_close_lets_what_is_written_arrive(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    let written = stage.fill(&mut server).await;
    stage.close("the server", server).await;
    stage.hear_all("the peer", &mut peer, written).await;
    stage.seen
}

async fn a_close_with_input_unread_loses_what_is_on_its_way(mut stage: Stage) -> Vec<String> {
    let (mut server, mut peer) = stage.pair().await;
    stage.say("the peer", &mut peer, "hello").await;
    let written = stage.fill(&mut server).await;
    stage.close("the server", server).await;
    stage.hear_all("the peer", &mut peer, written).await;
    stage.seen
}

async fn a_reset_ends_a_write_that_waits(mut stage: Stage) -> Vec<String> {
    let (mut server, peer) = stage.pair().await;
    stage.fill(&mut server).await;
    stage.reset("the peer", peer).await;
    stage.say("the server", &mut server, "more").await;
    stage.say("the server", &mut server, "more").await;
    stage.hear("the server", &mut server).await;
    stage.seen
}

async fn a_closed_listener_resets_its_queue(mut stage: Stage) -> Vec<String> {
    let mut peer = stage.connect().await.unwrap();
    stage.close_listener();
    stage.settle().await;
    stage.hear("the peer", &mut peer).await;
    stage.hear("the peer", &mut peer).await;
    stage.seen
}

async fn a_closed_listener_refuses(mut stage: Stage) -> Vec<String> {
    stage.close_listener();
    assert!(stage.connect().await.is_none());
    stage.seen
}
