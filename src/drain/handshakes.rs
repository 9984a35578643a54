//! The handshakes that were under way when the listeners were shut, and how long they are waited for.

#[cfg(target_os = "linux")]
pub(super) use self::linux::Handshakes;
#[cfg(not(target_os = "linux"))]
pub(super) use self::others::Handshakes;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::io;
    use std::net::SocketAddr;
    use std::thread;
    use std::time::{Duration, Instant};

    use crate::listener::handshakes::{Handshake, under_way};
    use crate::runtime::sleep_until;
    use crate::shared::Shared;

    /// When the system is asked again: at first, and at most.
    const FIRST_LOOK: Duration = Duration::from_millis(1);
    const LAST_LOOK: Duration = Duration::from_millis(25);

    /// How long handshakes have where the system does not tell of them: a round trip across an ocean.
    const BLIND_GRACE: Duration = Duration::from_millis(100);

    pub(in crate::drain) struct Handshakes {
        listeners: Vec<SocketAddr>,
        left: HashSet<Handshake>,
        /// The system does not tell: they are taken to be under way until `until`.
        is_blind: bool,
        /// When they are no longer waited for.
        until: Option<Instant>,
        is_late: bool,
        /// When to look again, and the pause before that.
        next: Option<Instant>,
        pause: Duration,
    }

    impl Handshakes {
        fn none(shared: &Shared) -> Self {
            let grace = shared.config.handshake_grace;
            Self {
                listeners: shared.handshakes_at(),
                left: HashSet::new(),
                is_blind: false,
                until: shared.clock.now().checked_add(grace),
                is_late: grace.is_zero(),
                next: None,
                pause: FIRST_LOOK,
            }
        }

        /// Looks a millisecond from now.
        pub(in crate::drain) async fn look(shared: &Shared) -> Self {
            let mut this = Self::none(shared);
            if this.listeners.is_empty() || this.is_late {
                return this;
            }
            shared.clock.sleep(FIRST_LOOK).await;
            let found = this.ask().await;
            this.found(shared, found);
            this
        }

        /// Looks at once, on this thread; `None` where none is under way.
        pub(in crate::drain) fn look_now(shared: &Shared) -> Option<Self> {
            let mut this = Self::none(shared);
            if this.listeners.is_empty() || this.is_late {
                return None;
            }
            let found = under_way(&this.listeners);
            this.found(shared, found);
            (!this.is_over()).then_some(this)
        }

        /// Looks again after a pause, longer each time.
        pub(in crate::drain) async fn look_again(&mut self, shared: &Shared) {
            // Kept: a future that is dropped for a peer's sake, and made again, begins no new pause.
            if self.next.is_none() {
                self.next = shared.clock.now().checked_add(self.pause);
            }
            sleep_until(&*shared.clock, self.next).await;
            let found = self.ask().await;
            self.found_again(shared, found);
        }

        /// As [`look_again`](Self::look_again), on a thread of its own.
        pub(in crate::drain) fn look_again_blocking(&mut self, shared: &Shared) {
            thread::sleep(self.pause);
            let found = under_way(&self.listeners);
            self.found_again(shared, found);
        }

        /// Whether none is left to be waited for.
        pub(in crate::drain) fn is_over(&self) -> bool {
            self.is_late || (self.left.is_empty() && !self.is_blind)
        }

        /// A look takes up to some milliseconds: not on a thread that runs handlers.
        async fn ask(&self) -> io::Result<HashSet<Handshake>> {
            let listeners = self.listeners.clone();
            blocking::unblock(move || under_way(&listeners)).await
        }

        fn found(&mut self, shared: &Shared, found: io::Result<HashSet<Handshake>>) {
            match found {
                Ok(found) => self.left = found,
                Err(error) => {
                    log::debug!(target: "gracious", error:%; "cannot look for handshakes: {error}");
                    let blind = shared.clock.now().checked_add(BLIND_GRACE);
                    self.until = self.until.into_iter().chain(blind).min();
                    self.is_blind = true;
                }
            }
        }

        fn found_again(&mut self, shared: &Shared, found: io::Result<HashSet<Handshake>>) {
            self.pause = (self.pause * 2).min(LAST_LOOK);
            self.next = None;
            let now = shared.clock.now();
            self.is_late = self.until.is_some_and(|until| until <= now);
            // A look that fails tells nothing new.
            if let Ok(still) = found {
                self.left.retain(|handshake| still.contains(handshake));
            }
        }
    }
}

/// On other systems peers cannot be kept out of an open listener: to wait would only let new ones in.
#[cfg(not(target_os = "linux"))]
mod others {
    use crate::shared::Shared;

    pub(in crate::drain) struct Handshakes;

    impl Handshakes {
        pub(in crate::drain) async fn look(_shared: &Shared) -> Self {
            Self
        }

        pub(in crate::drain) fn look_now(_shared: &Shared) -> Option<Self> {
            None
        }

        pub(in crate::drain) async fn look_again(&mut self, _shared: &Shared) {}

        pub(in crate::drain) fn look_again_blocking(&mut self, _shared: &Shared) {}

        pub(in crate::drain) fn is_over(&self) -> bool {
            true
        }
    }
}
