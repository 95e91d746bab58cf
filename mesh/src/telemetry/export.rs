//! From finished spans to batches at every target.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};

use super::{ExportTarget, Origin, TelemetryError, console};
use crate::limits;

/// Batches that wait for a target which is busy with another; past it a batch is lost for that target.
const BATCHES_QUEUED: usize = 8;

/// How often a target that fails is complained about.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// Where finished spans go in; cheap to clone, used from any thread.
#[derive(Clone, Debug)]
pub struct SpanSink {
    queue: mpsc::Sender<SpanData>,
    losses: Arc<Losses>,
}

#[derive(Debug, Default)]
struct Losses {
    dropped: AtomicU64,
    undelivered: AtomicU64,
}

impl SpanSink {
    /// Takes a finished span for export. It never waits: when the queue is full, or the export has ended, the span is
    /// dropped and counted.
    pub fn push(&self, span: SpanData) {
        if self.queue.try_send(span).is_err() {
            self.losses.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Spans that found no room in the queue.
    pub fn dropped(&self) -> u64 {
        self.losses.dropped.load(Ordering::Relaxed)
    }

    /// Spans that did not reach a target because it was slow or failed, counted for each target.
    pub fn undelivered(&self) -> u64 {
        self.losses.undelivered.load(Ordering::Relaxed)
    }
}

/// The task that takes spans to their targets. When this is dropped without [`Self::shutdown`] the task is aborted,
/// and what waits is lost.
#[derive(Debug)]
pub struct SpanExport {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl SpanExport {
    /// Starts the export on the runtime of the caller. Fails only for a target that can't ever work; one that can't be
    /// reached is tried again with each batch.
    pub fn start(targets: &[ExportTarget], origin: &Origin) -> Result<(SpanSink, Self), TelemetryError> {
        let resource = origin.resource();
        let exporters = targets.iter().map(|target| Exporter::new(target, &resource)).collect::<Result<Vec<_>, _>>()?;
        let (queue, spans) = mpsc::channel(limits::SPANS_QUEUED);
        let losses = Arc::new(Losses::default());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(collect(spans, stopped, exporters, Arc::clone(&losses)));
        Ok((SpanSink { queue, losses }, Self { stop: Some(stop), task }))
    }

    /// Takes no more spans, and waits for those that were taken to be exported, [`limits::SPAN_FLUSH_TIMEOUT`] at most.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            // It fails when the task is gone already, and then there is nothing to stop.
            let _ = stop.send(());
        }
        match time::timeout(limits::SPAN_FLUSH_TIMEOUT, &mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the export of spans has failed"),
            Err(_) => tracing::warn!("spans are lost: their targets did not take them in time"),
        }
    }
}

impl Drop for SpanExport {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Collects spans to batches and hands each batch to every target's own task.
async fn collect(
    mut spans: mpsc::Receiver<SpanData>,
    mut stopped: oneshot::Receiver<()>,
    exporters: Vec<Exporter>,
    losses: Arc<Losses>,
) {
    let mut tasks = JoinSet::new();
    let mut outlets = Vec::new();
    for exporter in exporters {
        let (outlet, batches) = mpsc::channel(BATCHES_QUEUED);
        tasks.spawn(deliver(exporter, batches, Arc::clone(&losses)));
        outlets.push(outlet);
    }

    let mut batch = Vec::with_capacity(limits::SPAN_BATCH);
    // A sink that is gone ends the collecting too: nothing more can come.
    while next_batch(&mut spans, &mut stopped, &mut batch).await {
        for outlet in &outlets {
            if outlet.try_send(batch.clone()).is_err() {
                losses.undelivered.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
        }
        batch.clear();
    }

    spans.close();
    loop {
        for outlet in outlets.iter().filter(|_| !batch.is_empty()) {
            // The time of all this is limited by whoever waits for it. It fails when the target's task is gone.
            let _ = outlet.send(batch.clone()).await;
        }
        batch.clear();
        if spans.recv_many(&mut batch, limits::SPAN_BATCH).await == 0 {
            break;
        }
    }
    drop(outlets);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task that exports spans has failed");
        }
    }
}

/// Fills a batch. `false`: it is the last one, and may be empty.
async fn next_batch(
    spans: &mut mpsc::Receiver<SpanData>,
    stopped: &mut oneshot::Receiver<()>,
    batch: &mut Vec<SpanData>,
) -> bool {
    let mut leaves_at = None;
    while batch.len() < limits::SPAN_BATCH {
        let room = limits::SPAN_BATCH - batch.len();
        tokio::select! {
            _ = &mut *stopped => return false,
            taken = spans.recv_many(batch, room) => {
                if taken == 0 {
                    return false;
                }
                leaves_at.get_or_insert_with(|| Instant::now() + limits::SPAN_BATCH_WAIT);
            }
            // Without a first span there is nothing to leave.
            () = time::sleep_until(leaves_at.unwrap_or_else(Instant::now)), if leaves_at.is_some() => break,
        }
    }
    true
}

/// Exports batches to one target, one after the other.
async fn deliver(exporter: Exporter, mut batches: mpsc::Receiver<Vec<SpanData>>, losses: Arc<Losses>) {
    let mut complaint = Complaint::default();
    while let Some(batch) = batches.recv().await {
        let count = batch.len() as u64;
        if let Err(reason) = exporter.export(batch).await {
            losses.undelivered.fetch_add(count, Ordering::Relaxed);
            if let Some(lost) = complaint.is_due(Instant::now(), count) {
                tracing::warn!(target = %exporter.target, spans_lost = lost, reason, "spans can't be exported");
            }
        }
    }
}

/// Keeps a failing target from filling the log.
#[derive(Default)]
struct Complaint {
    last: Option<Instant>,
    lost: u64,
}

impl Complaint {
    /// Whether to complain now, and of how many spans.
    fn is_due(&mut self, now: Instant, lost: u64) -> Option<u64> {
        self.lost += lost;
        if self.last.is_some_and(|last| now < last + COMPLAINT_INTERVAL) {
            return None;
        }
        self.last = Some(now);
        Some(mem::take(&mut self.lost))
    }
}

struct Exporter {
    target: ExportTarget,
    /// `None`: the console.
    otlp: Option<OtlpExporter>,
}

impl Exporter {
    fn new(target: &ExportTarget, resource: &Resource) -> Result<Self, TelemetryError> {
        let otlp = match target {
            ExportTarget::Console => None,
            ExportTarget::Otlp(url) => {
                let mut exporter = OtlpExporter::builder()
                    .with_tonic()
                    .with_endpoint(url)
                    .with_timeout(limits::SPAN_EXPORT_TIMEOUT)
                    .build()
                    .map_err(|error| TelemetryError::Target { target: url.clone(), reason: error.to_string() })?;
                exporter.set_resource(resource);
                Some(exporter)
            }
        };
        Ok(Self { target: target.clone(), otlp })
    }

    async fn export(&self, batch: Vec<SpanData>) -> Result<(), String> {
        let Some(otlp) = &self.otlp else {
            console::print(&batch);
            return Ok(());
        };
        match time::timeout(limits::SPAN_EXPORT_TIMEOUT, otlp.export(batch)).await {
            Ok(exported) => exported.map_err(|error| error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_target_is_complained_about_now_and_then() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        assert_eq!(complaint.is_due(start, 5), Some(5));
        assert_eq!(complaint.is_due(start + COMPLAINT_INTERVAL / 2, 5), None);
        assert_eq!(complaint.is_due(start + COMPLAINT_INTERVAL, 5), Some(10));
    }
}
