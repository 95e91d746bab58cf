//! One call, and its connection.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::LoadArgs;
use crate::{
    cases::{Kind, STREAM_MESSAGES},
    contract, http2,
};

/// The connection of one caller.
pub(super) enum Link {
    /// An HTTP/2 connection, which others may share.
    Http2(SendRequest<Bytes>),
    /// An HTTP/1.1 connection of its own.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// A new connection for each call.
    New(SocketAddr),
}

impl Link {
    /// Opens a connection for this many callers.
    pub(super) async fn open(args: &LoadArgs, callers: usize) -> Result<Vec<Self>> {
        let to = args.to;
        if args.kind == Kind::NewConnection {
            return Ok((0..callers).map(|_| Self::New(to)).collect());
        }
        let io = http2::dial(to).await?;
        if !args.http1 {
            let requests = http2::connect(io, || ()).await?;
            return Ok((0..callers).map(|_| Self::Http2(requests.clone())).collect());
        }
        ensure!(callers == 1, "an HTTP/1.1 connection carries one call at a time");
        let (requests, connection) = http1::handshake(TokioIo::new(io)).await?;
        // The next call on the connection gets the reason.
        tokio::spawn(async move { drop(connection.await) });
        Ok(vec![Self::Http1(requests)])
    }
}

/// The call that is repeated.
pub(super) struct Call {
    kind: Kind,
    uris: Vec<Uri>,
    /// gRPC's frame (no compression, length, message), or only the message for a plain POST.
    body: Bytes,
    has_differing_headers: bool,
    is_sent_at_once: bool,
    authority: HeaderValue,
}

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// As long as a small signed token.
static SESSION: HeaderName = HeaderName::from_static("x-session");
const SESSION_BYTES: usize = 160;

impl Call {
    pub(super) fn new(args: &LoadArgs) -> Result<Self> {
        let mut body = Vec::new();
        if args.kind != Kind::Post {
            body.push(0);
            body.extend(u32::try_from(args.message_bytes)?.to_be_bytes());
        }
        body.extend(std::iter::repeat_with(|| fastrand::u8(..)).take(args.message_bytes));
        let path = |index| match args.kind {
            Kind::ServerStream => contract::STREAM.to_owned(),
            Kind::Unary | Kind::NewConnection | Kind::Post => contract::method(index),
        };
        // HTTP/1.1 has only the path in its request line.
        let origin = if args.http1 { String::new() } else { format!("http://{}", args.authority) };
        let uris = (0..args.methods).map(|index| format!("{origin}{}", path(index)).parse());
        Ok(Self {
            kind: args.kind,
            uris: uris.collect::<Result<_, _>>()?,
            body: body.into(),
            has_differing_headers: args.differing_headers,
            is_sent_at_once: args.at_once,
            authority: args.authority.parse()?,
        })
    }

    /// Makes one call and checks the answer: HTTP 200, the message of the request, and for gRPC `grpc-status: 0`.
    pub(super) async fn make(&self, link: &mut Link) -> Result<()> {
        match link {
            Link::Http2(requests) => self.over_http2(requests).await,
            Link::Http1(requests) => self.over_http1(requests).await,
            Link::New(to) => self.over_http2(&http2::connect(http2::dial(*to).await?, || ()).await?).await,
        }
    }

    async fn over_http2(&self, requests: &SendRequest<Bytes>) -> Result<()> {
        let request = self.request().body(())?;
        let (answer, mut sending) = requests.clone().ready().await?.send_request(request, false)?;
        if self.is_sent_at_once {
            // Does not wait for capacity, as the head would be sent meanwhile.
            sending.send_data(self.body.clone(), true)?;
        } else {
            http2::send(&mut sending, self.body.clone(), true).await?;
        }
        let (head, mut body) = answer.await?.into_parts();
        check_head(head.status)?;
        let mut received = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            self.check_data(&data, &mut received)?;
        }
        self.check_end(received)?;
        if self.kind == Kind::Post {
            return Ok(());
        }
        // A trailers-only answer has its status in the head.
        check_status(&body.trailers().await?.unwrap_or(head.headers))
    }

    async fn over_http1(&self, requests: &mut http1::SendRequest<Full<Bytes>>) -> Result<()> {
        requests.ready().await?;
        let request = self.request().header(http::header::HOST, self.authority.clone());
        let (head, mut body) = requests.send_request(request.body(Full::new(self.body.clone()))?).await?.into_parts();
        check_head(head.status)?;
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                self.check_data(&data, &mut received)?;
            }
        }
        self.check_end(received)
    }

    fn request(&self) -> request::Builder {
        let uri = match &self.uris[..] {
            [only] => only,
            many => &many[fastrand::usize(..many.len())],
        };
        let request = Request::post(uri.clone()).header("user-agent", "weft-bench");
        let mut request = match self.kind {
            Kind::Post => request.header("content-type", "application/octet-stream"),
            _ => request.header("te", "trailers").header("content-type", "application/grpc"),
        };
        if self.has_differing_headers
            && let Some(headers) = request.headers_mut()
        {
            let [trace, span] = [hex(32), hex(16)];
            // Not sampled: the sidecar has to respect the caller's decision.
            headers.insert(&TRACEPARENT, value(format!("00-{trace}-{span}-00")));
            headers.insert(&REQUEST_ID, value(hex(32)));
            headers.insert(&SESSION, value(hex(SESSION_BYTES)));
        }
        request
    }

    fn check_data(&self, data: &[u8], received: &mut usize) -> Result<()> {
        let is_echo = is_repeated(&self.body, *received, data);
        ensure!(is_echo, "the answer differs from the request, within {} bytes at {received}", data.len());
        *received += data.len();
        Ok(())
    }

    fn check_end(&self, received: usize) -> Result<()> {
        let messages = if self.kind == Kind::ServerStream { STREAM_MESSAGES } else { 1 };
        let expected = self.body.len() * messages;
        ensure!(received == expected, "the answer has {received} bytes instead of {expected}");
        Ok(())
    }
}

/// Whether `data` is the part at offset `at` of an endless repetition of `message`.
fn is_repeated(message: &[u8], mut at: usize, mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let rest = &message[at % message.len()..];
        let len = rest.len().min(data.len());
        if rest[..len] != data[..len] {
            return false;
        }
        at += len;
        data = &data[len..];
    }
    true
}

fn hex(digits: usize) -> String {
    std::iter::repeat_with(|| fastrand::u64(..))
        .flat_map(|bits| (0..16).map(move |digit| char::from(b"0123456789abcdef"[(bits >> (digit * 4)) as usize & 15])))
        .take(digits)
        .collect()
}

fn value(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("digits and dashes are a header value")
}

fn check_head(status: StatusCode) -> Result<()> {
    ensure!(status == StatusCode::OK, "the answer is {status}");
    Ok(())
}

fn check_status(trailers: &HeaderMap) -> Result<()> {
    let status = trailers.get("grpc-status").context("the answer has no grpc-status")?;
    if status == "0" {
        return Ok(());
    }
    let text = |name| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
    bail!("grpc-status {}: {} {}", text("grpc-status"), text("grpc-message"), text("x-weft-error"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_error_of_grpc_is_a_failure_even_with_http_200() {
        assert!(check_status(&trailers(&[("grpc-status", "0")])).is_ok());
        assert!(check_status(&trailers(&[])).is_err());
        let error = check_status(&trailers(&[("grpc-status", "14"), ("x-weft-error", "no_endpoint")])).unwrap_err();
        assert!(error.to_string().contains("14") && error.to_string().contains("no_endpoint"), "{error}");
    }

    #[test]
    fn a_stream_is_compared_wherever_its_pieces_are_cut() {
        assert!(is_repeated(b"abc", 0, b"abcabc"));
        assert!(is_repeated(b"abc", 2, b"cabcab"));
        assert!(is_repeated(b"abc", 300, b"a"));
        assert!(!is_repeated(b"abc", 1, b"a"));
        assert!(!is_repeated(b"abc", 0, b"abcabx"));
    }

    #[test]
    fn hex_has_as_many_digits_as_asked_for() {
        for digits in [1, 16, 32, 160] {
            let text = hex(digits);
            assert_eq!(text.len(), digits);
            assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
        assert_ne!(hex(32), hex(32));
    }
}
