//! The progress of a call, and the one place where it ends.

use weft_mesh::limits;
use weft_wire::Code;

use super::{Call, Side, request::Request, waiting::Waiting};
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
    time::moment::Moment,
};

/// The part of a call that changes while it runs.
pub(super) struct CallState {
    pub(super) endpoint: Option<Side>,
    /// The endpoint of a call that is over, and how many bytes of its answer still wait for the caller. The endpoint
    /// gets its window back as these are sent.
    pub(super) unreleased: Option<(Side, usize)>,
    /// Charges the caller of an inbound call for the bytes of the answer that wait for it.
    pub(super) charge: Option<Charge>,
    pub(super) request: Request,
    pub(super) answer: Answer,
    /// Bytes of the answer's body that have come.
    pub(super) response_bytes: u64,
    /// How many interim heads (1xx) have come.
    pub(super) interim_answers: u32,
    /// Reads how the call ended from the answer's body, in protocols that say it there.
    pub(super) body_status: Option<Box<BodyStatus>>,
    pub(super) record: Option<CallRecord>,
    pub(super) attempt: Option<AttemptRecord>,
    /// What it waits for beside an answer of its try: its steps in a task, a pause before another try, or a second try.
    pub(super) waiting: Option<Waiting>,
    pub(super) slot: Option<CallSlot>,
    /// Bytes of large header lists, which are kept for as long as the call runs. Hardly any call has one.
    pub(super) lists: Option<Box<Counted>>,
}

#[cold]
pub(super) fn count_list(lists: &mut Option<Box<Counted>>, slot: &CallSlot, bytes: usize) {
    let lists = lists.get_or_insert_with(|| Box::new(slot.counted()));
    lists.set(lists.held() + bytes);
}

/// The progress of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Awaited,
    /// The head has been passed on.
    Begun {
        rpc: Rpc,
        /// How the call ended, if the head says it.
        outcome: Option<Outcome>,
        /// Bytes that wait for the caller's window.
        waiting: usize,
        tunnel: Tunnel,
        /// When the head came.
        at: Moment,
    },
    /// The call has ended. The last bytes of its answer may still wait to be sent.
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

impl CallState {
    /// No more send notifications will arrive for the answer: counts all of it as sent.
    pub(super) fn release_all(&mut self) {
        if let Some((endpoint, left)) = self.unreleased.take() {
            endpoint.release(left);
        }
        self.charge = None;
    }

    /// Counts another header list of this size, which the call keeps until its end. See [`crate::thread::account`].
    #[inline]
    pub(super) fn keeps_list(&mut self, bytes: usize) {
        if bytes > limits::UNCOUNTED_LIST_BYTES
            && let Some(slot) = &self.slot
        {
            count_list(&mut self.lists, slot, bytes);
        }
    }

    /// Charges the caller for bytes of the answer that wait for it.
    #[cold]
    pub(super) fn charge(&mut self, caller: &Side, bytes: usize) {
        if self.charge.is_none() {
            self.charge = caller.load().map(Charge::new);
        }
        if let Some(charge) = &mut self.charge {
            charge.add(bytes);
        }
    }

    /// The head was sent to an endpoint. Sends what else has arrived of the request.
    pub(super) fn begin_try(&mut self, endpoint: Side, is_head_all: bool, call: &Call) {
        self.waiting = None;
        (self.request.sent, self.request.waiting) = (0, 0);
        self.request.charge = None;
        if !is_head_all {
            self.request.resend(&endpoint, &call.caller, &mut self.slot, &call.worker);
        }
        self.request.stuck_since = (self.request.waiting > 0).then_some(call.worker.moment());
        self.endpoint = Some(endpoint);
        if let Some(attempt) = &mut self.attempt {
            attempt.was_sent(call.worker.moment());
        }
    }

    /// The answer is complete. A tunnel goes on until the caller has sent everything, too.
    pub(super) fn answered(&mut self, call: &Call) {
        match &mut self.answer {
            Answer::Begun { tunnel: tunnel @ Tunnel::Open, .. } if !self.request.is_over => *tunnel = Tunnel::Answered,
            _ => self.end(call, None),
        }
    }

    /// The answer is complete. Its trailers say how the call ended, or else its body, or else its head.
    pub(super) fn end(&mut self, call: &Call, by_trailers: Option<Outcome>) {
        let by_body = || self.body_status.as_ref().and_then(|body_status| body_status.code()).map(Outcome::Grpc);
        let by_head = || match self.answer {
            Answer::Begun { outcome, .. } => outcome,
            Answer::Awaited | Answer::Over => None,
        };
        self.settle(by_trailers.or_else(by_body).or_else(by_head).unwrap_or(Outcome::Grpc(code::UNKNOWN)), call);
        self.close(call);
    }

    /// Counts bytes of a tunnel at once, as it may stay open for long.
    pub(super) fn count_bytes(&self, sent: usize, received: usize) {
        if let Some(record) = &self.record {
            record.carried(sent, received);
        }
    }

    pub(super) fn settle(&mut self, outcome: Outcome, call: &Call) {
        self.judge(outcome, call);
        if let Some(record) = &mut self.record {
            record.ended(outcome);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.ended(outcome);
        }
    }

    /// The one place where calls end. Afterwards nothing refers to the call, and all that was held for it is given
    /// back.
    pub(super) fn close(&mut self, call: &Call) {
        let waiting = match self.answer {
            Answer::Begun { waiting, .. } => waiting,
            Answer::Awaited | Answer::Over => 0,
        };
        let is_tunnel_whole = matches!(self.answer, Answer::Begun { tunnel: Tunnel::Answered, .. });
        self.answer = Answer::Over;
        if let Some(waiting) = self.waiting.take() {
            waiting.stop(&call.worker);
        }
        call.worker.deadlines.remove(call);
        if let Some(endpoint) = self.endpoint.take() {
            if is_tunnel_whole && self.request.is_over {
                // The last bytes that the caller sent into a tunnel must still arrive.
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
        // The record of the try is written before that of its call.
        self.attempt = None;
        self.record = None;
        self.lists = None;
        self.slot = None;
    }
}
