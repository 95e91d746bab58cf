//! How far a call is, and the one place where it ends.

use tokio::task::AbortHandle;
use weft_mesh::limits;
use weft_wire::Code;

use super::{Call, Side, request::Request};
use crate::{
    call::record::{AttemptRecord, CallRecord},
    message::{
        code,
        rpc::{BodyStatus, Rpc},
    },
    policy::outcome::Outcome,
    thread::{
        account::{Charge, Counted},
        slots::CallSlot,
    },
};

/// What changes of a call while it runs.
pub(super) struct State {
    pub(super) endpoint: Option<Side>,
    /// The endpoint of a call that is over, and what of its answer is still under way to the caller: it gets its window
    /// back as that goes.
    pub(super) unreleased: Option<(Side, usize)>,
    /// Who is charged for the bytes of the answer that wait for the caller of an inbound call.
    pub(super) charge: Option<Charge>,
    pub(super) request: Request,
    pub(super) answer: Answer,
    /// Bytes of the answer's body that have come.
    pub(super) response_bytes: u64,
    /// How many heads have come before the final one.
    pub(super) interim_answers: u32,
    /// Reads from the answer's body how the call ended, where it says so there.
    pub(super) body_status: Option<Box<BodyStatus>>,
    pub(super) record: Option<CallRecord>,
    pub(super) attempt: Option<AttemptRecord>,
    /// The task in which its steps wait.
    pub(super) waiting: Option<AbortHandle>,
    pub(super) slot: Option<CallSlot>,
    /// Bytes of large header lists, which are kept for as long as the call runs. Hardly any call has one.
    pub(super) lists: Option<Box<Counted>>,
}

#[cold]
pub(super) fn count_list(lists: &mut Option<Box<Counted>>, slot: &CallSlot, bytes: usize) {
    let lists = lists.get_or_insert_with(|| Box::new(slot.counted()));
    lists.set(lists.held() + bytes);
}

/// How far the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Awaited,
    /// The head has been passed on.
    Begun {
        rpc: Rpc,
        /// How the call ended, by its head.
        outcome: Option<Outcome>,
        /// Bytes that wait for the caller's window.
        waiting: usize,
        tunnel: Tunnel,
    },
    /// The call has ended; what it has sent may still be under way.
    Over,
}

/// In a tunnel either direction may end before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tunnel {
    /// It is an ordinary answer.
    No,
    Open,
    /// The endpoint has sent all; the caller has not.
    Answered,
}

impl State {
    /// Nobody will say any more what of the answer has gone on: as if all had.
    pub(super) fn release_all(&mut self) {
        if let Some((endpoint, left)) = self.unreleased.take() {
            endpoint.release(left);
        }
        self.charge = None;
    }

    /// The call keeps another header list of so many bytes until its end. See [`crate::thread::account`].
    #[inline]
    pub(super) fn keeps_list(&mut self, bytes: usize) {
        if bytes > limits::UNCOUNTED_LIST_BYTES
            && let Some(slot) = &self.slot
        {
            count_list(&mut self.lists, slot, bytes);
        }
    }

    /// Bytes of the answer wait for the caller.
    #[cold]
    pub(super) fn charge(&mut self, caller: &Side, bytes: usize) {
        if self.charge.is_none() {
            self.charge = caller.load().map(Charge::new);
        }
        if let Some(charge) = &mut self.charge {
            charge.add(bytes);
        }
    }

    /// The head has been sent to an endpoint; what else has come follows.
    pub(super) fn begin_try(&mut self, endpoint: Side, is_head_all: bool, call: &Call) {
        self.waiting = None;
        (self.request.sent, self.request.waiting) = (0, 0);
        self.request.charge = None;
        if !is_head_all {
            self.request.resend(&endpoint, &call.caller, &mut self.slot, &call.worker);
        }
        self.request.stuck_since = (self.request.waiting > 0).then_some(call.worker.moment());
        self.endpoint = Some(endpoint);
    }

    /// The answer is whole. A tunnel goes on until the caller has sent all, too.
    pub(super) fn answered(&mut self, call: &Call) {
        match &mut self.answer {
            Answer::Begun { tunnel: tunnel @ Tunnel::Open, .. } if !self.request.is_over => *tunnel = Tunnel::Answered,
            _ => self.end(call, None),
        }
    }

    /// The answer is whole. How it ended is in its trailers, or else in its body, or else in its head.
    pub(super) fn end(&mut self, call: &Call, by_trailers: Option<Outcome>) {
        let by_body = || self.body_status.as_ref().and_then(|body_status| body_status.code()).map(Outcome::Grpc);
        let by_head = || match self.answer {
            Answer::Begun { outcome, .. } => outcome,
            Answer::Awaited | Answer::Over => None,
        };
        self.settle(by_trailers.or_else(by_body).or_else(by_head).unwrap_or(Outcome::Grpc(code::UNKNOWN)), call);
        self.close(call);
    }

    /// Counts what a tunnel has carried, while it lives: it may live for long.
    pub(super) fn count_bytes(&self, sent: usize, received: usize) {
        if let Some(record) = &self.record {
            record.carried(sent, received);
        }
    }

    pub(super) fn settle(&mut self, outcome: Outcome, call: &Call) {
        if self.is_excused(outcome, call) {
            self.excuse();
        }
        if let Some(record) = &mut self.record {
            record.ended(outcome);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.ended(outcome);
        }
    }

    /// The one place where calls end: nothing may refer to them after, and what was held for them is given back.
    pub(super) fn close(&mut self, call: &Call) {
        let waiting = match self.answer {
            Answer::Begun { waiting, .. } => waiting,
            Answer::Awaited | Answer::Over => 0,
        };
        let is_tunnel_whole = matches!(self.answer, Answer::Begun { tunnel: Tunnel::Answered, .. });
        self.answer = Answer::Over;
        if let Some(task) = self.waiting.take() {
            task.abort();
        }
        call.worker.deadlines.remove(call);
        if let Some(endpoint) = self.endpoint.take() {
            if is_tunnel_whole && self.request.is_over {
                // What the caller has sent last is still wanted at the end of a tunnel.
                endpoint.detach();
            } else if !self.request.is_over || self.request.waiting > 0 {
                endpoint.reset(Code::CANCEL);
            }
            self.unreleased = (waiting > 0).then_some((endpoint, waiting));
        }
        if self.unreleased.is_none() {
            self.charge = None;
        }
        if !self.request.is_over {
            // The caller need not send the rest (RFC 9113, section 8.1), once the answer is out.
            if waiting == 0 {
                call.caller.reset(Code::NO_ERROR)
            } else {
                call.caller.detach()
            }
            self.release_all();
        }
        self.request.release_all(&call.caller);
        self.request.forget(&mut self.slot, &call.worker);
        call.caller.recycle(std::mem::take(&mut self.request.head));
        // The try ends before the call that it belongs to.
        self.attempt = None;
        self.record = None;
        self.lists = None;
        self.slot = None;
    }
}
