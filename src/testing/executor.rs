//! What runs a world: one task after the other, in an order that the seed decides, and time only when
//! none can go on.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::plan::stream;
use super::random::Random;
use super::sim::{LocalTask, Sim};
use super::timeline::Who;
use super::watch;
use super::world::{Ready, Timed, World};

/// So many steps without time passing are a spin.
const STEPS_AT_ONCE: u64 = 100_000;

/// The limits of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) steps: u64,
}

/// A world's tasks.
struct Executor {
    world: Arc<World>,
    sim: Sim,
    tasks: BTreeMap<u64, Task>,
    /// Those that are over, with their wakers: nothing else may hold one at the end.
    ended: Vec<(Who, Arc<TaskWaker>)>,
    next: u64,
    order: Random,
    /// The step after which time last passed.
    passed_at: u64,
}

struct Task {
    who: Who,
    future: LocalTask,
    waker: Arc<TaskWaker>,
}

struct TaskWaker {
    task: u64,
    is_queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, SeqCst) {
            self.ready.push(self.task);
        }
    }
}

/// Runs a scenario to the end of all that it has begun, or to its failure.
pub(super) fn run<F>(world: &Arc<World>, limits: Limits, scenario: impl FnOnce(Sim) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let _entered = world.enter();
    let sim = Sim::new(world);
    let mut executor = Executor {
        world: world.clone(),
        sim: sim.clone(),
        tasks: BTreeMap::new(),
        ended: Vec::new(),
        next: 0,
        order: world.plan.random(stream::ORDER),
        passed_at: 0,
    };
    match catch_unwind(AssertUnwindSafe(|| scenario(sim))) {
        Ok(scenario) => executor.add(Who::Scenario, Box::pin(scenario)),
        Err(panic) => world.fail("panicked", format!("the scenario: {}", message(&*panic))),
    }
    executor.run(limits);
    if world.failure().is_none() {
        executor.end();
    }
    executor.take_down();
}

impl Executor {
    fn add(&mut self, who: Who, future: LocalTask) {
        let waker = Arc::new(TaskWaker {
            task: self.next,
            is_queued: AtomicBool::new(true),
            ready: self.world.ready.clone(),
        });
        self.world.ready.push(self.next);
        self.tasks.insert(self.next, Task { who, future, waker });
        self.next += 1;
    }

    fn add_spawned(&mut self) {
        for task in self.world.take_spawned() {
            self.add(Who::Task(self.next), task);
        }
        let spawned = std::mem::take(&mut *self.sim.0.spawned.borrow_mut());
        for (who, task) in spawned {
            self.add(who, task);
        }
    }

    fn run(&mut self, limits: Limits) {
        let world = self.world.clone();
        while world.failure().is_none() {
            while let Some(act) = self.sim.0.due(false, false) {
                self.sim.0.act(act);
            }
            self.add_spawned();
            let order = &mut self.order;
            if let Some(task) = world.ready.take(|count| order.below(count)) {
                self.poll(task);
                watch::after_step(&world);
                if world.step() - self.passed_at > STEPS_AT_ONCE {
                    world.fail(
                        "spins",
                        format!("{STEPS_AT_ONCE} steps, and no time has passed"),
                    );
                }
                if world.step() > limits.steps {
                    world.fail("no end", format!("not over after {} steps", limits.steps));
                }
                if world.ready.is_foreign() {
                    let text =
                        "a task was woken by another thread, so no seed decides what happens";
                    world.fail("not deterministic", text);
                }
                continue;
            }
            if let Some(act) = self.sim.0.due(true, false) {
                self.sim.0.act(act);
                continue;
            }
            watch::before_time_passes(&world);
            let Some(at) = world.next_timer() else {
                match self.sim.0.due(true, true) {
                    Some(act) => self.sim.0.act(act),
                    None => return,
                }
                continue;
            };
            if at > limits.time {
                world.fail("no end", format!("not over after {:?}", limits.time));
                return;
            }
            self.passed_at = world.step();
            for timed in world.pass(at) {
                match timed {
                    Timed::Wake(waker) => waker.wake(),
                    Timed::Happen(event) => world.happen(event),
                    Timed::Act(number) => self.sim.0.act(number),
                }
            }
        }
    }

    fn poll(&mut self, number: u64) {
        // One that has ended may still be woken.
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        task.waker.is_queued.store(false, SeqCst);
        self.world.next_step();
        self.world.note(task.who, "goes on", None);
        let waker = Waker::from(task.waker.clone());
        let mut cx = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| task.future.as_mut().poll(&mut cx)));
        let is_over = match polled {
            Ok(Poll::Pending) => false,
            Ok(Poll::Ready(())) => true,
            Err(panic) => {
                let text = format!("{}: {}", task.who, message(&*panic));
                self.world.fail("panicked", text);
                true
            }
        };
        drop(waker);
        if is_over {
            if let Some(Task { who, future, waker }) = self.tasks.remove(&number) {
                let _panic = catch_unwind(AssertUnwindSafe(|| drop(future)));
                self.ended.push((who, waker));
            }
        }
    }

    /// Looks at what is left when nothing can happen any more.
    fn end(&mut self) {
        let left: Vec<_> = self
            .tasks
            .values()
            .map(|task| task.who.to_string())
            .collect();
        if !left.is_empty() {
            let what = left.join(", ");
            let text = format!(
                "nothing can go on, no timer is set, and there is still: {what}. (Timers, sockets and \
                 threads that are not this world's do not exist in it.)",
            );
            return self.world.fail("hangs", text);
        }
        watch::at_the_end(&self.world);
        let kept = self
            .ended
            .iter()
            .filter(|(_, waker)| Arc::strong_count(waker) > 1);
        let kept: Vec<_> = kept.map(|(who, _)| who.to_string()).collect();
        if !kept.is_empty() {
            self.world.fail(
                "keeps wakers",
                format!("of tasks that are over: {}", kept.join(", ")),
            );
        }
    }

    /// Drops what is left of a run that has failed.
    fn take_down(mut self) {
        let acts = std::mem::take(&mut *self.sim.0.acts.borrow_mut());
        let spawned = std::mem::take(&mut *self.sim.0.spawned.borrow_mut());
        let _panic = catch_unwind(AssertUnwindSafe(|| drop((acts, spawned))));
        while let Some((_, task)) = self.tasks.pop_first() {
            let _panic = catch_unwind(AssertUnwindSafe(|| drop(task)));
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    crate::connection::task::message(panic)
}
