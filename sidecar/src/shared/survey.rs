//! What workers report when the admin port asks: the calls that run, and how much is in use of each limited resource.
//!
//! A worker is asked through a channel and answers on its own thread, between the turns of its connections. The
//! connections know their calls, so a call does no work for this.

use std::{cell::Cell, rc::Rc, sync::Arc};

use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use weft_mesh::limits;
use weft_wire::Usage;

use crate::{endpoints::catalog::Endpoint, telemetry::metrics::CallMetrics, time::moment::Moment};

/// How many questions wait for one worker. More wait for a place in the queue, within [`limits::SURVEY_TIMEOUT`].
const QUESTIONS_QUEUED: usize = 4;

/// A question, which is the place for its answer.
pub(crate) type ReportRequest = oneshot::Sender<Report>;

/// Channels to all workers.
pub(crate) struct Surveyor(Vec<mpsc::Sender<ReportRequest>>);

impl Surveyor {
    /// Returns the receivers for the workers, too.
    pub(crate) fn new(workers: u8) -> (Self, Vec<mpsc::Receiver<ReportRequest>>) {
        let (ways, ends) = (0..workers).map(|_| mpsc::channel(QUESTIONS_QUEUED)).unzip();
        (Self(ways), ends)
    }

    /// The reports of all workers, in their order; `None` for one that does not answer in time.
    pub(crate) async fn ask(&self) -> Vec<Option<Report>> {
        let ask = async |way: &mpsc::Sender<ReportRequest>| {
            let (question, answer) = oneshot::channel();
            way.send(question).await.ok()?;
            answer.await.ok()
        };
        let in_time = async |way| timeout(limits::SURVEY_TIMEOUT, ask(way)).await.ok().flatten();
        join_all(self.0.iter().map(in_time)).await
    }
}

/// The state of one worker at one moment.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) calls: usize,
    /// Calls of the side that has more.
    pub(crate) calls_of_side: Level,
    /// The calls that started first, at most [`limits::LIVE_CALLS_SHOWN`].
    pub(crate) oldest: Vec<LiveCall>,
    /// Includes those whose TLS handshake is not done.
    pub(crate) connections_accepted: usize,
    /// Accepted connections of the side that has more.
    pub(crate) connections_of_side: Level,
    /// Connections whose TLS handshake is not done.
    pub(crate) handshakes: usize,
    /// Streams of the accepted connection that has most.
    pub(crate) streams_on_one: usize,
    pub(crate) connections_made: usize,
    /// Connections to the endpoint to which there are most.
    pub(crate) connections_to_one: usize,
    /// Bytes kept for retries, of the side that has more.
    pub(crate) replay_bytes_of_side: Level,
    /// The same, of both sides.
    pub(crate) replay_bytes: usize,
    /// For each amount, the most that one of the worker's HTTP/2 connections has.
    pub(crate) most: Usage,
    /// The sums over all of these connections.
    pub(crate) sum: Usage,
    /// Bytes that the fullest connection of another kind holds, in its fuller direction.
    pub(crate) socket_bytes: usize,
    /// Bytes in the buffers of all connections of another kind.
    pub(crate) sockets_buffer_bytes: usize,
    /// Bytes that connections hold for calls, as the budget counts them.
    pub(crate) held_bytes: usize,
    /// Who they are held for: callers inbound, callees outbound; the [`HOLDERS`] with most bytes, largest first.
    pub(crate) callers: Vec<(String, usize)>,
    pub(crate) callees: Vec<(String, usize)>,
    /// Bytes in spare buffers, which no connection uses now.
    pub(crate) spare_bytes: usize,
}

/// How much of something there is now, and the most that there ever was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Level {
    pub(crate) now: usize,
    pub(crate) highest: usize,
}

/// A [`Level`] that is kept while calls run.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    now: Cell<usize>,
    highest: Cell<usize>,
}

impl Gauge {
    pub(crate) fn get(&self) -> usize {
        self.now.get()
    }

    pub(crate) fn add(&self, more: usize) {
        let now = self.now.get() + more;
        self.now.set(now);
        if now > self.highest.get() {
            self.highest.set(now);
        }
    }

    pub(crate) fn take(&self, less: usize) {
        self.now.set(self.now.get() - less);
    }

    pub(crate) fn level(&self) -> Level {
        Level { now: self.now.get(), highest: self.highest.get() }
    }
}

/// How many holders of bytes the admin port shows for each side.
pub(crate) const HOLDERS: usize = 5;

/// The holders of most bytes, largest first.
pub(crate) fn largest(mut holders: Vec<(String, usize)>) -> Vec<(String, usize)> {
    holders.retain(|(_, bytes)| *bytes > 0);
    holders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    holders.truncate(HOLDERS);
    holders
}

/// A running call, in a form that any thread can use.
#[derive(Debug)]
pub(crate) struct LiveCall {
    pub(crate) is_outbound: bool,
    pub(crate) started: Moment,
    pub(crate) deadline: Option<Moment>,
    /// The row of metrics that will count the call: it has the names. `None` before the call has a target.
    pub(crate) metrics: Option<Arc<CallMetrics>>,
    /// Without its query, which may hold private data.
    pub(crate) path: Option<String>,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) progress: Progress,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) tries: u32,
}

/// The progress of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Routing,
    Connecting,
    AwaitingAnswer,
    Answering,
}

/// A call, as the survey sees it.
pub(crate) trait Live {
    fn started(&self) -> Moment;
    /// Whether it has ended. The last bytes of its answer may still wait to be sent.
    fn is_over(&self) -> bool;
    fn look(&self) -> LiveCall;
    /// The rules have changed that say who may call. Ends the call if it may not go on.
    fn judge_again(&self);
}

/// What accepted connections hold.
#[derive(Default)]
pub(crate) struct Accepts {
    /// Connections of HTTP/2.
    pub(crate) links: Vec<Usage>,
    /// Connections that carry one call at a time.
    pub(crate) sockets: Vec<Usage>,
    pub(crate) calls: Vec<Rc<dyn Live>>,
}

/// What the connections in a worker's pools hold.
#[derive(Default)]
pub(crate) struct PoolSurvey {
    pub(crate) usages: Vec<Usage>,
    pub(crate) connections: usize,
    pub(crate) connections_to_one: usize,
}

impl PoolSurvey {
    /// Adds one pool.
    pub(crate) fn add(&mut self, usages: Vec<Usage>) {
        self.connections += usages.len();
        self.connections_to_one = self.connections_to_one.max(usages.len());
        self.usages.extend(usages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_others_report_while_one_worker_hangs() {
        let (surveyor, mut ends) = Surveyor::new(2);
        let mut second = ends.pop().unwrap();
        tokio::spawn(async move {
            while let Some(question) = second.recv().await {
                let _ = question.send(Report::default());
            }
        });
        // More questions than can be queued for the worker that hangs.
        for _ in 0..2 * QUESTIONS_QUEUED {
            let answered: Vec<bool> = surveyor.ask().await.iter().map(Option::is_some).collect();
            assert_eq!(answered, [false, true]);
        }
    }

    #[test]
    fn a_gauge_remembers_its_highest_value() {
        let gauge = Gauge::default();
        gauge.add(3);
        gauge.take(2);
        gauge.add(1);
        assert_eq!((gauge.level().now, gauge.level().highest), (2, 3));
    }
}
