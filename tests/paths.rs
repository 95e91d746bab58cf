//! The same calls over every path that a call can take: straight to the service, through the service's own sidecar,
//! through two; from a client of HTTP/1.1 or of HTTP/2; to a sidecar's port, or redirected there by the packet filter.
//! The answer, and the request as the service has seen it, are the same on each.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use weft_tests::{Bed, Net, Text, framed, probe_service, result, skip, until};

const LIMIT: Duration = Duration::from_secs(60);

/// Bodies from this size on are compared by their ends.
const LONG: usize = 1_000_000;

/// Fields that are not compared: those of a hop, those in which the test app describes itself, and those that the mesh
/// adds by design for the caller, the trace and the deadline.
const NOT_COMPARED: [&str; 13] = [
    "connection",
    "content-length",
    "date",
    "grpc-timeout",
    "host",
    "te",
    "transfer-encoding",
    "traceparent",
    "x-broken",
    "x-calls",
    "x-connection",
    "x-forwarded-client-cert",
    "x-pid",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
}

/// A client's request.
#[derive(Clone)]
struct Ask {
    what: String,
    method: Method,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    parts: Vec<Bytes>,
}

impl Ask {
    fn new(method: Method, path: &'static str) -> Self {
        Self { what: format!("{method} {path}"), method, path, headers: Vec::new(), parts: Vec::new() }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        self.what += &format!(" {name}={value}");
        self.headers.push((name, value));
        self
    }

    fn body(mut self, parts: &[&[u8]]) -> Self {
        self.what += &format!(" with {} bytes in {}", parts.concat().len(), parts.len());
        self.parts = parts.iter().map(|part| Bytes::copy_from_slice(part)).collect();
        self
    }

    fn request(&self, authority: &str, speaks: Speaks) -> Request<BoxBody<Bytes, std::convert::Infallible>> {
        let uri = match speaks {
            Speaks::Http1 => self.path.to_owned(),
            Speaks::Http2 => format!("http://{authority}{}", self.path),
        };
        let mut request = Request::builder().method(self.method.clone()).uri(uri);
        if speaks == Speaks::Http1 {
            request = request.header("host", authority);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let frames = self.parts.clone().into_iter().map(|part| Ok(Frame::data(part)));
        let body = match self.parts.len() {
            0 => http_body_util::Empty::new().boxed(),
            _ => BodyExt::boxed(StreamBody::new(tokio_stream::iter(frames))),
        };
        request.body(body).expect("a request")
    }
}

/// An answer, without what may differ between paths.
type Told = Vec<String>;

/// Sends a request over a new connection.
async fn ask(port: (&str, u16), authority: &str, speaks: Speaks, ask: &Ask) -> Told {
    let answer = tokio::time::timeout(LIMIT, async {
        let stream = TokioIo::new(TcpStream::connect(port).await.expect("something listens"));
        let request = ask.request(authority, speaks);
        match speaks {
            Speaks::Http1 => {
                let (mut sender, connection) = http1::handshake(stream).await.expect("the handshake succeeds");
                tokio::spawn(connection);
                told(sender.send_request(request).await).await
            }
            Speaks::Http2 => {
                let executor = TokioExecutor::new();
                let (mut sender, connection) =
                    http2::handshake(executor, stream).await.expect("the handshake succeeds");
                tokio::spawn(connection);
                told(sender.send_request(request).await).await
            }
        }
    });
    answer.await.unwrap_or_else(|_| vec![format!("nothing within {LIMIT:?}")])
}

async fn told(answer: hyper::Result<Response<Incoming>>) -> Told {
    let answer = match answer {
        Ok(answer) => answer,
        Err(e) => return vec![format!("no answer: {}", reset_of(&e))],
    };
    let mut told = vec![format!("status: {}", answer.status().as_u16())];
    told.extend(fields(answer.headers()));
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            Ok(Err(frame)) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                told.extend(fields(&trailers).into_iter().map(|field| format!("trailer {field}")));
            }
            Err(e) => {
                told.push(format!("broken: {}", reset_of(&e)));
                break;
            }
        }
    }
    told.push(seen(&bytes));
    told
}

/// The error code with which HTTP/2 ended a stream. HTTP/1.1 can only cut the connection, which equals INTERNAL_ERROR.
fn reset_of(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>());
    match source.and_then(h2::Error::reason) {
        Some(h2::Reason::INTERNAL_ERROR) | None => "cut".into(),
        Some(reason) => format!("{reason:?}"),
    }
}

fn fields(headers: &HeaderMap) -> Vec<String> {
    let kept = headers.iter().filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()));
    let mut fields: Vec<_> = kept.map(|(name, value)| format!("{name}: {}", value.as_bytes().escape_ascii())).collect();
    // Fields of the same name keep their order, others do not.
    fields.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    fields
}

/// A body without the lines that are not compared: the service echoes the request's head there.
fn seen(body: &[u8]) -> String {
    if body.len() > LONG {
        // The echoed head at its start has been compared with shorter bodies.
        let body = &body[body.len() - LONG..];
        return format!(
            "body that ends with {LONG} bytes whose sum is {}",
            body.iter().map(|byte| u64::from(*byte)).sum::<u64>()
        );
    }
    // The length before a message counts the lines that are not compared, too.
    let message = body.strip_prefix(&[0]).and_then(|rest| Text::decode(rest.get(4..)?).ok());
    let text = message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), |message| message.text);
    let is_compared = |line: &&str| match line.split_once(": ") {
        Some((name, _)) => !NOT_COMPARED.contains(&name.to_ascii_lowercase().as_str()),
        None => true,
    };
    let mut lines: Vec<&str> = text.lines().filter(is_compared).collect();
    lines.sort_by_key(|line| line.split(':').next());
    format!("body {:?}", lines.join("\n"))
}

/// The requests to the service of HTTP/1.1.
fn of_http() -> Vec<Ask> {
    let large = vec![b'x'; 3_000_000];
    let get = |path| Ask::new(Method::GET, path);
    vec![
        get("/a?b=c&d=%20"),
        get("/a").header("x-tag", "one").header("x-tag", "two").header("cookie", "a=b; c=d"),
        get("/a").header("x-empty", "").header("accept-encoding", "gzip, br").header("x-latin", "caf\u{e9}"),
        Ask::new(Method::HEAD, "/a"),
        Ask::new(Method::OPTIONS, "/a"),
        Ask::new(Method::DELETE, "/a"),
        Ask::new(Method::PATCH, "/decoded").body(&[b"one"]),
        Ask::new(Method::PUT, "/decoded").header("content-length", "0"),
        Ask::new(Method::POST, "/decoded").header("content-length", "6").body(&[b"one", b"two"]),
        Ask::new(Method::POST, "/decoded").body(&[b"one", b"two", b"three"]),
        Ask::new(Method::POST, "/decoded").body(&[&large]),
        get("/empty"),
        get("/unchanged"),
        get("/hints"),
        get("/chunks").header("te", "trailers"),
        get("/to-the-end"),
        get("/cut"),
        Ask::new(Method::POST, "/continue").header("expect", "100-continue").body(&[b"one"]),
    ]
}

/// The requests to the service of gRPC.
fn of_grpc() -> Vec<Ask> {
    let call = |method| {
        let ask = Ask::new(Method::POST, method);
        ask.header("content-type", "application/grpc").header("te", "trailers")
    };
    let say = || call("/probe.v1.Probe/Say");
    let hello = framed("hello");
    let large = framed(&"x".repeat(1_500_000));
    let mut asks = vec![
        say().body(&[&hello]),
        say().body(&[&hello[..3], &hello[3..]]),
        say().body(&[&large]),
        say().header("x-do", "parts").body(&[b""]),
        say().header("x-do", "headers").header("x-tag", "one").header("x-tag", "two").body(&[&hello]),
        say().header("x-do", "headers").header("x-blob-bin", "AAH+/w").header("x-blob-bin", "").body(&[&hello]),
        say().header("x-do", "headers").header("grpc-encoding", "gzip").header("user-agent", "me/1").body(&[&hello]),
        call("/probe.v1.Probe/Chat").body(&[&hello, &hello, &hello]),
        call("/probe.v1.Probe/Chat").body(&[b""]),
        call("/probe.v1.Probe/Unheard").body(&[&hello]),
        Ask::new(Method::GET, "/"),
    ];
    // Without REFUSED_STREAM (7): the mesh tries another endpoint, and then answers itself.
    let ends = (0..=17).map(|code| format!("status:{code}"));
    let ends = ends.chain([0, 1, 2, 3, 5, 8, 11, 12, 13].map(|code| format!("reset:{code}")));
    for end in ends {
        asks.push(say().header("x-do", end).body(&[&hello]));
        // Too many failures in a row open the breaker.
        asks.push(say().body(&[&hello]));
    }
    asks
}

/// Sends every request on every path, and compares the answers with those on the first path.
async fn compare(service: &str, asks: &[Ask], paths: &[(&str, (&str, u16), Speaks)]) {
    let mut differ = Vec::new();
    for one in asks {
        let mut told: BTreeMap<&str, Told> = BTreeMap::new();
        for (path, port, speaks) in paths {
            told.insert(path, ask(*port, service, *speaks, one).await);
        }
        let wanted = &told[paths[0].0];
        for (path, got) in &told {
            if got != wanted {
                differ.push(format!("{} {path}:\n     {got:#?}\n  instead of {wanted:#?}", one.what));
            }
        }
    }
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), asks.len() * paths.len(), differ.join("\n"));
    result(&format!("{service}: {} calls get the same answers on {} paths", asks.len(), paths.len()));
}

#[tokio::test]
async fn every_explicit_path_gives_the_same_answers() {
    use Speaks::{Http1, Http2};
    let plain = "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    env: { SPEAK: http1 }\n";
    let bed = Bed::start(&format!("{}{plain}", probe_service(1))).await;
    let (own, host) = (bed.ports("plain-1"), "127.0.0.1");
    let paths = [
        ("straight", (host, own.app), Http1),
        ("through its own sidecar", (host, own.outbound), Http1),
        ("through its own sidecar by HTTP/2", (host, own.outbound), Http2),
        ("through two", (host, bed.outbound()), Http1),
        ("through two by HTTP/2", (host, bed.outbound()), Http2),
    ];
    compare("plain", &of_http(), &paths).await;
    let own = bed.ports("probe-1");
    let paths = [
        ("straight", (host, own.app), Http2),
        ("through its own sidecar", (host, own.outbound), Http2),
        ("through two", (host, bed.outbound()), Http2),
    ];
    compare("probe", &of_grpc(), &paths).await;
}

#[test]
fn the_redirected_path_gives_the_same_answers_as_the_direct_one() {
    if let Err(why) = Net::is_possible() {
        return skip(&why);
    }
    let net = Net::of(4);
    net.start_control();
    let server = net.host(2);
    net.start_service(&server, 0, "plain", 8080, "http1", &[]);
    net.start_service(&server, 1, "probe", 9000, "grpc", &[]);
    let client = net.host(1);
    net.start_sidecar(&client, "client", &["--intercept"]);
    until("both are up", || net.log().matches("HEALTH_UP").count() >= 2);
    // Host 3 has no redirection, and host 2 accepts its plain connections.
    let host = "10.77.0.2";
    let suite = |is_redirected: bool| {
        move || async move {
            let mut told = Vec::new();
            for (port, service, asks, speaks) in
                [(8080, "plain", of_http(), Speaks::Http1), (9000, "probe", of_grpc(), Speaks::Http2)]
            {
                for one in asks {
                    told.push((one.what.clone(), ask((host, port), service, speaks, &one).await));
                    if is_redirected && speaks == Speaks::Http1 {
                        let by_http2 = ask((host, port), service, Speaks::Http2, &one).await;
                        told.push((format!("{} by HTTP/2", one.what), by_http2));
                    }
                }
            }
            told
        }
    };
    let straight: BTreeMap<_, _> = net.host(3).within(suite(false)).into_iter().collect();
    client.redirect(&[]);
    let redirected = client.within(suite(true));
    assert!(redirected.len() > straight.len());
    for (what, told) in redirected {
        let wanted = &straight[what.trim_end_matches(" by HTTP/2")];
        assert_eq!(&told, wanted, "{what}");
    }
    result(&format!("redirected: {} calls get the same answers as direct ones", straight.len()));
    let carried = client.within(|| weft_tests::metric(15_020, "weft_calls_total", ""));
    assert!(carried >= straight.len() as f64, "they went through the sidecar: {carried}");
}
