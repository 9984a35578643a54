//! The listeners of a server: what they are called, which of them a stop closes when, and how one is
//! added to them.

use std::collections::BTreeMap;
use std::io;

use super::Shared;
use crate::address::Address;
#[cfg(feature = "http")]
use crate::lifecycle::Phase;
#[cfg(feature = "_tls")]
use crate::listener::Security;
use crate::listener::bind::Bound;
use crate::listener::set::ListenerSet;
use crate::report::ListenerInfo;
use crate::sync::notify;

impl Shared {
    /// The addresses that the server was bound to.
    pub(crate) fn addrs(&self) -> &[Address] {
        self.addresses.bound()
    }

    /// All addresses that the server was ever bound to, those that were added included.
    pub(crate) fn all_addrs(&self) -> Vec<Address> {
        self.addresses.all()
    }

    pub(crate) fn address(&self, number: u16) -> Address {
        self.addresses.get(number)
    }

    /// The TLS of the address of this number.
    #[cfg(feature = "_tls")]
    pub(crate) fn tls(&self, number: u16) -> Option<Security> {
        self.addresses.tls(number)
    }

    /// Whether any address is served with TLS.
    #[cfg(feature = "_tls")]
    pub(crate) fn has_tls(&self) -> bool {
        self.addresses.has_tls()
    }

    /// Whether the listener of this address stays open through a drain.
    #[inline]
    pub(crate) fn keeps_open(&self, address: u16) -> bool {
        self.addresses.keeps_open(address)
    }

    /// Whether any listener stays open through a drain.
    pub(crate) fn keeps_any_open(&self) -> bool {
        self.listener_sets.iter().any(|set| set.keeps_open)
    }

    /// Whether a stop has come to the listeners that stay open through a drain, and to their
    /// connections.
    pub(crate) fn has_come_to_the_last(&self) -> bool {
        self.latch.has_come_to_the_last()
    }

    /// Whether the server was asked to stop, and the stop concerns connections of this address already.
    #[cfg(feature = "http")]
    pub(crate) fn is_stopping(&self, address: u16) -> bool {
        let is_exempt = || self.keeps_open(address) && !self.has_come_to_the_last();
        self.latch.phase() >= Phase::Draining && !is_exempt()
    }

    /// Whether a stop shuts and closes the listeners of this set now.
    pub(crate) fn is_to_close(&self, set: &ListenerSet) -> bool {
        !set.keeps_open || self.has_come_to_the_last()
    }

    /// The sets whose listeners a stop shuts and closes now.
    pub(crate) fn sets_to_close(&self) -> impl Iterator<Item = &ListenerSet> {
        let all = self.listener_sets.iter();
        all.filter(|set| self.is_to_close(set))
    }

    pub(crate) fn listeners(&self) -> Vec<ListenerInfo> {
        let mut infos = BTreeMap::new();
        for set in &self.listener_sets {
            set.for_each(|address, is_shut, queued| {
                let info = infos.entry(address).or_insert_with(|| ListenerInfo {
                    id: u64::from(address),
                    address: self.addresses.get(address),
                    queued: queued.and(Some(0)),
                    is_shut,
                });
                info.queued = info.queued.zip(queued).map(|(sum, queued)| sum + queued);
            });
        }
        infos.into_values().collect()
    }

    /// Shuts the listener of one address; `false` where there is none, or it was shut before.
    pub(crate) fn shut_one(&self, address: u16) -> bool {
        let backlog = self.config.backlog;
        // All sockets of one port, with nothing in between.
        let shut = self
            .listener_sets
            .iter()
            .map(|set| set.shut_one(address, backlog));
        shut.fold(false, |any, one| any | one)
    }

    /// Has the listener of one address, which is shut, be closed when its queue is empty.
    pub(crate) fn close_one(&self, address: u16) {
        for set in &self.listener_sets {
            set.close_one(address);
        }
        // An accept loop may wait for a permit: it then closes what has nobody left in its queue.
        notify(&self.permits.released);
    }

    /// Takes what was bound while the server serves in.
    ///
    /// # Errors
    /// If its address cannot be told, or there is no number for it.
    pub(crate) fn add(&self, bound: Bound) -> io::Result<ListenerInfo> {
        let address = bound.sockets[0].local_addr()?;
        let number = self.addresses.add(address.clone(), bound.tls)?;
        let is_sharded = bound.sockets.len() > 1;
        for (set, socket) in self.listener_sets.iter().zip(bound.sockets) {
            set.add(socket, number, is_sharded);
        }
        Ok(ListenerInfo {
            id: u64::from(number),
            address,
            queued: Some(0),
            is_shut: false,
        })
    }

    /// Where the system has to be asked for handshakes under way: at the listeners that are shut.
    #[cfg(target_os = "linux")]
    pub(crate) fn handshakes_at(&self) -> Vec<std::net::SocketAddr> {
        let sets = self.listener_sets.iter();
        sets.flat_map(ListenerSet::handshakes_at).collect()
    }

    /// The same of one address.
    #[cfg(target_os = "linux")]
    pub(crate) fn handshakes_at_one(&self, address: u16) -> Vec<std::net::SocketAddr> {
        let sets = self.listener_sets.iter();
        sets.filter_map(|set| set.handshakes_at_one(address))
            .collect()
    }

    pub(crate) fn is_closed_to_peers(&self) -> bool {
        self.listener_sets.iter().all(ListenerSet::is_closed)
    }
}
