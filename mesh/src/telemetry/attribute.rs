//! The names of span attributes: OpenTelemetry's semantic conventions for RPC, stable since v1.45
//! (<https://opentelemetry.io/docs/specs/semconv/rpc/>), and Weft's own. `docs/traces.md` describes them for users.

pub use opentelemetry_semantic_conventions::attribute::{
    ERROR_TYPE, NETWORK_PEER_ADDRESS, NETWORK_PEER_PORT, RPC_METHOD, RPC_METHOD_ORIGINAL, RPC_RESPONSE_STATUS_CODE,
    RPC_SYSTEM_NAME, SERVER_ADDRESS, SERVER_PORT,
};

/// On the span of a try: the number of the try in its call, from 1.
pub const ATTEMPT: &str = "weft.attempt";
/// On the span of a try: the id of the replica that it was sent to.
pub const ENDPOINT: &str = "weft.endpoint";
/// On the span of a call that a fallback answers, and on its event [`FALLBACK_EVENT`]: why the service could not take the
/// call, as in `x-weft-error`.
pub const FALLBACK_REASON: &str = "weft.fallback.reason";
/// Beside it: where the answer comes from, as in `x-weft-fallback`.
pub const FALLBACK_TO: &str = "weft.fallback.to";
/// The event of a span at which its call goes on to a fallback.
pub const FALLBACK_EVENT: &str = "fallback";
/// The event of a span whose call the rules for who may call do not allow.
pub const NOT_ALLOWED_EVENT: &str = "access denied";
/// On the span of such a call, and on its event: where the rule is from, as `method-option`.
pub const ACCESS_RULE: &str = "weft.access.rule";
/// Beside it: whether the call goes on all the same, as the rule is only tried.
pub const ACCESS_AUDIT: &str = "weft.access.audit";
/// The event of a span at which its call is sent to another endpoint as well.
pub const HEDGE_EVENT: &str = "hedge";
/// [`ERROR_TYPE`] of a try that was cancelled because another try of its call was answered first.
pub const OUTRUN: &str = "outrun";
/// On the span of an incoming call: the SPIFFE ID of its caller.
pub const PEER: &str = "weft.peer";

/// Values of [`RPC_SYSTEM_NAME`].
pub mod system {
    /// gRPC, gRPC-Web included.
    pub const GRPC: &str = "grpc";
    /// Connect.
    pub const CONNECT: &str = "connectrpc";
}

/// The value of [`RPC_METHOD`] for a method that no descriptor knows; [`RPC_METHOD_ORIGINAL`] has its name then.
pub const OTHER_METHOD: &str = "_OTHER";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_page_has_all_names() {
        let page = include_str!("../../../docs/traces.md");
        let rpc = [RPC_SYSTEM_NAME, RPC_METHOD, RPC_METHOD_ORIGINAL, RPC_RESPONSE_STATUS_CODE, ERROR_TYPE];
        let network = [SERVER_ADDRESS, SERVER_PORT, NETWORK_PEER_ADDRESS, NETWORK_PEER_PORT];
        let events = [FALLBACK_EVENT, HEDGE_EVENT, OUTRUN, NOT_ALLOWED_EVENT, ACCESS_RULE, ACCESS_AUDIT];
        let values = [system::GRPC, system::CONNECT, OTHER_METHOD];
        for name in
            [&rpc[..], &network, &[ATTEMPT, ENDPOINT, PEER, FALLBACK_REASON, FALLBACK_TO], &events, &values].concat()
        {
            assert!(page.contains(&format!("`{name}`")), "docs/traces.md lacks `{name}`");
        }
    }
}
