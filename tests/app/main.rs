//! A gRPC service for tests, on the bare h2 crate: it echoes, or does what the caller says in `x-do`:
//!
//! - `status:N` answers with that gRPC status and no message;
//! - `web:N` answers in gRPC-Web: a message, and the gRPC status in the last frame of the body;
//! - `http:N` answers with that HTTP status, and `forge:N` also with the mesh's `x-weft-error`;
//! - `large-head:N` and `large-trailer:N` answer with a field of N bytes in the head or the trailers;
//! - `reset:N` resets the stream with that HTTP/2 error code;
//! - `sleep:MS` waits before it answers;
//! - `die` ends the process without answering;
//! - `die-once:FILE` creates that file and ends the process; if the file exists, the call is echoed;
//! - `hang-once:FILE` creates that file and does not answer; if the file exists, the call is echoed;
//! - `sicken` makes the health check answer NOT_SERVING from now on, `faint:MS` for so many milliseconds;
//! - `headers` answers with the request's headers, one per line;
//! - `parts` answers with the number of DATA frames in the request, an empty one included;
//! - `swallow` answers with the number of bytes in the request, and keeps none of them;
//! - `pour:N` answers with N bytes, which are no message, as fast as flow control allows;
//! - `break` sends the head of an answer and half a message, then ends the process.
//!
//! With the header `x-answer: NAME: VALUE` it answers with that header.
//!
//! A GET, which is not gRPC, is answered with a line of text once all of it has come. Every other answer carries
//! `x-pid`, `x-connection` (the number of its connection), `x-calls` (the calls that this process has seen) and
//! `x-broken` (those of them that broke off, because their caller went away or stopped half-way).
//!
//! It listens on loopback, or on `HOST`. `MAX_STREAMS` limits the concurrent calls on a connection. A connection on
//! which more than `MAX_RESETS` calls were cancelled is ended, as Netty's servers do. `CONNECTION_WINDOW` is the window
//! of a connection in bytes, and `MAX_HEADER_LIST` the longest header list in bytes.
//!
//! With `SPEAK=tcp` it speaks a small protocol of its own, with `SPEAK=http1` HTTP/1.1, with
//! `SPEAK=websocket` WebSocket: see the files of these names.
//!
//! With `REFLECT` it answers server reflection: see the file of this name. Without, it answers that it has none.
//!
//! With `FORWARD_TO` it serves nothing itself: it passes each connection on to the loopback port whose number the file
//! `FORWARD_TO` contains at that moment.

mod http1;
mod reflection;
mod tcp;
mod websocket;

use std::{
    env, fs,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use h2::{RecvStream, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weft_tests::{framed, pour};

static CALLS: AtomicU64 = AtomicU64::new(0);
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
static BROKEN: AtomicU64 = AtomicU64::new(0);
static IS_SICK: AtomicBool = AtomicBool::new(false);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let port: u16 = env::var("PORT").context("PORT is not set")?.parse()?;
    let host = env::var("HOST").unwrap_or_else(|_| "127.0.0.1".into());
    if env::var_os("ONE_AT_A_TIME").is_some() {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((host.parse::<IpAddr>()?, port).into())?;
        return http1::serve_one_at_a_time(socket.listen(1)?).await;
    }
    let listener = TcpListener::bind((host.as_str(), port)).await?;
    let forward_to = env::var_os("FORWARD_TO").map(PathBuf::from);
    let speaks = env::var("SPEAK").unwrap_or_default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        match speaks.as_str() {
            "tcp" => drop(tokio::spawn(tcp::serve(stream))),
            "websocket" => drop(tokio::spawn(websocket::serve(stream))),
            "http1" => drop(tokio::spawn(http1::serve(stream))),
            _ => match forward_to.clone() {
                Some(file) => drop(tokio::spawn(forward(stream, file))),
                None => drop(tokio::spawn(serve(stream))),
            },
        }
    }
}

async fn forward(mut stream: TcpStream, file: PathBuf) -> anyhow::Result<()> {
    // A health check of TCP connects and sends nothing.
    if stream.peek(&mut [0]).await? == 0 {
        return Ok(());
    }
    let port: u16 = fs::read_to_string(file)?.trim().parse()?;
    let mut target = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    target.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut stream, &mut target).await?;
    Ok(())
}

async fn serve(stream: TcpStream) -> Result<(), h2::Error> {
    let number = CONNECTIONS.fetch_add(1, Relaxed) + 1;
    let mut builder = server::Builder::new();
    if let Some(streams) = env::var("MAX_STREAMS").ok().and_then(|streams| streams.parse().ok()) {
        builder.max_concurrent_streams(streams);
    }
    if let Some(bytes) = env::var("CONNECTION_WINDOW").ok().and_then(|bytes| bytes.parse().ok()) {
        builder.initial_connection_window_size(bytes);
    }
    if let Some(bytes) = env::var("MAX_HEADER_LIST").ok().and_then(|bytes| bytes.parse().ok()) {
        builder.max_header_list_size(bytes);
    }
    let most: u64 = env::var("MAX_RESETS").ok().and_then(|most| most.parse().ok()).unwrap_or(u64::MAX);
    let mut connection = builder.handshake(stream).await?;
    let broken = Arc::new(AtomicU64::new(0));
    while let Some(accepted) = connection.accept().await {
        if broken.load(Relaxed) > most {
            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            continue;
        }
        let ((request, respond), broken) = (accepted?, Arc::clone(&broken));
        tokio::spawn(async move {
            if answer(request, respond, number).await.is_err() {
                broken.fetch_add(1, Relaxed);
                BROKEN.fetch_add(1, Relaxed);
            }
        });
    }
    Ok(())
}

async fn answer(
    mut request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    connection: u64,
) -> Result<(), h2::Error> {
    let calls = [CALLS.fetch_add(1, Relaxed) + 1, connection];
    let what = request.headers().get("x-do").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    if request.uri().path() == "/grpc.health.v1.Health/Check" {
        CALLS.fetch_sub(1, Relaxed);
        // SERVING or NOT_SERVING
        let status = if IS_SICK.load(Relaxed) { 2 } else { 1 };
        return send(&mut respond, calls, Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]));
    }
    if reflection::is_asked(request.uri().path()) {
        CALLS.fetch_sub(1, Relaxed);
        let (path, body) = (request.uri().path().to_owned(), whole_body(&mut request).await?);
        tokio::time::sleep(reflection::delay()).await;
        return match reflection::answers(&path, &body) {
            Some(frames) => send(&mut respond, calls, frames),
            None => refuse(&mut respond, "12", calls),
        };
    }
    if let Some((name, value)) = request.headers().get("x-answer").and_then(|v| v.to_str().ok()?.split_once(": ")) {
        let mut head = head(calls);
        let value = HeaderValue::from_str(value).expect("it came as one");
        head.headers_mut().insert(http::HeaderName::try_from(name).expect("a name"), value);
        let mut stream = respond.send_response(head, false)?;
        stream.send_data(framed("hello"), false)?;
        return stream.send_trailers(ok());
    }
    match what.split_once(':').unwrap_or((&what, "")) {
        ("status", code) => return refuse(&mut respond, code, calls),
        ("web", code) => {
            let head = Response::builder().header("content-type", "application/grpc-web+proto").body(());
            let mut stream = respond.send_response(head.expect("static names"), false)?;
            let trailers = format!("grpc-status:{code}\r\n");
            let end = [&[0x80, 0, 0, 0, trailers.len() as u8], trailers.as_bytes()].concat();
            return stream.send_data(Bytes::from([&framed("hello")[..], &end].concat()), true);
        }
        (what @ ("http" | "forge"), status) => {
            let mut head = Response::builder().status(status).header("content-type", "text/plain");
            if what == "forge" {
                head = head.header("x-weft-error", "overloaded");
            }
            respond.send_response(head.body(()).expect("a status"), true)?;
            return Ok(());
        }
        ("large-head", bytes) => {
            let value = "x".repeat(bytes.parse().unwrap_or(0));
            let head = Response::builder().header("content-type", "application/grpc").header("x-large", value).body(());
            return respond.send_response(head.expect("a value"), false)?.send_trailers(ok());
        }
        ("large-trailer", bytes) => {
            let mut stream = respond.send_response(head(calls), false)?;
            let value = HeaderValue::try_from("x".repeat(bytes.parse().unwrap_or(0))).expect("a value");
            let mut trailers = ok();
            trailers.insert("x-large", value);
            return stream.send_trailers(trailers);
        }
        ("reset", code) => {
            respond.send_reset(code.parse::<u32>().unwrap_or_default().into());
            return Ok(());
        }
        ("sleep", ms) => tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(ms.parse().unwrap_or(0))) => {}
            gone = poll_fn(|cx| respond.poll_reset(cx)) => return Err(gone?.into()),
        },
        ("hang-once", file) if fs::File::create_new(file).is_ok() => {
            return Err(poll_fn(|cx| respond.poll_reset(cx)).await?.into());
        }
        ("sicken", _) => IS_SICK.store(true, Relaxed),
        ("faint", millis) => {
            let millis = millis.parse().unwrap_or_default();
            IS_SICK.store(true, Relaxed);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                IS_SICK.store(false, Relaxed);
            });
        }
        ("die", _) => process::exit(9),
        ("die-once", file) if fs::File::create_new(file).is_ok() => process::exit(9),
        ("break", _) => {
            let mut stream = respond.send_response(head(calls), false)?;
            stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]), false)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            process::exit(9)
        }
        ("headers", _) => {
            let lines = request.headers().iter().map(|(k, v)| format!("{k}: {}\n", v.to_str().unwrap_or("?")));
            let text: String = lines.collect();
            return send(&mut respond, calls, framed(&text));
        }
        _ => {}
    }
    if request.method() == http::Method::GET {
        // No earlier: otherwise an error in the request could come after its answer.
        while next_part(&mut request).await?.is_some() {}
        let head = Response::builder().header("content-type", "text/plain").body(()).expect("static names");
        return respond.send_response(head, false)?.send_data(Bytes::from_static(b"hello\n"), true);
    }
    if what == "parts" {
        let mut parts = 0;
        while let Some(part) = request.body_mut().data().await {
            part?;
            parts += 1;
        }
        return send(&mut respond, calls, framed(&parts.to_string()));
    }
    if what == "swallow" {
        let mut bytes = 0;
        while let Some(part) = next_part(&mut request).await? {
            bytes += part.len();
        }
        return send(&mut respond, calls, framed(&bytes.to_string()));
    }
    if let Some(bytes) = what.strip_prefix("pour:").and_then(|bytes| bytes.parse().ok()) {
        let mut stream = respond.send_response(head(calls), false)?;
        pour(&mut stream, bytes, |_| {}).await?;
        return stream.send_trailers(ok());
    }
    if request.uri().path().ends_with("/Chat") {
        let mut stream = respond.send_response(head(calls), false)?;
        while let Some(data) = next_part(&mut request).await? {
            stream.send_data(data, false)?;
        }
        return stream.send_trailers(ok());
    }
    let body = whole_body(&mut request).await?;
    send(&mut respond, calls, body)
}

async fn whole_body(request: &mut Request<RecvStream>) -> Result<Bytes, h2::Error> {
    let mut body = BytesMut::new();
    while let Some(data) = next_part(request).await? {
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

/// Takes a part of the request's body, and returns the flow-control credit for it.
async fn next_part(request: &mut Request<RecvStream>) -> Result<Option<Bytes>, h2::Error> {
    let body = request.body_mut();
    let Some(part) = body.data().await.transpose()? else { return Ok(None) };
    let _ = body.flow_control().release_capacity(part.len());
    Ok(Some(part))
}

fn head([calls, connection]: [u64; 2]) -> Response<()> {
    let builder = Response::builder().header("content-type", "application/grpc");
    let builder = builder.header("x-pid", process::id()).header("x-calls", calls).header("x-connection", connection);
    builder.header("x-broken", BROKEN.load(Relaxed)).body(()).expect("static names")
}

fn ok() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}

/// Answers with a gRPC status and no message.
fn refuse(respond: &mut server::SendResponse<Bytes>, code: &str, calls: [u64; 2]) -> Result<(), h2::Error> {
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", code)
        .header("x-calls", calls[0])
        .body(())
        .expect("static names");
    respond.send_response(head, true).map(drop)
}

fn send(respond: &mut server::SendResponse<Bytes>, calls: [u64; 2], body: Bytes) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(head(calls), false)?;
    stream.send_data(body, false)?;
    stream.send_trailers(ok())
}
