//! What the library does not do yet: shown by these tests, and judged as soon as it is said here
//! that it does.

/// It gives up peers that acknowledge nothing, after a time that can be set.
pub(crate) const GIVES_UP_THE_UNREACHABLE: bool = false;
