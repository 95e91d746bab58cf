//! What workers say of themselves when the admin port asks: the calls that run, and how much is in use of what is
//! bounded.
//!
//! A worker is asked through a channel and answers on its own thread, between the turns of its connections, which know
//! their calls. So a call pays nothing for it.

use std::{cell::Cell, rc::Rc, sync::Arc};

use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use weft_mesh::limits;
use weft_wire::Usage;

use crate::{endpoints::catalog::Endpoint, telemetry::metrics::CallMetrics, time::moment::Moment};

/// Questions that wait for one worker; whoever has more waits with them, for no longer than for an answer.
const QUESTIONS_QUEUED: usize = 4;

/// What is asked: a place for the answer.
pub(crate) type Question = oneshot::Sender<Report>;

/// The ways to all workers.
pub(crate) struct Surveyor(Vec<mpsc::Sender<Question>>);

impl Surveyor {
    /// With the workers' ends.
    pub(crate) fn new(workers: u8) -> (Self, Vec<mpsc::Receiver<Question>>) {
        let (ways, ends) = (0..workers).map(|_| mpsc::channel(QUESTIONS_QUEUED)).unzip();
        (Self(ways), ends)
    }

    /// The reports of all workers, in their order; `None` for one that does not answer in time.
    pub(crate) async fn ask(&self) -> Vec<Option<Report>> {
        let ask = async |way: &mpsc::Sender<Question>| {
            let (question, answer) = oneshot::channel();
            way.send(question).await.ok()?;
            answer.await.ok()
        };
        let in_time = async |way| timeout(limits::SURVEY_TIMEOUT, ask(way)).await.ok().flatten();
        join_all(self.0.iter().map(in_time)).await
    }
}

/// One worker at one moment.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) calls: usize,
    /// Of the side that has more.
    pub(crate) calls_of_side: Level,
    /// Those that began first, at most [`limits::LIVE_CALLS_SHOWN`].
    pub(crate) oldest: Vec<LiveCall>,
    /// Those whose TLS handshake is not done among them.
    pub(crate) connections_accepted: usize,
    /// Of the side that has more.
    pub(crate) connections_of_side: Level,
    /// Those whose TLS handshake is not done.
    pub(crate) handshakes: usize,
    /// Of the accepted connection that has most.
    pub(crate) streams_on_one: usize,
    pub(crate) connections_made: usize,
    /// Of the endpoint to which there are most.
    pub(crate) connections_to_one: usize,
    /// Of the side that has more.
    pub(crate) replay_bytes_of_side: Level,
    /// Of both.
    pub(crate) replay_bytes: usize,
    /// Of all its HTTP/2 connections: for each amount the most that one has.
    pub(crate) most: Usage,
    /// The same, all together.
    pub(crate) sum: Usage,
    /// What the connection of another kind that has most holds back, one way.
    pub(crate) socket_bytes: usize,
    /// Buffers of all of those.
    pub(crate) sockets_buffer_bytes: usize,
    /// What they hold of calls, as the budget counts it.
    pub(crate) held_bytes: usize,
    /// For whom, on each side, those that hold most first: at most [`HOLDERS`] of them.
    pub(crate) callers: Vec<(String, usize)>,
    pub(crate) callees: Vec<(String, usize)>,
    /// Buffers that no connection has at present.
    pub(crate) spare_bytes: usize,
}

/// How much there is of something, and how much there ever was.
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

/// Those for whom connections hold most bytes that the admin port shows of each side.
pub(crate) const HOLDERS: usize = 5;

/// Those that hold most.
pub(crate) fn largest(mut holders: Vec<(String, usize)>) -> Vec<(String, usize)> {
    holders.retain(|(_, bytes)| *bytes > 0);
    holders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    holders.truncate(HOLDERS);
    holders
}

/// What can be told of a call that runs, on any thread.
#[derive(Debug)]
pub(crate) struct LiveCall {
    pub(crate) is_outbound: bool,
    pub(crate) started: Moment,
    pub(crate) deadline: Option<Moment>,
    /// The row that it will be counted in: it has names. There is none before the call has a target.
    pub(crate) metrics: Option<Arc<CallMetrics>>,
    /// Without its query, which is nobody's business.
    pub(crate) path: Option<String>,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) progress: Progress,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) tries: u32,
}

/// How far a call is.
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
    /// It has ended; what it has sent may still be under way.
    fn is_over(&self) -> bool;
    fn look(&self) -> LiveCall;
}

/// What the connections hold on which calls come in.
#[derive(Default)]
pub(crate) struct Accepts {
    /// Those of HTTP/2.
    pub(crate) links: Vec<Usage>,
    /// Those that carry one call at a time.
    pub(crate) sockets: Vec<Usage>,
    pub(crate) calls: Vec<Rc<dyn Live>>,
}

/// What the pools of a worker say.
#[derive(Default)]
pub(crate) struct PoolSurvey {
    pub(crate) usages: Vec<Usage>,
    pub(crate) connections: usize,
    pub(crate) connections_to_one: usize,
}

impl PoolSurvey {
    /// Takes in one pool.
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
    async fn a_worker_that_hangs_does_not_keep_the_others_from_being_seen() {
        let (surveyor, mut ends) = Surveyor::new(2);
        let mut second = ends.pop().unwrap();
        tokio::spawn(async move {
            while let Some(question) = second.recv().await {
                let _ = question.send(Report::default());
            }
        });
        // More often than questions can wait for the one that hangs.
        for _ in 0..2 * QUESTIONS_QUEUED {
            let answered: Vec<bool> = surveyor.ask().await.iter().map(Option::is_some).collect();
            assert_eq!(answered, [false, true]);
        }
    }

    #[test]
    fn a_gauge_remembers_its_highest() {
        let gauge = Gauge::default();
        gauge.add(3);
        gauge.take(2);
        gauge.add(1);
        assert_eq!((gauge.level().now, gauge.level().highest), (2, 3));
    }
}
