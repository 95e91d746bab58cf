//! What an export of spans takes in memory when it is decoded.
//!
//! The fields are those of opentelemetry/proto/collector/trace/v1/trace_service.proto and of what it imports.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use weft_mesh::decoding::{
    Part::{self, Message, Texts},
    Shape,
};

/// An `ExportTraceServiceRequest`.
pub(super) static EXPORT: Shape = shape::<ExportTraceServiceRequest>(&[(1, Message(&RESOURCE_SPANS))]);

static RESOURCE_SPANS: Shape = shape::<ResourceSpans>(&[(1, Message(&RESOURCE)), (2, Message(&SCOPE_SPANS))]);
static RESOURCE: Shape = shape::<Resource>(&[(1, Message(&KEY_VALUE)), (3, Message(&ENTITY))]);
static ENTITY: Shape = shape::<EntityRef>(&[(3, Texts), (4, Texts)]);
static SCOPE_SPANS: Shape = shape::<ScopeSpans>(&[(1, Message(&SCOPE)), (2, Message(&SPAN))]);
static SCOPE: Shape = shape::<InstrumentationScope>(&[(3, Message(&KEY_VALUE))]);
static SPAN: Shape =
    shape::<Span>(&[(9, Message(&KEY_VALUE)), (11, Message(&EVENT)), (13, Message(&LINK)), (15, Message(&STATUS))]);
static EVENT: Shape = shape::<Event>(&[(3, Message(&KEY_VALUE))]);
static LINK: Shape = shape::<Link>(&[(4, Message(&KEY_VALUE))]);
static STATUS: Shape = shape::<Status>(&[]);
static KEY_VALUE: Shape = shape::<KeyValue>(&[(2, Message(&ANY_VALUE))]);
static ANY_VALUE: Shape = shape::<AnyValue>(&[(5, Message(&ARRAY)), (6, Message(&LIST))]);
static ARRAY: Shape = shape::<ArrayValue>(&[(1, Message(&ANY_VALUE))]);
static LIST: Shape = shape::<KeyValueList>(&[(1, Message(&KEY_VALUE))]);

const fn shape<T>(fields: &'static [(u32, Part)]) -> Shape {
    Shape { size: size_of::<T>(), name: None, fields }
}
