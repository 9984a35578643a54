//! The process that made a socket.

/// The process that made a socket.
///
/// A process that is forked from the owner inherits the descriptor. Whatever acts on the socket, on
/// its path or on the poller behind it, and not on the descriptor alone, would act on the owner's:
/// so only the owner does such things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    /// The calling process.
    pub(crate) fn this_process() -> Self {
        Self(std::process::id())
    }

    /// Whether the calling process is the owner.
    pub(crate) fn is_this_process(self) -> bool {
        self == Self::this_process()
    }
}
