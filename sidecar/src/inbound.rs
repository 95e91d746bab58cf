//! The way of a call to the own service:
//!
//! accept → mTLS → peer identity → deadline → trace → local service → record

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed, Release},
    },
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Version, request};
use opentelemetry::trace::SpanKind;
use tokio::{
    net::TcpStream,
    task::spawn_local,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use weft_mesh::{errors::Reason, identity::SpiffeId, limits};

use crate::{
    answer::{Failure, Hop},
    args::AppProtocol,
    attempt::{self, Miss, Replay, Served, until},
    body::{Body, Transfer},
    deadline, http1,
    http2::{Code, Incoming, Receiver, Responder},
    metrics::{CallLabels, CallMetrics, Direction, OTHER},
    outbound::{Answer, CLIENT_CERT, deadline_passed, refuse, serve_http2, span_name},
    pool::{Destination, Pool},
    record::CallRecord,
    shared::{Identity, Phase, Shared},
    span::CallTrace,
    target,
    worker::Worker,
};

/// The way from a worker to the service that its sidecar fronts.
pub(crate) struct LocalService {
    name: String,
    /// Names of methods by path, and their places in [`Peer::metrics`].
    methods: std::collections::HashMap<Box<str>, (usize, Box<str>)>,
    connections: Connections,
}

enum Connections {
    Http2(Rc<Pool>),
    Http1(Rc<http1::Pool>),
}

impl LocalService {
    /// `None` for a sidecar that fronts nothing.
    pub(crate) fn new(shared: &Arc<Shared>) -> Option<Self> {
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
            AppProtocol::Grpc => Connections::Http2(Pool::new(Arc::clone(shared), Destination::Local(address))),
            AppProtocol::Http1 => Connections::Http1(http1::Pool::new(Arc::clone(shared), address)),
        };
        Some(Self { name, methods, connections })
    }
}

/// Another sidecar on a connection.
struct Peer {
    worker: Rc<Worker>,
    id: SpiffeId,
    /// What the service is told of it, in Envoy's format.
    client_cert: HeaderValue,
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
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, from: SocketAddr) {
    let Some(identity) = worker.shared.identity.load_full() else {
        return worker.log(|| format!("inbound connection from {from} closed: there is no identity yet"));
    };
    let accepting = TlsAcceptor::from(Arc::clone(&identity.server)).accept(stream);
    let refused = match timeout(limits::HANDSHAKE_TIMEOUT, accepting).await {
        Ok(Ok(stream)) => match peer_of(&worker, &identity, stream.get_ref().1) {
            Ok(peer) => {
                let (name, peer) = (format!("inbound connection of {} from {from}", peer.id), Rc::new(peer));
                let answer = |incoming| drop(spawn_local(answer(Rc::clone(&peer), incoming)));
                return serve_http2(&worker, stream, Phase::Draining, &name, answer).await;
            }
            Err(why) => why,
        },
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => "it went within the handshake".to_owned(),
        Ok(Err(e)) => format!("only mutual TLS with an SVID of this trust domain is taken: {e}"),
        Err(_) => format!("its TLS handshake took longer than {:?}", limits::HANDSHAKE_TIMEOUT),
    };
    worker.shared.metrics.counters.handshakes_failed.fetch_add(1, Relaxed);
    worker.log(|| format!("inbound connection from {from} closed: {refused}"));
}

fn peer_of(worker: &Rc<Worker>, own: &Identity, tls: &rustls::ServerConnection) -> Result<Peer, String> {
    let leaf = tls.peer_certificates().and_then(<[_]>::first).ok_or("it showed no certificate")?;
    let id = SpiffeId::of_certificate(leaf).map_err(|e| e.to_string())?;
    let hash: String = sha256(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!("By={};Hash={hash};URI={id}", own.svid.id());
    let client_cert = HeaderValue::try_from(text).map_err(|e| e.to_string())?;
    Ok(Peer { worker: Rc::clone(worker), id, client_cert, metrics: RefCell::default() })
}

fn sha256(bytes: &[u8]) -> impl AsRef<[u8]> + std::ops::Deref<Target = [u8]> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}

/// Counts a call into the drain.
struct Running(Arc<Shared>);

impl Running {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.inbound_in_flight.fetch_add(1, Acquire);
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.inbound_in_flight.fetch_sub(1, Release);
    }
}

async fn answer(peer: Rc<Peer>, incoming: Incoming) {
    let Incoming { head, body, mut responder } = incoming;
    let _running = Running::new(&peer.worker.shared);
    let is_grpc = target::is_grpc(&head.headers);
    match serve_call(&peer, head, body, &mut responder).await {
        Ok(answer) => answer.deliver(responder, Hop::Inbound).await,
        Err(Ended::Failed(failure)) => refuse(&peer.worker, responder, is_grpc, &failure, Hop::Inbound).await,
        Err(Ended::Reset(code)) => responder.reset(code),
        Err(Ended::CallerGone) => {}
    }
}

/// Why the own service does not answer.
enum Ended {
    Failed(Failure),
    /// REFUSED_STREAM says that it has not seen the call, so that the caller's sidecar tries another.
    Reset(Code),
    CallerGone,
}

async fn serve_call(
    peer: &Rc<Peer>,
    mut head: request::Parts,
    body: Receiver,
    responder: &mut Responder,
) -> Result<Answer, Ended> {
    let worker = &peer.worker;
    let shared = &worker.shared;
    let started = Instant::now();
    // The listener exists only where there is a service.
    let local = worker.local.as_ref().ok_or(Ended::Reset(Code::REFUSED_STREAM))?;
    let slot = worker.call_slot().ok_or(Ended::Reset(Code::REFUSED_STREAM))?;

    let (place, method) = match local.methods.get(head.uri.path()) {
        Some((place, name)) => (Some(*place), &**name),
        None => (None, OTHER),
    };
    let trace = CallTrace::begin(&head.headers, shared);
    let span = trace.span(SpanKind::Server, span_name(method, &head));
    let mut record = CallRecord::begin(shared, &peer.metrics(local, place, method), started, span);
    if let Some(span) = &mut record.span {
        span.set("weft.peer", peer.id.to_string());
    }
    let deadline = deadline::of(&head.headers, None, started);
    deadline::pass_on(&mut head.headers, deadline, started);
    head.headers.insert(&CLIENT_CERT, peer.client_cert.clone());
    trace.pass_on(&mut head.headers);

    let mut gone = |cx: &mut Context<'_>| responder.poll_gone(cx);
    let served = match &local.connections {
        Connections::Http2(pool) => over_http2(worker, pool, head, body, deadline, &mut gone).await,
        Connections::Http1(pool) => {
            until(http1::send(pool, head, Body::H2(body)), deadline, &mut gone).await.and_then(|sent| sent)
        }
    };
    match served {
        Ok(served) => Ok(Answer::new(served, record, deadline, slot, Rc::clone(worker))),
        Err(miss) => Err(missed(shared, &mut record, local, miss)),
    }
}

async fn over_http2(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    head: request::Parts,
    body: Receiver,
    deadline: Option<Instant>,
    gone: &mut impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<Served, Miss> {
    let lease = until(pool.lease(), deadline, gone).await?.map_err(Miss::NotSent)?;
    let mut request = Request::from_parts(head, ());
    *request.version_mut() = Version::HTTP_2;
    let body = Transfer::new(Body::H2(body), Replay::off(Rc::clone(worker)));
    let sent = attempt::exchange(lease, request, body, deadline, gone).await;
    let (answered, upload) = sent.map_err(|(miss, _)| miss)?;
    let (head, stream) = answered.into_parts();
    Ok(Served { head, body: Body::H2(stream), upload: Some(upload), attempt: None, lease: None })
}

/// What the caller is told when the own service did not answer.
fn missed(shared: &Shared, record: &mut CallRecord, local: &LocalService, miss: Miss) -> Ended {
    match miss {
        Miss::CallerGone => Ended::CallerGone,
        Miss::Reset(code) => {
            record.ended(crate::classify::code_of_reset(code));
            Ended::Reset(code)
        }
        Miss::NotSent(_) | Miss::Unseen(_) => {
            record.failed(Reason::ConnectFailed);
            shared.metrics.failure(Reason::ConnectFailed);
            shared.check_health_now.notify_one();
            Ended::Reset(Code::REFUSED_STREAM)
        }
        Miss::Broke(why) => {
            record.failed(Reason::ConnectionBroke);
            shared.check_health_now.notify_one();
            let message = format!("the connection to {} broke before it answered: {why}", local.name);
            Ended::Failed(Failure::new(Reason::ConnectionBroke, message).of_service(&local.name))
        }
        Miss::DeadlinePassed => {
            record.failed(Reason::DeadlineExceeded);
            Ended::Failed(deadline_passed().of_service(&local.name))
        }
    }
}
