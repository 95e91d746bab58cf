//! The circuit breaker of an endpoint or a service: closed, open, half-open with one probe at a time.
//!
//! A plain state machine that is given `now`. All of its state is atomic, so that workers share it without a lock. The
//! rolling window is ten buckets of one word each: which tenth of a window it counts, the calls in it, the failures in
//! it.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use weft_mesh::policy::BreakerPolicy;

use crate::time::moment::Moment;

const BUCKETS: u64 = 10;
/// Bits of each of the two counts in a bucket's word.
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// See the module.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    /// A tenth of the window.
    tenth_ms: u64,
    /// [`Circuit`] in one word: its kind in the two lowest bits, milliseconds since the sidecar's start above.
    circuit: AtomicU64,
    consecutive: AtomicU32,
    probes_passed: AtomicU32,
    window: [AtomicU64; BUCKETS as usize],
    /// The slow calls of each bucket, with the tenth that they are of. Written only when a call was slow.
    slow: [AtomicU64; BUCKETS as usize],
    /// When it last opened, in milliseconds since the sidecar's start. Probes from before say nothing.
    opened_ms: AtomicU64,
    times_opened: AtomicU64,
    calls_refused: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Circuit {
    Closed,
    /// Refuses calls until then.
    Open {
        until_ms: u64,
    },
    /// The next call becomes a probe.
    HalfOpen,
    /// A probe has run since then.
    Probing {
        since_ms: u64,
    },
}

impl Circuit {
    fn word(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { until_ms } => until_ms << 2 | 1,
            Self::HalfOpen => 2,
            Self::Probing { since_ms } => since_ms << 2 | 3,
        }
    }

    fn of(word: u64) -> Self {
        match word & 3 {
            0 => Self::Closed,
            1 => Self::Open { until_ms: word >> 2 },
            2 => Self::HalfOpen,
            _ => Self::Probing { since_ms: word >> 2 },
        }
    }
}

/// A call that the breaker let through. It must be [settled](Breaker::settle).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// An ordinary call of a closed breaker.
    Call,
    /// The probe of a half-open breaker, which began then. Once the breaker has another probe, only its success counts: a
    /// caller may hold it, and end it when it likes. Once the breaker is closed or open again, it says nothing.
    Probe { since_ms: u64 },
}

/// What the end of a call says about its callee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure,
    /// Nothing: the caller gave up, say, or the call was never sent.
    Nothing,
}

/// What the admin page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statistics {
    pub(crate) state: CircuitState,
    pub(crate) calls: u32,
    pub(crate) failures: u32,
    pub(crate) slow: u32,
    pub(crate) consecutive_failures: u32,
    pub(crate) times_opened: u64,
    pub(crate) calls_refused: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CircuitState {
    Closed,
    Open,
    HalfOpen,
}

impl Breaker {
    pub(crate) fn new(policy: BreakerPolicy) -> Self {
        let tenth_ms = (policy.window.as_millis() as u64 / BUCKETS).max(1);
        Self {
            policy,
            tenth_ms,
            circuit: AtomicU64::new(Circuit::Closed.word()),
            consecutive: AtomicU32::new(0),
            probes_passed: AtomicU32::new(0),
            window: Default::default(),
            slow: Default::default(),
            opened_ms: AtomicU64::new(0),
            times_opened: AtomicU64::new(0),
            calls_refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }

    /// A call that takes longer than this is slow; `None` if the policy does not say when a call is slow.
    #[inline]
    pub(crate) fn slow_after(&self) -> Option<Duration> {
        self.policy.slow_call.map(|slow_call| slow_call.longer_than)
    }

    /// Whether a call would be refused now.
    pub(crate) fn is_open(&self, now: Moment) -> bool {
        match Circuit::of(self.circuit.load(Relaxed)) {
            Circuit::Closed | Circuit::HalfOpen => false,
            Circuit::Open { until_ms } => now.millis() < until_ms,
            Circuit::Probing { since_ms } => !self.is_probe_lost(since_ms, now),
        }
    }

    /// Lets a call through, or returns the time after which to try again.
    pub(crate) fn admit(&self, now: Moment) -> Result<Permit, Duration> {
        let word = self.circuit.load(Relaxed);
        let circuit = Circuit::of(word);
        let may_probe = match circuit {
            Circuit::Closed => return Ok(Permit::Call),
            Circuit::HalfOpen => true,
            Circuit::Open { until_ms } => now.millis() >= until_ms,
            Circuit::Probing { since_ms } => self.is_probe_lost(since_ms, now),
        };
        let since_ms = now.millis();
        let probing = Circuit::Probing { since_ms }.word();
        if may_probe && self.circuit.compare_exchange(word, probing, Relaxed, Relaxed).is_ok() {
            if matches!(circuit, Circuit::Open { .. }) {
                self.probes_passed.store(0, Relaxed);
            }
            return Ok(Permit::Probe { since_ms });
        }
        self.calls_refused.fetch_add(1, Relaxed);
        let wait_ms = match circuit {
            Circuit::Open { until_ms } => until_ms.saturating_sub(now.millis()),
            _ => 0,
        };
        Err(Duration::from_millis(wait_ms.max(100)))
    }

    /// Takes the verdict of an admitted call.
    pub(crate) fn settle(&self, permit: Permit, verdict: Verdict, now: Moment) {
        match (permit, verdict) {
            (Permit::Probe { since_ms }, verdict) => self.settle_probe(since_ms, verdict, now),
            (Permit::Call, Verdict::Nothing) => {}
            (Permit::Call, Verdict::Success) => {
                // A store on each call would take the cache line from the other workers.
                if self.consecutive.load(Relaxed) != 0 {
                    self.consecutive.store(0, Relaxed);
                }
                self.count(false, now);
            }
            (Permit::Call, Verdict::Failure) => {
                let consecutive = self.consecutive.fetch_add(1, Relaxed) + 1;
                self.count(true, now);
                if Circuit::of(self.circuit.load(Relaxed)) == Circuit::Closed && self.must_open(consecutive, now) {
                    self.open(now);
                }
            }
        }
    }

    #[cold]
    fn settle_probe(&self, since_ms: u64, verdict: Verdict, now: Moment) {
        let word = self.circuit.load(Relaxed);
        let is_last = word == Circuit::Probing { since_ms }.word();
        // A service whose calls take longer than `open_for` could never close it otherwise.
        let is_late_success = verdict == Verdict::Success
            && matches!(Circuit::of(word), Circuit::Probing { .. })
            && since_ms > self.opened_ms.load(Relaxed);
        if !is_last && !is_late_success {
            return;
        }
        let is_enough = self.probes_passed.load(Relaxed) + 1 >= self.policy.probes;
        let next = match verdict {
            Verdict::Success if is_enough => Circuit::Closed,
            // The newer probe goes on.
            Verdict::Success if !is_last => Circuit::of(word),
            Verdict::Success | Verdict::Nothing => Circuit::HalfOpen,
            Verdict::Failure => return self.open_from(word, now),
        };
        if self.circuit.compare_exchange(word, next.word(), Relaxed, Relaxed).is_err() {
            return;
        }
        match verdict {
            Verdict::Success if next == Circuit::Closed => self.forget_history(),
            Verdict::Success => drop(self.probes_passed.fetch_add(1, Relaxed)),
            Verdict::Failure | Verdict::Nothing => {}
        }
    }

    /// Takes in what became of an admitted call that was slow. A slow probe fails, as one that fails quickly does. A call
    /// whose verdict says nothing says nothing here either.
    #[cold]
    pub(crate) fn settle_slow(&self, permit: Permit, verdict: Verdict, now: Moment) {
        let consecutive = match (permit, verdict) {
            (_, Verdict::Nothing) => return self.settle(permit, verdict, now),
            (Permit::Probe { since_ms }, _) => return self.settle_probe(since_ms, Verdict::Failure, now),
            (Permit::Call, Verdict::Failure) => self.consecutive.fetch_add(1, Relaxed) + 1,
            (Permit::Call, Verdict::Success) => {
                self.consecutive.store(0, Relaxed);
                0
            }
        };
        self.count(verdict == Verdict::Failure, now);
        self.count_slow(now);
        let must_open = || self.must_open(consecutive, now) || self.must_open_as_slow(now);
        if Circuit::of(self.circuit.load(Relaxed)) == Circuit::Closed && must_open() {
            self.open(now);
        }
    }

    /// Closes it and forgets the window, as the callee was replaced.
    pub(crate) fn close(&self) {
        self.forget_history();
        self.circuit.store(Circuit::Closed.word(), Relaxed);
    }

    pub(crate) fn statistics(&self, now: Moment) -> Statistics {
        let (calls, failures) = self.totals(now);
        Statistics {
            state: match Circuit::of(self.circuit.load(Relaxed)) {
                Circuit::Closed => CircuitState::Closed,
                Circuit::Open { until_ms } if now.millis() < until_ms => CircuitState::Open,
                _ => CircuitState::HalfOpen,
            },
            calls,
            failures,
            slow: self.total_slow(now),
            consecutive_failures: self.consecutive.load(Relaxed),
            times_opened: self.times_opened.load(Relaxed),
            calls_refused: self.calls_refused.load(Relaxed),
        }
    }

    fn must_open(&self, consecutive: u32, now: Moment) -> bool {
        let in_a_row = self.policy.consecutive_failures;
        if in_a_row > 0 && consecutive >= in_a_row {
            return true;
        }
        let (calls, failures) = self.totals(now);
        calls >= self.policy.minimum_calls && f64::from(failures) >= self.policy.failure_ratio * f64::from(calls)
    }

    fn must_open_as_slow(&self, now: Moment) -> bool {
        let Some(slow_call) = self.policy.slow_call else { return false };
        let (calls, _) = self.totals(now);
        calls >= self.policy.minimum_calls && f64::from(self.total_slow(now)) >= slow_call.ratio * f64::from(calls)
    }

    fn open(&self, now: Moment) {
        self.open_from(Circuit::Closed.word(), now);
    }

    /// Opens it, unless it has left that state meanwhile.
    fn open_from(&self, circuit: u64, now: Moment) {
        let until_ms = now.millis() + self.policy.open_for.as_millis() as u64;
        let open = Circuit::Open { until_ms }.word();
        if self.circuit.compare_exchange(circuit, open, Relaxed, Relaxed).is_ok() {
            self.opened_ms.store(now.millis(), Relaxed);
            self.times_opened.fetch_add(1, Relaxed);
            self.forget_history();
        }
    }

    fn forget_history(&self) {
        self.consecutive.store(0, Relaxed);
        self.window.iter().chain(&self.slow).for_each(|bucket| bucket.store(0, Relaxed));
    }

    /// A probe that has run for as long as a breaker stays open (`open_for`) counts as lost: another may start.
    fn is_probe_lost(&self, since_ms: u64, now: Moment) -> bool {
        now.millis() >= since_ms + self.policy.open_for.as_millis() as u64
    }

    /// The number of the tenth that `now` is in, counted from the sidecar's start. It begins at 1, so that 0 marks an
    /// empty bucket.
    fn tenth(&self, now: Moment) -> u64 {
        now.millis() / self.tenth_ms + 1
    }

    fn count(&self, is_failure: bool, now: Moment) {
        let tenth = self.tenth(now) & (u64::MAX >> (2 * COUNT_BITS));
        let bucket = &self.window[(tenth % BUCKETS) as usize];
        let _ = bucket.fetch_update(Relaxed, Relaxed, |word| {
            let (of, calls, failures) = unpack(word);
            let (calls, failures) = if of == tenth { (calls, failures) } else { (0, 0) };
            let calls = (calls + 1).min(COUNT_MAX);
            let failures = (failures + u64::from(is_failure)).min(COUNT_MAX);
            Some(tenth << (2 * COUNT_BITS) | calls << COUNT_BITS | failures)
        });
    }

    fn count_slow(&self, now: Moment) {
        let tenth = self.tenth(now) & (u64::MAX >> (2 * COUNT_BITS));
        let bucket = &self.slow[(tenth % BUCKETS) as usize];
        let _ = bucket.fetch_update(Relaxed, Relaxed, |word| {
            let (of, slow) = (word >> (2 * COUNT_BITS), word & COUNT_MAX);
            let slow = if of == tenth { (slow + 1).min(COUNT_MAX) } else { 1 };
            Some(tenth << (2 * COUNT_BITS) | slow)
        });
    }

    fn total_slow(&self, now: Moment) -> u32 {
        let tenth = self.tenth(now);
        let words = self.slow.iter().map(|bucket| bucket.load(Relaxed));
        let in_window = words.filter(|word| *word != 0 && (word >> (2 * COUNT_BITS)) + BUCKETS > tenth);
        in_window.map(|word| (word & COUNT_MAX) as u32).sum()
    }

    fn totals(&self, now: Moment) -> (u32, u32) {
        let tenth = self.tenth(now);
        let mut sums = (0, 0);
        for bucket in &self.window {
            let (of, calls, failures) = unpack(bucket.load(Relaxed));
            if of + BUCKETS > tenth && of > 0 {
                sums = (sums.0 + calls as u32, sums.1 + failures as u32);
            }
        }
        sums
    }
}

fn unpack(word: u64) -> (u64, u64, u64) {
    (word >> (2 * COUNT_BITS), word >> COUNT_BITS & COUNT_MAX, word & COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use weft_mesh::policy::SlowCall;

    use super::*;

    fn breaker(policy: BreakerPolicy) -> (Breaker, Moment) {
        let now = Moment::now();
        (Breaker::new(policy), now)
    }

    fn fail(breaker: &Breaker, times: u32, now: Moment) {
        for _ in 0..times {
            let permit = breaker.admit(now).unwrap();
            breaker.settle(permit, Verdict::Failure, now);
        }
    }

    /// The permit of a probe, which the next call is.
    fn probe(breaker: &Breaker) -> Permit {
        let permit = breaker.admit(Moment::now()).expect("it is half-open");
        assert!(matches!(permit, Permit::Probe { .. }));
        permit
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_probes_once_and_closes() {
        let (breaker, _) = breaker(BreakerPolicy::default());
        fail(&breaker, 4, Moment::now());
        breaker.settle(Permit::Call, Verdict::Success, Moment::now());
        fail(&breaker, 4, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::Closed);
        fail(&breaker, 1, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::Open);
        assert_eq!(breaker.admit(Moment::now()), Err(Duration::from_secs(5)));

        tokio::time::advance(Duration::from_secs(5)).await;
        let permit = probe(&breaker);
        assert!(breaker.admit(Moment::now()).is_err(), "one probe at a time");
        breaker.settle(permit, Verdict::Success, Moment::now());
        assert_eq!(breaker.admit(Moment::now()), Ok(Permit::Call));
        assert_eq!(breaker.statistics(Moment::now()).calls_refused, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_opens_again_and_a_lost_one_is_replaced() {
        let (breaker, _) = breaker(BreakerPolicy { probes: 2, ..Default::default() });
        fail(&breaker, 5, Moment::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        fail(&breaker, 1, Moment::now());
        assert!(breaker.is_open(Moment::now()));

        tokio::time::advance(Duration::from_secs(5)).await;
        probe(&breaker);
        tokio::time::advance(Duration::from_secs(5)).await;
        breaker.settle(probe(&breaker), Verdict::Success, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::HalfOpen, "two probes must pass");
        breaker.settle(probe(&breaker), Verdict::Nothing, Moment::now());
        // A probe that said nothing is repeated.
        breaker.settle(probe(&breaker), Verdict::Success, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::Closed);
    }

    /// A caller could keep a healthy service's breaker from others by calls that it holds and ends when it likes.
    #[tokio::test(start_paused = true)]
    async fn a_probe_that_ends_after_another_says_nothing() {
        for verdict in [Verdict::Failure, Verdict::Nothing] {
            let (breaker, _) = breaker(BreakerPolicy::default());
            fail(&breaker, 5, Moment::now());
            tokio::time::advance(Duration::from_secs(5)).await;
            let held = probe(&breaker);
            tokio::time::advance(Duration::from_secs(5)).await;
            let second = probe(&breaker);
            breaker.settle(held, verdict, Moment::now());
            assert!(breaker.admit(Moment::now()).is_err(), "{verdict:?}: the second probe still runs");
            breaker.settle(second, Verdict::Success, Moment::now());
            breaker.settle(held, verdict, Moment::now());
            breaker.settle_slow(held, verdict, Moment::now());
            assert_eq!(breaker.admit(Moment::now()), Ok(Permit::Call), "{verdict:?}: it stays closed");
        }
    }

    /// Its calls may take longer than it stays open.
    #[tokio::test(start_paused = true)]
    async fn a_late_success_closes_it_unless_it_has_opened_since() {
        let (breaker, _) = breaker(BreakerPolicy { probes: 2, ..Default::default() });
        fail(&breaker, 5, Moment::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        let first = probe(&breaker);
        tokio::time::advance(Duration::from_secs(5)).await;
        let second = probe(&breaker);
        breaker.settle(first, Verdict::Success, Moment::now());
        assert!(breaker.admit(Moment::now()).is_err(), "the second goes on");
        tokio::time::advance(Duration::from_secs(5)).await;
        let third = probe(&breaker);
        breaker.settle(second, Verdict::Success, Moment::now());
        assert_eq!(breaker.admit(Moment::now()), Ok(Permit::Call), "two have passed");

        fail(&breaker, 5, Moment::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        let fourth = probe(&breaker);
        breaker.settle(third, Verdict::Success, Moment::now());
        assert!(breaker.admit(Moment::now()).is_err(), "the third is of the time before");
        breaker.settle(fourth, Verdict::Success, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::HalfOpen);
    }

    #[tokio::test(start_paused = true)]
    async fn the_ratio_looks_at_the_window_only() {
        let policy = BreakerPolicy { consecutive_failures: 0, ..Default::default() };
        let (breaker, _) = breaker(policy);
        fail(&breaker, 19, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::Closed, "too few calls to judge");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(breaker.statistics(Moment::now()).calls, 0);
        for _ in 0..11 {
            breaker.settle(Permit::Call, Verdict::Success, Moment::now());
        }
        fail(&breaker, 10, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::Closed, "10 of 21");
        fail(&breaker, 1, Moment::now());
        assert_eq!(breaker.statistics(Moment::now()).state, CircuitState::Open, "11 of 22");
    }

    fn slow_policy() -> BreakerPolicy {
        let slow_call = Some(SlowCall { longer_than: Duration::from_secs(1), ratio: 0.5 });
        BreakerPolicy { minimum_calls: 10, slow_call, ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_slow_calls_open_it_whether_or_not_they_fail() {
        for verdict in [Verdict::Success, Verdict::Failure] {
            let (breaker, now) =
                breaker(BreakerPolicy { consecutive_failures: 0, failure_ratio: 1.0, ..slow_policy() });
            assert_eq!(breaker.slow_after(), Some(Duration::from_secs(1)));
            (0..6).for_each(|_| breaker.settle(Permit::Call, Verdict::Success, now));
            (0..5).for_each(|_| breaker.settle_slow(Permit::Call, verdict, now));
            let statistics = breaker.statistics(now);
            assert_eq!(
                (statistics.calls, statistics.slow, statistics.state),
                (11, 5, CircuitState::Closed),
                "{verdict:?}"
            );
            breaker.settle_slow(Permit::Call, verdict, now);
            let statistics = breaker.statistics(now);
            assert_eq!((statistics.state, statistics.slow), (CircuitState::Open, 0), "6 of 12, {verdict:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_slow_calls_and_those_of_another_window_do_not_open_it() {
        let (breaker, now) = breaker(slow_policy());
        (0..9).for_each(|_| breaker.settle_slow(Permit::Call, Verdict::Success, now));
        assert_eq!(breaker.statistics(now).state, CircuitState::Closed, "too few calls to judge");
        tokio::time::advance(Duration::from_secs(11)).await;
        let now = Moment::now();
        assert_eq!(breaker.statistics(now).slow, 0, "they are out of the window");
        breaker.settle_slow(Permit::Call, Verdict::Success, now);
        assert_eq!((breaker.statistics(now).slow, breaker.statistics(now).state), (1, CircuitState::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_failure_counts_for_the_other_rules_as_well() {
        let (breaker, now) = breaker(slow_policy());
        fail(&breaker, 4, now);
        breaker.settle_slow(Permit::Call, Verdict::Success, now);
        fail(&breaker, 4, now);
        assert_eq!(breaker.statistics(now).state, CircuitState::Closed, "a slow success ended the failures in a row");
        breaker.settle_slow(Permit::Call, Verdict::Failure, now);
        assert_eq!(breaker.statistics(now).state, CircuitState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_probe_opens_it_again() {
        let (breaker, now) = breaker(slow_policy());
        fail(&breaker, 5, now);
        tokio::time::advance(Duration::from_secs(5)).await;
        let permit = probe(&breaker);
        breaker.settle_slow(permit, Verdict::Success, Moment::now());
        assert!(breaker.is_open(Moment::now()));
        assert_eq!(breaker.statistics(Moment::now()).times_opened, 2);
    }

    proptest::proptest! {
        #[test]
        fn refuses_only_while_open_and_never_two_probes_at_once(
            steps in proptest::collection::vec((0u64..3_000, 0u8..4), 1..400),
        ) {
            let (breaker, start) = breaker(BreakerPolicy { probes: 2, ..Default::default() });
            let (mut now, mut probe) = (start, None::<Moment>);
            for (ms, act) in steps {
                now = now.checked_add(Duration::from_millis(ms)).unwrap();
                match (breaker.admit(now), act) {
                    (Ok(Permit::Probe { .. }), 3) => {
                        let lost = probe.is_none_or(|at: Moment| now.since(at) >= breaker.policy().open_for);
                        proptest::prop_assert!(lost);
                        probe = Some(now);
                    }
                    (Ok(permit), _) => {
                        let verdict = [Verdict::Success, Verdict::Failure, Verdict::Nothing][usize::from(act % 3)];
                        if permit != Permit::Call { probe = None; }
                        breaker.settle(permit, verdict, now);
                    }
                    (Err(wait), _) => proptest::prop_assert!(wait <= breaker.policy().open_for),
                }
            }
        }
    }
}
