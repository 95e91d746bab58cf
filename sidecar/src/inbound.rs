//! The way of a call to the own service:
//!
//! accept → mTLS → peer identity → trace → deadline → local service → (the call's two sides move each other's parts:
//! [`crate::call`]) → record

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed, Release},
    },
    time::{Duration, SystemTime},
};

use opentelemetry::trace::SpanKind;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use weft_mesh::{errors::Reason, identity::SpiffeId, limits};
use weft_wire::{CannotOpen, Code, Headers, Usage};

use crate::{
    answer::{Failure, Hop},
    args::AppProtocol,
    attempt::{Miss, Verdict},
    call::{Call, Side, Way},
    classify::Outcome,
    deadline,
    headers::CLIENT_CERT,
    http1,
    http2::{self, Terms},
    link::Link,
    metrics::{CallLabels, CallMetrics, Direction, OTHER},
    peers::Load,
    pool::{ConnectError, Destination, Pool},
    record::CallRecord,
    room::Room,
    shared::{Identity, Phase, Shared},
    slots::ConnectionSlot,
    span::{self, CallTrace},
    step::Steps,
    target, tcp,
    tls_stream::TlsStream,
    worker::Worker,
};

/// The way from a worker to the service that its sidecar fronts.
pub(crate) struct LocalService {
    name: String,
    address: SocketAddr,
    /// Of the contracts' methods.
    methods: Vec<Box<str>>,
    /// Where a path's method is among them.
    places: HashMap<Box<str>, usize>,
    connections: Connections,
}

enum Connections {
    Http2(Rc<Pool>),
    Http1(Rc<http1::Pool>),
    /// One for each call.
    Tcp,
}

impl LocalService {
    /// `None` for a sidecar that fronts nothing.
    pub(crate) fn new(worker: Weak<Worker>, shared: &Arc<Shared>) -> Option<Self> {
        let (name, address) = (shared.own.as_ref()?.to_string(), shared.args.app?);
        let contracts = shared.own_policy.contracts.iter();
        let methods: Vec<Box<str>> = contracts
            .flat_map(|contract| {
                contract.methods.iter().map(move |method| format!("{}/{}", contract.name, method.name).into())
            })
            .collect();
        let places = methods.iter().enumerate().map(|(place, name)| (format!("/{name}").into(), place)).collect();
        let connections = match shared.args.protocol {
            AppProtocol::Grpc => Connections::Http2(Pool::new(worker, Arc::clone(shared), Destination::Local(address))),
            AppProtocol::Http1 => Connections::Http1(http1::Pool::new(worker, Arc::clone(shared), address)),
            AppProtocol::Tcp => Connections::Tcp,
        };
        Some(Self { name, address, methods, places, connections })
    }

    /// The name of the method at a place.
    fn method(&self, place: Option<usize>) -> &str {
        place.and_then(|place| self.methods.get(place)).map_or(OTHER, |name| name)
    }

    /// How its streams are shared, if it speaks HTTP/2.
    pub(crate) fn room(&self) -> Option<&Room> {
        match &self.connections {
            Connections::Http2(pool) => Some(pool.room()),
            Connections::Http1(_) | Connections::Tcp => None,
        }
    }

    /// What each of its HTTP/2 connections holds now.
    pub(crate) fn usages(&self) -> Vec<Usage> {
        match &self.connections {
            Connections::Http2(pool) => pool.usages(),
            Connections::Http1(_) | Connections::Tcp => Vec::new(),
        }
    }
}

/// Another sidecar on a connection.
struct Peer {
    worker: Rc<Worker>,
    id: SpiffeId,
    load: Rc<Load>,
    /// When its certificate expires, or this sidecar's if that is sooner.
    expiry: SystemTime,
    /// What the service is told of it, in Envoy's format.
    client_cert: Vec<u8>,
    /// Rows for this peer, by a method's place; the last is for what no descriptor knows.
    metrics: RefCell<Vec<Option<Arc<CallMetrics>>>>,
    last: RefCell<LastMethod>,
}

/// What the last call of a connection was to: most of its calls are to the same.
#[derive(Default)]
struct LastMethod {
    path: Vec<u8>,
    place: Option<usize>,
    metrics: Option<Arc<CallMetrics>>,
}

/// A longer path is not remembered: every connection would have room for it.
const KEPT_PATH_BYTES: usize = 256;

impl Peer {
    /// Which method of the service's contracts a path is, and the row in which its calls are counted.
    fn method(&self, local: &LocalService, path: &[u8]) -> (Option<usize>, Arc<CallMetrics>) {
        let mut last = self.last.borrow_mut();
        if let Some(metrics) = &last.metrics
            && last.path == path
        {
            return (last.place, Arc::clone(metrics));
        }
        let place = local.places.get(target::without_query(path)).copied();
        let metrics = self.metrics(local, place);
        if path.len() <= KEPT_PATH_BYTES {
            last.path.clear();
            last.path.extend_from_slice(path);
            (last.place, last.metrics) = (place, Some(Arc::clone(&metrics)));
        }
        (place, metrics)
    }

    fn metrics(&self, local: &LocalService, place: Option<usize>) -> Arc<CallMetrics> {
        let mut rows = self.metrics.borrow_mut();
        rows.resize(local.methods.len() + 1, None);
        let row = rows[place.unwrap_or(local.methods.len())].get_or_insert_with(|| {
            self.worker.shared.metrics.calls(CallLabels {
                direction: Direction::Inbound,
                service: local.name.clone(),
                method: local.method(place).to_owned(),
                peer: self.id.service().to_string(),
            })
        });
        Arc::clone(row)
    }
}

/// Serves one connection of another sidecar.
pub(crate) async fn serve(mut slot: ConnectionSlot, stream: TcpStream, from: SocketAddr) {
    let worker = &Rc::clone(slot.worker());
    let Some(identity) = worker.shared.identity.load_full() else {
        return worker.log(|| format!("inbound connection from {from} closed: there is no identity yet"));
    };
    // In a box, which is gone when the handshake is done.
    let accepting = Box::pin(TlsAcceptor::from(Arc::clone(&identity.server)).accept(stream));
    let accepted = tokio::select! {
        accepted = timeout(limits::HANDSHAKE_TIMEOUT, accepting) => accepted,
        () = slot.makes_room() => {
            return worker.log(|| format!("inbound connection from {from} closed: it makes room for others"));
        }
    };
    let refused = match accepted {
        Ok(Ok(stream)) => match peer_of(&mut slot, &identity, stream.get_ref().1) {
            Ok(peer) => {
                let name = format!("inbound connection of {} from {from}", peer.id);
                let (expiry, peer) = (peer.expiry, Rc::new(peer));
                let (mut steps, load) = (Steps::new(), Rc::clone(&peer.load));
                let begin = |link: &Rc<Link>, stream, head: Headers, is_whole| {
                    let Some(slot) = worker.inbound_slot(&load) else {
                        let why = too_many_calls(worker, &load);
                        http2::refuse(worker, link, stream, &head, is_whole, &why, Hop::Inbound);
                        return None;
                    };
                    let caller = Side::Stream(Rc::clone(link), stream);
                    let way = Way::Inbound(Running::new(&worker.shared));
                    Some(Call::begin(worker, way, caller, head, is_whole, slot))
                };
                let carry = |call: Rc<Call>| {
                    call.waits_in(steps.run(carry(Rc::clone(&peer), Rc::clone(&call))));
                };
                let stream = TlsStream::server(stream);
                let terms = Terms { load: &load, last: Phase::Draining, expiry: Some(expiry) };
                return http2::serve(worker, stream, terms, &name, begin, carry).await;
            }
            Err(why) => why,
        },
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => "it went within the handshake".to_owned(),
        Ok(Err(e)) => format!("only mutual TLS with an SVID of this trust domain is taken: {e}"),
        Err(_) => {
            worker.shared.metrics.limit_reached("HANDSHAKE_TIMEOUT");
            format!("its TLS handshake took longer than {:?}", limits::HANDSHAKE_TIMEOUT)
        }
    };
    worker.shared.metrics.counters.handshakes_failed.fetch_add(1, Relaxed);
    worker.log(|| format!("inbound connection from {from} closed: {refused}"));
}

/// Who is on the other end of a connection, for whom it counts from now on.
fn peer_of(slot: &mut ConnectionSlot, own: &Identity, tls: &rustls::ServerConnection) -> Result<Peer, String> {
    let chain = tls.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or("it showed no certificate")?;
    let id = SpiffeId::of_certificate(leaf).map_err(|e| e.to_string())?;
    let expiry = own.connection_end(chain).map_err(|e| e.to_string())?;
    let hash: String = sha256(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    let client_cert = format!("By={};Hash={hash};URI={id}", own.svid.id()).into_bytes();
    let load = slot.is_of(&id).ok_or_else(|| format!("{id} has too many connections (CONNECTIONS_PER_SIDE)"))?;
    Ok(Peer {
        worker: Rc::clone(slot.worker()),
        id,
        load,
        expiry,
        client_cert,
        metrics: RefCell::default(),
        last: RefCell::default(),
    })
}

fn sha256(bytes: &[u8]) -> impl AsRef<[u8]> + std::ops::Deref<Target = [u8]> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}

/// Counts a call into the drain.
pub(crate) struct Running {
    shared: Arc<Shared>,
    /// How often the local service has refused it.
    refused: Cell<u32>,
}

impl Running {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.inbound_in_flight.fetch_add(1, Acquire);
        Self { shared: Arc::clone(shared), refused: Cell::new(0) }
    }

    /// What the caller is told when time is up.
    pub(crate) fn deadline_passed(&self) -> Failure {
        match &self.shared.own {
            Some(own) => Failure::deadline_passed().of_service(own.as_str()),
            None => Failure::deadline_passed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.inbound_in_flight.fetch_sub(1, Release);
    }
}

/// Carries a call to the own service.
async fn carry(peer: Rc<Peer>, call: Rc<Call>) {
    let worker = &peer.worker;
    // The listener exists only where there is a service.
    let Some(local) = &worker.local else { return call.reset(Code::REFUSED_STREAM) };
    let wants = Wants::of(&call);
    admit(&peer, local, &call);
    if wants != Wants::Answer
        && let Some(why) = refusal(worker, &call)
    {
        let failure = Failure::new(Reason::PermissionDenied, format!("{} {why}", local.name));
        return call.fail(&failure.of_service(&local.name));
    }
    if wants == Wants::Upgrade
        && !tcp::is_declared(&call.head(), &worker.shared.args.upgrade)
        && let Err(failure) = withhold_upgrade(&peer, local, &call)
    {
        return call.fail(&failure.of_service(&local.name));
    }
    let sent = match &local.connections {
        Connections::Http1(pool) => http1::send(pool, &peer.load, &call).await,
        Connections::Http2(pool) => send(pool, &peer.load, &call, wants == Wants::Upgrade).await,
        Connections::Tcp if wants == Wants::Tunnel => tcp::send(local.address, &call).await,
        Connections::Tcp => {
            http1::decline(&call);
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
    /// Another protocol, from the answer's head on.
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

/// Why the local service does not get a request for a tunnel or an upgrade, if it does not.
fn refusal(worker: &Worker, call: &Call) -> Option<&'static str> {
    let (args, head) = (&worker.shared.args, call.head());
    tcp::refusal(&head, tcp::is_made_by_sidecar(&head), args.protocol, args.connect)
}

/// Has the local service never hear of an upgrade that it is not declared to know.
///
/// # Errors
/// It speaks HTTP/2, in which an upgrade is no offer beside a request.
fn withhold_upgrade(peer: &Peer, local: &LocalService, call: &Call) -> Result<(), Failure> {
    let name = call.head().protocol().unwrap_or_default().escape_ascii().to_string();
    if !matches!(local.connections, Connections::Http1(_)) {
        let message = format!("{} is not declared to change to `{name}`: see `upgrades`, and --upgrade", local.name);
        return Err(Failure::new(Reason::PermissionDenied, message));
    }
    tcp::withhold_upgrade(&mut call.head_mut());
    peer.worker.log(|| {
        format!(
            "{} gets a request of {} without its upgrade to `{name}`, which it is not declared to know: see `upgrades`, and \
             --upgrade",
            local.name, peer.id
        )
    });
    Ok(())
}

/// What is looked at and written into the head before a call goes on.
fn admit(peer: &Peer, local: &LocalService, call: &Rc<Call>) {
    let worker = &peer.worker;
    let mut head = call.head_mut();
    let (place, metrics) = peer.method(local, head.path().unwrap_or_default());
    let trace = CallTrace::begin(&head, worker.shared.sampling);
    let span = trace.span(SpanKind::Server, || span::name(local.method(place), &head));
    let mut record = CallRecord::begin(worker, &metrics, call.started, span);
    if let Some(span) = &mut record.span {
        span.set("weft.peer", peer.id.to_string());
    }
    let (deadline, limit) = deadline::of(&head, None, call.started);
    head.remove_like(CLIENT_CERT);
    head.append(CLIENT_CERT, &peer.client_cert);
    trace.pass_on(&mut head);
    drop(head);
    call.record(record);
    call.end_by(deadline, limit);
}

/// Sends a call once more that the local service did not look at.
pub(crate) async fn again(call: Rc<Call>) {
    let Way::Inbound(running) = &call.way else { return };
    let Some(LocalService { connections: Connections::Http2(pool), .. }) = &call.worker.local else {
        return call.reset(Code::REFUSED_STREAM);
    };
    // The first time at once: most likely it was one of its connections that was about to close.
    let pause = FIRST_PAUSE * ((1 << running.refused.get().saturating_sub(1)) - 1);
    if !pause.is_zero() {
        sleep(pause).await;
        call.worker.tick();
    }
    let is_upgrade = call.head().protocol().is_some();
    let Some(peer) = call.peer() else { return };
    if let Err(miss) = send(pool, &peer, &call, is_upgrade).await {
        call.missed(miss);
    }
}

/// Doubled with each try.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

async fn send(pool: &Rc<Pool>, peer: &Rc<Load>, call: &Rc<Call>, is_upgrade: bool) -> Result<(), Miss> {
    let link = match pool.ready(peer) {
        Some(link) => link,
        None => pool.link(peer).await.map_err(Miss::NotSent)?,
    };
    if is_upgrade && !link.takes_upgrades() {
        http1::decline(call);
        return Ok(());
    }
    // Some servers end the connection when a list is longer than they take, and with it the calls of all who share it.
    let takes = link.header_list_bytes();
    if call.head().list_bytes() > takes as usize {
        call.fail(&too_large_for(call, takes));
        return Ok(());
    }
    let now = call.worker.moment();
    call.send_over(&link, |head, _, deadline| deadline::pass_on(head, deadline, now)).map_err(|why| {
        Miss::NotSent(match why {
            CannotOpen::Full | CannotOpen::Congested => ConnectError::Full,
            CannotOpen::Going => ConnectError::Failed("its connection is going away".into()),
        })
    })?;
    call.sit_down(pool.room());
    Ok(())
}

/// What a caller is told whose header list, or trailers, are longer than the local service takes.
#[cold]
pub(crate) fn too_large_for(call: &Call, limit: u32) -> Failure {
    let name = call.worker.shared.own.as_ref().map_or("the service", |own| own.as_str());
    Failure::headers_too_large_for(name, limit)
}

/// What a peer is told that has as many calls here as it may have.
fn too_many_calls(worker: &Worker, peer: &Load) -> Failure {
    let name = worker.shared.own.as_ref().map_or("the service", |own| own.as_str());
    let message = if !worker.accounts.inbound.takes_calls(peer) {
        let (bytes, memory) = (peer.bytes(), worker.shared.budget.bytes());
        format!(
            "calls of this caller hold {bytes} bytes in the sidecar of {name}, which is its part (--memory {memory})"
        )
    } else {
        format!("{} calls run at {name}, and this caller has its part of them", worker.calls.inbound.get())
    };
    Failure::new(Reason::ServiceFull, message).of_service(name)
}

/// What becomes of a call that the local service did not answer.
pub(crate) fn missed(call: &Call, running: &Running, miss: Miss) -> Verdict {
    let shared = &call.worker.shared;
    match miss {
        Miss::Reset(code) => Verdict::Reset(code),
        // It is merely full, or about to close that connection.
        Miss::Unseen(_) if call.is_repeatable() && running.refused.get() < limits::REFUSED_TRIES => {
            running.refused.set(running.refused.get() + 1);
            Verdict::Again
        }
        // Neither is anything wrong with the service, nor has it seen the call: the caller's sidecar tries another.
        Miss::NotSent(ConnectError::Full) | Miss::Unseen(_) | Miss::Full(_) => {
            let name = shared.own.as_ref().map_or("the service", |own| own.as_str());
            let message = format!("{name} takes no more calls at present");
            shared.check_health_now.notify_one();
            Verdict::Fail(Failure::new(Reason::ServiceFull, message).of_service(name))
        }
        // The service has not seen the call: the caller's sidecar tries another.
        Miss::NotSent(ConnectError::Failed(_)) => {
            call.with_record(|record| record.ended(Outcome::Failed(Reason::ConnectFailed)));
            shared.metrics.failure(Reason::ConnectFailed);
            shared.check_health_now.notify_one();
            Verdict::Reset(Code::REFUSED_STREAM)
        }
        Miss::TooLarge => Verdict::Fail(call.answer_too_large()),
        Miss::Malformed(why) => Verdict::Fail(Failure::new(Reason::Malformed, why)),
        Miss::Broke(why) => {
            shared.check_health_now.notify_one();
            let name = shared.own.as_ref().map_or("the service", |own| own.as_str());
            let message = format!("the connection to {name} broke before it answered: {why}");
            Verdict::Fail(Failure::new(Reason::ConnectionBroke, message).of_service(name))
        }
    }
}
