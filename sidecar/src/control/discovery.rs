//! Learns about the services that this sidecar calls: keeps what is known, answers the workers' questions, and follows
//! the control plane's stream of snapshots and changes.
//!
//! What is known stays in use whatever happens to the stream. The rules are in [`watches`], without I/O; this file
//! moves messages between them, the stream, the workers and the disk.

mod build;
mod pending;
mod snapshots;
mod watches;

use std::{
    collections::VecDeque,
    path::Path,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_contracts::weft::discovery::v1::{WatchRequest, WatchResponse, discovery_client::DiscoveryClient};
use weft_mesh::limits;

use self::{
    build::Builder,
    snapshots::SnapshotFile,
    watches::{Effects, Watches},
};
use super::{
    Control,
    channel::CALL_TIMEOUT,
    due,
    retry::{Backoff, Trouble, status},
};
use crate::{endpoints::catalog::DiscoveryQuestion, shared::Phase};

/// Requests that wait in the stream's queue. The others wait in the outbox, which the number of watched services
/// bounds.
const REQUESTS_QUEUED: usize = 64;
/// How many messages are processed before services are built and the workers get a new view: after a reconnect, or when a
/// large service changes, many come at once.
const MESSAGES_PER_VIEW: usize = 256;
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(5);
/// Changes are written to the disk together, this long after the first of them.
const SAVE_DELAY: Duration = Duration::from_millis(500);

/// Follows until the sidecar stops.
pub(super) async fn run(control: Arc<Control>, questions: mpsc::Receiver<DiscoveryQuestion>) -> anyhow::Result<()> {
    // Without an identity no endpoint can be called: until there is one, questions wait in their queue. A call that
    // asks waits no longer than its own time limit.
    tokio::select! {
        _ = control.plane.ready() => {}
        () = control.shared.reached(Phase::Stopping) => return Ok(()),
    }
    let label = control.caller_label();
    let builder = Builder::new(Arc::clone(&control.shared.metrics), label);
    let file = control.shared.args.state_dir.as_deref().map(SnapshotFile::new);
    let mut watches = Watches::new(builder);
    if let Some((saved, age)) = file.as_ref().and_then(SnapshotFile::load) {
        let now = Instant::now();
        let effects = watches.restore(saved, now.checked_sub(age).unwrap_or(now), now);
        tracing::info!(services = watches.len(), "using the services that were known in the last run");
        control.can_discover.store(true, Relaxed);
        effects.publish_to(&control, &watches);
    }
    let stream = WatchStream::new(&control);
    Discovery { control, watches, stream, outbox: VecDeque::new(), file, save_at: None }.run(questions).await;
    Ok(())
}

/// The length of the file of snapshots in a folder, in bytes.
pub(super) fn snapshot_bytes(dir: &Path) -> u64 {
    SnapshotFile::new(dir).bytes()
}

struct Discovery {
    control: Arc<Control>,
    watches: Watches,
    stream: WatchStream,
    /// Requests to the control plane, oldest first. Empty while the stream is down.
    outbox: VecDeque<WatchRequest>,
    file: Option<SnapshotFile>,
    save_at: Option<Instant>,
}

impl Discovery {
    async fn run(mut self, mut questions: mpsc::Receiver<DiscoveryQuestion>) {
        let shared = Arc::clone(&self.control.shared);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let save_at = self.save_at;
            let effects = tokio::select! {
                Some(question) = questions.recv() => self.watches.ask(question, Instant::now()),
                event = self.stream.next(&mut self.outbox) => self.take(event),
                _ = housekeeping.tick() => self.watches.tidy(self.stream.is_up(), Instant::now()),
                () = due(save_at) => {
                    self.save();
                    continue;
                }
                () = shared.reached(Phase::Stopping) => break,
            };
            self.apply(effects);
        }
        self.save();
    }

    fn take(&mut self, event: Event) -> Effects {
        match event {
            Event::Up => {
                self.control.shared.is_control_plane_connected.store(true, Relaxed);
                self.control.can_discover.store(true, Relaxed);
                self.watches.connected()
            }
            Event::Down => {
                self.control.shared.is_control_plane_connected.store(false, Relaxed);
                self.outbox.clear();
                self.watches.disconnected();
                Effects::default()
            }
            Event::Message(first) => {
                let others = std::iter::from_fn(|| self.stream.message_at_hand());
                let messages = std::iter::once(*first).chain(others).take(MESSAGES_PER_VIEW);
                self.watches.take(messages, Instant::now())
            }
        }
    }

    fn apply(&mut self, mut effects: Effects) {
        if self.stream.is_up() {
            self.outbox.extend(effects.take_requests());
        }
        if effects.is_view_changed {
            self.save_at.get_or_insert_with(|| Instant::now() + SAVE_DELAY);
        }
        effects.publish_to(&self.control, &self.watches);
    }

    /// Writes a small file, without fsync: a crash of the machine costs only this cache.
    fn save(&mut self) {
        if let (Some(_), Some(file)) = (self.save_at.take(), &mut self.file) {
            file.save(&self.watches.saved());
        }
    }
}

enum Event {
    /// A new stream: nothing is subscribed on it yet.
    Up,
    Down,
    Message(Box<WatchResponse>),
}

/// The stream to the control plane, opened again whenever it breaks.
struct WatchStream {
    control: Arc<Control>,
    state: StreamState,
    trouble: Trouble,
    backoff: Backoff,
}

enum StreamState {
    Down { until: Instant },
    Opening(Pin<Box<dyn Future<Output = Result<OpenStream, Status>> + Send>>),
    Open(Box<OpenStream>),
}

struct OpenStream {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl WatchStream {
    fn new(control: &Arc<Control>) -> Self {
        Self {
            control: Arc::clone(control),
            state: StreamState::Down { until: Instant::now() },
            trouble: Trouble::new("watching the control plane"),
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
        }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, StreamState::Open(_))
    }

    /// The next thing that happens to the stream; meanwhile requests leave the outbox. Dropping the future loses
    /// nothing: all state is in `self`.
    async fn next(&mut self, outbox: &mut VecDeque<WatchRequest>) -> Event {
        loop {
            match &mut self.state {
                StreamState::Down { until } => {
                    sleep_until(*until).await;
                    self.state = StreamState::Opening(Box::pin(open(Arc::clone(&self.control))));
                }
                StreamState::Opening(opening) => match opening.await {
                    Ok(open) => {
                        self.state = StreamState::Open(Box::new(open));
                        self.trouble.is_over();
                        self.backoff.reset();
                        return Event::Up;
                    }
                    Err(error) => self.broke(&status(&error)),
                },
                StreamState::Open(open) => match open.next(outbox).await {
                    Ok(message) => return Event::Message(Box::new(message)),
                    Err(error) => {
                        self.broke(&error);
                        return Event::Down;
                    }
                },
            }
        }
    }

    /// A message that has already arrived.
    fn message_at_hand(&mut self) -> Option<WatchResponse> {
        match &mut self.state {
            // `next` sees an end or an error again.
            StreamState::Open(open) => open.answers.message().now_or_never()?.ok().flatten(),
            _ => None,
        }
    }

    fn broke(&mut self, error: &str) {
        self.trouble.is(&error);
        self.state = StreamState::Down { until: Instant::now() + self.backoff.wait() };
    }
}

async fn open(control: Arc<Control>) -> Result<OpenStream, Status> {
    let channel = control.plane.ready().await;
    let (requests, queue) = mpsc::channel(REQUESTS_QUEUED);
    let mut client = DiscoveryClient::new(channel).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES);
    let opened = timeout(CALL_TIMEOUT, client.watch(ReceiverStream::new(queue))).await;
    let answers = opened.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
    Ok(OpenStream { requests, answers })
}

impl OpenStream {
    async fn next(&mut self, outbox: &mut VecDeque<WatchRequest>) -> Result<WatchResponse, String> {
        loop {
            tokio::select! {
                permit = self.requests.reserve(), if !outbox.is_empty() => match (permit, outbox.pop_front()) {
                    (Ok(permit), Some(request)) => permit.send(request),
                    _ => return Err("the control plane accepts no more requests".into()),
                },
                message = self.answers.message() => return match message {
                    Ok(Some(message)) => Ok(message),
                    Ok(None) => Err("the control plane ended the stream".into()),
                    Err(error) => Err(status(&error)),
                },
            }
        }
    }
}

impl Effects {
    /// First the view, then the answers: a worker that gets an answer finds the service in the view.
    fn publish_to(self, control: &Control, watches: &Watches) {
        if self.is_view_changed {
            control.shared.catalog.publish(watches.view());
        }
        self.answer();
    }
}
