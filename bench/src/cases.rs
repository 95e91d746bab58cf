//! The loads: what is called, by how many at once, and when a measurement ends.

use std::time::Duration;

use clap::builder::PossibleValuesParser;

/// A closed loop of unary calls: `connections × streams` callers, each with one call under way at any time.
#[derive(Clone, Copy, serde::Serialize)]
pub(crate) struct Case {
    /// Its name on the command line and in the table.
    pub(crate) name: &'static str,
    /// Connections from the load generator.
    pub(crate) connections: usize,
    /// Callers on each of them.
    pub(crate) streams: usize,
    /// The size of the message in each direction, without gRPC's five bytes of framing.
    pub(crate) message_bytes: usize,
    /// A measurement ends after so many calls …
    pub(crate) calls: u64,
    /// … or after this time, whichever is first.
    pub(crate) at_most: Duration,
}

const AT_MOST: Duration = Duration::from_secs(8);

/// Every load, in the order of the table.
pub(crate) fn all() -> [Case; 4] {
    let case = |name, connections, streams, message_bytes, calls| Case {
        name,
        connections,
        streams,
        message_bytes,
        calls,
        at_most: AT_MOST,
    };
    [
        case("8x32", 8, 32, 128, 100_000),
        case("1x1", 1, 1, 128, 20_000),
        case("64KiB", 8, 4, 64 * 1024, 10_000),
        case("500x1", 500, 1, 128, 100_000),
    ]
}

/// The names for the command line.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(all().map(|case| case.name))
}

impl Case {
    /// The same load, measured for a tenth of the calls and a second at most.
    pub(crate) fn quick(self) -> Self {
        Self { calls: self.calls / 10, at_most: Duration::from_secs(1), ..self }
    }

    /// Calls before a measurement that are not counted.
    pub(crate) fn warm_up(&self) -> u64 {
        self.calls / 10
    }
}
