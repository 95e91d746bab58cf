//! Turns for slow work, shared fairly among identities.
//!
//! A limited number of turns runs at once, and at most one of each identity. Waiting identities get their turns in the
//! order in which they came. An identity that waits for more than one turn queues again behind the others after each:
//! an identity with much work delays only itself.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;
use weft_mesh::names::ServiceName;

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    limit: usize,
    state: Mutex<Queues>,
}

/// Who has a turn, and who waits for one.
#[derive(Debug, Default)]
struct Queues {
    busy: HashSet<ServiceName>,
    /// The waiting identities, each once.
    order: VecDeque<ServiceName>,
    waiting: HashMap<ServiceName, VecDeque<oneshot::Sender<Turn>>>,
}

/// A turn. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` if it was never handed out.
    of: Option<(Arc<Turns>, ServiceName)>,
}

impl Turns {
    /// At most `limit` turns run at once.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// Waits for an identity's turn. Dropping the future gives up the place in the queue.
    pub(crate) async fn take(self: &Arc<Self>, who: &ServiceName) -> Turn {
        let (give, given) = oneshot::channel();
        {
            let mut state = self.lock();
            let queue = state.waiting.entry(who.clone()).or_default();
            // Removes waiters that gave up. There are few, as each arrival removes them.
            queue.retain(|waiting| !waiting.is_closed());
            queue.push_back(give);
            if !state.order.contains(who) {
                state.order.push_back(who.clone());
            }
            self.hand_out(&mut state);
        }
        match given.await {
            Ok(turn) => turn,
            // Cannot happen: a sender stays in its queue until it is used or its receiver is gone.
            Err(_) => pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives free turns to those that wait.
    fn hand_out(self: &Arc<Self>, state: &mut Queues) {
        // Each round makes an identity busy or removes one from the queues.
        while state.busy.len() < self.limit {
            let Some(place) = state.order.iter().position(|who| !state.busy.contains(who)) else { return };
            let Some(who) = state.order.remove(place) else { return };
            let Some(queue) = state.waiting.get_mut(&who) else { continue };
            let is_given = loop {
                let Some(waiting) = queue.pop_front() else { break false };
                let turn = Turn { of: Some((Arc::clone(self), who.clone())) };
                match waiting.send(turn) {
                    Ok(()) => break true,
                    // The waiter has gone. Dropping the turn as it is would lock the state again.
                    Err(mut turn) => turn.of = None,
                }
            };
            if queue.is_empty() {
                state.waiting.remove(&who);
            } else {
                state.order.push_back(who.clone());
            }
            if is_given {
                state.busy.insert(who);
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((turns, who)) = self.of.take() else { return };
        let mut state = turns.lock();
        state.busy.remove(&who);
        turns.hand_out(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, future::BoxFuture};

    use super::*;

    fn name(service: &str) -> ServiceName {
        ServiceName::parse(service).unwrap()
    }

    /// Starts to wait, and so takes a place in the queue.
    fn waits(turns: &Arc<Turns>, service: &str) -> BoxFuture<'static, Turn> {
        let (turns, service) = (Arc::clone(turns), name(service));
        let mut waiting = async move { turns.take(&service).await }.boxed();
        assert!(waiting.as_mut().now_or_never().is_none(), "no turn is free");
        waiting
    }

    #[tokio::test]
    async fn an_identity_that_wants_many_turns_does_not_delay_others() {
        let turns = Turns::new(2);
        let greedy = turns.take(&name("greedy.shop")).await;
        let mut more: Vec<_> = (0..100).map(|_| waits(&turns, "greedy.shop")).collect();
        let users = turns.take(&name("users.shop")).now_or_never().expect("there is room for another identity");
        // When all turns are taken, waiting identities get the next ones in their order.
        let mut orders = waits(&turns, "orders.shop");
        drop(greedy);
        let mut greedy = more[0].as_mut().now_or_never().expect("the greedy identity came first");
        assert!(orders.as_mut().now_or_never().is_none());
        drop(greedy);
        let orders =
            orders.as_mut().now_or_never().expect("its turn comes before the other turns of the greedy identity");
        assert!(more[1].as_mut().now_or_never().is_none());
        drop((users, orders));
        greedy = more[1].as_mut().now_or_never().unwrap();
        assert!(more[2].as_mut().now_or_never().is_none(), "one turn of an identity at a time");
        drop(greedy);
    }

    #[tokio::test]
    async fn waiters_that_give_up_leave_nothing_behind() {
        let turns = Turns::new(1);
        let held = turns.take(&name("users.shop")).await;
        for _ in 0..1_000 {
            drop(waits(&turns, "greedy.shop"));
            assert!(turns.lock().waiting[&name("greedy.shop")].len() <= 1);
        }
        let mut last = waits(&turns, "orders.shop");
        drop(held);
        let last = last.as_mut().now_or_never().expect("waiters that gave up are skipped");
        // A turn that was given to a waiter and not picked up goes to the next one.
        let (not_picked_up, mut next) = (waits(&turns, "users.shop"), waits(&turns, "auth.shop"));
        drop(last);
        drop(not_picked_up);
        drop(next.as_mut().now_or_never().unwrap());
        let state = turns.lock();
        assert!(state.busy.is_empty() && state.waiting.is_empty() && state.order.is_empty());
    }
}
