//! A call as its connections see it.

use std::rc::Rc;

use weft_wire::{Cause, Code, Headers};

use super::Call;
use crate::{
    shared::survey::{Live, LiveCall},
    time::moment::Moment,
    transport::exchange::Exchange,
};

impl Exchange for Call {
    fn request_data(&self, data: &[u8], is_end: bool) {
        self.request_data(data, is_end);
    }

    fn request_trailers(&self, trailers: &Headers) {
        self.request_trailers(trailers);
    }

    fn request_sent(&self, bytes: usize) {
        self.request_sent(bytes);
    }

    fn caller_gone(&self, code: Code) {
        self.caller_gone(code);
    }

    fn caller_has_all(&self) {
        self.caller_has_all();
    }

    fn response_head(self: Rc<Self>, head: Headers, is_end: bool) -> Option<Headers> {
        Self::response_head(&self, head, is_end)
    }

    fn response_data(&self, data: &[u8], is_end: bool) {
        self.response_data(data, is_end);
    }

    fn response_trailers(&self, trailers: &Headers) {
        self.response_trailers(trailers);
    }

    fn response_sent(&self, bytes: usize) {
        self.response_sent(bytes);
    }

    fn endpoint_reset(self: Rc<Self>, code: Code, cause: Cause) {
        Self::endpoint_reset(&self, code, cause);
    }

    fn endpoint_unseen(self: Rc<Self>) {
        Self::endpoint_unseen(&self);
    }

    fn endpoint_lost(self: Rc<Self>, why: &str) {
        Self::endpoint_lost(&self, why);
    }

    fn endpoint_cut_off(self: Rc<Self>, why: &str) {
        Self::endpoint_cut_off(&self, why);
    }

    fn endpoint_stale(self: Rc<Self>) -> bool {
        Self::endpoint_stale(&self)
    }
}

impl Live for Call {
    fn started(&self) -> Moment {
        self.started
    }

    fn is_over(&self) -> bool {
        self.is_over()
    }

    fn look(&self) -> LiveCall {
        self.look()
    }

    fn judge_again(&self) {
        if !self.is_over()
            && let Some(failure) = self.way.objection(self)
        {
            self.fail(&failure);
        }
    }
}
