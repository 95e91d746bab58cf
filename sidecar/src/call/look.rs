//! A call as it is seen from outside while it runs.

use std::sync::Arc;

use super::{Answer, Call, Way};
use crate::{catalog::Endpoint, metrics::CallMetrics, moment::Moment, target};

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

/// A longer path is cut: it is one of the caller's making.
const PATH_BYTES: usize = 256;

impl Call {
    /// For the admin port.
    pub(crate) fn look(&self) -> LiveCall {
        let state = self.state.borrow();
        let progress = match (&state.answer, &state.endpoint, &state.record) {
            (Answer::Begun { .. } | Answer::Over, ..) => Progress::Answering,
            (Answer::Awaited, Some(_), _) => Progress::AwaitingAnswer,
            (Answer::Awaited, None, Some(_)) => Progress::Connecting,
            (Answer::Awaited, None, None) => Progress::Routing,
        };
        let path = |path: &[u8]| {
            let path = target::without_query(path);
            path.chars().take(PATH_BYTES).collect()
        };
        LiveCall {
            is_outbound: matches!(self.way, Way::Outbound(_)),
            started: self.started,
            deadline: self.deadline.get(),
            metrics: state.record.as_ref().map(|record| Arc::clone(record.metrics())),
            path: state.request.head.path().map(path),
            endpoint: state.attempt.as_ref().map(|attempt| Arc::clone(&attempt.endpoint)),
            progress,
            request_bytes: state.request.received as u64,
            response_bytes: state.response_bytes,
            tries: match &self.way {
                Way::Outbound(tries) => tries.count() as u32,
                Way::Inbound(_) => u32::from(state.endpoint.is_some()),
            },
        }
    }
}
