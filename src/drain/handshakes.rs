//! The handshakes that were under way when the listeners were shut, and how long they are waited
//! for.
//!
//! This waits for the kernel and the network, whose time is not that of the runtime's clock (a
//! test's clock may stand still). So the pauses are slept on a thread, where the kernel is asked
//! then, too: by the `blocking` crate's threads while there is a runtime, and by a thread of the
//! server's own while there is none.

#[cfg(target_os = "linux")]
pub(super) use self::linux::Handshakes;
#[cfg(not(target_os = "linux"))]
pub(super) use self::others::Handshakes;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::future::Future;
    use std::io;
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::thread;
    use std::time::{Duration, Instant};

    use crate::listener::handshakes::{Handshake, under_way};
    use crate::log;
    use crate::shared::Shared;

    /// How long after one look the next is made: the first time, and at most. The pause doubles.
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const LAST_PAUSE: Duration = Duration::from_millis(25);

    /// How long the listeners are kept where the kernel does not tell of handshakes: for a round
    /// trip across an ocean.
    const BLIND_GRACE: Duration = Duration::from_millis(100);

    type Found = io::Result<HashSet<Handshake>>;

    /// The handshakes that were under way at the first look and are not over yet.
    pub(in crate::drain) struct Handshakes {
        /// The addresses of the listeners that are shut.
        listeners: Vec<SocketAddr>,
        left: HashSet<Handshake>,
        /// The kernel does not tell: handshakes are taken to be under way until `until`.
        is_blind: bool,
        /// When they are no longer waited for.
        until: Option<Instant>,
        /// How long the next look waits.
        pause: Duration,
        /// The look under way. It is kept here, and not in the future of `look_again`: that future
        /// is dropped whenever a peer comes, and made again, and each time a new pause would begin.
        look: Option<Pin<Box<dyn Future<Output = Found> + Send>>>,
    }

    impl Handshakes {
        /// Before the first look; `None` where there is no listener to look at, or no time.
        fn new(shared: &Shared) -> Option<Self> {
            Self::at(shared.handshakes_at(), shared)
        }

        /// The same at the listener of one address, to be looked at by
        /// [`look_first_blocking`](Self::look_first_blocking).
        pub(in crate::drain) fn at_one(shared: &Shared, address: u16) -> Option<Self> {
            Self::at(shared.handshakes_at_one(address), shared)
        }

        fn at(listeners: Vec<SocketAddr>, shared: &Shared) -> Option<Self> {
            let grace = shared.config.handshake_grace;
            if listeners.is_empty() || grace.is_zero() {
                return None;
            }
            Some(Self {
                listeners,
                left: HashSet::new(),
                is_blind: false,
                until: Instant::now().checked_add(grace),
                pause: FIRST_PAUSE,
                look: None,
            })
        }

        /// Looks a millisecond from now: by then a SYN that another processor was taking up when
        /// the listener was shut is listed. `None` where no handshake is under way.
        pub(in crate::drain) async fn look(shared: &Shared) -> Option<Self> {
            let mut this = Self::new(shared)?;
            let found = this.ask().await;
            this.found(found);
            (!this.is_over()).then_some(this)
        }

        /// Looks at once, on the calling thread; `None` where no handshake is under way.
        pub(in crate::drain) fn look_now(shared: &Shared) -> Option<Self> {
            let mut this = Self::new(shared)?;
            let found = under_way(&this.listeners);
            this.found(found);
            (!this.is_over()).then_some(this)
        }

        /// The first look, as [`look`](Self::look), on the calling thread, which sleeps until then.
        pub(in crate::drain) fn look_first_blocking(&mut self) {
            let found = ask_after(self.pause, &self.listeners);
            self.found(found);
        }

        /// Looks again after a pause, longer each time.
        pub(in crate::drain) async fn look_again(&mut self) {
            let found = self.ask().await;
            self.found_again(found);
        }

        /// As [`look_again`](Self::look_again), on the calling thread, which sleeps for the pause.
        pub(in crate::drain) fn look_again_blocking(&mut self) {
            let found = ask_after(self.pause, &self.listeners);
            self.found_again(found);
        }

        /// Whether no handshake is left to be waited for, or none any longer.
        pub(in crate::drain) fn is_over(&self) -> bool {
            let is_late = self.until.is_some_and(|until| until <= Instant::now());
            is_late || (self.left.is_empty() && !self.is_blind)
        }

        /// Waits for the look under way, or for a new one, which begins with a pause.
        async fn ask(&mut self) -> Found {
            let look = self.look.get_or_insert_with(|| {
                let (pause, listeners) = (self.pause, self.listeners.clone());
                Box::pin(blocking::unblock(move || ask_after(pause, &listeners)))
            });
            let found = look.await;
            self.look = None;
            found
        }

        /// Takes in the first look: only what it found is waited for.
        fn found(&mut self, found: Found) {
            match found {
                Ok(found) => self.left = found,
                Err(error) => {
                    log::debug!(target: "gracious", "cannot look for handshakes: {error}");
                    let blind = Instant::now().checked_add(BLIND_GRACE);
                    self.until = self.until.into_iter().chain(blind).min();
                    self.is_blind = true;
                }
            }
        }

        /// Takes in a later look. A handshake that it found and the first did not is a successor's
        /// on the same port, or a scanner's.
        fn found_again(&mut self, found: Found) {
            self.pause = (self.pause * 2).min(LAST_PAUSE);
            // After a look that failed those that were left are still waited for.
            if let Ok(still) = found {
                self.left.retain(|handshake| still.contains(handshake));
            }
        }
    }

    /// Asks the kernel, after a pause.
    fn ask_after(pause: Duration, listeners: &[SocketAddr]) -> Found {
        thread::sleep(pause);
        under_way(listeners)
    }
}

/// On other systems a listener cannot be shut without being closed: to keep it would let new peers
/// in. So no look finds any handshake, and the methods below are never called.
#[cfg(not(target_os = "linux"))]
mod others {
    use crate::shared::Shared;

    pub(in crate::drain) enum Handshakes {}

    impl Handshakes {
        pub(in crate::drain) async fn look(_shared: &Shared) -> Option<Self> {
            None
        }

        pub(in crate::drain) fn look_now(_shared: &Shared) -> Option<Self> {
            None
        }

        pub(in crate::drain) async fn look_again(&mut self) {
            match *self {}
        }

        pub(in crate::drain) fn look_again_blocking(&mut self) {
            match *self {}
        }

        pub(in crate::drain) fn is_over(&self) -> bool {
            match *self {}
        }
    }
}
