//! Which RPC protocol a message is in, and how a call ended by the body of its answer.
//!
//! gRPC says it in trailers. gRPC-Web and Connect can't use trailers and say it in the body: in the last frame or, for
//! a unary call of Connect that failed, in a JSON object. Specifications: "gRPC over HTTP2" and "gRPC Web" in
//! grpc/grpc, and <https://connectrpc.com/docs/protocol>.

use weft_wire::{Headers, Name};

use crate::message::code;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rpc {
    /// None that is known here: plain HTTP.
    No,
    /// gRPC: the status is in the trailers.
    Grpc,
    /// gRPC-Web: the status is in the last frame of the body, marked by the bit 0x80.
    GrpcWeb,
    /// gRPC-Web in base64.
    GrpcWebText,
    /// A unary call of Connect: it has an HTTP status, and an error is a JSON object.
    Connect,
    /// A call of Connect that streams: how it ended is in the last frame of the body, marked by the bit 0x02.
    ConnectStream { is_json: bool },
}

const CONNECT_VERSION: Name = Name::other("connect-protocol-version");

impl Rpc {
    /// The protocol of a request or an answer. A unary answer of Connect looks like any other: see [`Self::of_answer`].
    pub(crate) fn of(head: &Headers) -> Self {
        let content_type = head.get(Name::CONTENT_TYPE).unwrap_or_default();
        if let Some(rest) = content_type.strip_prefix(b"application/grpc") {
            return match rest {
                _ if rest.starts_with(b"-web-text") => Self::GrpcWebText,
                _ if rest.starts_with(b"-web") => Self::GrpcWeb,
                _ => Self::Grpc,
            };
        }
        if let Some(codec) = content_type.strip_prefix(b"application/connect+") {
            return Self::ConnectStream { is_json: codec.starts_with(b"json") };
        }
        let is_connect = head.get(CONNECT_VERSION).is_some()
            || (head.method() == Some(b"GET") && head.path().is_some_and(has_connect_query));
        if is_connect { Self::Connect } else { Self::No }
    }

    /// The protocol of the answer to a request in this one.
    pub(crate) fn of_answer(self, head: &Headers) -> Self {
        match (Self::of(head), self) {
            (Self::No, Self::Connect) => Self::Connect,
            (found, _) => found,
        }
    }

    /// Whether it is an RPC protocol, so that the path names a protobuf service and its method.
    pub(crate) fn is_some(self) -> bool {
        self != Self::No
    }
}

/// Unary calls of Connect without side effects may be GETs. Their query says so.
fn has_connect_query(path: &[u8]) -> bool {
    let query = path.splitn(2, |byte| *byte == b'?').nth(1).unwrap_or_default();
    query.split(|byte| *byte == b'&').any(|pair| pair == b"connect=v1")
}

/// How much of a body is kept: more than a status with its message needs. A longer one is not read.
const KEPT_BYTES: usize = 4 * 1024;

/// Reads how a call ended from the body of its answer.
#[derive(Debug)]
pub(crate) struct BodyStatus {
    form: Form,
    /// What has arrived of a frame's head.
    head: [u8; 5],
    head_len: usize,
    /// Bytes of the frame that have not arrived yet.
    left: usize,
    is_last: bool,
    /// The last frame, or the JSON object.
    kept: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    WebTrailers,
    ConnectEnd,
    ConnectError,
}

impl BodyStatus {
    /// `None` where the body says nothing, or nothing that can be read here.
    pub(crate) fn of(rpc: Rpc, head: &Headers, status: u16) -> Option<Box<Self>> {
        let form = match rpc {
            Rpc::GrpcWeb if status == 200 && head.get(Name::GRPC_STATUS).is_none() => Form::WebTrailers,
            Rpc::ConnectStream { .. } if status == 200 => Form::ConnectEnd,
            Rpc::Connect if status >= 400 && head.get(Name::CONTENT_ENCODING).is_none() => Form::ConnectError,
            _ => return None,
        };
        let is_last = form == Form::ConnectError;
        let left = if is_last { usize::MAX } else { 0 };
        Some(Box::new(Self { form, head: [0; 5], head_len: 0, left, is_last, kept: Vec::new() }))
    }

    /// Takes the next part of the body.
    pub(crate) fn read(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left == 0 {
                let missing = (self.head.len() - self.head_len).min(data.len());
                let (more, rest) = data.split_at(missing);
                self.head[self.head_len..self.head_len + missing].copy_from_slice(more);
                self.head_len += missing;
                data = rest;
                if self.head_len == self.head.len() {
                    self.begin_frame();
                }
                continue;
            }
            let (part, rest) = data.split_at(self.left.min(data.len()));
            if self.is_last {
                let room = KEPT_BYTES - self.kept.len();
                self.kept.extend_from_slice(&part[..part.len().min(room)]);
            }
            self.left -= part.len();
            data = rest;
        }
    }

    fn begin_frame(&mut self) {
        let [flags, length @ ..] = self.head;
        self.left = u32::from_be_bytes(length) as usize;
        self.head_len = 0;
        let last = if self.form == Form::WebTrailers { 0x80 } else { 0x02 };
        // A compressed frame is not read.
        self.is_last = flags & !0x01 == last && flags & 0x01 == 0;
        self.kept.clear();
    }

    /// The gRPC code with which the call ended. Call it once all of the body was read.
    pub(crate) fn code(&self) -> Option<u8> {
        match self.form {
            Form::WebTrailers => web_status(&self.kept),
            Form::ConnectEnd => {
                let end: serde_json::Value = serde_json::from_slice(&self.kept).ok()?;
                Some(end.get("error").map_or(code::OK, connect_code))
            }
            Form::ConnectError => Some(connect_code(&serde_json::from_slice(&self.kept).ok()?)),
        }
    }
}

/// The `grpc-status` in a block of header lines as HTTP/1.1 writes them.
fn web_status(block: &[u8]) -> Option<u8> {
    block.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        name.eq_ignore_ascii_case(b"grpc-status").then(|| code::parse(value))
    })
}

fn connect_code(error: &serde_json::Value) -> u8 {
    let name = error.get("code").and_then(serde_json::Value::as_str).unwrap_or_default();
    code::of_name(name).unwrap_or(code::UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Headers {
        let mut head = Headers::new();
        fields.iter().for_each(|(name, value)| head.append_bytes(name.as_bytes(), value.as_bytes()));
        head
    }

    #[test]
    fn the_head_tells_the_protocol() {
        for (fields, rpc) in [
            (&[("content-type", "application/grpc")][..], Rpc::Grpc),
            (&[("content-type", "application/grpc+proto")], Rpc::Grpc),
            (&[("content-type", "application/grpc-web")], Rpc::GrpcWeb),
            (&[("content-type", "application/grpc-web+json")], Rpc::GrpcWeb),
            (&[("content-type", "application/grpc-web-text")], Rpc::GrpcWebText),
            (&[("content-type", "application/connect+proto")], Rpc::ConnectStream { is_json: false }),
            (&[("content-type", "application/connect+json")], Rpc::ConnectStream { is_json: true }),
            (&[("content-type", "application/proto"), ("connect-protocol-version", "1")], Rpc::Connect),
            (&[(":method", "GET"), (":path", "/a.B/C?message=x&connect=v1")], Rpc::Connect),
            (&[(":method", "GET"), (":path", "/a.B/C?xconnect=v1")], Rpc::No),
            (&[("content-type", "application/json")], Rpc::No),
            (&[], Rpc::No),
        ] {
            assert_eq!(Rpc::of(&head(fields)), rpc, "{fields:?}");
        }
        let json = head(&[("content-type", "application/json")]);
        assert_eq!((Rpc::Connect.of_answer(&json), Rpc::Grpc.of_answer(&json)), (Rpc::Connect, Rpc::No));
    }

    fn frame(flags: u8, body: &str) -> Vec<u8> {
        [&[flags][..], &(body.len() as u32).to_be_bytes(), body.as_bytes()].concat()
    }

    fn read(rpc: Rpc, status: u16, body: &[u8]) -> Option<u8> {
        let codes = [1, 3, body.len().max(1)].map(|piece| {
            let mut reader = BodyStatus::of(rpc, &Headers::new(), status)?;
            body.chunks(piece).for_each(|data| reader.read(data));
            reader.code()
        });
        assert!(codes.iter().all(|code| *code == codes[0]), "whatever the pieces: {codes:?}");
        codes[0]
    }

    #[test]
    fn the_last_frame_of_grpc_web_has_the_status() {
        let body =
            [frame(0, "a message"), frame(0, ""), frame(0x80, "Grpc-Status: 13\r\ngrpc-message: x\r\n")].concat();
        assert_eq!(read(Rpc::GrpcWeb, 200, &body), Some(13));
        assert_eq!(read(Rpc::GrpcWeb, 200, &frame(0x80, "grpc-status:0")), Some(0));
        assert_eq!(read(Rpc::GrpcWeb, 200, &frame(0, "grpc-status:0")), None, "that is a message");
        assert_eq!(read(Rpc::GrpcWeb, 200, &frame(0x81, "grpc-status:0")), None, "it is compressed");
        assert_eq!(read(Rpc::GrpcWeb, 200, &[frame(0, "a"), vec![0x80, 0, 0]].concat()), None, "it is incomplete");
        let long = format!("x: {}\r\ngrpc-status: 0", "y".repeat(2 * KEPT_BYTES));
        assert_eq!(read(Rpc::GrpcWeb, 200, &frame(0x80, &long)), None, "it is too long to be kept");
        assert_eq!(read(Rpc::GrpcWebText, 200, b"gAAA"), None);
    }

    #[test]
    fn connect_has_the_status_in_json() {
        let stream = Rpc::ConnectStream { is_json: false };
        let body = |end: &str| [frame(0, "a message"), frame(2, end)].concat();
        assert_eq!(read(stream, 200, &body("{}")), Some(0));
        let error = r#"{"error": {"code": "unavailable", "message": "no"}, "metadata": {}}"#;
        assert_eq!(read(stream, 200, &body(error)), Some(14));
        assert_eq!(read(stream, 200, &body("{")), None);
        assert_eq!(read(Rpc::Connect, 500, br#"{"code": "unknown", "message": "no"}"#), Some(2));
        assert_eq!(read(Rpc::Connect, 500, br#"{"code": "internal"}"#), Some(13));
        assert_eq!(read(Rpc::Connect, 502, b"<html>"), None, "the answer of something that does not speak Connect");
        assert_eq!(read(Rpc::Connect, 200, b"{}"), None, "that is the answer's message");
    }
}
