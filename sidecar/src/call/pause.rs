//! The pause before a call's next try.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::task::AbortHandle;

use super::Call;
use crate::{
    policy::retry::Next,
    thread::worker::Worker,
    time::timer::{Place, Timed},
};

/// What a call waits for that is neither sent nor over. Stopped when the call ends.
pub(super) enum Waiting {
    /// Its steps go on in a task.
    Task(AbortHandle),
    /// Its next try is due later.
    Pause(Rc<Pause>),
}

impl Waiting {
    pub(super) fn stop(self, worker: &Worker) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Pause(pause) => {
                worker.deadlines.remove(&*pause);
                // The call refers to the pause, and the pause to the call.
                pause.call.take();
            }
        }
    }
}

/// See the module.
pub(super) struct Pause {
    call: RefCell<Option<Rc<Call>>>,
    place: Cell<Option<Place>>,
}

impl Pause {
    /// Has a call tried again after this time.
    pub(super) fn begin(call: &Rc<Call>, time: Duration) -> Rc<Self> {
        let pause = Rc::new(Self { call: RefCell::new(Some(Rc::clone(call))), place: Cell::new(None) });
        let now = call.worker.moment();
        call.worker.deadlines.set(Rc::clone(&pause) as Rc<dyn Timed>, now.checked_add(time).unwrap_or(now));
        pause
    }
}

impl Timed for Pause {
    fn place(&self) -> &Cell<Option<Place>> {
        &self.place
    }

    fn expired(self: Rc<Self>) {
        if let Some(call) = self.call.take() {
            call.worker.tick();
            call.apply(Next::AGAIN);
        }
    }
}
