//! The services that are called.

use maud::{Markup, html};
use weft_contracts::weft::admin::v1::{BreakerState, EndpointState, WatchedService, breaker_state};

use super::{
    health,
    text::{count, of_message, readable},
};

pub(super) fn section(services: &[WatchedService]) -> Markup {
    html! {
        h2 id="services" { "Services that it calls" }
        @if services.is_empty() { p class="soft" { "None yet: a service is watched once it is called." } }
        @for service in services { (watched(service)) }
    }
}

fn watched(service: &WatchedService) -> Markup {
    let version = service.version.unwrap_or_default();
    html! {
        h3 id=(format!("service-{}", service.name)) { (service.name) }
        p class="soft" {
            "Version " (version.counter) " of epoch " (version.epoch)
            @if let Some(age) = of_message(service.age) { ", received " (readable(age)) " ago" }
            @if !service.complete { ", " span class="bad" { "not confirmed by the control plane yet" } }
            @if let Some(unused) = of_message(service.unused) { " · last called " (readable(unused)) " ago" }
        }
        p { "Breaker: " (breaker(service.breaker.as_ref())) }
        @if service.endpoints.is_empty() { p class="bad" { "It has no endpoint." } }
        @else {
            div class="wide" { table {
                thead { tr {
                    th { "Endpoint" } th { "Address" } th { "Health" } th class="number" { "Calls" }
                    th class="number" { "Connections" } th { "Breaker" }
                } }
                tbody { @for endpoint in &service.endpoints { (endpoint_row(endpoint)) } }
            } }
        }
    }
}

fn endpoint_row(endpoint: &EndpointState) -> Markup {
    html! {
        tr {
            td class="still" { code title=(endpoint.spiffe_id) { (endpoint.id) } }
            td class="still" { (endpoint.address) }
            td class="still" {
                (health(endpoint.health()))
                @if endpoint.silent { ", " span class="bad" { "lost by the control plane" } }
                @if endpoint.shunned { ", " span class="bad" { "avoided for a moment" } }
            }
            td class="number" { (endpoint.calls_in_flight) }
            td class="number" { (endpoint.connections) }
            td class="still" { (breaker(endpoint.breaker.as_ref())) }
        }
    }
}

fn breaker(state: Option<&BreakerState>) -> Markup {
    let Some(state) = state else { return html! {} };
    let (class, name) = match state.state() {
        breaker_state::State::Open => ("bad", "open"),
        breaker_state::State::HalfOpen => ("bad", "half-open"),
        _ => ("good", "closed"),
    };
    html! {
        span class=(class) { (name) }
        span class="soft" {
            @if state.calls > 0 { " · " (state.failures) " of " (count(state.calls, "call")) " failed" }
            @if state.slow_calls > 0 { ", " (state.slow_calls) " slow" }
            @if state.consecutive_failures > 1 { ", " (state.consecutive_failures) " in a row" }
            @if state.times_opened > 0 {
                " · opened " (count(state.times_opened, "time")) ", refused " (count(state.calls_refused, "call"))
            }
        }
    }
}
