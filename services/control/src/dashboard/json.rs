//! The JSON answers. Times are nanoseconds since 1970, as numbers that need 64 bits.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use weft_contracts::weft::{discovery::v1::Service, policy::v1::Method};

use super::{
    Contest, NotAllowed, Sidecars,
    words::{fallback, health, idempotency, nano, origin, protocol},
};
use crate::traces::{Attributes, Counts, Parent, Row, Stored, Summary, Tree};

/// `{"error": why}`.
pub(super) fn problem(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}

/// `/api/traces`
pub(super) fn traces(found: &[Summary], counts: Counts) -> Response {
    Json(json!({ "traces": found, "store": counts })).into_response()
}

/// `/api/traces/{id}`: the spans in the order of the tree.
pub(super) fn trace(stored: &Stored) -> Response {
    let tree = Tree::new(stored);
    Json(json!({
        "trace_id": stored.id.to_string(),
        "start_unix_nano": tree.start_unix_nano,
        "duration_nano": tree.duration_nano,
        "errors": tree.errors,
        "refused_spans": stored.refused,
        "spans": tree.rows.iter().map(span).collect::<Vec<_>>(),
    }))
    .into_response()
}

fn span(row: &Row) -> Value {
    let span = &row.span;
    let events = span.events.iter().map(|event| {
        json!({
            "name": event.name,
            "time_unix_nano": event.time_unix_nano,
            "attributes": attributes(&event.attributes),
        })
    });
    let links = span.links.iter().map(|link| {
        json!({
            "trace_id": link.trace.to_string(),
            "span_id": link.span.to_string(),
            "attributes": attributes(&link.attributes),
        })
    });
    json!({
        "span_id": span.id.to_string(),
        "parent_span_id": span.parent.map(|parent| parent.to_string()),
        "parent_seen": !matches!(row.parent, Parent::NotSeen(_)),
        "name": span.name,
        "kind": span.kind.as_str(),
        "service": span.resource.service,
        "component": span.resource.component.as_str(),
        "start_unix_nano": span.start_unix_nano,
        "duration_nano": span.duration_nano,
        "self_nano": row.self_nano,
        "status": { "code": span.status.code.as_str(), "message": span.status.message },
        "attributes": attributes(&span.attributes),
        "resource": attributes(&span.resource.attributes),
        "events": events.collect::<Vec<_>>(),
        "links": links.collect::<Vec<_>>(),
        "dropped": span.dropped,
    })
}

fn attributes(attributes: &Attributes) -> Map<String, Value> {
    attributes.iter().cloned().collect()
}

/// `/api/claims`
pub(super) fn claims(contests: &[Contest]) -> Response {
    Json(json!({ "contested": contests })).into_response()
}

/// `/api/sidecars`
pub(super) fn sidecars(found: &Sidecars) -> Response {
    Json(found).into_response()
}

/// `/api/access`
pub(super) fn not_allowed(calls: &[NotAllowed]) -> Response {
    Json(json!({ "not_allowed": calls })).into_response()
}

/// `/api/services`
pub(super) fn services(services: &[Service]) -> Response {
    Json(json!({ "services": services.iter().map(service).collect::<Vec<_>>() })).into_response()
}

fn service(service: &Service) -> Value {
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({
            "id": endpoint.id,
            "address": endpoint.address,
            "spiffe_id": endpoint.spiffe_id,
            "health": health(endpoint.health()),
            "silent": endpoint.silent,
        })
    });
    let policy = service.policy.as_ref();
    let contracts = policy.map(|policy| policy.contracts.as_slice()).unwrap_or_default().iter().map(
        |contract| json!({ "name": contract.name, "methods": contract.methods.iter().map(method).collect::<Vec<_>>() }),
    );
    let breaker = policy.and_then(|policy| policy.breaker.as_ref()).map(|breaker| {
        json!({
            "consecutive_failures": breaker.consecutive_failures,
            "failure_ratio": breaker.failure_ratio,
            "minimum_calls": breaker.minimum_calls,
            "window_nano": breaker.window.as_ref().map(nano),
            "open_for_nano": breaker.open_for.as_ref().map(nano),
            "probes": breaker.probes,
            "failure_codes": breaker.failure_codes,
            "slow_call": breaker.slow_call.as_ref().map(|slow_call| json!({
                "longer_than_nano": slow_call.longer_than.as_ref().map(nano),
                "ratio": slow_call.ratio,
            })),
            "origin": origin(breaker.origin()),
        })
    });
    json!({
        "name": service.name,
        "protocol": protocol(service.protocol()),
        "complete": service.complete,
        "endpoints": endpoints.collect::<Vec<_>>(),
        "contracts": contracts.collect::<Vec<_>>(),
        "breaker": breaker,
        "method_policy": policy.map(|policy| policy.method_policy.as_str()).filter(|name| !name.is_empty()),
    })
}

fn method(method: &Method) -> Value {
    let timeout = method
        .timeout
        .as_ref()
        .map(|timeout| json!({ "nano": timeout.value.as_ref().map(nano), "origin": origin(timeout.origin()) }));
    let hedge = method
        .hedge
        .as_ref()
        .map(|hedge| json!({ "after_nano": hedge.after.as_ref().map(nano), "origin": origin(hedge.origin()) }));
    json!({
        "name": method.name,
        "client_streaming": method.client_streaming,
        "server_streaming": method.server_streaming,
        "timeout": timeout,
        "idempotency": idempotency(method.idempotency()),
        "fallback": fallback(method.fallback.as_ref()),
        "hedge": hedge,
    })
}
