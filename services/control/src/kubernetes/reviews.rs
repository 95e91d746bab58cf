//! Who may have the API server asked about a token: anybody who reaches the control plane can show one.
//!
//! Each network has turns and a rate of its own, so those who send false tokens neither keep others waiting nor flood
//! the API server. A refused token is remembered for a while. An accepted one is not: it is worth nothing from the moment
//! at which its pod is gone.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use weft_mesh::{
    limits,
    names::{ServiceName, shown},
    networks::network,
};

use super::accounts::{AccountError, Review, Tokens};
use crate::directory::rates::Bucket;

/// After this time a network's rate is whole again, so what is known of it may be forgotten.
const RATE_WHOLE: Duration =
    Duration::from_secs((limits::TOKEN_REVIEW_RATE.0 / limits::TOKEN_REVIEW_RATE.1) as u64 + 1);
/// With fewer networks it is not worth forgetting any.
const TIDY_AT: usize = 64;
/// How long tokens of an identity are not reviewed after it has used up its rate of signatures: one for each 50 ms of it.
const SPENT: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Reviews {
    turns: Semaphore,
    networks: Mutex<Networks>,
    refused: Mutex<VecDeque<Refused>>,
    spent: Mutex<HashMap<ServiceName, Instant>>,
}

struct Networks {
    of: HashMap<IpAddr, OfNetwork>,
    tidy_at: usize,
}

struct OfNetwork {
    rate: Bucket,
    turns: Arc<Semaphore>,
    used: Instant,
}

/// A token that the API server has refused.
struct Refused {
    token_sha256: [u8; 32],
    why: String,
    until: Instant,
}

impl Default for Reviews {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(limits::TOKEN_REVIEWS),
            networks: Mutex::new(Networks { of: HashMap::new(), tidy_at: TIDY_AT }),
            refused: Mutex::default(),
            spent: Mutex::default(),
        }
    }
}

impl Reviews {
    /// What the API server says of a token that came from this address.
    pub(crate) async fn review(&self, tokens: &dyn Tokens, token: &str, from: IpAddr) -> Result<Review, AccountError> {
        let until = Instant::now() + limits::TOKEN_REVIEW_WAIT;
        let token_sha256: [u8; 32] = Sha256::digest(token).into();
        self.check(&token_sha256)?;
        let of_network = self.network(from).ok_or(AccountError::TooOften)?;
        // First the network's: so at most that many of one network wait for a turn of all.
        let _of_network = timeout_at(until, of_network.acquire()).await.map_err(|_| AccountError::Busy)?;
        let _turn = timeout_at(until, self.turns.acquire()).await.map_err(|_| AccountError::Busy)?;
        // It may have been refused meanwhile.
        self.check(&token_sha256)?;
        let review = timeout_at(until, tokens.review(token)).await;
        let review = review.map_err(|_| AccountError::Unanswered(anyhow::anyhow!("it did not answer in time")))?;
        let review = review.map_err(AccountError::Unanswered)?;
        if !review.is_authenticated {
            self.note_refused(token_sha256, shown(&review.error));
        }
        Ok(review)
    }

    /// An identity, which was proven, has used up its rate of signatures.
    pub(crate) fn note_spent(&self, who: &ServiceName) {
        let now = Instant::now();
        let mut spent = lock(&self.spent);
        spent.retain(|_, until| *until > now);
        spent.insert(who.clone(), now + SPENT);
    }

    /// Whether a token that claims this identity needs no review now, because nothing would be signed for it. Claiming an
    /// identity takes nothing of its rate.
    pub(crate) fn is_spent(&self, who: &ServiceName) -> bool {
        lock(&self.spent).get(who).is_some_and(|until| *until > Instant::now())
    }

    /// The turns of a network, if its rate allows a review. The rate also bounds how many wait for a turn.
    fn network(&self, from: IpAddr) -> Option<Arc<Semaphore>> {
        let (now, mut networks) = (Instant::now(), lock(&self.networks));
        let Networks { of, tidy_at } = &mut *networks;
        if of.len() >= *tidy_at {
            of.retain(|_, network| now < network.used + RATE_WHOLE || Arc::strong_count(&network.turns) > 1);
            *tidy_at = TIDY_AT.max(of.len() * 2);
        }
        let network = of.entry(network(from)).or_insert_with(|| OfNetwork {
            rate: Bucket::default(),
            turns: Arc::new(Semaphore::new(limits::TOKEN_REVIEWS_PER_NETWORK)),
            used: now,
        });
        network.used = now;
        network.rate.take(limits::TOKEN_REVIEW_RATE, now).then(|| Arc::clone(&network.turns))
    }

    /// Refuses a token that the API server has refused lately.
    fn check(&self, token_sha256: &[u8; 32]) -> Result<(), AccountError> {
        let (now, refused) = (Instant::now(), lock(&self.refused));
        let known = refused.iter().find(|refused| refused.token_sha256 == *token_sha256 && refused.until > now);
        known.map_or(Ok(()), |known| Err(AccountError::Refused(known.why.clone())))
    }

    fn note_refused(&self, token_sha256: [u8; 32], why: String) {
        let mut refused = lock(&self.refused);
        if refused.len() >= limits::TOKENS_REFUSED {
            refused.pop_front();
        }
        refused.push_back(Refused { token_sha256, why, until: Instant::now() + limits::TOKEN_REFUSED_TIME });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures_util::{FutureExt as _, future::BoxFuture};
    use tokio::time::{advance, sleep};

    use super::*;

    /// An API server that takes a second for each review, and refuses all tokens but one.
    #[derive(Default)]
    struct Slow {
        asked: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
    }

    const GOOD: &str = "good";

    impl Tokens for Slow {
        fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
            async move {
                self.asked.fetch_add(1, Relaxed);
                self.most.fetch_max(self.running.fetch_add(1, Relaxed) + 1, Relaxed);
                sleep(Duration::from_secs(1)).await;
                self.running.fetch_sub(1, Relaxed);
                Ok(Review { is_authenticated: token == GOOD, error: "it is forged".into(), ..Review::default() })
            }
            .boxed()
        }
    }

    fn host(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn start() -> (Arc<Reviews>, Arc<Slow>) {
        (Arc::default(), Arc::default())
    }

    /// Asks about a token in a task of its own.
    fn ask(
        (reviews, tokens): &(Arc<Reviews>, Arc<Slow>),
        token: String,
        from: IpAddr,
    ) -> tokio::task::JoinHandle<Result<Review, AccountError>> {
        let (reviews, tokens) = (Arc::clone(reviews), Arc::clone(tokens));
        tokio::spawn(async move { reviews.review(&*tokens, &token, from).await })
    }

    #[tokio::test(start_paused = true)]
    async fn false_tokens_from_one_address_do_not_keep_others_waiting() {
        let all = start();
        let flood: Vec<_> = (0..200).map(|number| ask(&all, format!("false {number}"), host(1))).collect();
        sleep(Duration::from_millis(10)).await;
        let started = Instant::now();
        assert!(ask(&all, GOOD.to_owned(), host(2)).await.unwrap().unwrap().is_authenticated);
        assert_eq!(started.elapsed(), Duration::from_secs(1), "it had its turn at once");
        let mut busy = 0;
        for asked in flood {
            busy += usize::from(matches!(asked.await.unwrap(), Err(AccountError::Busy)));
        }
        assert!(busy > 180, "{busy}");
        assert_eq!(all.1.most.load(Relaxed), limits::TOKEN_REVIEWS_PER_NETWORK + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_have_so_many_turns() {
        let all = start();
        let asked: Vec<_> = (0..100).map(|last| ask(&all, format!("false {last}"), host(last))).collect();
        for asked in asked {
            assert!(!asked.await.unwrap().unwrap().is_authenticated);
        }
        assert_eq!(all.1.most.load(Relaxed), limits::TOKEN_REVIEWS);
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_causes_so_many_reviews() {
        let reviews = Reviews::default();
        let (at_once, a_second, _) = limits::TOKEN_REVIEW_RATE;
        let allowed = |last| (0..1_000).filter(|_| reviews.network(host(last)).is_some()).count();
        assert_eq!((allowed(1), allowed(1)), (at_once as usize, 0));
        assert_eq!(allowed(2), at_once as usize);
        advance(Duration::from_secs(1)).await;
        assert_eq!(allowed(1), a_second as usize);
        advance(RATE_WHOLE).await;
        (0..=u8::MAX).for_each(|last| drop(reviews.network(host(last))));
        advance(RATE_WHOLE).await;
        (0..=u8::MAX).for_each(|third| drop(reviews.network([10, 0, third, 1].into())));
        assert!(lock(&reviews.networks).of.len() <= 512, "networks that left are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_not_reviewed_again_for_a_while_but_an_accepted_one_is() {
        let all = start();
        let refused = || ask(&all, "false".to_owned(), host(1));
        assert!(!refused().await.unwrap().unwrap().is_authenticated);
        // Wherever it comes from.
        let again = ask(&all, "false".to_owned(), host(2)).await.unwrap();
        assert!(matches!(again, Err(AccountError::Refused(why)) if why == "it is forged"));
        assert_eq!(all.1.asked.load(Relaxed), 1);
        advance(limits::TOKEN_REFUSED_TIME).await;
        assert!(!refused().await.unwrap().unwrap().is_authenticated);
        assert_eq!(all.1.asked.load(Relaxed), 2);
        for asked in 3..5 {
            assert!(ask(&all, GOOD.to_owned(), host(1)).await.unwrap().unwrap().is_authenticated);
            assert_eq!(all.1.asked.load(Relaxed), asked, "its pod may be gone");
        }
        for number in 0..2 * limits::TOKENS_REFUSED {
            let number = number.to_be_bytes();
            all.0.note_refused(Sha256::digest(number).into(), String::new());
        }
        assert_eq!(lock(&all.0.refused).len(), limits::TOKENS_REFUSED);
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_that_has_used_up_its_signatures_is_not_reviewed_for_a_moment() {
        let (reviews, users) = (Reviews::default(), ServiceName::parse("users.shop").unwrap());
        reviews.note_spent(&users);
        assert!(reviews.is_spent(&users) && !reviews.is_spent(&ServiceName::parse("orders.shop").unwrap()));
        advance(SPENT).await;
        assert!(!reviews.is_spent(&users));
    }
}
