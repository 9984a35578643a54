//! The handshakes that were under way when the listeners were shut, and how long they are waited for.
//!
//! What is waited for here is the kernel and the network, whose time is not that of the runtime's
//! clock: so the looks are made, and their pauses slept, on a thread for what blocks.

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
    use crate::shared::Shared;

    /// When the kernel is asked again: at first, and at most.
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const LAST_PAUSE: Duration = Duration::from_millis(25);

    /// How long handshakes have where the kernel does not tell of them: a round trip across an ocean.
    const BLIND_GRACE: Duration = Duration::from_millis(100);

    type Found = io::Result<HashSet<Handshake>>;

    pub(in crate::drain) struct Handshakes {
        listeners: Vec<SocketAddr>,
        left: HashSet<Handshake>,
        /// The kernel does not tell: they are taken to be under way until `until`.
        is_blind: bool,
        /// When they are no longer waited for.
        until: Option<Instant>,
        pause: Duration,
        /// The look under way. Kept here, so that a future which is dropped because a peer came, and
        /// made again, begins no new pause.
        look: Option<Pin<Box<dyn Future<Output = Found> + Send>>>,
    }

    impl Handshakes {
        /// `None` where nothing is to be looked for.
        fn new(shared: &Shared) -> Option<Self> {
            let listeners = shared.handshakes_at();
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

        /// Looks a millisecond from now; `None` where none is under way.
        pub(in crate::drain) async fn look(shared: &Shared) -> Option<Self> {
            let mut this = Self::new(shared)?;
            let found = this.ask().await;
            this.found(found);
            (!this.is_over()).then_some(this)
        }

        /// Looks at once, on this thread; `None` where none is under way.
        pub(in crate::drain) fn look_now(shared: &Shared) -> Option<Self> {
            let mut this = Self::new(shared)?;
            let found = under_way(&this.listeners);
            this.found(found);
            (!this.is_over()).then_some(this)
        }

        /// Looks again after a pause, longer each time.
        pub(in crate::drain) async fn look_again(&mut self) {
            let found = self.ask().await;
            self.found_again(found);
        }

        /// As [`look_again`](Self::look_again), on a thread of its own.
        pub(in crate::drain) fn look_again_blocking(&mut self) {
            let found = ask_after(self.pause, &self.listeners);
            self.found_again(found);
        }

        /// Whether none is left to be waited for.
        pub(in crate::drain) fn is_over(&self) -> bool {
            let is_late = self.until.is_some_and(|until| until <= Instant::now());
            is_late || (self.left.is_empty() && !self.is_blind)
        }

        async fn ask(&mut self) -> Found {
            let look = self.look.get_or_insert_with(|| {
                let (pause, listeners) = (self.pause, self.listeners.clone());
                Box::pin(blocking::unblock(move || ask_after(pause, &listeners)))
            });
            let found = look.await;
            self.look = None;
            found
        }

        fn found(&mut self, found: Found) {
            match found {
                Ok(found) => self.left = found,
                Err(error) => {
                    log::debug!(target: "gracious", error:%; "cannot look for handshakes: {error}");
                    let blind = Instant::now().checked_add(BLIND_GRACE);
                    self.until = self.until.into_iter().chain(blind).min();
                    self.is_blind = true;
                }
            }
        }

        fn found_again(&mut self, found: Found) {
            self.pause = (self.pause * 2).min(LAST_PAUSE);
            // A look that fails tells nothing new.
            if let Ok(still) = found {
                self.left.retain(|handshake| still.contains(handshake));
            }
        }
    }

    fn ask_after(pause: Duration, listeners: &[SocketAddr]) -> Found {
        thread::sleep(pause);
        under_way(listeners)
    }
}

/// On other systems peers cannot be kept out of an open listener: to wait would only let new ones in.
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
