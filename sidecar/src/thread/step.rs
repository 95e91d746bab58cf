//! Steps of a call that may have to wait, but nearly never do: they run at once, in place, and become a task only if
//! they have to wait.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::task::{AbortHandle, spawn_local};

/// Runs futures of one type, and reuses one allocation as long as none of them waits.
pub(crate) struct Steps<F> {
    spare: Option<Pin<Box<F>>>,
}

impl<F: Future<Output = ()> + 'static> Steps<F> {
    pub(crate) fn new() -> Self {
        Self { spare: None }
    }

    /// Runs `steps` as far as they go at once. If they have to wait, they continue as a task, which the handle aborts.
    pub(crate) fn run(&mut self, steps: F) -> Option<AbortHandle> {
        let mut steps = match self.spare.take() {
            Some(mut spare) => {
                spare.set(steps);
                spare
            }
            None => Box::pin(steps),
        };
        // A no-op waker is enough: if they have to wait, the task polls them again and registers its own waker.
        match steps.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(()) => {
                self.spare = Some(steps);
                None
            }
            Poll::Pending => Some(spawn_local(steps).abort_handle()),
        }
    }
}
