//! The addresses of a server, by their numbers: those that it was bound to, and those that were added
//! while it served. A number is never used again.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::address::Address;
#[cfg(all(feature = "handover", target_os = "linux"))]
use crate::listener::Legacy;
use crate::listener::{AnyListener, Security, bind::Bound};
use crate::sync::lock;

/// What was bound, without its address: its sockets, and whether they stay open through a drain.
type Sockets = Vec<(Vec<AnyListener>, bool)>;

/// The addresses of a server.
#[derive(Debug)]
pub(super) struct Addresses {
    /// Those that it was bound to.
    bound: Vec<Address>,
    /// The TLS of each of these that is served with it.
    tls: Vec<Option<Security>>,
    /// The names by which a successor may take these over, and what was so taken over itself.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    names: Vec<Option<String>>,
    #[cfg(all(feature = "handover", target_os = "linux"))]
    legacies: Vec<Option<Legacy>>,
    /// Which of these stay open through a drain; empty where none does.
    kept_open: Vec<bool>,
    /// Those that were added, numbered on.
    added: Mutex<Vec<(Address, Option<Security>)>>,
    has_tls: AtomicBool,
}

impl Addresses {
    /// Takes the addresses of what was bound; gives its sockets, and whether they stay open.
    pub(super) fn new(bound: Vec<Bound>) -> io::Result<(Self, Sockets)> {
        let addrs = bound.iter().map(|bound| bound.sockets[0].local_addr());
        let addrs = addrs.collect::<io::Result<_>>()?;
        let mut kept_open: Vec<_> = bound.iter().map(|it| it.keeps_open).collect();
        if !kept_open.contains(&true) {
            kept_open.clear();
        }
        let has_tls = bound.iter().any(|it| it.tls.is_some());
        #[cfg(all(feature = "handover", target_os = "linux"))]
        let (names, legacies) = bound.iter().map(|it| (it.name.clone(), it.legacy)).unzip();
        let parts = bound
            .into_iter()
            .map(|it| ((it.sockets, it.keeps_open), it.tls));
        let (sockets, tls) = parts.unzip();
        let this = Self {
            bound: addrs,
            tls,
            #[cfg(all(feature = "handover", target_os = "linux"))]
            names,
            #[cfg(all(feature = "handover", target_os = "linux"))]
            legacies,
            kept_open,
            added: Mutex::default(),
            has_tls: AtomicBool::new(has_tls),
        };
        Ok((this, sockets))
    }

    pub(super) fn bound(&self) -> &[Address] {
        &self.bound
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(super) fn names(&self) -> &[Option<String>] {
        &self.names
    }

    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(super) fn legacies(&self) -> &[Option<Legacy>] {
        &self.legacies
    }

    /// All there ever were.
    pub(super) fn all(&self) -> Vec<Address> {
        let added = lock(&self.added);
        let added = added.iter().map(|(address, _)| address);
        self.bound.iter().chain(added).cloned().collect()
    }

    /// The address of this number.
    pub(super) fn get(&self, number: u16) -> Address {
        let number = usize::from(number);
        match self.bound.get(number) {
            Some(address) => address.clone(),
            None => lock(&self.added)[number - self.bound.len()].0.clone(),
        }
    }

    /// The TLS of the address of this number.
    #[cfg_attr(not(feature = "_tls"), allow(dead_code))]
    pub(super) fn tls(&self, number: u16) -> Option<Security> {
        let number = usize::from(number);
        match self.tls.get(number) {
            Some(tls) => tls.clone(),
            None => lock(&self.added)[number - self.bound.len()].1.clone(),
        }
    }

    /// Whether any address is served with TLS.
    #[cfg_attr(not(feature = "_tls"), allow(dead_code))]
    pub(super) fn has_tls(&self) -> bool {
        // Set before the address is listened at; pairs with nothing else.
        self.has_tls.load(SeqCst)
    }

    #[inline]
    pub(super) fn keeps_open(&self, number: u16) -> bool {
        self.kept_open.get(usize::from(number)) == Some(&true)
    }

    /// Gives one more address its number.
    ///
    /// # Errors
    /// If no number is left.
    pub(super) fn add(&self, address: Address, tls: Option<Security>) -> io::Result<u16> {
        let mut added = lock(&self.added);
        let number = u16::try_from(self.bound.len() + added.len());
        let number = number.map_err(|_| {
            io::Error::other("a server can listen at 65536 addresses in its life, and has")
        })?;
        if tls.is_some() {
            self.has_tls.store(true, SeqCst);
        }
        added.push((address, tls));
        Ok(number)
    }
}
