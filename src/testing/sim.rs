//! What a scenario has of its world.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::clock::{SimRuntime, Sleep};
use super::fault::Fault;
use super::handler::Watched;
use super::listener::SimListener;
use super::peer::Peer;
use super::plan::{Part, stream};
use super::random::Random;
use super::timeline::Who;
use super::world::{Timed, World};
use crate::builder::Builder;
use crate::connection::Connection;
use crate::handle::Handle;
use crate::handler::{Handler, Outcome};
use crate::server::{Running, Server};

/// So many steps ahead an act may be put.
const FARTHEST_STEP: u64 = 1024;
/// Behind this step the stop comes that waits until nothing else is left to happen: never, where a peer
/// never pauses.
pub(super) const LAST_STEP: u64 = 256;
/// So much time ahead.
const FARTHEST_TIME: Duration = Duration::from_secs(12);

/// What a scenario has of its world: servers, peers, time, and acts that come when the seed says so.
///
/// It can be cloned, and stays on its thread: a handler, which may leave it, gets the
/// [`runtime`](Self::runtime).
#[derive(Clone)]
pub struct Sim(pub(super) Rc<Local>);

/// What of a world stays on its thread.
pub(super) struct Local {
    pub(super) world: Arc<World>,
    pub(super) spawned: RefCell<Vec<(Who, LocalTask)>>,
    pub(super) acts: RefCell<Vec<Act>>,
    random: RefCell<Random>,
}

pub(super) type LocalTask = Pin<Box<dyn Future<Output = ()>>>;

/// Something that the scenario wants to be done at some step.
pub(super) struct Act {
    name: &'static str,
    /// Before which step; `None` where it comes at a time.
    pub(super) step: Option<u64>,
    /// It waits until nothing else is left to happen.
    pub(super) is_last: bool,
    pub(super) act: Option<Box<dyn FnOnce()>>,
}

impl Sim {
    pub(super) fn new(world: &Arc<World>) -> Self {
        Self(Rc::new(Local {
            world: world.clone(),
            spawned: RefCell::default(),
            acts: RefCell::default(),
            random: RefCell::new(world.plan.random(stream::SCENARIO)),
        }))
    }

    fn world(&self) -> &Arc<World> {
        &self.0.world
    }

    /// The runtime of this world, for handlers that wait for time, and for servers of one's own making.
    #[must_use]
    pub fn runtime(&self) -> SimRuntime {
        SimRuntime::new(self.world())
    }

    /// A listener of the in-memory network, for [`Builder::listener`]. Peers come to all of a world's
    /// listeners that are open, as the seed says.
    #[must_use]
    pub fn listener(&self) -> SimListener {
        SimListener::open(self.world())
    }

    /// A server in this world, to be configured; it has one [`listener`](Self::listener). It is served
    /// by [`start`](Self::start).
    pub fn builder(&self) -> Builder<SimRuntime> {
        Server::with_runtime(self.runtime()).listener(self.listener())
    }

    /// Serves with every default: binds a [`builder`](Self::builder) and [starts](Self::start) it.
    pub async fn serve<F, Fut>(&self, handler: F) -> Running
    where
        F: FnOnce(Connection) -> Fut + Clone + Send + 'static,
        Fut: Future<Output: Outcome> + Send + 'static,
    {
        self.start(self.builder(), handler).await
    }

    /// Binds a server and serves in the background, and watches it: from here on its promises are
    /// checked at every step, and what goes against one fails the run.
    ///
    /// # Panics
    /// Where the server cannot be bound.
    pub async fn start(&self, builder: Builder<SimRuntime>, handler: impl Handler) -> Running {
        let server = match builder.bind().await {
            Ok(server) => server,
            Err(error) => panic!("cannot bind a simulated server: {error}"),
        };
        let number = self.world().watch().add(server.handle());
        server.spawn_with(Watched {
            handler,
            world: self.world().clone(),
            server: number,
        })
    }

    /// How much time has passed in this world.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world().now()
    }

    /// Waits on the clock of this world.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + use<> {
        Sleep::new(self.world(), duration)
    }

    /// A number below `count` that the seed decides, for whatever the scenario wants to vary; 0 where
    /// there is none.
    #[must_use]
    pub fn random(&self, count: usize) -> usize {
        self.0.random.borrow_mut().below(count as u64) as usize
    }

    /// The seed of this run.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world().plan.run.seed
    }

    /// Starts a task of the scenario's own. A run is over when all of them are.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.push(Who::Scenario, Box::pin(task));
    }

    fn push(&self, who: Who, task: LocalTask) {
        self.0.spawned.borrow_mut().push((who, task));
    }

    /// Connects a peer with which nothing is wrong, at once.
    ///
    /// # Errors
    /// `ConnectionRefused` where no listener takes new peers.
    pub async fn connect(&self) -> io::Result<Peer> {
        let peer = Peer::enroll(self.world(), |_| None);
        let door = self.door();
        Peer::connect(self.world(), peer, door).await
    }

    /// One of the listeners that are open.
    fn door(&self) -> Option<usize> {
        let doors = self.world().on_network(|network, _| network.open_doors());
        doors.get(self.random(doors.len())).copied()
    }

    /// Has a peer come sometime, connect, and follow `script`.
    ///
    /// Half of all peers do just that. The others have one of the [faults](Fault) of peers: one that
    /// breaks off sees its operations fail and does not get to the end of its script, one that never
    /// pauses begins it again and again, and a silent one has none. So a script asserts what a client
    /// may expect that behaves, and passes errors on with `?`: what a script returns as an error is
    /// noted on the timeline, and no failure.
    pub fn visit<F>(&self, script: F)
    where
        F: AsyncFn(&mut Peer) -> io::Result<()> + 'static,
    {
        let plan = &self.world().plan;
        let peer = Peer::enroll(self.world(), |number| plan.manner(number));
        let (number, manner) = peer;
        if plan.is_without(Part::Peer(number)) {
            return;
        }
        let mut random = plan.random(stream::PEERS + (2 << 10) + number as u64);
        let pause = random.span(Duration::from_secs(2));
        let sim = self.clone();
        let visit = async move {
            if random.once_in(2) {
                sim.sleep(pause).await;
            }
            let door = sim.door();
            let Ok(mut peer) = Peer::connect(sim.world(), peer, door).await else {
                return;
            };
            let who = Who::Peer(number);
            if let Some(manner) = manner {
                sim.world()
                    .note(who, &format!("has a manner: {manner}"), None);
            }
            match manner {
                Some(Fault::ResetInQueue) => {
                    sim.world().fired(Fault::ResetInQueue);
                    return peer.reset();
                }
                Some(Fault::Silent) => sim.world().fired(Fault::Silent),
                _ => {
                    if let Err(error) = follow(&sim, &script, &mut peer).await {
                        sim.world().note(who, &format!("gives up: {error}"), None);
                    }
                }
            }
            peer.leave().await;
        };
        self.push(Who::Peer(number), Box::pin(visit));
    }

    /// Has `act` done sometime: at any step from here on, or at any time within the next twelve seconds,
    /// or at once where nothing else can go on. The name is for the timeline.
    pub fn sometime(&self, name: &'static str, act: impl FnOnce() + 'static) {
        self.put(name, act, None);
    }

    /// Has the server stop [sometime](Self::sometime). In a simulation that
    /// [stops at every step](super::Simulation::stop_at_every_step) this is the stop that each run makes
    /// at another step.
    pub fn stop_sometime(&self, handle: &Handle) {
        let handle = handle.clone();
        self.put(
            "the stop",
            move || handle.shutdown(),
            self.world().plan.run.stop_at,
        );
    }

    fn put(&self, name: &'static str, act: impl FnOnce() + 'static, at: Option<u64>) {
        let mut acts = self.0.acts.borrow_mut();
        let world = self.world();
        let number = world.next_act();
        let mut random = world.plan.random(stream::ACTS + number as u64);
        let comes_at_step = random.once_in(2) || at.is_some();
        let step = world.step() + random.magnitude(FARTHEST_STEP);
        if world.plan.is_without(Part::Act(number)) {
            return acts.push(Act {
                name,
                step: None,
                is_last: false,
                act: None,
            });
        }
        if !comes_at_step {
            let at = world.now() + random.span(FARTHEST_TIME);
            world.set_timer(at, Timed::Act(number));
        }
        acts.push(Act {
            name,
            step: comes_at_step.then_some(at.unwrap_or(step)),
            is_last: at == Some(u64::MAX),
            act: Some(Box::new(act)),
        });
    }
}

/// Follows a script once, or again and again where that is the peer's manner.
async fn follow<F>(sim: &Sim, script: &F, peer: &mut Peer) -> io::Result<()>
where
    F: AsyncFn(&mut Peer) -> io::Result<()>,
{
    script(peer).await?;
    while peer.manner() == Some(Fault::NeverPause) && !peer.is_over() {
        sim.world().fired(Fault::NeverPause);
        // A script that does nothing takes no time, and would keep time from passing.
        let moment = Duration::from_micros(peer.draw().between(1, 1000));
        sim.sleep(moment).await;
        script(peer).await?;
    }
    Ok(())
}

impl Local {
    /// Does an act, unless it is done.
    pub(super) fn act(&self, number: usize) {
        let act = {
            let act = &mut self.acts.borrow_mut()[number];
            act.act.take().map(|it| (act.name, it))
        };
        if let Some((name, act)) = act {
            self.world.note(Who::Act(number), name, None);
            act();
        }
    }

    /// The next act that is due by now, or, where nothing can go on, the next of all that come at a
    /// step; where nothing is left to happen, the last.
    pub(super) fn due(&self, idle: bool, is_over: bool) -> Option<usize> {
        let now = self.world.step();
        let acts = self.acts.borrow();
        let acts = acts.iter().enumerate().filter(|(_, act)| act.act.is_some());
        let acts = acts.filter_map(|(number, act)| Some((act.step?, number, act.is_last)));
        let due = acts.filter(|(step, _, is_last)| match is_last {
            true => is_over || now >= LAST_STEP,
            false => *step <= now || idle,
        });
        due.min().map(|(_, number, _)| number)
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed())
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}
