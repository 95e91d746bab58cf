//! Limits, memory, profile, log and configuration.

use maud::{Markup, html};
use weft_contracts::weft::admin::v1::{
    Limit, Log, Memory, Setting, limit::Use, live_call::Direction, memory, setting::Origin,
};

use super::text::{bytes, count, of_message, readable};
use crate::control::admin::limits::share;

pub(super) fn limits(limits: &[Limit]) -> Markup {
    let (counted, others): (Vec<&Limit>, Vec<&Limit>) =
        limits.iter().partition(|limit| limit.r#use.is_some() || limit.times_reached.is_some());
    html! {
        h2 id="limits" { "Limits" }
        p class="soft" {
            "The most used first. A limit per worker, connection or endpoint shows the one that uses most of it."
        }
        div class="wide" { table {
            thead { tr {
                th { "Limit" } th { "In use" } th class="number" { "now" } th class="number" { "highest" }
                th class="number" { "of" } th class="number" { "Reached" } th { "What it is" }
            } }
            tbody { @for limit in counted { (limit_row(limit)) } }
        } }
        details {
            summary { "Other limits: times, rates, and limits of single things" }
            div class="wide" { table {
                thead { tr { th { "Limit" } th { "Value" } th { "What it is" } } }
                tbody { @for limit in others {
                    tr { td { code { (limit.name) } } td { code { (limit.value) } } td { (limit.why) } }
                } }
            } }
        }
    }
}

fn limit_row(limit: &Limit) -> Markup {
    let amount = |amount: u64| if limit.name.contains("BYTES") { bytes(amount) } else { amount.to_string() };
    let Use { now, of, highest } = limit.r#use.unwrap_or_default();
    html! {
        tr id=(format!("limit-{}", limit.name)) {
            td { code { (limit.name) } }
            @if limit.r#use.is_some() {
                td { meter min="0" max="1" high="0.8" value=(format!("{:.4}", share(limit))) { (now) " of " (of) } }
                td class="number" { (amount(now)) }
                td class="number" { @match highest { Some(highest) => (amount(highest)), None => span class="soft" { "–" } } }
                td class="number" { (amount(of)) }
            } @else {
                td {} td {} td {} td class="number" { code { (limit.value) } }
            }
            td class="number" { @match limit.times_reached {
                Some(0) => span class="good" { "never" },
                Some(times) => span class="bad" { (count(times, "time")) },
                None => span class="soft" { "–" },
            } }
            td { (limit.why) }
        }
    }
}

pub(super) fn memory(memory: Option<&Memory>) -> Markup {
    let accounts = memory.map(|memory| &*memory.accounts).unwrap_or_default();
    html! {
        h2 id="memory" { "Memory" }
        @if let Some(resident) = memory.and_then(|memory| memory.resident.as_ref()) { (resident_line(resident)) }
        div class="wide" { table {
            thead { tr { th { "Counted by the sidecar" } th class="number" { "Bytes" } th { "What it is" } } }
            tbody { @for account in accounts {
                tr { td { (account.name) } td class="number" { (bytes(account.bytes)) } td { (account.what) } }
            } }
        } }
        @if let Some(memory) = memory.filter(|memory| !memory.holders.is_empty()) { (holders(&memory.holders)) }
        p class="soft" { "The rest is code, stacks, TLS sessions, calls, and what the allocator keeps for reuse." }
    }
}

/// The peers that hold most of the bytes under way.
fn holders(holders: &[memory::Holder]) -> Markup {
    html! {
        div class="wide" { table {
            thead { tr { th { "Under way for" } th { "Role" } th class="number" { "Bytes" } } }
            tbody { @for holder in holders {
                tr {
                    td { (holder.peer) }
                    td { @if holder.direction() == Direction::Inbound { "caller" } @else { "callee" } }
                    td class="number" { (bytes(holder.bytes)) }
                }
            } }
        } }
    }
}

fn resident_line(resident: &memory::Resident) -> Markup {
    html! {
        p {
            (bytes(resident.resident_bytes)) " are resident: " (bytes(resident.anonymous_bytes)) " heap and stacks, "
            (bytes(resident.file_bytes)) " code and files; the peak was " (bytes(resident.peak_bytes)) "."
            @if resident.swapped_bytes > 0 { " " span class="bad" { (bytes(resident.swapped_bytes)) " are swapped out." } }
        }
    }
}

pub(super) fn profile() -> Markup {
    let link = |query: &str| html! { a href=(format!("/profile/cpu?{query}")) { "/profile/cpu?" (query) } };
    html! {
        h2 id="profile" { "Profile" }
        p { "A CPU profile of 10 s: " (link("format=svg")) " as a flame graph." }
        p class="soft" {
            "For programs: " (link("format=pprof")) " for pprof, " (link("format=collapsed")) " as lines; "
            code { "seconds=N" } " for another time."
        }
    }
}

pub(super) fn log(log: Option<&Log>) -> Markup {
    let log = log.cloned().unwrap_or_default();
    html! {
        h2 id="log" { "Log" }
        p {
            "The filter is " code { (log.filter) }
            @if let Some(left) = of_message(log.left) { ", for another " (readable(left)) }
            @if log.filter != log.filter_at_start { span class="soft" { " · at the start: " code { (log.filter_at_start) } } }
        }
        form method="post" action="/log" {
            input name="filter" value=(log.filter) size="32" aria-label="filter" required;
            " for " input name="for" value="5m" size="5" aria-label="time"; " "
            button { "Change" }
        }
        p class="soft" {
            "Levels: off, error, warn, info, debug, trace; for one part: " code { "info,weft_sidecar=debug" }
            ". Without a time, the filter stays until the sidecar ends."
        }
    }
}

pub(super) fn configuration(settings: &[Setting]) -> Markup {
    html! {
        h2 id="configuration" { "Configuration" }
        div class="wide" { table {
            thead { tr { th { "Flag" } th { "Value" } th { "From" } th { "Variable" } } }
            tbody { @for setting in settings { tr {
                td class="still" { code { (setting.name) } }
                td { @if setting.value.is_empty() { span class="soft" { "–" } } @else { code { (setting.value) } } }
                td { @match setting.origin() {
                    Origin::Flag => "the flag",
                    Origin::Environment => "the environment",
                    Origin::Default | Origin::Unspecified => span class="soft" { "default" },
                } }
                td { code class="soft" { (setting.variable) } }
            } } }
        } }
    }
}
