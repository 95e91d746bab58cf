//! How long the service takes for a call: what breakers judge that open when too many calls are slow.
//!
//! The time runs until the head of the answer comes, from when only the service keeps the call waiting: the request is
//! complete, or the service takes no more of it, and the last try was sent. So no caller makes a call slow, by sending its
//! request slowly or by reading the answer slowly, nor does the mesh, by looking for the service, connecting, or waiting for
//! room: breakers are shared by all callers. A stream is judged by when it begins, not by how long it lives. A call that its
//! caller's own deadline ends says nothing: who waits for a short time only would find every service slow.

use std::time::Duration;

use super::{Answer, Call, state::CallState};

impl CallState {
    /// Notes if the service took longer than this for the call's last try.
    #[cold]
    pub(super) fn judge_time(&mut self, slow_after: Duration, call: &Call) {
        let Some(since) = self.waits_for_service_since() else { return };
        let until = match self.answer {
            Answer::Begun { at, .. } => at,
            Answer::Awaited | Answer::Over => call.worker.moment(),
        };
        let Some(attempt) = &mut self.attempt else { return };
        let Some(sent) = attempt.sent_at() else { return };
        if until.since(since.max(sent)) > slow_after {
            attempt.was_slow();
            if let Some(record) = &mut self.record {
                record.was_slow();
            }
        }
    }
}

#[cfg(test)]
mod tests;
