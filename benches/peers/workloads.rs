//! What is asked of the servers.

use benches::load::Shape;
use benches::servers::{FLOOR, REFERENCE, REFERENCE_ONCE, Server, TakesPart};

#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// So many requests in a round.
    Traffic {
        shape: Shape,
        requests: u64,
        /// The load has the first core, and the server the others.
        apart: bool,
    },
    /// The load that nobody here wrote, with 50 clients.
    RedisBenchmark { requests: u64 },
    /// Connections that asked once and then stay: their memory, and how long a stop takes.
    Idle,
    /// A stop under load.
    Interruption,
}

/// A round is about a third of a second for each server.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload::traffic(ONE_CLIENT, Shape::clients(1), 8_000),
    // Longer: a server that spun in vain leaves that off for thousands of requests, and begins again.
    Workload::traffic(A_CORE_EACH, Shape::clients(1).sleepless(), 24_000).apart(),
    Workload::traffic(FIFTY_CLIENTS, Shape::clients(50), 30_000),
    Workload::traffic("500 clients", Shape::clients(500), 30_000),
    Workload::traffic("50 clients, 16 deep", Shape::clients(50).deep(16), 400_000),
    Workload::traffic(CHURN, Shape::clients(1).hanging_up(), 6_000),
    Workload::traffic("churn, 50 at once", Shape::clients(50).hanging_up(), 6_000),
    Workload::traffic(
        "churn, the server closes first, 50 at once",
        Shape::clients(50).until_the_end(),
        6_000,
    ),
    Workload {
        name: "redis-benchmark",
        work: Work::RedisBenchmark { requests: 30_000 },
    },
    Workload {
        name: "idle",
        work: Work::Idle,
    },
    Workload {
        name: "interruption",
        work: Work::Interruption,
    },
];

const ONE_CLIENT: &str = "1 client";
/// Left to itself, the scheduler has one client and its server share a core, or not: the costs of
/// the two differ by far, and so do two runs. And a client that sleeps has to wake up for each reply,
/// which takes as long as it does for the server.
const A_CORE_EACH: &str = "1 client, a core each";
pub(crate) const FIFTY_CLIENTS: &str = "50 clients";
pub(crate) const CHURN: &str = "churn, one at a time";

impl Workload {
    const fn traffic(name: &'static str, shape: Shape, requests: u64) -> Self {
        Self {
            name,
            work: Work::Traffic {
                shape,
                requests,
                apart: false,
            },
        }
    }

    const fn apart(mut self) -> Self {
        if let Work::Traffic { apart, .. } = &mut self.work {
            *apart = true;
        }
        self
    }

    /// Whether it is about the load and the server each having a core.
    pub(crate) fn is_apart(&self) -> bool {
        matches!(self.work, Work::Traffic { apart: true, .. })
    }

    /// The servers that its figures are compared with.
    pub(crate) fn references(&self) -> impl Iterator<Item = &'static str> {
        match self.work {
            Work::Traffic { shape, .. } if shape.is_until_the_end() => vec![REFERENCE_ONCE],
            Work::Traffic { .. } | Work::RedisBenchmark { .. } => vec![REFERENCE],
            Work::Idle => vec![REFERENCE, FLOOR],
            Work::Interruption => vec![],
        }
        .into_iter()
    }

    /// What its cost is counted in.
    pub(crate) fn unit(&self) -> &'static str {
        match self.work {
            Work::Traffic { shape, .. } if shape.hangs_up() => "connection",
            _ => "request",
        }
    }

    /// Whether it is for servers that answer once and close.
    fn servers_close(&self) -> bool {
        matches!(self.work, Work::Traffic { shape, .. } if shape.is_until_the_end())
    }

    /// Whether that server is there for it.
    pub(crate) fn suits(&self, server: &Server) -> bool {
        match server.takes_part {
            TakesPart::Always => !self.servers_close(),
            TakesPart::WhenServersClose => self.servers_close(),
            TakesPart::WhenIdle => matches!(self.work, Work::Idle),
            TakesPart::WithOneClient => matches!(self.name, ONE_CLIENT | A_CORE_EACH),
        }
    }
}
