//! The timeouts of a connection with one call at a time.

use std::task::Context;

use tokio::time::{Instant, sleep_until};
use weft_mesh::limits;

use super::{Occasion, SocketDriver, SocketError, Stream};
use crate::transport::{link::Role, socket::core::Fate};

/// What may have taken too long.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// The peer should have closed the connection.
    Closed,
    /// The peer should have read the last bytes.
    Read,
    /// The discarded rest of a request that was answered early.
    RestOfRequest,
    /// A request's head.
    Head,
    /// The answer to a client that has ended its side.
    HalfClosed,
    /// The next request.
    Idle,
}

impl<IO: Stream, F: FnMut(Occasion) + Unpin> SocketDriver<IO, F> {
    /// Handles a timeout that is due, or sets the sleep for the next one.
    pub(super) fn keep_time(&mut self, cx: &mut Context<'_>) -> Result<(), SocketError> {
        let is_discarding = self.socket.core.borrow().is_discarding();
        self.discarding_since = is_discarding.then(|| self.discarding_since.unwrap_or(self.worker.now()));
        let is_unread = self.socket.core.borrow().is_last_unsent();
        self.unread_since = is_unread.then(|| self.unread_since.unwrap_or(self.worker.now()));
        loop {
            let Some((due, what)) = self.due() else { return Ok(()) };
            if due <= self.worker.now() {
                return self.time_is_up(what);
            }
            // Set again only when it has run out, which is nearly never: each call moves the timeout further away.
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if sleep.deadline() > due {
                sleep.as_mut().reset(due);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.sleep = None;
            self.worker.tick();
        }
    }

    fn due(&self) -> Option<(Instant, Due)> {
        let core = self.socket.core.borrow();
        if let Some(end) = self.closing_ends() {
            return (core.fate == Fate::Closing).then_some((end, Due::Closed));
        }
        if let Some(since) = self.unread_since {
            return Some((since + limits::UNREAD_TIME, Due::Read));
        }
        if let Some(since) = self.discarding_since {
            return Some((since + limits::LINGER_TIME, Due::RestOfRequest));
        }
        if let Some(since) = self.head_since {
            return Some((since + limits::DETECT_TIMEOUT, Due::Head));
        }
        if let Some(since) = self.ended_since
            && self.socket.role == Role::Server
            && core.call.is_some()
            && !core.is_raw()
        {
            return Some((since + limits::HALF_CLOSED_TIME, Due::HalfClosed));
        }
        drop(core);
        let idle_limit = match self.socket.role {
            Role::Server => limits::IDLE_CONNECTION,
            Role::Client => limits::IDLE_HTTP1_CONNECTION,
        };
        let idle_since = self.socket.idle_since()?;
        let idle_until = match self.socket.drained_since.get() {
            Some(drained) => idle_since.max(drained) + limits::HTTP1_DRAIN_IDLE,
            None => idle_since + idle_limit,
        };
        Some((idle_until, Due::Idle))
    }

    fn time_is_up(&mut self, what: Due) -> Result<(), SocketError> {
        match what {
            // Handled at the end of the turn, in `is_over`.
            Due::Closed => {}
            Due::Read => {
                self.worker.shared.metrics.limit_reached("UNREAD_TIME");
                self.socket.core.borrow_mut().fate = Fate::Aborted;
            }
            Due::RestOfRequest => {
                self.worker.shared.metrics.limit_reached("LINGER_TIME");
                self.socket.close();
            }
            Due::Head => return Err(SocketError::SlowHead),
            Due::HalfClosed => return Err(SocketError::HalfClosed),
            Due::Idle => self.socket.close(),
        }
        Ok(())
    }

    /// Whether the time is up in which the peer should have closed the connection.
    pub(super) fn is_close_overdue(&self) -> bool {
        self.socket.core.borrow().fate == Fate::Closing
            && self.closing_ends().is_some_and(|end| end <= self.worker.now())
    }

    /// When the peer must have closed the connection.
    fn closing_ends(&self) -> Option<Instant> {
        self.closing.map(|(since, time)| since + time)
    }
}
