//! The sidecar's state as a message of `weft.admin.v1`: the one source of the page, the JSON and the answer over gRPC.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use weft_contracts::weft::admin::v1::{
    BreakerState, EndpointState, Identity, Setting, State, WatchedService, breaker_state, setting,
};

use super::{calls, limits, memory, message::duration};
use crate::{
    args::{self, Args},
    control::Control,
    endpoints::catalog::{Endpoint, Service},
    policy::breaker::{self, Breaker},
    shared::Shared,
    time::moment::Moment,
};

/// The current state, with the reports of the workers.
pub(super) async fn of(control: &Control) -> State {
    let shared = &control.shared;
    let reports = shared.surveyor.ask().await;
    let now = Instant::now();
    let services = services(shared, now);
    State {
        service: shared.local_service.as_ref().map(ToString::to_string).unwrap_or_default(),
        identity: shared.identity.load().as_ref().map(|identity| Identity {
            spiffe_id: identity.svid.id().to_string(),
            not_after: Some(identity.svid.not_after().into()),
        }),
        local_health: shared.local_health().into(),
        control_plane_connected: shared.is_control_plane_connected.load(Relaxed),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime: duration(now.saturating_duration_since(shared.started)),
        unready_reason: control.unready_reason().unwrap_or_default().into(),
        calls: Some(calls::live(&reports, &shared.metrics, Moment::of(now))),
        limits: limits::rows(control, &reports),
        configuration: configuration(shared),
        log: Some(control.log.state()),
        memory: Some(memory::of(shared, &reports, &services)),
        workers: calls::workers(&reports),
        services,
    }
}

/// The watched services, by name.
fn services(shared: &Shared, now: Instant) -> Vec<WatchedService> {
    let view = shared.catalog.view();
    let watched = |service: &Service| WatchedService {
        unused: duration(service.unused(Moment::of(now))),
        ..watched(service, now)
    };
    let mut services: Vec<WatchedService> = view.services.values().map(|service| watched(service)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

fn watched(service: &Service, now: Instant) -> WatchedService {
    WatchedService {
        name: service.name.to_string(),
        version: Some(service.version),
        endpoints: service.endpoints.iter().map(|endpoint| endpoint_state(endpoint, Moment::of(now))).collect(),
        breaker: Some(breaker_state(&service.breaker, Moment::of(now))),
        policy: Some((&*service.policy).into()),
        age: duration(now.saturating_duration_since(service.heard)),
        complete: service.is_complete,
        unused: None,
    }
}

fn endpoint_state(endpoint: &Endpoint, now: Moment) -> EndpointState {
    EndpointState {
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        spiffe_id: endpoint.spiffe_id.to_string(),
        health: endpoint.health().into(),
        calls_in_flight: endpoint.in_flight.load(Relaxed),
        connections: endpoint.connections.load(Relaxed),
        breaker: Some(breaker_state(&endpoint.breaker, now)),
        shunned: endpoint.is_shunned(now),
        silent: endpoint.is_silent(),
    }
}

fn breaker_state(breaker: &Breaker, now: Moment) -> BreakerState {
    let statistics = breaker.statistics(now);
    let state = match statistics.state {
        breaker::CircuitState::Closed => breaker_state::State::Closed,
        breaker::CircuitState::Open => breaker_state::State::Open,
        breaker::CircuitState::HalfOpen => breaker_state::State::HalfOpen,
    };
    BreakerState {
        state: state.into(),
        calls: statistics.calls,
        failures: statistics.failures,
        consecutive_failures: statistics.consecutive_failures,
        times_opened: statistics.times_opened,
        calls_refused: statistics.calls_refused,
        slow_calls: statistics.slow,
    }
}

/// How long a certificate is still valid, if it is.
pub(super) fn left_of(identity: &Identity) -> Option<Duration> {
    let not_after = SystemTime::try_from(identity.not_after?).ok()?;
    not_after.duration_since(SystemTime::now()).ok()
}

/// Every flag, and RUST_LOG, the only variable without a flag.
fn configuration(shared: &Shared) -> Vec<Setting> {
    let flags = shared.settings.iter().map(|setting| Setting {
        name: format!("--{}", setting.flag),
        value: effective(&setting.flag, &shared.args).or_else(|| setting.value.clone()).unwrap_or_default(),
        origin: match setting.origin {
            args::Origin::Default => setting::Origin::Default,
            args::Origin::Environment => setting::Origin::Environment,
            args::Origin::Flag => setting::Origin::Flag,
        }
        .into(),
        variable: setting.variable.clone(),
    });
    let log = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let log = Setting {
        name: "RUST_LOG".into(),
        origin: if log.is_some() { setting::Origin::Environment } else { setting::Origin::Default }.into(),
        value: log.unwrap_or_else(|| "info".into()),
        variable: "RUST_LOG".into(),
    };
    flags.chain([log]).collect()
}

/// The effective value of a flag, if that may differ from the given one: for port 0, the port that the kernel picked.
fn effective(flag: &str, args: &Args) -> Option<String> {
    let fronts_service = args.service.is_some();
    match flag {
        "outbound" => Some(args.outbound.to_string()),
        "inbound" => Some(args.inbound.to_string()),
        "admin" => Some(args.admin.to_string()),
        "metrics" => Some(args.metrics.to_string()),
        "forward" => {
            let forwards: Vec<_> = args.forward.iter().map(|to| format!("{}={}", to.listen, to.service)).collect();
            (!forwards.is_empty()).then(|| forwards.join(","))
        }
        "advertise" => fronts_service.then(|| args.advertised().to_string()),
        "health" => fronts_service.then(|| args.health_check().to_string()),
        _ => None,
    }
}
