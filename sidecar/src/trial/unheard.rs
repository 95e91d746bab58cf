//! A call to which nothing that its connection reports matters.

use std::rc::Rc;

use weft_wire::{Cause, Code, Headers};

use crate::{
    shared::survey::{Live, LiveCall},
    time::moment::Moment,
    transport::exchange::Exchange,
};

/// Ignores each event.
pub(crate) struct Unheard(Moment);

impl Unheard {
    pub(crate) fn exchange() -> Rc<dyn Exchange> {
        Rc::new(Self(Moment::now()))
    }
}

impl Live for Unheard {
    fn started(&self) -> Moment {
        self.0
    }

    fn is_over(&self) -> bool {
        false
    }

    fn look(&self) -> LiveCall {
        unreachable!("no survey is made")
    }

    fn judge_again(&self) {}
}

impl Exchange for Unheard {
    fn request_data(&self, _: &[u8], _: bool) {}
    fn request_trailers(&self, _: &Headers) {}
    fn request_sent(&self, _: usize) {}
    fn caller_gone(&self, _: Code) {}
    fn caller_has_all(&self) {}
    fn response_head(self: Rc<Self>, head: Headers, _: bool) -> Option<Headers> {
        Some(head)
    }
    fn response_data(&self, _: &[u8], _: bool) {}
    fn response_trailers(&self, _: &Headers) {}
    fn response_sent(&self, _: usize) {}
    fn endpoint_reset(self: Rc<Self>, _: Code, _: Cause) {}
    fn endpoint_unseen(self: Rc<Self>) {}
    fn endpoint_lost(self: Rc<Self>, _: &str) {}
    fn endpoint_cut_off(self: Rc<Self>, _: &str) {}
    fn endpoint_stale(self: Rc<Self>) -> bool {
        false
    }
}
