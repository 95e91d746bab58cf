//! The store: spans filed by trace. The number of traces, of spans in a trace, and of bytes is limited.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use weft_mesh::limits;

use super::{Resource, Span, SpanId, TraceId};

/// The built-in trace store. It has one lock: no call waits for it, and the work for a span is small.
pub struct Store {
    bounds: Bounds,
    inner: Mutex<Inner>,
}

/// The limits of the store.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    traces: usize,
    spans_per_trace: usize,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    traces: HashMap<TraceId, Trace>,
    /// The ids of the traces, in the order in which their first spans arrived.
    by_arrival: BTreeMap<u64, TraceId>,
    arrivals: u64,
    /// The traces that were dropped last, so that a page can say so.
    evicted: VecDeque<TraceId>,
    counts: Counts,
}

struct Trace {
    arrival: u64,
    spans: Vec<Arc<Span>>,
    ids: HashSet<SpanId>,
    bytes: usize,
    refused: u64,
}

/// How full the store is, and what it has dropped or refused since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Traces held.
    pub traces: usize,
    /// Spans held.
    pub spans: usize,
    /// Roughly their memory, in bytes.
    pub bytes: usize,
    /// Traces that were dropped to make room.
    pub evicted_traces: u64,
    /// Their spans.
    pub evicted_spans: u64,
    /// Spans refused because their trace, or the store with that trace alone, was full.
    pub refused_spans: u64,
    /// Spans refused because their ids were not valid.
    pub invalid_spans: u64,
    /// Spans that arrived again: the first one stays.
    pub duplicate_spans: u64,
}

/// The result of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Spans that are in the store now, new ones and those from before.
    pub kept: u64,
    /// Spans refused because there was no room.
    pub no_room: u64,
    /// Spans refused because their ids are not valid.
    pub invalid: u64,
}

/// Which traces to list.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only traces with a span of this service.
    pub service: Option<String>,
    /// Only traces with a span that ended in an error.
    pub errors: bool,
    /// Only traces with a span whose name contains this; ASCII case does not matter.
    pub name: Option<String>,
    /// At most this many.
    pub limit: usize,
}

/// A trace in a list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub trace_id: TraceId,
    /// The name of its first span.
    pub name: String,
    /// The service of its first span.
    pub service: String,
    /// Whether that span started the trace. Otherwise the one that did was not seen.
    pub root_seen: bool,
    /// When its first span started, in nanoseconds since 1970.
    pub start_unix_nano: u64,
    /// From then to the end of its last span, in nanoseconds.
    pub duration_nano: u64,
    /// How many spans it has.
    pub spans: usize,
    /// How many of them ended in an error.
    pub errors: usize,
    /// The services of its spans, sorted.
    pub services: BTreeSet<String>,
}

/// A trace in the store.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its id.
    pub id: TraceId,
    /// Its spans as they arrived.
    pub spans: Vec<Arc<Span>>,
    /// Spans that were refused because it was full.
    pub refused: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("bounds", &self.bounds).field("counts", &self.counts()).finish()
    }
}

impl Store {
    /// An empty store with the bounds of [`weft_mesh::limits`].
    pub fn new() -> Self {
        Self::bounded(Bounds {
            traces: limits::TRACES_KEPT,
            spans_per_trace: limits::SPANS_PER_TRACE,
            bytes: limits::TRACE_STORE_BYTES,
        })
    }

    fn bounded(bounds: Bounds) -> Self {
        Self { bounds, inner: Mutex::default() }
    }

    /// Adds the spans of an export. They may come in any order, of any traces, and more than once.
    pub fn export(&self, request: ExportTraceServiceRequest) -> Taken {
        let mut taken = Taken::default();
        for group in request.resource_spans {
            let resource = Arc::new(Resource::from_otlp(group.resource));
            let mut read = Vec::new();
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                match Span::from_otlp(span, &resource) {
                    Some(span) => read.push(span),
                    None => taken.invalid += 1,
                }
            }
            // The lock is taken for filing, and not for reading.
            let mut inner = self.lock();
            for (trace, span) in read {
                match inner.file(trace, span, self.bounds) {
                    true => taken.kept += 1,
                    false => taken.no_room += 1,
                }
            }
        }
        self.lock().counts.invalid_spans += taken.invalid;
        taken
    }

    /// Lists traces, the latest first.
    pub fn list(&self, filter: &Filter) -> Vec<Summary> {
        let inner = self.lock();
        let mut found: Vec<(u64, Summary)> = inner
            .traces
            .iter()
            .filter(|(_, trace)| trace.matches(filter))
            .map(|(id, trace)| (trace.arrival, trace.summary(*id)))
            .collect();
        drop(inner);
        found.sort_by(|(a, x), (b, y)| y.start_unix_nano.cmp(&x.start_unix_nano).then(b.cmp(a)));
        found.truncate(filter.limit);
        found.into_iter().map(|(_, summary)| summary).collect()
    }

    /// A trace, if it is in the store.
    pub fn get(&self, id: TraceId) -> Option<Stored> {
        let inner = self.lock();
        let trace = inner.traces.get(&id)?;
        Some(Stored { id, spans: trace.spans.clone(), refused: trace.refused })
    }

    /// Whether a trace was dropped to make room. Only the latest dropped traces are remembered.
    pub fn was_evicted(&self, id: TraceId) -> bool {
        self.lock().evicted.contains(&id)
    }

    /// The services that have spans in the store, sorted.
    pub fn services(&self) -> BTreeSet<String> {
        let mut services = BTreeSet::new();
        for span in self.lock().traces.values().flat_map(|trace| &trace.spans) {
            if !services.contains(&span.resource.service) {
                services.insert(span.resource.service.clone());
            }
        }
        services
    }

    /// How full the store is.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in the middle could leave the counts wrong, which is not worth another panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Files a span. False if there is no room for it.
    fn file(&mut self, id: TraceId, span: Span, bounds: Bounds) -> bool {
        let bytes = span.bytes();
        if let Some(trace) = self.traces.get_mut(&id) {
            if trace.ids.contains(&span.id) {
                self.counts.duplicate_spans += 1;
                return true;
            }
            if trace.spans.len() >= bounds.spans_per_trace {
                trace.refused += 1;
                self.counts.refused_spans += 1;
                return false;
            }
        }
        if !self.make_room(id, bytes, bounds) {
            self.counts.refused_spans += 1;
            if let Some(trace) = self.traces.get_mut(&id) {
                trace.refused += 1;
            }
            return false;
        }
        let trace = self.traces.entry(id).or_insert_with(|| {
            self.arrivals += 1;
            self.by_arrival.insert(self.arrivals, id);
            Trace { arrival: self.arrivals, spans: Vec::new(), ids: HashSet::new(), bytes: 0, refused: 0 }
        });
        trace.ids.insert(span.id);
        trace.spans.push(Arc::new(span));
        trace.bytes += bytes;
        self.counts.traces = self.traces.len();
        self.counts.spans += 1;
        self.counts.bytes += bytes;
        true
    }

    /// Drops the oldest traces until `bytes` more of the trace `id` fit. False if they cannot fit even without all
    /// other traces.
    fn make_room(&mut self, id: TraceId, bytes: usize, bounds: Bounds) -> bool {
        let own = self.traces.get(&id).map_or(0, |trace| trace.bytes);
        if own + bytes > bounds.bytes {
            return false;
        }
        let more = usize::from(!self.traces.contains_key(&id));
        while self.counts.bytes + bytes > bounds.bytes || self.traces.len() + more > bounds.traces {
            let Some((&arrival, &oldest)) = self.by_arrival.iter().find(|(_, other)| **other != id) else {
                return false;
            };
            self.by_arrival.remove(&arrival);
            let Some(gone) = self.traces.remove(&oldest) else { continue };
            self.counts.traces = self.traces.len();
            self.counts.spans -= gone.spans.len();
            self.counts.bytes -= gone.bytes;
            self.counts.evicted_traces += 1;
            self.counts.evicted_spans += gone.spans.len() as u64;
            if self.evicted.len() >= bounds.traces {
                self.evicted.pop_front();
            }
            self.evicted.push_back(oldest);
        }
        true
    }
}

impl Trace {
    fn matches(&self, filter: &Filter) -> bool {
        let any = |test: &dyn Fn(&Span) -> bool| self.spans.iter().any(|span| test(span));
        filter.service.as_deref().is_none_or(|service| any(&|span| span.resource.service == service))
            && filter.name.as_deref().is_none_or(|name| any(&|span| contains(&span.name, name)))
            && (!filter.errors || any(&Span::is_error))
    }

    fn summary(&self, id: TraceId) -> Summary {
        // The first span whose parent is missing. If the parents form a loop, which no correct exporter makes, any
        // span.
        let top = |span: &&Arc<Span>| span.parent.is_none_or(|parent| !self.ids.contains(&parent));
        let begin = |span: &&Arc<Span>| (span.parent.is_some(), span.start_unix_nano);
        let first = self.spans.iter().filter(top).min_by_key(begin).or(self.spans.first());
        let start = self.spans.iter().map(|span| span.start_unix_nano).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span.end_unix_nano()).max().unwrap_or(0);
        Summary {
            trace_id: id,
            name: first.map(|span| span.name.clone()).unwrap_or_default(),
            service: first.map(|span| span.resource.service.clone()).unwrap_or_default(),
            root_seen: first.is_some_and(|span| span.parent.is_none()),
            start_unix_nano: start,
            duration_nano: end - start,
            spans: self.spans.len(),
            errors: self.spans.iter().filter(|span| span.is_error()).count(),
            services: self.spans.iter().map(|span| span.resource.service.clone()).collect(),
        }
    }
}

/// Whether a text contains another. ASCII case does not matter; names consist of ASCII.
fn contains(text: &str, part: &str) -> bool {
    part.is_empty() || text.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

fn as_text<S: serde::Serializer>(id: &TraceId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(id)
}

#[cfg(test)]
mod tests;
