//! Answers the admin port's questions on a worker's thread, between the turns of its connections.

use std::rc::Rc;

use tokio::sync::mpsc;
use weft_mesh::limits;
use weft_wire::Usage;

use crate::{
    proxy::Proxy,
    shared::survey::{Accepts, Live, Report, ReportRequest, largest},
};

/// Answers for as long as it is polled.
pub(crate) async fn answer(proxy: Rc<Proxy>, mut questions: mpsc::Receiver<ReportRequest>) {
    while let Some(question) = questions.recv().await {
        // It fails if the admin port no longer waits.
        let _ = question.send(report(&proxy));
    }
}

fn report(proxy: &Proxy) -> Report {
    let (worker, pools) = (&proxy.worker, proxy.survey());
    let Accepts { links, sockets, calls } = worker.survey();
    let streams_on_one = links.iter().map(|usage| usage.streams).max().unwrap_or_default();
    let socket_bytes = sockets.iter().map(|usage| usage.held_bytes.max(usage.output_bytes)).max().unwrap_or_default();
    let usages: Vec<Usage> = links.into_iter().chain(pools.usages).collect();
    let most = |amount: fn(&Usage) -> usize| usages.iter().map(amount).max().unwrap_or_default();
    let sum = |amount: fn(&Usage) -> usize| usages.iter().map(amount).sum();
    let over = |amount: &dyn Fn(fn(&Usage) -> usize) -> usize| Usage {
        streams: amount(|usage| usage.streams),
        held_bytes: amount(|usage| usage.held_bytes),
        output_bytes: amount(|usage| usage.output_bytes),
        buffer_bytes: amount(|usage| usage.buffer_bytes),
    };
    Report {
        calls: worker.calls.sum(),
        calls_of_side: worker.calls.level(),
        oldest: oldest(calls, limits::LIVE_CALLS_SHOWN).iter().map(|call| call.look()).collect(),
        connections_accepted: worker.accepted_connections(),
        connections_of_side: worker.connections.level(),
        handshakes: worker.strangers.count(),
        streams_on_one,
        connections_made: pools.connections,
        connections_to_one: pools.connections_to_one,
        replay_bytes_of_side: worker.replay_bytes.level(),
        replay_bytes: worker.replay_bytes.sum(),
        most: over(&most),
        sum: over(&sum),
        socket_bytes,
        sockets_buffer_bytes: sockets.iter().map(|usage| usage.buffer_bytes).sum(),
        held_bytes: worker.accounts.held(),
        callers: largest(worker.peers.bytes()),
        callees: largest(worker.callees.bytes()),
        spare_bytes: worker.spare_bytes(),
    }
}

/// The `count` running calls that started first.
fn oldest(mut calls: Vec<Rc<dyn Live>>, count: usize) -> Vec<Rc<dyn Live>> {
    // Calls that are over are listed while the last bytes of their answers wait to be sent.
    calls.retain(|call| !call.is_over());
    if calls.len() > count {
        calls.select_nth_unstable_by_key(count, |call| call.started());
        calls.truncate(count);
    }
    calls.sort_by_key(|call| call.started());
    calls
}
