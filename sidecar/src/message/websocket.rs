//! The fields of a WebSocket's handshake that HTTP/1.1 needs and HTTP/2 does not have (RFC 8441, section 5). The
//! sidecar adds them where one side of a call speaks HTTP/1.1 and the other HTTP/2.

use base64::{Engine, prelude::BASE64_STANDARD};
use sha1::{Digest, Sha1};
use weft_wire::{Headers, Name};

const KEY: Name = Name::other("sec-websocket-key");
const ACCEPT: Name = Name::other("sec-websocket-accept");
const VERSION: Name = Name::other("sec-websocket-version");
/// RFC 6455, section 1.3
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

fn is_websocket(head: &Headers) -> bool {
    head.protocol().is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
}

/// Adds a key to a request that goes to a service over HTTP/1.1, if it asks for a WebSocket and has none.
pub(crate) fn complete_request(head: &mut Headers) {
    if !is_websocket(head) || head.get(KEY).is_some() {
        return;
    }
    let key: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    head.set(KEY, BASE64_STANDARD.encode(key).as_bytes());
    if head.get(VERSION).is_none() {
        head.set(VERSION, b"13");
    }
}

/// Answers the key of a request that came over HTTP/1.1, if the service has not answered it.
pub(crate) fn complete_answer(request: &Headers, head: &mut Headers) {
    if !is_websocket(request) || head.get(ACCEPT).is_some() {
        return;
    }
    if let Some(key) = request.get(KEY) {
        let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        head.set(ACCEPT, BASE64_STANDARD.encode(hash).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: Option<&[u8]>) -> Headers {
        let mut head = Headers::new();
        head.set(Name::METHOD, b"CONNECT");
        head.set(Name::PROTOCOL, b"websocket");
        if let Some(key) = key {
            head.set(KEY, key);
        }
        head
    }

    #[test]
    fn a_key_is_answered_as_in_rfc_6455() {
        let mut answer = Headers::new();
        complete_answer(&request(Some(b"dGhlIHNhbXBsZSBub25jZQ==")), &mut answer);
        assert_eq!(answer.get(ACCEPT), Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]));
        complete_answer(&request(Some(b"another")), &mut answer);
        assert_eq!(answer.get(ACCEPT), Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]), "the service's own stays");
    }

    #[test]
    fn a_missing_key_is_added() {
        let mut head = request(None);
        complete_request(&mut head);
        assert_eq!(BASE64_STANDARD.decode(head.get(KEY).unwrap()).unwrap().len(), 16);
        assert_eq!(head.get(VERSION), Some(&b"13"[..]));
        let mut plain = Headers::new();
        plain.set(Name::METHOD, b"GET");
        complete_request(&mut plain);
        assert!(plain.get(KEY).is_none());
    }
}
