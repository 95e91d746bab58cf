//! Failures that a caller can cause. They say nothing about the service, and must not open its breaker, which all
//! callers share. A caller can
//!
//! - send its request slowly, until the contract's timeout passes. So the timeout counts against the service only if at
//!   least half of that time was the service's: since the request was complete, or since the service takes no more of
//!   it;
//! - not read the answer;
//! - send a plain HTTP request so slowly that the server gives up and closes the connection;
//! - send something in a tunnel, or after an upgrade, for which the service closes the connection.

use weft_mesh::errors::Reason;

use super::{
    Answer, Call,
    state::{CallState, Tunnel},
};
use crate::{
    call::record::AttemptRecord,
    message::{code, rpc::Rpc},
    policy::{outcome::Outcome, retry::Miss},
    time::moment::Moment,
};

impl CallState {
    /// Judges the end of the call, before it is recorded: whether the caller may have caused it, and whether the service
    /// was slow.
    #[inline]
    pub(super) fn judge(&mut self, outcome: Outcome, call: &Call) {
        if self.is_excused(outcome, call) {
            self.excuse();
        } else if let Some(slow_after) = self.attempt.as_ref().and_then(AttemptRecord::slow_after) {
            self.judge_time(slow_after, call);
        }
    }

    /// Whether the caller may have caused this outcome.
    #[inline]
    pub(super) fn is_excused(&self, outcome: Outcome, call: &Call) -> bool {
        match outcome {
            // If the service says so long before the deadline, it has other reasons.
            Outcome::Grpc(code::DEADLINE_EXCEEDED) => call.is_nearly_over() && !self.has_had_its_time(call),
            Outcome::Failed(Reason::DeadlineExceeded) => !self.has_had_its_time(call),
            Outcome::Reset(_) => self.is_in_tunnel() || self.is_cut_short(call),
            Outcome::Failed(Reason::ConnectionBroke) => self.is_cut_short(call),
            _ => false,
        }
    }

    /// The outcome of the call says nothing about the service or the endpoint.
    #[cold]
    pub(super) fn excuse(&mut self) {
        if let Some(record) = &mut self.record {
            record.excuse();
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.excuse();
        }
    }

    /// Whether at least half of the call's time was the service's: the caller had sent everything, or the service took
    /// no more of it; and the caller has read what there is of the answer.
    #[cold]
    fn has_had_its_time(&self, call: &Call) -> bool {
        let Some(deadline) = call.deadline.get() else { return true };
        if matches!(self.answer, Answer::Begun { waiting, .. } if waiting > 0) {
            return false;
        }
        let Some(since) = self.waits_for_service_since() else { return false };
        2 * call.worker.moment().since(since) >= deadline.since(call.started)
    }

    /// Since when only the service keeps the call waiting: since the request is complete, or since the service takes no
    /// more of it. `None` as long as the caller keeps it waiting.
    pub(super) fn waits_for_service_since(&self) -> Option<Moment> {
        if self.request.is_over { Some(self.request.whole_at) } else { self.request.stuck_since }
    }

    fn is_in_tunnel(&self) -> bool {
        matches!(self.answer, Answer::Begun { tunnel: Tunnel::Open | Tunnel::Answered, .. })
    }

    /// Whether a server may have ended a plain HTTP request because the rest of it did not come.
    #[cold]
    fn is_cut_short(&self, call: &Call) -> bool {
        call.rpc == Rpc::No && !call.wants_tunnel && !self.request.is_over && self.request.stuck_since.is_none()
    }
}

impl Call {
    /// Whether at most a tenth of the call's time is left: a margin for clocks that differ and for the network.
    #[cold]
    fn is_nearly_over(&self) -> bool {
        self.deadline
            .get()
            .is_some_and(|deadline| 10 * deadline.since(self.worker.moment()) <= deadline.since(self.started))
    }

    /// Whether the caller may have caused this failure of a try.
    pub(super) fn is_miss_excused(&self, miss: &Miss) -> bool {
        let outcome = match miss {
            Miss::Reset(code) => Outcome::Reset(*code),
            Miss::Broke(_) => Outcome::Failed(Reason::ConnectionBroke),
            _ => return false,
        };
        self.state.borrow().is_excused(outcome, self)
    }
}

#[cfg(test)]
mod tests;
