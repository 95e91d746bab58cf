//! The page on the admin port.

use std::time::Duration;

use maud::{DOCTYPE, Markup, html};
use weft_contracts::weft::{
    admin::v1::{BreakerState, EndpointState, Identity, State, WatchedService, breaker_state},
    discovery::v1::Health,
};
use weft_mesh::limits;

use super::state::left_of;

const STYLE: &str = "\
    body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c2430}\
    h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}\
    table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
    th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #dde2e9;vertical-align:top}\
    th{font-weight:600;color:#556}code{font-size:.92em}.good{color:#11733b}.bad{color:#b3261e}.muted{color:#667}";

/// Renders the state; `unready` says why the sidecar can't do its work yet.
pub(super) fn render(state: &State, unready: Option<&str>) -> Markup {
    let title = if state.service.is_empty() { "Weft sidecar" } else { &state.service };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) " · Weft sidecar" }
                style { (maud::PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p class="muted" { "Weft sidecar " (state.version) " · the same as JSON: " a href="/state" { "/state" } }
                (overview(state, unready))
                h2 { "Services that it calls" }
                @if state.services.is_empty() { p class="muted" { "None yet: a service is watched from its first call on." } }
                @for service in &state.services { (watched(service)) }
                h2 { "Limits" }
                (limits_table())
            }
        }
    }
}

fn overview(state: &State, unready: Option<&str>) -> Markup {
    html! {
        table {
            tr { th { "Ready" } td { @match unready {
                None => span class="good" { "yes" },
                Some(reason) => span class="bad" { "no: " (reason) },
            } } }
            tr { th { "Identity" } td { (identity(state.identity.as_ref())) } }
            tr { th { "Control plane" } td {
                @if state.control_plane_connected { span class="good" { "connected" } }
                @else { span class="bad" { "not connected" } ": what is known stays in use" }
            } }
            @if !state.service.is_empty() {
                tr { th { "Local service" } td { (health(state.local_health())) } }
            }
            @if let Some(uptime) = state.uptime.and_then(|uptime| Duration::try_from(uptime).ok()) {
                tr { th { "Up for" } td { (readable(uptime)) } }
            }
        }
    }
}

fn identity(identity: Option<&Identity>) -> Markup {
    html! {
        @match identity {
            None => span class="bad" { "none yet" },
            Some(identity) => {
                code { (identity.spiffe_id) } ", "
                @match left_of(identity) {
                    Some(left) => { "good for another " (readable(left)) },
                    None => span class="bad" { "expired" },
                }
            }
        }
    }
}

fn watched(service: &WatchedService) -> Markup {
    let version = service.version.unwrap_or_default();
    html! {
        h3 { (service.name) " " small class="muted" { "version " (version.counter) " of epoch " (version.epoch) } }
        p { "Breaker: " (breaker(service.breaker.as_ref())) }
        @if service.endpoints.is_empty() { p class="bad" { "It has no endpoint." } }
        @else {
            table {
                tr {
                    th { "Endpoint" } th { "Address" } th { "Health" } th { "Calls" } th { "Connections" } th { "Breaker" }
                }
                @for endpoint in &service.endpoints { (endpoint_row(endpoint)) }
            }
        }
    }
}

fn endpoint_row(endpoint: &EndpointState) -> Markup {
    html! {
        tr {
            td { code title=(endpoint.spiffe_id) { (endpoint.id) } }
            td { (endpoint.address) }
            td { (health(endpoint.health())) }
            td { (endpoint.calls_in_flight) }
            td { (endpoint.connections) }
            td { (breaker(endpoint.breaker.as_ref())) }
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
        span class="muted" {
            " · " (state.failures) " of " (state.calls) " calls failed, " (state.consecutive_failures) " in a row"
            " · opened " (state.times_opened) " times, refused " (state.calls_refused) " calls"
        }
    }
}

fn health(health: Health) -> Markup {
    let (class, name) = match health {
        Health::Up => ("good", "up"),
        Health::Down => ("bad", "down"),
        Health::Draining => ("muted", "draining"),
        Health::Unspecified => ("muted", "not known yet"),
    };
    html! { span class=(class) { (name) } }
}

fn limits_table() -> Markup {
    html! {
        table {
            tr { th { "Limit" } th { "Value" } th { "Why" } }
            @for limit in limits::ALL {
                tr { td { code { (limit.name) } } td { code { (limit.value) } } td { (limit.why) } }
            }
        }
    }
}

/// `3 h 20 min`, `45 s`
fn readable(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_an_open_breaker_and_escapes_names() {
        let state = State {
            service: "users.shop".into(),
            services: vec![WatchedService {
                name: "<orders>".into(),
                breaker: Some(BreakerState { state: 2, times_opened: 3, ..Default::default() }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let page = render(&state, Some("no identity")).into_string();
        assert!(page.contains("&lt;orders&gt;"), "{page}");
        assert!(page.contains(r#"<span class="bad">open</span>"#), "{page}");
        assert!(page.contains("no: no identity") && page.contains("SPANS_QUEUED"), "{page}");
    }

    #[test]
    fn durations_are_readable() {
        let read = |seconds| readable(Duration::from_secs(seconds));
        assert_eq!([read(7), read(61), read(24 * 3600 + 60)], ["7 s", "1 min 1 s", "24 h 1 min"]);
    }
}
