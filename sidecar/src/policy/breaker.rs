//! The circuit breaker of an endpoint or a service: closed, open, half-open with one probe at a time.
//!
//! A plain state machine that is given `now`. All of its state is atomic, so that workers share it without a lock:
//! [`circuit`] is whether it lets calls through, [`window`] what calls became lately. What opens or closes it is returned
//! as a [`Change`]; [`owner`] says whose breaker it is.

mod change;
mod circuit;
mod owner;
#[cfg(test)]
mod tests;
mod window;

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use weft_mesh::policy::BreakerPolicy;

pub(crate) use self::{
    change::{Change, Why},
    owner::Owner,
};
use self::{circuit::Circuit, window::Window};
use crate::time::moment::Moment;

/// See the module.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    /// `None` in tests only.
    owner: Option<Owner>,
    /// A [`Circuit`].
    circuit: AtomicU64,
    consecutive: AtomicU32,
    probes_passed: AtomicU32,
    window: Window,
    /// When it last opened, in milliseconds since the sidecar's start. Probes from before say nothing.
    opened_ms: AtomicU64,
    times_opened: AtomicU64,
    calls_refused: AtomicU64,
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
        Self {
            window: Window::new(policy.window),
            policy,
            owner: None,
            circuit: AtomicU64::new(Circuit::Closed.word()),
            consecutive: AtomicU32::new(0),
            probes_passed: AtomicU32::new(0),
            opened_ms: AtomicU64::new(0),
            times_opened: AtomicU64::new(0),
            calls_refused: AtomicU64::new(0),
        }
    }

    /// The same breaker, as that of a service or an endpoint.
    pub(crate) fn of(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    pub(crate) fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }

    /// A call that takes longer than this is slow; `None` if the policy does not say when a call is slow.
    #[inline]
    pub(crate) fn slow_after(&self) -> Option<Duration> {
        self.policy.slow_call.map(|slow_call| slow_call.longer_than)
    }

    /// Whether it is neither open nor half-open.
    pub(crate) fn is_closed(&self) -> bool {
        Circuit::of(self.circuit.load(Relaxed)) == Circuit::Closed
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

    /// Takes the verdict of an admitted call. Returns what it has changed, if anything.
    pub(crate) fn settle(&self, permit: Permit, verdict: Verdict, now: Moment) -> Option<Change> {
        match (permit, verdict) {
            (Permit::Probe { since_ms }, verdict) => self.settle_probe(since_ms, verdict, now),
            (Permit::Call, Verdict::Nothing) => None,
            (Permit::Call, Verdict::Success) => {
                // A store on each call would take the cache line from the other workers.
                if self.consecutive.load(Relaxed) != 0 {
                    self.consecutive.store(0, Relaxed);
                }
                self.window.count(false, now);
                None
            }
            (Permit::Call, Verdict::Failure) => {
                let consecutive = self.consecutive.fetch_add(1, Relaxed) + 1;
                self.window.count(true, now);
                self.open_if(|| self.must_open(consecutive, now), now)
            }
        }
    }

    #[cold]
    fn settle_probe(&self, since_ms: u64, verdict: Verdict, now: Moment) -> Option<Change> {
        let word = self.circuit.load(Relaxed);
        let is_last = word == Circuit::Probing { since_ms }.word();
        // A service whose calls take longer than `open_for` could never close it otherwise.
        let is_late_success = verdict == Verdict::Success
            && matches!(Circuit::of(word), Circuit::Probing { .. })
            && since_ms > self.opened_ms.load(Relaxed);
        if !is_last && !is_late_success {
            return None;
        }
        let is_enough = self.probes_passed.load(Relaxed) + 1 >= self.policy.probes;
        let next = match verdict {
            Verdict::Success if is_enough => Circuit::Closed,
            // The newer probe goes on.
            Verdict::Success if !is_last => Circuit::of(word),
            Verdict::Success | Verdict::Nothing => Circuit::HalfOpen,
            Verdict::Failure => return self.open_from(word, now).then_some(Change::OpenedAgain),
        };
        if self.circuit.compare_exchange(word, next.word(), Relaxed, Relaxed).is_err() {
            return None;
        }
        match verdict {
            Verdict::Success if next == Circuit::Closed => {
                self.forget_history();
                return Some(Change::Closed);
            }
            Verdict::Success => drop(self.probes_passed.fetch_add(1, Relaxed)),
            Verdict::Failure | Verdict::Nothing => {}
        }
        None
    }

    /// Takes in what became of an admitted call that was slow. A slow probe fails, as one that fails quickly does. A call
    /// whose verdict says nothing says nothing here either.
    #[cold]
    pub(crate) fn settle_slow(&self, permit: Permit, verdict: Verdict, now: Moment) -> Option<Change> {
        let consecutive = match (permit, verdict) {
            (_, Verdict::Nothing) => return self.settle(permit, verdict, now),
            (Permit::Probe { since_ms }, _) => return self.settle_probe(since_ms, Verdict::Failure, now),
            (Permit::Call, Verdict::Failure) => self.consecutive.fetch_add(1, Relaxed) + 1,
            (Permit::Call, Verdict::Success) => {
                self.consecutive.store(0, Relaxed);
                0
            }
        };
        self.window.count(verdict == Verdict::Failure, now);
        self.window.count_slow(now);
        self.open_if(|| self.must_open(consecutive, now).or_else(|| self.must_open_as_slow(now)), now)
    }

    /// Closes it and forgets the window, as the callee was replaced. Returns what that has changed, if anything.
    pub(crate) fn close(&self) -> Option<Change> {
        self.forget_history();
        let before = self.circuit.swap(Circuit::Closed.word(), Relaxed);
        (Circuit::of(before) != Circuit::Closed).then_some(Change::Reset)
    }

    /// A change in words, for the log.
    #[cold]
    pub(crate) fn describe(&self, change: Change) -> String {
        change.describe(self.owner.as_ref(), &self.policy)
    }

    pub(crate) fn statistics(&self, now: Moment) -> Statistics {
        let (calls, failures) = self.window.totals(now);
        Statistics {
            state: match Circuit::of(self.circuit.load(Relaxed)) {
                Circuit::Closed => CircuitState::Closed,
                Circuit::Open { until_ms } if now.millis() < until_ms => CircuitState::Open,
                _ => CircuitState::HalfOpen,
            },
            calls,
            failures,
            slow: self.window.total_slow(now),
            consecutive_failures: self.consecutive.load(Relaxed),
            times_opened: self.times_opened.load(Relaxed),
            calls_refused: self.calls_refused.load(Relaxed),
        }
    }

    /// The rule that opens it now, if one does.
    fn must_open(&self, consecutive: u32, now: Moment) -> Option<Why> {
        let in_a_row = self.policy.consecutive_failures;
        if in_a_row > 0 && consecutive >= in_a_row {
            return Some(Why::InARow { failures: consecutive });
        }
        let (calls, failures) = self.window.totals(now);
        let are_too_many = f64::from(failures) >= self.policy.failure_ratio * f64::from(calls);
        (calls >= self.policy.minimum_calls && are_too_many).then_some(Why::Failures { failures, calls })
    }

    fn must_open_as_slow(&self, now: Moment) -> Option<Why> {
        let slow_call = self.policy.slow_call?;
        let ((calls, _), slow) = (self.window.totals(now), self.window.total_slow(now));
        let are_too_many = f64::from(slow) >= slow_call.ratio * f64::from(calls);
        (calls >= self.policy.minimum_calls && are_too_many).then_some(Why::Slow { slow, calls })
    }

    /// Opens it if it is closed and there is a reason.
    fn open_if(&self, why: impl FnOnce() -> Option<Why>, now: Moment) -> Option<Change> {
        let closed = Circuit::Closed.word();
        if self.circuit.load(Relaxed) != closed {
            return None;
        }
        let why = why()?;
        self.open_from(closed, now).then_some(Change::Opened(why))
    }

    /// Opens it, unless it has left that state meanwhile. Returns whether it has opened.
    fn open_from(&self, circuit: u64, now: Moment) -> bool {
        let until_ms = now.millis() + self.policy.open_for.as_millis() as u64;
        let open = Circuit::Open { until_ms }.word();
        let has_opened = self.circuit.compare_exchange(circuit, open, Relaxed, Relaxed).is_ok();
        if has_opened {
            self.opened_ms.store(now.millis(), Relaxed);
            self.times_opened.fetch_add(1, Relaxed);
            self.forget_history();
            if let Some(owner) = &self.owner {
                owner.openings.fetch_add(1, Relaxed);
            }
        }
        has_opened
    }

    fn forget_history(&self) {
        self.consecutive.store(0, Relaxed);
        self.window.clear();
    }

    /// A probe that has run for as long as a breaker stays open (`open_for`) counts as lost: another may start.
    fn is_probe_lost(&self, since_ms: u64, now: Moment) -> bool {
        now.millis() >= since_ms + self.policy.open_for.as_millis() as u64
    }
}
