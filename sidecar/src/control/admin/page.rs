//! The page on the admin port: the state for people, without scripts.

mod calls;
mod services;
mod settings;
mod text;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use weft_contracts::weft::{
    admin::v1::{Identity, State, Worker},
    discovery::v1::Health,
};

use super::state::left_of;
use text::{count, of_message, readable};

/// How often the page `/?refresh` refreshes.
const REFRESH_SECONDS: u32 = 5;

const STYLE: &str = "\
    :root{color-scheme:light dark;--text:#1c2430;--soft:#5b6675;--line:#dde2e9;--back:#fff;--good:#11733b;--bad:#b3261e;\
    --link:#1a5fb4}\
    @media(prefers-color-scheme:dark){:root{--text:#e3e7ed;--soft:#9aa5b4;--line:#333c48;--back:#14181e;--good:#5cc98b;\
    --bad:#ff8a80;--link:#8ab8f0}}\
    body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem auto 4rem;max-width:76rem;padding:0 1rem;color:var(--text);\
    background:var(--back)}a{color:var(--link)}\
    h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .5rem;scroll-margin-top:3rem}\
    h3{font-size:1rem;margin:1.4rem 0 .2rem}p{margin:.3rem 0}\
    nav{position:sticky;top:0;background:var(--back);padding:.5rem 0;border-bottom:1px solid var(--line)}\
    nav a{margin-right:1rem;display:inline-block}.wide{overflow-x:auto}\
    table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
    th,td{text-align:left;padding:.3rem 1.2rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}\
    thead th{font-weight:600;color:var(--soft);white-space:nowrap}th[scope]{font-weight:600;color:var(--soft);width:9rem}\
    .number{text-align:right;white-space:nowrap}.still{white-space:nowrap}code{font-size:.92em;overflow-wrap:anywhere}\
    .wide code{overflow-wrap:normal}\
    .good{color:var(--good)}.bad{color:var(--bad)}.soft{color:var(--soft)}meter{width:6rem}\
    input{font:inherit;padding:.15rem .4rem}button{font:inherit;padding:.15rem .8rem}form{margin:.6rem 0}\
    summary{cursor:pointer;margin:.8rem 0 .4rem}";

/// Renders the state. With `refreshes` the page refreshes by itself.
pub(super) fn render(state: &State, refreshes: bool) -> Markup {
    let title = if state.service.is_empty() { "Weft sidecar" } else { &state.service };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if refreshes { meta http-equiv="refresh" content=(REFRESH_SECONDS); }
                title { (title) " · Weft sidecar" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p class="soft" {
                    "Weft sidecar " (state.version) " · the same as JSON: " a href="/state" { "/state" } " · "
                    @if refreshes { a href="/" { "don't refresh" } }
                    @else { a href="/?refresh" { "refresh every " (REFRESH_SECONDS) " s" } }
                }
                nav {
                    a href="#calls" { "Calls" } a href="#services" { "Services" } a href="#limits" { "Limits" }
                    a href="#memory" { "Memory" } a href="#profile" { "Profile" } a href="#log" { "Log" }
                    a href="#configuration" { "Configuration" }
                }
                (overview(state))
                (calls::section(state))
                (services::section(&state.services))
                (settings::limits(&state.limits))
                (settings::memory(state.memory.as_ref()))
                (settings::profile())
                (settings::log(state.log.as_ref()))
                (settings::configuration(&state.configuration))
            }
        }
    }
}

fn overview(state: &State) -> Markup {
    html! {
        table {
            tr { th scope="row" { "Ready" } td { @match &*state.unready_reason {
                "" => span class="good" { "yes" },
                reason => span class="bad" { "no: " (reason) },
            } } }
            tr { th scope="row" { "Identity" } td { (identity(state.identity.as_ref())) } }
            tr { th scope="row" { "Control plane" } td {
                @if state.control_plane_connected { span class="good" { "connected" } }
                @else { span class="bad" { "not connected" } ": what is known stays in use" }
            } }
            @if !state.service.is_empty() {
                tr { th scope="row" { "Local service" } td { (health(state.local_health())) } }
            }
            @if let Some(uptime) = of_message(state.uptime) {
                tr { th scope="row" { "Up for" } td { (readable(uptime)) } }
            }
            @for worker in &state.workers {
                tr { th scope="row" { "Worker " (worker.index) } td { (worker_line(worker)) } }
            }
        }
    }
}

fn worker_line(worker: &Worker) -> Markup {
    html! {
        @if worker.answered {
            (count(worker.calls, "call")) ", " (count(worker.connections_accepted, "connection")) " accepted, "
            (worker.connections_made) " made"
        } @else {
            span class="bad" { "did not answer in time" } ": its calls and connections are not shown"
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
                    Some(left) => { "valid for another " (readable(left)) },
                    None => span class="bad" { "expired" },
                }
            }
        }
    }
}

fn health(health: Health) -> Markup {
    let (class, name) = match health {
        Health::Up => ("good", "up"),
        Health::Down => ("bad", "down"),
        Health::Draining => ("soft", "draining"),
        Health::Unspecified => ("soft", "not known yet"),
    };
    html! { span class=(class) { (name) } }
}

#[cfg(test)]
mod tests {
    use weft_contracts::weft::admin::v1::{
        BreakerState, Limit, LiveCall, LiveCalls, Log, Setting, WatchedService, limit::Use, setting,
    };

    use super::*;

    #[test]
    fn the_page_shows_an_open_breaker_and_escapes_names() {
        let state = State {
            service: "users.shop".into(),
            unready_reason: "no identity".into(),
            services: vec![WatchedService {
                name: "<orders>".into(),
                breaker: Some(BreakerState { state: 2, times_opened: 3, ..Default::default() }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let page = render(&state, false).into_string();
        assert!(page.contains("&lt;orders&gt;"), "{page}");
        assert!(page.contains(r#"<span class="bad">open</span>"#), "{page}");
        assert!(page.contains("no: no identity") && !page.contains("http-equiv"), "{page}");
    }

    #[test]
    fn text_from_callers_is_escaped_everywhere() {
        let evil = "\"><script>".to_owned();
        let call = LiveCall { method: evil.clone(), service: evil.clone(), peer: evil.clone(), ..Default::default() };
        let state = State {
            calls: Some(LiveCalls { total: 7, oldest: vec![call] }),
            log: Some(Log { filter: evil.clone(), ..Default::default() }),
            configuration: vec![Setting { value: evil, origin: setting::Origin::Flag.into(), ..Default::default() }],
            ..Default::default()
        };
        let page = render(&state, true).into_string();
        assert!(!page.contains("<script") && page.contains("&gt;&lt;script&gt;"), "{page}");
        assert!(page.contains("7 calls run"), "{page}");
    }

    #[test]
    fn a_limit_shows_its_use() {
        let limit = Limit {
            name: "REPLAY_BYTES".into(),
            r#use: Some(Use { now: 1 << 20, of: 16 << 20, highest: Some(2 << 20) }),
            times_reached: Some(3),
            ..Default::default()
        };
        let page = render(&State { limits: vec![limit], ..Default::default() }, false).into_string();
        for part in ["1.0 MB", "16 MB", "2.0 MB", "3 times"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}
