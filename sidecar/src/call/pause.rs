//! The pause before a call's next try, or before its hedge.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use super::Call;
use crate::{
    thread::worker::Worker,
    time::timer::{Place, Timed},
};

/// See the module.
pub(super) struct Pause {
    call: RefCell<Option<Rc<Call>>>,
    place: Cell<Option<Place>>,
    then: fn(&Rc<Call>),
}

impl Pause {
    /// Does something with a call after this time, unless it is stopped before.
    pub(super) fn begin(call: &Rc<Call>, time: Duration, then: fn(&Rc<Call>)) -> Rc<Self> {
        let pause = Rc::new(Self { call: RefCell::new(Some(Rc::clone(call))), place: Cell::new(None), then });
        let now = call.worker.moment();
        call.worker.deadlines.set(Rc::clone(&pause) as Rc<dyn Timed>, now.checked_add(time).unwrap_or(now));
        pause
    }

    pub(super) fn stop(&self, worker: &Worker) {
        worker.deadlines.remove(self);
        // The call refers to the pause, and the pause to the call.
        self.call.take();
    }
}

impl Timed for Pause {
    fn place(&self) -> &Cell<Option<Place>> {
        &self.place
    }

    fn expired(self: Rc<Self>) {
        if let Some(call) = self.call.take() {
            call.worker.tick();
            (self.then)(&call);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        task::{AbortHandle, LocalSet, spawn_local},
        time::sleep,
    };
    use weft_wire::{Headers, Name};

    use super::*;
    use crate::{
        call::{Side, Way},
        message::{
            code,
            failure::{Failure, Hop},
        },
        policy::{
            outcome::Outcome,
            retry::{Miss, Next},
        },
        time::moment::Moment,
        transport::pipe::Pipe,
        trial::{self, peer::post},
    };

    /// A way on which UNAVAILABLE is a failed try, once, and a try is repeated after a pause.
    #[derive(Default)]
    struct Patient {
        was_unavailable: Cell<bool>,
        tries: RefCell<Vec<Moment>>,
    }

    const PAUSE: Duration = Duration::from_millis(50);

    impl Way for Patient {
        fn hop(&self) -> Hop {
            Hop::Outbound
        }

        fn missed(&self, _: &Call, _: Miss) -> Next {
            Next::Again { after: PAUSE }
        }

        fn answered(&self, outcome: Outcome) -> Option<Miss> {
            let is_miss = outcome == Outcome::Grpc(code::UNAVAILABLE) && !self.was_unavailable.replace(true);
            is_miss.then_some(Miss::Unseen("it is not available"))
        }

        fn again(self: Rc<Self>, call: Rc<Call>) -> AbortHandle {
            self.tries.borrow_mut().push(call.worker.moment());
            spawn_local(async {}).abort_handle()
        }

        fn deadline_passed(&self, _: &Call) -> Failure {
            Failure::deadline_passed()
        }

        fn over_budget(&self, _: &Call) -> Failure {
            Failure::deadline_passed()
        }
    }

    /// Runs a test with a call that goes such a way.
    async fn with_call(test: impl AsyncFnOnce(Rc<Patient>, Rc<Call>)) {
        LocalSet::new()
            .run_until(async {
                let worker = trial::worker();
                let deadlines = Rc::clone(&worker);
                spawn_local(async move { deadlines.deadlines.run().await });
                let way: Rc<Patient> = Rc::default();
                let slot = worker.call_slot().expect("there is room");
                let caller = Side::Pipe(Pipe::default());
                let call = Call::begin(&worker, Rc::clone(&way) as _, caller, post(), true, slot);
                test(way, call).await;
            })
            .await;
    }

    fn unavailable() -> Headers {
        let mut head = Headers::new();
        head.set(Name::STATUS, b"200");
        head.append(Name::CONTENT_TYPE, b"application/grpc");
        head.append(Name::GRPC_STATUS, b"14");
        head
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_is_due_later_comes_then() {
        with_call(async |way, call| {
            let begun = Moment::now();
            call.missed(Miss::Unseen("it is going away"));
            sleep(PAUSE / 2).await;
            assert!(way.tries.borrow().is_empty());
            sleep(PAUSE).await;
            let waited = way.tries.borrow()[0].since(begun);
            assert!((PAUSE..PAUSE + PAUSE / 2).contains(&waited), "{waited:?}");
            assert_eq!(way.tries.borrow().len(), 1);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_ends_in_its_pause_is_not_tried_again() {
        with_call(async |way, call| {
            call.missed(Miss::Unseen("it is going away"));
            assert!(Rc::strong_count(&call) > 1, "the pause refers to it");
            call.fail(&Failure::deadline_passed());
            assert_eq!(Rc::strong_count(&call), 1, "nothing does any more");
            sleep(2 * PAUSE).await;
            assert!(way.tries.borrow().is_empty());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_may_be_a_failed_try_before_it_is_passed_on() {
        with_call(async |way, call| {
            call.response_head(unavailable(), true);
            assert!(!call.is_over(), "the caller has heard nothing");
            sleep(2 * PAUSE).await;
            assert_eq!(way.tries.borrow().len(), 1);
            call.response_head(unavailable(), true);
            assert!(call.is_over(), "the second time it is the answer");
        })
        .await;
    }
}
