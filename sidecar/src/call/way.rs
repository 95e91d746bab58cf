//! The direction of a call, out of the local service or in to it, and what the call asks of it.

use std::{
    rc::Rc,
    sync::Arc,
    sync::atomic::Ordering::{Acquire, Release},
};

use tokio::task::AbortHandle;

use super::{Call, record::AttemptRecord};
use crate::{
    message::failure::{Failure, Hop},
    policy::{
        outcome::Outcome,
        retry::{Miss, Next},
    },
    shared::Shared,
};

/// See the module. One value serves all calls of a connection.
pub(crate) trait Way {
    fn hop(&self) -> Hop;

    /// A try failed. Says how the call goes on.
    fn missed(&self, call: &Call, miss: Miss) -> Next;

    /// The head of an answer has come, and it says that the call ended so. Asked before the head is passed on. Says whether
    /// that is a failed try.
    fn answered(&self, outcome: Outcome) -> Option<Miss>;

    /// The head of the answer has not come in the time that [`Call::hedge_after`] was told. May start a second try.
    fn hedge(&self, _call: &Rc<Call>) {}

    /// The second try of a call has failed while the first goes on. Writes that down.
    fn rival_missed(&self, _call: &Call, _rival: &mut AttemptRecord, _miss: &Miss) {}

    /// The rules have changed that say who may call. Says why a running call may not go on.
    fn objection(&self, _call: &Call) -> Option<Failure> {
        None
    }

    /// Starts another try as a task. The handle stops it.
    fn again(self: Rc<Self>, call: Rc<Call>) -> AbortHandle;

    /// The failure when the deadline has passed.
    fn deadline_passed(&self, call: &Call) -> Failure;

    /// The failure when the bytes that wait for the callee take too much memory.
    fn over_budget(&self, call: &Call) -> Failure;
}

/// Counts an inbound call as in flight, so that the drain waits for it, until this is dropped.
pub(super) struct Running(Arc<Shared>);

impl Running {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.inbound_in_flight.fetch_add(1, Acquire);
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.inbound_in_flight.fetch_sub(1, Release);
    }
}
