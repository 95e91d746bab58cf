//! The way of a call out of the own service:
//!
//! accept → detect → target → deadline → trace → breaker → [attempt: pick endpoint → connection → send] → classify →
//! record
//!
//! [`carry`] is that way up to the head of the answer; [`Answer`] is the rest of it.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use http::{HeaderName, Response, request, response};
use opentelemetry::trace::SpanKind;
use tokio::{net::TcpStream, task::spawn_local, time::Instant};
use weft_mesh::{errors::Reason, limits, names};

use crate::{
    answer::{Failure, Hop},
    attempt::{self, Served, Upload},
    body::{Body, MoveError, Transfer, Watch},
    catalog::{Asked, Service, Unknown},
    classify, deadline,
    detect::{self, Wire},
    http1,
    http2::{Code, Incoming, Responder, Sender, Server},
    record::{AttemptRecord, CallRecord},
    shared::Phase,
    span::CallTrace,
    target::{self, AuthorityCache, Target, TargetError},
    worker::{CallSlot, Worker},
};

pub(crate) static CLIENT_CERT: HeaderName = HeaderName::from_static(names::header::CLIENT_CERT);

/// A client's connection.
pub(crate) struct Downstream {
    pub(crate) worker: Rc<Worker>,
    names: RefCell<AuthorityCache>,
}

/// Why a call got no answer to pass on.
pub(crate) enum Stopped {
    /// The mesh answers.
    Failed(Failure),
    /// The service ended it with a code instead of an answer.
    Reset(Code),
    /// Nobody is there to be answered.
    CallerGone,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Serves one connection of the own service.
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, from: SocketAddr) {
    let wire = match detect::wire(&stream).await {
        Ok(wire) => wire,
        Err(detect::Undetected::Gone) => return,
        Err(why) => {
            worker.shared.metrics.counters.connections_malformed.fetch_add(1, Relaxed);
            return worker.log(|| format!("outbound connection from {from} closed: {why}"));
        }
    };
    let downstream = Rc::new(Downstream { worker: Rc::clone(&worker), names: RefCell::default() });
    match wire {
        Wire::Http1 => http1::serve(downstream, stream, from).await,
        Wire::Http2 => {
            let answer = |incoming| drop(spawn_local(answer_http2(Rc::clone(&downstream), incoming)));
            serve_http2(&worker, stream, Phase::Stopping, &format_args!("outbound connection from {from}"), answer)
                .await;
        }
    }
}

/// Takes the calls of an HTTP/2 connection until it ends; from `last` on it is drained.
pub(crate) async fn serve_http2<IO>(
    worker: &Worker,
    stream: IO,
    last: Phase,
    name: &dyn std::fmt::Display,
    mut answer: impl FnMut(Incoming),
) where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let ended = async {
        let handshake = tokio::time::timeout(limits::DETECT_TIMEOUT, Server::handshake(stream)).await;
        let Ok(handshake) = handshake else { return Ok(()) };
        let mut server = handshake?;
        let mut draining = pin!(worker.shared.reached(last));
        let mut is_draining = false;
        loop {
            tokio::select! {
                biased;
                incoming = server.next() => match incoming {
                    Some(incoming) => answer(incoming?),
                    None => return Ok(()),
                },
                () = &mut draining, if !is_draining => {
                    is_draining = true;
                    server.drain();
                }
            }
        }
    };
    let ended: Result<(), crate::http2::Error> = ended.await;
    if let Err(e) = ended
        && e.is_protocol()
    {
        worker.shared.metrics.counters.connections_malformed.fetch_add(1, Relaxed);
        worker.log(|| format!("{name} closed: {e}"));
    }
}

async fn answer_http2(downstream: Rc<Downstream>, incoming: Incoming) {
    let Incoming { head, body, mut responder } = incoming;
    let is_grpc = target::is_grpc(&head.headers);
    let carried = carry(&downstream, head, Body::H2(body), |cx| responder.poll_gone(cx)).await;
    match carried {
        Ok(answer) => answer.deliver(responder, Hop::Outbound).await,
        Err(Stopped::Failed(failure)) => refuse(&downstream.worker, responder, is_grpc, &failure, Hop::Outbound).await,
        Err(Stopped::Reset(code)) => responder.reset(code),
        Err(Stopped::CallerGone) => {}
    }
}

/// Carries a call up to the head of its answer. `gone` is ready when the caller has given up.
pub(crate) async fn carry(
    downstream: &Downstream,
    mut head: request::Parts,
    body: Body,
    mut gone: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<Answer, Stopped> {
    let worker = &downstream.worker;
    let shared = &worker.shared;
    let started = Instant::now();
    let slot = worker.call_slot().ok_or_else(too_many_calls)?;

    let target = target::resolve(&mut head, &shared.args.namespace, &mut downstream.names.borrow_mut());
    let service = match target.map_err(no_target)? {
        Target::Reflection => return reflect(worker, slot, head, body).await,
        Target::Service(name) => find(worker, Asked::Service(name)).await?,
        Target::Contract => find_contract(worker, head.uri.path()).await?,
    };
    service.last_used.store(shared.started.elapsed().as_secs(), Relaxed);
    let method = Arc::clone(service.method(head.uri.path()));

    let trace = CallTrace::begin(&head.headers, shared);
    let span = trace.span(SpanKind::Client, span_name(&method.name, &head));
    let mut record = CallRecord::begin(shared, &method.metrics, started, span);
    if let Some(span) = &mut record.span {
        span.set("weft.service", service.name.to_string());
    }
    match service.breaker.admit(started) {
        Ok(permit) => record.admitted(&service.breaker, permit),
        Err(wait) => {
            let failure = breaker_open(&service, wait);
            record.failed(failure.reason);
            return Err(failure.into());
        }
    }

    head.headers.remove(&CLIENT_CERT);
    trace.pass_on(&mut head.headers);
    let call = attempt::Call {
        worker,
        service: &service,
        method: &method,
        deadline: deadline::of(&head.headers, method.timeout, started),
        head,
    };
    match attempt::run(&call, body, &mut record, &mut gone).await {
        Ok(served) => Ok(Answer::new(served, record, call.deadline, slot, Rc::clone(worker))),
        Err(Stopped::Failed(failure)) => {
            record.failed(failure.reason);
            Err(failure.of_service(service.name.as_str()).into())
        }
        Err(stopped) => {
            if let Stopped::Reset(code) = stopped {
                record.ended(classify::code_of_reset(code));
            }
            Err(stopped)
        }
    }
}

/// The method's name, or for what no descriptor knows the HTTP method: a path would make too many names.
pub(crate) fn span_name<'a>(method: &'a str, head: &'a request::Parts) -> &'a str {
    if method != crate::metrics::OTHER {
        method
    } else if target::is_grpc(&head.headers) {
        head.uri.path().trim_start_matches('/')
    } else {
        head.method.as_str()
    }
}

async fn find_contract(worker: &Worker, path: &str) -> Result<Arc<Service>, Stopped> {
    let Some(contract) = target::contract(path) else {
        let message = format!("`{path}` is not a gRPC path: /PACKAGE.SERVICE/METHOD");
        return Err(Failure::new(Reason::NoSuchService, message).into());
    };
    // No allocation for what is known, which is nearly every call.
    if let Some(service) = worker.shared.catalog.view().contracts.get(contract) {
        return Ok(Arc::clone(service));
    }
    find(worker, Asked::Contract(contract.into())).await
}

async fn find(worker: &Worker, asked: Asked) -> Result<Arc<Service>, Stopped> {
    let name = asked.to_string();
    let failure = match worker.shared.catalog.find(asked).await {
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
    };
    Err(failure.into())
}

const RETRY_SOON: std::time::Duration = std::time::Duration::from_secs(1);

fn too_many_calls() -> Failure {
    let message = format!("{} calls run in this sidecar; slow down", limits::CALLS_IN_FLIGHT);
    Failure::new(Reason::Overloaded, message).retry_after(RETRY_SOON)
}

fn no_target(why: TargetError) -> Failure {
    Failure::new(Reason::NoSuchService, why.to_string())
}

fn breaker_open(service: &Service, wait: std::time::Duration) -> Failure {
    let message = format!("{} fails too often; its breaker is open for {wait:?} more", service.name);
    Failure::new(Reason::BreakerOpen, message).of_service(service.name.as_str()).retry_after(wait)
}

/// Answers server reflection from what the control plane knows.
async fn reflect(worker: &Rc<Worker>, slot: CallSlot, head: request::Parts, body: Body) -> Result<Answer, Stopped> {
    let request = http::Request::from_parts(head, tonic::body::Body::new(body));
    let answered = tower::ServiceExt::oneshot(worker.shared.reflection.clone(), request).await;
    let Ok(response) = answered;
    let (head, body) = response.into_parts();
    Ok(Answer {
        head,
        transfer: Transfer::new(Body::Local(body), Outcome { record: None, attempt: None, code: None }),
        upload: None,
        deadline: None,
        _lease: None,
        _slot: slot,
        worker: Rc::clone(worker),
    })
}

/// Answers in the service's stead.
pub(crate) async fn refuse(worker: &Worker, mut responder: Responder, is_grpc: bool, failure: &Failure, hop: Hop) {
    worker.shared.metrics.failure(failure.reason);
    worker.log(|| {
        let service = failure.service.as_deref().unwrap_or("-");
        format!("call refused ({}) service={service}: {}", failure.reason.as_str(), failure.message)
    });
    // Where sending fails, the caller has gone.
    if is_grpc {
        let _ = responder.respond(failure.to_grpc(hop), true);
        return;
    }
    let (head, text) = failure.to_http().into_parts();
    if let Ok(mut sender) = responder.respond(Response::from_parts(head, ()), false) {
        let mut text = text;
        let _ = poll_fn(|cx| sender.poll_send(&mut text, true, cx)).await;
    }
}

/// An answer on its way to the caller.
pub(crate) struct Answer {
    pub(crate) head: response::Parts,
    transfer: Transfer<Outcome>,
    /// The rest of the request, where the answer came before its end.
    upload: Option<Upload>,
    deadline: Option<Instant>,
    _lease: Option<http1::Lease>,
    _slot: CallSlot,
    worker: Rc<Worker>,
}

/// How a call ended, as its trailers or its head say.
struct Outcome {
    // Dropped, and so ended, before the call that it belongs to.
    attempt: Option<AttemptRecord>,
    record: Option<CallRecord>,
    /// By the head: for plain HTTP, and for gRPC's answers without a body.
    code: Option<u8>,
}

impl Outcome {
    fn ended(&mut self, code: u8) {
        if let Some(record) = &mut self.record {
            record.ended(code);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.ended(code);
        }
    }

    fn failed(&mut self, reason: Reason) {
        if let Some(record) = &mut self.record {
            record.failed(reason);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.failed(Some(reason.grpc()), reason.as_str());
        }
    }
}

impl Watch for Outcome {
    fn trailers(&mut self, trailers: &mut http::HeaderMap) {
        self.code = classify::grpc_status(trailers).or(self.code);
    }
}

/// How the moving of an answer ended.
pub(crate) enum Delivery {
    Whole,
    /// The caller wants no more of it.
    CallerGone,
    /// It broke on the way, for this reason, after its head was sent.
    Failed(Failure),
    /// The service reset it with this code.
    Reset(Code),
}

impl Answer {
    pub(crate) fn new(
        served: Served,
        record: CallRecord,
        deadline: Option<Instant>,
        slot: CallSlot,
        worker: Rc<Worker>,
    ) -> Self {
        let code = classify::of_head(&served.head);
        let outcome = Outcome { record: Some(record), attempt: served.attempt, code };
        let upload = served.upload.filter(|upload| !upload.is_done());
        let transfer = Transfer::new(served.body, outcome);
        Self { head: served.head, transfer, upload, deadline, _lease: served.lease, _slot: slot, worker }
    }

    /// Sends it over HTTP/2.
    pub(crate) async fn deliver(mut self, mut responder: Responder, hop: Hop) {
        let head = std::mem::replace(&mut self.head, Response::new(()).into_parts().0);
        let is_end = self.transfer.body.is_end();
        let is_grpc = target::is_grpc(&head.headers);
        let Ok(mut sender) = responder.respond(Response::from_parts(head, ()), is_end) else { return };
        if is_end {
            return self.settle(&Delivery::Whole);
        }
        let delivery = self.deliver_body(&mut sender).await;
        self.settle(&delivery);
        // Where sending fails, the caller has gone.
        match delivery {
            Delivery::Whole | Delivery::CallerGone => {}
            Delivery::Failed(failure) if is_grpc => {
                let _ = sender.send_trailers(failure.grpc_status(hop));
            }
            Delivery::Failed(_) => sender.reset(Code::INTERNAL_ERROR),
            Delivery::Reset(code) => sender.reset(code),
        }
    }

    async fn deliver_body(&mut self, sender: &mut Sender) -> Delivery {
        let mut expired = pin!(deadline::passed(self.deadline));
        poll_fn(|cx| {
            self.poll_upload(cx);
            if let Poll::Ready(moved) = self.transfer.poll(sender, cx) {
                return Poll::Ready(match moved {
                    Ok(()) => Delivery::Whole,
                    Err(MoveError::Source(e)) => broken(&e),
                    Err(MoveError::Sink) => Delivery::CallerGone,
                });
            }
            expired.as_mut().poll(cx).map(|()| Delivery::Failed(deadline_passed()))
        })
        .await
    }

    /// Moves on what is left of the request.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Some(upload) = &mut self.upload
            && upload.poll(cx).is_ready()
        {
            // Either all of it is sent, or the service wants no more; its answer says which.
            upload.finish();
        }
    }

    /// Writes down how it ended.
    pub(crate) fn settle(&mut self, delivery: &Delivery) {
        let outcome = &mut self.transfer.watch;
        match delivery {
            Delivery::Whole => {
                let code = outcome.code.unwrap_or(classify::code::UNKNOWN);
                outcome.ended(code);
            }
            Delivery::CallerGone => {}
            Delivery::Failed(failure) => {
                outcome.failed(failure.reason);
                self.worker.shared.metrics.failure(failure.reason);
                self.worker.log(|| format!("call failed ({}): {}", failure.reason.as_str(), failure.message));
            }
            Delivery::Reset(code) => outcome.ended(classify::code_of_reset(*code)),
        }
    }

    /// The body, the time limit and the call's place, for HTTP/1.1.
    pub(crate) fn body(&mut self) -> &mut Body {
        &mut self.transfer.body
    }

    pub(crate) fn saw_trailers(&mut self, trailers: &mut http::HeaderMap) {
        self.transfer.watch.trailers(trailers);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// What a body that stopped half-way is to the caller.
pub(crate) fn broken(error: &crate::body::BodyError) -> Delivery {
    match error {
        crate::body::BodyError::H2(e) if e.reset_by_peer().is_some() => Delivery::Reset(error.code()),
        _ => {
            let message = format!("the connection to the service broke within its answer: {error}");
            Delivery::Failed(Failure::new(Reason::ConnectionBroke, message))
        }
    }
}

pub(crate) fn deadline_passed() -> Failure {
    Failure::new(Reason::DeadlineExceeded, "the deadline passed before the service had answered")
}
