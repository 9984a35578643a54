//! What a server needs to be handed over, before it is: a turn, which one successor at a time has, and
//! descriptors that are held back for it.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::Shared;
use crate::address::Address;
use crate::listener::Legacy;
use crate::listener::handover::{Inode, Offer, TriggerSocket};
use crate::sync::{Flag, lock};

/// How many descriptors an upgrade takes: two for the way to the successor, and what starting a program
/// takes.
const HELD_BACK: usize = 6;

#[derive(Debug, Default)]
pub(super) struct HandoverState {
    /// A successor has its turn.
    is_taken: AtomicBool,
    /// Open files that nobody reads: their descriptors are for an upgrade of a server that has no
    /// others left.
    held_back: Mutex<Vec<File>>,
    /// There is no predecessor any more.
    succeeded: Flag,
    /// The socket at which a handover is asked for; its path is removed when this is dropped.
    trigger: Mutex<Option<TriggerSocket>>,
    /// The predecessor's, until this server is its successor.
    inherited_trigger: Mutex<Option<Offer>>,
}

impl Shared {
    /// Takes the turn of a successor; `false` where another has it.
    pub(crate) fn begin_handover(&self) -> bool {
        !self.handover.is_taken.swap(true, SeqCst)
    }

    pub(crate) fn end_handover(&self) {
        self.handover.is_taken.store(false, SeqCst);
    }

    /// Holds descriptors back, as many as an upgrade takes, or fewer where there are no more.
    pub(crate) fn hold_descriptors_back(&self) {
        let mut held = lock(&self.handover.held_back);
        while held.len() < HELD_BACK {
            let Ok(file) = File::open("/dev/null") else {
                return;
            };
            held.push(file);
        }
    }

    /// Gives them up for an upgrade. The caller sees to it that they are not taken for peers.
    pub(crate) fn give_descriptors_up(&self) {
        let held = std::mem::take(&mut *lock(&self.handover.held_back));
        drop(held);
    }

    /// What was a predecessor's is this server's.
    pub(crate) fn succeed(&self) {
        self.handover.succeeded.set();
    }

    /// Waits until it is.
    pub(crate) async fn succeeded(&self) {
        self.handover.succeeded.wait().await;
    }

    /// Keeps the socket at which a handover is asked for, as long as the server is there to be asked;
    /// the path of the one before is removed.
    pub(crate) fn set_trigger(&self, socket: Option<TriggerSocket>) {
        let old = std::mem::replace(&mut *lock(&self.handover.trigger), socket);
        drop(old);
    }

    /// Closes it for a successor, which has it, too.
    pub(crate) fn leave_trigger(&self) {
        let left = lock(&self.handover.trigger).take();
        if let Some(left) = left {
            left.leave();
        }
    }

    /// Calls `with` for it, under a lock: it is neither left nor removed meanwhile. `None` where there
    /// is none, or no more.
    pub(crate) fn with_trigger<T>(&self, with: impl FnOnce(&TriggerSocket) -> T) -> Option<T> {
        lock(&self.handover.trigger).as_ref().map(with)
    }

    pub(crate) fn trigger(&self) -> Option<(Address, Inode)> {
        self.with_trigger(|it| (it.address(), it.inode()))
    }

    /// Keeps the predecessor's until this server is its successor.
    pub(crate) fn inherit_trigger(&self, offer: Option<Offer>) {
        *lock(&self.handover.inherited_trigger) = offer;
    }

    /// The predecessor's number of it.
    pub(crate) fn inherited_trigger(&self) -> Option<u16> {
        let inherited = lock(&self.handover.inherited_trigger);
        inherited.as_ref().map(|it| it.number)
    }

    /// The names of the addresses that a successor may take over, by their numbers.
    pub(crate) fn named(&self) -> Vec<(u16, String)> {
        let names = self.addresses.names().iter().zip(0..);
        names
            .filter_map(|(name, number)| Some((number, name.clone()?)))
            .collect()
    }

    /// What was taken over of a predecessor, by the numbers of the addresses here.
    pub(crate) fn legacies(&self) -> Vec<(u16, Legacy)> {
        let legacies = self.addresses.legacies().iter().zip(0..);
        legacies
            .filter_map(|(legacy, number)| Some((number, (*legacy)?)))
            .collect()
    }

    /// What was taken over is this server's alone from now on.
    pub(crate) fn own_legacies(&self) {
        let trigger = lock(&self.handover.inherited_trigger).take();
        if let Some(trigger) = trigger {
            self.set_trigger(TriggerSocket::own(trigger));
        }
        for (number, legacy) in self.legacies() {
            for set in &self.listener_sets {
                set.own(number, legacy, &self.config);
            }
        }
    }
}
