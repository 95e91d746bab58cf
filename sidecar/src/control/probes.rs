//! The metrics port: `/metrics` for Prometheus; `/healthz`, `/startz`, `/readyz` and `/drainz` for the supervisor of the
//! process; the [probes](super::app_probes) of the application.

mod breakers;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep_until},
};
use weft_mesh::limits;

use self::breakers::OpenBreakers;
use super::{
    Control,
    app_probes::{self, AppProbes},
    serve::serve,
};
use crate::{
    shared::{Phase, Shared},
    telemetry::metrics::MetricsCollector,
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the port for as long as the sidecar runs.
pub(super) async fn run(control: Arc<Control>, listener: TcpListener) -> anyhow::Result<()> {
    let app = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/startz", get(startz))
        .route("/readyz", get(readyz))
        .route("/drainz", get(drainz))
        .with_state(Arc::clone(&control));
    let metrics = Router::new().route("/metrics", get(metrics)).with_state((Arc::clone(&control), Arc::default()));
    let of_app = AppProbes::new(Arc::clone(&control));
    let of_app = Router::new().route("/probes/{container}/{kind}", get(app_probes::answer)).with_state(of_app);
    let (app, streams) = (app.merge(metrics).merge(of_app), limits::METRICS_STREAMS);
    serve(&control, listener, "the metrics port", app, streams, &control.connections.metrics).await;
    Ok(())
}

/// For a supervisor that starts the service after its sidecar: 200 when the service can call. The ports are taken before
/// this one is served.
async fn startz(State(control): State<Arc<Control>>) -> Response {
    unless(control.unstarted_reason(), "started\n")
}

async fn readyz(State(control): State<Arc<Control>>) -> Response {
    unless(control.unready_reason(), "ready\n")
}

fn unless(reason: Option<&'static str>, good: &'static str) -> Response {
    match reason {
        None => good.into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// For a supervisor that stops the service after its sidecar: 200 when no call runs in the service and none will come.
async fn drainz(State(control): State<Arc<Control>>) -> Response {
    let shared = &control.shared;
    if shared.is_drained.load(Relaxed) {
        return "drained\n".into_response();
    }
    let why = if shared.phase() == Phase::Running { "takes calls\n" } else { "calls still run\n" };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn metrics(State((control, pages)): State<(Arc<Control>, Arc<Pages>)>) -> Response {
    match pages.get(|| page_of(&control.shared)).await {
        Ok(page) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn page_of(shared: &Shared) -> Result<String, fmt::Error> {
    if let Some(spans) = &shared.spans {
        shared.metrics.counters.spans_dropped.store(spans.dropped(), Relaxed);
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(MetricsCollector(Arc::clone(&shared.metrics))));
    registry.register_collector(Box::new(OpenBreakers::of(&shared.catalog.view())));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// The last page of metrics, and older ones that are still being sent. Anybody may ask for pages, so the number of
/// requests must affect neither their cost nor their memory.
#[derive(Debug, Default)]
struct Pages(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    last: Option<(Instant, Arc<str>)>,
    /// Older pages that are still being sent.
    older: Vec<Arc<str>>,
}

/// A page that is being sent. It counts until its last reader has it or has gone.
struct Page(Arc<str>);

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Pages {
    /// A page that is no older than the request; but the last page if too many are still being sent. A request that
    /// comes too soon after a page was made waits for the next one and shares it. Dropping the future changes nothing.
    async fn get(&self, make: impl Fn() -> Result<String, fmt::Error>) -> Result<Bytes, fmt::Error> {
        let asked = Instant::now();
        // Each round waits for a later time. It is the last one unless another request has made a page meanwhile.
        loop {
            let due = {
                let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                match made.get(asked, &make)? {
                    Ok(page) => return Ok(Bytes::from_owner(Page(page))),
                    Err(due) => due,
                }
            };
            sleep_until(due).await;
        }
    }
}

impl Made {
    /// The page, or the time from which one may be made.
    fn get(
        &mut self,
        asked: Instant,
        make: impl Fn() -> Result<String, fmt::Error>,
    ) -> Result<Result<Arc<str>, Instant>, fmt::Error> {
        let now = Instant::now();
        let is_sent = |page: &Arc<str>| Arc::strong_count(page) > 1;
        if let Some((at, page)) = &self.last {
            self.older.retain(is_sent);
            let due = *at + limits::METRICS_PAGE_INTERVAL;
            let sent = self.older.len() + usize::from(is_sent(page));
            if *at >= asked || sent >= limits::METRICS_PAGES {
                return Ok(Ok(Arc::clone(page)));
            }
            if now < due {
                return Ok(Err(due));
            }
        }
        let page = Arc::from(make()?);
        let before = self.last.replace((now, Arc::clone(&page)));
        self.older.extend(before.map(|(_, page)| page).filter(is_sent));
        Ok(Ok(page))
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use futures_util::future::join_all;

    use super::*;

    /// Makes numbered pages.
    fn numbered(made: &Cell<usize>) -> impl Fn() -> Result<String, fmt::Error> + '_ {
        || {
            made.set(made.get() + 1);
            Ok(format!("page {}", made.get()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_at_the_same_time_share_a_page_that_is_no_older_than_they_are() {
        let (pages, made) = (Pages::default(), Cell::new(0));
        let make = numbered(&made);
        assert_eq!(pages.get(&make).await.unwrap(), "page 1");
        for round in 2..10 {
            // The time since the last page: shorter or longer than the interval between pages.
            tokio::time::advance(Duration::from_millis(round * 40)).await;
            let asked = join_all((0..100).map(|_| pages.get(&make))).await;
            let first = asked[0].as_ref().unwrap();
            assert_eq!(*first, format!("page {round}"));
            let is_shared = |page: &Bytes| page.as_ptr() == first.as_ptr();
            assert!(asked.iter().all(|page| is_shared(page.as_ref().unwrap())), "only one is in memory");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_unread_pages_is_limited() {
        let (pages, made) = (Pages::default(), Cell::new(0));
        let make = numbered(&made);
        let mut unread = Vec::new();
        for _ in 0..100 {
            unread.push(pages.get(&make).await.unwrap());
            tokio::time::advance(limits::METRICS_PAGE_INTERVAL).await;
        }
        assert_eq!(made.get(), limits::METRICS_PAGES, "then the last one is handed out again");
        assert_eq!(unread[99].as_ptr(), unread[limits::METRICS_PAGES - 1].as_ptr());
        // A reader that has gone makes room for one page.
        unread.remove(0);
        for _ in 0..3 {
            unread.push(pages.get(&make).await.unwrap());
            assert_eq!(made.get(), limits::METRICS_PAGES + 1);
            tokio::time::advance(limits::METRICS_PAGE_INTERVAL).await;
        }
        unread.clear();
        assert_eq!(pages.get(&make).await.unwrap(), format!("page {}", limits::METRICS_PAGES + 2));
        assert!(pages.0.lock().unwrap().older.is_empty(), "nothing is kept of what was read");
    }
}
