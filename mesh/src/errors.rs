//! The one table of failures that the mesh itself makes, and what each looks like from outside.

/// Whether a failure counts against the breaker of the service, and of the endpoint that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Never: the caller, or the mesh itself, is why the call failed.
    Nobody,
    /// It counts for the endpoint; the service may be well at another.
    Endpoint,
    /// It counts for both.
    Service,
    /// It counts for both if the contract's timeout has passed; the caller's own, if shorter, says nothing.
    Contract,
}

macro_rules! reasons {
    ($(
        $(#[$doc:meta])*
        $name:ident = $text:literal, grpc $grpc:literal, http $http:literal, blame $blame:ident, of_callee $of_callee:literal,
            fallback $fallback:literal;
    )*) => {
        /// Why the mesh answered in a service's stead. Its text is the value of `x-weft-error`, of the metrics'
        /// label and of `google.rpc.ErrorInfo.reason`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every row of the table.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The value of `x-weft-error`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// The gRPC status code.
            pub const fn grpc(self) -> u8 {
                match self { $(Reason::$name => $grpc,)* }
            }

            /// The HTTP status code.
            pub const fn http(self) -> u16 {
                match self { $(Reason::$name => $http,)* }
            }

            /// Whether it counts against the service's breaker.
            pub const fn blame(self) -> Blame {
                match self { $(Reason::$name => Blame::$blame,)* }
            }

            /// Whether the sidecar beside a service also fails calls for this reason. The others are known to the caller's
            /// sidecar only, and nobody else may give them.
            pub const fn is_of_callee(self) -> bool {
                match self { $(Reason::$name => $of_callee,)* }
            }

            /// Whether a method's fallback takes the place of this failure: the service could not be reached, and the call
            /// was not seen by it.
            pub const fn has_fallback(self) -> bool {
                match self { $(Reason::$name => $fallback,)* }
            }

            /// The reason with this text.
            pub fn parse(text: &[u8]) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str().as_bytes() == text)
            }
        }
    };
}

// `blame`: whether it counts against a breaker. `of_callee`: whether the sidecar beside the service may give it, too.
// `fallback`: whether the method's fallback takes its place.
reasons! {
    /// No service or contract of that name is in the mesh.
    NoSuchService = "no-such-service", grpc 12, http 404, blame Nobody, of_callee false, fallback false;
    /// The service is known, but none of its endpoints is up.
    NoEndpoint = "no-endpoint", grpc 14, http 503, blame Nobody, of_callee false, fallback true;
    /// No connection to an endpoint could be made, or every one that was tried refused the call unseen.
    ConnectFailed = "connect-failed", grpc 14, http 502, blame Endpoint, of_callee false, fallback true;
    /// The endpoint that was tried, and each other one, takes no more calls at present: its service or its sidecar is at a
    /// limit. The call was not seen.
    ServiceFull = "service-full", grpc 14, http 503, blame Nobody, of_callee true, fallback false;
    /// The connection broke before the service answered.
    ConnectionBroke = "connection-broke", grpc 14, http 502, blame Service, of_callee true, fallback false;
    /// The breaker of the service, or of each of its endpoints, is open.
    BreakerOpen = "breaker-open", grpc 14, http 503, blame Nobody, of_callee false, fallback true;
    /// The deadline passed.
    DeadlineExceeded = "deadline-exceeded", grpc 4, http 504, blame Contract, of_callee true, fallback false;
    /// A limit was reached.
    Overloaded = "overloaded", grpc 8, http 429, blame Nobody, of_callee true, fallback false;
    /// The request's header list is over the limit.
    HeadersTooLarge = "headers-too-large", grpc 8, http 431, blame Nobody, of_callee true, fallback false;
    /// The header list of the answer, or its trailers, is over the limit.
    AnswerHeadersTooLarge = "answer-headers-too-large", grpc 8, http 502, blame Nobody, of_callee true, fallback false;
    /// The peer may not call this.
    PermissionDenied = "permission-denied", grpc 7, http 403, blame Nobody, of_callee true, fallback false;
    /// The request can not be understood.
    Malformed = "malformed", grpc 13, http 400, blame Nobody, of_callee true, fallback false;
    /// The sidecar does not yet know the service, and the control plane can't be asked.
    ControlPlaneAway = "control-plane-away", grpc 14, http 503, blame Nobody, of_callee false, fallback false;
    /// This sidecar is stopping.
    Draining = "draining", grpc 14, http 503, blame Nobody, of_callee true, fallback false;
}

/// gRPC's status codes by number, as the specification writes them.
pub const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The same by Connect's names for them (<https://connectrpc.com/docs/protocol/#error-codes>), which has none for OK.
pub const CONNECT_CODES: [&str; 17] = [
    "",
    "canceled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_text_of_its_own() {
        let texts: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(texts.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|reason| Reason::parse(reason.as_str().as_bytes()) == Some(*reason)));
    }
}
