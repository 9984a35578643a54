//! Servers that stop as one.

use std::sync::Arc;
use std::time::Duration;

use crate::handle::Handle;
use crate::lifecycle::Reason;
use crate::report::Report;

/// Servers that stop as one, on one runtime or on several.
///
/// From [`new`](Self::new) on, whatever asks one of them to stop asks all, with the same reason and
/// the longest [`lame_duck`](crate::Builder::lame_duck) among them, and every listener of all is
/// shut before any connection of one is asked to end. Each has its own deadline and its own report;
/// an abort of one leaves the others to their drains. The set may be dropped: they stay together.
///
/// ```
/// # fn main() -> std::io::Result<()> { async_std::task::block_on(async {
/// use gracious::{Server, ServerSet};
///
/// let api = Server::bind("127.0.0.1:0").await?;
/// let admin = Server::bind("127.0.0.1:0").await?;
/// let set = ServerSet::new([api.handle(), admin.handle()]);
/// let (api, admin) = (api.spawn(|_conn| async {}), admin.spawn(|_conn| async {}));
///
/// set.shutdown();
/// assert_eq!(set.closed().await.len(), 2);
/// # drop((api, admin));
/// # Ok(()) }) }
/// ```
#[derive(Clone, Debug)]
pub struct ServerSet(Vec<Handle>);

impl ServerSet {
    /// Ties servers together. If one of them was asked to stop already, all are.
    pub fn new(servers: impl IntoIterator<Item = Handle>) -> Self {
        let set = Self(servers.into_iter().collect());
        for one in &set.0 {
            let others = set
                .0
                .iter()
                .map(Handle::shared)
                .filter(|it| !Arc::ptr_eq(it, one.shared()));
            one.shared().link(others.map(Arc::downgrade));
        }
        // A server that was asked to stop before it was linked could not ask the others.
        let asked = set
            .0
            .iter()
            .find_map(|one| one.shared().latch.request().reason.clone());
        if let Some(reason) = asked {
            set.shutdown_because(reason);
        }
        set
    }

    /// [`Handle::shutdown`], of all.
    pub fn shutdown(&self) {
        self.0.iter().for_each(Handle::shutdown);
    }

    /// [`Handle::shutdown_because`], of all.
    pub fn shutdown_because(&self, reason: impl Into<Reason>) {
        let reason = reason.into();
        self.0
            .iter()
            .for_each(|server| server.shutdown_because(reason.clone()));
    }

    /// [`Handle::shutdown_within`], of all.
    pub fn shutdown_within(&self, span: Duration) {
        self.0
            .iter()
            .for_each(|server| server.shutdown_within(span));
    }

    /// [`Handle::abort`], of all.
    pub fn abort(&self) {
        self.0.iter().for_each(Handle::abort);
    }

    /// Waits until all are closed; their reports, in the order of the handles given.
    ///
    /// Dropping the future gives up the wait; the servers go on.
    pub async fn closed(&self) -> Vec<Report> {
        let mut reports = Vec::with_capacity(self.0.len());
        for server in &self.0 {
            reports.push(server.closed().await);
        }
        reports
    }
}
