//! Writes the messages of one connection.

use super::{DECLINED, Error, MethodKind, REASON, Request};
use crate::headers::{FieldRef, Headers, Name};

/// Writes the messages of one connection. Errors in a head are found before anything of it is written.
#[derive(Debug, Default)]
pub struct Encoder {
    body: Body,
    must_close: bool,
    /// The protocol of the upgrade that the response may accept.
    upgrade: Vec<u8>,
}

/// How the end of the body is marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Body {
    /// No body is being sent.
    #[default]
    Over,
    /// This many bytes are still to come.
    Length(u64),
    Chunked,
    /// It ends with the connection.
    ToTheEnd,
    /// None is sent, even if `data` is called: for a response to HEAD, for example.
    Bare,
}

impl Encoder {
    /// An encoder for a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no body is being sent.
    pub fn is_between_messages(&self) -> bool {
        self.body == Body::Over
    }

    /// Whether the connection must be closed after this message.
    pub fn must_close(&self) -> bool {
        self.must_close
    }

    /// Sets the protocol to which the next response's request wants to upgrade.
    pub fn upgrade_to(&mut self, protocol: &[u8]) {
        self.upgrade.clear();
        self.upgrade.extend_from_slice(protocol);
    }

    /// Writes a request's head. A request that came over HTTP/2 may have `host` instead of `:authority` (RFC 9113,
    /// section 8.3.1).
    ///
    /// # Errors
    /// It has no method or no path, or its Content-Length is malformed.
    pub fn request(&mut self, out: &mut Vec<u8>, head: &Headers, is_end: bool) -> Result<Request, Error> {
        let method = MethodKind::of(head);
        let length = length(head)?;
        let (verb, target) = match method {
            MethodKind::Connect => (head.method(), head.authority()),
            MethodKind::Upgrade | MethodKind::Withheld => (Some(&b"GET"[..]), head.path()),
            MethodKind::Head | MethodKind::Other => (head.method(), head.path()),
        };
        let (verb, target) = (verb.ok_or(Error::RequestLine)?, target.ok_or(Error::Target)?);
        // A path may be empty if the scheme is not `http` or `https`.
        if target.is_empty() {
            return Err(Error::Target);
        }
        if is_end && length.is_some_and(|length| length > 0) {
            return Err(Error::OtherLength);
        }
        let host = head.authority().or_else(|| head.get(Name::HOST)).unwrap_or_default();
        put(out, &[verb, b" ", target, b" HTTP/1.1\r\nhost: ", host, b"\r\n"]);
        if method == MethodKind::Upgrade
            && let Some(protocol) = head.protocol()
        {
            put(out, &[b"connection: upgrade\r\nupgrade: ", protocol, b"\r\n"]);
        }
        put_fields(out, head, method.wants_tunnel());
        self.body = match length {
            _ if method.wants_tunnel() => Body::Over,
            Some(length) if length > 0 => Body::Length(length),
            None if !is_end => Body::Chunked,
            _ => Body::Over,
        };
        if self.body == Body::Chunked {
            put(out, &[b"transfer-encoding: chunked\r\n"]);
        }
        // For methods that usually have a body, say that there is none (RFC 9110, section 8.6).
        let expects_body = matches!(head.method(), Some(b"POST" | b"PUT" | b"PATCH"));
        if self.body == Body::Over && length.is_none() && expects_body {
            put(out, &[b"content-length: 0\r\n"]);
        }
        put(out, &[b"\r\n"]);
        let expects_continue = head.get(Name::EXPECT).is_some();
        Ok(Request { method, is_http10: false, is_keep_alive: true, expects_continue })
    }

    /// Writes the head of a response, final or interim. An accepted upgrade becomes 101.
    ///
    /// # Errors
    /// It has no status, or its Content-Length is malformed.
    pub fn response(
        &mut self,
        out: &mut Vec<u8>,
        head: &Headers,
        is_end: bool,
        to: Request,
        keep_alive: bool,
    ) -> Result<(), Error> {
        let status = head.status().ok_or(Error::StatusLine)?;
        if status < 200 {
            // HTTP/1.0 has no interim responses.
            if !to.is_http10 {
                put_status(out, status, head);
                put_fields(out, head, false);
                put(out, &[b"\r\n"]);
            }
            return Ok(());
        }
        let is_tunnel = to.method.wants_tunnel() && status < 300 && head.get(Name::other(DECLINED)).is_none();
        if is_tunnel {
            self.tunnel(out, head, to, status);
            return Ok(());
        }
        let said = length(head)?;
        let is_without = status == 204 || status == 304;
        self.body = match said {
            _ if is_without || to.method == MethodKind::Head => Body::Bare,
            Some(length) if length > 0 && is_end => return Err(Error::OtherLength),
            Some(length) => Body::Length(length),
            None if is_end => Body::Length(0),
            None if to.is_http10 => Body::ToTheEnd,
            None => Body::Chunked,
        };
        self.must_close = !keep_alive || self.body == Body::ToTheEnd;
        put_status(out, status, head);
        put_fields(out, head, false);
        match self.body {
            Body::Chunked => put(out, &[b"transfer-encoding: chunked\r\n"]),
            Body::Length(_) if said.is_none() => put(out, &[b"content-length: 0\r\n"]),
            _ => {}
        }
        if self.must_close {
            put(out, &[b"connection: close\r\n"]);
        } else if to.is_http10 {
            put(out, &[b"connection: keep-alive\r\n"]);
        }
        put(out, &[b"\r\n"]);
        if is_end || self.body == Body::Length(0) {
            self.body = Body::Over;
        }
        Ok(())
    }

    fn tunnel(&mut self, out: &mut Vec<u8>, head: &Headers, to: Request, status: u16) {
        if to.method == MethodKind::Upgrade {
            put_status(out, 101, head);
            put(out, &[b"connection: upgrade\r\nupgrade: ", &self.upgrade, b"\r\n"]);
        } else {
            put_status(out, status, head);
        }
        put_fields(out, head, false);
        put(out, &[b"\r\n"]);
        self.body = Body::Over;
    }

    /// Writes a part of the body.
    ///
    /// # Errors
    /// The body is longer or shorter than its Content-Length: the connection must be closed.
    pub fn data(&mut self, out: &mut Vec<u8>, data: &[u8], is_end: bool) -> Result<(), Error> {
        match &mut self.body {
            Body::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Error::OtherLength)?;
                if is_end && *left > 0 {
                    return Err(Error::OtherLength);
                }
                out.extend_from_slice(data);
            }
            Body::Chunked => {
                if !data.is_empty() {
                    put_chunk_size(out, data.len());
                    put(out, &[data, b"\r\n"]);
                }
                if is_end {
                    put(out, &[b"0\r\n\r\n"]);
                }
            }
            Body::ToTheEnd => out.extend_from_slice(data),
            Body::Bare => {}
            Body::Over if data.is_empty() => {}
            Body::Over => return Err(Error::OtherLength),
        }
        if is_end {
            self.body = Body::Over;
        }
        Ok(())
    }

    /// Ends the body with trailers. They are dropped if the body is not chunked.
    ///
    /// # Errors
    /// The same as of [`Self::data`].
    pub fn trailers(&mut self, out: &mut Vec<u8>, trailers: &Headers) -> Result<(), Error> {
        if self.body != Body::Chunked {
            return self.data(out, &[], true);
        }
        put(out, &[b"0\r\n"]);
        put_fields(out, trailers, false);
        put(out, &[b"\r\n"]);
        self.body = Body::Over;
        Ok(())
    }
}

/// The Content-Length of a head.
fn length(head: &Headers) -> Result<Option<u64>, Error> {
    let mut lengths = head.all(Name::CONTENT_LENGTH);
    let Some(length) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(Error::Length);
    }
    super::head::number(length).map(Some).ok_or(Error::Length)
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn put_status(out: &mut Vec<u8>, status: u16, head: &Headers) {
    let digits = [status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
    let phrase = head.get(REASON).unwrap_or(reason(status).as_bytes());
    put(out, &[b"HTTP/1.1 ", &digits, b" ", phrase, b"\r\n"]);
}

/// Writes the fields, except connection-specific ones. HTTP/2 may split cookies into several fields; they are joined
/// again (RFC 9113, section 8.2.3).
///
/// A request for a tunnel has no content (RFC 9110, section 9.3.6): if it announced some, a service that declines would
/// read the next request on the connection as that content.
fn put_fields(out: &mut Vec<u8>, head: &Headers, wants_tunnel: bool) {
    let mut has_cookie = false;
    for FieldRef { name, value, .. } in head.fields() {
        match name {
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" | b"te"
            | b"host" | b"http2-settings" => {}
            _ if name == DECLINED.as_bytes() || name == REASON.as_str().as_bytes() => {}
            b"content-length" | b"expect" if wants_tunnel => {}
            b"cookie" if has_cookie => {}
            b"cookie" => {
                has_cookie = true;
                out.extend_from_slice(b"cookie: ");
                for (place, crumb) in head.all(Name::COOKIE).enumerate() {
                    put(out, &[if place == 0 { b"" } else { b"; " }, crumb]);
                }
                out.extend_from_slice(b"\r\n");
            }
            _ => put(out, &[name, b": ", value, b"\r\n"]),
        }
    }
}

fn put_chunk_size(out: &mut Vec<u8>, size: usize) {
    let mut digits = [0; 16];
    let (mut at, mut rest) = (digits.len(), size);
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest % 16];
        rest /= 16;
        if rest == 0 {
            break;
        }
    }
    put(out, &[&digits[at..], b"\r\n"]);
}

/// The usual reason phrase of a status (RFC 9110, section 15).
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}
