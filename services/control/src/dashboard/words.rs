//! The names of enum values, in JSON and on the pages.

use weft_contracts::weft::{
    discovery::v1::{Health, Protocol},
    policy::v1::{
        Fallback, Idempotency, Origin,
        fallback::{Elsewhere, To},
    },
};

/// A protobuf duration in nanoseconds; a negative one, which no policy has, is 0.
pub(super) fn nano(duration: &prost_types::Duration) -> u64 {
    let nano = i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos);
    u64::try_from(nano.max(0)).unwrap_or(u64::MAX)
}

/// An endpoint's state in a word.
pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Up => "up",
        Health::Down => "down",
        Health::Draining => "draining",
        Health::Unspecified => "unknown",
    }
}

/// A protocol in a word.
pub(super) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http2 => "grpc",
        Protocol::Http1 => "http1",
        Protocol::Tcp => "tcp",
        Protocol::Unspecified => "unknown",
    }
}

/// Where a value came from, in words.
pub(super) fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Default => "default",
        Origin::ServiceOption => "service option",
        Origin::ServicePolicy => "MethodPolicy for the service",
        Origin::MethodOption => "method option",
        Origin::MethodPolicy => "MethodPolicy for the method",
        Origin::Unspecified => "unknown",
    }
}

/// Where calls go that the service cannot take. `None`: they fail.
pub(super) fn fallback(fallback: Option<&Fallback>) -> Option<String> {
    Some(match fallback?.to.as_ref()? {
        To::Answer(_) => "a fixed answer".to_owned(),
        To::Elsewhere(Elsewhere { service, method }) if method.is_empty() => service.clone(),
        To::Elsewhere(Elsewhere { service, method }) if service.is_empty() => method.clone(),
        To::Elsewhere(Elsewhere { service, method }) => format!("{service} {method}"),
    })
}

/// What repeating a call does, in words.
pub(super) fn idempotency(idempotency: Idempotency) -> &'static str {
    match idempotency {
        Idempotency::Idempotent => "idempotent",
        Idempotency::NoSideEffects => "no side effects",
        Idempotency::Unknown | Idempotency::Unspecified => "unknown",
    }
}
