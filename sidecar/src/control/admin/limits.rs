//! The table of limits on the admin port, with the use of each limit that is counted.

use std::sync::atomic::Ordering::Relaxed;

use weft_contracts::weft::admin::v1::{Limit, limit::Use};
use weft_mesh::limits;

use crate::{
    control::{Control, discovery},
    shared::survey::{Level, Report},
};

/// The rows that apply only to the control plane.
const OF_THE_CONTROL_PLANE: [&str; 29] = [
    "WATCH_QUEUE",
    "ENDPOINT_EXPIRY",
    "SETTLING_TIME",
    "SERVICES_KNOWN",
    "ENDPOINTS_PER_SERVICE",
    "CONTRACTS_PER_SERVICE",
    "CONTRACT_NAME_BYTES",
    "ENDPOINT_ID_BYTES",
    "DESCRIPTORS_HELD_BYTES",
    "SERVICE_MEMORY",
    "ANNOUNCE_WAIT",
    "CONTROL_CONNECTIONS",
    "CONTROL_STREAMS",
    "LOCAL_RESETS",
    "RESETS_PENDING_ACCEPT",
    "CONTROL_HEADER_BYTES",
    "CONTROL_STOP",
    "TRACES_KEPT",
    "SPANS_PER_TRACE",
    "TRACE_STORE_BYTES",
    "SPAN_NAME_BYTES",
    "SPAN_VALUE_BYTES",
    "SPAN_ATTRIBUTES",
    "SPAN_EVENTS",
    "OTLP_MESSAGE_BYTES",
    "DASHBOARD_CONNECTIONS",
    "DASHBOARD_STREAMS",
    "DASHBOARD_HEADER_BYTES",
    "DASHBOARD_TIMEOUT",
];

/// Every limit of a sidecar: first those whose use is known, the most used first.
pub(super) fn rows(control: &Control, reports: &[Option<Report>]) -> Vec<Limit> {
    let used = Used { control, reports };
    let is_ours = |limit: &&limits::Limit| !OF_THE_CONTROL_PLANE.contains(&limit.name);
    let row = |limit: &limits::Limit| Limit {
        name: limit.name.into(),
        value: limit.value.into(),
        why: limit.why.into(),
        r#use: used.of(limit.name),
        times_reached: used.times_reached(limit.name),
    };
    let mut rows: Vec<Limit> = limits::ALL.iter().filter(is_ours).map(row).collect();
    rows.sort_by(|a, b| share(b).total_cmp(&share(a)));
    rows
}

/// The share that is in use, from 0 to 1; negative if it is not counted, so that it sorts last.
pub(super) fn share(limit: &Limit) -> f64 {
    limit.r#use.as_ref().map_or(-1.0, |use_| use_.now as f64 / use_.of as f64)
}

/// Where the numbers come from.
struct Used<'a> {
    control: &'a Control,
    reports: &'a [Option<Report>],
}

impl Used<'_> {
    fn of(&self, limit: &str) -> Option<Use> {
        let shared = &self.control.shared;
        let now = |now: usize, of: usize| Some(Use { now: now as u64, of: of as u64, highest: None });
        match limit {
            "CALLS_IN_FLIGHT" => self.level(limits::CALLS_IN_FLIGHT, |report| report.calls_of_side),
            "CONNECTIONS_PER_SIDE" => self.level(limits::CONNECTIONS_PER_SIDE, |report| report.connections_of_side),
            "MEMORY_BYTES" => {
                let (used, of) = shared.budget.fuller();
                now(used, of)
            }
            "HANDSHAKES" => now(self.most(|report| report.handshakes), limits::HANDSHAKES),
            "REPLAY_BYTES" => self.level(limits::REPLAY_BYTES, |report| report.replay_bytes_of_side),
            "STREAMS_PER_CONNECTION" => {
                now(self.most(|report| report.streams_on_one), limits::STREAMS_PER_CONNECTION as usize)
            }
            "CONNECTIONS_PER_ENDPOINT" => {
                now(self.most(|report| report.connections_to_one), limits::CONNECTIONS_PER_ENDPOINT)
            }
            "CONNECTION_BUFFER_BYTES" => {
                now(self.most(|report| report.most.held_bytes), limits::CONNECTION_BUFFER_BYTES)
            }
            "SEND_BUFFER_BYTES" => now(self.most(|report| report.most.output_bytes), limits::SEND_BUFFER_BYTES),
            "SOCKET_BUFFER_BYTES" => now(self.most(|report| report.socket_bytes), limits::SOCKET_BUFFER_BYTES),
            "DISCOVERY_QUEUE" => now(shared.catalog.questions_waiting(), limits::DISCOVERY_QUEUE),
            "SERVICES_WATCHED" => now(shared.catalog.view().services.len(), limits::SERVICES_WATCHED),
            "METRIC_SERIES" => now(shared.metrics.labels().len(), limits::METRIC_SERIES),
            "SPANS_QUEUED" => now(shared.spans.as_ref()?.queued(), limits::SPANS_QUEUED),
            "SNAPSHOT_FILE_BYTES" => {
                let bytes = discovery::snapshot_bytes(shared.args.state_dir.as_ref()?);
                now(bytes as usize, limits::SNAPSHOT_FILE_BYTES as usize)
            }
            "ADMIN_CONNECTIONS" => {
                let connections = &self.control.connections;
                let busier = connections.admin.load(Relaxed).max(connections.metrics.load(Relaxed));
                now(busier, limits::ADMIN_CONNECTIONS)
            }
            _ => None,
        }
    }

    fn times_reached(&self, limit: &str) -> Option<u64> {
        let shared = &self.control.shared;
        match limit {
            "SPANS_QUEUED" => shared.spans.as_ref().map(|spans| spans.dropped()),
            // 0 also means that the limit is not counted.
            _ => Some(shared.metrics.times_reached(limit)).filter(|times| *times > 0),
        }
    }

    fn most(&self, of: impl Fn(&Report) -> usize) -> usize {
        self.reports.iter().flatten().map(of).max().unwrap_or_default()
    }

    /// The use of the worker that is closest to the limit, now and at its highest.
    fn level(&self, limit: usize, of: impl Fn(&Report) -> Level) -> Option<Use> {
        let (now, highest) = (self.most(|report| of(report).now), self.most(|report| of(report).highest));
        Some(Use { now: now as u64, of: limit as u64, highest: Some(highest as u64) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_left_out_are_in_the_table() {
        for name in OF_THE_CONTROL_PLANE {
            assert!(limits::ALL.iter().any(|limit| limit.name == name), "{name}");
        }
    }
}
