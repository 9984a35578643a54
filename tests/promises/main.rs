//! What is promised, promise by promise, through the public API; each body on every runtime.

#[path = "../support/mod.rs"]
mod support;

mod p03_the_door;
