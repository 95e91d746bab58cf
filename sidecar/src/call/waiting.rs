//! What a call waits for beside the answer of its try.

use std::rc::Rc;

use tokio::task::AbortHandle;

use super::{pause::Pause, rival::Rival};
use crate::thread::worker::Worker;

/// See the module. Stopped when the call ends.
pub(super) enum Waiting {
    /// Its steps go on in a task.
    Task(AbortHandle),
    /// Another try is due later: its next one, or a hedge.
    Pause(Rc<Pause>),
    /// It has a second try at the same time.
    Rival(Rc<Rival>),
}

impl Waiting {
    pub(super) fn stop(self, worker: &Worker) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Pause(pause) => pause.stop(worker),
            // What it says of its endpoint is nothing.
            Self::Rival(rival) => drop(rival.end()),
        }
    }
}
