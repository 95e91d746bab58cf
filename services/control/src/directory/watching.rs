//! A watcher, held by its stream.

use std::sync::Arc;

use tokio::sync::Notify;
use weft_contracts::weft::discovery::v1::WatchResponse;

use super::{
    Directory,
    watcher::{TooManyWatched, Watcher},
    watchers::WatcherId,
};

/// See the module. Dropping it ends the watch.
pub(crate) struct Watching {
    directory: Arc<Directory>,
    id: WatcherId,
    news: Arc<Notify>,
}

impl Watching {
    pub(super) fn new(directory: Arc<Directory>, id: WatcherId, news: Arc<Notify>) -> Self {
        Self { directory, id, news }
    }

    /// Changes what the watcher follows.
    pub(crate) fn update(
        &self,
        change: impl FnOnce(&mut Watcher) -> Result<(), TooManyWatched>,
    ) -> Result<(), TooManyWatched> {
        self.directory.lock().watchers.update(self.id, change).expect("the watcher exists until `self` is dropped")
    }

    /// The next response, if there is one now.
    pub(crate) fn next(&self) -> Option<WatchResponse> {
        let state = &mut *self.directory.lock();
        state.watchers.next(self.id, &state.registry)
    }

    /// Waits until there may be a response. Dropping the future loses nothing.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.directory.lock().watchers.remove(self.id);
    }
}
