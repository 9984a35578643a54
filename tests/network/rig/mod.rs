//! A wide-area link of one's own, and what is measured on it.
//!
//! Two network namespaces, each with a TUN device, and a [relay](relay) between them that delays,
//! loses and reorders packets by a seed. The servers are processes of their own in one of them, the
//! load is a thread in the other. The tests and the benchmark `network` share it.

#![allow(dead_code, unreachable_pub)]

pub mod handler;
pub mod link;
pub mod load;
pub mod namespace;
pub mod process;
pub mod relay;
pub mod scenarios;
pub mod server;
pub mod sys;
pub mod table;
