//! What an answer says of the service that gave it.

use weft_wire::{Code, Headers, Name};

use crate::breaker::Verdict;

/// gRPC's codes that the data path names.
pub(crate) mod code {
    pub(crate) const OK: u8 = 0;
    pub(crate) const UNKNOWN: u8 = 2;
    pub(crate) const INTERNAL: u8 = 13;
}

/// The gRPC status in trailers, or in the head of an answer that is nothing else.
pub(crate) fn grpc_status(headers: &Headers) -> Option<u8> {
    match headers.get(Name::GRPC_STATUS)? {
        [one @ b'0'..=b'9'] => Some(one - b'0'),
        [b'1', one @ b'0'..=b'6'] => Some(10 + one - b'0'),
        _ => Some(code::UNKNOWN),
    }
}

/// The gRPC code that stands for an HTTP status, by the mapping of google/rpc/code.proto.
pub(crate) fn code_of_http(status: u16) -> u8 {
    match status {
        100..=399 => code::OK,
        400 => 3,
        401 => 16,
        403 => 7,
        404 => 5,
        409 => 10,
        416 => 11,
        429 => 8,
        499 => 1,
        501 => 12,
        502 | 503 => 14,
        504 => 4,
        402..=498 => 9,
        500 | 505..=599 => code::INTERNAL,
        _ => code::UNKNOWN,
    }
}

/// The gRPC code that stands for a reset, by the gRPC over HTTP/2 protocol's table of errors.
pub(crate) fn code_of_reset(reset: Code) -> u8 {
    match reset {
        Code::REFUSED_STREAM => 14,
        Code::CANCEL => 1,
        Code::ENHANCE_YOUR_CALM => 8,
        Code::INADEQUATE_SECURITY => 7,
        _ => code::INTERNAL,
    }
}

/// The code that an answer's head settles: of a plain HTTP answer, or of a gRPC answer that is nothing but a head.
/// `None` when trailers will say.
pub(crate) fn of_head(head: &Headers, status: u16) -> Option<u8> {
    let is_grpc = status == 200 && crate::target::is_grpc(head);
    if is_grpc { grpc_status(head) } else { Some(code_of_http(status)) }
}

/// What a code says of the callee: its own failures count, those of the request do not.
pub(crate) fn verdict(code: u8) -> Verdict {
    match code {
        // UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS
        2 | 4 | 8 | 13 | 14 | 15 => Verdict::Failure,
        0..=16 => Verdict::Success,
        _ => Verdict::Nothing,
    }
}

/// Whether a server span with this code is an error, by OpenTelemetry's conventions for gRPC.
pub(crate) fn is_server_error(code: u8) -> bool {
    // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
    matches!(code, 2 | 4 | 12 | 13 | 14 | 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_its_text() {
        for (text, code) in [("0", 0), ("9", 9), ("16", 16), ("17", 2), ("", 2), ("-1", 2), ("007", 2)] {
            let mut headers = Headers::new();
            headers.append(Name::GRPC_STATUS, text.as_bytes());
            assert_eq!(grpc_status(&headers), Some(code), "{text}");
        }
        assert_eq!(grpc_status(&Headers::new()), None);
    }
}
