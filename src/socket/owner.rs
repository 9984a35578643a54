//! The process that a socket belongs to.

/// The process that made a socket.
///
/// A process that is forked from it inherits the descriptor. What acts on the socket, on its path or
/// on the poller behind it, and not on the descriptor, acts on the parent's; so only its owner does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    pub(crate) fn this_process() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_this_process(self) -> bool {
        self == Self::this_process()
    }
}
