//! The second of two tries that a call has at the same time: a hedge. It reports to the call only when its answer begins or
//! when it fails, so the first try costs no more than without it. If it takes the first one's place, its connection reports
//! to the call itself from then on.

use std::{cell::RefCell, rc::Rc};

use weft_mesh::{errors::Reason, limits};
use weft_wire::{Cause, Code, Headers, StreamId};

use super::{Call, record::AttemptRecord};
use crate::{
    policy::retry::Miss,
    shared::survey::{Live, LiveCall},
    thread::{account::Charge, slots::CallSlot},
    time::moment::Moment,
    transport::{exchange::Exchange, link::Link},
};

/// See the module.
pub(super) struct Rival {
    call: Rc<Call>,
    /// `None` once it has ended or has taken the first try's place. Then its events mean nothing.
    running: RefCell<Option<Running>>,
}

/// What a try holds while it runs.
pub(super) struct Running {
    pub(super) attempt: AttemptRecord,
    /// It counts for its callee as a call does.
    pub(super) slot: CallSlot,
    /// `None` before it was sent, and once its stream is gone.
    pub(super) stream: Option<(Rc<Link>, StreamId)>,
    /// Bytes of the request's body that were sent, and those that wait for the endpoint's window.
    pub(super) sent: usize,
    pub(super) waiting: usize,
    /// Charges the callee for the bytes that wait.
    pub(super) charge: Option<Charge>,
    interim_answers: u32,
}

impl Running {
    /// Cancels it at its endpoint, unless its stream is gone.
    fn cancel(&mut self) {
        if let Some((link, stream)) = self.stream.take() {
            link.reset(stream, Code::CANCEL);
        }
    }
}

impl Rival {
    /// A try that is still to be sent.
    pub(super) fn new(call: &Rc<Call>, attempt: AttemptRecord, slot: CallSlot) -> Rc<Self> {
        let running = Running { attempt, slot, stream: None, sent: 0, waiting: 0, charge: None, interim_answers: 0 };
        Rc::new(Self { call: Rc::clone(call), running: RefCell::new(Some(running)) })
    }

    /// Looks at or changes what it holds, if it runs.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Running) -> R) -> Option<R> {
        self.running.borrow_mut().as_mut().map(act)
    }

    /// It takes the first try's place, with all that it holds.
    pub(super) fn take(&self) -> Option<Running> {
        self.running.take()
    }

    /// Cancels it. What it holds is given back when that is dropped.
    pub(super) fn end(&self) -> Option<Running> {
        let mut running = self.running.take()?;
        running.cancel();
        Some(running)
    }

    /// It has failed. The first try goes on alone.
    fn missed(&self, miss: &Miss) {
        self.fails(|call, attempt| call.way.rival_missed(call, attempt, miss));
    }

    fn fails(&self, note: impl FnOnce(&Call, &mut AttemptRecord)) {
        if let Some(mut running) = self.end() {
            note(&self.call, &mut running.attempt);
            self.call.rival_has_ended();
        }
    }

    fn stream_is_gone(&self) {
        self.with(|running| running.stream = None);
    }

    /// An interim answer (1xx). The caller gets only those of the first try.
    fn interim_head(&self, head: Headers) -> Option<Headers> {
        let count = self.with(|running| {
            running.interim_answers += 1;
            running.interim_answers
        });
        if count.is_some_and(|count| count > limits::INTERIM_ANSWERS) {
            self.missed(&self.call.too_many_interim_answers());
        }
        Some(head)
    }
}

impl Exchange for Rival {
    fn request_data(&self, _: &[u8], _: bool) {}

    fn request_trailers(&self, _: &Headers) {}

    fn request_sent(&self, bytes: usize) {
        self.with(|running| {
            let bytes = bytes.min(running.waiting);
            running.waiting -= bytes;
            running.sent += bytes;
            if let Some(charge) = &mut running.charge {
                charge.take(bytes);
            }
        });
    }

    fn caller_gone(&self, _: Code) {}

    fn caller_has_all(&self) {}

    fn response_head(self: Rc<Self>, mut head: Headers, is_end: bool) -> Option<Headers> {
        if self.running.borrow().is_none() {
            return Some(head);
        }
        let status = self.call.clean_head(&mut head);
        if status < 200 {
            return self.interim_head(head);
        }
        let said = self.call.read_head(&head, status);
        if let Some(miss) = said.outcome.and_then(|outcome| self.call.way.answered(outcome)) {
            self.missed(&miss);
            return Some(head);
        }
        self.call.rival_takes_over();
        self.call.pass_on(head, is_end, said)
    }

    // Nothing of the answer comes before its head, and what comes after it goes to the call.
    fn response_data(&self, _: &[u8], _: bool) {}

    fn response_trailers(&self, _: &Headers) {}

    fn response_sent(&self, _: usize) {}

    fn endpoint_reset(self: Rc<Self>, code: Code, cause: Cause) {
        self.missed(&Miss::of_reset(code, cause));
    }

    fn endpoint_unseen(self: Rc<Self>) {
        self.stream_is_gone();
        self.missed(&Miss::Unseen("it is going away"));
    }

    fn endpoint_lost(self: Rc<Self>, why: &str) {
        self.stream_is_gone();
        self.missed(&Miss::Broke(why.to_owned()));
    }

    fn endpoint_cut_off(self: Rc<Self>, _: &str) {
        self.stream_is_gone();
        self.fails(|call, attempt| {
            call.tries.was_sent();
            attempt.not_taken(Reason::Overloaded.as_str());
        });
    }

    fn endpoint_stale(self: Rc<Self>) -> bool {
        false
    }
}

impl Live for Rival {
    fn started(&self) -> Moment {
        self.call.started
    }

    fn is_over(&self) -> bool {
        self.call.is_over()
    }

    fn look(&self) -> LiveCall {
        self.call.look()
    }

    /// It goes out. Who may call is for the callee's sidecar to say.
    fn judge_again(&self) {}
}
