//! An answer that a contract gives for calls that the service cannot take, as each protocol writes it.
//!
//! Specifications: "gRPC over HTTP2" and "gRPC Web" in grpc/grpc, and <https://connectrpc.com/docs/protocol>.

use base64::{Engine, engine::general_purpose::STANDARD};
use weft_wire::{Headers, Name};

use crate::message::rpc::Rpc;

/// One message, in both encodings that callers may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FixedAnswer {
    message: Box<[u8]>,
    json: Box<str>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct WholeAnswer {
    pub(crate) head: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<Headers>,
}

#[derive(Clone, Copy)]
enum Encoding {
    Binary,
    Json,
}

/// The flag of the last frame of gRPC-Web, which has the trailers.
const WEB_TRAILERS: u8 = 0x80;
/// The flag of the last frame of a stream of Connect.
const CONNECT_END: u8 = 0x02;

impl FixedAnswer {
    pub(crate) fn new(message: &[u8], json: &str) -> Self {
        Self { message: message.into(), json: json.into() }
    }

    /// The answer to a request with this head. `None` if the request is of no RPC protocol, or of another encoding.
    pub(crate) fn to(&self, rpc: Rpc, request: &Headers) -> Option<WholeAnswer> {
        let content_type = media_type(request.get(Name::CONTENT_TYPE).unwrap_or_default());
        Some(match rpc {
            Rpc::No => return None,
            Rpc::Grpc => {
                let body = frame(0, self.encoded(suffix(content_type, b"application/grpc")?));
                let mut trailers = Headers::new();
                trailers.append(Name::GRPC_STATUS, b"0");
                WholeAnswer { head: head(content_type, None), body, trailers: Some(trailers) }
            }
            Rpc::GrpcWeb => {
                let encoding = suffix(content_type, b"application/grpc-web")?;
                whole(content_type, self.web_frames(encoding))
            }
            Rpc::GrpcWebText => {
                let encoding = suffix(content_type, b"application/grpc-web-text")?;
                whole(content_type, STANDARD.encode(self.web_frames(encoding)).into_bytes())
            }
            Rpc::Connect => {
                let encoding = connect_encoding(content_type, request)?;
                let content_type: &[u8] = match encoding {
                    Encoding::Binary => b"application/proto",
                    Encoding::Json => b"application/json",
                };
                whole(content_type, self.encoded(encoding).to_vec())
            }
            Rpc::ConnectStream { .. } => {
                let encoding = match content_type.strip_prefix(b"application/connect+")? {
                    b"proto" => Encoding::Binary,
                    b"json" => Encoding::Json,
                    _ => return None,
                };
                whole(content_type, [frame(0, self.encoded(encoding)), frame(CONNECT_END, b"{}")].concat())
            }
        })
    }

    fn encoded(&self, encoding: Encoding) -> &[u8] {
        match encoding {
            Encoding::Binary => &self.message,
            Encoding::Json => self.json.as_bytes(),
        }
    }

    fn web_frames(&self, encoding: Encoding) -> Vec<u8> {
        [frame(0, self.encoded(encoding)), frame(WEB_TRAILERS, b"grpc-status:0\r\n")].concat()
    }
}

/// A content type without its parameters.
fn media_type(content_type: &[u8]) -> &[u8] {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// The encoding that the rest of a content type of gRPC or gRPC-Web names.
fn suffix(content_type: &[u8], protocol: &[u8]) -> Option<Encoding> {
    match content_type.strip_prefix(protocol)? {
        b"" | b"+proto" => Some(Encoding::Binary),
        b"+json" => Some(Encoding::Json),
        _ => None,
    }
}

/// The encoding of a unary call of Connect, which a GET names in its query.
fn connect_encoding(content_type: &[u8], request: &Headers) -> Option<Encoding> {
    let name = if request.method() == Some(b"GET") {
        let query = request.path()?.splitn(2, |byte| *byte == b'?').nth(1)?;
        query.split(|byte| *byte == b'&').find_map(|pair| pair.strip_prefix(b"encoding="))?
    } else {
        content_type.strip_prefix(b"application/")?
    };
    match name {
        b"proto" => Some(Encoding::Binary),
        b"json" => Some(Encoding::Json),
        _ => None,
    }
}

/// A frame of gRPC, gRPC-Web or Connect: flags, length, data.
fn frame(flags: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(5 + data.len());
    frame.push(flags);
    // Far below 4 GiB: the contract's compiler bounds it.
    frame.extend((data.len() as u32).to_be_bytes());
    frame.extend(data);
    frame
}

fn head(content_type: &[u8], length: Option<usize>) -> Headers {
    let mut head = Headers::new();
    head.set(Name::STATUS, b"200");
    head.append(Name::CONTENT_TYPE, content_type);
    if let Some(length) = length {
        head.append(Name::CONTENT_LENGTH, length.to_string().as_bytes());
    }
    head
}

fn whole(content_type: &[u8], body: Vec<u8>) -> WholeAnswer {
    WholeAnswer { head: head(content_type, Some(body.len())), body, trailers: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status, content type and body of the answer to a request of this kind.
    fn answer(content_type: &str, more: &[(Name, &str)]) -> Option<(String, Vec<u8>, bool)> {
        let mut request = Headers::new();
        request.set(Name::METHOD, b"POST");
        request.set(Name::PATH, b"/t.S/Get");
        request.append(Name::CONTENT_TYPE, content_type.as_bytes());
        for (name, value) in more {
            request.set(*name, value.as_bytes());
        }
        let answer = FixedAnswer::new(b"\x08\x07", r#"{"a":7}"#).to(Rpc::of(&request), &request)?;
        assert_eq!(answer.head.status(), Some(200));
        let length = answer.head.get(Name::CONTENT_LENGTH).map(|length| length.to_vec());
        assert!(length.is_none_or(|length| length == answer.body.len().to_string().as_bytes()));
        let content_type = answer.head.get(Name::CONTENT_TYPE).unwrap().to_vec();
        let is_grpc = answer.trailers.is_some_and(|trailers| trailers.get(Name::GRPC_STATUS) == Some(b"0"));
        Some((String::from_utf8(content_type).unwrap(), answer.body, is_grpc))
    }

    #[test]
    fn a_fixed_answer_is_in_the_protocol_and_the_encoding_of_its_request() {
        const CONNECT: (Name, &str) = (Name::other("connect-protocol-version"), "1");
        let binary = b"\0\0\0\0\x02\x08\x07".to_vec();
        let json = b"\0\0\0\0\x07{\"a\":7}".to_vec();
        let whole = |content_type: &str, body: &[&[u8]]| Some((content_type.to_owned(), body.concat(), false));
        for grpc in ["application/grpc", "application/grpc+proto"] {
            assert_eq!(answer(grpc, &[]), Some((grpc.to_owned(), binary.clone(), true)));
        }
        assert_eq!(answer("application/grpc+json", &[]), Some(("application/grpc+json".into(), json.clone(), true)));

        let web_end = b"\x80\0\0\0\x0fgrpc-status:0\r\n";
        assert_eq!(
            answer("application/grpc-web+proto; charset=utf-8", &[]),
            whole("application/grpc-web+proto", &[&binary, web_end])
        );
        let text = STANDARD.encode([&binary[..], web_end].concat());
        assert_eq!(answer("application/grpc-web-text", &[]), whole("application/grpc-web-text", &[text.as_bytes()]));

        assert_eq!(answer("application/proto", &[CONNECT]), whole("application/proto", &[b"\x08\x07"]));
        let unary_json = whole("application/json", &[br#"{"a":7}"#]);
        assert_eq!(answer("application/json; charset=utf-8", &[CONNECT]), unary_json);
        let get = [(Name::METHOD, "GET"), (Name::PATH, "/t.S/Get?connect=v1&encoding=json&message=%7B%7D")];
        assert_eq!(answer("", &get), unary_json);
        assert_eq!(
            answer("application/connect+proto", &[]),
            whole("application/connect+proto", &[&binary, b"\x02\0\0\0\x02{}"])
        );
        assert_eq!(
            answer("application/connect+json", &[]),
            whole("application/connect+json", &[&json, b"\x02\0\0\0\x02{}"])
        );
    }

    #[test]
    fn what_asks_for_another_encoding_gets_none() {
        const CONNECT: (Name, &str) = (Name::other("connect-protocol-version"), "1");
        for content_type in
            ["text/plain", "application/grpc+thrift", "application/grpc-web+thrift", "application/connect+x"]
        {
            assert_eq!(answer(content_type, &[]), None, "{content_type}");
        }
        assert_eq!(answer("application/xml", &[CONNECT]), None);
    }
}
