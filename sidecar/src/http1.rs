//! HTTP/1.1, spoken with hyper: the own service's requests on the outbound port, and requests to an own service that
//! speaks nothing else. Between sidecars everything rides on HTTP/2.

use std::{
    cell::RefCell,
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header, request, uri};
use http_body::Frame;
use hyper::{body::Incoming, client::conn::http1 as client, server::conn::http1 as server, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    task::spawn_local,
    time::{Instant, Sleep, sleep_until, timeout},
};
use weft_mesh::limits;

use crate::{
    answer::Failure,
    attempt::{Miss, Served},
    body::Body,
    http2::Part,
    outbound::{Answer, Delivery, Downstream, Stopped, broken, carry, deadline_passed},
    pool::ConnectError,
    shared::{Phase, Shared},
};

/// Fields that belong to one connection (RFC 9110, section 7.6.1), besides those that `Connection` names.
static HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
];

/// Serves one connection of the own service.
pub(crate) async fn serve(downstream: Rc<Downstream>, stream: TcpStream, from: SocketAddr) {
    let worker = Rc::clone(&downstream.worker);
    let service = service_fn(move |request| {
        let downstream = Rc::clone(&downstream);
        async move { Ok::<_, Infallible>(answer(&downstream, request).await) }
    });
    let mut connection = pin!(
        server::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::DETECT_TIMEOUT)
            .max_buf_size(limits::HEADER_LIST_BYTES as usize)
            // Who closes one side only counts as gone: else nothing would tell that a waiting client has left.
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = worker.shared.reached(Phase::Stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended
        && (e.is_parse() || e.is_timeout())
    {
        worker.shared.metrics.counters.connections_malformed.fetch_add(1, Relaxed);
        worker.log(|| format!("outbound connection from {from} closed: {e}"));
    }
}

async fn answer(downstream: &Downstream, request: Request<Incoming>) -> Response<AnswerBody> {
    let (mut head, body) = request.into_parts();
    remove_hop_by_hop(&mut head.headers);
    let carried = match make_absolute(&mut head) {
        // hyper drops this future when the client goes, so there is no one to watch.
        Ok(()) => carry(downstream, head, Body::H1(body), |_| Poll::Pending).await,
        Err(failure) => Err(failure.into()),
    };
    match carried {
        Ok(mut answer) => {
            let head = std::mem::replace(&mut answer.head, Response::new(()).into_parts().0);
            let length = head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            let mut response = Response::from_parts(head, AnswerBody::of(answer, length));
            *response.version_mut() = Version::HTTP_11;
            response
        }
        Err(Stopped::Failed(failure)) => refused(downstream, &failure),
        Err(Stopped::Reset(code)) => {
            let message = format!("the service ended the request without an answer: {code}");
            refused(downstream, &Failure::new(weft_mesh::errors::Reason::ConnectionBroke, message))
        }
        // Only a request that broke off comes here: its connection is closed after this.
        Err(Stopped::CallerGone) => {
            refused(downstream, &Failure::new(weft_mesh::errors::Reason::Malformed, "the request broke off"))
        }
    }
}

fn refused(downstream: &Downstream, failure: &Failure) -> Response<AnswerBody> {
    downstream.worker.shared.metrics.failure(failure.reason);
    downstream.worker.log(|| format!("request refused ({}): {}", failure.reason.as_str(), failure.message));
    failure.to_http().map(AnswerBody::Text)
}

/// HTTP/2 wants scheme and authority in each head.
fn make_absolute(head: &mut request::Parts) -> Result<(), Failure> {
    let malformed =
        |what: &str| Failure::new(weft_mesh::errors::Reason::Malformed, format!("{what}: RFC 9112, section 3.2"));
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    if parts.authority.is_none() {
        let mut hosts = head.headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host,
            (None, _) => return Err(malformed("the request has no Host")),
            (Some(_), Some(_)) => return Err(malformed("the request has several Hosts")),
        };
        let authority = uri::Authority::try_from(host.as_bytes()).map_err(|_| malformed("the Host is malformed"))?;
        parts.authority = Some(authority);
    }
    parts.scheme = Some(uri::Scheme::HTTP);
    if parts.path_and_query.is_none() {
        return Err(malformed("CONNECT is not taken"));
    }
    head.uri = Uri::from_parts(parts).map_err(|_| malformed("the request's target is malformed"))?;
    head.version = Version::HTTP_2;
    Ok(())
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// The body of an answer, as hyper reads it.
enum AnswerBody {
    Text(Bytes),
    Answer(Box<Moving>),
}

struct Moving {
    answer: Answer,
    expired: Option<Pin<Box<Sleep>>>,
    /// By `Content-Length`: hyper asks for no more than that.
    left_bytes: Option<u64>,
    is_over: bool,
}

impl Drop for Moving {
    fn drop(&mut self) {
        if self.left_bytes == Some(0) {
            self.end(&Delivery::Whole);
        }
    }
}

impl AnswerBody {
    fn of(mut answer: Answer, left_bytes: Option<u64>) -> Self {
        let expired = answer.deadline().map(|deadline: Instant| Box::pin(sleep_until(deadline)));
        let is_end = answer.body().is_end();
        let mut moving = Moving { answer, expired, left_bytes, is_over: false };
        if is_end {
            moving.end(&Delivery::Whole);
        }
        Self::Answer(Box::new(moving))
    }
}

/// An answer that can't be finished: hyper closes the connection, which is how HTTP/1.1 says so.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
struct BrokeOff;

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        match &mut *self {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Answer(moving) => moving.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Answer(moving) => moving.is_over,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Text(text) => http_body::SizeHint::with_exact(text.len() as u64),
            Self::Answer(moving) if moving.is_over => http_body::SizeHint::with_exact(0),
            Self::Answer(_) => http_body::SizeHint::default(),
        }
    }
}

impl Moving {
    fn end(&mut self, delivery: &Delivery) {
        if !self.is_over {
            self.is_over = true;
            self.answer.settle(delivery);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        self.answer.poll_upload(cx);
        let delivery = match self.answer.body().poll_part(cx) {
            Poll::Ready(Some(Ok(Part::Data(data)))) => {
                self.left_bytes = self.left_bytes.map(|left| left.saturating_sub(data.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Poll::Ready(Some(Ok(Part::Trailers(mut trailers)))) => {
                self.answer.saw_trailers(&mut trailers);
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            Poll::Ready(None) => Delivery::Whole,
            Poll::Ready(Some(Err(e))) => broken(&e),
            Poll::Pending => match self.expired.as_mut().map(|expired| expired.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => Delivery::Failed(deadline_passed()),
                _ => return Poll::Pending,
            },
        };
        self.end(&delivery);
        Poll::Ready(if matches!(delivery, Delivery::Whole) { None } else { Some(Err(BrokeOff)) })
    }
}

/// One worker's connections to an own service that speaks HTTP/1.1.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    address: SocketAddr,
    idle: RefCell<Vec<client::SendRequest<Body>>>,
}

/// Connections kept for the next request.
const IDLE_CONNECTIONS: usize = 64;

impl Pool {
    pub(crate) fn new(shared: Arc<Shared>, address: SocketAddr) -> Rc<Self> {
        Rc::new(Self { shared, address, idle: RefCell::default() })
    }

    fn idle(&self) -> Option<client::SendRequest<Body>> {
        let mut idle = self.idle.borrow_mut();
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<client::SendRequest<Body>, ConnectError> {
        let failed = |why: String| {
            self.shared.metrics.counters.upstream_connects_failed.fetch_add(1, Relaxed);
            ConnectError::Failed(why.into())
        };
        let connecting = timeout(limits::CONNECT_TIMEOUT, TcpStream::connect(self.address)).await;
        let stream = connecting
            .map_err(|_| failed(format!("no answer within {:?}", limits::CONNECT_TIMEOUT)))?
            .map_err(|e| failed(e.to_string()))?;
        // Without it small requests wait for acknowledgements; a socket that refuses it works all the same.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = client::Builder::new()
            .max_buf_size(limits::HEADER_LIST_BYTES as usize)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| failed(e.to_string()))?;
        self.shared.metrics.counters.upstream_connections_opened.fetch_add(1, Relaxed);
        // Ends with its connection; what broke it reaches the request.
        spawn_local(async move { drop(connection.await) });
        Ok(sender)
    }
}

/// A connection in use, given back when dropped.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Option<client::SendRequest<Body>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.borrow_mut();
        if let Some(connection) = self.connection.take()
            && !connection.is_closed()
            && idle.len() < IDLE_CONNECTIONS
        {
            idle.push(connection);
        }
    }
}

/// Sends a request to the own service.
pub(crate) async fn send(pool: &Rc<Pool>, head: request::Parts, body: Body) -> Result<Served, Miss> {
    let mut request = to_http1(head, body).map_err(|e| Miss::Broke(e.to_string()))?;
    loop {
        let (mut connection, is_fresh) = match pool.idle() {
            Some(connection) => (connection, false),
            None => (pool.connect().await.map_err(Miss::NotSent)?, true),
        };
        match connection.try_send_request(request).await {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                remove_hop_by_hop(&mut head.headers);
                head.version = Version::HTTP_2;
                let lease = Lease { pool: Rc::clone(pool), connection: Some(connection) };
                return Ok(Served { head, body: Body::H1(body), upload: None, attempt: None, lease: Some(lease) });
            }
            Err(mut failed) => match failed.take_message() {
                // Kept too long: the service had closed it.
                Some(unsent) if !is_fresh => request = unsent,
                Some(_) => return Err(Miss::NotSent(ConnectError::Failed(failed.error().to_string().into()))),
                None => return Err(Miss::Broke(failed.error().to_string())),
            },
        }
    }
}

fn to_http1(mut head: request::Parts, body: Body) -> Result<Request<Body>, http::Error> {
    let path = head.uri.path_and_query().map_or("/", uri::PathAndQuery::as_str);
    if let Some(authority) = head.uri.authority() {
        head.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    }
    head.uri = Uri::try_from(path)?;
    head.version = Version::HTTP_11;
    remove_hop_by_hop(&mut head.headers);
    let body = if body.is_end() { Body::Empty } else { body };
    Ok(Request::from_parts(head, body))
}
