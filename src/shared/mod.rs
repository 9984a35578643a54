//! What a server's task, its connections and its handles have in common.

pub(crate) mod connection;
pub(crate) mod events;
pub(crate) mod id_map;
pub(crate) mod registry;
