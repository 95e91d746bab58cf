//! Chooses the endpoint of a service that gets a call. No I/O.

use std::{cell::Cell, sync::Arc, sync::atomic::Ordering::Relaxed};

use crate::{args::Balance, endpoints::catalog::Endpoint, time::moment::Moment};

/// Why no endpoint can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoChoice {
    /// No endpoint is up.
    NoneUp,
    /// Every endpoint that is up was tried for this call.
    AllTried,
}

/// One worker's balancer.
#[derive(Debug)]
pub(crate) struct Balancer {
    strategy: Balance,
    turn: Cell<usize>,
}

impl Balancer {
    pub(crate) fn new(strategy: Balance) -> Self {
        Self { strategy, turn: Cell::new(fastrand::usize(..)) }
    }

    /// Chooses among the endpoints that are up, are not in `tried`, are not shunned and have no open breaker. If there
    /// is none, it takes shunned ones, and after those also ones with an open breaker: if all breakers are open, trying
    /// is better than refusing (Envoy calls it panic mode). The breaker of the service decides whether the service as a
    /// whole gets calls.
    pub(crate) fn pick<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        tried: &[u64],
        now: Moment,
    ) -> Result<&'a Arc<Endpoint>, NoChoice> {
        match self.pick_fit(endpoints, tried, now) {
            Some(endpoint) => Ok(endpoint),
            None => self.last_resort(endpoints, tried, now),
        }
    }

    /// The same without those that are taken only if nothing else is left.
    #[inline(always)]
    pub(crate) fn pick_fit<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        tried: &[u64],
        now: Moment,
    ) -> Option<&'a Arc<Endpoint>> {
        let is_fit = |endpoint: &Endpoint| {
            endpoint.is_up() && !endpoint.is_shunned(now) && !endpoint.breaker.is_open(now) && is_new(endpoint, tried)
        };
        // Nearly always the first choice is fit. Only if not, the whole list is filtered.
        if let Some(endpoint) = self.choose(endpoints).filter(|endpoint| is_fit(endpoint)) {
            return Some(endpoint);
        }
        let fit: Vec<_> = endpoints.iter().filter(|endpoint| is_fit(endpoint)).collect();
        self.choose(&fit).copied()
    }

    fn last_resort<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        tried: &[u64],
        now: Moment,
    ) -> Result<&'a Arc<Endpoint>, NoChoice> {
        let up: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.is_up()).collect();
        if up.is_empty() {
            return Err(NoChoice::NoneUp);
        }
        let untried: Vec<_> = up.into_iter().filter(|endpoint| is_new(endpoint, tried)).collect();
        if untried.is_empty() {
            return Err(NoChoice::AllTried);
        }
        let closed: Vec<_> = untried.iter().copied().filter(|endpoint| !endpoint.breaker.is_open(now)).collect();
        self.choose(if closed.is_empty() { &untried } else { &closed }).copied().ok_or(NoChoice::AllTried)
    }

    fn choose<'a, T: AsRef<Endpoint>>(&self, endpoints: &'a [T]) -> Option<&'a T> {
        let count = endpoints.len();
        match (count, self.strategy) {
            (0 | 1, _) => endpoints.first(),
            (_, Balance::Random) => endpoints.get(fastrand::usize(..count)),
            (_, Balance::RoundRobin) => {
                let turn = self.turn.get().wrapping_add(1);
                self.turn.set(turn);
                endpoints.get(turn % count)
            }
            (_, Balance::P2c) => {
                let first = fastrand::usize(..count);
                let second = (first + 1 + fastrand::usize(..count - 1)) % count;
                let (first, second) = (&endpoints[first], &endpoints[second]);
                Some(if cost(first.as_ref()) <= cost(second.as_ref()) { first } else { second })
            }
        }
    }
}

fn is_new(endpoint: &Endpoint, tried: &[u64]) -> bool {
    !tried.contains(&endpoint.number)
}

/// Calls in flight. An endpoint that is not up costs most, so that of two the other is chosen.
fn cost(endpoint: &Endpoint) -> u64 {
    let load = u64::from(endpoint.in_flight.load(Relaxed));
    if endpoint.is_up() { load } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::breaker::{Breaker, Permit, Verdict};
    use weft_contracts::weft::discovery::v1::Health;
    use weft_mesh::policy::BreakerPolicy;

    fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
        (0..count)
            .map(|n| {
                let id = "spiffe://weft.local/ns/shop/sa/users".parse().unwrap();
                let breaker = Breaker::new(BreakerPolicy::default());
                Arc::new(Endpoint::new(n.to_string(), "127.0.0.1:1".parse().unwrap(), id, Health::Up, breaker))
            })
            .collect()
    }

    fn shares(strategy: Balance, endpoints: &[Arc<Endpoint>]) -> Vec<usize> {
        let balancer = Balancer::new(strategy);
        let mut shares = vec![0; endpoints.len()];
        for _ in 0..3_000 {
            let picked = balancer.pick(endpoints, &[], Moment::now()).unwrap();
            shares[endpoints.iter().position(|e| Arc::ptr_eq(e, picked)).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn every_strategy_is_fair_among_equals() {
        let three = endpoints(3);
        for strategy in [Balance::P2c, Balance::RoundRobin, Balance::Random] {
            assert!(shares(strategy, &three).iter().all(|n| (700..1_300).contains(n)), "{strategy:?}");
        }
    }

    #[test]
    fn least_request_avoids_the_busiest() {
        let three = endpoints(3);
        three[1].in_flight.store(10, Relaxed);
        assert_eq!(shares(Balance::P2c, &three)[1], 0);
    }

    #[test]
    fn unfit_endpoints_are_skipped_while_others_are_left() {
        let three = endpoints(3);
        three[0].set_health(Health::Down, false);
        three[1].shun(Moment::now());
        for strategy in [Balance::P2c, Balance::RoundRobin, Balance::Random] {
            assert_eq!(shares(strategy, &three), [0, 0, 3_000]);
        }
        let balancer = Balancer::new(Balance::P2c);
        let now = Moment::now();
        let last = balancer.pick(&three, &[three[2].number], now).unwrap();
        assert!(Arc::ptr_eq(last, &three[1]), "a shunned one is better than none");
        assert!(balancer.pick_fit(&three, &[three[2].number], now).is_none(), "but no fit one");
        assert_eq!(balancer.pick(&three, &[three[1].number, three[2].number], now).err(), Some(NoChoice::AllTried));
        for endpoint in &three[1..] {
            for _ in 0..5 {
                endpoint.breaker.settle(Permit::Call, Verdict::Failure, now);
            }
        }
        let shut = balancer.pick(&three, &[three[1].number], now).unwrap();
        assert!(Arc::ptr_eq(shut, &three[2]), "one with an open breaker is better than none");
        three.iter().for_each(|endpoint| endpoint.set_health(Health::Draining, false));
        assert_eq!(balancer.pick(&three, &[], now).err(), Some(NoChoice::NoneUp));
    }
}
