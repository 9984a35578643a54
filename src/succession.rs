//! What a builder is told of handovers, and how it binds then.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Target;
use crate::builder::Builder;
use crate::handover::Handover;
use crate::handover::trigger::Trigger;
use crate::listener::bind::Source;
use crate::runtime::Runtime;
use crate::server::Server;

impl<R: Runtime> Builder<R> {
    /// Listens on `target`, as [`listen`](Self::listen), under a name by which a successor may take it
    /// over: see [`Handle::hand_over`](crate::Handle::hand_over).
    ///
    /// Where this server has a [predecessor](Self::handover) that has a socket of this name, at an
    /// address that `target` means (port 0 means any), that socket is used, with whoever is in its
    /// queue; otherwise the target is bound. Names are compared byte for byte, and no two of a server
    /// may be the same. Of a predecessor with more shards all sockets are served. Available on Linux,
    /// with the feature `handover`.
    pub fn listen_named(mut self, name: impl Into<String>, target: impl Into<Target>) -> Self {
        self.sources.push(Source {
            name: Some(name.into()),
            ..Source::target(target.into())
        });
        self
    }

    /// [`listen_named`](Self::listen_named), with TLS, as [`listen_tls`](Self::listen_tls).
    #[cfg(feature = "_tls")]
    pub fn listen_tls_named(
        mut self,
        name: impl Into<String>,
        target: impl Into<Target>,
        tls: impl Into<crate::tls::Tls>,
    ) -> Self {
        self.sources.push(Source {
            name: Some(name.into()),
            tls: Some(tls.into()),
            ..Source::target(target.into())
        });
        self
    }

    /// Takes the [named](Self::listen_named) listeners over that a predecessor has handed to this
    /// process.
    pub fn handover(mut self, handover: &Handover) -> Self {
        self.handover = Some(handover.clone());
        self
    }

    /// Can be asked for a handover at `path`, a Unix socket of mode 0600, by whoever is of our user, or
    /// root.
    ///
    /// Who sends the line `upgrade` has a successor started by what `command` makes, as by
    /// [`Handle::hand_over`](crate::Handle::hand_over), and is told in a line how that went, when it is
    /// over. A process that was started otherwise takes over by
    /// [`Handover::take`](crate::Handover::take). It is answered from [`bind`](Self::bind) on, until the
    /// server is asked to stop; where there is a predecessor, from
    /// [`ready`](crate::Handover::ready) on.
    pub fn hand_over_at(
        mut self,
        path: impl Into<PathBuf>,
        command: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Self {
        self.trigger = Some(Trigger {
            path: path.into(),
            command: Arc::new(command),
        });
        self
    }

    /// How long a successor may take until it is ready; 60 s by default. One that takes longer is
    /// refused, and this server goes on.
    pub fn handover_timeout(mut self, limit: Duration) -> Self {
        self.config.handover_timeout = limit;
        self
    }

    /// [`bind`](Self::bind), with what there is of a predecessor.
    pub(crate) async fn bind_in_succession(self) -> io::Result<Server<R>> {
        let mut names: Vec<_> = self
            .sources
            .iter()
            .filter_map(|it| it.name.as_ref())
            .collect();
        names.sort();
        if let Some(two) = names.windows(2).find(|two| two[0] == two[1]) {
            let message = format!(
                "two listeners are named {:?}: expected names of their own",
                two[0]
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let hands_over = !names.is_empty() || self.trigger.is_some();
        let has_predecessor = self
            .handover
            .as_ref()
            .is_some_and(Handover::has_predecessor);
        // Before anything is bound: what cannot be had is an error then.
        let mut bound = None;
        let mut offer = None;
        match (&self.trigger, &self.handover) {
            (Some(trigger), Some(handover)) if has_predecessor => {
                offer = handover.inherited().take_trigger(&trigger.path);
            }
            (Some(trigger), _) => bound = Some(trigger.bind().await?),
            (None, _) => {}
        }
        let inherited = self.handover.as_ref().map(Handover::inherited);
        let runtime = self.runtime.clone();
        let server = Server::bind_all(self.runtime, self.sources, self.config, inherited).await?;
        server.shared().set_trigger(bound);
        server.shared().inherit_trigger(offer);
        if hands_over {
            server.shared().hold_descriptors_back();
        }
        if let Some(handover) = &self.handover {
            handover.enlist(server.shared());
        }
        if let Some(trigger) = self.trigger {
            runtime.spawn(trigger.serve(server.shared().clone(), has_predecessor));
        }
        Ok(server)
    }
}
