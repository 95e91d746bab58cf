//! What a caller can do so that a call fails in its service's stead. Such an end says nothing of the service, whose breaker
//! is all callers':
//!
//! - It sends its request slowly, until the contract's time is up. The time counts only from when the request is whole, or
//!   since the service has taken nothing of it; at least half of the time must be the service's.
//! - It does not read the answer.
//! - It sends a plain HTTP request so slowly that the server gives it up, and ends the connection.
//! - In a tunnel, or after an upgrade, it says something for which the service ends the connection.

use weft_mesh::errors::Reason;

use super::{
    Answer, Call,
    state::{State, Tunnel},
};
use crate::{
    message::{code, rpc::Rpc},
    policy::{outcome::Outcome, retry::Miss},
};

impl State {
    /// Whether the caller may have seen to it that the call ends so.
    #[inline]
    pub(super) fn is_excused(&self, outcome: Outcome, call: &Call) -> bool {
        match outcome {
            // What the service answers long before the time is up has other causes.
            Outcome::Grpc(code::DEADLINE_EXCEEDED) => call.is_nearly_over() && !self.has_had_its_time(call),
            Outcome::Failed(Reason::DeadlineExceeded) => !self.has_had_its_time(call),
            Outcome::Reset(_) => self.is_in_tunnel() || self.is_cut_short(call),
            Outcome::Failed(Reason::ConnectionBroke) => self.is_cut_short(call),
            _ => false,
        }
    }

    /// How the call ends says nothing of the service, nor of the endpoint.
    #[cold]
    pub(super) fn excuse(&mut self) {
        if let Some(record) = &mut self.record {
            record.excuse();
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.excuse();
        }
    }

    /// Whether at least half of a call's time was the service's: its caller had sent all, or the service had taken nothing
    /// more of it, and the caller has read what there is of the answer.
    #[cold]
    fn has_had_its_time(&self, call: &Call) -> bool {
        let Some(deadline) = call.deadline.get() else { return true };
        if matches!(self.answer, Answer::Begun { waiting, .. } if waiting > 0) {
            return false;
        }
        let since = match (self.request.is_over, self.request.stuck_since) {
            (true, _) => self.request.whole_at,
            (false, Some(stuck)) => stuck,
            (false, None) => return false,
        };
        2 * call.worker.moment().since(since) >= deadline.since(call.started)
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
    /// Whether less than a tenth of its time is left. Clocks and networks differ by some of it.
    #[cold]
    fn is_nearly_over(&self) -> bool {
        self.deadline
            .get()
            .is_some_and(|deadline| 10 * deadline.since(self.worker.moment()) <= deadline.since(self.started))
    }

    /// Whether the caller may have seen to it that a try comes to nothing.
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
