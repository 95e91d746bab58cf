//! How often an identity may do something, over all its connections and streams together.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use weft_mesh::{limits::Rate, names::ServiceName};

/// A token bucket, stored as the time when it will be full again (the "generic cell rate algorithm", ITU-T I.371).
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Bucket(Option<Instant>);

impl Bucket {
    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, (at_once, a_second, _): Rate, now: Instant) -> bool {
        let each = Duration::from_secs(1) / a_second;
        let full_at = self.0.map_or(now, |at| at.max(now)) + each;
        let has_one = full_at.saturating_duration_since(now) <= each * at_once;
        if has_one {
            self.0 = Some(full_at);
        }
        has_one
    }

    /// Whether it is like a new one.
    pub(crate) fn is_full(self, now: Instant) -> bool {
        self.0.is_none_or(|at| at <= now)
    }
}

/// A bucket for each identity.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    of: HashMap<ServiceName, Bucket>,
    /// When there are this many, full buckets are dropped: a new one is full as well.
    tidy_at: usize,
}

/// With fewer buckets it is not worth dropping any.
const TIDY_AT: usize = 64;

impl Rates {
    /// The same rate for every identity.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::new(Buckets { of: HashMap::new(), tidy_at: TIDY_AT }) }
    }

    /// Whether an identity may do it now.
    pub(crate) fn allows(&self, who: &ServiceName) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.of.len() >= buckets.tidy_at {
            buckets.of.retain(|_, bucket| !bucket.is_full(now));
            buckets.tidy_at = TIDY_AT.max(buckets.of.len() * 2);
        }
        buckets.of.entry(who.clone()).or_default().take(self.rate, now)
    }

    /// The refusal for an identity that does it too often.
    pub(crate) fn refusal(&self, who: &ServiceName, what: &str) -> tonic::Status {
        let (at_once, a_second, _) = self.rate;
        tonic::Status::resource_exhausted(format!(
            "{who} {what} too often: {at_once} times at once and {a_second} times a second are allowed to one identity; try \
             again later"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> ServiceName {
        ServiceName::parse(&format!("s{number}.shop")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn bursts_and_rates_are_limited_for_each_identity() {
        let rates = Rates::new((200, 20, 0));
        let taken = |who: usize| (0..1_000).filter(|_| rates.allows(&name(who))).count();
        assert_eq!((taken(1), taken(1), taken(2)), (200, 0, 200));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(1), 20);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(1), 200, "no more than one burst");
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_dropped() {
        let rates = Rates::new((1, 1, 0));
        for number in 0..10_000 {
            assert!(rates.allows(&name(number)));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(rates.buckets.lock().unwrap().of.len() <= TIDY_AT);
    }
}
