//! What the benchmarks share: the servers, the load that is put on them, and what the kernel says
//! about both.
//!
//! Every server is a process of its own, the running program started once more as `serve NAME`. So
//! what a server uses is what its process uses, and how it ends is how its process ends.

#![cfg(target_os = "linux")]

pub mod flood;
pub mod load;
pub mod machine;
pub mod process;
pub mod protocol;
pub mod servers;
