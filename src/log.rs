//! The macros of the crate `log`, as this crate calls them: a logger is code of others, so none is
//! called under a lock.

pub(crate) use ::log::Level;

/// Makes macros that check this before they log. Each is defined under a second name, since `warn` is
/// also an attribute. The first argument is the dollar sign of the macros that are made.
macro_rules! checked {
    ($d:tt $($macro:ident as $name:ident),+) => {
        $(
            macro_rules! $name {
                ($d($d arguments:tt)+) => {{
                    $crate::sync::assert_unlocked();
                    ::log::$macro!($d($d arguments)+)
                }};
            }
            pub(crate) use $name as $macro;
        )+
    };
}

checked!($ debug as at_debug, info as at_info, warn as at_warn, error as at_error, log as at_level);
