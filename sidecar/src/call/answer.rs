//! What the caller gets: the endpoint's answer as it comes, a whole answer in its place, a failure, or a reset.

use std::rc::Rc;

use weft_mesh::{errors::Blame, limits};
use weft_wire::{Code, Headers, http1};

use super::{
    Call, Side,
    state::{Answer, Tunnel},
};
use crate::{
    message::{
        code,
        failure::{self, FALLBACK_HEADER, Failure, Hop},
        fixed::WholeAnswer,
        headers::cleaned,
        rpc::{BodyStatus, Rpc},
        tunnel, websocket,
    },
    policy::{
        outcome::{self, Outcome},
        retry::Miss,
    },
};

/// What the final head of an answer says.
#[derive(Clone, Copy)]
pub(super) struct Said {
    status: u16,
    rpc: Rpc,
    /// How the call ended, if the head says it.
    pub(super) outcome: Option<Outcome>,
}

impl Call {
    /// The head of the answer. Returns the list when it is done with it, for reuse.
    pub(crate) fn response_head(self: &Rc<Self>, mut head: Headers, is_end: bool) -> Option<Headers> {
        let status = self.clean_head(&mut head);
        if status < 200 {
            return self.interim_head(head);
        }
        let said = self.read_head(&head, status);
        if let Some(outcome) = said.outcome
            && let Some(miss) = self.way.answered(outcome)
        {
            self.missed(miss);
            return Some(head);
        }
        self.pass_on(head, is_end, said)
    }

    /// Removes from a head what its sender may not say. Returns its status.
    #[inline(always)]
    pub(super) fn clean_head(&self, head: &mut Headers) -> u16 {
        let status = head.status().unwrap_or_default();
        self.drop_reason(head);
        if failure::is_forged(head, self.hop) {
            failure::remove_forged(head, self.hop);
        }
        status
    }

    /// What the final head of an answer with this status says.
    #[inline]
    pub(super) fn read_head(&self, head: &Headers, status: u16) -> Said {
        let rpc = self.rpc.of_answer(head);
        Said { status, rpc, outcome: outcome::of_head(rpc, head, status) }
    }

    /// Passes the head of the answer on. The try that it came from is the call's last one.
    #[inline(always)]
    pub(super) fn pass_on(self: &Rc<Self>, mut head: Headers, is_end: bool, said: Said) -> Option<Headers> {
        let Said { status, rpc, outcome } = said;
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.answer != Answer::Awaited {
            return Some(head);
        }
        if state.waiting.is_some() {
            state.stop_hedge(self);
        }
        state.request.forget(&mut state.slot, &self.worker);
        state.body_status = BodyStatus::of(rpc, &head, status);
        let tunnel = if self.wants_tunnel && tunnel::is_accepted(&head) { Tunnel::Open } else { Tunnel::No };
        if tunnel == Tunnel::Open && matches!(self.caller, Side::Socket(_)) {
            websocket::complete_answer(&state.request.head, &mut head);
        }
        if self.tries.fallbacks() > 0 {
            self.tries.fallen_back(|fallen_back| head.append(FALLBACK_HEADER, fallen_back.header.as_bytes()));
        }
        state.answer = Answer::Begun { rpc, outcome, waiting: 0, tunnel, at: self.worker.moment() };
        let head = self.caller.respond(head, is_end);
        if is_end {
            state.end(self, None);
        }
        head
    }

    /// Removes the reason phrase where the service or the client speaks HTTP/2: such a service has none, and such a
    /// client must not see it.
    fn drop_reason(&self, head: &mut Headers) {
        let is_at_edge = match self.hop {
            Hop::Outbound => matches!(self.caller, Side::Stream(..)),
            Hop::Inbound => matches!(self.state.borrow().endpoint, Some(Side::Stream(..))),
        };
        if is_at_edge {
            head.remove(http1::REASON);
        }
    }

    /// An interim answer (1xx). No window bounds these, so a caller that does not read gets none.
    fn interim_head(self: &Rc<Self>, head: Headers) -> Option<Headers> {
        let count = {
            let mut state = self.state.borrow_mut();
            state.interim_answers += 1;
            state.interim_answers
        };
        if count > limits::INTERIM_ANSWERS {
            self.missed(self.too_many_interim_answers());
            return Some(head);
        }
        if self.caller.is_congested() { Some(head) } else { self.caller.respond(head, false) }
    }

    /// The failure of a try whose endpoint does not stop sending them.
    #[cold]
    pub(super) fn too_many_interim_answers(&self) -> Miss {
        self.worker.shared.metrics.limit_reached("INTERIM_ANSWERS");
        Miss::Broke(format!("it sent more than {} interim answers", limits::INTERIM_ANSWERS))
    }

    pub(crate) fn response_data(&self, data: &[u8], is_end: bool) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Answer::Begun { waiting, .. } = &mut state.answer else { return };
        state.response_bytes += data.len() as u64;
        let waits = self.caller.send_data(data, is_end);
        *waiting += waits;
        if let Some(body_status) = &mut state.body_status {
            body_status.read(data);
        }
        if self.wants_tunnel {
            state.count_bytes(0, data.len());
        }
        if let Some(endpoint) = &state.endpoint {
            endpoint.release(data.len() - waits);
        }
        if waits > 0 && matches!(self.hop, Hop::Inbound) {
            state.charge(&self.caller, waits);
        }
        if is_end {
            state.answered(self);
        }
        if matches!(self.hop, Hop::Inbound) && self.worker.accounts.inbound.is_tight() {
            self.shed_answer(state, waits);
        }
    }

    pub(crate) fn response_trailers(&self, trailers: &Headers) {
        let mut state = self.state.borrow_mut();
        let Answer::Begun { .. } = state.answer else { return };
        let is_forged = failure::is_forged(trailers, self.hop);
        let trailers = &*cleaned(trailers, is_forged, |list| failure::remove_forged(list, self.hop));
        self.caller.send_trailers(trailers);
        state.end(self, outcome::of_trailers(trailers));
    }

    /// Parts of the answer that had to wait have been sent.
    pub(crate) fn response_sent(&self, bytes: usize) {
        let mut state = self.state.borrow_mut();
        if let Answer::Begun { waiting, .. } = &mut state.answer {
            *waiting -= bytes.min(*waiting);
        }
        if let Some(charge) = &mut state.charge {
            charge.take(bytes);
        }
        if let Some(endpoint) = &state.endpoint {
            endpoint.release(bytes);
        } else if let Some((endpoint, left)) = &mut state.unreleased {
            let bytes = bytes.min(*left);
            *left -= bytes;
            endpoint.release(bytes);
        }
    }

    /// The caller's connection has taken all of the answer, and will not report how much of it was sent.
    pub(crate) fn caller_has_all(&self) {
        self.state.borrow_mut().release_all();
    }

    /// Ends the call with an answer that its contract gives in place of a failure.
    #[cold]
    pub(super) fn answer(&self, WholeAnswer { head, body, trailers }: WholeAnswer) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.answer != Answer::Awaited {
            return;
        }
        self.caller.respond(head, false);
        let waiting = self.caller.send_data(&body, trailers.is_none());
        if let Some(trailers) = &trailers {
            self.caller.send_trailers(trailers);
        }
        // It says nothing about the endpoints that were tried, whose record has its outcome already.
        let outcome = Outcome::Grpc(code::OK);
        if let Some(record) = &mut state.record {
            record.ended(outcome);
        }
        let (outcome, at) = (Some(outcome), self.worker.moment());
        state.answer = Answer::Begun { rpc: self.rpc, outcome, waiting, tunnel: Tunnel::No, at };
        state.close(self);
    }

    /// Ends the call with a reset instead of an answer.
    pub(crate) fn reset(&self, code: Code) {
        let mut state = self.state.borrow_mut();
        if state.answer == Answer::Over {
            return;
        }
        self.caller.reset(code);
        state.settle(Outcome::Reset(code), self);
        // The stream is gone, so there is nothing left to hold back.
        state.request.is_over = true;
        state.close(self);
        state.release_all();
    }

    /// Ends the call with a failure: as a whole answer if none has begun, else in gRPC's trailers, or else by a reset.
    pub(crate) fn fail(&self, failure: &Failure) {
        let mut state = self.state.borrow_mut();
        let (hop, outcome) = (self.hop, Outcome::Failed(failure.reason));
        state.judge(outcome, self);
        // Nobody waits for the endpoint's answer any more.
        if let Some(endpoint) = &state.endpoint {
            endpoint.reset(Code::CANCEL);
        }
        let mut takes_the_rest = true;
        match state.answer {
            Answer::Over => return,
            Answer::Awaited => {
                self.log_refused(failure);
                self.answer_with(failure, hop);
            }
            Answer::Begun { rpc, .. } => {
                if failure.rule.is_none() {
                    let reason = failure.reason.as_str();
                    self.worker.log(|| format!("call failed ({reason}): {}", failure.message));
                }
                if rpc == Rpc::Grpc {
                    self.caller.send_trailers(&failure.grpc_status(hop));
                } else {
                    self.caller.reset(Code::INTERNAL_ERROR);
                    state.request.is_over = true;
                    takes_the_rest = false;
                }
            }
        }
        self.worker.shared.metrics.failure(failure.reason);
        if let Some(record) = &mut state.record {
            record.ended(outcome);
        }
        // A failure with blame on nobody happens between two tries, so it says nothing about this one.
        if let Some(attempt) = &mut state.attempt
            && failure.reason.blame() != Blame::Nobody
        {
            attempt.ended(outcome);
        }
        state.close(self);
        if !takes_the_rest {
            state.release_all();
        }
    }

    fn log_refused(&self, failure: &Failure) {
        if failure.rule.is_some() {
            // Logged where the rule was broken.
            return;
        }
        let service = failure.service.as_deref().unwrap_or("-");
        let (reason, message) = (failure.reason.as_str(), &failure.message);
        if failure.is_expected {
            return tracing::debug!("call refused ({reason}) service={service}: {message}");
        }
        self.worker.log(|| format!("call refused ({reason}) service={service}: {message}"));
    }

    fn answer_with(&self, failure: &Failure, hop: Hop) {
        let (head, body) = failure.answer(self.rpc, hop);
        self.caller.respond(head, body.is_empty());
        if !body.is_empty() {
            self.caller.send_data(&body, true);
        }
    }
}
