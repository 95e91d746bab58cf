//! The one table of failures that the mesh itself makes, and what each looks like from outside.

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The caller's.
    Downstream,
    /// The service's, or the way to it.
    Upstream,
    /// The mesh's own.
    Mesh,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, grpc $grpc:literal, http $http:literal, $side:ident;)*) => {
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

            /// Whose fault it is.
            pub const fn side(self) -> Side {
                match self { $(Reason::$name => Side::$side,)* }
            }
        }
    };
}

reasons! {
    /// No service or contract of that name is in the mesh.
    NoSuchService = "no-such-service", grpc 12, http 404, Downstream;
    /// The service is known, but none of its endpoints is up.
    NoEndpoint = "no-endpoint", grpc 14, http 503, Upstream;
    /// No connection to an endpoint could be made, or every one that was tried refused the call unseen.
    ConnectFailed = "connect-failed", grpc 14, http 502, Upstream;
    /// The connection broke before the service answered.
    ConnectionBroke = "connection-broke", grpc 14, http 502, Upstream;
    /// The breaker of the service, or of each of its endpoints, is open.
    BreakerOpen = "breaker-open", grpc 14, http 503, Upstream;
    /// The deadline passed.
    DeadlineExceeded = "deadline-exceeded", grpc 4, http 504, Upstream;
    /// A limit was reached.
    Overloaded = "overloaded", grpc 8, http 429, Mesh;
    /// The peer may not call this.
    PermissionDenied = "permission-denied", grpc 7, http 403, Downstream;
    /// The request can not be understood.
    Malformed = "malformed", grpc 13, http 400, Downstream;
    /// The sidecar does not yet know the service, and the control plane can't be asked.
    ControlPlaneAway = "control-plane-away", grpc 14, http 503, Mesh;
    /// This sidecar is stopping.
    Draining = "draining", grpc 14, http 503, Mesh;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_text_of_its_own() {
        let texts: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(texts.len(), Reason::ALL.len());
    }
}
