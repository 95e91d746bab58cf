//! Breaks off calls that hold too much memory: see [`crate::shared::budget`].

use weft_mesh::errors::Reason;
use weft_wire::Code;

use super::{Answer, Call, Side, state::CallState};
use crate::{message::failure::Hop, policy::outcome::Outcome, thread::slots::CallSlot};

impl Call {
    /// Whether the callee that an outbound request waits for, or the peer that an inbound request comes from, holds too
    /// much.
    #[cold]
    pub(super) fn is_request_overdrawn(&self, state: &CallState) -> bool {
        let accounts = &self.worker.accounts;
        match self.hop {
            Hop::Outbound => {
                state.request.charge.as_ref().is_some_and(|charge| accounts.outbound.is_overdrawn(charge.load()))
            }
            Hop::Inbound => {
                let peer = state.slot.as_ref().and_then(CallSlot::peer);
                peer.is_some_and(|peer| accounts.inbound.is_overdrawn(peer))
            }
        }
    }

    /// Breaks the call off because its request waits. The caller gets the failure as its answer.
    #[cold]
    pub(super) fn shed_request(&self) {
        self.worker.shared.metrics.limit_reached("MEMORY_BYTES");
        self.fail(&self.way.over_budget(self));
    }

    /// Breaks the call off if its peer does not read its answers and holds too much. It does not read if `waits` of the
    /// last bytes could not be sent at once, or if the connection held bytes before this turn already.
    #[cold]
    pub(super) fn shed_answer(&self, state: &mut CallState, waits: usize) {
        let Side::Stream(link, _) = &self.caller else { return };
        let is_slow = waits > 0 || link.is_behind();
        if !is_slow || !self.worker.accounts.inbound.is_overdrawn(&link.load()) {
            return;
        }
        self.worker.shared.metrics.limit_reached("MEMORY_BYTES");
        self.worker
            .log(|| "a call is broken off: its caller does not read, and holds its full part of the memory".into());
        self.caller.reset(Code::ENHANCE_YOUR_CALM);
        if state.answer != Answer::Over {
            if let Some(endpoint) = &state.endpoint {
                endpoint.reset(Code::CANCEL);
            }
            self.worker.shared.metrics.failure(Reason::Overloaded);
            if let Some(record) = &mut state.record {
                record.ended(Outcome::Failed(Reason::Overloaded));
            }
            // No more of the request is taken.
            state.request.is_over = true;
            state.close(self);
        }
        state.release_all();
    }
}
