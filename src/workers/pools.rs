//! The pools of one server.
//!
//! They are made first, given to the server's state, and started afterwards. Swapped, a thread that
//! cannot be started would leave the others without an owner that stops them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::driver::{Poller, Registered};
use super::pool::Pool;
use super::spin::cores;
use super::watchdog;
use crate::sync::lock;

/// How many threads a server has, and how they share its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerOptions {
    /// How many threads run handlers; `None` is one a core.
    pub(crate) workers: Option<usize>,
    /// Each worker has sockets of its own.
    pub(crate) sharded: bool,
    /// Handlers stay on the thread that they began on.
    pub(crate) local: bool,
    /// How long a driver looks for events before it sleeps.
    pub(crate) spin: Duration,
}

/// The pools of one server.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPools {
    /// The pools that only accept, then one for each shard.
    pools: Vec<Arc<Pool>>,
    /// How many of the pools, the first ones, only accept: no handler runs, or blocks, there.
    acceptors: usize,
}

/// Makes a poller for each shard.
pub(crate) fn pollers<R: Registered>(shards: usize) -> io::Result<Vec<Arc<Poller>>> {
    (0..shards)
        .map(|_| Poller::new::<R>().map(Arc::new))
        .collect()
}

impl WorkerPools {
    /// Makes the pools of a server whose listeners are registered with these pollers; `None` of a
    /// server that has no pollers and so runs on its runtime.
    ///
    /// A server whose handlers stay on their threads always has pools, one for each worker. Where
    /// its listeners are not sharded, there is one pool more, which accepts and deals connections
    /// out.
    pub(crate) fn new<R: Registered>(
        of_listeners: &[Arc<Poller>],
        options: WorkerOptions,
    ) -> io::Result<Option<Self>> {
        let WorkerOptions {
            workers,
            sharded,
            local,
            spin,
        } = options;
        if of_listeners.is_empty() && !local {
            return Ok(None);
        }
        let workers = workers.unwrap_or_else(cores);
        let acceptors = usize::from(local && !sharded);
        let shards = if local || sharded { workers } else { 1 };
        let mut pollers = of_listeners.to_vec();
        pollers.extend(self::pollers::<R>(shards + acceptors - pollers.len())?);
        let is_alone = pollers.len() == 1;
        let pool = |(number, poller)| {
            let name = match is_alone {
                true => "gracious".to_owned(),
                false => format!("gracious-{number}"),
            };
            let serves = number >= acceptors;
            let spin = if serves { spin } else { Duration::ZERO };
            Pool::new(poller, name, workers / shards, spin, local && serves)
        };
        let pools = pollers.into_iter().enumerate().map(pool).collect();
        Ok(Some(Self { pools, acceptors }))
    }

    /// Starts the threads, and the watchdog, which calls `on_look` after each look at them, 20
    /// times a second, with whether a handler blocks one. `on_failure` is called once events cannot
    /// be waited for any more; tasks are run all the same.
    ///
    /// # Errors
    /// The system's, where a thread cannot be started. The threads that were started end with
    /// [`stop`](Self::stop).
    pub(crate) fn start(
        &self,
        on_look: impl FnMut(bool) + Send + 'static,
        on_failure: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<()> {
        for pool in &self.pools {
            for _ in 0..pool.size {
                pool.spawn_worker()?;
            }
        }
        let watchdog = watchdog::start(self.pools.clone(), on_look, on_failure)?;
        for pool in &self.pools {
            *lock(&pool.watchdog) = Some(watchdog.clone());
        }
        Ok(())
    }

    /// Has the threads end when no task is left: the server is closed.
    pub(crate) fn stop(&self) {
        for pool in &self.pools {
            pool.stop();
        }
    }

    /// The pool of a shard.
    pub(crate) fn get(&self, shard: u16) -> Option<&Arc<Pool>> {
        self.pools.get(usize::from(shard))
    }

    /// How many pools there are.
    pub(crate) fn count(&self) -> u16 {
        self.pools.len() as u16
    }

    /// The pools that run handlers.
    pub(crate) fn serving(&self) -> &[Arc<Pool>] {
        &self.pools[self.acceptors..]
    }

    /// How many of the pools, the first ones, only accept.
    pub(crate) fn acceptors(&self) -> usize {
        self.acceptors
    }

    /// The shard that gets a connection which came through no shard's own socket. `turn` is counted
    /// up for each such connection.
    pub(crate) fn shard(&self, turn: usize) -> u16 {
        (self.acceptors + turn % self.serving().len()) as u16
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use rustix::time::{ClockId, clock_gettime};

    use super::super::driver::registration::tests::Nothing;
    use super::*;

    /// As where other code has closed the epoll's descriptor.
    #[test]
    fn a_poller_that_fails_for_good_is_told_of_and_its_thread_does_not_spin() {
        const DEADLINE: Duration = Duration::from_secs(20);
        let poller = Arc::new(Poller::broken::<Nothing>());
        let pool = Pool::new(poller, "test".into(), 1, Duration::ZERO, false);
        let pools = WorkerPools {
            pools: vec![pool.clone()],
            acceptors: 0,
        };
        let (fail, failed) = mpsc::channel();
        let on_failure = move |error: io::Error| fail.send(error).unwrap();
        pools.start(|_is_blocked| {}, on_failure).unwrap();
        // There is something to watch.
        pool.spawn(pending());
        failed.recv_timeout(DEADLINE).unwrap();
        let (say, said) = mpsc::channel();
        let processor_time = || {
            let say = say.clone();
            pool.spawn(async move {
                let time = clock_gettime(ClockId::ThreadCPUTime);
                say.send(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
                    .unwrap();
            });
            // Tasks are run.
            said.recv_timeout(DEADLINE).unwrap()
        };
        let (begun, before) = (Instant::now(), processor_time());
        thread::sleep(Duration::from_millis(200));
        let used = processor_time() - before;
        assert!(used < begun.elapsed() / 4, "{used:?}");
        assert!(failed.try_recv().is_err(), "told twice");
        pools.stop();
    }
}
