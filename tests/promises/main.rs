//! What is promised, promise by promise, through the public API; each body on every runtime.

#[path = "../support/mod.rs"]
mod support;

mod binding;
mod control;
mod declared;
#[cfg(all(feature = "handover", target_os = "linux"))]
mod handover;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod http_requests;
mod introspection;
mod limits;
mod lingering;
mod listeners;
mod own_transport;
mod p01_tracked;
mod p02_one_stop;
mod p03_the_door;
mod p04_the_queue;
mod p05_every_byte;
mod p05_orderly_end;
mod p06_every_request;
mod p07_idle;
mod p08_the_deadline;
mod p09_force;
mod p10_waiting_inside;
mod p11_panics;
mod p12_accept;
mod p13_back_pressure;
mod p14_dropping;
mod p15_account;
mod p17_fairness;
#[cfg(feature = "proxy")]
mod proxy;
mod scope;
mod sets;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod tls;
mod told_live;
#[cfg(all(feature = "handover", target_os = "linux"))]
mod trigger;
mod unix_sockets;
#[cfg(all(feature = "handover", target_os = "linux"))]
mod upgrades;
#[cfg(all(feature = "handover", feature = "http", target_os = "linux"))]
mod upgrades_of_http;
