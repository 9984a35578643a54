//! How much one task may read before the other tasks of its thread have their turn.

use std::cell::Cell;

/// How many reads a task may make in one turn.
pub(crate) const READ_BUDGET: u32 = 32;

thread_local! {
    static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// Whether the running task may go on reading; on a thread that is no worker, always.
pub(crate) fn is_left() -> bool {
    LEFT.get() > 0
}

/// The running task has read something.
pub(crate) fn spend() {
    let left = LEFT.get();
    if left != u32::MAX {
        LEFT.set(left.saturating_sub(1));
    }
}

/// Runs a task with a budget of its own; gives whether the task used it up.
pub(crate) fn with_budget(run: impl FnOnce()) -> bool {
    LEFT.set(READ_BUDGET);
    run();
    LEFT.replace(u32::MAX) == 0
}
