//! How often something is done for a namespace, so that one whose objects change without end takes no time from others.

use std::collections::HashMap;

use tokio::time::Instant;
use weft_mesh::limits::Rate;

use crate::directory::rates::Bucket;

/// See the module. One that has done nothing for long is not kept.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    buckets: HashMap<String, Bucket>,
    /// When there are this many, full buckets are dropped: a new one is full as well.
    tidy_at: usize,
}

/// With fewer buckets it is not worth dropping any.
const TIDY_AT: usize = 64;

impl Rates {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new(), tidy_at: TIDY_AT }
    }

    /// Whether it may be done once more now; then it counts.
    pub(crate) fn take(&mut self, namespace: &str, now: Instant) -> bool {
        if let Some(bucket) = self.buckets.get_mut(namespace) {
            return bucket.take(self.rate, now);
        }
        if self.buckets.len() >= self.tidy_at {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            self.tidy_at = TIDY_AT.max(self.buckets.len() * 2);
        }
        self.buckets.entry(namespace.to_owned()).or_default().take(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_namespace_takes_nothing_from_others_and_none_is_kept_for_ever() {
        let mut rates = Rates::new((10, 1, 0));
        let mut taken = |namespace: &str| (0..100).filter(|_| rates.take(namespace, Instant::now())).count();
        assert_eq!([taken("a"), taken("a"), taken("b")], [10, 0, 10]);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!([taken("a"), taken("b")], [3, 3]);
        for number in 0..1_000 {
            taken(&number.to_string());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(rates.buckets.len() <= TIDY_AT, "{}", rates.buckets.len());
    }
}
