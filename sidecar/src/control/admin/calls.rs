//! The running calls, and the workers that carry them, for the admin port.

use weft_contracts::weft::admin::v1::{
    LiveCall, LiveCalls, Worker,
    live_call::{Direction, Progress},
};
use weft_mesh::limits;

use super::message::duration;
use crate::{
    shared::survey::{self, Report},
    telemetry::metrics::{CallLabels, Metrics, OTHER},
    time::moment::Moment,
};

/// The calls of all workers, oldest first.
pub(super) fn live(reports: &[Option<Report>], metrics: &Metrics, now: Moment) -> LiveCalls {
    let labels = metrics.labels();
    let total: usize = reports.iter().flatten().map(|report| report.calls).sum();
    let mut calls: Vec<(u32, &survey::LiveCall)> = (0..)
        .zip(reports)
        .flat_map(|(index, report)| {
            report.iter().flat_map(move |report| report.oldest.iter().map(move |call| (index, call)))
        })
        .collect();
    calls.sort_by_key(|(_, call)| call.started);
    calls.truncate(limits::LIVE_CALLS_SHOWN);
    let named =
        |call: &survey::LiveCall| call.metrics.as_ref().and_then(|row| labels.get(&std::sync::Arc::as_ptr(row)));
    let oldest = calls.into_iter().map(|(worker, call)| one(worker, call, named(call), now)).collect();
    LiveCalls { total: total as u32, oldest }
}

fn one(worker: u32, call: &survey::LiveCall, labels: Option<&CallLabels>, now: Moment) -> LiveCall {
    let known = |of: fn(&CallLabels) -> &String| labels.map(of).cloned().unwrap_or_default();
    let method = known(|labels| &labels.method);
    let is_known = !method.is_empty() && method != OTHER;
    LiveCall {
        direction: if call.is_outbound { Direction::Outbound } else { Direction::Inbound }.into(),
        service: known(|labels| &labels.service),
        method: if is_known { method } else { call.path.clone().unwrap_or(method) },
        peer: known(|labels| &labels.peer),
        endpoint: call.endpoint.as_ref().map(|endpoint| endpoint.id.clone()).unwrap_or_default(),
        address: call.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()).unwrap_or_default(),
        progress: match call.progress {
            survey::Progress::Routing => Progress::Routing,
            survey::Progress::Connecting => Progress::Connecting,
            survey::Progress::AwaitingAnswer => Progress::AwaitingAnswer,
            survey::Progress::Answering => Progress::Answering,
        }
        .into(),
        age: duration(now.since(call.started)),
        deadline_left: call.deadline.and_then(|at| duration(at.since(now))),
        request_bytes: call.request_bytes,
        response_bytes: call.response_bytes,
        tries: call.tries,
        worker,
    }
}

/// The workers, in order.
pub(super) fn workers(reports: &[Option<Report>]) -> Vec<Worker> {
    let worker = |(index, report): (u32, &Option<Report>)| match report {
        None => Worker { index, ..Worker::default() },
        Some(report) => Worker {
            index,
            answered: true,
            calls: report.calls as u32,
            connections_accepted: report.connections_accepted as u32,
            connections_made: report.connections_made as u32,
        },
    };
    (0..).zip(reports).map(worker).collect()
}
