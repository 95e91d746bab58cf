//! Answers that the mesh makes in a service's stead: what they say and how they look in gRPC and HTTP.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use tonic_types::{ErrorDetails, StatusExt};
use weft_mesh::{
    errors::Reason,
    names::header::{ERROR, PUSHBACK},
};

pub(crate) static ERROR_HEADER: HeaderName = HeaderName::from_static(ERROR);
static PUSHBACK_HEADER: HeaderName = HeaderName::from_static(PUSHBACK);
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

    pub(crate) fn of_service(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }

    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The whole answer to a gRPC call: trailers only, HTTP status 200.
    pub(crate) fn to_grpc(&self, hop: Hop) -> Response<()> {
        let mut response = Response::new(());
        *response.headers_mut() = self.grpc_status(hop);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    /// The gRPC status with its details, as it stands in trailers.
    pub(crate) fn grpc_status(&self, hop: Hop) -> HeaderMap {
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
        let mut headers = HeaderMap::with_capacity(6);
        if status.add_header(&mut headers).is_err() {
            // The message can't be written as a header: the code alone says enough.
            headers.insert("grpc-status", HeaderValue::from(u16::from(self.reason.grpc())));
        }
        headers.insert(&ERROR_HEADER, HeaderValue::from_static(self.reason.as_str()));
        if let Some(after) = self.retry_after {
            headers.insert(&PUSHBACK_HEADER, HeaderValue::from(after.as_millis() as u64));
        }
        headers
    }

    /// The whole answer to a plain HTTP request.
    pub(crate) fn to_http(&self) -> Response<Bytes> {
        let text = format!("{}\n", self.message);
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = StatusCode::from_u16(self.reason.http()).expect("the table has HTTP statuses");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(&ERROR_HEADER, HeaderValue::from_static(self.reason.as_str()));
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: RFC 9110, section 10.2.3.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1_000) as u64));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_why_what_to_do_and_when_to_come_again() {
        let failure = Failure::new(Reason::BreakerOpen, "users.shop fails; wait")
            .of_service("users.shop")
            .retry_after(Duration::from_millis(1_200));
        let grpc = failure.to_grpc(Hop::Outbound);
        assert_eq!(grpc.headers()["grpc-status"], "14");
        assert_eq!(grpc.headers()["x-weft-error"], "breaker-open");
        assert_eq!(grpc.headers()["grpc-retry-pushback-ms"], "1200");
        let status = tonic::Status::from_header_map(grpc.headers()).unwrap();
        let details = status.get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1_200)));
        assert_eq!(details.error_info().unwrap().metadata["service"], "users.shop");

        let http = failure.to_http();
        assert_eq!((http.status().as_u16(), &http.headers()["retry-after"]), (503, &HeaderValue::from(2)));
    }
}
