//! What a server tells through the facade `metrics` (feature `metrics`): names, units and labels, and
//! what has changed since it was told last.

use std::time::Duration;

use ::metrics::{Key, KeyName, Label, Level, Metadata, Unit, with_recorder};

use crate::lifecycle::State;
use crate::report::Stats;

/// A page is mostly scraped every fifteen seconds.
const EVERY: Duration = Duration::from_secs(5);

static METADATA: Metadata<'static> = Metadata::new("gracious", Level::INFO, Some("gracious"));

/// What a server tells through the facade `metrics`, for
/// [`Builder::metrics`](crate::Builder::metrics).
///
/// The names, with their units and labels, are in the page
/// [docs/metrics.md](https://github.com/gracious-rs/gracious/blob/main/docs/metrics.md).
#[derive(Clone, Debug)]
pub struct Metrics {
    labels: Vec<(String, String)>,
    pub(crate) every: Option<Duration>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything, every five seconds, without further labels.
    #[must_use]
    pub fn new() -> Self {
        Self {
            labels: Vec::new(),
            every: Some(EVERY),
        }
    }

    /// Puts a label on everything that this server tells. Servers of one process with the same labels are
    /// added up.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// How often the counts are told; every 5 s by default, and when the server's state changes. With
    /// `None` they are told when the server is bound and when it is closed, and by
    /// [`Handle::record_metrics`](crate::Handle::record_metrics).
    #[must_use]
    pub fn every(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.every = interval.into();
        self
    }

    /// The key of a metric with the server's labels and one of its own.
    fn key(&self, name: &'static str, own: Option<(&'static str, &'static str)>) -> Key {
        let own = own.map(|(key, value)| Label::from_static_parts(key, value));
        let others = self.labels.iter().cloned();
        let others = others.map(|(key, value)| Label::new(key, value));
        Key::from_parts(name, own.into_iter().chain(others).collect::<Vec<_>>())
    }

    pub(crate) fn handler_seconds(&self) -> Key {
        self.key(HANDLER_SECONDS, None)
    }

    /// Tells what everything means.
    pub(crate) fn describe(&self) {
        with_recorder(|recorder| {
            for it in &COUNTERS {
                recorder.describe_counter(
                    KeyName::from_const_str(it.name),
                    Some(it.unit),
                    it.help.into(),
                );
            }
            for (name, unit, help) in GAUGES {
                recorder.describe_gauge(KeyName::from_const_str(name), Some(unit), help.into());
            }
            let name = KeyName::from_const_str(HANDLER_SECONDS);
            let help = "From the accept, or the end of the handshake, to the end of the handler.";
            recorder.describe_histogram(name, Some(Unit::Seconds), help.into());
        });
    }

    /// Tells what has changed.
    pub(crate) fn tell(&self, changes: &Changes) {
        with_recorder(|recorder| {
            for (it, by) in COUNTERS.iter().zip(changes.counts) {
                let key = self.key(it.name, it.label);
                recorder.register_counter(&key, &METADATA).increment(by);
            }
            for (state, by) in ["idle", "busy"].into_iter().zip(changes.active) {
                let key = self.key(ACTIVE, Some(("state", state)));
                recorder.register_gauge(&key, &METADATA).increment(by);
            }
            for (state, by) in STATES.into_iter().zip(changes.states) {
                let key = self.key(STATE, Some(("state", state.1)));
                recorder.register_gauge(&key, &METADATA).increment(by);
            }
            if let Some(drain) = changes.drain {
                let key = self.key(DRAIN_SECONDS, None);
                recorder
                    .register_gauge(&key, &METADATA)
                    .set(drain.as_secs_f64());
            }
        });
    }
}

/// Tells how long a handler has taken.
pub(crate) fn tell_handler(key: &Key, took: Duration) {
    with_recorder(|recorder| {
        let histogram = recorder.register_histogram(key, &METADATA);
        histogram.record(took.as_secs_f64());
    });
}

const ACTIVE: &str = "gracious_connections_active";
const STATE: &str = "gracious_state";
const DRAIN_SECONDS: &str = "gracious_drain_seconds";
const HANDLER_SECONDS: &str = "gracious_handler_seconds";

const GAUGES: [(&str, Unit, &str); 3] = [
    (ACTIVE, Unit::Count, "Open connections."),
    (
        STATE,
        Unit::Count,
        "1 for the state that the server is in, else 0.",
    ),
    (
        DRAIN_SECONDS,
        Unit::Seconds,
        "How long the drain has taken so far; 0 before it.",
    ),
];

const STATES: [(State, &str); 6] = [
    (State::Bound, "bound"),
    (State::Serving, "serving"),
    (State::Paused, "paused"),
    (State::Draining, "draining"),
    (State::Aborting, "aborting"),
    (State::Closed, "closed"),
];

/// A count that only rises.
struct Counter {
    name: &'static str,
    label: Option<(&'static str, &'static str)>,
    unit: Unit,
    help: &'static str,
    count: fn(&Stats) -> u64,
}

const fn ended(name: &'static str, help: &'static str, count: fn(&Stats) -> u64) -> Counter {
    Counter {
        name,
        label: None,
        unit: Unit::Count,
        help,
        count,
    }
}

const fn bytes(name: &'static str, help: &'static str, count: fn(&Stats) -> u64) -> Counter {
    Counter {
        name,
        label: None,
        unit: Unit::Bytes,
        help,
        count,
    }
}

const fn errors(kind: &'static str, count: fn(&Stats) -> u64) -> Counter {
    Counter {
        name: "gracious_accept_errors_total",
        label: Some(("kind", kind)),
        unit: Unit::Count,
        help: "Failed calls of accept, by whose fault they were.",
        count,
    }
}

const COUNTERS: [Counter; 12] = [
    ended(
        "gracious_connections_accepted_total",
        "Connections taken from the kernel.",
        |it| it.accepted,
    ),
    ended(
        "gracious_connections_completed_total",
        "Connections whose handler returned without an error.",
        |it| it.completed,
    ),
    ended(
        "gracious_connections_failed_total",
        "Connections whose handler, or handshake, failed.",
        |it| it.failed,
    ),
    ended(
        "gracious_connections_panicked_total",
        "Connections whose handler panicked.",
        |it| it.panicked,
    ),
    ended(
        "gracious_connections_aborted_total",
        "Connections that were aborted.",
        |it| it.aborted,
    ),
    ended(
        "gracious_connections_detached_total",
        "Connections taken out of the server.",
        |it| it.detached,
    ),
    ended(
        "gracious_connections_rejected_total",
        "Connections closed without a handler.",
        |it| it.rejected,
    ),
    bytes(
        "gracious_bytes_read_total",
        "Bytes read from peers.",
        |it| it.bytes_in,
    ),
    bytes(
        "gracious_bytes_written_total",
        "Bytes written to peers.",
        |it| it.bytes_out,
    ),
    errors("peer", |it| it.accept_errors_by.peer),
    errors("shortage", |it| it.accept_errors_by.shortage),
    errors("listener", |it| it.accept_errors_by.listener),
];

/// A server as of one moment.
pub(crate) struct Snapshot {
    pub(crate) stats: Stats,
    pub(crate) busy: u64,
    pub(crate) state: State,
    pub(crate) drain: Option<Duration>,
}

/// What has been told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    counts: [u64; COUNTERS.len()],
    active: [u64; 2],
    state: Option<State>,
}

/// What is to be told.
pub(crate) struct Changes {
    counts: [u64; COUNTERS.len()],
    active: [f64; 2],
    states: [f64; STATES.len()],
    drain: Option<Duration>,
}

impl Told {
    /// Gives what has changed. A moment that another thread has looked at before a later one, and comes
    /// with after it, changes no count; and nothing comes after the end.
    pub(crate) fn advance(&mut self, now: &Snapshot) -> Changes {
        let mut changes = Changes {
            counts: [0; COUNTERS.len()],
            active: [0.0; 2],
            states: [0.0; STATES.len()],
            drain: now.drain,
        };
        for ((told, by), it) in self
            .counts
            .iter_mut()
            .zip(&mut changes.counts)
            .zip(&COUNTERS)
        {
            let count = (it.count)(&now.stats);
            *by = count.saturating_sub(*told);
            *told = count.max(*told);
        }
        if self.state == Some(State::Closed) {
            changes.drain = None;
            return changes;
        }
        let active = [now.stats.active.saturating_sub(now.busy), now.busy];
        for ((told, by), count) in self.active.iter_mut().zip(&mut changes.active).zip(active) {
            *by = count as f64 - *told as f64;
            *told = count;
        }
        for ((state, _), by) in STATES.iter().zip(&mut changes.states) {
            let (was, is) = (self.state == Some(*state), now.state == *state);
            *by = f64::from(u8::from(is)) - f64::from(u8::from(was));
        }
        self.state = Some(now.state);
        changes
    }
}
