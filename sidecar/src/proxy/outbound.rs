//! The steps of a call out of the local service:
//!
//! accept → detect → target → trace → breaker → deadline → [attempt: pick endpoint → connection → send] → (relay
//! between the call's two sides: [`crate::call`]) → classify → record
//!
//! [`carry`] takes the steps from target to send. It hardly ever waits, so it usually runs to its end where the head
//! came in. If it has to wait, for discovery or for a connection, it goes on as a task.

use std::rc::Rc;

use opentelemetry::trace::SpanKind;
use tokio::task::{AbortHandle, spawn_local};
use weft_contracts::weft::discovery::v1::Protocol;
use weft_mesh::{errors::Reason, limits, names::ServiceName};

use crate::{
    args::AppProtocol,
    call::{
        Call, Way,
        record::{AttemptRecord, CallRecord},
    },
    endpoints::catalog::{Route, Service},
    message::{
        deadline,
        failure::{Failure, Hop},
        headers::CLIENT_CERT,
        tunnel,
    },
    policy::{
        outcome::Outcome,
        retry::{Miss, Next},
    },
    proxy::{
        Proxy, attempt, fallback, hedge, reflection,
        route::{self, RETRY_SOON, Routed, Routes},
    },
    telemetry::span::CallTrace,
    thread::worker::Worker,
};

/// A client's connection.
pub(crate) struct Downstream {
    pub(crate) proxy: Rc<Proxy>,
    routes: Routes,
}

/// Carries a call to an endpoint.
pub(crate) async fn carry(downstream: Rc<Downstream>, call: Rc<Call>) {
    let worker = &downstream.proxy.worker;
    let known = downstream.routes.known(worker, &call.head());
    let routed = match known {
        Some(route) => Ok(Routed::To(route)),
        None => {
            // What the contract says is not known yet. The caller's own deadline holds while the service is looked for.
            let (deadline, limit) = deadline::of(&call.head(), None, call.started);
            call.end_by(deadline, limit);
            let found = downstream.routes.find(worker, &call).await;
            call.forget_deadline();
            if let Ok(Routed::To(route)) = &found {
                fallback::look_ahead(worker, route);
            }
            found
        }
    };
    let sent = match routed {
        Ok(Routed::To(route)) => send_on_route(&downstream.proxy, &call, route).await,
        Ok(Routed::Reflection) => {
            reflection::reflect(&call);
            Ok(())
        }
        Err(failure) => Err(Next::Fail(failure)),
    };
    if let Err(next) = sent {
        call.apply(fallback::instead(&call, next));
    }
}

/// Another try of a call, or the first one at its fallback.
async fn again(proxy: Rc<Proxy>, call: Rc<Call>) {
    let sent = match call.tries.takes_fallback() {
        true => fallback::go(&proxy, &call).await,
        false => attempt::run(&proxy, &call).await,
    };
    if let Err(next) = sent {
        call.apply(fallback::instead(&call, next));
    }
}

impl Downstream {
    pub(crate) fn new(proxy: &Rc<Proxy>) -> Rc<Self> {
        Rc::new(Self { proxy: Rc::clone(proxy), routes: Routes::default() })
    }

    /// A connection that was redirected from an address of this service.
    pub(crate) fn to_address_of(proxy: &Rc<Proxy>, service: &ServiceName) -> Rc<Self> {
        Rc::new(Self { proxy: Rc::clone(proxy), routes: Routes::to_address_of(service) })
    }

    /// A connection on a port that leads to this service.
    pub(crate) fn to_port_of(proxy: &Rc<Proxy>, service: &ServiceName) -> Rc<Self> {
        Rc::new(Self { proxy: Rc::clone(proxy), routes: Routes::to_port_of(service) })
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.proxy.worker
    }
}

impl Way for Downstream {
    fn hop(&self) -> Hop {
        Hop::Outbound
    }

    fn missed(&self, call: &Call, miss: Miss) -> Next {
        fallback::instead(call, attempt::missed(call, miss))
    }

    fn answered(&self, outcome: Outcome) -> Option<Miss> {
        // The callee's sidecar reports this only if the service has not answered. Another endpoint may be tried.
        match outcome {
            Outcome::Failed(Reason::ServiceFull) => Some(Miss::Full("it takes no more calls at present")),
            Outcome::Failed(Reason::ConnectionBroke) => Some(Miss::Broke("its sidecar lost the connection".into())),
            _ => None,
        }
    }

    fn hedge(&self, call: &Rc<Call>) {
        hedge::send(&self.proxy, call);
    }

    fn rival_missed(&self, call: &Call, rival: &mut AttemptRecord, miss: &Miss) {
        attempt::rival_missed(call, rival, miss);
    }

    fn again(self: Rc<Self>, call: Rc<Call>) -> AbortHandle {
        spawn_local(again(Rc::clone(&self.proxy), call)).abort_handle()
    }

    fn deadline_passed(&self, call: &Call) -> Failure {
        attempt::deadline_passed(call)
    }

    fn over_budget(&self, call: &Call) -> Failure {
        attempt::over_budget(call)
    }
}

/// Sends a call on its route.
async fn send_on_route(proxy: &Proxy, call: &Rc<Call>, route: Rc<Route>) -> Result<(), Next> {
    let (worker, now) = (&call.worker, call.worker.moment());
    let (service, method) = (&route.service, &route.method);
    service.used(now);
    if call.wants_tunnel() {
        refuse_tunnel(call, service)?;
    }

    let trace = CallTrace::begin(&call.head(), worker.shared.sampling);
    let span =
        trace.is_recorded.then(|| trace.span(SpanKind::Client, method.known_name(), &service.name, &call.head()));
    let mut record = CallRecord::begin(worker, &method.metrics, call.started, span);
    let admitted = service.breaker.admit(now);
    if let Ok(permit) = admitted {
        record.admitted(&service.breaker, permit);
    }
    call.record(record);
    let (deadline, limit) = {
        let head = &mut *call.head_mut();
        head.remove_like(CLIENT_CERT);
        if call.wants_tunnel() {
            tunnel::mark(head, call.carries_bytes());
        }
        trace.pass_on(head);
        deadline::of(head, method.timeout, call.started)
    };
    call.end_by(deadline, limit);
    if let Err(wait) = admitted {
        let failure = route::breaker_open(service, wait);
        // The route says what its fallback is.
        call.tries.set_route(route);
        return Err(Next::Fail(failure));
    }
    call.tries.set_route(route);
    attempt::run(proxy, call).await
}

/// Refuses a tunnel or an upgrade that the callee's sidecar would refuse, as far as this one can know: only the
/// callee's knows whether the service answers CONNECT itself.
fn refuse_tunnel(call: &Call, service: &Service) -> Result<(), Next> {
    let speaks = match service.protocol {
        Protocol::Tcp => AppProtocol::Tcp,
        Protocol::Http1 => AppProtocol::Http1,
        Protocol::Http2 | Protocol::Unspecified => AppProtocol::Grpc,
    };
    match tunnel::refusal(&call.head(), call.carries_bytes(), speaks, true) {
        None => Ok(()),
        Some(why) => {
            let failure = Failure::new(Reason::PermissionDenied, format!("{} {why}", service.name));
            Err(Next::Fail(failure.of_service(service.name.as_str())))
        }
    }
}

/// The failure when no more calls are taken.
pub(crate) fn too_many_calls(worker: &Worker) -> Failure {
    let account = &worker.accounts.outbound;
    let message = if !account.takes_calls(&worker.local_load) {
        let (bytes, memory) = (account.used(), worker.shared.budget.bytes());
        format!("outbound calls hold {bytes} bytes in this sidecar, half of its memory (--memory {memory}); slow down")
    } else {
        format!("{} calls run in this sidecar; slow down", limits::CALLS_IN_FLIGHT)
    };
    Failure::new(Reason::Overloaded, message).retry_after(RETRY_SOON)
}
