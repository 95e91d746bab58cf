//! Turns at work that takes long, shared by identity.
//!
//! So many run at once, of each identity one. The identities that wait get their turns in the order in which they came, and
//! one that still waits after its turn queues again behind the others: an identity with much to do delays itself.

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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    busy: HashSet<ServiceName>,
    /// The identities that wait, each once.
    order: VecDeque<ServiceName>,
    waiting: HashMap<ServiceName, VecDeque<oneshot::Sender<Turn>>>,
}

/// A turn, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` for one that was never handed out.
    of: Option<(Arc<Turns>, ServiceName)>,
}

impl Turns {
    /// So many at once.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// Waits for an identity's turn. Dropping the future gives up the place.
    pub(crate) async fn take(self: &Arc<Self>, who: &ServiceName) -> Turn {
        let (give, given) = oneshot::channel();
        {
            let mut state = self.lock();
            let queue = state.waiting.entry(who.clone()).or_default();
            // Those who gave up are few: each time one comes they go.
            queue.retain(|waiting| !waiting.is_closed());
            queue.push_back(give);
            if !state.order.contains(who) {
                state.order.push_back(who.clone());
            }
            self.hand_out(&mut state);
        }
        match given.await {
            Ok(turn) => turn,
            // It stays in its queue until it is given or nobody waits for it.
            Err(_) => pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the turns that are free to those who wait.
    fn hand_out(self: &Arc<Self>, state: &mut State) {
        // Each round makes an identity busy, or takes one out of the queues.
        while state.busy.len() < self.limit {
            let Some(place) = state.order.iter().position(|who| !state.busy.contains(who)) else { return };
            let Some(who) = state.order.remove(place) else { return };
            let Some(queue) = state.waiting.get_mut(&who) else { continue };
            let is_given = loop {
                let Some(waiting) = queue.pop_front() else { break false };
                let turn = Turn { of: Some((Arc::clone(self), who.clone())) };
                match waiting.send(turn) {
                    Ok(()) => break true,
                    // It waits no longer. Dropped as it is, the turn would lock the state once more.
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

    /// Waits, and has its place in the queue from now on.
    fn waits(turns: &Arc<Turns>, service: &str) -> BoxFuture<'static, Turn> {
        let (turns, service) = (Arc::clone(turns), name(service));
        let mut waiting = async move { turns.take(&service).await }.boxed();
        assert!(waiting.as_mut().now_or_never().is_none(), "it has to wait");
        waiting
    }

    #[tokio::test]
    async fn who_wants_many_turns_has_one_and_others_are_not_held_up() {
        let turns = Turns::new(2);
        let greedy = turns.take(&name("greedy.shop")).await;
        let mut more: Vec<_> = (0..100).map(|_| waits(&turns, "greedy.shop")).collect();
        let users = turns.take(&name("users.shop")).now_or_never().expect("there is room for another identity");
        // When all turns are taken, those who wait get them in the order of their identities.
        let mut orders = waits(&turns, "orders.shop");
        drop(greedy);
        let mut greedy = more[0].as_mut().now_or_never().expect("it came before");
        assert!(orders.as_mut().now_or_never().is_none());
        drop(greedy);
        let orders = orders.as_mut().now_or_never().expect("it is its turn, before all the others of the greedy one");
        assert!(more[1].as_mut().now_or_never().is_none());
        drop((users, orders));
        greedy = more[1].as_mut().now_or_never().unwrap();
        assert!(more[2].as_mut().now_or_never().is_none(), "one at once");
        drop(greedy);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing() {
        let turns = Turns::new(1);
        let held = turns.take(&name("users.shop")).await;
        for _ in 0..1_000 {
            drop(waits(&turns, "greedy.shop"));
            assert!(turns.lock().waiting[&name("greedy.shop")].len() <= 1);
        }
        let mut last = waits(&turns, "orders.shop");
        drop(held);
        let last = last.as_mut().now_or_never().expect("those who gave up are passed over");
        // A turn that was given and not fetched is the next one's.
        let (fetched_not, mut next) = (waits(&turns, "users.shop"), waits(&turns, "auth.shop"));
        drop(last);
        drop(fetched_not);
        drop(next.as_mut().now_or_never().unwrap());
        let state = turns.lock();
        assert!(state.busy.is_empty() && state.waiting.is_empty() && state.order.is_empty());
    }
}
