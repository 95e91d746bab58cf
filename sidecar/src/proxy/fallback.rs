//! A call that its service cannot take goes on as the fallback of its method says: to another service or method, or with a
//! fixed answer.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::task::spawn_local;
use weft_contracts::weft::discovery::v1::Protocol;
use weft_mesh::{errors::Reason, limits};
use weft_wire::{Headers, Name};

use crate::{
    call::Call,
    endpoints::catalog::{Asked, Route},
    message::{
        failure::{FALLBACK_HEADER, Failure},
        target,
    },
    policy::{
        fallback::{Fallback, To},
        retry::Next,
    },
    proxy::{Proxy, attempt, route},
    thread::worker::Worker,
};

/// How a call goes on: as before, or by its fallback where it would fail as the service cannot take it.
pub(crate) fn instead(call: &Call, next: Next) -> Next {
    match next {
        Next::Fail(failure) if failure.reason.has_fallback() => of_failure(call, failure),
        next => next,
    }
}

#[cold]
fn of_failure(call: &Call, failure: Failure) -> Next {
    let Some(route) = call.tries.route() else { return Next::Fail(failure) };
    let Some(fallback) = &route.method.fallback else { return Next::Fail(joined(call, failure)) };
    if call.tries.fallbacks() >= limits::FALLBACKS {
        call.worker.shared.metrics.limit_reached("FALLBACKS");
        return Next::Fail(joined(call, failure));
    }
    match &fallback.to {
        To::Elsewhere { .. } => {
            // A request that was sent and not kept is gone.
            if call.wants_tunnel() || !call.is_repeatable() {
                return Next::Fail(joined(call, failure));
            }
            falls_back(call, fallback, failure);
            Next::AGAIN
        }
        To::Answer(answer) => {
            let answer = answer.to(call.rpc(), &call.head());
            let Some(mut answer) = answer else { return Next::Fail(joined(call, failure)) };
            answer.head.append(FALLBACK_HEADER, fallback.header(failure.reason).as_bytes());
            falls_back(call, fallback, failure);
            Next::Answer(Box::new(answer))
        }
    }
}

/// Writes down that a call goes on to a fallback.
fn falls_back(call: &Call, fallback: &Fallback, failure: Failure) {
    let reason = failure.reason;
    if failure.is_expected {
        tracing::debug!("call goes on to its fallback ({}) to={}: {}", reason.as_str(), fallback.name, failure.message);
    } else {
        call.worker.log(|| {
            format!("call goes on to its fallback ({}) to={}: {}", reason.as_str(), fallback.name, failure.message)
        });
    }
    call.with_record(|record| record.fell_back(reason, &fallback.name));
    call.tries.falls_back(failure, fallback.header(reason));
}

/// What the caller is told if this was the last fallback: why the service that it named could not take the call, and why
/// the fallback could not.
fn joined(call: &Call, last: Failure) -> Failure {
    match call.tries.fallen_back(|fallen_back| fallen_back.first.clone()) {
        Some(first) => {
            let message = format!("{}; its fallback failed as well: {}", first.message, last.message);
            Failure { message: message.into(), ..first }
        }
        None => last,
    }
}

/// Sends a call to the fallback of its route.
pub(crate) async fn go(proxy: &Proxy, call: &Rc<Call>) -> Result<(), Next> {
    let worker = &call.worker;
    let from = call.tries.route().expect("only a call with a route has a fallback");
    let next = match from.fallback.get() {
        Some(next) => Rc::clone(next),
        None => {
            let path = call.head().path().unwrap_or_default().to_vec();
            let found = find(worker, &from, &path).await;
            worker.tick();
            match found {
                Ok(found) => Rc::clone(from.fallback.get_or_init(|| found)),
                Err(failure) => {
                    // Not by `instead`: the route is still that of the service that could not take the call.
                    call.fail(&joined(call, failure));
                    return Ok(());
                }
            }
        }
    };
    let (service, now) = (&next.service, worker.moment());
    service.used(now);
    if let Some(Fallback { to: To::Elsewhere { path: Some(path), .. }, .. }) = from.method.fallback.as_deref() {
        set_path(&mut call.head_mut(), path);
    }
    match service.breaker.admit(now) {
        Ok(permit) => call.with_record(|record| record.admitted(&service.breaker, permit)),
        Err(wait) => {
            let failure = route::breaker_open(service, wait);
            call.tries.set_route(next);
            return Err(Next::Fail(failure));
        }
    };
    // What is left of the time that the caller, or the contract of the first service, gives says nothing about this one. Its
    // own timeout holds from now on.
    let own = next.method.timeout.and_then(|timeout| now.checked_add(timeout));
    call.continue_until(own);
    call.tries.set_route(next);
    attempt::run(proxy, call).await
}

/// Looks for the service that the fallback of a route leads to, so that it is known when it is needed: the control plane may
/// be away by then.
#[cold]
pub(crate) fn look_ahead(worker: &Rc<Worker>, route: &Rc<Route>) {
    let Some(fallback) = route.method.fallback.as_deref() else { return };
    let Some(asked) = asked(fallback) else { return };
    let is_missing = worker.moment().millis() < fallback.not_sought_until_ms.load(Relaxed);
    if is_missing || worker.shared.catalog.known(&asked).is_some() || fallback.is_sought.swap(true, Relaxed) {
        return;
    }
    let (worker, route) = (Rc::clone(worker), Rc::clone(route));
    spawn_local(async move {
        // A call that needs it tells why it is not found.
        let is_missing = worker.shared.catalog.find(asked).await.is_err();
        if let Some(fallback) = &route.method.fallback {
            if is_missing {
                worker.tick();
                fallback.not_sought_until_ms.store(again_ms(&worker), Relaxed);
            }
            fallback.is_sought.store(false, Relaxed);
        }
    });
}

/// What is looked for: a service by its name, or by the contract of its method.
fn asked(fallback: &Fallback) -> Option<Asked> {
    let To::Elsewhere { service, path } = &fallback.to else { return None };
    match service {
        Some(service) => Some(Asked::Service(service.clone())),
        None => Some(Asked::Contract(target::contract(path.as_deref()?)?.into())),
    }
}

/// How long nobody looks again for a service that was not found.
const MISSING_TIME: Duration = Duration::from_secs(1);

fn again_ms(worker: &Worker) -> u64 {
    worker.moment().millis() + MISSING_TIME.as_millis() as u64
}

/// Where the fallback of a route leads, for a call with this path.
async fn find(worker: &Worker, from: &Route, path: &[u8]) -> Result<Rc<Route>, Failure> {
    let fallback = from.method.fallback.as_deref().expect("only a call with a fallback goes elsewhere");
    let (To::Elsewhere { path: other, .. }, Some(asked)) = (&fallback.to, asked(fallback)) else {
        unreachable!("a fixed answer leads nowhere, and a policy without service and method is refused");
    };
    let path = other.as_deref().unwrap_or(target::without_query(path));
    if worker.moment().millis() < fallback.missing_until_ms.load(Relaxed) {
        let message = format!("{} was not found a moment ago", fallback.name);
        return Err(Failure::new(Reason::NoEndpoint, message));
    }
    let found = route::find(worker, asked).await.inspect_err(|_| {
        worker.tick();
        fallback.missing_until_ms.store(again_ms(worker), Relaxed);
    })?;
    let own = worker.shared.local_service.as_ref();
    if own == Some(&found.name) {
        let message = format!("the fallback of {} leads back to {}, which calls it", from.method.name, found.name);
        return Err(Failure::new(Reason::NoEndpoint, message));
    }
    if found.name == from.service.name {
        let message = format!("the fallback of {} leads to {} again", from.method.name, found.name);
        return Err(Failure::new(Reason::NoEndpoint, message));
    }
    if found.protocol == Protocol::Tcp {
        return Err(route::speaks_tcp(&found));
    }
    // Else the owner of one service could have its callers call any other, with their own rights.
    let contract = other.as_deref().map(|path| target::contract(path).unwrap_or_default());
    if !found.policy.is_stand_in_for(&found.name, contract, &from.service.name) {
        let message = format!(
            "{} does not answer for {}: its contract does not say `stands_in_for: '{}'`",
            found.name, from.service.name, from.service.name
        );
        return Err(Failure::new(Reason::NoEndpoint, message));
    }
    Ok(Route::new(found, path))
}

/// Puts another path into a head, and leaves the query.
fn set_path(head: &mut Headers, path: &str) {
    let before = head.path().unwrap_or_default();
    let query = before.iter().position(|byte| *byte == b'?').map_or(&b""[..], |at| &before[at..]);
    let path = [path.as_bytes(), query].concat();
    head.set(Name::PATH, &path);
}

#[cfg(test)]
mod tests;
