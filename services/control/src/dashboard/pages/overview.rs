//! The overview: the services of the mesh, their contracts, and the latest traces.

use std::collections::BTreeSet;

use maud::{Markup, html};
use weft_contracts::weft::{
    discovery::v1::{Endpoint, Health, Service},
    policy::v1::{Breaker, Contract, Method, Origin, ServicePolicy},
};
use weft_mesh::errors::GRPC_CODES;

use super::{Tab, page, store_line, trace_table};
use crate::{
    dashboard::{
        Contest, NotAllowed,
        format::{self, count, setting},
        words::{self, nano},
    },
    traces::{Counts, Summary},
};

/// The parts of the mesh that are shown.
#[derive(Clone, Copy)]
pub(in crate::dashboard) struct Mesh<'a> {
    pub(in crate::dashboard) services: &'a [Service],
    pub(in crate::dashboard) contests: &'a [Contest],
    pub(in crate::dashboard) not_allowed: &'a [NotAllowed],
}

/// `/`
pub(in crate::dashboard) fn overview(
    Mesh { services, contests, not_allowed }: Mesh<'_>,
    latest: &[Summary],
    traced: &BTreeSet<String>,
    counts: Counts,
) -> Markup {
    let endpoints = services.iter().map(|service| service.endpoints.len()).sum();
    let up = services.iter().flat_map(|service| &service.endpoints).filter(|e| e.health() == Health::Up).count();
    page(
        "Overview",
        Tab::Overview,
        html! {
            h1 { "Overview" }
            div #live {
                @if services.is_empty() {
                    section.empty {
                        h2 { "No service yet" }
                        p { "A service appears here as soon as its sidecar has announced it." }
                    }
                } @else {
                    p.facts {
                        span { b { (services.len()) } " " (plural(services.len(), "service")) }
                        span { b { (up) } " of " (count(endpoints, "endpoint")) " up" }
                        @if services.iter().any(|service| !service.complete) {
                            span { "the control plane has just started: announcements are still coming in" }
                        }
                    }
                    div.cards { @for service in services { (card(service)) } }
                }
                (contested(contests))
                (refused(not_allowed))
                h2 { "Latest traces" }
                @if latest.is_empty() {
                    section.empty { p { "None yet. Make a call through the mesh, and its trace appears here a moment later." } }
                } @else {
                    (trace_table(latest, traced))
                    p { a href="/traces" { "All traces" } }
                }
                (store_line(counts))
            }
        },
    )
}

/// Claims that were refused: an attack, or two services with the same contract or address.
fn contested(contests: &[Contest]) -> Markup {
    html! {
        @if !contests.is_empty() {
            h2 { "Contested claims" }
            table.methods {
                thead { tr { th { "Claim" } th { "Belongs to" } th { "Refused to" } } }
                tbody {
                    @for contest in contests {
                        tr {
                            td { code { (contest.claim) } }
                            td { code { (contest.owner) } }
                            td { span.error { "✕ " } code { (contest.claimant) } }
                        }
                    }
                }
            }
            p.sub { "To let another identity have a claim: weft identity release CLAIM" }
        }
    }
}

/// Calls that the rules for who may call do not allow.
fn refused(calls: &[NotAllowed]) -> Markup {
    html! {
        @if !calls.is_empty() {
            h2 { "Calls that are not allowed" }
            table.methods {
                thead { tr { th { "Caller" } th { "Service" } th { "Method" } th { "Rule" } th { "Calls" } th { "" } } }
                tbody {
                    @for row in calls {
                        tr {
                            td { code { (row.caller) } }
                            td { code { (row.service) } }
                            td { @if !row.method.is_empty() { code { (row.method) } } }
                            td { (row.rule) }
                            td { (row.calls) }
                            td {
                                @if row.audit { "went on: the rule is only tried" }
                                @else { span.error { "✕ refused" } }
                            }
                        }
                    }
                }
            }
            p.sub { "To see why: weft access explain CALLER CALLED" }
        }
    }
}

fn plural(number: usize, noun: &'static str) -> String {
    if number == 1 { noun.to_owned() } else { format!("{noun}s") }
}

fn card(service: &Service) -> Markup {
    // Spans have the service's name without its namespace.
    let (name, namespace) = service.name.split_once('.').unwrap_or((&service.name, ""));
    let policy = service.policy.as_ref();
    html! {
        section.card {
            header {
                h2 { (name) @if !namespace.is_empty() { span.sub { "." (namespace) } } }
                span.tag { (words::protocol(service.protocol())) }
                a href={ "/traces?service=" (format::query(name)) } { "traces" }
            }
            @if service.endpoints.is_empty() { p.error { "✕ no endpoint" } }
            ul.endpoints { @for endpoint in &service.endpoints { (self::endpoint(endpoint)) } }
            @if let Some(policy) = policy {
                @for contract in &policy.contracts { (self::contract(contract)) }
                @if policy.contracts.is_empty() { p.sub { "No contract announced." } }
                (breaker_line(policy))
            }
        }
    }
}

fn endpoint(endpoint: &Endpoint) -> Markup {
    let health = endpoint.health();
    let sign = match health {
        Health::Up => "●",
        Health::Down => "✕",
        Health::Draining => "◐",
        Health::Unspecified => "?",
    };
    html! {
        li title={ (endpoint.spiffe_id) " · " (endpoint.id) } {
            span.health.(words::health(health)) {
                (sign) " " (words::health(health)) @if endpoint.silent { ", not heard from" }
            }
            " " code { (endpoint.address) }
            " " span.sub.identity { (endpoint.spiffe_id) }
        }
    }
}

fn contract(contract: &Contract) -> Markup {
    html! {
        details.contract id={ "contract-" (contract.name) } {
            summary { code { (contract.name) } " " span.sub { (count(contract.methods.len(), "method")) } }
            table.methods {
                thead { tr { th { "Method" } th { "Timeout" } th { "Idempotency" } } }
                tbody { @for method in &contract.methods { (self::method(method)) } }
            }
        }
    }
}

fn method(method: &Method) -> Markup {
    let streams = match (method.client_streaming, method.server_streaming) {
        (false, false) => None,
        (true, false) => Some("client streams"),
        (false, true) => Some("server streams"),
        (true, true) => Some("both stream"),
    };
    html! {
        tr {
            td {
                code { (method.name) }
                @if let Some(streams) = streams { " " span.tag { (streams) } }
                @if let Some(to) = words::fallback(method.fallback.as_ref()) {
                    " " span.tag title="What answers a call that the service cannot take" { "fallback: " (to) }
                }
                @if let Some(after) = method.hedge.as_ref().and_then(|hedge| hedge.after.as_ref()) {
                    " " span.tag title="When a call is sent to another endpoint as well" {
                        "hedge: after " (setting(nano(after)))
                    }
                }
            }
            td {
                @match method.timeout.as_ref() {
                    Some(timeout) => {
                        (timeout.value.as_ref().map(|value| setting(nano(value))).unwrap_or_default())
                        " " (origin(timeout.origin()))
                    }
                    None => span.sub { "the caller's" }
                }
            }
            td { (words::idempotency(method.idempotency())) }
        }
    }
}

fn code_name(code: u32) -> &'static str {
    GRPC_CODES.get(code as usize).copied().unwrap_or("an unknown code")
}

fn breaker_line(policy: &ServicePolicy) -> Markup {
    let text = |breaker: &Breaker| {
        let time = |value: &Option<prost_types::Duration>| value.as_ref().map(|d| setting(nano(d))).unwrap_or_default();
        let slow = breaker.slow_call.as_ref().map_or_else(String::new, |slow_call| {
            format!(", or {:.0} % slower than {}", slow_call.ratio * 100.0, time(&slow_call.longer_than))
        });
        format!(
            "{} failures in a row, or {:.0} % of {} or more calls in {}{slow}; open for {}, then {}; failures are {}",
            breaker.consecutive_failures,
            breaker.failure_ratio * 100.0,
            breaker.minimum_calls,
            time(&breaker.window),
            time(&breaker.open_for),
            count(breaker.probes as usize, "probe"),
            breaker.failure_codes.iter().map(|code| code_name(*code)).collect::<Vec<_>>().join(", "),
        )
    };
    html! {
        @if let Some(breaker) = &policy.breaker {
            p.breaker { b { "Breaker" } " " (text(breaker)) " " (origin(breaker.origin())) }
        }
        @if !policy.method_policy.is_empty() {
            p.breaker { b { "MethodPolicy" } " " (policy.method_policy) }
        }
    }
}

fn origin(origin: Origin) -> Markup {
    html! { span.tag.origin title="The origin of the value" { (words::origin(origin)) } }
}
