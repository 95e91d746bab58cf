//! The running calls.

use maud::{Markup, html};
use weft_contracts::weft::admin::v1::{
    LiveCall, State,
    live_call::{Direction, Progress},
};

use super::text::{bytes, count, of_message, readable};

/// The most calls that the page shows; the JSON has more.
const ROWS: usize = 100;

pub(super) fn section(state: &State) -> Markup {
    let calls = state.calls.clone().unwrap_or_default();
    let shown = calls.oldest.len().min(ROWS);
    html! {
        h2 id="calls" { "Calls" }
        @if calls.total == 0 { p class="soft" { "No call runs at the moment." } }
        @else {
            p {
                (count(calls.total, "call")) @if calls.total == 1 { " runs." } @else { " run." }
                @if (shown as u32) < calls.total {
                    span class="soft" { " These are the oldest " (shown) "; " a href="/state" { "/state" } " has more." }
                }
            }
            div class="wide" { table {
                thead { tr {
                    th class="number" { "Age" } th { "Method" } th { "From" } th { "To" } th { "State" }
                    th class="number" { "Time left" } th class="number" { "Request" } th class="number" { "Answer" }
                } }
                tbody { @for call in &calls.oldest[..shown] { (row(call)) } }
            } }
        }
    }
}

fn row(call: &LiveCall) -> Markup {
    let is_inbound = call.direction() == Direction::Inbound;
    html! {
        tr {
            td class="number" { @if let Some(age) = of_message(call.age) { (readable(age)) } }
            td {
                @if call.method.is_empty() { span class="soft" { "not known yet" } } @else { code { (call.method) } }
            }
            td class="still" { (call.peer) @if is_inbound { " " span class="soft" { "inbound" } } }
            td class="still" title=(call.address) {
                (call.service)
                @if !call.endpoint.is_empty() { br; code class="soft" { (call.endpoint) } }
            }
            td { (progress(call)) }
            td class="number" {
                @match of_message(call.deadline_left) {
                    Some(left) => (readable(left)),
                    None => span class="soft" { "no deadline" },
                }
            }
            td class="number" { (bytes(call.request_bytes)) }
            td class="number" { (bytes(call.response_bytes)) }
        }
    }
}

fn progress(call: &LiveCall) -> Markup {
    let text = match call.progress() {
        Progress::Routing => "asking discovery",
        Progress::Connecting => "waiting for a connection",
        Progress::AwaitingAnswer => "waiting for an answer",
        Progress::Answering => "being answered",
        Progress::Unspecified => "",
    };
    html! {
        span class="still" { (text) }
        @if call.tries > 1 { br; span class="bad" { "try " (call.tries) } }
    }
}
