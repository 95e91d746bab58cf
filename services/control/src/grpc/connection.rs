//! A connection of the gRPC port, and how long it may stay open without a call.
//!
//! A peer without an SVID is disconnected [`limits::CONTROL_PROOF_WAIT`] after its handshake, whatever it does: all
//! that it may do is ask for an SVID. So is a peer with an SVID that has made no call by then. A peer that has made one
//! is disconnected when it has had no call for [`limits::CONTROL_IDLE`].

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
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

use super::{admission::Place, peer::Peer};

/// A connection whose handshake is done.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    timer: Pin<Box<Sleep>>,
    /// Only for strangers: members never have to make room.
    must_go: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: Place,
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<TcpStream>, peer: Peer, place: Place) -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + limits::CONTROL_PROOF_WAIT));
        let must_go = (!place.is_member()).then(|| Box::pin(place.must_go().cancelled_owned()));
        Self { stream, peer, timer, must_go, _place: place }
    }

    /// Whether the connection has to end. Wakes the task when this may have changed.
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
