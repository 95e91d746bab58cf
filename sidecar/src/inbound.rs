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
    answer::Failure,
    args::AppProtocol,
    attempt::{Miss, Verdict},
    call::{Call, Side, Way},
    classify::Outcome,
    deadline,
    headers::CLIENT_CERT,
    http1, http2,
    link::Link,
    metrics::{CallLabels, CallMetrics, Direction, OTHER},
    pool::{ConnectError, Destination, Pool},
    record::CallRecord,
    shared::{Identity, Phase, Shared},
    span::{self, CallTrace},
    step::Steps,
    target, tcp,
    tls_stream::TlsStream,
    worker::{ConnectionSlot, Worker},
};

/// The way from a worker to the service that its sidecar fronts.
pub(crate) struct LocalService {
    name: String,
    address: SocketAddr,
    /// Names of methods by path, and their places in [`Peer::metrics`].
    methods: HashMap<Box<str>, (usize, Box<str>)>,
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
        let methods = contracts
            .flat_map(|contract| {
                contract.methods.iter().map(move |method| format!("{}/{}", contract.name, method.name))
            })
            .enumerate()
            .map(|(place, name)| (format!("/{name}").into(), (place, name.into())))
            .collect();
        let connections = match shared.args.protocol {
            AppProtocol::Grpc => Connections::Http2(Pool::new(worker, Arc::clone(shared), Destination::Local(address))),
            AppProtocol::Http1 => Connections::Http1(http1::Pool::new(worker, Arc::clone(shared), address)),
            AppProtocol::Tcp => Connections::Tcp,
        };
        Some(Self { name, address, methods, connections })
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
    /// When its certificate expires, or this sidecar's if that is sooner.
    expiry: SystemTime,
    /// What the service is told of it, in Envoy's format.
    client_cert: Vec<u8>,
    /// Rows for this peer, by a method's place; the last is for what no descriptor knows.
    metrics: RefCell<Vec<Option<Arc<CallMetrics>>>>,
}

impl Peer {
    fn metrics(&self, local: &LocalService, place: Option<usize>, method: &str) -> Arc<CallMetrics> {
        let mut rows = self.metrics.borrow_mut();
        rows.resize(local.methods.len() + 1, None);
        let row = rows[place.unwrap_or(local.methods.len())].get_or_insert_with(|| {
            self.worker.shared.metrics.calls(CallLabels {
                direction: Direction::Inbound,
                service: local.name.clone(),
                method: method.to_owned(),
                peer: self.id.service().to_string(),
            })
        });
        Arc::clone(row)
    }
}

/// Serves one connection of another sidecar.
pub(crate) async fn serve(slot: ConnectionSlot, stream: TcpStream, from: SocketAddr) {
    let worker = slot.worker();
    let Some(identity) = worker.shared.identity.load_full() else {
        return worker.log(|| format!("inbound connection from {from} closed: there is no identity yet"));
    };
    // In a box, which is gone when the handshake is done.
    let accepting = Box::pin(TlsAcceptor::from(Arc::clone(&identity.server)).accept(stream));
    let refused = match timeout(limits::HANDSHAKE_TIMEOUT, accepting).await {
        Ok(Ok(stream)) => match peer_of(worker, &identity, stream.get_ref().1) {
            Ok(peer) => {
                let name = format!("inbound connection of {} from {from}", peer.id);
                let (expiry, peer) = (peer.expiry, Rc::new(peer));
                let mut steps = Steps::new();
                let begin = |link: &Rc<Link>, stream, head: Headers, is_whole| {
                    let Some(slot) = worker.call_slot() else {
                        link.reset(stream, Code::REFUSED_STREAM);
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
                return http2::serve(worker, stream, Phase::Draining, Some(expiry), &name, begin, carry).await;
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

fn peer_of(worker: &Rc<Worker>, own: &Identity, tls: &rustls::ServerConnection) -> Result<Peer, String> {
    let chain = tls.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or("it showed no certificate")?;
    let id = SpiffeId::of_certificate(leaf).map_err(|e| e.to_string())?;
    let expiry = own.connection_end(chain).map_err(|e| e.to_string())?;
    let hash: String = sha256(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    let client_cert = format!("By={};Hash={hash};URI={id}", own.svid.id()).into_bytes();
    Ok(Peer { worker: Rc::clone(worker), id, expiry, client_cert, metrics: RefCell::default() })
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
    let (is_for_bytes, is_upgrade) = (tcp::is_for_bytes(&call.head()), call.head().protocol().is_some());
    let is_tunnel = tcp::is_tunnel(&call.head());
    admit(&peer, local, &call);
    let sent = match &local.connections {
        // What a sidecar has seen that is not HTTP goes to any service as it is.
        _ if is_for_bytes => tcp::send(local.address, &call).await,
        // A service of HTTP/1.1 answers CONNECT by itself. To others it is a way to their port.
        Connections::Http2(_) | Connections::Tcp if is_tunnel => tcp::send(local.address, &call).await,
        Connections::Http1(pool) => http1::send(pool, &call).await,
        Connections::Http2(pool) => send(pool, &call, is_upgrade).await,
        Connections::Tcp => {
            http1::decline(&call);
            Ok(())
        }
    };
    if let Err(miss) = sent {
        call.missed(miss);
    }
}

/// What is looked at and written into the head before a call goes on.
fn admit(peer: &Peer, local: &LocalService, call: &Rc<Call>) {
    let worker = &peer.worker;
    let mut head = call.head_mut();
    let (place, method) = match local.methods.get(target::without_query(head.path().unwrap_or_default())) {
        Some((place, name)) => (Some(*place), &**name),
        None => (None, OTHER),
    };
    let trace = CallTrace::begin(&head, &worker.shared);
    let span = trace.span(SpanKind::Server, || span::name(method, &head));
    let mut record = CallRecord::begin(worker, &peer.metrics(local, place, method), call.started, span);
    if let Some(span) = &mut record.span {
        span.set("weft.peer", peer.id.to_string());
    }
    let (deadline, limit) = deadline::of(&head, None, call.started);
    head.set(CLIENT_CERT, &peer.client_cert);
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
    if let Err(miss) = send(pool, &call, is_upgrade).await {
        call.missed(miss);
    }
}

/// Doubled with each try.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

async fn send(pool: &Rc<Pool>, call: &Rc<Call>, is_upgrade: bool) -> Result<(), Miss> {
    let link = match pool.ready() {
        Some(link) => link,
        None => pool.link().await.map_err(Miss::NotSent)?,
    };
    if is_upgrade && !link.takes_upgrades() {
        http1::decline(call);
        return Ok(());
    }
    let now = call.worker.now();
    call.send_over(&link, |head, _, deadline| deadline::pass_on(head, deadline, now)).map_err(|why| {
        Miss::NotSent(match why {
            CannotOpen::Full | CannotOpen::Congested => ConnectError::Full,
            CannotOpen::Going => ConnectError::Failed("its connection is going away".into()),
        })
    })
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
        // The service has not seen the call: the caller's sidecar tries another.
        Miss::NotSent(_) | Miss::Unseen(_) => {
            call.with_record(|record| record.ended(Outcome::Failed(Reason::ConnectFailed)));
            shared.metrics.failure(Reason::ConnectFailed);
            shared.check_health_now.notify_one();
            Verdict::Reset(Code::REFUSED_STREAM)
        }
        Miss::TooLarge => Verdict::Fail(call.answer_too_large()),
        Miss::Broke(why) => {
            shared.check_health_now.notify_one();
            let name = shared.own.as_ref().map_or("the service", |own| own.as_str());
            let message = format!("the connection to {name} broke before it answered: {why}");
            Verdict::Fail(Failure::new(Reason::ConnectionBroke, message).of_service(name))
        }
    }
}
