//! The steps of a call out of the local service:
//!
//! accept → detect → target → trace → breaker → deadline → [attempt: pick endpoint → connection → send] → (relay
//! between the call's two sides: [`crate::call`]) → classify → record
//!
//! [`carry`] takes the steps from target to send. It hardly ever waits, so it usually runs to its end where the head
//! came in. If it has to wait, for discovery or for a connection, it goes on as a task.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use opentelemetry::trace::SpanKind;
use tokio::task::{AbortHandle, spawn_local};
use weft_contracts::weft::discovery::v1::Protocol;
use weft_mesh::{errors::Reason, limits, names::ServiceName};
use weft_wire::Headers;

use crate::{
    args::AppProtocol,
    call::{Call, Way, record::CallRecord},
    endpoints::catalog::{Asked, Route, Service, Unknown},
    message::{
        deadline,
        failure::{Failure, Hop},
        headers::CLIENT_CERT,
        target::{self, Target, TargetError},
        tunnel,
    },
    policy::retry::{Miss, Next},
    proxy::{Proxy, attempt, reflection},
    telemetry::span::CallTrace,
    thread::worker::Worker,
};

/// A client's connection.
pub(crate) struct Downstream {
    pub(crate) proxy: Rc<Proxy>,
    /// Where all of its calls go, if it came in on a port or for an address that leads to one service.
    fixed: Option<ServiceName>,
    last_route: RefCell<LastRoute>,
}

/// Where the last call of a connection went: most of its calls go to the same method.
#[derive(Default)]
struct LastRoute {
    authority: Vec<u8>,
    path: Vec<u8>,
    /// The version of the catalog in which the route was found.
    view: u64,
    route: Option<Rc<Route>>,
}

/// Carries a call to an endpoint.
pub(crate) async fn carry(downstream: Rc<Downstream>, call: Rc<Call>) {
    let known = downstream.route(&call.head());
    let routed = match known {
        Some(route) => Ok(Routed::To(route)),
        None => route(&downstream, &call).await,
    };
    let sent = match routed {
        Ok(Routed::To(route)) => send(&downstream.proxy, &call, route).await,
        Ok(Routed::Reflection) => {
            reflection::reflect(&call);
            Ok(())
        }
        Err(failure) => Err(Next::Fail(failure)),
    };
    if let Err(next) = sent {
        call.apply(next);
    }
}

/// Where a call goes.
enum Routed {
    To(Rc<Route>),
    /// To the sidecar itself.
    Reflection,
}

impl Downstream {
    pub(crate) fn new(proxy: &Rc<Proxy>) -> Rc<Self> {
        Rc::new(Self { proxy: Rc::clone(proxy), fixed: None, last_route: RefCell::default() })
    }

    /// A connection whose calls all go to this service, whatever they name.
    pub(crate) fn to(proxy: &Rc<Proxy>, service: &ServiceName) -> Rc<Self> {
        Rc::new(Self { proxy: Rc::clone(proxy), fixed: Some(service.clone()), last_route: RefCell::default() })
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.proxy.worker
    }

    /// Where the call goes, if the last one went there and nothing has changed since.
    fn route(&self, head: &Headers) -> Option<Rc<Route>> {
        let last = self.last_route.borrow();
        let route = last.route.as_ref()?;
        let is_same = last.view == self.worker().shared.catalog.version()
            && head.path() == Some(&last.path)
            && head.authority().unwrap_or_default() == last.authority
            && !target::is_named(head);
        is_same.then(|| Rc::clone(route))
    }

    /// What a head asks for.
    fn target(&self, head: &mut Headers) -> Result<Target, Failure> {
        match &self.fixed {
            Some(service) => Ok(Target::Service(service.clone())),
            None => target::resolve(head, &self.worker().shared.args.namespace).map_err(no_target),
        }
    }

    fn remember(&self, authority: Vec<u8>, path: Vec<u8>, view: u64, route: &Rc<Route>) {
        *self.last_route.borrow_mut() = LastRoute { authority, path, view, route: Some(Rc::clone(route)) };
    }
}

impl Way for Downstream {
    fn hop(&self) -> Hop {
        Hop::Outbound
    }

    fn missed(&self, call: &Call, miss: Miss) -> Next {
        attempt::missed(call, miss)
    }

    fn again(self: Rc<Self>, call: Rc<Call>) -> AbortHandle {
        spawn_local(attempt::again(Rc::clone(&self.proxy), call)).abort_handle()
    }

    fn deadline_passed(&self, call: &Call) -> Failure {
        attempt::deadline_passed(call)
    }

    fn holds_its_part(&self, call: &Call) -> Failure {
        attempt::holds_its_part(call)
    }
}

async fn route(downstream: &Downstream, call: &Call) -> Result<Routed, Failure> {
    let worker = downstream.worker();
    let authority = call.head().authority().unwrap_or_default().to_vec();
    // Only what authority and path alone decide is remembered: no call with `x-weft-service`, and no path that is
    // stripped.
    let path = (!target::is_named(&call.head())).then(|| call.head().path().unwrap_or_default().to_vec());
    let view = worker.shared.catalog.version();
    let target = downstream.target(&mut call.head_mut())?;
    let service = match target {
        Target::Reflection => return Ok(Routed::Reflection),
        Target::Service(name) => find(worker, Asked::Service(name)).await?,
        Target::Contract => {
            let path = target::path(&call.head()).into_owned();
            find_contract(worker, &path).await?
        }
    };
    worker.tick();
    let head = &*call.head();
    if service.protocol == Protocol::Tcp && !tunnel::is_tunnel(head) {
        return Err(speaks_tcp(&service));
    }
    let method = Arc::clone(service.method(target::without_query(head.path().unwrap_or_default())));
    let route = Rc::new(Route { service, method });
    if let Some(path) = path.filter(|path| head.path() == Some(path)) {
        downstream.remember(authority, path, view, &route);
    }
    Ok(Routed::To(route))
}

/// Sends a call that has a route.
async fn send(proxy: &Proxy, call: &Rc<Call>, route: Rc<Route>) -> Result<(), Next> {
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
    match service.breaker.admit(now) {
        Ok(permit) => {
            record.admitted(&service.breaker, permit);
            call.record(record);
        }
        Err(wait) => {
            call.record(record);
            return Err(Next::Fail(breaker_open(service, wait)));
        }
    }
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

async fn find_contract(worker: &Worker, path: &str) -> Result<Arc<Service>, Failure> {
    let Some(contract) = target::contract(path) else {
        let message = format!("`{path}` is not a gRPC path: /PACKAGE.SERVICE/METHOD");
        return Err(Failure::new(Reason::NoSuchService, message));
    };
    // No allocation for a known service, which nearly every call names.
    if let Some(service) = worker.shared.catalog.view().contracts.get(contract) {
        return Ok(Arc::clone(service));
    }
    find(worker, Asked::Contract(contract.into())).await
}

/// The service that is asked for, or why there is none.
pub(crate) async fn find(worker: &Worker, asked: Asked) -> Result<Arc<Service>, Failure> {
    let name = asked.to_string();
    Err(match worker.shared.catalog.find(asked).await {
        Ok(service) => return Ok(service),
        Err(Unknown::NotFound { closest }) => {
            let hint = closest.map(|closest| format!("; the closest is {closest}")).unwrap_or_default();
            Failure::new(Reason::NoSuchService, format!("the mesh has no {name}{hint}"))
        }
        Err(Unknown::Away) => Failure::new(
            Reason::ControlPlaneAway,
            format!(
                "{name} is not known here, and the control plane could not say yet whether there is one; try again"
            ),
        ),
        Err(Unknown::Full) => {
            Failure::new(Reason::Overloaded, "too many calls wait for discovery; slow down").retry_after(RETRY_SOON)
        }
    })
}

const RETRY_SOON: Duration = Duration::from_secs(1);

/// The failure when no more calls are taken.
pub(crate) fn too_many_calls(worker: &Worker) -> Failure {
    let account = &worker.accounts.outbound;
    let message = if !account.takes_calls(&worker.own) {
        let (bytes, memory) = (account.used(), worker.shared.budget.bytes());
        format!("outbound calls hold {bytes} bytes in this sidecar, half of its memory (--memory {memory}); slow down")
    } else {
        format!("{} calls run in this sidecar; slow down", limits::CALLS_IN_FLIGHT)
    };
    Failure::new(Reason::Overloaded, message).retry_after(RETRY_SOON)
}

fn speaks_tcp(service: &Service) -> Failure {
    let message = format!(
        "{} does not speak HTTP: connect to it by CONNECT or by a port that leads to it (--forward)",
        service.name
    );
    Failure::new(Reason::Malformed, message).of_service(service.name.as_str())
}

fn no_target(why: TargetError) -> Failure {
    Failure::new(Reason::NoSuchService, why.to_string())
}

fn breaker_open(service: &Service, wait: Duration) -> Failure {
    let message = format!("{} fails too often; its breaker is open for {wait:?} more", service.name);
    Failure::new(Reason::BreakerOpen, message).of_service(service.name.as_str()).retry_after(wait)
}
