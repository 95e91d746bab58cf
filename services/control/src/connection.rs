//! A connection of the gRPC port, and how long it may be without a call.
//!
//! A peer that has shown no SVID is cut off when [`limits::CONTROL_PROOF_WAIT`] has passed since its handshake, whatever it
//! does meanwhile: all that it may do is ask for an SVID. So is one that has shown its SVID and made no call by then; one
//! that has is cut off when it has had no call for [`limits::CONTROL_IDLE`].

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;
use weft_mesh::limits;

use crate::{admission::Place, peer::Peer};

/// What a connection does, as its calls see it.
#[derive(Debug)]
pub(crate) struct Activity {
    began: Instant,
    is_known: AtomicBool,
    calls: AtomicUsize,
    /// Since when there is no call: milliseconds after `began`.
    idle_since: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            is_known: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
        }
    }
}

/// A call that runs, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Call(Arc<Activity>);

impl Activity {
    /// The peer makes a call with the SVID that it has shown.
    pub(crate) fn note_known(&self) {
        self.is_known.store(true, Relaxed);
    }

    /// A call begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Relaxed);
        Call(Arc::clone(self))
    }

    /// Until when the connection may go on as it is now; `None` while it has calls.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if !self.is_known.load(Relaxed) {
            return Some(self.began + limits::CONTROL_PROOF_WAIT);
        }
        let idle_since = self.began + Duration::from_millis(self.idle_since.load(Relaxed));
        (self.calls.load(Relaxed) == 0).then(|| idle_since + limits::CONTROL_IDLE)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.store(since, Relaxed);
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

/// A connection whose handshake is done.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    timer: Pin<Box<Sleep>>,
    /// Of a stranger only: members never have to.
    must_go: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: Place,
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<TcpStream>, peer: Peer, place: Place) -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + limits::CONTROL_PROOF_WAIT));
        let must_go = (!place.is_member()).then(|| Box::pin(place.must_go().cancelled_owned()));
        Self { stream, peer, timer, must_go, _place: place }
    }

    /// Whether the connection has to end. Wakes the task when that may have changed.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { peer, timer, must_go, .. } = self;
        let activity = peer.activity();
        if must_go.as_mut().is_some_and(|must_go| must_go.as_mut().poll(cx).is_ready()) {
            return true;
        }
        // Each round sets the timer to a later time, or ends.
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            match activity.deadline() {
                Some(deadline) if deadline <= now => return true,
                Some(deadline) => timer.as_mut().reset(deadline),
                None => timer.as_mut().reset(now + limits::CONTROL_IDLE),
            }
        }
        false
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            tracing::debug!(peer = ?self.peer, "a connection without a call is ended");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_unknown_has_little_time_and_who_has_a_call_has_all() {
        let (activity, began) = (Arc::new(Activity::default()), Instant::now());
        let unproven = activity.begin();
        assert_eq!(activity.deadline(), Some(began + limits::CONTROL_PROOF_WAIT), "a call alone proves nothing");
        drop(unproven);
        activity.note_known();
        let (one, two) = (activity.begin(), activity.begin());
        assert_eq!(activity.deadline(), None);
        drop(one);
        advance(Duration::from_secs(3_600)).await;
        assert_eq!(activity.deadline(), None);
        drop(two);
        assert_eq!(activity.deadline(), Some(Instant::now() + limits::CONTROL_IDLE));
    }
}
