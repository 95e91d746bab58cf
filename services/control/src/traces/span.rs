//! A span as the store keeps it: read from OTLP, with every size limited.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value as Otlp},
    resource::v1::Resource as OtlpResource,
    trace::v1::{Span as OtlpSpan, span::SpanKind, status::StatusCode as OtlpStatus},
};
use serde_json::Value;
use weft_mesh::limits;

use super::{SpanId, TraceId};

/// Names with their values, in the order in which they were sent.
pub type Attributes = Vec<(String, Value)>;

/// One span.
#[derive(Debug)]
pub struct Span {
    /// Unique in its trace.
    pub id: SpanId,
    /// `None` for the span that started the trace.
    pub parent: Option<SpanId>,
    /// The operation: `shop.users.v1.Users/Create`.
    pub name: String,
    /// Which side of a call it is.
    pub kind: Kind,
    /// The process that made it.
    pub resource: Arc<Resource>,
    /// When it started, in nanoseconds since 1970.
    pub start_unix_nano: u64,
    /// How long it took; 0 if its end is before its start.
    pub duration_nano: u64,
    /// How it ended.
    pub status: Status,
    /// Its attributes.
    pub attributes: Attributes,
    /// The events during it, in the order of time.
    pub events: Vec<Event>,
    /// Related spans, of this or other traces.
    pub links: Vec<Link>,
    /// How many attributes, events and links were dropped, here or by the process that made the span.
    pub dropped: u32,
}

/// A process that makes spans.
#[derive(Debug)]
pub struct Resource {
    /// `service.name`: for a sidecar the service that it fronts.
    pub service: String,
    /// Whether it is the service itself or its sidecar.
    pub component: Component,
    /// All its attributes, including these two.
    pub attributes: Attributes,
}

/// The process that made a span, from the resource attribute `weft.component`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The service itself, or a process without the attribute.
    Service,
    /// The sidecar beside it.
    Sidecar,
}

impl Component {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Component::Service => "service",
            Component::Sidecar => "sidecar",
        }
    }
}

/// A span's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not specified.
    Unspecified,
    /// Work inside a process.
    Internal,
    /// A call that was received.
    Server,
    /// A call that was sent.
    Client,
    /// A message that was sent.
    Producer,
    /// A message that was received.
    Consumer,
}

impl Kind {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Unspecified => "unspecified",
            Kind::Internal => "internal",
            Kind::Server => "server",
            Kind::Client => "client",
            Kind::Producer => "producer",
            Kind::Consumer => "consumer",
        }
    }
}

/// How a span ended.
#[derive(Debug)]
pub struct Status {
    /// Whether it was an error.
    pub code: StatusCode,
    /// The message of the process that made the span.
    pub message: String,
}

/// Whether a span ended in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusCode {
    /// Not specified: not an error.
    Unset,
    /// Explicitly successful.
    Ok,
    /// An error.
    Error,
}

impl StatusCode {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            StatusCode::Unset => "unset",
            StatusCode::Ok => "ok",
            StatusCode::Error => "error",
        }
    }
}

/// An event during a span.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub name: String,
    /// When, in nanoseconds since 1970.
    pub time_unix_nano: u64,
    /// Its attributes.
    pub attributes: Attributes,
}

/// A span that is related to another, but not its parent.
#[derive(Debug)]
pub struct Link {
    /// The trace it is in.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// The attributes of the relation.
    pub attributes: Attributes,
}

impl Span {
    /// Reads a span; `None` if its ids are not valid.
    pub(crate) fn from_otlp(span: OtlpSpan, resource: &Arc<Resource>) -> Option<(TraceId, Span)> {
        let trace = TraceId::from_bytes(&span.trace_id)?;
        let id = SpanId::from_bytes(&span.span_id)?;
        let mut dropped = span
            .dropped_attributes_count
            .saturating_add(span.dropped_events_count)
            .saturating_add(span.dropped_links_count);
        let kind = match span.kind() {
            SpanKind::Unspecified => Kind::Unspecified,
            SpanKind::Internal => Kind::Internal,
            SpanKind::Server => Kind::Server,
            SpanKind::Client => Kind::Client,
            SpanKind::Producer => Kind::Producer,
            SpanKind::Consumer => Kind::Consumer,
        };
        let status = span.status.unwrap_or_default();
        let code = match status.code() {
            OtlpStatus::Unset => StatusCode::Unset,
            OtlpStatus::Ok => StatusCode::Ok,
            OtlpStatus::Error => StatusCode::Error,
        };
        let attributes = attributes(span.attributes, &mut dropped);
        let mut events: Vec<_> = bounded(span.events, limits::SPAN_EVENTS, &mut dropped)
            .into_iter()
            .map(|event| Event {
                name: cut(event.name, limits::SPAN_NAME_BYTES),
                time_unix_nano: event.time_unix_nano,
                attributes: self::attributes(event.attributes, &mut dropped),
            })
            .collect();
        events.sort_by_key(|event| event.time_unix_nano);
        let links = bounded(span.links, limits::SPAN_EVENTS, &mut dropped)
            .into_iter()
            .filter_map(|link| {
                Some(Link {
                    trace: TraceId::from_bytes(&link.trace_id)?,
                    span: SpanId::from_bytes(&link.span_id)?,
                    attributes: self::attributes(link.attributes, &mut dropped),
                })
            })
            .collect();
        let read = Span {
            id,
            parent: SpanId::from_bytes(&span.parent_span_id),
            name: cut(span.name, limits::SPAN_NAME_BYTES),
            kind,
            resource: resource.clone(),
            start_unix_nano: span.start_time_unix_nano,
            duration_nano: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
            status: Status { code, message: cut(status.message, limits::SPAN_VALUE_BYTES) },
            attributes,
            events,
            links,
            dropped,
        };
        Some((trace, read))
    }

    /// Whether it ended in an error.
    pub fn is_error(&self) -> bool {
        self.status.code == StatusCode::Error
    }

    /// When it ended, in nanoseconds since 1970.
    pub fn end_unix_nano(&self) -> u64 {
        self.start_unix_nano.saturating_add(self.duration_nano)
    }

    /// Its memory in the store, in bytes. The estimate is high rather than low: the resource counts for each span,
    /// although the spans of an export share it.
    pub(crate) fn bytes(&self) -> usize {
        let events = self.events.iter().map(|e| size_of::<Event>() + e.name.len() + attributes_bytes(&e.attributes));
        let links = self.links.iter().map(|link| size_of::<Link>() + attributes_bytes(&link.attributes));
        // The entries in the trace's list and index.
        let places = 64;
        size_of::<Self>()
            + places
            + self.name.len()
            + self.status.message.len()
            + attributes_bytes(&self.attributes)
            + events.chain(links).sum::<usize>()
            + self.resource.service.len()
            + attributes_bytes(&self.resource.attributes)
    }
}

impl Resource {
    /// Reads a resource. If it does not name its service, the service is `unknown_service`, as in OpenTelemetry.
    pub(crate) fn from_otlp(resource: Option<OtlpResource>) -> Self {
        let attributes = attributes(resource.unwrap_or_default().attributes, &mut 0);
        let text = |name: &str| attributes.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.as_str());
        let service = match text("service.name") {
            Some(name) if !name.is_empty() => cut(name.to_owned(), limits::SPAN_NAME_BYTES),
            _ => "unknown_service".to_owned(),
        };
        let component = if text("weft.component") == Some("sidecar") { Component::Sidecar } else { Component::Service };
        Self { service, component, attributes }
    }
}

fn attributes(pairs: Vec<KeyValue>, dropped: &mut u32) -> Attributes {
    bounded(pairs, limits::SPAN_ATTRIBUTES, dropped)
        .into_iter()
        .map(|pair| {
            let mut room = limits::SPAN_VALUE_BYTES;
            (cut(pair.key, limits::SPAN_NAME_BYTES), json(pair.value, &mut room))
        })
        .collect()
}

fn bounded<T>(mut list: Vec<T>, most: usize, dropped: &mut u32) -> Vec<T> {
    let over = list.len().saturating_sub(most);
    *dropped = dropped.saturating_add(u32::try_from(over).unwrap_or(u32::MAX));
    list.truncate(most);
    list
}

/// A value as JSON. `room` is the number of bytes that the rest of the whole value may take: longer strings are cut,
/// and further elements left out. The nesting is limited by prost, which refuses messages nested deeper than 100.
fn json(value: Option<AnyValue>, room: &mut usize) -> Value {
    let Some(value) = value.and_then(|any| any.value) else { return Value::Null };
    *room = room.saturating_sub(size_of::<Value>());
    match value {
        Otlp::StringValue(text) => {
            let text = cut(text, *room);
            *room = room.saturating_sub(text.len());
            Value::String(text)
        }
        Otlp::BoolValue(value) => Value::Bool(value),
        Otlp::IntValue(value) => Value::from(value),
        Otlp::DoubleValue(value) => Value::from(value),
        Otlp::BytesValue(bytes) => {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let text = cut(STANDARD.encode(&bytes[..bytes.len().min(*room)]), *room);
            *room = room.saturating_sub(text.len());
            Value::String(text)
        }
        Otlp::ArrayValue(array) => {
            let mut values = Vec::new();
            for value in array.values {
                if *room == 0 {
                    break;
                }
                values.push(json(Some(value), room));
            }
            Value::Array(values)
        }
        Otlp::KvlistValue(list) => {
            let mut values = serde_json::Map::new();
            for pair in list.values {
                if *room == 0 {
                    break;
                }
                let key = cut(pair.key, limits::SPAN_NAME_BYTES.min(*room));
                *room = room.saturating_sub(key.len());
                values.insert(key, json(pair.value, room));
            }
            Value::Object(values)
        }
        // Used in profiles; it has no meaning in a span.
        Otlp::StringValueStrindex(_) => Value::Null,
    }
}

/// Cuts a text to at most `most` bytes, at the end of a character, and marks the cut.
fn cut(mut text: String, most: usize) -> String {
    const MARK: char = '…';
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most.saturating_sub(MARK.len_utf8())));
        text.push(MARK);
    }
    text.shrink_to_fit();
    text
}

fn attributes_bytes(attributes: &Attributes) -> usize {
    attributes.iter().map(|(key, value)| size_of::<(String, Value)>() + key.len() + value_bytes(value)).sum()
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(|value| size_of::<Value>() + value_bytes(value)).sum(),
        // The node of a map is about as large as its entry.
        Value::Object(map) => {
            map.iter().map(|(key, value)| 2 * size_of::<(String, Value)>() + key.len() + value_bytes(value)).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::ArrayValue;

    use super::*;

    fn value(value: Otlp) -> Option<AnyValue> {
        Some(AnyValue { value: Some(value) })
    }

    #[test]
    fn long_values_are_cut_and_surplus_attributes_are_counted() {
        let long = "ä".repeat(limits::SPAN_VALUE_BYTES);
        let array = vec![AnyValue { value: Some(Otlp::StringValue("x".repeat(100))) }; 10_000];
        let pair = |value| KeyValue { key: "k".repeat(9_999), value, ..KeyValue::default() };
        let mut pairs =
            vec![pair(value(Otlp::StringValue(long))), pair(value(Otlp::ArrayValue(ArrayValue { values: array })))];
        pairs.resize(limits::SPAN_ATTRIBUTES + 7, pair(value(Otlp::BoolValue(true))));
        let span = OtlpSpan {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            start_time_unix_nano: 5,
            end_time_unix_nano: 3,
            attributes: pairs,
            ..OtlpSpan::default()
        };
        let (_, span) = Span::from_otlp(span, &Arc::new(Resource::from_otlp(None))).unwrap();
        assert_eq!(span.dropped, 7);
        assert_eq!(span.duration_nano, 0);
        assert_eq!(span.resource.service, "unknown_service");
        assert!(span.attributes.iter().all(|(key, _)| key.len() <= limits::SPAN_NAME_BYTES));
        let text = span.attributes[0].1.as_str().unwrap();
        assert!(text.len() <= limits::SPAN_VALUE_BYTES && text.ends_with('…'));
        assert!(value_bytes(&span.attributes[1].1) <= 2 * limits::SPAN_VALUE_BYTES);
    }

    #[test]
    fn invalid_ids_make_no_span() {
        let resource = Arc::new(Resource::from_otlp(None));
        for (trace, id) in [(vec![0; 16], vec![1; 8]), (vec![1; 15], vec![1; 8]), (vec![1; 16], vec![])] {
            let span = OtlpSpan { trace_id: trace, span_id: id, ..OtlpSpan::default() };
            assert!(Span::from_otlp(span, &resource).is_none());
        }
    }
}
