//! Exports finished spans in batches to every target.

use std::{
    collections::VecDeque,
    mem,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
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
    sync::{Notify, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};

use super::{ExportTarget, Origin, TelemetryError, console::Console};
use crate::limits;

/// The batches that may wait for a busy target. Past it, a batch is lost for that target.
const BATCHES_QUEUED: usize = 8;

/// How often a failing target is logged.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// The entrance for finished spans. Cheap to clone, and usable from any thread.
#[derive(Clone, Debug)]
pub struct SpanSink(Arc<Queue>);

/// Finished spans that wait for a batch. The collecting task is woken only twice for each batch, by its first span and
/// when it is full: a wake-up costs more than everything else that a call does for its span.
#[derive(Debug, Default)]
struct Queue {
    spans: Mutex<Waiting>,
    changed: Notify,
    dropped: AtomicU64,
    undelivered: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    spans: VecDeque<SpanData>,
    /// The export has ended.
    is_closed: bool,
}

impl SpanSink {
    /// Takes a finished span for export. Never waits: if the queue is full, or the export has ended, the span is
    /// dropped and counted.
    pub fn push(&self, span: SpanData) {
        let mut waiting = self.0.lock();
        if waiting.is_closed || waiting.spans.len() >= limits::SPANS_QUEUED {
            drop(waiting);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.spans.push_back(span);
        let count = waiting.spans.len();
        drop(waiting);
        if count == 1 || count == limits::SPAN_BATCH {
            self.0.changed.notify_one();
        }
    }

    /// The number of spans that wait for a batch.
    pub fn queued(&self) -> usize {
        self.0.len()
    }

    /// The number of spans that were dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// The number of spans that did not reach a target because it was slow or failed, counted for each target.
    pub fn undelivered(&self) -> u64 {
        self.0.undelivered.load(Ordering::Relaxed)
    }
}

impl Queue {
    /// The lock is held for a few instructions only.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.spans.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn len(&self) -> usize {
        self.lock().spans.len()
    }

    /// Waits until a batch is full, or its first span has waited long enough.
    async fn batch(&self) {
        while self.len() == 0 {
            self.changed.notified().await;
        }
        let leaves = time::sleep(limits::SPAN_BATCH_WAIT);
        let mut leaves = pin!(leaves);
        while self.len() < limits::SPAN_BATCH {
            tokio::select! {
                () = &mut leaves => return,
                () = self.changed.notified() => {}
            }
        }
    }

    fn take_batch(&self) -> Vec<SpanData> {
        let mut waiting = self.lock();
        let count = waiting.spans.len().min(limits::SPAN_BATCH);
        waiting.spans.drain(..count).collect()
    }

    /// Takes no more spans.
    fn close(&self) {
        self.lock().is_closed = true;
    }
}

/// The task that sends spans to their targets. If this is dropped without [`Self::shutdown`], the task is aborted and
/// waiting spans are lost.
#[derive(Debug)]
pub struct SpanExport {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl SpanExport {
    /// Starts the export on the caller's runtime. Fails only for a target that can never work; one that can't be
    /// reached is tried again with each batch.
    pub fn start(targets: &[ExportTarget], origin: &Origin) -> Result<(SpanSink, Self), TelemetryError> {
        let resource = origin.resource();
        let exporters = targets.iter().map(|target| Exporter::new(target, &resource)).collect::<Result<Vec<_>, _>>()?;
        let queue = Arc::<Queue>::default();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(collect(Arc::clone(&queue), stopped, exporters));
        Ok((SpanSink(queue), Self { stop: Some(stop), task }))
    }

    /// Takes no more spans, and waits until those that were taken are exported, at most [`limits::SPAN_FLUSH_TIMEOUT`].
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            // It fails only if the task is gone already, and then there is nothing to stop.
            let _ = stop.send(());
        }
        match time::timeout(limits::SPAN_FLUSH_TIMEOUT, &mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the export of spans has failed"),
            Err(_) => tracing::warn!("spans were lost: their targets did not take them in time"),
        }
    }
}

impl Drop for SpanExport {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Collects spans into batches and passes each batch to the task of every target, until it is stopped.
async fn collect(queue: Arc<Queue>, mut stopped: oneshot::Receiver<()>, exporters: Vec<Exporter>) {
    let mut tasks = JoinSet::new();
    let mut outlets = Vec::new();
    for exporter in exporters {
        let (outlet, batches) = mpsc::channel(BATCHES_QUEUED);
        tasks.spawn(deliver(exporter, batches, Arc::clone(&queue)));
        outlets.push(outlet);
    }

    loop {
        tokio::select! {
            _ = &mut stopped => break,
            () = queue.batch() => {}
        }
        let batch = queue.take_batch();
        for outlet in &outlets {
            if outlet.try_send(batch.clone()).is_err() {
                queue.undelivered.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
        }
    }

    queue.close();
    loop {
        let batch = queue.take_batch();
        if batch.is_empty() {
            break;
        }
        for outlet in &outlets {
            // The caller of `shutdown` limits the time. It fails only if the target's task is gone.
            let _ = outlet.send(batch.clone()).await;
        }
    }
    drop(outlets);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task that exports spans has failed");
        }
    }
}

/// Exports batches to one target, one after another.
async fn deliver(exporter: Exporter, mut batches: mpsc::Receiver<Vec<SpanData>>, queue: Arc<Queue>) {
    let mut complaint = Complaint::default();
    while let Some(batch) = batches.recv().await {
        let count = batch.len() as u64;
        if let Err(reason) = exporter.export(batch).await {
            queue.undelivered.fetch_add(count, Ordering::Relaxed);
            if let Some(lost) = complaint.is_due(Instant::now(), count) {
                tracing::warn!(target = %exporter.target, spans_lost = lost, reason, "spans can't be exported");
            }
        }
    }
    if let Way::Console(console) = &exporter.way {
        console.flush().await;
    }
}

/// Keeps a failing target from filling the log.
#[derive(Default)]
struct Complaint {
    last: Option<Instant>,
    lost: u64,
}

impl Complaint {
    /// The number of lost spans to log, if it is time to log.
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
    way: Way,
}

enum Way {
    Console(Console),
    Otlp(Box<OtlpExporter>),
}

impl Exporter {
    fn new(target: &ExportTarget, resource: &Resource) -> Result<Self, TelemetryError> {
        let way = match target {
            ExportTarget::Console => Way::Console(Console::new()?),
            ExportTarget::Otlp(url) => {
                let mut exporter = OtlpExporter::builder()
                    .with_tonic()
                    .with_endpoint(url)
                    .with_timeout(limits::SPAN_EXPORT_TIMEOUT)
                    .build()
                    .map_err(|error| TelemetryError::Target { target: url.clone(), reason: error.to_string() })?;
                exporter.set_resource(resource);
                Way::Otlp(Box::new(exporter))
            }
        };
        Ok(Self { target: target.clone(), way })
    }

    async fn export(&self, batch: Vec<SpanData>) -> Result<(), String> {
        let otlp = match &self.way {
            Way::Console(console) => return console.print(&batch),
            Way::Otlp(otlp) => otlp,
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
    fn a_failing_target_is_logged_only_now_and_then() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        assert_eq!(complaint.is_due(start, 5), Some(5));
        assert_eq!(complaint.is_due(start + COMPLAINT_INTERVAL / 2, 5), None);
        assert_eq!(complaint.is_due(start + COMPLAINT_INTERVAL, 5), Some(10));
    }
}
