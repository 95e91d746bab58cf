//! The tries of one call: an endpoint is picked and the call is sent there. It is retried elsewhere if the endpoint has
//! provably not processed it, or if its method is idempotent.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use weft_mesh::{errors::Reason, limits};
use weft_wire::{Code, Headers};

use crate::{
    call::{CONNECTS, Call, Tries, record::AttemptRecord},
    endpoints::{
        balance::NoChoice,
        catalog::{Method, Route, Service},
    },
    message::{deadline, failure::Failure},
    policy::{
        breaker::Permit,
        retry::{ConnectError, Miss, Next},
    },
    proxy::Proxy,
    thread::loads::Load,
    time::moment::Moment,
};

/// The failure when the deadline has passed.
pub(crate) fn deadline_passed(call: &Call) -> Failure {
    let failure = Failure::deadline_passed();
    match call.tries.route() {
        Some(route) => failure.of_service(route.service.name.as_str()),
        None => failure,
    }
}

/// The failure if calls to this service hold too much memory: it does not take requests, or their callers read no
/// answers.
#[cold]
pub(crate) fn over_budget(call: &Call) -> Failure {
    let memory = call.worker.shared.budget.bytes();
    let route = call.tries.route();
    let name = route.as_ref().map_or("the service", |route| route.service.name.as_str());
    let message = format!("calls to {name} hold its full part of this sidecar's memory (--memory {memory}); slow down");
    Failure::new(Reason::Overloaded, message).of_service(name)
}

/// The failure if a service has as many calls as it may have.
#[cold]
fn has_its_calls(service: &Service, callee: &Load) -> Failure {
    let (name, calls) = (&service.name, callee.calls());
    let message =
        format!("{calls} calls to {name} run in this sidecar, as many as one service may have now; slow down");
    Failure::new(Reason::Overloaded, message).of_service(name.as_str())
}

/// Records how a try failed, and says how the call goes on.
pub(crate) fn missed(call: &Call, miss: Miss) -> Next {
    let tries = &call.tries;
    let Some(route) = tries.route() else { return unrouted(miss) };
    count(tries, &route.method, &miss);
    call.with_attempt(|attempt| attempt.missed(&miss, call.worker.moment()));
    if call.has_rival() {
        return Next::Rival;
    }
    let failure = match failure_of(&route, call, miss) {
        Ok(failure) => failure.of_service(route.service.name.as_str()),
        Err(code) => return Next::Reset(code),
    };
    let counters = &call.worker.shared.metrics.counters;
    if tries.sent.get() >= limits::TRIES {
        counters.not_retried_unsafe.fetch_add(1, Relaxed);
        return Next::Fail(failure);
    }
    if tries.count() >= CONNECTS {
        return Next::Fail(failure);
    }
    if !call.is_repeatable() {
        counters.not_retried_body.fetch_add(1, Relaxed);
        return Next::Fail(failure);
    }
    call.with_record(|record| record.retried(&failure.message));
    *tries.last.borrow_mut() = Some(Box::new(failure));
    Next::AGAIN
}

/// Records that the second of two tries at the same time has failed. The first goes on.
pub(crate) fn rival_missed(call: &Call, rival: &mut AttemptRecord, miss: &Miss) {
    if let Some(route) = call.tries.route() {
        count(&call.tries, &route.method, miss);
    }
    rival.missed(miss, call.worker.moment());
}

/// Counts a try that has failed against those that its call may have.
fn count(tries: &Tries, method: &Method, miss: &Miss) {
    match miss {
        Miss::NotSent(_) => {}
        // A reset ends its call, unless that has a second try.
        Miss::Reset(_) | Miss::Unseen(_) | Miss::Full(_) => tries.was_sent(),
        Miss::Broke(_) if method.idempotency.is_safe_to_repeat() => tries.was_sent(),
        Miss::Broke(_) | Miss::TooLarge | Miss::Malformed(_) => tries.sent.set(limits::TRIES),
    }
}

/// The failure if this was the last try. `Err` is the code with which the service reset the call.
fn failure_of(Route { service, .. }: &Route, call: &Call, miss: Miss) -> Result<Failure, Code> {
    let name = &service.name;
    Ok(match miss {
        Miss::Reset(code) => return Err(code),
        Miss::TooLarge => call.answer_too_large(),
        Miss::Malformed(why) => Failure::new(Reason::Malformed, why),
        Miss::NotSent(ConnectError::Full) => {
            Failure::new(Reason::Overloaded, format!("{name}: {}", ConnectError::Full))
        }
        Miss::NotSent(why) => Failure::new(Reason::ConnectFailed, format!("{name} could not be reached: {why}")),
        Miss::Unseen(why) => Failure::new(Reason::ConnectFailed, format!("{name} did not take the call: {why}")),
        Miss::Full(why) => Failure::new(Reason::ServiceFull, format!("{name}: {why}")),
        Miss::Broke(why) => {
            let message = format!("the connection to {name} broke before it answered: {why}");
            Failure::new(Reason::ConnectionBroke, message)
        }
    })
}

fn no_choice(service: &Service, tries: &Tries, why: NoChoice, now: Moment) -> Failure {
    // The failure of the last try says more than that no endpoint is left.
    if let Some(last) = tries.last.borrow_mut().take() {
        return *last;
    }
    let name = &service.name;
    let failure = match why {
        NoChoice::NoneUp if service.is_starting(now) => {
            let message = format!("{name} is starting: none of its endpoints was up yet");
            Failure { is_expected: true, ..Failure::new(Reason::NoEndpoint, message) }
        }
        NoChoice::NoneUp => {
            Failure::new(Reason::NoEndpoint, format!("{name} is known, but none of its endpoints is up"))
        }
        // Not reached: each try leaves a failure behind, which is returned above.
        NoChoice::AllTried => Failure::new(Reason::ConnectFailed, format!("each endpoint of {name} was tried")),
    };
    failure.of_service(name.as_str())
}

/// How a call without a route ends: the sidecar answers it itself, so there is no other endpoint to try.
#[cold]
fn unrouted(miss: Miss) -> Next {
    let (reason, why) = match miss {
        Miss::Reset(code) => return Next::Reset(code),
        Miss::Malformed(why) => (Reason::Malformed, why),
        Miss::TooLarge => (Reason::AnswerHeadersTooLarge, "its header list is too long".to_owned()),
        Miss::Broke(why) => (Reason::ConnectionBroke, why),
        Miss::Unseen(why) | Miss::Full(why) => (Reason::ConnectionBroke, why.to_owned()),
        Miss::NotSent(why) => (Reason::ConnectionBroke, why.to_string()),
    };
    Next::Fail(Failure::new(reason, format!("the sidecar could not answer the call: {why}")))
}

/// Sends a call to an endpoint that takes it.
pub(crate) async fn run(proxy: &Proxy, call: &Rc<Call>) -> Result<(), Next> {
    let (worker, tries) = (&call.worker, &call.tries);
    let route = tries.route().expect("it has a target");
    let service = &route.service;
    loop {
        let now = worker.moment();
        let (tried, count) = tries.tried();
        let pick = proxy.balancer.pick(&service.endpoints, &tried[..count], now);
        let endpoint = pick.map_err(|why| Next::Fail(no_choice(service, tries, why, call.worker.moment())))?;
        tries.note(endpoint.number);
        // If its breaker refuses, it was picked all the same: all are open, or another call has just become its probe.
        let permit = endpoint.breaker.admit(now).unwrap_or(Permit::Call);
        let span = call.with_record(|record| record.span_of_attempt(count as u32 + 1, endpoint)).flatten();
        call.attempt(AttemptRecord::begin(worker, endpoint, permit, call.limit(), span));

        let pool = proxy.pools.of(endpoint);
        if pool.is_over_budget() {
            return Err(Next::Fail(over_budget(call)));
        }
        let callee = pool.load();
        if !call.goes_to(callee) {
            return Err(Next::Fail(has_its_calls(service, callee)));
        }
        let link = match pool.ready() {
            Some(link) => Ok(link),
            None => {
                call.waits_for(callee);
                pool.link().await
            }
        };
        let now = worker.moment();
        let miss = match link.map(|link| call.send_over(&link, |head, attempt, end| adapt(head, attempt, end, now))) {
            Ok(Ok(())) => {
                if let Some(after) = route.method.hedge_after {
                    expect_hedge(call, service, callee, after);
                }
                return Ok(());
            }
            Ok(Err(why)) => Miss::NotSent(why.into()),
            Err(why) => Miss::NotSent(why),
        };
        match missed(call, miss) {
            Next::Again { after } if after.is_zero() => {}
            next => return Err(next),
        }
    }
}

/// Has a call that was just sent hedged if its answer does not begin within this time: see [`crate::proxy::hedge`].
#[inline(never)]
fn expect_hedge(call: &Rc<Call>, service: &Service, callee: &Load, after: Duration) {
    if may_have_another_beside(call) && service.endpoints.len() > 1 && !call.wants_tunnel() {
        callee.hedges.count_call();
        call.hedge_after(after);
    }
}

/// Whether the call may have another try beside the one that runs.
pub(super) fn may_have_another_beside(call: &Call) -> bool {
    call.tries.sent.get() + 1 < limits::TRIES && call.tries.count() < CONNECTS
}

/// Sets the part of the head that differs between tries: the time that is left, and the parent span.
pub(super) fn adapt(head: &mut Headers, attempt: Option<&AttemptRecord>, deadline: Option<Moment>, now: Moment) {
    deadline::pass_on(head, deadline, now);
    if let Some(span) = attempt.and_then(|attempt| attempt.span.as_ref()) {
        span.pass_on(head);
    }
}

#[cfg(test)]
mod tests;
