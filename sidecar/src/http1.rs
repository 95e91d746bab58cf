//! HTTP/1.1, spoken with hyper: the own service's requests on the outbound port, and requests to an own service that
//! speaks nothing else. Between sidecars everything rides on HTTP/2.

use std::{
    cell::RefCell,
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header, request, uri};
use http_body::Body;
use http_body_util::{Either, Full};
use hyper::{body::Incoming, client::conn::http1 as client, server::conn::http1 as server, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, task::spawn_local, time::timeout};
use weft_mesh::{errors::Reason, limits};
use weft_wire::{Code, Headers, Name};

use crate::{
    answer::Failure,
    attempt::{Miss, Tries},
    call::{Call, Side, Way},
    headers,
    local::{answer_with, attended, pump, request_with},
    outbound::{Downstream, carry, too_many_calls},
    pipe::{News, Pipe, PipeBody},
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

type AnswerBody = Either<PipeBody, Full<Bytes>>;

async fn answer(downstream: &Rc<Downstream>, request: Request<Incoming>) -> Response<AnswerBody> {
    let worker = &downstream.worker;
    worker.tick();
    let (mut head, body) = request.into_parts();
    remove_hop_by_hop(&mut head.headers);
    if let Err(failure) = make_absolute(&mut head) {
        return refused(downstream, &failure);
    }
    let Some(slot) = worker.call_slot() else { return refused(downstream, &too_many_calls()) };

    let head = headers::of_request(&head);
    let pipe = Pipe::default();
    // From here on hyper drops it when the client goes, which ends the call.
    let answer = PipeBody::new(pipe.clone());
    let caller = Side::Pipe(pipe.clone());
    let call = Call::begin(worker, Way::Outbound(Tries::default()), caller, &head, body.is_end_stream(), slot);
    spawn_local(attend(Rc::clone(&call), pipe.clone(), body));
    let carrying = spawn_local(carry(Rc::clone(downstream), Rc::clone(&call), head));
    call.waits_in(Some(carrying.abort_handle()));
    match pipe.head().await {
        Ok(head) => {
            let length =
                head.get_single(Name::CONTENT_LENGTH).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            headers::to_response(&head, Either::Left(answer.expecting(length)))
        }
        Err(code) => {
            let message = format!("the service ended the request without an answer: {code}");
            refused(downstream, &Failure::new(Reason::ConnectionBroke, message))
        }
    }
}

/// Moves a request's body into its call, and tells the call what the client has taken of the answer.
async fn attend(call: Rc<Call>, pipe: Pipe, body: Incoming) {
    let mut pumping = pin!(pump(body, &pipe, |part| request_with(&call, part)));
    let mut is_pumped = false;
    loop {
        tokio::select! {
            () = &mut pumping, if !is_pumped => is_pumped = true,
            news = pipe.news() => {
                call.worker.tick();
                match news {
                    News::Taken(bytes) => call.response_sent(bytes),
                    News::All => return,
                    News::Gone => return call.caller_gone(Code::CANCEL),
                }
            }
        }
    }
}

fn refused(downstream: &Downstream, failure: &Failure) -> Response<AnswerBody> {
    downstream.worker.shared.metrics.failure(failure.reason);
    downstream.worker.log(|| format!("request refused ({}): {}", failure.reason.as_str(), failure.message));
    let (head, text) = failure.to_http();
    headers::to_response(&head, Either::Right(Full::from(text)))
}

/// HTTP/2 wants scheme and authority in each head.
fn make_absolute(head: &mut request::Parts) -> Result<(), Failure> {
    let malformed = |what: &str| Failure::new(Reason::Malformed, format!("{what}: RFC 9112, section 3.2"));
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

/// One worker's connections to an own service that speaks HTTP/1.1.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    address: SocketAddr,
    idle: RefCell<Vec<client::SendRequest<PipeBody>>>,
}

/// Connections kept for the next request.
const IDLE_CONNECTIONS: usize = 64;

impl Pool {
    pub(crate) fn new(shared: Arc<Shared>, address: SocketAddr) -> Rc<Self> {
        Rc::new(Self { shared, address, idle: RefCell::default() })
    }

    fn idle(&self) -> Option<client::SendRequest<PipeBody>> {
        let mut idle = self.idle.borrow_mut();
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<client::SendRequest<PipeBody>, ConnectError> {
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
    connection: Option<client::SendRequest<PipeBody>>,
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

/// Sends a call to the own service.
pub(crate) fn send(pool: &Rc<Pool>, call: &Rc<Call>) {
    let pipe = Pipe::default();
    let head = call.send_into(pipe.clone());
    let sending = exchange(Rc::clone(pool), Rc::clone(call), pipe.clone(), head);
    let sending = spawn_local(attended(Rc::clone(call), pipe, sending));
    call.waits_in(Some(sending.abort_handle()));
}

async fn exchange(pool: Rc<Pool>, call: Rc<Call>, pipe: Pipe, head: Headers) {
    let answered = match to_http1(&head, PipeBody::new(pipe.clone())) {
        Ok(request) => try_send(&pool, request).await,
        Err(e) => Err(Miss::Broke(e.to_string())),
    };
    call.worker.tick();
    match answered {
        Ok((response, _lease)) => {
            let (mut head, body) = response.into_parts();
            remove_hop_by_hop(&mut head.headers);
            call.response_head(headers::of_response(&head), body.is_end_stream());
            pump(body, &pipe, |part| answer_with(&call, part)).await;
        }
        Err(miss) => call.missed(miss),
    }
}

async fn try_send(pool: &Rc<Pool>, mut request: Request<PipeBody>) -> Result<(Response<Incoming>, Lease), Miss> {
    loop {
        let (mut connection, is_fresh) = match pool.idle() {
            Some(connection) => (connection, false),
            None => (pool.connect().await.map_err(Miss::NotSent)?, true),
        };
        match connection.try_send_request(request).await {
            Ok(response) => return Ok((response, Lease { pool: Rc::clone(pool), connection: Some(connection) })),
            Err(mut failed) => match failed.take_message() {
                // Kept too long: the service had closed it.
                Some(unsent) if !is_fresh => request = unsent,
                Some(_) => return Err(Miss::NotSent(ConnectError::Failed(failed.error().to_string().into()))),
                None => return Err(Miss::Broke(failed.error().to_string())),
            },
        }
    }
}

fn to_http1(head: &Headers, body: PipeBody) -> Result<Request<PipeBody>, http::Error> {
    let mut request = headers::to_request(head, Uri::try_from(head.path().unwrap_or(b"/"))?, body)?;
    if let Some(authority) = head.authority() {
        request.headers_mut().insert(header::HOST, HeaderValue::from_bytes(authority)?);
    }
    *request.version_mut() = Version::HTTP_11;
    remove_hop_by_hop(request.headers_mut());
    Ok(request)
}
