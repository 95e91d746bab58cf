//! How many messages of a stream are read in a second.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Reads at most so many messages in a second. More wait, and fill the stream's flow-control window.
#[derive(Debug)]
pub(super) struct Pace {
    in_a_second: u32,
    began: Instant,
    left: u32,
}

impl Pace {
    pub(super) fn new(in_a_second: u32) -> Self {
        Self { in_a_second, began: Instant::now(), left: in_a_second }
    }

    /// The next message, when it may be read; `None` at the end. Dropping the future loses nothing.
    pub(super) async fn next<T>(&mut self, requests: &mut Streaming<T>) -> Result<Option<T>, Status> {
        if self.left == 0 {
            sleep_until(self.began + SECOND).await;
        }
        let message = requests.message().await?;
        if self.began.elapsed() >= SECOND {
            *self = Self::new(self.in_a_second);
        }
        self.left = self.left.saturating_sub(1);
        Ok(message)
    }
}
