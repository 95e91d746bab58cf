//! Answers that the mesh makes in a service's stead: what they say and how they look in gRPC and HTTP.

use std::{borrow::Cow, time::Duration};

use http::HeaderMap;
use tonic_types::{ErrorDetails, StatusExt};
use weft_mesh::{
    errors::Reason,
    names::header::{ERROR, PUSHBACK},
};
use weft_wire::{Headers, Name};

use crate::headers;

pub(crate) const ERROR_HEADER: Name = Name::other(ERROR);
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
    /// Come again after this.
    pub(crate) retry_after: Option<Duration>,
}

/// Which side of which sidecar answers: for `google.rpc.ErrorInfo`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hop {
    Outbound,
    Inbound,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into(), service: None, retry_after: None }
    }

    pub(crate) fn deadline_passed() -> Self {
        Self::new(Reason::DeadlineExceeded, "the deadline passed before the service had answered")
    }

    /// What it is when an answer stops half-way.
    pub(crate) fn broke_within(why: &dyn std::fmt::Display) -> Self {
        let message = format!("the connection to the service broke within its answer: {why}");
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

    /// The whole answer to a gRPC call: trailers only, HTTP status 200.
    pub(crate) fn to_grpc(&self, hop: Hop) -> Headers {
        let mut head = Headers::new();
        head.set(Name::STATUS, b"200");
        head.append(Name::CONTENT_TYPE, b"application/grpc");
        self.append_grpc_status(hop, &mut head);
        head
    }

    /// The gRPC status with its details, as it stands in trailers.
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
        let mut details = ErrorDetails::with_error_info(self.reason.as_str(), DOMAIN, metadata);
        if let Some(after) = self.retry_after {
            details.set_retry_info(Some(after));
        }
        let code = tonic::Code::from_i32(i32::from(self.reason.grpc()));
        let status = tonic::Status::with_error_details(code, &*self.message, details);
        let mut map = HeaderMap::with_capacity(6);
        match status.add_header(&mut map) {
            Ok(()) => headers::append(to, &map),
            // The message can't be written as a header: the code alone says enough.
            Err(_) => to.append(Name::GRPC_STATUS, self.reason.grpc().to_string().as_bytes()),
        }
        to.append(ERROR_HEADER, self.reason.as_str().as_bytes());
        if let Some(after) = self.retry_after {
            to.append(PUSHBACK_HEADER, after.as_millis().to_string().as_bytes());
        }
    }

    /// The whole answer to a plain HTTP request.
    pub(crate) fn to_http(&self) -> (Headers, String) {
        let text = format!("{}\n", self.message);
        let mut head = Headers::new();
        head.set(Name::STATUS, self.reason.http().to_string().as_bytes());
        head.append(Name::CONTENT_TYPE, b"text/plain; charset=utf-8");
        head.append(Name::CONTENT_LENGTH, text.len().to_string().as_bytes());
        head.append(ERROR_HEADER, self.reason.as_str().as_bytes());
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: RFC 9110, section 10.2.3.
            head.append(Name::RETRY_AFTER, after.as_millis().div_ceil(1_000).to_string().as_bytes());
        }
        (head, text)
    }
}

/// Whether the sidecar on the other side says that it lost its service before it answered.
pub(crate) fn is_broken_behind(head: &Headers) -> bool {
    head.get(ERROR_HEADER).is_some_and(|reason| reason == Reason::ConnectionBroke.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_why_what_to_do_and_when_to_come_again() {
        let failure = Failure::new(Reason::BreakerOpen, "users.shop fails; wait")
            .of_service("users.shop")
            .retry_after(Duration::from_millis(1_200));
        let grpc = headers::to_header_map(&failure.to_grpc(Hop::Outbound));
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
}
