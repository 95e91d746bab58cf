//! The sidecar's state as `weft.admin.v1` carries it, and the same as JSON.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::time::Instant;
use weft_contracts::weft::{
    admin::v1::{BreakerState, EndpointState, Identity, State, WatchedService, breaker_state},
    policy::v1 as policy,
};

use crate::{
    breaker::{self, Breaker},
    catalog::{Endpoint, Service},
    control::Control,
};

/// What holds at this moment.
pub(super) fn of(control: &Control) -> State {
    let shared = &control.shared;
    let now = Instant::now();
    let view = shared.catalog.view();
    let mut services: Vec<WatchedService> = view.services.values().map(|service| watched(service, now)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    State {
        service: shared.own.as_ref().map(ToString::to_string).unwrap_or_default(),
        identity: shared.identity.load().as_ref().map(|identity| Identity {
            spiffe_id: identity.svid.id().to_string(),
            not_after: Some(identity.svid.not_after().into()),
        }),
        local_health: shared.local_health().into(),
        control_plane_connected: shared.is_control_plane_connected.load(Relaxed),
        services,
        version: env!("CARGO_PKG_VERSION").into(),
        uptime: prost_types::Duration::try_from(now.saturating_duration_since(shared.started)).ok(),
    }
}

fn watched(service: &Service, now: Instant) -> WatchedService {
    WatchedService {
        name: service.name.to_string(),
        version: Some(service.version),
        endpoints: service.endpoints.iter().map(|endpoint| endpoint_state(endpoint, now)).collect(),
        breaker: Some(breaker_state(&service.breaker, now)),
        policy: Some((&service.policy).into()),
    }
}

fn endpoint_state(endpoint: &Endpoint, now: Instant) -> EndpointState {
    EndpointState {
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        spiffe_id: endpoint.spiffe_id.to_string(),
        health: endpoint.health().into(),
        calls_in_flight: endpoint.in_flight.load(Relaxed),
        connections: endpoint.connections.load(Relaxed),
        breaker: Some(breaker_state(&endpoint.breaker, now)),
    }
}

fn breaker_state(breaker: &Breaker, now: Instant) -> BreakerState {
    let statistics = breaker.statistics(now);
    let state = match statistics.state {
        breaker::State::Closed => breaker_state::State::Closed,
        breaker::State::Open => breaker_state::State::Open,
        breaker::State::HalfOpen => breaker_state::State::HalfOpen,
    };
    BreakerState {
        state: state.into(),
        calls: statistics.calls,
        failures: statistics.failures,
        consecutive_failures: statistics.consecutive_failures,
        times_opened: statistics.times_opened,
        calls_refused: statistics.calls_refused,
    }
}

/// By protobuf's JSON mapping, but that all fields are always there.
pub(super) fn json(state: &State) -> Value {
    json!({
        "service": state.service,
        "identity": state.identity.as_ref().map(|identity| json!({
            "spiffeId": identity.spiffe_id,
            "notAfter": identity.not_after.as_ref().map(ToString::to_string),
        })),
        "localHealth": state.local_health().as_str_name(),
        "controlPlaneConnected": state.control_plane_connected,
        "services": state.services.iter().map(service_json).collect::<Vec<_>>(),
        "version": state.version,
        "uptime": duration_json(state.uptime.as_ref()),
    })
}

fn service_json(service: &WatchedService) -> Value {
    json!({
        "name": service.name,
        // 64-bit numbers are strings in protobuf's JSON.
        "version": service.version.map(|version| json!({
            "epoch": version.epoch.to_string(),
            "counter": version.counter.to_string(),
        })),
        "endpoints": service.endpoints.iter().map(endpoint_json).collect::<Vec<_>>(),
        "breaker": service.breaker.as_ref().map(breaker_json),
        "policy": service.policy.as_ref().map(policy_json),
    })
}

fn endpoint_json(endpoint: &EndpointState) -> Value {
    json!({
        "id": endpoint.id,
        "address": endpoint.address,
        "spiffeId": endpoint.spiffe_id,
        "health": endpoint.health().as_str_name(),
        "callsInFlight": endpoint.calls_in_flight,
        "connections": endpoint.connections,
        "breaker": endpoint.breaker.as_ref().map(breaker_json),
    })
}

fn breaker_json(breaker: &BreakerState) -> Value {
    json!({
        "state": breaker.state().as_str_name(),
        "calls": breaker.calls,
        "failures": breaker.failures,
        "consecutiveFailures": breaker.consecutive_failures,
        "timesOpened": breaker.times_opened.to_string(),
        "callsRefused": breaker.calls_refused.to_string(),
    })
}

fn policy_json(policy: &policy::ServicePolicy) -> Value {
    json!({
        "contracts": policy.contracts.iter().map(|contract| json!({
            "name": contract.name,
            "methods": contract.methods.iter().map(method_json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "breaker": policy.breaker.as_ref().map(|breaker| json!({
            "consecutiveFailures": breaker.consecutive_failures,
            "failureRatio": breaker.failure_ratio,
            "minimumCalls": breaker.minimum_calls,
            "window": duration_json(breaker.window.as_ref()),
            "openFor": duration_json(breaker.open_for.as_ref()),
            "probes": breaker.probes,
            "origin": breaker.origin().as_str_name(),
        })),
    })
}

fn method_json(method: &policy::Method) -> Value {
    json!({
        "name": method.name,
        "clientStreaming": method.client_streaming,
        "serverStreaming": method.server_streaming,
        "timeout": method.timeout.as_ref().map(|timeout| json!({
            "value": duration_json(timeout.value.as_ref()),
            "origin": timeout.origin().as_str_name(),
        })),
        "idempotency": method.idempotency().as_str_name(),
    })
}

fn duration_json(duration: Option<&prost_types::Duration>) -> Option<String> {
    duration.map(ToString::to_string)
}

/// How long a certificate is still good, if it is.
pub(super) fn left_of(identity: &Identity) -> Option<Duration> {
    let not_after = SystemTime::try_from(identity.not_after?).ok()?;
    not_after.duration_since(SystemTime::now()).ok()
}
