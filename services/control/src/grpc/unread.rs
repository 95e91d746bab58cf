//! How much an identity has not read of its answers. See [`super::answers`].

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::Status;
use weft_mesh::limits;

/// The answers that an identity has not read.
#[derive(Debug)]
pub(crate) struct Unread {
    bytes: AtomicUsize,
    has_room: Notify,
    turns: Arc<Semaphore>,
}

impl Default for Unread {
    fn default() -> Self {
        let turns = Arc::new(Semaphore::new(limits::ANSWERS_AT_ONCE));
        Self { bytes: AtomicUsize::new(0), has_room: Notify::new(), turns }
    }
}

/// The turn of a large answer. It ends when HTTP/2 has sent the answer or given it up.
#[derive(Clone)]
pub(crate) struct Turn {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Unread {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes() >= limits::ANSWER_BYTES_UNREAD
    }

    /// Waits until more may be sent.
    pub(crate) async fn room(&self) {
        loop {
            let mut has_room = pin!(self.has_room.notified());
            has_room.as_mut().enable();
            if !self.is_full() {
                return;
            }
            has_room.await;
        }
    }

    /// Waits until a large answer may be built.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the answers before it are not read within [`limits::CONTROL_MESSAGE_TIME`].
    pub(crate) async fn turn(&self) -> Result<Turn, Status> {
        match timeout(limits::CONTROL_MESSAGE_TIME, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Turn { _permit: Arc::new(permit) }),
            Ok(Err(_)) | Err(_) => Err(Status::resource_exhausted(format!(
                "{} answers to this identity are not read, which is the limit",
                limits::ANSWERS_AT_ONCE
            ))),
        }
    }
}

/// A part of an answer that is not read yet.
pub(crate) struct Part {
    data: Bytes,
    unread: Arc<Unread>,
    _turn: Option<Turn>,
}

impl Part {
    pub(crate) fn new(data: Bytes, unread: &Arc<Unread>, turn: &Option<Turn>) -> Self {
        unread.bytes.fetch_add(data.len(), Relaxed);
        Self { data, unread: Arc::clone(unread), _turn: turn.clone() }
    }
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// HTTP/2 takes a part as a whole, and keeps what does not fit into the window. It drops the part when it is sent, or
/// when its stream is gone.
impl Drop for Part {
    fn drop(&mut self) {
        self.unread.bytes.fetch_sub(self.data.len(), Relaxed);
        if !self.unread.is_full() {
            self.unread.has_room.notify_waiters();
        }
    }
}
