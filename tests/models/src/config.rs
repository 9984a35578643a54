//! What `shared/activity.rs` asks of a server's configuration.

use std::time::Duration;

use crate::idle::IdleWhen;

#[derive(Default)]
pub(crate) struct Config {
    pub(crate) idle_when: Option<IdleWhen>,
    pub(crate) first_byte_grace: Duration,
}

impl Config {
    pub(crate) fn watches_idle(&self) -> bool {
        false
    }
}
