//! A trace as a tree: its spans as rows, and where the time was spent.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{Component, Span, SpanId, Stored};

/// A trace, ready to be shown.
#[derive(Debug)]
pub struct Tree {
    /// Every span once: parents before their children, siblings by their start.
    pub rows: Vec<Row>,
    /// When the first span started, in nanoseconds since 1970.
    pub start_unix_nano: u64,
    /// From then to the end of the last span, in nanoseconds.
    pub duration_nano: u64,
    /// How many spans ended in an error.
    pub errors: usize,
    /// Where the time was spent, by service and component, in the order of their first rows.
    pub shares: Vec<Share>,
}

/// A span in the tree.
#[derive(Debug)]
pub struct Row {
    /// The span.
    pub span: Arc<Span>,
    /// How many spans are above it.
    pub depth: usize,
    /// Its parent.
    pub parent: Parent,
    /// How long it ran while none of its children ran, in nanoseconds.
    pub self_nano: u64,
}

/// The parent of a span.
#[derive(Debug, Clone)]
pub enum Parent {
    /// None: the span started the trace.
    None,
    /// This span, which is in the rows.
    Seen(Arc<Span>),
    /// A span that is missing, has not arrived yet, or is a descendant of the span itself.
    NotSeen(SpanId),
}

/// The time of one service's or sidecar's spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The service.
    pub service: String,
    /// The service itself, or its sidecar.
    pub component: Component,
    /// How many spans.
    pub spans: usize,
    /// The sum of their own time in nanoseconds, without the time of their children.
    pub self_nano: u64,
}

impl Tree {
    /// Puts a trace together. If its parent is missing, a span becomes a root. So does a span in a loop of parents,
    /// which no correct exporter makes.
    pub fn new(stored: &Stored) -> Self {
        let mut spans = stored.spans.clone();
        // If two spans start at the same time, the longer one is the outer one.
        spans.sort_by_key(|span| (span.start_unix_nano, u64::MAX - span.duration_nano, span.id));
        let by_id: HashMap<SpanId, Arc<Span>> = spans.iter().map(|span| (span.id, span.clone())).collect();
        let mut children: HashMap<SpanId, Vec<Arc<Span>>> = HashMap::new();
        let mut roots = Vec::new();
        for span in &spans {
            match span.parent {
                Some(parent) if by_id.contains_key(&parent) => children.entry(parent).or_default().push(span.clone()),
                _ => roots.push(span.clone()),
            }
        }
        // The span that started the trace comes first, even if the clocks of the others are wrong.
        roots.sort_by_key(|span| span.parent.is_some());

        let mut rows = Vec::with_capacity(spans.len());
        let mut placed = HashSet::new();
        for root in roots.into_iter().chain(spans.iter().cloned()) {
            descend(root, &children, &mut placed, &mut rows);
        }
        let start = spans.iter().map(|span| span.start_unix_nano).min().unwrap_or(0);
        let end = spans.iter().map(|span| span.end_unix_nano()).max().unwrap_or(0);
        Self {
            start_unix_nano: start,
            duration_nano: end - start,
            errors: spans.iter().filter(|span| span.is_error()).count(),
            shares: shares(&rows),
            rows,
        }
    }
}

/// Adds the rows of a span and all its descendants, unless they are there already. Not recursive, as the senders of
/// spans decide how deep it is.
fn descend(
    root: Arc<Span>,
    children: &HashMap<SpanId, Vec<Arc<Span>>>,
    placed: &mut HashSet<SpanId>,
    rows: &mut Vec<Row>,
) {
    let parent = root.parent.map_or(Parent::None, Parent::NotSeen);
    let mut stack = vec![(root, 0, parent)];
    while let Some((span, depth, parent)) = stack.pop() {
        if !placed.insert(span.id) {
            continue;
        }
        let below = children.get(&span.id).map(Vec::as_slice).unwrap_or_default();
        stack.extend(below.iter().rev().map(|child| (child.clone(), depth + 1, Parent::Seen(span.clone()))));
        rows.push(Row { self_nano: self_nano(&span, below), span, depth, parent });
    }
}

/// A span's time without the time during which any of its children ran. The children must be sorted by their start.
fn self_nano(span: &Span, children: &[Arc<Span>]) -> u64 {
    let (mut covered, mut until) = (0, span.start_unix_nano);
    for child in children {
        let from = child.start_unix_nano.max(until);
        let to = child.end_unix_nano().min(span.end_unix_nano());
        if to > from {
            covered += to - from;
            until = to;
        }
    }
    span.duration_nano - covered
}

fn shares(rows: &[Row]) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    let mut places: BTreeMap<(&str, Component), usize> = BTreeMap::new();
    for row in rows {
        let (service, component) = (row.span.resource.service.as_str(), row.span.resource.component);
        let place = *places.entry((service, component)).or_insert_with(|| {
            shares.push(Share { service: service.to_owned(), component, spans: 0, self_nano: 0 });
            shares.len() - 1
        });
        shares[place].spans += 1;
        shares[place].self_nano = shares[place].self_nano.saturating_add(row.self_nano);
    }
    shares
}

#[cfg(test)]
pub(super) mod test {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, KeyValue, any_value::Value},
        resource::v1::Resource as OtlpResource,
        trace::v1::Span as OtlpSpan,
    };

    use super::*;
    use crate::traces::{Resource, TraceId};

    pub(in crate::traces) fn resource(service: &str, sidecar: bool) -> OtlpResource {
        let pair = |key: &str, value: &str| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
            ..KeyValue::default()
        };
        let component = if sidecar { "sidecar" } else { "service" };
        OtlpResource {
            attributes: vec![pair("service.name", service), pair("weft.component", component)],
            ..OtlpResource::default()
        }
    }

    /// Spans as (id, parent, start, end, service, whether of a sidecar).
    fn tree(spans: &[(u8, u8, u64, u64, &str, bool)]) -> Tree {
        let spans = spans.iter().map(|&(id, parent, start, end, service, sidecar)| {
            let resource = Arc::new(Resource::from_otlp(Some(resource(service, sidecar))));
            let span = OtlpSpan {
                trace_id: vec![1; 16],
                span_id: vec![id; 8],
                parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
                start_time_unix_nano: start,
                end_time_unix_nano: end,
                ..OtlpSpan::default()
            };
            Arc::new(Span::from_otlp(span, &resource).unwrap().1)
        });
        Tree::new(&Stored { id: TraceId::from_bytes(&[1; 16]).unwrap(), spans: spans.collect(), refused: 0 })
    }

    fn shape(tree: &Tree) -> Vec<(String, usize, bool)> {
        let row =
            |row: &Row| (row.span.id.to_string()[..2].to_owned(), row.depth, matches!(row.parent, Parent::NotSeen(_)));
        tree.rows.iter().map(row).collect()
    }

    #[test]
    fn the_tree_does_not_depend_on_the_order_of_arrival() {
        let spans = [
            (1, 0, 100, 200, "keyboard", true),
            (2, 1, 110, 190, "users", true),
            (3, 2, 120, 180, "users", false),
            (4, 3, 150, 160, "users", true),
            (5, 3, 130, 140, "users", true),
        ];
        let expected = [("01", 0), ("02", 1), ("03", 2), ("05", 3), ("04", 3)];
        let expected: Vec<_> = expected.map(|(id, depth)| (id.to_owned(), depth, false)).into();
        for turn in 0..spans.len() {
            let mut turned = spans;
            turned.rotate_left(turn);
            assert_eq!(shape(&tree(&turned)), expected);
            turned.reverse();
            assert_eq!(shape(&tree(&turned)), expected);
        }
        let tree = tree(&spans);
        assert_eq!((tree.start_unix_nano, tree.duration_nano), (100, 100));
        let share = |service: &str, component| {
            tree.shares.iter().find(|s| s.service == service && s.component == component).unwrap().self_nano
        };
        assert_eq!(share("users", Component::Service), 40);
        assert_eq!(share("users", Component::Sidecar), 20 + 10 + 10);
        assert_eq!(tree.shares.iter().map(|share| share.self_nano).sum::<u64>(), 100);
    }

    #[test]
    fn spans_without_a_seen_parent_are_roots_after_the_first_span() {
        let tree = tree(&[(7, 9, 50, 60, "a", false), (8, 7, 55, 58, "a", false), (1, 0, 90, 95, "b", false)]);
        let shape = shape(&tree);
        assert_eq!(shape, [("01".to_owned(), 0, false), ("07".to_owned(), 0, true), ("08".to_owned(), 1, false)]);
    }

    #[test]
    fn a_loop_of_parents_shows_every_span_once() {
        let tree = tree(&[(1, 2, 10, 20, "a", false), (2, 1, 10, 30, "a", false), (3, 3, 1, 2, "a", false)]);
        assert_eq!(shape(&tree), [("03".to_owned(), 0, true), ("02".to_owned(), 0, true), ("01".to_owned(), 1, false)]);
    }

    #[test]
    fn own_time_counts_overlapping_and_overhanging_children_once() {
        let tree = tree(&[
            (1, 0, 0, 100, "a", false),
            (2, 1, 10, 40, "b", false),
            (3, 1, 20, 30, "b", false),
            (4, 1, 35, 50, "b", false),
            (5, 1, 90, 500, "b", false),
        ]);
        assert_eq!(tree.rows[0].self_nano, 50);
    }
}
