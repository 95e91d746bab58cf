//! What the admin port shows of a running call.

use std::sync::Arc;

use super::{Answer, Call};
use crate::{
    message::{failure::Hop, target},
    shared::survey::{LiveCall, Progress},
};

/// A longer path is cut: callers choose it.
const PATH_BYTES: usize = 256;

impl Call {
    /// The state of the call now, for the admin port.
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
            is_outbound: matches!(self.hop, Hop::Outbound),
            started: self.started,
            deadline: self.deadline.get(),
            metrics: state.record.as_ref().map(|record| Arc::clone(record.metrics())),
            path: state.request.head.path().map(path),
            endpoint: state.attempt.as_ref().map(|attempt| Arc::clone(&attempt.endpoint)),
            progress,
            request_bytes: state.request.received as u64,
            response_bytes: state.response_bytes,
            tries: match self.hop {
                Hop::Outbound => self.tries.count() as u32,
                Hop::Inbound => u32::from(state.endpoint.is_some()),
            },
        }
    }
}
