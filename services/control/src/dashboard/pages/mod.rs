//! The HTML pages. All text from spans goes through maud, which escapes it; nothing is marked as safe.

mod overview;
mod trace;
mod trace_list;

use std::collections::{BTreeSet, HashMap};

use maud::{DOCTYPE, Markup, html};

use super::format;
use crate::traces::{Component, Counts, Summary};

pub(super) use overview::{Mesh, overview};
pub(super) use trace::trace;
pub(super) use trace_list::trace_list;

/// Which link of the header leads to the current page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tab {
    Overview,
    Traces,
    None,
}

/// A whole page.
fn page(title: &str, tab: Tab, main: Markup) -> Markup {
    let link = |to: &str, text: &str, own: bool| {
        html! { a href=(to) aria-current=[own.then_some("page")] { (text) } }
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · weft" }
                link rel="icon" href="/assets/weft.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/weft.css";
                script src="/assets/weft.js" defer {}
            }
            body {
                header.top {
                    a.brand href="/" { img src="/assets/weft.svg" alt="" width="20" height="20"; "weft" }
                    nav {
                        (link("/", "Overview", tab == Tab::Overview))
                        (link("/traces", "Traces", tab == Tab::Traces))
                    }
                    // The script fills it, so without a script it stays empty.
                    span #live-switch {}
                }
                main { (main) }
            }
        }
    }
}

/// A page with an error.
pub(super) fn problem(title: &str, why: &str) -> Markup {
    page(
        title,
        Tab::None,
        html! {
            section.empty {
                h1 { (title) }
                p { (why) }
                p { a href="/traces" { "To the traces" } " · " a href="/" { "To the overview" } }
            }
        },
    )
}

/// Why a trace is missing.
pub(super) enum Missing {
    /// It was dropped to make room.
    Evicted,
    /// No span of it was seen, as far as is known.
    NotSeen,
    /// It is not a valid id.
    NotAnId,
}

/// The page for a missing trace.
pub(super) fn no_trace(why: Missing, id: &str) -> Markup {
    page(
        "No such trace",
        Tab::Traces,
        html! {
            section.empty {
                @match why {
                    Missing::Evicted => {
                        h1 { "This trace is no longer here" }
                        p { "The store is bounded: it drops the oldest trace when a new one needs the room. To keep traces \
                             for longer, also send them to an OTLP endpoint." }
                    }
                    Missing::NotSeen => {
                        h1 { "This trace is not here" }
                        p { "Either it has not arrived yet, or it was not sampled, or it was dropped long ago." }
                        ul {
                            li { "Spans are exported in batches, so they arrive some seconds after the call. "
                                 a href="" { "Look again" } "." }
                            li { "A call whose " code { "traceparent" } " says not to sample leaves no spans." }
                            li { "The store is in memory and bounded: it is empty after a start, and drops its oldest trace \
                                 when a new one needs the room." }
                        }
                    }
                    Missing::NotAnId => {
                        h1 { "This is not the id of a trace" }
                        p { "A trace's id is 32 hexadecimal digits, not all of them zero." }
                    }
                }
                p.id { (id) }
                p { a href="/traces" { "To the traces" } }
            }
        },
    )
}

/// The colours of services. While there are enough colours for all services, each has the same one on every page.
/// Otherwise the services of one page have different colours, while there are enough for those.
struct Colours(HashMap<String, usize>);

impl Colours {
    /// As many as the stylesheet has.
    const COUNT: usize = 10;

    /// Gives colours to `all` services, or only to the page's `own` if there are too many.
    fn new(all: &BTreeSet<String>, own: BTreeSet<&str>) -> Self {
        let services = if all.len() > Self::COUNT { own } else { all.iter().map(String::as_str).chain(own).collect() };
        let (mut of, mut used) = (HashMap::new(), [false; Self::COUNT]);
        for service in services {
            // FNV-1a, because it is the same in every process.
            let hash = service
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            let wanted = (hash % Self::COUNT as u64) as usize;
            let free = (0..Self::COUNT).map(|step| (wanted + step) % Self::COUNT).find(|number| !used[*number]);
            let number = free.unwrap_or(wanted);
            used[number] = true;
            of.insert(service.to_owned(), number);
        }
        Self(of)
    }

    /// The class of a service's colour.
    fn class(&self, service: &str) -> String {
        format!("c{}", self.0.get(service).unwrap_or(&0))
    }
}

/// A service's name with its colour; a sidecar has another mark.
fn service_name(service: &str, component: Component, colours: &Colours) -> Markup {
    html! {
        span.service.(colours.class(service)) {
            svg.dot width="10" height="10" aria-hidden="true" {
                circle.side[component == Component::Sidecar] cx="5" cy="5" r="4" {}
            }
            (service)
        }
    }
}

/// The same, with a tag if it is a sidecar.
fn service_tag(service: &str, component: Component, colours: &Colours) -> Markup {
    html! {
        (service_name(service, component, colours))
        @if component == Component::Sidecar { " " span.tag { "sidecar" } }
    }
}

/// A number of errors, shown by a sign and a word and not only by colour.
fn error_tag(errors: usize) -> Markup {
    html! { @if errors > 0 { span.error { "✕ " (format::count(errors, "error")) } } }
}

/// Traces as a table.
fn trace_table(traces: &[Summary], services: &BTreeSet<String>) -> Markup {
    let longest = traces.iter().map(|trace| trace.duration_nano).max().unwrap_or(0);
    let own = traces.iter().flat_map(|trace| &trace.services).map(String::as_str).collect();
    let colours = Colours::new(services, own);
    html! {
        table.traces {
            thead { tr { th { "Call" } th { "Services" } th.num { "Spans" } th { "Duration" } th { "Started" } } }
            tbody {
                @for trace in traces {
                    tr {
                        td.call {
                            a href={ "/traces/" (trace.trace_id) } title=(trace.name) {
                                @if trace.name.is_empty() { "(no name)" } @else { (format::short(&trace.name)) }
                            }
                            " " (error_tag(trace.errors))
                            @if !trace.root_seen { " " span.tag title="The first span of the trace has not arrived" { "start not seen" } }
                            div.sub { (trace.service) " · " span.id { (&trace.trace_id.to_string()[..16]) "…" } }
                        }
                        td.services {
                            @for service in &trace.services { (service_tag(service, Component::Service, &colours)) " " }
                        }
                        td.num data-label="spans" { (trace.spans) }
                        td.duration {
                            svg.length width="100%" height="6" aria-hidden="true" {
                                rect.bad[trace.errors > 0] rx="3" height="6"
                                    width={ (format!("{:.2}", format::percent(trace.duration_nano, longest).max(1.0))) "%" } {}
                            }
                            span.value { (format::duration(trace.duration_nano)) }
                        }
                        td.when {
                            span.ago { (format::ago(trace.start_unix_nano)) }
                            div.sub { (moment(trace.start_unix_nano)) }
                        }
                    }
                }
            }
        }
    }
}

/// A moment for people and for programs.
fn moment(unix_nano: u64) -> Markup {
    let text = format::time(unix_nano);
    html! { time datetime=(text) { (text) } }
}

/// How full the store is, and what it has dropped.
fn store_line(counts: Counts) -> Markup {
    use weft_mesh::limits;
    html! {
        p.store {
            "The store holds " (counts.traces) " of " (limits::TRACES_KEPT) " traces, "
            (format::bytes(counts.bytes)) " of " (format::bytes(limits::TRACE_STORE_BYTES)) "."
            @if counts.evicted_traces > 0 { " " (counts.evicted_traces) " older traces were dropped to make room." }
            @if counts.refused_spans > 0 { " " (counts.refused_spans) " spans were refused: their traces were full." }
            @if counts.invalid_spans > 0 { " " (counts.invalid_spans) " spans had no valid ids." }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_keep_their_own_colours_on_all_pages() {
        let all: BTreeSet<String> = (0..Colours::COUNT).map(|number| format!("service-{number}")).collect();
        let one = Colours::new(&all, BTreeSet::from(["service-3"]));
        let other = Colours::new(&all, BTreeSet::from(["service-7", "service-3"]));
        let classes: BTreeSet<String> = all.iter().map(|service| one.class(service)).collect();
        assert_eq!(classes.len(), Colours::COUNT);
        assert!(all.iter().all(|service| one.class(service) == other.class(service)));

        let many: BTreeSet<String> = (0..50).map(|number| format!("service-{number}")).collect();
        let own: BTreeSet<&str> = many.iter().take(Colours::COUNT).map(String::as_str).collect();
        let page = Colours::new(&many, own.clone());
        assert_eq!(own.iter().map(|service| page.class(service)).collect::<BTreeSet<_>>().len(), Colours::COUNT);
    }
}
