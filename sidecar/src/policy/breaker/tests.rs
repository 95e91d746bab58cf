use std::sync::Arc;

use weft_mesh::{names::ServiceName, policy::SlowCall};

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
        let (breaker, now) = breaker(BreakerPolicy { consecutive_failures: 0, failure_ratio: 1.0, ..slow_policy() });
        assert_eq!(breaker.slow_after(), Some(Duration::from_secs(1)));
        for _ in 0..6 {
            breaker.settle(Permit::Call, Verdict::Success, now);
        }
        for _ in 0..5 {
            breaker.settle_slow(Permit::Call, verdict, now);
        }
        let statistics = breaker.statistics(now);
        assert_eq!((statistics.calls, statistics.slow, statistics.state), (11, 5, CircuitState::Closed), "{verdict:?}");
        breaker.settle_slow(Permit::Call, verdict, now);
        let statistics = breaker.statistics(now);
        assert_eq!((statistics.state, statistics.slow), (CircuitState::Open, 0), "6 of 12, {verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn few_slow_calls_and_those_of_another_window_do_not_open_it() {
    let (breaker, now) = breaker(slow_policy());
    for _ in 0..9 {
        breaker.settle_slow(Permit::Call, Verdict::Success, now);
    }
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

fn owner(endpoint: Option<&str>, openings: &Arc<AtomicU64>) -> Owner {
    Owner {
        service: ServiceName::parse("users.shop").unwrap(),
        endpoint: endpoint.map(|address| address.parse().unwrap()),
        openings: Arc::clone(openings),
    }
}

#[tokio::test(start_paused = true)]
async fn it_says_once_that_it_has_opened_and_why() {
    let (breaker, now) = breaker(BreakerPolicy { failure_ratio: 1.0, ..slow_policy() });
    let breaker = breaker.of(owner(None, &Arc::default()));
    let told = |change: Option<Change>| change.map(|change| breaker.describe(change));
    for _ in 0..4 {
        assert_eq!(breaker.settle(Permit::Call, Verdict::Failure, now), None);
    }
    let opened = told(breaker.settle(Permit::Call, Verdict::Failure, now));
    assert_eq!(opened.as_deref(), Some("the breaker of users.shop has opened for 5s: 5 calls in a row failed"));
    assert_eq!(breaker.settle(Permit::Call, Verdict::Failure, now), None, "it is open already");

    tokio::time::advance(Duration::from_secs(5)).await;
    let again = told(breaker.settle(probe(&breaker), Verdict::Failure, Moment::now()));
    let expected = "the breaker of users.shop has opened for 5s again: its probe failed or was slow";
    assert_eq!(again.as_deref(), Some(expected));

    tokio::time::advance(Duration::from_secs(5)).await;
    let closed = told(breaker.settle(probe(&breaker), Verdict::Success, Moment::now()));
    assert_eq!(closed.as_deref(), Some("the breaker of users.shop has closed: its probes succeeded"));

    let now = Moment::now();
    for _ in 0..5 {
        assert_eq!(breaker.settle(Permit::Call, Verdict::Success, now), None);
    }
    for _ in 0..4 {
        assert_eq!(breaker.settle_slow(Permit::Call, Verdict::Success, now), None);
    }
    let opened = told(breaker.settle_slow(Permit::Call, Verdict::Success, now));
    let expected = "the breaker of users.shop has opened for 5s: 5 of 10 calls in 10s took longer than 1s";
    assert_eq!(opened.as_deref(), Some(expected));
    let expected = "the breaker of users.shop has closed: it was replaced, or is up again";
    assert_eq!(told(breaker.close()).as_deref(), Some(expected));
    assert_eq!(breaker.close(), None, "it was closed");
}

#[tokio::test(start_paused = true)]
async fn an_endpoints_breaker_is_named_by_address_and_service() {
    let policy = BreakerPolicy { consecutive_failures: 0, minimum_calls: 4, ..Default::default() };
    let (breaker, now) = breaker(policy);
    let breaker = breaker.of(owner(Some("10.0.0.1:4000"), &Arc::default()));
    for verdict in [Verdict::Success, Verdict::Success, Verdict::Failure] {
        assert_eq!(breaker.settle(Permit::Call, verdict, now), None);
    }
    let opened = breaker.settle(Permit::Call, Verdict::Failure, now).expect("it opens");
    let expected =
        "the breaker of 10.0.0.1:4000, an endpoint of users.shop, has opened for 5s: 2 of 4 calls in 10s failed";
    assert_eq!(breaker.describe(opened), expected);
}

#[tokio::test(start_paused = true)]
async fn openings_of_a_services_endpoints_are_counted_together() {
    let openings: Arc<AtomicU64> = Arc::default();
    let two = ["10.0.0.1:4000", "10.0.0.2:4000"]
        .map(|address| Breaker::new(BreakerPolicy::default()).of(owner(Some(address), &openings)));
    two.iter().for_each(|breaker| fail(breaker, 5, Moment::now()));
    assert_eq!(openings.load(Relaxed), 2);
    tokio::time::advance(Duration::from_secs(5)).await;
    let permit = probe(&two[0]);
    assert!(!two[0].is_closed(), "half-open");
    two[0].settle(permit, Verdict::Failure, Moment::now());
    assert_eq!(openings.load(Relaxed), 3);
    tokio::time::advance(Duration::from_secs(5)).await;
    two[0].settle(probe(&two[0]), Verdict::Success, Moment::now());
    assert!(two[0].is_closed() && !two[1].is_closed());
    drop(two);
    assert_eq!(openings.load(Relaxed), 3, "the count stays when endpoints go");
}
