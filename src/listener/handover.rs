//! Listening sockets that go from one process to its successor: what the one gives and the other takes.
//!
//! 1. A socket is known by the name that the user gave it and by what it is bound to, and each by a
//!    number of its own: two that were asked for alike are two.
//! 2. Until a successor is ready both processes may accept at it, and neither does anything to the
//!    socket that would be done to the other, too. From then on it is the successor's alone
//!    ([`RawListener::own`](super::RawListener::own)), with its path; the predecessor closes its
//!    descriptor, and neither shuts nor sweeps it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::inherited::Adopted;
use super::set::{BoundListener, ListenerSet};
use super::unix::{File as SocketFile, bind_private};
use super::{AnyListener, RawListener};
use crate::address::Address;
use crate::config::Config;
use crate::sync::lock;
use crate::transport::Engine;

/// A file, by its device and inode.
pub(crate) type Inode = (u64, u64);

/// The sockets of one address of a predecessor.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The predecessor's number of it.
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) address: Address,
    /// The file of a Unix socket that has a path.
    pub(crate) inode: Option<Inode>,
    /// One, or as many as the predecessor had shards.
    pub(crate) sockets: Vec<OwnedFd>,
    /// It is the socket at which a handover is asked for, and has no name.
    pub(crate) is_trigger: bool,
}

/// What was taken over of an address, as long as it has to be remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Legacy {
    /// The predecessor's number of the address.
    pub(crate) number: u16,
    pub(super) inode: Option<Inode>,
}

/// What a predecessor has offered, and no listener has taken over yet.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Mutex<Vec<Offer>>);

impl Inherited {
    pub(crate) fn new(offers: Vec<Offer>) -> Self {
        Self(Mutex::new(offers))
    }

    /// The names that sockets are left of.
    pub(crate) fn names(&self) -> Vec<String> {
        let left = lock(&self.0);
        let listeners = left.iter().filter(|it| !it.is_trigger);
        let mut names: Vec<_> = listeners.map(|it| it.name.clone()).collect();
        names.dedup();
        names
    }

    /// Takes the sockets of this name that are bound to one of these addresses; port 0 is any.
    pub(super) fn take_tcp(&self, name: &str, wanted: &[SocketAddr]) -> Vec<Offer> {
        let fits = |bound: &SocketAddr| {
            wanted
                .iter()
                .any(|it| it.ip() == bound.ip() && (it.port() == 0 || it.port() == bound.port()))
        };
        let fits = |it: &Address| matches!(it, Address::Tcp(bound) if fits(bound));
        self.take(|it| !it.is_trigger && it.name == name && fits(&it.address))
    }

    /// The same of a Unix socket.
    pub(super) fn take_unix(&self, name: &str, wanted: &Address) -> Vec<Offer> {
        let wanted = absolute(wanted);
        self.take(|it| !it.is_trigger && it.name == name && it.address == wanted)
    }

    /// Takes the socket at which a handover is asked for, if it is at this path.
    pub(crate) fn take_trigger(&self, path: &Path) -> Option<Offer> {
        let wanted = absolute(&Address::Unix(path.to_owned()));
        self.take(|it| it.is_trigger && it.address == wanted).pop()
    }

    fn take(&self, is_wanted: impl Fn(&Offer) -> bool) -> Vec<Offer> {
        let mut left = lock(&self.0);
        let (wanted, others) = std::mem::take(&mut *left).into_iter().partition(is_wanted);
        *left = others;
        wanted
    }

    /// Closes what no listener has taken over.
    pub(crate) fn close(&self) {
        let left = std::mem::take(&mut *lock(&self.0));
        drop(left);
    }
}

/// The address that a predecessor gives for this one.
fn absolute(address: &Address) -> Address {
    match address {
        Address::Unix(path) => std::path::absolute(path).map_or(address.clone(), Address::Unix),
        other => other.clone(),
    }
}

/// The socket at which a handover is asked for.
#[derive(Debug)]
pub(crate) struct TriggerSocket {
    /// It is dropped, and the path removed, before the socket is closed.
    file: SocketFile,
    listener: Arc<UnixListener>,
}

impl TriggerSocket {
    /// Binds the path, with its mode in place before anybody can connect.
    pub(crate) fn bind(path: PathBuf) -> io::Result<Self> {
        let (listener, file) = bind_private(path)?;
        let listener = Arc::new(listener);
        Ok(Self { file, listener })
    }

    /// The predecessor's is this process's from now on, with its path and its queue.
    pub(crate) fn own(offer: Offer) -> Option<Self> {
        let (Address::Unix(path), Some(inode)) = (offer.address, offer.inode) else {
            return None;
        };
        let listener = offer.sockets.into_iter().next()?;
        Some(Self {
            file: SocketFile::inherited(path, inode),
            listener: Arc::new(listener.into()),
        })
    }

    /// The path, and the queue, are a successor's.
    pub(crate) fn leave(mut self) {
        self.file.forget();
    }

    pub(crate) fn listener(&self) -> &Arc<UnixListener> {
        &self.listener
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.file.path().to_owned())
    }

    pub(crate) fn inode(&self) -> Inode {
        self.file.inode()
    }
}

impl Offer {
    /// Registers the sockets with the engines, in turn.
    pub(super) fn adopt(self, engines: &[Engine]) -> io::Result<(Vec<AnyListener>, Legacy)> {
        let legacy = Legacy {
            number: self.number,
            inode: self.inode,
        };
        let sockets = self.sockets.into_iter().zip(engines.iter().cycle());
        let adopt = |(socket, engine): (OwnedFd, &Engine)| {
            let raw = Adopted::try_from(socket)?.into_raw(engine)?;
            Ok(AnyListener::Socket(raw))
        };
        Ok((sockets.map(adopt).collect::<io::Result<_>>()?, legacy))
    }
}

/// What a predecessor does with its listeners.
impl ListenerSet {
    /// How many sockets this set has of an address, and the file of one.
    pub(crate) fn sockets_of(&self, address: u16) -> (usize, Option<Inode>) {
        let mut listeners = lock(&self.listeners);
        let mut inode = None;
        let sockets = listeners.of(address).filter_map(BoundListener::raw);
        let count = sockets.inspect(|raw| inode = inode.or(raw.inode())).count();
        (count, inode)
    }

    /// Calls `with` for one socket of an address, under the set's lock, so that it stays open
    /// meanwhile; `None` where it is gone. A duplicate would take a descriptor, and there may be none.
    pub(crate) fn with_socket<T>(
        &self,
        address: u16,
        number: usize,
        with: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Option<T> {
        let mut listeners = lock(&self.listeners);
        let mut sockets = listeners.of(address).filter_map(BoundListener::raw);
        sockets.nth(number).map(|raw| with(raw.descriptor()))
    }

    /// Closes these listeners at once in all sets, without a sweep: their queues are a successor's;
    /// `false`, and nothing is done, where one was shut meanwhile, which shut it for the successor, too.
    pub(crate) fn hand_over(sets: &[Self], addresses: &[u16]) -> bool {
        let mut locked: Vec<_> = sets.iter().map(|set| lock(&set.listeners)).collect();
        let is_handed = |it: &BoundListener| addresses.contains(&it.origin.address);
        let is_any_shut = locked.iter().any(|listeners| {
            let mut handed = listeners.all.iter().filter(|it| is_handed(it));
            handed.any(|it| listeners.is_shut || it.ending.is_some())
        });
        if is_any_shut {
            return false;
        }
        let mut closed = Vec::new();
        for listeners in &mut locked {
            let all = std::mem::take(&mut listeners.all);
            let (handed, kept): (Vec<_>, _) = all.into_iter().partition(is_handed);
            listeners.all = kept;
            closed.extend(handed);
        }
        for raw in closed.iter_mut().filter_map(BoundListener::raw) {
            raw.forget_path();
        }
        drop(locked);
        drop(closed);
        true
    }

    /// Runs `act` while no peer is accepted at any listener of these sets: what it opens gets the
    /// descriptors that there are.
    pub(crate) fn keep_still<T>(sets: &[&Self], act: impl FnOnce() -> T) -> T {
        let _locked: Vec<_> = sets.iter().map(|set| lock(&set.listeners)).collect();
        act()
    }
}

/// What a successor does with them.
impl ListenerSet {
    /// The sockets of this address are this process's alone from now on, and have its settings.
    pub(crate) fn own(&self, address: u16, legacy: Legacy, config: &Config) {
        let mut listeners = lock(&self.listeners);
        for raw in listeners.of(address).filter_map(BoundListener::raw) {
            raw.own(legacy.inode, config);
        }
    }
}

impl BoundListener {
    fn raw(&mut self) -> Option<&mut (dyn RawListener + 'static)> {
        match &mut self.listener {
            AnyListener::Socket(raw) => Some(&mut **raw),
            AnyListener::Custom(_) => None,
        }
    }
}
