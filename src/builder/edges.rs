//! The settings for what is around a server: the supervisor that starts it, and what asks after its
//! health.

use super::Builder;
#[cfg(feature = "health")]
use crate::address::Target;
#[cfg(feature = "systemd")]
use crate::listener::bind::Source;

impl<R> Builder<R> {
    /// Listens on the sockets that systemd's `.socket` units pass (`LISTEN_FDS`), as if each were
    /// [adopted](Self::adopt): of whatever kind it is. systemd holds them too: who connects after the stop
    /// waits in their queues for the next start.
    ///
    /// All that no other server of this process has taken by [name](Self::listen_systemd_named) before.
    /// They are taken at [`bind`](Self::bind), once; the variables stay as they are.
    ///
    /// # Errors
    /// Of `bind`, `InvalidInput`: where systemd has passed nothing, or has passed it to another process;
    /// where the variables are no list; where a descriptor is not open, or no listening TCP or Unix
    /// stream socket.
    #[cfg(feature = "systemd")]
    pub fn listen_systemd(mut self) -> Self {
        self.sources.push(Source::systemd(None));
        self
    }

    /// As [`listen_systemd`](Self::listen_systemd), on the sockets of one name alone: that of
    /// `FileDescriptorName=`, or of the `.socket` unit.
    #[cfg(feature = "systemd")]
    pub fn listen_systemd_named(mut self, name: impl Into<String>) -> Self {
        self.sources.push(Source::systemd(Some(name.into())));
        self
    }

    /// Tells systemd of this server (`Type=notify`): that it is ready, when every accept loop has asked
    /// its listeners for the first time; that it stops; once a second, how many are left and how much
    /// time; that it lives, where the unit has `WatchdogSec=`, from the server's own task at half of that
    /// time. While a drain goes on, systemd's patience is extended, so that `TimeoutStopSec=` may be
    /// shorter than the [deadline](Self::deadline).
    ///
    /// Servers of one process that ask for it are one service: it is ready when all of them are, stops
    /// when all do, and lives while all do. All have to be bound before the first is served: else it is
    /// the only one that there is, and ready. What can be seen of a unit that does not fit is a warning in
    /// the log when serving begins. Where no systemd listens (`NOTIFY_SOCKET` is not set) nothing is
    /// told.
    ///
    /// # Errors
    /// Of [`bind`](Self::bind), `InvalidInput`: where `NOTIFY_SOCKET`, `WATCHDOG_USEC` or `WATCHDOG_PID`
    /// are not what they should be.
    #[cfg(feature = "systemd")]
    pub fn notify(mut self) -> Self {
        self.config.notify = true;
        self
    }

    /// Has systemd hold this server's listening sockets (`FileDescriptorStoreMax=`), so that a restart
    /// refuses and resets nobody.
    ///
    /// The sockets are handed over when serving begins, and found again, by their addresses, at the
    /// [`bind`](Self::bind) of the next process. A stop closes them as they are: who connects from then on
    /// waits in the queue, as does who was in it, for the next process; nobody is refused, and no path is
    /// removed. The server cannot tell a restart from a stop for good: there systemd closes the sockets
    /// when the service has ended, and resets who waits.
    ///
    /// It implies [`notify`](Self::notify), since `Type=notify` is needed, or `NotifyAccess=main`; and systemd 254, which says how many it holds. Where
    /// it holds too few, or does not say, that is a warning in the log, and a stop is as ever. Sockets
    /// that were [adopted](Self::adopt), and ports that the system chose, are not stored for another
    /// process to find.
    #[cfg(feature = "systemd")]
    pub fn store_listeners(mut self) -> Self {
        self.config.store_listeners = true;
        self.config.notify = true;
        self
    }

    /// Answers questions after this server's health on `target`, a TCP or a Unix address: HTTP probes,
    /// and HAProxy's `agent-check`.
    ///
    /// - `GET /ready`: 200 while new peers should come, which is what [`Handle::is_serving`] says, and all
    ///   accept loops run; else 503, and why: starting, paused, draining, short of descriptors.
    /// - `GET /live`: 200; 503 where the server's own task has not run for ten seconds, because handlers
    ///   block all its threads. A drain is no reason to be killed.
    /// - A client that says nothing for a quarter of a second, or a line that is no request, gets a line:
    ///   `up ready`, `drain`, or `down#stopped`.
    ///
    /// The answers change with the request to stop, before the door is shut: a
    /// [`lame_duck`](Self::lame_duck) is the time that others have to look. This listener is the last
    /// that is closed, with the server. It is served on a thread of its own, beside the limits, whatever
    /// the handlers do, and answers where no descriptor is left. Its clients are no peers of the server's:
    /// they are in no count, are not waited for at a stop, and cannot be reset at the cost of anybody.
    ///
    /// The port is not shared, with [`reuse_port`](Self::reuse_port) neither: a successor that starts
    /// before this server is closed needs another one. [`Handle::health_addrs`] has the addresses.
    ///
    /// [`Handle::is_serving`]: crate::Handle::is_serving
    /// [`Handle::health_addrs`]: crate::Handle::health_addrs
    #[cfg(feature = "health")]
    pub fn health(mut self, target: impl Into<Target>) -> Self {
        self.config.health.push(target.into());
        self
    }
}
