//! How a call ended, and what that says about its service: the table of what counts against a breaker.
//!
//! | the call ended with | counts |
//! | --- | --- |
//! | gRPC, gRPC-Web or Connect: UNAVAILABLE, INTERNAL, DATA_LOSS, or what `breaker.failure_codes` says instead | yes |
//! | gRPC, gRPC-Web or Connect: any other status, UNKNOWN and RESOURCE_EXHAUSTED among them | no: the service has answered |
//! | HTTP 500, 502, 503, 504 | yes |
//! | any other HTTP status, 429 among them | no: the service has answered |
//! | a reset by the service with any code but REFUSED_STREAM, CANCEL and ENHANCE_YOUR_CALM | yes |
//! | the contract's timeout, or DEADLINE_EXCEEDED by the service when it applied | yes, except as in `call/blame.rs` |
//! | the caller's own deadline when it is shorter, or a cancel | says nothing |
//! | a failure that the mesh made | what its row in `weft_mesh::errors` says |
//!
//! An end that says nothing leaves the breaker as it is. `docs/breakers.md` says the same to users.

use weft_mesh::{
    errors::{Blame, Reason},
    policy::BreakerPolicy,
};
use weft_wire::{Code, Headers, Name};

use crate::{
    message::{
        code::{self, CANCELLED_BY_CALLER},
        deadline::Limit,
        failure,
        rpc::Rpc,
    },
    policy::breaker::Verdict,
};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The service gave a gRPC status, in any of the RPC protocols.
    Grpc(u8),
    /// The service gave an HTTP status.
    Http(u16),
    /// The service reset the stream.
    Reset(Code),
    /// The mesh failed the call: this sidecar did, or the one beside the service.
    Failed(Reason),
    /// The caller gave the call up.
    Cancelled,
}

impl Outcome {
    /// The code that metrics count it under: one of gRPC's, or [`CANCELLED_BY_CALLER`].
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Grpc(code) => code,
            Self::Http(status) => code_of_http(status),
            Self::Reset(reset) => code_of_reset(reset),
            Self::Failed(reason) => reason.grpc(),
            Self::Cancelled => CANCELLED_BY_CALLER,
        }
    }

    /// What it says about the service: the table of this module.
    pub(crate) fn verdict(self, policy: &BreakerPolicy, limit: Limit) -> Verdict {
        match self {
            Self::Grpc(code::DEADLINE_EXCEEDED) | Self::Failed(Reason::DeadlineExceeded) => match limit {
                Limit::Contracts => Verdict::Failure,
                Limit::Callers => Verdict::Nothing,
            },
            Self::Grpc(code::CANCELLED) | Self::Cancelled => Verdict::Nothing,
            Self::Grpc(code) if policy.failure_codes.has(code) => Verdict::Failure,
            Self::Grpc(_) => Verdict::Success,
            Self::Http(500 | 502 | 503 | 504) => Verdict::Failure,
            Self::Http(_) => Verdict::Success,
            Self::Reset(Code::REFUSED_STREAM | Code::CANCEL | Code::ENHANCE_YOUR_CALM) => Verdict::Nothing,
            Self::Reset(_) => Verdict::Failure,
            // Those that count are of one endpoint. The contract's timeout is above.
            Self::Failed(_) => Verdict::Nothing,
        }
    }

    /// What it says about the endpoint that was tried. A failed connect and a broken connection count here and not against
    /// the service: its other endpoints may be fine. All calls that an endpoint has when it dies fail at once, which
    /// would open the service's breaker for everyone.
    pub(crate) fn verdict_of_endpoint(self, policy: &BreakerPolicy, limit: Limit) -> Verdict {
        match self {
            Self::Failed(reason) if reason.blame() == Blame::Endpoint => Verdict::Failure,
            _ => self.verdict(policy, limit),
        }
    }

    /// The reason, if the mesh failed the call.
    pub(crate) fn reason(self) -> Option<Reason> {
        match self {
            Self::Failed(reason) => Some(reason),
            _ => None,
        }
    }
}

/// How a call ended, by the head of its answer. `None` if its trailers or its body will say it.
#[inline]
pub(crate) fn of_head(rpc: Rpc, head: &Headers, status: u16) -> Option<Outcome> {
    // Nearly every answer is of gRPC and ends with trailers. Only others are searched for a reason of the mesh.
    match (rpc, status, head.get(Name::GRPC_STATUS)) {
        (Rpc::Grpc | Rpc::GrpcWeb, 200, None) => None,
        (_, _, grpc_status) => of_other_head(rpc, head, status, grpc_status),
    }
}

fn of_other_head(rpc: Rpc, head: &Headers, status: u16, grpc_status: Option<&[u8]>) -> Option<Outcome> {
    if let Some(reason) = failure::reason_behind(head) {
        return Some(Outcome::Failed(reason));
    }
    match (rpc, status, grpc_status) {
        (Rpc::Grpc | Rpc::GrpcWeb | Rpc::GrpcWebText, 200, Some(value)) => Some(Outcome::Grpc(code::parse(value))),
        (Rpc::ConnectStream { .. }, 200, _) => None,
        // Includes gRPC-Web in base64 without a status in its head: its body is not read.
        _ => Some(Outcome::Http(status)),
    }
}

/// How a call ended, by the trailers of its answer, if they say it.
#[inline]
pub(crate) fn of_trailers(trailers: &Headers) -> Option<Outcome> {
    match code::parse(trailers.get(Name::GRPC_STATUS)?) {
        code::OK => Some(Outcome::Grpc(code::OK)),
        code => Some(failure::reason_behind(trailers).map_or(Outcome::Grpc(code), Outcome::Failed)),
    }
}

/// The gRPC code that metrics count an HTTP status under: the mapping in google/rpc/code.proto.
fn code_of_http(status: u16) -> u8 {
    match status {
        100..=399 => code::OK,
        400 => 3,
        401 => 16,
        403 => 7,
        404 => 5,
        409 => 10,
        416 => 11,
        429 => 8,
        499 => code::CANCELLED,
        501 => 12,
        502 | 503 => code::UNAVAILABLE,
        504 => code::DEADLINE_EXCEEDED,
        402..=498 => 9,
        500 => code::INTERNAL,
        _ => code::UNKNOWN,
    }
}

/// The gRPC code for a reset: the table of errors in "gRPC over HTTP2".
fn code_of_reset(reset: Code) -> u8 {
    match reset {
        Code::REFUSED_STREAM => code::UNAVAILABLE,
        Code::CANCEL => code::CANCELLED,
        Code::ENHANCE_YOUR_CALM => 8,
        Code::INADEQUATE_SECURITY => 7,
        _ => code::INTERNAL,
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
            assert_eq!(of_trailers(&headers), Some(Outcome::Grpc(code)), "{text}");
            assert_eq!(of_head(Rpc::Grpc, &headers, 200), Some(Outcome::Grpc(code)), "{text}");
        }
        let mut headers = Headers::new();
        assert_eq!((of_trailers(&headers), of_head(Rpc::Grpc, &headers, 200)), (None, None));
        assert_eq!(of_head(Rpc::Grpc, &headers, 503), Some(Outcome::Http(503)));
        headers.append(Name::GRPC_STATUS, b"8");
        headers.append(failure::ERROR_HEADER, b"overloaded");
        let failed = Some(Outcome::Failed(Reason::Overloaded));
        assert_eq!((of_trailers(&headers), of_head(Rpc::Grpc, &headers, 200)), (failed, failed));
        assert_eq!(code::of_name("canceled"), Some(1));
        assert_eq!(code::of_name("resource_exhausted"), Some(8));
        assert_eq!(code::of_name("tired"), None);
    }

    /// The table of this module, row by row. `tests/breakers.rs` checks `docs/breakers.md` against the same.
    #[test]
    fn what_counts_against_a_breaker() {
        let policy = BreakerPolicy::default();
        let verdict = |outcome: Outcome, limit| outcome.verdict(&policy, limit);
        for code in 0..=16 {
            let expected = match code {
                13..=15 => Verdict::Failure,
                1 | 4 => Verdict::Nothing,
                _ => Verdict::Success,
            };
            assert_eq!(verdict(Outcome::Grpc(code), Limit::Callers), expected, "gRPC {code}");
        }
        for status in 200..600 {
            let expected = if matches!(status, 500 | 502 | 503 | 504) { Verdict::Failure } else { Verdict::Success };
            assert_eq!(verdict(Outcome::Http(status), Limit::Callers), expected, "HTTP {status}");
        }
        for (code, expected) in [
            (Code::REFUSED_STREAM, Verdict::Nothing),
            (Code::CANCEL, Verdict::Nothing),
            (Code::ENHANCE_YOUR_CALM, Verdict::Nothing),
            (Code::INTERNAL_ERROR, Verdict::Failure),
            (Code::PROTOCOL_ERROR, Verdict::Failure),
        ] {
            assert_eq!(verdict(Outcome::Reset(code), Limit::Callers), expected, "{code}");
        }
        for outcome in [Outcome::Grpc(4), Outcome::Failed(Reason::DeadlineExceeded)] {
            assert_eq!(verdict(outcome, Limit::Callers), Verdict::Nothing);
            assert_eq!(verdict(outcome, Limit::Contracts), Verdict::Failure);
        }
        assert_eq!(verdict(Outcome::Cancelled, Limit::Contracts), Verdict::Nothing);
        for reason in Reason::ALL.iter().copied().filter(|reason| *reason != Reason::DeadlineExceeded) {
            let outcome = Outcome::Failed(reason);
            assert_eq!(verdict(outcome, Limit::Contracts), Verdict::Nothing, "{reason:?}");
            let is_of_endpoint = matches!(reason, Reason::ConnectFailed | Reason::ConnectionBroke);
            let expected = if is_of_endpoint { Verdict::Failure } else { Verdict::Nothing };
            assert_eq!(outcome.verdict_of_endpoint(&policy, Limit::Contracts), expected, "{reason:?}");
        }
    }

    #[test]
    fn a_contract_may_set_which_codes_count() {
        let policy = BreakerPolicy { failure_codes: [2, 8].into_iter().collect(), ..Default::default() };
        for (code, expected) in [(2, Verdict::Failure), (8, Verdict::Failure), (14, Verdict::Success)] {
            assert_eq!(Outcome::Grpc(code).verdict(&policy, Limit::Callers), expected);
        }
    }
}
