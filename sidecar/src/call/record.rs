//! The records of a call and of its tries: metrics, spans and verdicts for the breakers. A record is written when it is
//! dropped, so that a call that was given up half-way is recorded too.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use weft_mesh::{errors::Reason, policy, telemetry::attribute};

use crate::{
    endpoints::catalog::Endpoint,
    message::deadline::Limit,
    policy::{
        breaker::{Breaker, Change, Permit, Verdict},
        outcome::Outcome,
        retry::{ConnectError, Miss},
    },
    telemetry::{metrics::CallMetrics, span::Span},
    thread::worker::Worker,
    time::moment::Moment,
};

/// A call from its head to the end of its answer.
pub(crate) struct CallRecord {
    worker: Rc<Worker>,
    metrics: Arc<CallMetrics>,
    breaker: Option<(Arc<Breaker>, Permit)>,
    started: Moment,
    pub(crate) span: Option<Box<Span>>,
    limit: Limit,
    outcome: Outcome,
    /// Its outcome says nothing about the service.
    is_excused: bool,
    /// The service took longer than its breaker's policy allows.
    is_slow: bool,
}

impl CallRecord {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        metrics: &Arc<CallMetrics>,
        started: Moment,
        span: Option<Box<Span>>,
    ) -> Self {
        metrics.in_flight.fetch_add(1, Relaxed);
        let (worker, metrics) = (Rc::clone(worker), Arc::clone(metrics));
        let (limit, outcome) = (Limit::default(), Outcome::Cancelled);
        Self { worker, metrics, breaker: None, started, span, limit, outcome, is_excused: false, is_slow: false }
    }

    /// The row of metrics that counts the call.
    pub(crate) fn metrics(&self) -> &Arc<CallMetrics> {
        &self.metrics
    }

    /// The rules for who may call do not allow the call. Its span may be left out.
    #[cold]
    pub(crate) fn not_allowed(&mut self, verdict: policy::Verdict, is_traced: bool) {
        if !is_traced {
            self.span = None;
        }
        if let Some(span) = &mut self.span {
            span.not_allowed(verdict);
        }
    }

    /// Sets the breaker that admitted the call and gets its verdict.
    pub(crate) fn admitted(&mut self, breaker: &Arc<Breaker>, permit: Permit) {
        self.breaker = Some((Arc::clone(breaker), permit));
    }

    /// Counts a retry, and the reason for it.
    pub(crate) fn retried(&mut self, why: &str) {
        self.metrics.retries.fetch_add(1, Relaxed);
        if let Some(span) = &mut self.span {
            span.event("retry", vec![opentelemetry::KeyValue::new("reason", why.to_owned())]);
        }
    }

    /// The call was sent to another endpoint as well.
    #[cold]
    pub(crate) fn hedged(&mut self) {
        self.metrics.hedges.fetch_add(1, Relaxed);
        if let Some(span) = &mut self.span {
            span.event(attribute::HEDGE_EVENT, Vec::new());
        }
    }

    /// That try has taken the place of the first.
    #[cold]
    pub(crate) fn hedge_won(&self) {
        self.metrics.hedges_won.fetch_add(1, Relaxed);
    }

    /// The call goes on to a fallback, as its service could not take it for this reason. The outcome says nothing about
    /// that service any more.
    #[cold]
    pub(crate) fn fell_back(&mut self, reason: Reason, to: &str) {
        self.metrics.fallbacks.fetch_add(1, Relaxed);
        if let Some((breaker, permit)) = self.breaker.take() {
            let verdict = Outcome::Failed(reason).verdict(breaker.policy(), self.limit);
            settle(&self.worker, &breaker, permit, verdict, false);
        }
        if let Some(span) = &mut self.span {
            span.fell_back(reason, to);
        }
    }

    /// A span for a try at an endpoint, if the call has one.
    pub(crate) fn span_of_attempt(&self, number: u32, endpoint: &Endpoint) -> Option<Box<Span>> {
        let span = self.span.as_ref()?;
        Some(Box::new(span.attempt(number, &endpoint.id, &endpoint.ip, endpoint.address.port())))
    }

    /// Counts bytes of a tunnel.
    pub(crate) fn carried(&self, sent: usize, received: usize) {
        self.metrics.tunnel_bytes_sent.fetch_add(sent as u64, Relaxed);
        self.metrics.tunnel_bytes_received.fetch_add(received as u64, Relaxed);
    }

    /// Sets whose time limit the call has, which decides whether the service is blamed when it passes.
    pub(crate) fn limited_by(&mut self, limit: Limit) {
        self.limit = limit;
    }

    /// Sets how the call ended. Until then it counts as cancelled.
    pub(crate) fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// The caller may have caused the outcome, so it says nothing about the service.
    pub(crate) fn excuse(&mut self) {
        self.is_excused = true;
    }

    /// The service was slow.
    pub(crate) fn was_slow(&mut self) {
        self.is_slow = true;
    }
}

/// Tells a breaker how a call or a try ended that it admitted.
#[inline]
fn settle(worker: &Worker, breaker: &Breaker, permit: Permit, verdict: Verdict, is_slow: bool) {
    let now = worker.moment();
    let change = match is_slow {
        true => breaker.settle_slow(permit, verdict, now),
        false => breaker.settle(permit, verdict, now),
    };
    if let Some(change) = change {
        report(worker, breaker, change);
    }
}

/// Logs that a breaker has opened or closed.
#[cold]
fn report(worker: &Worker, breaker: &Breaker, change: Change) {
    match change {
        // It never closed, and this may go on for as long as its callee is down.
        Change::OpenedAgain => tracing::debug!("{}", breaker.describe(change)),
        Change::Opened(_) | Change::Closed | Change::Reset => worker.warn(|| breaker.describe(change)),
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let now = self.worker.moment();
        let code = self.outcome.code();
        self.metrics.in_flight.fetch_sub(1, Relaxed);
        self.metrics.record(code, now.since(self.started));
        if let Some((breaker, permit)) = &self.breaker {
            let verdict = self.outcome.verdict(breaker.policy(), self.limit);
            let verdict = if self.is_excused { Verdict::Nothing } else { verdict };
            settle(&self.worker, breaker, *permit, verdict, self.is_slow);
        }
        if let (Some(span), Some(sink)) = (self.span.take(), &self.worker.shared.spans) {
            span.end(code, self.outcome.reason().map(Reason::as_str), sink);
        }
    }
}

/// A try of a call at one endpoint.
pub(crate) struct AttemptRecord {
    worker: Rc<Worker>,
    pub(crate) endpoint: Arc<Endpoint>,
    permit: Permit,
    pub(crate) span: Option<Box<Span>>,
    limit: Limit,
    /// When the head of the request was sent.
    sent_at: Option<Moment>,
    outcome: Outcome,
    is_excused: bool,
    is_slow: bool,
    /// Another try was answered first.
    is_outrun: bool,
    error: Option<&'static str>,
}

impl AttemptRecord {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        endpoint: &Arc<Endpoint>,
        permit: Permit,
        limit: Limit,
        span: Option<Box<Span>>,
    ) -> Self {
        endpoint.in_flight.fetch_add(1, Relaxed);
        let (worker, endpoint) = (Rc::clone(worker), Arc::clone(endpoint));
        let (sent_at, outcome, error) = (None, Outcome::Cancelled, None);
        let (is_excused, is_slow, is_outrun) = (false, false, false);
        Self { worker, endpoint, permit, span, limit, sent_at, outcome, is_excused, is_slow, is_outrun, error }
    }

    /// The head of the request was sent.
    #[inline]
    pub(crate) fn was_sent(&mut self, now: Moment) {
        self.sent_at = Some(now);
    }

    pub(crate) fn sent_at(&self) -> Option<Moment> {
        self.sent_at
    }

    /// A call that takes longer than this is slow, if the policy of its breakers says when a call is slow.
    #[inline]
    pub(crate) fn slow_after(&self) -> Option<Duration> {
        self.endpoint.breaker.slow_after()
    }

    /// Sets how the try ended. Until then it says nothing about the endpoint.
    pub(crate) fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// The caller may have caused the outcome, so it says nothing about the endpoint.
    pub(crate) fn excuse(&mut self) {
        self.is_excused = true;
    }

    /// The endpoint was slow.
    pub(crate) fn was_slow(&mut self) {
        self.is_slow = true;
    }

    /// The endpoint did not take the call, which is nobody's fault.
    pub(crate) fn not_taken(&mut self, error: &'static str) {
        self.error = Some(error);
    }

    /// The try has failed.
    pub(crate) fn missed(&mut self, miss: &Miss, now: Moment) {
        match miss {
            Miss::Reset(code) => self.ended(Outcome::Reset(*code)),
            Miss::TooLarge => self.ended(Outcome::Failed(Reason::AnswerHeadersTooLarge)),
            Miss::Malformed(_) => {}
            Miss::NotSent(ConnectError::Full) => self.not_taken(Reason::Overloaded.as_str()),
            Miss::NotSent(_) => {
                self.endpoint.shun(now);
                self.ended(Outcome::Failed(Reason::ConnectFailed));
            }
            Miss::Unseen(_) => {
                self.endpoint.shun(now);
                self.not_taken("refused");
            }
            Miss::Full(_) => {
                self.endpoint.shun(now);
                self.not_taken(Reason::ServiceFull.as_str());
            }
            Miss::Broke(_) => self.ended(Outcome::Failed(Reason::ConnectionBroke)),
        }
    }

    /// Another try of the call was answered first, and this one is cancelled. That says nothing about the endpoint, except
    /// that it was slow if it has had too much time already. All of the request was there since `whole_at`.
    #[cold]
    pub(crate) fn was_outrun(&mut self, whole_at: Moment, now: Moment) {
        self.error = Some(attribute::OUTRUN);
        let since = self.sent_at.map(|sent| sent.max(whole_at));
        self.is_slow = since.zip(self.slow_after()).is_some_and(|(since, slow_after)| now.since(since) > slow_after);
        self.is_outrun = true;
    }
}

impl Drop for AttemptRecord {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Relaxed);
        let breaker = &self.endpoint.breaker;
        let verdict = match (self.is_excused, self.is_outrun && self.is_slow) {
            (true, _) => Verdict::Nothing,
            // A slow call that did not fail.
            (false, true) => Verdict::Success,
            (false, false) => self.outcome.verdict_of_endpoint(breaker.policy(), self.limit),
        };
        settle(&self.worker, breaker, self.permit, verdict, self.is_slow);
        if let (Some(span), Some(sink)) = (self.span.take(), &self.worker.shared.spans) {
            span.end(self.outcome.code(), self.error.or(self.outcome.reason().map(Reason::as_str)), sink);
        }
    }
}
