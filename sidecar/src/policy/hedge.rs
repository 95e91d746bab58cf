//! How many calls may be hedged: a budget, so that hedges never double the load of a service in trouble.

use std::cell::Cell;

use weft_mesh::limits;

/// The hedges that one worker may send to one service. A token bucket that calls fill, like that of gRPC's retry
/// throttling (gRFC A6). It begins full.
#[derive(Debug)]
pub(crate) struct Budget {
    /// The calls that it has counted: [`limits::CALLS_PER_HEDGE`] of them pay for one hedge.
    calls: Cell<u32>,
}

const FULL: u32 = limits::HEDGES_SAVED * limits::CALLS_PER_HEDGE;

impl Default for Budget {
    fn default() -> Self {
        Self { calls: Cell::new(FULL) }
    }
}

impl Budget {
    /// Counts a call of a method that is hedged.
    pub(crate) fn count_call(&self) {
        self.calls.set((self.calls.get() + 1).min(FULL));
    }

    /// Whether there may be one more hedge now.
    pub(crate) fn allows_one(&self) -> bool {
        self.calls.get() >= limits::CALLS_PER_HEDGE
    }

    /// Takes one hedge out of the budget.
    pub(crate) fn spend(&self) {
        self.calls.set(self.calls.get().saturating_sub(limits::CALLS_PER_HEDGE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(budget: &Budget) -> u32 {
        std::iter::from_fn(|| budget.allows_one().then(|| budget.spend())).count() as u32
    }

    #[test]
    fn a_tenth_of_the_calls_is_hedged_and_so_many_are_saved() {
        let budget = Budget::default();
        assert_eq!(spend_all(&budget), limits::HEDGES_SAVED);
        for _ in 1..limits::CALLS_PER_HEDGE {
            budget.count_call();
        }
        assert!(!budget.allows_one());
        budget.count_call();
        assert_eq!(spend_all(&budget), 1);

        (0..10 * FULL).for_each(|_| budget.count_call());
        assert_eq!(spend_all(&budget), limits::HEDGES_SAVED, "no more are saved");
        let hedges: u32 = (0..1_000).map(|_| budget.count_call()).map(|()| spend_all(&budget)).sum();
        assert_eq!(hedges, 1_000 / limits::CALLS_PER_HEDGE, "if each call needs one");
    }
}
