//! All pools of one server: made first, started when the server knows them.

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
    /// One a shard, after those that have no handlers.
    pools: Vec<Arc<Pool>>,
    /// How many pools, the first, only accept: their threads are never blocked by a handler.
    acceptors: usize,
}

/// One poller a shard.
pub(crate) fn pollers<R: Registered>(shards: usize) -> io::Result<Vec<Arc<Poller>>> {
    (0..shards)
        .map(|_| Poller::new::<R>().map(Arc::new))
        .collect()
}

impl WorkerPools {
    /// Makes the pools for a server whose listeners are registered with these pollers; none where
    /// there are no pollers, unless handlers stay on their threads. Then each pool is a shard's, and
    /// where they have one listening socket a pool more accepts and deals connections out.
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

    /// Starts the threads, for as long as there is something to do. After each look at them, 20 in a
    /// second, `on_look` is told whether a handler blocks one.
    ///
    /// # Errors
    /// The system's, where a thread cannot be started. Those that were started end with
    /// [`stop`](Self::stop).
    pub(crate) fn start(&self, on_look: impl FnMut(bool) + Send + 'static) -> io::Result<()> {
        for pool in &self.pools {
            for _ in 0..pool.size {
                pool.spawn_worker()?;
            }
        }
        let watchdog = watchdog::start(self.pools.clone(), on_look)?;
        for pool in &self.pools {
            *lock(&pool.watchdog) = Some(watchdog.clone());
        }
        Ok(())
    }

    /// Has the threads end when no task is left.
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

    /// How many pools, the first, only accept.
    pub(crate) fn acceptors(&self) -> usize {
        self.acceptors
    }

    /// The shard that gets a connection which came through no shard's own socket, by the `turn`
    /// counted up for each.
    pub(crate) fn shard(&self, turn: usize) -> u16 {
        (self.acceptors + turn % self.serving().len()) as u16
    }
}
