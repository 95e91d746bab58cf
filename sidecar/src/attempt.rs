//! The tries of one call: an endpoint is picked, the call is sent there, and where it provably was not seen, or where
//! its contract says that twice is as once, it is sent again elsewhere.

use std::{
    cell::Cell,
    collections::VecDeque,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Version, request, response};
use tokio::time::Instant;
use weft_mesh::{errors::Reason, limits};

use crate::{
    answer::{ERROR_HEADER, Failure},
    balance::NoChoice,
    body::{Body, MoveError, Transfer, Watch},
    catalog::{Method, Service},
    classify, deadline, http1,
    http2::{self, Receiver, Responding, Sender},
    outbound::{Stopped, deadline_passed},
    pool::{ConnectError, Lease},
    record::{AttemptRecord, CallRecord},
    worker::Worker,
};

/// A call that is to be sent.
pub(crate) struct Call<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) service: &'a Service,
    pub(crate) method: &'a Method,
    pub(crate) deadline: Option<Instant>,
    pub(crate) head: request::Parts,
}

/// A call that is being answered.
pub(crate) struct Served {
    pub(crate) head: response::Parts,
    pub(crate) body: Body,
    /// The request's body, where it is not moved by someone else.
    pub(crate) upload: Option<Upload>,
    /// The try that succeeded, where there are several.
    pub(crate) attempt: Option<AttemptRecord>,
    /// The connection, where it is for one call at a time.
    pub(crate) lease: Option<http1::Lease>,
}

/// How often endpoints are tried that then turn out not to be reached: nothing was sent, so it costs only time.
const CONNECTS: usize = 4;

/// Why a try came to nothing.
pub(crate) enum Miss {
    /// No connection, or none with room: nothing was sent.
    NotSent(ConnectError),
    /// It was sent, but provably not looked at.
    Unseen(http2::Error),
    /// It was sent, and nobody knows whether it was looked at.
    Broke(String),
    /// The service ended the call with a code instead of an answer.
    Reset(http2::Code),
    CallerGone,
    DeadlinePassed,
}

/// Sends a call until an endpoint answers it.
pub(crate) async fn run(
    call: &Call<'_>,
    body: Body,
    record: &mut CallRecord,
    gone: &mut impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<Served, Stopped> {
    let shared = &call.worker.shared;
    let mut moving = Transfer::new(body, Replay::new(Rc::clone(call.worker)));
    let mut tried = Vec::new();
    let mut sent = 0;
    let mut last = None;
    loop {
        let now = Instant::now();
        let endpoint = match call.worker.balancer.pick(&call.service.endpoints, &tried, now) {
            Ok(endpoint) => endpoint,
            // What went wrong before says more than that nothing is left to try.
            Err(why) => return Err(last.unwrap_or_else(|| no_choice(call, why)).into()),
        };
        tried.push(endpoint.number);
        let Ok(permit) = endpoint.breaker.admit(now) else { continue };
        let span = record.span.as_ref().map(|span| Box::new(span.attempt(tried.len() as u32)));
        let mut attempt = AttemptRecord::begin(shared, endpoint, permit, span);
        if let Some(span) = &mut attempt.span {
            span.set("weft.endpoint", endpoint.id.clone());
            span.set("server.address", endpoint.address.ip().to_string());
            span.set("server.port", i64::from(endpoint.address.port()));
        }

        let miss = match try_one(call, &attempt, &mut moving, gone, now).await {
            Ok((answered, upload)) => {
                let (head, stream) = answered.into_parts();
                let body = Body::H2(stream);
                return Ok(Served { head, body, upload: Some(upload), attempt: Some(attempt), lease: None });
            }
            Err(miss) => miss,
        };
        let failure = missed(call, &mut attempt, miss, &mut sent, now)?;
        if sent >= limits::TRIES {
            shared.metrics.counters.not_retried_unsafe.fetch_add(1, Relaxed);
            return Err(failure.into());
        }
        if tried.len() >= CONNECTS {
            return Err(failure.into());
        }
        let Some(again) = moving.into_again() else {
            shared.metrics.counters.not_retried_body.fetch_add(1, Relaxed);
            return Err(failure.into());
        };
        moving = again;
        record.retried();
        if let Some(span) = &mut record.span {
            span.event("retry", vec![opentelemetry::KeyValue::new("reason", failure.message.to_string())]);
        }
        last = Some(failure);
    }
}

/// Writes down how a try failed, and says what the caller is told if it was the last. `sent` counts the tries that may
/// not be had again.
fn missed(
    call: &Call<'_>,
    attempt: &mut AttemptRecord,
    miss: Miss,
    sent: &mut u32,
    now: Instant,
) -> Result<Failure, Stopped> {
    let name = &call.service.name;
    Ok(match miss {
        Miss::CallerGone => return Err(Stopped::CallerGone),
        Miss::Reset(code) => {
            attempt.ended(classify::code_of_reset(code));
            return Err(Stopped::Reset(code));
        }
        Miss::DeadlinePassed => {
            attempt.failed(Some(Reason::DeadlineExceeded.grpc()), Reason::DeadlineExceeded.as_str());
            return Err(deadline_passed().into());
        }
        Miss::NotSent(ConnectError::Full) => {
            attempt.failed(None, Reason::Overloaded.as_str());
            Failure::new(Reason::Overloaded, format!("{name}: {}", ConnectError::Full))
        }
        Miss::NotSent(why) => {
            attempt.endpoint.shun(now);
            attempt.failed(Some(Reason::ConnectFailed.grpc()), Reason::ConnectFailed.as_str());
            Failure::new(Reason::ConnectFailed, format!("{name} could not be reached: {why}"))
        }
        Miss::Unseen(why) => {
            attempt.endpoint.shun(now);
            *sent += 1;
            attempt.failed(None, "refused");
            Failure::new(Reason::ConnectFailed, format!("{name} did not take the call: {why}"))
        }
        Miss::Broke(why) => {
            *sent = if call.method.idempotency.is_safe_to_repeat() { *sent + 1 } else { limits::TRIES };
            attempt.failed(Some(Reason::ConnectionBroke.grpc()), Reason::ConnectionBroke.as_str());
            let message = format!("the connection to {name} broke before it answered: {why}");
            Failure::new(Reason::ConnectionBroke, message)
        }
    })
}

fn no_choice(call: &Call<'_>, why: NoChoice) -> Failure {
    let name = &call.service.name;
    match why {
        NoChoice::NoneUp => {
            Failure::new(Reason::NoEndpoint, format!("{name} is known, but none of its endpoints is up"))
        }
        // Tried, and yet nothing went wrong: their breakers have just let another call be the probe.
        NoChoice::BreakersOpen | NoChoice::AllTried => {
            let after = call.service.breaker.policy().open_for;
            Failure::new(Reason::BreakerOpen, format!("the breaker of each endpoint of {name} is open"))
                .retry_after(after)
        }
    }
}

/// Sends a call to one endpoint and waits for the head of its answer, while the request's body moves on.
async fn try_one(
    call: &Call<'_>,
    attempt: &AttemptRecord,
    moving: &mut Transfer<Replay>,
    gone: &mut impl FnMut(&mut Context<'_>) -> Poll<()>,
    now: Instant,
) -> Result<(http::Response<Receiver>, Upload), Miss> {
    let pool = call.worker.pools.of(&attempt.endpoint);
    let lease = until(pool.lease(), call.deadline, gone).await?.map_err(Miss::NotSent)?;

    let mut head = request_head(&call.head);
    deadline::pass_on(head.headers_mut(), call.deadline, now);
    if let Some(span) = &attempt.span {
        span.pass_on(head.headers_mut());
    }
    let rest = Transfer::new(Body::Empty, Replay::off(Rc::clone(call.worker)));
    let body = std::mem::replace(moving, rest);
    exchange(lease, head, body, call.deadline, gone).await.map_err(|(miss, body)| {
        *moving = body;
        miss
    })
}

/// Sends a call over a connection and waits for the head of its answer, while the request's body moves on. Where it
/// fails, the body comes back for another try.
pub(crate) async fn exchange(
    lease: Lease,
    head: Request<()>,
    body: Transfer<Replay>,
    deadline: Option<Instant>,
    gone: &mut impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<(http::Response<Receiver>, Upload), (Miss, Transfer<Replay>)> {
    let is_end = body.body.is_end();
    let (responding, sender) = match lease.open(head, is_end).await {
        Ok(opened) => opened,
        Err(e) => return Err((Miss::NotSent(ConnectError::Failed(e.to_string().into())), body)),
    };
    let mut upload = Upload { transfer: body, sender, _lease: lease };
    if is_end {
        upload.finish();
    }
    let mut responding = pin!(responding);
    let answered = until(poll_fn(|cx| poll_head(&mut upload, responding.as_mut(), cx)), deadline, gone).await;
    let miss = match answered {
        Ok(Ok(head)) if is_broken_behind(head.headers()) => Miss::Broke("its sidecar lost it".into()),
        Ok(Ok(head)) => {
            upload.transfer.watch.forget();
            return Ok((head, upload));
        }
        Ok(Err(miss)) | Err(miss) => miss,
    };
    upload.sender.reset(http2::Code::CANCEL);
    Err((miss, upload.transfer))
}

fn poll_head(
    upload: &mut Upload,
    responding: Pin<&mut Responding>,
    cx: &mut Context<'_>,
) -> Poll<Result<http::Response<Receiver>, Miss>> {
    if let Poll::Ready(Err(MoveError::Source(_))) = upload.poll(cx) {
        // The caller stopped half-way: there is nobody to answer.
        return Poll::Ready(Err(Miss::CallerGone));
    }
    responding.poll(cx).map_err(|e| match e.reset_by_peer() {
        _ if e.is_unseen() => Miss::Unseen(e),
        Some(code) => Miss::Reset(code),
        None => Miss::Broke(e.to_string()),
    })
}

/// Whether the sidecar on the other side says that it lost its service before it answered.
fn is_broken_behind(headers: &HeaderMap) -> bool {
    headers.get(&ERROR_HEADER).is_some_and(|reason| reason == Reason::ConnectionBroke.as_str())
}

fn request_head(head: &request::Parts) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
    request
}

/// Waits for a step of a call, as long as the caller is there and the deadline has not passed.
pub(crate) async fn until<T>(
    step: impl Future<Output = T>,
    deadline: Option<Instant>,
    gone: &mut impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<T, Miss> {
    let mut step = pin!(step);
    let mut expired = pin!(deadline::passed(deadline));
    poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if gone(cx).is_ready() {
            return Poll::Ready(Err(Miss::CallerGone));
        }
        expired.as_mut().poll(cx).map(|()| Err(Miss::DeadlinePassed))
    })
    .await
}

/// A request's body on its way to an endpoint.
pub(crate) struct Upload {
    transfer: Transfer<Replay>,
    sender: Sender,
    _lease: Lease,
}

impl Upload {
    pub(crate) fn is_done(&self) -> bool {
        self.transfer.is_done()
    }

    pub(crate) fn finish(&mut self) {
        self.transfer.set_done();
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), MoveError>> {
        let moved = self.transfer.poll(&mut self.sender, cx);
        if let Poll::Ready(Err(MoveError::Source(e))) = &moved {
            self.sender.reset(e.code());
        }
        moved
    }
}

/// Keeps what was sent of a body, within its bounds, so that it can be sent again.
pub(crate) struct Replay {
    /// `None`: too long, or no longer of use.
    kept: Option<VecDeque<Bytes>>,
    bytes: usize,
    worker: Rc<Worker>,
}

impl Replay {
    fn new(worker: Rc<Worker>) -> Self {
        Self { kept: Some(VecDeque::new()), bytes: 0, worker }
    }

    /// For a body that is sent once at most.
    pub(crate) fn off(worker: Rc<Worker>) -> Self {
        Self { kept: None, bytes: 0, worker }
    }

    fn total(&self) -> &Cell<usize> {
        &self.worker.replay_bytes
    }

    /// The body won't be sent again.
    fn forget(&mut self) {
        self.kept = None;
        self.total().set(self.total().get() - self.bytes);
        self.bytes = 0;
    }
}

impl Watch for Replay {
    fn data(&mut self, data: &Bytes) {
        let total = self.total().get() + data.len();
        let Some(kept) = &mut self.kept else { return };
        if self.bytes + data.len() > limits::REPLAY_BYTES_PER_CALL || total > limits::REPLAY_BYTES {
            return self.forget();
        }
        kept.push_back(data.clone());
        self.bytes += data.len();
        self.worker.replay_bytes.set(total);
    }

    fn trailers(&mut self, _: &mut HeaderMap) {
        // gRPC's requests have none: not worth keeping.
        self.forget();
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Transfer<Replay> {
    /// The same body from its beginning, if all of it that was sent was kept.
    fn into_again(mut self) -> Option<Self> {
        let kept = self.watch.kept.take()?;
        let worker = Rc::clone(&self.watch.worker);
        Some(Transfer::new(Body::Replayed(kept, Box::new(self.body)), Replay::new(worker)))
    }
}
