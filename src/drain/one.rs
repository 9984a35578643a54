//! The end of one listener while the others go on, and the beginning of one.
//!
//! It is shut as all are at a stop, and by the same means. Then the accept loops go on asking it, and
//! so serve those in its queue, and those whose handshake comes to its end, as they serve others. When
//! no handshake is left it is asked a last time, and closed as soon as nobody is queued.

use std::io;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use super::handshakes::Handshakes;
use crate::lifecycle::Phase;
use crate::listener::bind::{self, Source};
use crate::log;
use crate::report::ListenerInfo;
use crate::shared::Shared;
use crate::transport::Engine;

/// Shuts one listener; `false` where there is none, or it was shut before.
pub(crate) fn shut(shared: &Arc<Shared>, address: u16) -> bool {
    if shared.is_forked() || !shared.shut_one(address) {
        return false;
    }
    log::info!(target: "gracious", "no new peers are taken at {}", shared.address(address));
    #[cfg(target_os = "linux")]
    if let Some(mut handshakes) = Handshakes::at_one(shared, address) {
        // Pauses and looks block, and no runtime has to be there for them.
        let shared = shared.clone();
        let wait = move || {
            handshakes.look_first_blocking();
            while !handshakes.is_over() && !shared.is_closed_to_peers() {
                handshakes.look_again_blocking();
            }
            shared.close_one(address);
        };
        blocking::unblock(wait).detach();
        return true;
    }
    shared.close_one(address);
    true
}

/// Binds what is to be listened on beside the others, and begins to accept there.
pub(crate) async fn add(shared: Arc<Shared>, source: Source) -> io::Result<Vec<ListenerInfo>> {
    let serves = || {
        // From the call that serves on: its task may not have begun yet.
        let is_served = shared.serving_since().is_some();
        is_served && shared.latch.phase() < Phase::Draining && !shared.is_forked()
    };
    if !serves() {
        return Err(not_serving());
    }
    let shards = shared.listener_sets.iter().filter(|set| !set.keeps_open);
    let engines: Vec<Engine> = (0..shards.count() as u16)
        .map(|shard| shared.engine(shard))
        .collect();
    let beside = shared.all_addrs();
    let bound = bind::bind(vec![source], &shared.config, &engines, &beside, None).await?;
    let infos = bound.into_iter().map(|bound| shared.add(bound));
    let infos = infos.collect::<io::Result<Vec<_>>>()?;
    if !serves() {
        // A stop has come since the look above: it has closed what was added, or will.
        return Err(not_serving());
    }
    for info in &infos {
        log::info!(target: "gracious", "listening on {}, too", info.address);
    }
    Ok(infos)
}

fn not_serving() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "cannot listen on one more address: the server does not serve",
    )
}
