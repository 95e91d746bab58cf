//! Whether a call is hedged (gRFC A6), and where its second try goes. [`crate::call`] holds both tries and takes the answer that
//! begins first.
//!
//! A hedge is extra work for the service, so it is left out wherever it could do harm. It never waits: neither for a
//! connection, nor for room on one.

use std::rc::Rc;

use crate::{
    call::{Call, record::AttemptRecord},
    proxy::{Proxy, attempt},
};

/// The answer has not begun in time: sends the call to another endpoint as well, if there is one that can take it at once.
pub(super) fn send(proxy: &Proxy, call: &Rc<Call>) {
    let (worker, tries, now) = (&call.worker, &call.tries, call.worker.moment());
    let Some(route) = tries.route() else { return };
    let (Some(after), Some(since)) = (route.method.hedge_after, call.awaits_answer_since()) else { return };
    let waited = now.since(since);
    if waited < after {
        // The last part of the request came after its head was sent.
        return call.hedge_after(after - waited);
    }
    let service = &route.service;
    let (tried, count) = tries.tried();
    let Some(endpoint) = proxy.balancer.pick_fit(&service.endpoints, &tried[..count], now) else { return };
    let pool = proxy.pools.of(endpoint);
    let callee = pool.load();
    if !attempt::may_have_another_beside(call) || service.breaker.is_open(now) || pool.is_over_budget() {
        return;
    }
    if !callee.hedges.allows_one() {
        return worker.shared.metrics.limit_reached("CALLS_PER_HEDGE");
    }
    // The next hedge finds a connection.
    let Some(link) = pool.ready() else { return pool.warm() };
    let Some(mut slot) = worker.call_slot() else { return };
    if !slot.goes_to(callee) {
        return;
    }
    let Ok(permit) = endpoint.breaker.admit(now) else { return };
    let span = call.with_record(|record| record.span_of_attempt(count as u32 + 1, endpoint)).flatten();
    let record = AttemptRecord::begin(worker, endpoint, permit, call.limit(), span);
    let sent = call.send_beside(&link, record, slot, |head, attempt, end| attempt::adapt(head, attempt, end, now));
    if sent.is_ok() {
        tries.note(endpoint.number);
        callee.hedges.spend();
    }
}

#[cfg(test)]
mod tests;
