//! A trace as a waterfall: one row for each span, with a bar for its time and details that can be opened.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::{Colours, Tab, error_tag, moment, page, service_name, service_tag};
use crate::{
    dashboard::format::{count, duration, percent, short},
    traces::{Attributes, Component, Kind, Parent, Row, Span, StatusCode, Stored, TraceId, Tree},
};

/// Deeper rows are not indented further.
const DEEPEST: usize = 12;
/// The marks of the time axis, in percent of the whole.
const MARKS: [u64; 5] = [0, 25, 50, 75, 100];

/// `/traces/{id}`
pub(in crate::dashboard) fn trace(stored: &Stored, services: &BTreeSet<String>) -> Markup {
    let tree = Tree::new(stored);
    let own = tree.shares.iter().map(|share| share.service.as_str()).collect();
    let colours = Colours::new(services, own);
    let first = tree.rows.first();
    let name = first.map_or("", |row| row.span.name.as_str());
    let not_seen = tree.rows.iter().filter(|row| matches!(row.parent, Parent::NotSeen(_))).count();
    page(
        short(name),
        Tab::Traces,
        html! {
            div #live data-revision=(tree.rows.len()) {
                h1 title=(name) { (short(name)) " " (error_tag(tree.errors)) }
                p.facts {
                    span { b { (duration(tree.duration_nano)) } }
                    span { (count(tree.rows.len(), "span")) }
                    span { (moment(tree.start_unix_nano)) }
                    span.id { (stored.id) }
                    a href={ "/api/traces/" (stored.id) } { "JSON" }
                }
                @if not_seen > 0 {
                    p.note { "▲ The parent of " (count(not_seen, "span")) " was not seen: it may not have arrived yet, may \
                              not be sampled, or its process sends spans elsewhere." }
                }
                @if stored.refused > 0 {
                    p.note { "▲ " (count(stored.refused as usize, "span")) " of this trace were refused: the trace was full." }
                }
                (shares(&tree, &colours))
                section.waterfall {
                    (axis(&tree))
                    @for row in &tree.rows { (span_row(row, &tree, stored.id, &colours)) }
                }
                p.legend {
                    span.c0 { (swatch(false)) " service" }
                    span.c0 { (swatch(true)) " its sidecar" }
                    span { "✕ ended in an error" }
                    span { "│ a mark in a bar is an event" }
                    span { "Open a row to see all of its span." }
                }
            }
        },
    )
}

fn swatch(sidecar: bool) -> Markup {
    html! {
        svg width="26" height="12" aria-hidden="true" { rect.bar.side[sidecar] x="1" y="1" width="24" height="10" rx="2" {} }
    }
}

/// Where the time was spent: one bar, and the part of each service and sidecar in numbers.
fn shares(tree: &Tree, colours: &Colours) -> Markup {
    let whole: u64 = tree.shares.iter().map(|share| share.self_nano).fold(0, u64::saturating_add);
    let mut at = 0.0;
    let parts: Vec<_> = tree
        .shares
        .iter()
        .map(|share| {
            let width = percent(share.self_nano, whole);
            let part = (share, at, width, colours.class(&share.service));
            at += width;
            part
        })
        .collect();
    html! {
        section.shares {
            h2 { "Where the time went" }
            svg width="100%" height="18" role="img" aria-label="Each service's part of the time" {
                @for (share, at, width, colour) in &parts {
                    g.(colour) {
                        rect.bar.side[share.component == Component::Sidecar] x={ (format!("{at:.3}")) "%" } y="1" height="16"
                            width={ (format!("{width:.3}")) "%" } {
                            title { (share.service) " " (share.component.as_str()) ": " (duration(share.self_nano)) }
                        }
                    }
                }
            }
            ul {
                @for (share, _, width, _) in &parts {
                    li {
                        (service_tag(&share.service, share.component, colours))
                        " " b { (duration(share.self_nano)) } " " span.sub { (format!("{width:.0} %")) }
                    }
                }
            }
        }
    }
}

fn axis(tree: &Tree) -> Markup {
    html! {
        div.axis aria-hidden="true" {
            span {}
            svg width="100%" height="22" {
                @for mark in MARKS {
                    @let anchor = match mark { 0 => "start", 100 => "end", _ => "middle" };
                    text x={ (mark) "%" } y="15" text-anchor=(anchor) {
                        (duration((u128::from(tree.duration_nano) * u128::from(mark) / 100) as u64))
                    }
                }
            }
        }
    }
}

fn span_row(row: &Row, tree: &Tree, trace: TraceId, colours: &Colours) -> Markup {
    let span = &*row.span;
    let depth = row.depth.min(DEEPEST);
    html! {
        details.span.bad[span.is_error()] id={ "s-" (span.id) } {
            summary {
                span.label.{ "d" (depth) } {
                    @if span.is_error() { span.error title="ended in an error" { "✕" span.hidden { " error" } } " " }
                    @if matches!(row.parent, Parent::NotSeen(_)) { span.note title="its parent was not seen" { "▲" } " " }
                    (service_name(&span.resource.service, span.resource.component, colours))
                    " " span.tag.kind { (role(row)) }
                    " " span.name title=(span.name) { @if span.name.is_empty() { "(no name)" } @else { (short(&span.name)) } }
                }
                (bar(span, tree, colours))
            }
            (details(row, tree, trace))
        }
    }
}

/// The role of a span: a sidecar's spans are the hops of a call.
fn role(row: &Row) -> &'static str {
    let above = |component, kind| match &row.parent {
        Parent::Seen(parent) => {
            parent.resource.component == component
                && parent.kind == kind
                && parent.resource.service == row.span.resource.service
        }
        _ => false,
    };
    match (row.span.resource.component, row.span.kind) {
        (Component::Sidecar, Kind::Server) => "sidecar in",
        (Component::Sidecar, Kind::Client) if above(Component::Sidecar, Kind::Client) => "sidecar attempt",
        (Component::Sidecar, Kind::Client) => "sidecar out",
        (Component::Sidecar, _) => "sidecar",
        (_, kind) => kind.as_str(),
    }
}

/// A span's bar, with marks for its events, and its duration beside or inside it, where there is room.
fn bar(span: &Span, tree: &Tree, colours: &Colours) -> Markup {
    let place = |unix_nano: u64| percent(unix_nano.saturating_sub(tree.start_unix_nano), tree.duration_nano).min(100.0);
    let (from, to) = (place(span.start_unix_nano), place(span.end_unix_nano()));
    let (text_at, anchor, shift) = match (from, to) {
        (_, ..82.0) => (to, "start", 6),
        (18.0.., _) => (from, "end", -6),
        _ => (to, "end", -8),
    };
    let inside = to >= 82.0 && from < 18.0;
    let sidecar = span.resource.component == Component::Sidecar;
    html! {
        svg.lane.(colours.class(&span.resource.service)) width="100%" height="26" role="img"
            aria-label={ (duration(span.duration_nano)) " from " (duration(span.start_unix_nano - tree.start_unix_nano)) } {
            @for mark in &MARKS[1..4] { line.grid x1={ (mark) "%" } x2={ (mark) "%" } y1="0" y2="26" {} }
            rect.bar.side[sidecar].bad[span.is_error()] x={ (format!("{from:.3}")) "%" } y="5" height="16" rx="2"
                width={ (format!("{:.3}", (to - from).max(0.15))) "%" } {}
            @for event in &span.events {
                @let at = format!("{:.3}%", place(event.time_unix_nano));
                line.event x1=(at) x2=(at) y1="3" y2="23" { title { (event.name) } }
            }
            text.inside[inside].on-side[inside && sidecar] x={ (format!("{text_at:.3}")) "%" } dx=(shift) y="17" text-anchor=(anchor) {
                @if span.is_error() { "✕ " } (duration(span.duration_nano))
            }
        }
    }
}

fn details(row: &Row, tree: &Tree, trace: TraceId) -> Markup {
    let span = &*row.span;
    let offset = |unix_nano: u64| match unix_nano.checked_sub(tree.start_unix_nano) {
        Some(after) => format!("+{}", duration(after)),
        None => format!("−{}", duration(tree.start_unix_nano - unix_nano)),
    };
    html! {
        div.details {
            @if span.is_error() || !span.status.message.is_empty() {
                p.status.error[span.is_error()] {
                    @if span.is_error() { "✕ " }
                    b { (span.status.code.as_str()) }
                    @if !span.status.message.is_empty() { ": " (span.status.message) }
                }
            }
            dl {
                dt { "name" } dd { (span.name) }
                dt { "kind" } dd { (span.kind.as_str()) }
                dt { "started" } dd { (offset(span.start_unix_nano)) " · " (moment(span.start_unix_nano)) }
                dt { "took" } dd { (duration(span.duration_nano)) ", without its children " (duration(row.self_nano)) }
                dt { "span" } dd { a.id href={ "#s-" (span.id) } { (span.id) } }
                dt { "parent" } dd {
                    @match &row.parent {
                        Parent::None => "none: it started the trace",
                        Parent::Seen(parent) => {
                            a.id href={ "#s-" (parent.id) } { (parent.id) } " " (short(&parent.name))
                        }
                        Parent::NotSeen(id) => { span.id { (id) } " " span.note { "▲ parent not seen" } }
                    }
                }
                @if span.status.code == StatusCode::Ok { dt { "status" } dd { "ok" } }
                @if span.dropped > 0 { dt { "dropped" } dd { (span.dropped) " attributes, events or links" } }
            }
            @if !span.attributes.is_empty() { h3 { "Attributes" } (attributes(&span.attributes)) }
            (events(span, offset))
            (links(span, trace))
            h3 { "Made by" }
            (attributes(&span.resource.attributes))
        }
    }
}

fn events(span: &Span, offset: impl Fn(u64) -> String) -> Markup {
    html! {
        @if !span.events.is_empty() {
            h3 { "Events" }
            ol.events {
                @for event in &span.events {
                    li { span.at { (offset(event.time_unix_nano)) } " " b { (event.name) } (attributes(&event.attributes)) }
                }
            }
        }
    }
}

fn links(span: &Span, trace: TraceId) -> Markup {
    html! {
        @if !span.links.is_empty() {
            h3 { "Links" }
            ul {
                @for link in &span.links {
                    li {
                        @if link.trace == trace {
                            a.id href={ "#s-" (link.span) } { "span " (link.span) }
                        } @else {
                            a.id href={ "/traces/" (link.trace) "#s-" (link.span) } { "trace " (link.trace) }
                        }
                        (attributes(&link.attributes))
                    }
                }
            }
        }
    }
}

fn attributes(attributes: &Attributes) -> Markup {
    html! {
        @if !attributes.is_empty() {
            dl {
                @for (key, value) in attributes {
                    dt { (key) }
                    dd { @match value { serde_json::Value::String(text) => (text), other => (other.to_string()) } }
                }
            }
        }
    }
}
