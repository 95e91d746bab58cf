//! How long the service takes for a call: what breakers judge that open when too many calls are slow.
//!
//! The time runs from when only the service keeps the call waiting until the head of the answer comes. So no caller makes
//! a call slow, by sending its request slowly or by reading the answer slowly: breakers are shared by all callers. And a
//! stream is judged by when it begins, not by how long it lives.

use std::time::Duration;

use super::{Answer, Call, state::State};

impl State {
    /// Notes if the service took longer than this for the call, or for its last try.
    #[cold]
    pub(super) fn judge_time(&mut self, slow_after: Duration, call: &Call) {
        let Some(since) = self.waits_for_service_since() else { return };
        let until = match self.answer {
            Answer::Begun { at, .. } => at,
            Answer::Awaited | Answer::Over => call.worker.moment(),
        };
        if let Some(record) = &mut self.record
            && until.since(since) > slow_after
        {
            record.was_slow();
        }
        // Earlier tries were at other endpoints.
        if let Some(attempt) = &mut self.attempt
            && until.since(since.max(attempt.began())) > slow_after
        {
            attempt.was_slow();
        }
    }
}

#[cfg(test)]
mod tests;
