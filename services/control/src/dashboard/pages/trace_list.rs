//! The list of traces with its filters.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::{Tab, page, store_line, trace_table};
use crate::{
    dashboard::LIST_MAX,
    traces::{Counts, Filter, Summary},
};

/// `/traces`
pub(in crate::dashboard) fn trace_list(
    filter: &Filter,
    found: &[Summary],
    services: &BTreeSet<String>,
    counts: Counts,
) -> Markup {
    let is_filtered = filter.service.is_some() || filter.errors || filter.name.is_some();
    page(
        "Traces",
        Tab::Traces,
        html! {
            h1 { "Traces" }
            form.filters action="/traces" method="get" {
                label { "Service"
                    select name="service" {
                        option value="" { "any" }
                        @for service in services {
                            option value=(service) selected[filter.service.as_ref() == Some(service)] { (service) }
                        }
                        @if let Some(other) = filter.service.as_ref().filter(|service| !services.contains(*service)) {
                            option value=(other) selected { (other) }
                        }
                    }
                }
                label.wide { "Name contains"
                    input type="search" name="name" value=[filter.name.as_deref()] placeholder="Users/Create" maxlength="256";
                }
                label { "At most"
                    input type="number" name="limit" value=(filter.limit) min="1" max=(LIST_MAX);
                }
                label.check { input type="checkbox" name="errors" value="true" checked[filter.errors]; "Errors only" }
                button type="submit" { "Show" }
                @if is_filtered { a href="/traces" { "Clear" } }
            }
            div #live {
                @if !found.is_empty() {
                    (trace_table(found, services))
                } @else if is_filtered {
                    section.empty { p { "None of the " (counts.traces) " traces matches." } }
                } @else {
                    section.empty {
                        h2 { "No trace yet" }
                        p { "Make a call through the mesh, and its trace appears here a moment later." }
                    }
                }
                (store_line(counts))
            }
        },
    )
}
