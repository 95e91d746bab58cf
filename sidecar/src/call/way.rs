//! What a call asks of the way that it goes: out of the local service, or in to it.

use std::{
    rc::Rc,
    sync::Arc,
    sync::atomic::Ordering::{Acquire, Release},
};

use tokio::task::AbortHandle;

use super::Call;
use crate::{
    message::failure::{Failure, Hop},
    policy::retry::{Miss, Next},
    shared::Shared,
};

/// See the module. One serves all calls of a connection.
pub(crate) trait Way {
    fn hop(&self) -> Hop;

    /// A try has come to nothing. Says how the call goes on.
    fn missed(&self, call: &Call, miss: Miss) -> Next;

    /// Begins another try, as a task that the handle stops.
    fn again(self: Rc<Self>, call: Rc<Call>) -> AbortHandle;

    /// What the caller is told when time is up.
    fn deadline_passed(&self, call: &Call) -> Failure;

    /// What the caller is told when what waits for the callee takes too much memory.
    fn holds_its_part(&self, call: &Call) -> Failure;
}

/// Counts an inbound call into the drain, for as long as anything refers to it.
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
