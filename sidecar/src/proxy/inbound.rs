//! The steps of a call in to the local service:
//!
//! accept → mTLS → peer identity ([`crate::accept::members`]) → trace → deadline → authorize → local service → (relay
//! between the call's two sides: [`crate::call`]) → record

use std::{
    cell::{OnceCell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use opentelemetry::trace::SpanKind;
use tokio::task::{AbortHandle, spawn_local};
use weft_mesh::{
    errors::Reason,
    identity::SpiffeId,
    limits,
    names::shown,
    policy::{Source, Verdict},
};
use weft_wire::{Code, Headers};

use crate::{
    call::{Call, Way, record::CallRecord},
    message::{
        deadline,
        failure::{Failure, Hop},
        headers::CLIENT_CERT,
        target, tunnel,
    },
    policy::{
        outcome::Outcome,
        retry::{ConnectError, Miss, Next},
    },
    proxy::{
        Proxy, local_http1,
        local_service::{Connections, LocalPools, LocalService},
        local_tcp,
        methods::{Found, Methods},
    },
    telemetry::{
        metrics::{CallLabels, Direction},
        span::{CallTrace, Caller},
    },
    thread::{loads::Load, worker::Worker},
    transport::pool::Pool,
};

/// Another sidecar, on one connection.
pub(crate) struct Peer {
    pub(crate) proxy: Rc<Proxy>,
    pub(crate) id: SpiffeId,
    from: SocketAddr,
    /// What spans say about it. Made when the first of its calls is recorded.
    caller: OnceCell<Caller>,
    pub(crate) load: Rc<Load>,
    /// The connections for its calls to a service that speaks HTTP/2.
    pool: OnceCell<Rc<Pool>>,
    /// The value of `x-forwarded-client-cert` for its calls, in Envoy's format.
    client_cert: Vec<u8>,
    methods: RefCell<Methods>,
}

impl Peer {
    pub(crate) fn new(
        proxy: &Rc<Proxy>,
        id: SpiffeId,
        from: SocketAddr,
        load: &Rc<Load>,
        client_cert: Vec<u8>,
    ) -> Rc<Self> {
        Rc::new(Self {
            proxy: Rc::clone(proxy),
            id,
            from,
            caller: OnceCell::new(),
            load: Rc::clone(load),
            pool: OnceCell::new(),
            client_cert,
            methods: RefCell::new(Methods::new(&proxy.worker.shared.local_terms)),
        })
    }

    /// The pool for its calls to a service that speaks HTTP/2.
    fn pool(&self, pools: &LocalPools) -> &Rc<Pool> {
        self.pool.get_or_init(|| pools.of(&self.id))
    }

    /// What is known of the method that a request asks for: whether this peer may call it, and the row that counts its
    /// calls.
    fn method(&self, local: &LocalService, head: &Headers) -> Found {
        let shared = &self.proxy.worker.shared;
        // An upgrade is a CONNECT only between sidecars (RFC 8441): the service gets a GET.
        let http_method = if head.protocol().is_some() { b"GET" } else { head.method().unwrap_or_default() };
        let request = (http_method, head.path().unwrap_or_default());
        self.methods.borrow_mut().find(&shared.local_terms, &self.id, request, |method| {
            shared.metrics.calls(CallLabels {
                direction: Direction::Inbound,
                service: local.name.to_string(),
                method: method.to_owned(),
                peer: self.id.service().to_string(),
            })
        })
    }

    /// Counts, logs and traces a call that the rules do not allow. If they are not only tried, it is refused.
    #[cold]
    fn not_allowed(&self, local: &LocalService, call: &Call, found: &Found, verdict: Verdict) -> Result<(), Failure> {
        let worker = &self.proxy.worker;
        found.metrics.not_allowed(verdict);
        worker.shared.metrics.not_allowed.fetch_add(1, Relaxed);
        let called = self.called(local, call, found, verdict);
        let (caller, source) = (self.id.service(), verdict.source);
        let terms = worker.shared.local_terms.get();
        let object = terms.object_of(source);
        let named = object.map(|object| format!(" ({object})")).unwrap_or_default();
        let refused = format!("{caller} may not call {called}, by {source}{named}");
        let is_refused = verdict.refuses();
        let is_logged = worker.log_denial(caller, || match is_refused {
            true => format!("call refused (permission-denied) service={}: {refused}", local.name),
            false => format!("{refused}; the call goes on, as the rule is only tried"),
        });
        // A member that may call nothing must not fill the trace store either.
        call.with_record(|record| record.not_allowed(verdict, is_logged || !is_refused));
        if !is_refused {
            return Ok(());
        }
        let message = match object {
            Some(_) => refused,
            None => format!("{refused}; see `weft access explain {caller} {called}`"),
        };
        Err(Failure::new(Reason::PermissionDenied, message).by_rule(source.as_str()).of_service(local.name.as_str()))
    }

    /// How messages name what a call asks for, as `weft access explain` takes it.
    fn called(&self, local: &LocalService, call: &Call, found: &Found, verdict: Verdict) -> String {
        let is_by_path = matches!(verdict.source, Source::PathRule | Source::OtherMethod | Source::AmbiguousPath);
        match self.methods.borrow().name(found.place) {
            Some(method) if !is_by_path => method.to_string(),
            None if !is_by_path => local.name.to_string(),
            _ => {
                let head = call.head();
                let path = target::before_query(head.path().unwrap_or_default());
                format!("{}{}", local.name, shown(&path.escape_ascii().to_string()))
            }
        }
    }
}

impl Way for Peer {
    fn hop(&self) -> Hop {
        Hop::Inbound
    }

    fn missed(&self, call: &Call, miss: Miss) -> Next {
        missed(call, miss)
    }

    fn answered(&self, _: Outcome) -> Option<Miss> {
        // Whatever the local service answers goes to the caller.
        None
    }

    fn objection(&self, call: &Call) -> Option<Failure> {
        let local = self.proxy.local.as_ref()?;
        let found = self.method(local, &call.head());
        let verdict = found.verdict.filter(|verdict| verdict.refuses())?;
        self.not_allowed(local, call, &found, verdict).err()
    }

    fn again(self: Rc<Self>, call: Rc<Call>) -> AbortHandle {
        spawn_local(async move { again(&self, call).await }).abort_handle()
    }

    fn deadline_passed(&self, call: &Call) -> Failure {
        match &call.worker.shared.local_service {
            Some(local) => Failure::deadline_passed().of_service(local.as_str()),
            None => Failure::deadline_passed(),
        }
    }

    fn over_budget(&self, call: &Call) -> Failure {
        too_many_calls(&call.worker, &self.load)
    }
}

/// Carries a call to the local service.
pub(crate) async fn carry(peer: Rc<Peer>, call: Rc<Call>) {
    // Not reached: without a local service there is no inbound listener.
    let Some(local) = &peer.proxy.local else { return call.reset(Code::REFUSED_STREAM) };
    let wants = Wants::of(&call);
    if let Err(failure) = admit(&peer, local, &call, wants) {
        return call.fail(&failure.of_service(local.name.as_str()));
    }
    let sent = match &local.connections {
        Connections::Http1(pool) => local_http1::send(pool, &peer.load, &call).await,
        Connections::Http2(pools) => send_http2(peer.pool(pools), &call, wants == Wants::Upgrade).await,
        Connections::Tcp if wants == Wants::Tunnel => local_tcp::send(local.address, &call).await,
        Connections::Tcp => {
            local_http1::decline(&call);
            Ok(())
        }
    };
    if let Err(miss) = sent {
        call.missed(miss);
    }
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Answer,
    /// Another protocol after the head of the answer.
    Upgrade,
    Tunnel,
}

impl Wants {
    fn of(call: &Call) -> Self {
        match call.wants_tunnel() {
            false => Self::Answer,
            true if call.head().protocol().is_some() => Self::Upgrade,
            true => Self::Tunnel,
        }
    }
}

/// Why the local service must not get a request for a tunnel or an upgrade. `None` if it may.
fn refusal(worker: &Worker, call: &Call) -> Option<&'static str> {
    let (args, head) = (&worker.shared.args, call.head());
    tunnel::refusal(&head, tunnel::is_made_by_sidecar(&head), args.protocol, args.connect)
}

/// Hides from the local service an upgrade that it is not declared to know.
///
/// # Errors
/// If the service speaks HTTP/2: there the request can't go on without its upgrade.
fn withhold_upgrade(peer: &Peer, local: &LocalService, call: &Call) -> Result<(), Failure> {
    let name = call.head().protocol().unwrap_or_default().escape_ascii().to_string();
    if !matches!(local.connections, Connections::Http1(_)) {
        let message = format!("{} is not declared to change to `{name}`: see `upgrades`, and --upgrade", local.name);
        return Err(Failure::new(Reason::PermissionDenied, message));
    }
    tunnel::withhold_upgrade(&mut call.head_mut());
    peer.proxy.worker.log(|| {
        format!(
            "{} gets a request of {} without its upgrade to `{name}`, which it is not declared to know: see `upgrades`, and \
             --upgrade",
            local.name, peer.id
        )
    });
    Ok(())
}

/// Decides whether a call may go on to the local service. One that may not is recorded as well.
fn admit(peer: &Peer, local: &LocalService, call: &Rc<Call>, wants: Wants) -> Result<(), Failure> {
    let found = prepare(peer, local, call);
    match found.verdict {
        Some(Verdict { is_allowed: true, .. }) => {}
        Some(verdict) => peer.not_allowed(local, call, &found, verdict)?,
        None => {
            // The caller's sidecar tries another endpoint.
            let message = format!("the sidecar of {} does not know yet who may call it", local.name);
            return Err(Failure::new(Reason::ServiceFull, message));
        }
    }
    match wants {
        Wants::Answer => Ok(()),
        Wants::Tunnel | Wants::Upgrade => admit_tunnel(peer, local, call, wants),
    }
}

fn admit_tunnel(peer: &Peer, local: &LocalService, call: &Call, wants: Wants) -> Result<(), Failure> {
    let worker = &peer.proxy.worker;
    if let Some(why) = refusal(worker, call) {
        return Err(Failure::new(Reason::PermissionDenied, format!("{} {why}", local.name)));
    }
    if wants == Wants::Upgrade && !tunnel::is_declared(&call.head(), &worker.shared.args.upgrade) {
        withhold_upgrade(peer, local, call)?;
    }
    Ok(())
}

/// Reads from and writes into the head what must be there before a call goes on: trace, deadline, who calls.
fn prepare(peer: &Peer, local: &LocalService, call: &Rc<Call>) -> Found {
    let worker = &peer.proxy.worker;
    let mut head = call.head_mut();
    let found = peer.method(local, &head);
    let trace = CallTrace::begin(&head, worker.shared.sampling);
    let span = trace.is_recorded.then(|| {
        let mut span = trace.span(SpanKind::Server, peer.methods.borrow().name(found.place), &local.name, &head);
        peer.caller.get_or_init(|| Caller::new(&peer.id, peer.from)).tell(&mut span);
        span
    });
    let record = CallRecord::begin(worker, &found.metrics, call.started, span);
    let (deadline, limit) = deadline::of(&head, None, call.started);
    head.remove_like(CLIENT_CERT);
    head.append(CLIENT_CERT, &peer.client_cert);
    trace.pass_on(&mut head);
    drop(head);
    call.record(record);
    call.end_by(deadline, limit);
    found
}

/// Sends a call again that the local service has refused without processing it.
async fn again(peer: &Peer, call: Rc<Call>) {
    let pool = match peer.proxy.local.as_ref().map(|local| &local.connections) {
        Some(Connections::Http2(pools)) => peer.pool(pools),
        Some(Connections::Http1(pool)) => return local_http1::again(Rc::clone(pool), call).await,
        Some(Connections::Tcp) | None => return call.reset(Code::REFUSED_STREAM),
    };
    let is_upgrade = call.head().protocol().is_some();
    if let Err(miss) = send_http2(pool, &call, is_upgrade).await {
        call.missed(miss);
    }
}

/// About doubled with each further try.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

async fn send_http2(pool: &Rc<Pool>, call: &Rc<Call>, is_upgrade: bool) -> Result<(), Miss> {
    let link = match pool.ready() {
        Some(link) => link,
        None => pool.link().await.map_err(Miss::NotSent)?,
    };
    if is_upgrade && !link.takes_upgrades() {
        local_http1::decline(call);
        return Ok(());
    }
    // Some servers close the connection if a list is longer than they take, and with it end all other calls on it.
    let takes = link.header_list_bytes();
    if call.head().list_bytes() > takes as usize {
        call.fail(&call.too_large_for(takes));
        return Ok(());
    }
    let now = call.worker.moment();
    call.send_over(&link, |head, _, deadline| deadline::pass_on(head, deadline, now))
        .map_err(|why| Miss::NotSent(why.into()))?;
    Ok(())
}

/// The failure for a peer that has as many calls here, or holds as much memory, as it may.
pub(crate) fn too_many_calls(worker: &Worker, peer: &Load) -> Failure {
    let name = worker.shared.local_name();
    let message = if !worker.accounts.inbound.takes_calls(peer) {
        let (bytes, memory) = (peer.bytes(), worker.shared.budget.bytes());
        format!("calls of this caller hold {bytes} bytes in the sidecar of {name}, its full part (--memory {memory})")
    } else {
        format!("{} calls run at {name}, and this caller has its full part of them", worker.calls.inbound.get())
    };
    Failure::new(Reason::ServiceFull, message).of_service(name)
}

/// How a call goes on that the local service did not answer.
pub(crate) fn missed(call: &Call, miss: Miss) -> Next {
    let shared = &call.worker.shared;
    match miss {
        Miss::Reset(code) => Next::Reset(code),
        // The service is only full, or about to close that connection.
        Miss::Unseen(_) if call.is_repeatable() && call.tries.sent.get() < limits::REFUSED_TRIES => {
            let tried = call.tries.sent.replace(call.tries.sent.get() + 1);
            // The first retry is at once: most likely the service was about to close that connection.
            Next::Again { after: FIRST_PAUSE * ((1 << tried) - 1) }
        }
        // The service is well and has not processed the call: the caller's sidecar tries another endpoint.
        Miss::NotSent(ConnectError::Full) | Miss::Unseen(_) | Miss::Full(_) => {
            let name = shared.local_name();
            let message = format!("{name} takes no more calls at present");
            shared.check_health_now.notify_one();
            Next::Fail(Failure::new(Reason::ServiceFull, message).of_service(name))
        }
        // The service has not seen the call: the caller's sidecar tries another endpoint.
        Miss::NotSent(ConnectError::Failed(_)) => {
            call.with_record(|record| record.ended(Outcome::Failed(Reason::ConnectFailed)));
            shared.metrics.failure(Reason::ConnectFailed);
            shared.check_health_now.notify_one();
            Next::Reset(Code::REFUSED_STREAM)
        }
        Miss::TooLarge => Next::Fail(call.answer_too_large()),
        Miss::Malformed(why) => Next::Fail(Failure::new(Reason::Malformed, why)),
        Miss::Broke(why) => {
            shared.check_health_now.notify_one();
            let name = shared.local_name();
            let message = format!("the connection to {name} broke before it answered: {why}");
            Next::Fail(Failure::new(Reason::ConnectionBroke, message).of_service(name))
        }
    }
}

#[cfg(test)]
mod tests;
