//! How long the service takes for a call: what breakers judge that open when too many calls are slow.
//!
//! The time runs from when only the service keeps the call waiting until the head of the answer comes. So no caller makes
//! a call slow, by sending its request slowly or by reading the answer slowly: breakers are shared by all callers. And a
//! stream is judged by when it begins, not by how long it lives.

use std::time::Duration;

use super::{Answer, Call, state::CallState};

impl CallState {
    /// Notes if the service took longer than this for the call, or for its last try.
    #[cold]
    pub(super) fn judge_time(&mut self, slow_after: Duration, call: &Call) {
        let Some(since) = self.waits_for_service_since() else { return };
        let is_elsewhere = call.tries.fallbacks() > 0;
        let until = match self.answer {
            Answer::Begun { at, .. } => at,
            Answer::Awaited | Answer::Over => call.worker.moment(),
        };
        let Some(attempt) = &mut self.attempt else { return };
        // Earlier tries were at other endpoints; those before a fallback at another service.
        let of_attempt = since.max(attempt.began());
        if until.since(of_attempt) > slow_after {
            attempt.was_slow();
        }
        if let Some(record) = &mut self.record
            && until.since(if is_elsewhere { of_attempt } else { since }) > slow_after
        {
            record.was_slow();
        }
    }
}

#[cfg(test)]
mod tests;
