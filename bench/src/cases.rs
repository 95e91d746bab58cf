//! The loads: the kind of call, the number of callers, and when a measurement ends.

use std::time::Duration;

use clap::{ValueEnum, builder::PossibleValuesParser};
use serde::Serialize;

/// What one call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// One gRPC message there, the same one back.
    Unary,
    /// One gRPC message there, [`STREAM_MESSAGES`] times the same one back.
    ServerStream,
    /// As unary, each call over a connection of its own.
    NewConnection,
    /// A plain POST whose body comes back: over HTTP/1.1 if the way accepts it, else over HTTP/2.
    Post,
}

/// Messages in the answer of a [`Kind::ServerStream`].
pub(crate) const STREAM_MESSAGES: usize = 100;

/// A load of `connections × streams` callers, each with one call at a time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Case {
    /// Its name on the command line and in the table.
    pub(crate) name: &'static str,
    /// A short description.
    pub(crate) title: &'static str,
    /// What one call is.
    pub(crate) kind: Kind,
    /// Connections from the load generator.
    pub(crate) connections: usize,
    /// Callers on each of them.
    pub(crate) streams: usize,
    /// The size of a message, without gRPC's five bytes of framing.
    pub(crate) message_bytes: usize,
    /// Whether each request has a request id, a trace context and a session of its own.
    pub(crate) has_differing_headers: bool,
    /// Whether a request's head and body are sent in one piece. Else it depends on chance whether a relay reads them
    /// together.
    pub(crate) is_sent_at_once: bool,
    /// Makes calls at a steady pace, which is this share of the floor's capacity. Without it, each caller makes a call
    /// when the one before is answered.
    pub(crate) share_of_floor: Option<f64>,
    /// The number of paths that the calls are spread over.
    pub(crate) methods: usize,
    /// Further open connections, which are idle after one call each.
    pub(crate) idle_connections: usize,
    /// The number of uncounted calls before a measurement.
    pub(crate) warm_up: u64,
    /// How long these may take at most.
    pub(crate) warm_up_at_most: Duration,
    /// A measurement ends after this many calls, or after `at_most`, whichever is first.
    pub(crate) calls: u64,
    /// See `calls`.
    pub(crate) at_most: Duration,
}

/// The simplest load. The others are defined by their differences.
pub(crate) const UNARY: Case = Case {
    name: "8x32",
    title: "128 B, 8 connections × 32 calls",
    kind: Kind::Unary,
    connections: 8,
    streams: 32,
    message_bytes: 128,
    has_differing_headers: false,
    is_sent_at_once: false,
    share_of_floor: None,
    methods: 1,
    idle_connections: 0,
    warm_up: 10_000,
    warm_up_at_most: Duration::from_millis(400),
    calls: 100_000,
    at_most: Duration::from_secs(2),
};

/// Every load, in the order of the table.
pub(crate) const ALL: [Case; 10] = [
    UNARY,
    Case { name: "8x4", title: "128 B, 8 connections × 4 calls", streams: 4, ..UNARY },
    Case { name: "1x1", title: "128 B, one call at a time", connections: 1, streams: 1, warm_up: 2_000, ..UNARY },
    Case { name: "500x1", title: "128 B, 500 connections × 1 call", connections: 500, streams: 1, ..UNARY },
    Case {
        name: "headers",
        title: "8 × 32, headers that differ in each request",
        has_differing_headers: true,
        ..UNARY
    },
    Case {
        name: "paced",
        title: "8 × 32, at a third of the floor's capacity",
        share_of_floor: Some(1.0 / 3.0),
        ..UNARY
    },
    Case {
        name: "64KiB",
        title: "64 KiB each way, 8 × 4",
        streams: 4,
        message_bytes: 64 * 1024,
        warm_up: 1_000,
        ..UNARY
    },
    Case {
        name: "stream",
        title: "server streams of 100 × 128 B, 8 × 4",
        kind: Kind::ServerStream,
        streams: 4,
        warm_up: 1_000,
        ..UNARY
    },
    Case {
        name: "connect",
        title: "128 B, a new connection for each call",
        kind: Kind::NewConnection,
        streams: 1,
        warm_up: 1_000,
        ..UNARY
    },
    Case {
        name: "http1",
        title: "HTTP/1.1 keep-alive, 32 connections",
        kind: Kind::Post,
        connections: 32,
        streams: 1,
        ..UNARY
    },
];

/// The names for the command line.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(ALL.map(|case| case.name))
}

impl Case {
    /// The same load, measured for half a second at most.
    pub(crate) fn quick(self) -> Self {
        Self {
            warm_up_at_most: Duration::from_millis(100),
            calls: self.calls / 4,
            at_most: Duration::from_millis(500),
            ..self
        }
    }

    /// A single call, to check whether a way works at all.
    pub(crate) fn probe(self) -> Self {
        Self {
            name: "probe",
            connections: 1,
            streams: 1,
            share_of_floor: None,
            idle_connections: 0,
            warm_up: 1,
            warm_up_at_most: Duration::from_secs(5),
            calls: 0,
            ..self
        }
    }
}
