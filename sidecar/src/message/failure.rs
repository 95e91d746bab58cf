//! Answers that the mesh gives instead of a service: what they say, and how they look in gRPC, Connect and HTTP.

use std::{borrow::Cow, time::Duration};

use http::HeaderMap;
use tonic_types::{ErrorDetails, StatusExt};
use weft_mesh::{
    errors::{CONNECT_CODES, Reason},
    names::header::{ERROR, FALLBACK, PUSHBACK},
};
use weft_wire::{Headers, Name};

use crate::message::{headers, rpc::Rpc};

pub(crate) const ERROR_HEADER: Name = Name::other(ERROR);
/// Names the fallback that an answer comes from.
pub(crate) const FALLBACK_HEADER: Name = Name::other(FALLBACK);
const PUSHBACK_HEADER: Name = Name::other(PUSHBACK);
/// The `domain` of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "weft";

/// Why a call was not answered by its service.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// For the caller: what happened and what to do.
    pub(crate) message: Cow<'static, str>,
    /// The service, if it is known.
    pub(crate) service: Option<String>,
    /// When to try again.
    pub(crate) retry_after: Option<Duration>,
    /// Whether the failure is expected, as the service is still starting: then it is logged at DEBUG only.
    pub(crate) is_expected: bool,
    /// Where the rule is from that the call broke, if it broke one. Part of `google.rpc.ErrorInfo`.
    pub(crate) rule: Option<&'static str>,
}

/// Which side answers: the caller's sidecar or the callee's. Part of `google.rpc.ErrorInfo`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hop {
    Outbound,
    Inbound,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into(), service: None, retry_after: None, is_expected: false, rule: None }
    }

    pub(crate) fn deadline_passed() -> Self {
        Self::new(Reason::DeadlineExceeded, "the deadline passed before the service had answered")
    }

    /// The header list of a request is over the limit.
    pub(crate) fn headers_too_large(limit: u32) -> Self {
        let message = format!("the header list of the request is over {limit} bytes (--header-list-bytes)");
        Self::new(Reason::HeadersTooLarge, message)
    }

    /// The header list of a request, or of its trailers, is longer than the service takes.
    #[cold]
    pub(crate) fn headers_too_large_for(service: &str, limit: u32) -> Self {
        let message = format!("the header list of the request is over the {limit} bytes that {service} takes");
        Self::new(Reason::HeadersTooLarge, message).of_service(service)
    }

    /// The header list of an answer, or of its trailers, is over the limit.
    pub(crate) fn answer_headers_too_large(limit: u32) -> Self {
        let message = format!("the header list of the answer is over {limit} bytes (--header-list-bytes)");
        Self::new(Reason::AnswerHeadersTooLarge, message)
    }

    /// An answer stopped half-way.
    pub(crate) fn broke_within(why: &dyn std::fmt::Display) -> Self {
        let message = format!("the connection to the service broke during its answer: {why}");
        Self::new(Reason::ConnectionBroke, message)
    }

    pub(crate) fn of_service(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }

    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(crate) fn by_rule(mut self, rule: &'static str) -> Self {
        self.rule = Some(rule);
        self
    }

    /// The whole answer to a gRPC call: trailers only, HTTP status 200.
    fn to_grpc(&self, hop: Hop) -> Headers {
        let mut head = Headers::new();
        head.set(Name::STATUS, b"200");
        head.append(Name::CONTENT_TYPE, b"application/grpc");
        self.append_grpc_status(hop, &mut head);
        head
    }

    /// The gRPC status with its details, as trailers.
    pub(crate) fn grpc_status(&self, hop: Hop) -> Headers {
        let mut trailers = Headers::new();
        self.append_grpc_status(hop, &mut trailers);
        trailers
    }

    fn append_grpc_status(&self, hop: Hop, to: &mut Headers) {
        let mut metadata = std::collections::HashMap::new();
        let hop = match hop {
            Hop::Outbound => "outbound",
            Hop::Inbound => "inbound",
        };
        metadata.insert("hop".to_owned(), hop.to_owned());
        if let Some(service) = &self.service {
            metadata.insert("service".to_owned(), service.clone());
        }
        if let Some(rule) = self.rule {
            metadata.insert("rule".to_owned(), rule.to_owned());
        }
        let mut details = ErrorDetails::with_error_info(self.reason.as_str(), DOMAIN, metadata);
        if let Some(after) = self.retry_after {
            details.set_retry_info(Some(after));
        }
        let code = tonic::Code::from_i32(i32::from(self.reason.grpc()));
        let status = tonic::Status::with_error_details(code, &*self.message, details);
        let mut map = HeaderMap::with_capacity(6);
        match status.add_header(&mut map) {
            Ok(()) => headers::append(to, &map),
            // The message can't be written as a header: only the code is sent.
            Err(_) => to.append(Name::GRPC_STATUS, self.reason.grpc().to_string().as_bytes()),
        }
        to.append(ERROR_HEADER, self.reason.as_str().as_bytes());
        if let Some(after) = self.retry_after {
            to.append(PUSHBACK_HEADER, after.as_millis().to_string().as_bytes());
        }
    }

    /// The whole answer to a call in this protocol: its head, and its body, which may be empty.
    pub(crate) fn answer(&self, rpc: Rpc, hop: Hop) -> (Headers, Vec<u8>) {
        match rpc {
            Rpc::No => {
                let (head, text) = self.to_http();
                (head, text.into_bytes())
            }
            Rpc::Grpc => (self.to_grpc(hop), Vec::new()),
            Rpc::GrpcWeb | Rpc::GrpcWebText => {
                let mut head = self.to_grpc(hop);
                // The head has the status, so the body is empty in either encoding.
                let is_text = rpc == Rpc::GrpcWebText;
                let content_type: &[u8] = if is_text { b"application/grpc-web-text" } else { b"application/grpc-web" };
                head.set(Name::CONTENT_TYPE, content_type);
                (head, Vec::new())
            }
            Rpc::Connect => {
                let body = self.to_connect().to_string().into_bytes();
                (self.http_head(connect_http_status(self.reason.grpc()), b"application/json", body.len()), body)
            }
            Rpc::ConnectStream { is_json } => {
                let end = serde_json::json!({ "error": self.to_connect() }).to_string();
                // The flag of the last frame, and its length.
                let mut body = vec![2];
                body.extend((end.len() as u32).to_be_bytes());
                body.extend(end.as_bytes());
                let content_type: &[u8] =
                    if is_json { b"application/connect+json" } else { b"application/connect+proto" };
                (self.http_head(200, content_type, body.len()), body)
            }
        }
    }

    /// The error in Connect's form.
    fn to_connect(&self) -> serde_json::Value {
        let code = CONNECT_CODES[usize::from(self.reason.grpc())];
        serde_json::json!({ "code": code, "message": self.message })
    }

    /// The whole answer to a plain HTTP request.
    pub(crate) fn to_http(&self) -> (Headers, String) {
        let text = format!("{}\n", self.message);
        (self.http_head(self.reason.http(), b"text/plain; charset=utf-8", text.len()), text)
    }

    fn http_head(&self, status: u16, content_type: &[u8], length: usize) -> Headers {
        let mut head = Headers::new();
        head.set(Name::STATUS, status.to_string().as_bytes());
        head.append(Name::CONTENT_TYPE, content_type);
        head.append(Name::CONTENT_LENGTH, length.to_string().as_bytes());
        head.append(ERROR_HEADER, self.reason.as_str().as_bytes());
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: RFC 9110, section 10.2.3.
            head.append(Name::RETRY_AFTER, after.as_millis().div_ceil(1_000).to_string().as_bytes());
        }
        head
    }
}

/// The HTTP status that Connect has for a gRPC code (its protocol's table of error codes).
fn connect_http_status(code: u8) -> u16 {
    match code {
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Whether the head or the trailers of an answer say that the mesh failed the call, or that a fallback answers it, though
/// their sender may not say so. Fallbacks are known to the caller's own sidecar only.
/// A service may never say so (`hop` is inbound then). The callee's sidecar may (`hop` is outbound then), but only with
/// the reasons that it can know: none about endpoints or breakers.
#[inline]
pub(crate) fn is_forged(headers: &Headers, hop: Hop) -> bool {
    // The names of both headers are among the less common ones, which share a bit.
    headers.may_have(ERROR_HEADER) && says_forged(headers, hop)
}

fn says_forged(headers: &Headers, hop: Hop) -> bool {
    let is_sidecars = |said| Reason::parse(said).is_some_and(Reason::is_of_callee);
    let is_error_forged = headers.all(ERROR_HEADER).any(|said| match hop {
        Hop::Inbound => true,
        Hop::Outbound => !is_sidecars(said),
    });
    is_error_forged || headers.get(FALLBACK_HEADER).is_some()
}

/// Removes what the sender of an answer may not say: see [`is_forged`].
#[cold]
pub(crate) fn remove_forged(headers: &mut Headers, hop: Hop) {
    headers.remove(FALLBACK_HEADER);
    // What is left may be the reason of the callee's sidecar.
    if says_forged(headers, hop) {
        headers.remove(ERROR_HEADER);
    }
}

/// The reason with which the callee's sidecar failed the call, if the head or the trailers of the answer name one.
pub(crate) fn reason_behind(headers: &Headers) -> Option<Reason> {
    headers.get(ERROR_HEADER).and_then(Reason::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_its_reason_service_and_when_to_try_again() {
        let failure = Failure::new(Reason::BreakerOpen, "users.shop fails; wait")
            .of_service("users.shop")
            .retry_after(Duration::from_millis(1_200));
        let grpc = headers::to_header_map(&failure.answer(Rpc::Grpc, Hop::Outbound).0);
        assert_eq!(grpc["grpc-status"], "14");
        assert_eq!(grpc["x-weft-error"], "breaker-open");
        assert_eq!(grpc["grpc-retry-pushback-ms"], "1200");
        let status = tonic::Status::from_header_map(&grpc).unwrap();
        let details = status.get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1_200)));
        assert_eq!(details.error_info().unwrap().metadata["service"], "users.shop");

        let (http, _) = failure.to_http();
        assert_eq!((http.status(), http.get(Name::RETRY_AFTER)), (Some(503), Some(&b"2"[..])));
    }

    #[test]
    fn forged_mesh_errors_are_recognized() {
        let says = |text: &str| {
            let mut headers = Headers::new();
            headers.append(ERROR_HEADER, text.as_bytes());
            headers
        };
        for reason in Reason::ALL {
            assert!(is_forged(&says(reason.as_str()), Hop::Inbound), "by a service");
            assert_eq!(is_forged(&says(reason.as_str()), Hop::Outbound), !reason.is_of_callee(), "by a sidecar");
        }
        assert!(is_forged(&says("made-up"), Hop::Outbound));
        for hop in [Hop::Inbound, Hop::Outbound] {
            let mut fallback = Headers::new();
            fallback.append(FALLBACK_HEADER, b"breaker-open; to=answer");
            assert!(is_forged(&fallback, hop), "only the caller's own sidecar falls back");
            remove_forged(&mut fallback, hop);
            assert_eq!(fallback.get(FALLBACK_HEADER), None);
        }
        let mut both = says("connection-broke");
        both.append(FALLBACK_HEADER, b"x");
        remove_forged(&mut both, Hop::Outbound);
        assert!(both.get(ERROR_HEADER).is_some(), "the callee's sidecar may say so");
        assert!(says("breaker-open").get(ERROR_HEADER).is_some() && !is_forged(&Headers::new(), Hop::Inbound));
    }

    #[test]
    fn a_failure_is_answered_in_the_protocol_of_its_request() {
        let failure = Failure::new(Reason::NoEndpoint, "nobody is up");
        let answer = |rpc| {
            let (head, body) = failure.answer(rpc, Hop::Outbound);
            let content_type = String::from_utf8(head.get(Name::CONTENT_TYPE).unwrap().to_vec()).unwrap();
            (head.status().unwrap(), content_type, String::from_utf8(body).unwrap())
        };
        let error = r#"{"code":"unavailable","message":"nobody is up"}"#;
        assert_eq!(answer(Rpc::Grpc), (200, "application/grpc".into(), String::new()));
        assert_eq!(answer(Rpc::GrpcWeb), (200, "application/grpc-web".into(), String::new()));
        assert_eq!(answer(Rpc::Connect), (503, "application/json".into(), error.into()));
        let (status, content_type, body) = answer(Rpc::ConnectStream { is_json: true });
        assert_eq!((status, &*content_type), (200, "application/connect+json"));
        assert_eq!(body, format!("\u{2}\0\0\0\u{39}{{\"error\":{error}}}"));
        assert_eq!(answer(Rpc::No).0, 503);
    }
}
