//! Values in the form of the messages of `weft.admin.v1`.

use std::time::Duration;

/// A duration; `None` if it is too long for a message.
pub(super) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
