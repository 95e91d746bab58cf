//! Tries that fail, and how the call goes on.

use std::rc::Rc;

use weft_mesh::errors::Reason;
use weft_wire::{Cause, Code};

use super::{Call, pause::Pause, record::AttemptRecord, waiting::Waiting};
use crate::{
    message::failure::Failure,
    policy::retry::{Miss, Next},
};

impl Call {
    /// The stream to the endpoint has ended early.
    pub(crate) fn endpoint_reset(self: &Rc<Self>, code: Code, cause: Cause) {
        if !self.is_begun() {
            return self.missed(Miss::of_reset(code, cause));
        }
        match cause {
            Cause::Peer => self.reset(code),
            Cause::Rule => self.fail(&Failure::broke_within(&format_args!("it broke HTTP/2's rules ({code})"))),
            Cause::TooLarge => self.fail(&self.answer_too_large()),
        }
    }

    /// The endpoint has provably not processed the call.
    pub(crate) fn endpoint_unseen(self: &Rc<Self>) {
        self.state.borrow_mut().endpoint = None;
        self.missed(Miss::Unseen("it is going away"));
    }

    /// The connection to the endpoint is gone.
    pub(crate) fn endpoint_lost(self: &Rc<Self>, why: &str) {
        self.state.borrow_mut().endpoint = None;
        if self.is_begun() {
            self.fail(&Failure::broke_within(&why));
        } else {
            self.missed(Miss::Broke(why.to_owned()));
        }
    }

    /// The connection to the endpoint was closed before it took the call. If the call can be sent again, it goes over
    /// another connection; if not, this returns false.
    pub(super) fn endpoint_stale(self: &Rc<Self>) -> bool {
        if !self.is_repeatable() {
            return false;
        }
        self.state.borrow_mut().endpoint = None;
        self.apply(Next::AGAIN);
        true
    }

    /// This sidecar has closed the connection to the endpoint because it exceeded a limit.
    pub(crate) fn endpoint_cut_off(self: &Rc<Self>, why: &str) {
        self.state.borrow_mut().endpoint = None;
        if self.has_rival() {
            self.tries.was_sent();
            self.with_attempt(|attempt| attempt.not_taken(Reason::Overloaded.as_str()));
            return self.apply(Next::Rival);
        }
        self.fail(&Failure::new(Reason::Overloaded, format!("the connection to the service was closed: {why}")));
    }

    /// A try failed.
    pub(crate) fn missed(self: &Rc<Self>, miss: Miss) {
        if self.is_over() {
            return;
        }
        {
            let mut state = self.state.borrow_mut();
            if let Some(endpoint) = state.endpoint.take() {
                endpoint.reset(Code::CANCEL);
            }
            state.stop_pause(self);
        }
        let is_excused = self.is_miss_excused(&miss);
        let next = self.way.missed(self, miss);
        if is_excused {
            self.with_attempt(AttemptRecord::excuse);
        }
        self.apply(next);
    }

    /// Continues after a failed try.
    pub(crate) fn apply(self: &Rc<Self>, next: Next) {
        match next {
            Next::Again { after } if after.is_zero() => {
                self.waits_in(Some(Rc::clone(&self.way).again(Rc::clone(self))));
            }
            Next::Again { after } => {
                let pause = Pause::begin(self, after, |call| call.apply(Next::AGAIN));
                self.state.borrow_mut().waiting = Some(Waiting::Pause(pause));
            }
            Next::Rival => self.rival_takes_over(),
            Next::Answer(answer) => self.answer(*answer),
            Next::Fail(failure) => self.fail(&failure),
            Next::Reset(code) => self.reset(code),
        }
    }
}
