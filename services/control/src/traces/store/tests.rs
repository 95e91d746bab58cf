use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status};

use super::*;

const SMALL: Bounds = Bounds { traces: 3, spans_per_trace: 4, bytes: usize::MAX };
const ALL: Filter = Filter { service: None, errors: false, name: None, limit: usize::MAX };

fn span(trace: u8, id: u8, parent: u8, name: &str) -> OtlpSpan {
    OtlpSpan {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: name.to_owned(),
        start_time_unix_nano: u64::from(trace) * 1_000 + u64::from(id) * 10,
        end_time_unix_nano: u64::from(trace) * 1_000 + u64::from(id) * 10 + 100,
        ..OtlpSpan::default()
    }
}

fn of(service: &str, spans: Vec<OtlpSpan>) -> ExportTraceServiceRequest {
    let resource = super::super::tree::test::resource(service, false);
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }],
    }
}

fn ids(store: &Store, filter: &Filter) -> Vec<u8> {
    store
        .list(filter)
        .iter()
        .map(|summary| u8::from_str_radix(&summary.trace_id.to_string()[..2], 16).unwrap())
        .collect()
}

fn id(trace: u8) -> TraceId {
    TraceId::from_bytes(&[trace; 16]).unwrap()
}

#[test]
fn the_trace_that_arrived_first_is_dropped_and_counted() {
    let store = Store::bounded(SMALL);
    // The order of arrival decides, and not the clocks of the processes that made the spans.
    for trace in [7, 1, 2] {
        store.export(of("users", vec![span(trace, 1, 0, "a"), span(trace, 2, 1, "b")]));
    }
    store.export(of("users", vec![span(7, 3, 1, "c")]));
    assert_eq!(ids(&store, &ALL), [7, 2, 1]);
    store.export(of("users", vec![span(3, 1, 0, "a")]));
    assert_eq!(ids(&store, &ALL), [3, 2, 1]);
    let counts = store.counts();
    assert_eq!((counts.traces, counts.spans, counts.evicted_traces, counts.evicted_spans), (3, 5, 1, 3));
    assert!(store.get(id(7)).is_none());
    assert!(store.was_evicted(id(7)) && !store.was_evicted(id(1)) && !store.was_evicted(id(99)));
}

#[test]
fn the_spans_of_a_trace_are_limited() {
    let store = Store::bounded(SMALL);
    let taken = store.export(of("users", (1..=6).map(|n| span(1, n, 0, "x")).collect()));
    assert_eq!(taken, Taken { kept: 4, no_room: 2, invalid: 0 });
    let stored = store.get(id(1)).unwrap();
    assert_eq!((stored.spans.len(), stored.refused, store.counts().refused_spans), (4, 2, 2));
}

#[test]
fn bytes_are_bounded_and_one_trace_never_drops_itself() {
    let one = Store::bounded(SMALL);
    one.export(of("users", vec![span(1, 1, 0, "x")]));
    let bytes = one.counts().bytes;
    assert!(bytes > 200, "{bytes}");

    let store = Store::bounded(Bounds { traces: 100, spans_per_trace: 100, bytes: 3 * bytes });
    for trace in 1..=9 {
        store.export(of("users", vec![span(trace, 1, 0, "x")]));
        assert!(store.counts().bytes <= 3 * bytes);
    }
    assert_eq!(ids(&store, &ALL), [9, 8, 7]);
    let taken = store.export(of("users", (2..=5).map(|n| span(7, n, 1, "x")).collect()));
    assert_eq!(taken, Taken { kept: 2, no_room: 2, invalid: 0 });
    assert_eq!(ids(&store, &ALL), [7]);
    assert_eq!(store.counts().bytes, 3 * bytes);
}

#[test]
fn a_span_that_arrives_twice_is_kept_once() {
    let store = Store::new();
    let taken = store.export(of("users", vec![span(1, 1, 0, "first"), span(1, 1, 0, "second")]));
    assert_eq!(taken.kept, 2);
    assert_eq!(store.get(id(1)).unwrap().spans.len(), 1);
    assert_eq!(store.list(&ALL)[0].name, "first");
    assert_eq!((store.counts().duplicate_spans, store.counts().spans), (1, 1));
}

#[test]
fn lists_are_newest_first_and_filtered() {
    let store = Store::new();
    let failed = OtlpSpan {
        status: Some(Status { code: 2, message: "no".to_owned() }),
        ..span(2, 2, 1, "shop.auth.v1.Auth/Validate")
    };
    // Children arrive before their parents, as processes export independently.
    store.export(of("auth", vec![failed]));
    store.export(of("users", vec![span(1, 1, 0, "shop.users.v1.Users/Get")]));
    store.export(of("users", vec![span(2, 1, 0, "shop.users.v1.Users/Create"), span(3, 5, 4, "late")]));

    assert_eq!(ids(&store, &ALL), [3, 2, 1]);
    assert_eq!(ids(&store, &Filter { limit: 2, ..ALL }), [3, 2]);
    assert_eq!(ids(&store, &Filter { errors: true, ..ALL }), [2]);
    assert_eq!(ids(&store, &Filter { service: Some("auth".to_owned()), ..ALL }), [2]);
    assert_eq!(ids(&store, &Filter { service: Some("aut".to_owned()), ..ALL }), [0; 0]);
    assert_eq!(ids(&store, &Filter { name: Some("users/".to_owned()), ..ALL }), [2, 1]);

    let list = store.list(&ALL);
    let (late, create) = (&list[0], &list[1]);
    assert!(!late.root_seen && create.root_seen);
    assert_eq!((create.name.as_str(), create.service.as_str()), ("shop.users.v1.Users/Create", "users"));
    assert_eq!((create.spans, create.errors, create.start_unix_nano, create.duration_nano), (2, 1, 2_010, 110));
    assert_eq!(create.services.iter().collect::<Vec<_>>(), ["auth", "users"]);
    assert_eq!(store.services().len(), 2);
}
