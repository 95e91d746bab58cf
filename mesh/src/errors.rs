//! The one table of failures that the mesh itself makes, and how each looks to a caller.

/// Whether a failure counts against the breaker of the endpoint that was tried, and against that of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It never counts: the caller or the mesh itself is the reason.
    Nobody,
    /// It counts for the endpoint only: other endpoints of the service may be fine.
    Endpoint,
    /// It counts for the service, too, if the contract's timeout has passed. If the caller's own deadline was shorter, it does not
    /// count.
    Contract,
}

macro_rules! reasons {
    ($(
        $(#[$doc:meta])*
        $name:ident = $text:literal, grpc $grpc:literal, http $http:literal, blame $blame:ident, of_callee $of_callee:literal,
            fallback $fallback:literal;
    )*) => {
        /// Why the mesh answered a call instead of the service. The text of the reason is the value of `x-weft-error`,
        /// of the label in metrics, and of `google.rpc.ErrorInfo.reason`.
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

            /// Which breakers it counts against.
            pub const fn blame(self) -> Blame {
                match self { $(Reason::$name => Blame::$blame,)* }
            }

            /// Whether the sidecar of the called service may fail calls for this reason. Only the caller's own sidecar
            /// uses the other reasons.
            pub const fn is_of_callee(self) -> bool {
                match self { $(Reason::$name => $of_callee,)* }
            }

            /// Whether a method's fallback takes the place of this failure: the service could not be reached, and it has
            /// not processed the call.
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

// `blame`: whether it counts against a breaker. `of_callee`: whether the sidecar of the called service may use it, too.
// `fallback`: whether the method's fallback takes its place.
reasons! {
    /// No service or contract with this name is in the mesh.
    NoSuchService = "no-such-service", grpc 12, http 404, blame Nobody, of_callee false, fallback false;
    /// The port leads to one service, and the request names another host.
    Misdirected = "misdirected", grpc 12, http 421, blame Nobody, of_callee false, fallback false;
    /// The service is known, but none of its endpoints is up.
    NoEndpoint = "no-endpoint", grpc 14, http 503, blame Nobody, of_callee false, fallback true;
    /// No connection to an endpoint could be made, or each endpoint that was tried refused the call without processing
    /// it.
    ConnectFailed = "connect-failed", grpc 14, http 502, blame Endpoint, of_callee false, fallback true;
    /// No endpoint takes more calls now: its service or its sidecar is at a limit. The call was not processed.
    ServiceFull = "service-full", grpc 14, http 503, blame Nobody, of_callee true, fallback false;
    /// The connection broke before the answer was complete.
    ConnectionBroke = "connection-broke", grpc 14, http 502, blame Endpoint, of_callee true, fallback false;
    /// The breaker of the service is open.
    BreakerOpen = "breaker-open", grpc 14, http 503, blame Nobody, of_callee false, fallback true;
    /// The deadline passed.
    DeadlineExceeded = "deadline-exceeded", grpc 4, http 504, blame Contract, of_callee true, fallback false;
    /// A limit was reached.
    Overloaded = "overloaded", grpc 8, http 429, blame Nobody, of_callee true, fallback false;
    /// The request's header list is over the limit.
    HeadersTooLarge = "headers-too-large", grpc 8, http 431, blame Nobody, of_callee true, fallback false;
    /// The header list of the answer, or its trailers, is over the limit.
    AnswerHeadersTooLarge = "answer-headers-too-large", grpc 8, http 502, blame Nobody, of_callee true, fallback false;
    /// The caller is not allowed to call this.
    PermissionDenied = "permission-denied", grpc 7, http 403, blame Nobody, of_callee true, fallback false;
    /// The request is malformed.
    Malformed = "malformed", grpc 13, http 400, blame Nobody, of_callee true, fallback false;
    /// The sidecar does not know the service yet, and the control plane does not answer.
    ControlPlaneAway = "control-plane-away", grpc 14, http 503, blame Nobody, of_callee false, fallback false;
    /// This sidecar is stopping.
    Draining = "draining", grpc 14, http 503, blame Nobody, of_callee true, fallback false;
}

/// The names of gRPC's status codes, by number, as in the specification.
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

/// Connect's names for the same codes (<https://connectrpc.com/docs/protocol/#error-codes>); it has none for OK.
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
    fn every_reason_has_its_own_text() {
        let texts: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(texts.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|reason| Reason::parse(reason.as_str().as_bytes()) == Some(*reason)));
    }
}
