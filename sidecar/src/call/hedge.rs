//! Hedges: a call that waits too long for its answer may have a second try at the same time. The answer whose head comes
//! first counts, and the other try is cancelled. If one of the two fails, the other goes on alone.
//!
//! `proxy/hedge.rs` decides whether there is one, and where it goes.

use std::{rc::Rc, time::Duration};

use weft_wire::{CannotOpen, Code, Headers};

use super::{
    Call, Side,
    pause::Pause,
    record::{AttemptRecord, CallRecord},
    rival::{Rival, Running},
    state::{Answer, CallState},
    waiting::Waiting,
};
use crate::{
    thread::{account::Charge, slots::CallSlot},
    time::moment::Moment,
    transport::link::Link,
};

impl Call {
    /// Asks the call's way for a hedge after this time, unless the head of the answer comes before, or the try fails.
    pub(crate) fn hedge_after(self: &Rc<Self>, time: Duration) {
        let mut state = self.state.borrow_mut();
        // A time that no clock reaches is never.
        if state.answer == Answer::Awaited && self.worker.moment().checked_add(time).is_some() {
            state.waiting = Some(Waiting::Pause(Pause::begin(self, time, Self::hedge_is_due)));
        }
    }

    fn hedge_is_due(self: &Rc<Self>) {
        self.state.borrow_mut().waiting = None;
        self.way.hedge(self);
    }

    /// Since when only the endpoint keeps the call waiting, if all of the request was sent to it and is still here.
    pub(crate) fn awaits_answer_since(&self) -> Option<Moment> {
        let state = self.state.borrow();
        let sent = state.attempt.as_ref().and_then(AttemptRecord::sent_at)?;
        let is_whole = state.request.is_over && state.request.is_kept;
        (is_whole && state.answer == Answer::Awaited).then(|| sent.max(state.request.whole_at))
    }

    /// Sends the whole request over another connection as well. `adapt` completes the head for this try.
    pub(crate) fn send_beside(
        self: &Rc<Self>,
        link: &Rc<Link>,
        attempt: AttemptRecord,
        slot: CallSlot,
        adapt: impl FnOnce(&mut Headers, Option<&AttemptRecord>, Option<Moment>),
    ) -> Result<(), CannotOpen> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let request = &mut state.request;
        adapt(&mut request.head, Some(&attempt), self.deadline.get());
        let rival = Rival::new(self, attempt, slot);
        let stream = link.open(&request.head, request.is_head_all, Rc::clone(&rival) as _)?;
        let endpoint = Side::Stream(Rc::clone(link), stream);
        let waiting = request.send_copy(&endpoint);
        rival.with(|running| {
            running.stream = Some((Rc::clone(link), stream));
            (running.sent, running.waiting) = (request.kept.len() - waiting, waiting);
            if waiting > 0 {
                let mut charge = Charge::new(link.load());
                charge.add(waiting);
                running.charge = Some(charge);
            }
            running.attempt.was_sent(self.worker.moment());
        });
        state.waiting = Some(Waiting::Rival(rival));
        if let Some(record) = &mut state.record {
            record.hedged();
        }
        Ok(())
    }

    /// Whether it has a second try now.
    pub(crate) fn has_rival(&self) -> bool {
        matches!(self.state.borrow().waiting, Some(Waiting::Rival(_)))
    }

    /// The second try has failed, and is gone.
    pub(super) fn rival_has_ended(&self) {
        self.state.borrow_mut().waiting = None;
    }

    /// The second try takes the place of the first, which has failed or was slower.
    pub(super) fn rival_takes_over(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(rival) = state.take_rival().and_then(|rival| rival.take()) else { return };
        let Running { attempt, slot, stream, sent, waiting, charge, .. } = rival;
        let Some((link, stream)) = stream else { return };
        let now = self.worker.moment();
        if let Some(first) = state.endpoint.take() {
            first.reset(Code::CANCEL);
            if let Some(first) = &mut state.attempt {
                first.was_outrun(state.request.whole_at, now);
            }
        }
        // The record of the first is written when it is dropped.
        state.attempt = Some(attempt);
        let callee = slot.callee().cloned();
        drop(slot);
        if let (Some(slot), Some(callee)) = (&mut state.slot, callee) {
            // It is another only if replicas have several identities.
            slot.goes_to(&callee);
        }
        state.request.goes_on((sent, waiting), charge, &self.caller, now);
        link.attach(stream, Rc::clone(self) as _);
        state.endpoint = Some(Side::Stream(link, stream));
        state.record.iter().for_each(CallRecord::hedge_won);
    }
}

impl CallState {
    /// The head of the answer has come: there is no hedge any more, and none will come.
    #[cold]
    pub(super) fn stop_hedge(&mut self, call: &Call) {
        if let Some(mut rival) = self.take_rival().and_then(|rival| rival.end()) {
            rival.attempt.was_outrun(self.request.whole_at, call.worker.moment());
        }
        self.stop_pause(call);
    }

    /// Stops what would start another try.
    pub(super) fn stop_pause(&mut self, call: &Call) {
        match self.waiting.take() {
            Some(Waiting::Pause(pause)) => pause.stop(&call.worker),
            other => self.waiting = other,
        }
    }

    fn take_rival(&mut self) -> Option<Rc<Rival>> {
        match self.waiting.take() {
            Some(Waiting::Rival(rival)) => Some(rival),
            other => {
                self.waiting = other;
                None
            }
        }
    }
}
