//! The call that is being answered: the headers that it carries, which are passed on to the calls made for it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tracing::Instrument;
use weft_mesh::{
    names::header,
    trace_context::{TRACESTATE, TraceContext},
};

use crate::deadline;

/// `x-request-id`
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static(header::REQUEST_ID);

/// The longest request id that is accepted from a caller.
const MAX_REQUEST_ID_BYTES: usize = 128;

tokio::task_local! {
    static CURRENT: Call;
}

/// The call that is being answered. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Call {
    pub(crate) request_id: HeaderValue,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) tracestate: Option<HeaderValue>,
    pub(crate) deadline: Option<Instant>,
    /// The trace context of the call's own span, if spans are recorded. It exists even if the caller named no trace.
    pub(crate) position: Option<TraceContext>,
}

impl Call {
    /// Reads a call's headers. A request id that is missing, too long or not printable is replaced by a new one.
    pub(crate) fn from_headers(headers: &HeaderMap, now: Instant) -> Self {
        let taken = headers.get(&REQUEST_ID).filter(|id| {
            (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        });
        Self {
            request_id: taken.cloned().unwrap_or_else(new_request_id),
            trace: TraceContext::from_headers(headers),
            tracestate: headers.get(&TRACESTATE).cloned(),
            deadline: deadline::read(headers).and_then(|left| now.checked_add(left)),
            position: None,
        }
    }

    /// The id by which everything done for one external request can be found: the caller's, or one made here.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The id of the trace that the call belongs to, in hexadecimal; `None` if the caller named none and spans are not
    /// recorded.
    pub fn trace_id(&self) -> Option<String> {
        let trace = self.position.or(self.trace)?;
        Some(String::from_utf8_lossy(&trace.trace_id_hex()).into_owned())
    }

    /// What remains of the caller's time limit, zero once it has passed; `None` if the caller set none.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// The call that the running task answers, if it answers one.
pub fn current() -> Option<Call> {
    CURRENT.try_with(Call::clone).ok()
}

/// `tokio::spawn` that takes the current call and its span along, so that calls made by the new task carry them too.
///
/// Nothing ends the task unless the handle is kept: a task that outlives its call should have a time limit.
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    match current() {
        Some(call) => tokio::spawn(with(call, future).in_current_span()),
        None => tokio::spawn(future.in_current_span()),
    }
}

/// Runs a future with `call` as the current one.
pub(crate) fn with<F: Future>(call: Call, future: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(call, future)
}

/// Runs a function with `call` as the current one.
pub(crate) fn within<R>(call: &Call, run: impl FnOnce() -> R) -> R {
    CURRENT.sync_scope(call.clone(), run)
}

fn new_request_id() -> HeaderValue {
    HeaderValue::try_from(format!("{:032x}", fastrand::u128(..))).expect("hexadecimal is a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)]) -> Call {
        let headers =
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
        Call::from_headers(&headers, Instant::now())
    }

    #[test]
    fn a_request_id_is_accepted_or_made() {
        assert_eq!(of(&[("x-request-id", "abc-1")]).request_id(), "abc-1");
        for refused in ["", "a b", &"x".repeat(129)] {
            let made = of(&[("x-request-id", refused)]);
            assert_eq!(made.request_id().len(), 32, "{refused}");
        }
        assert_ne!(of(&[]).request_id(), of(&[]).request_id());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_left_runs_down_to_zero() {
        let call = of(&[("grpc-timeout", "2S")]);
        assert_eq!(call.remaining(), Some(Duration::from_secs(2)));
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(call.remaining(), Some(Duration::from_millis(500)));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(call.remaining(), Some(Duration::ZERO));
        assert_eq!(of(&[]).remaining(), None);
    }

    #[tokio::test]
    async fn only_the_kit_s_spawn_takes_the_call_along() {
        with(of(&[("x-request-id", "abc")]), async {
            let id = || current().map(|call| call.request_id().to_owned());
            assert_eq!(spawn(async move { id() }).await.unwrap().as_deref(), Some("abc"));
            assert_eq!(tokio::spawn(async move { id() }).await.unwrap(), None);
        })
        .await;
    }
}
