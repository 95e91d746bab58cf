//! How often an identity may do something, over all its connections and streams together.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
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

/// A bucket for each key. One that has done nothing for long is not kept.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    of: HashMap<K, Bucket>,
    /// When there are this many, full buckets are dropped: a new one is full as well.
    tidy_at: usize,
}

/// With fewer buckets it is not worth dropping any.
const TIDY_AT: usize = 64;

impl<K: Hash + Eq> Buckets<K> {
    /// The same rate for every key.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, of: HashMap::new(), tidy_at: TIDY_AT }
    }

    /// Takes a token of a key's bucket, if there is one.
    pub(crate) fn take<Q>(&mut self, key: &Q, now: Instant) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(bucket) = self.of.get_mut(key) {
            return bucket.take(self.rate, now);
        }
        if self.of.len() >= self.tidy_at {
            self.of.retain(|_, bucket| !bucket.is_full(now));
            self.tidy_at = TIDY_AT.max(self.of.len() * 2);
        }
        self.of.entry(key.to_owned()).or_default().take(self.rate, now)
    }
}

/// A bucket for each identity.
#[derive(Debug)]
pub(crate) struct Rates(Mutex<Buckets<ServiceName>>);

impl Rates {
    /// The same rate for every identity.
    pub(crate) fn new(rate: Rate) -> Self {
        Self(Mutex::new(Buckets::new(rate)))
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets<ServiceName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an identity may do it now.
    pub(crate) fn allows(&self, who: &ServiceName) -> bool {
        self.buckets().take(who, Instant::now())
    }

    /// The refusal for an identity that does it too often.
    pub(crate) fn refusal(&self, who: &ServiceName, what: &str) -> tonic::Status {
        let (at_once, a_second, _) = self.buckets().rate;
        tonic::Status::resource_exhausted(format!(
            "{who} {what} too often: {at_once} times at once and {a_second} times a second are allowed to one identity; try \
             again later"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_key_takes_nothing_from_others_and_none_is_kept_for_ever() {
        let mut buckets = Buckets::<String>::new((10, 1, 0));
        let mut taken = |key: &str| (0..100).filter(|_| buckets.take(key, Instant::now())).count();
        assert_eq!([taken("a"), taken("a"), taken("b")], [10, 0, 10]);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!([taken("a"), taken("b")], [3, 3]);
        for number in 0..1_000 {
            taken(&number.to_string());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(buckets.of.len() <= TIDY_AT, "{}", buckets.of.len());
    }

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
        assert!(rates.buckets().of.len() <= TIDY_AT);
    }
}
