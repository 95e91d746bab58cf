//! What is noted of a request for which no call starts.

use crate::{message::failure::Failure, thread::worker::Worker};

/// Counts and logs the request, which is answered with this failure.
pub(super) fn note(worker: &Worker, failure: &Failure) {
    worker.shared.metrics.failure(failure.reason);
    worker.log(|| format!("call refused ({}): {}", failure.reason.as_str(), failure.message));
}
