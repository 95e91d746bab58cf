//! Values as the messages of `weft.admin.v1` have them.

use std::time::Duration;

/// A time; `None` for one that is too long for a message.
pub(super) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
