//! Connections of programs that know nothing of the mesh: the packet filter has sent them here, and they say where they
//! were going.
//!
//! The service that is called at that address gets them, whatever they name; for a service of HTTP each call goes its way,
//! for others the bytes do. An address at which there is no service is outside the mesh, and is passed through or refused.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    net::TcpStream,
    time::Instant,
};
use weft_contracts::weft::discovery::v1::Protocol;
use weft_mesh::limits;

use crate::{
    args,
    catalog::{Asked, Service, Unknown},
    detect::{self, Undetected},
    metrics::Counters,
    outbound::{Downstream, speak},
    pool::connect_within,
    tcp,
    worker::{ConnectionSlot, Worker},
};

/// Where a connection was going before it was redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OriginalDst(SocketAddr);

/// Where a connection was going, if it was redirected.
pub(crate) fn original(worker: &Worker, stream: &TcpStream) -> Option<OriginalDst> {
    if !worker.shared.args.intercept {
        return None;
    }
    let (socket, local) = (SockRef::from(stream), stream.local_addr().ok()?);
    // Without a redirection there is none, or it is where it has arrived.
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok()?.as_socket().filter(|original| *original != local).map(OriginalDst)
}

/// What a worker has lately found to be outside the mesh, so that it asks once.
#[derive(Debug, Default)]
pub(crate) struct Outside(RefCell<HashMap<SocketAddr, Instant>>);

impl Outside {
    fn is_known(&self, address: SocketAddr, now: Instant) -> bool {
        self.0
            .borrow()
            .get(&address)
            .is_some_and(|since| now.saturating_duration_since(*since) < limits::OUTSIDE_MEMORY)
    }

    fn note(&self, address: SocketAddr, now: Instant) {
        let mut known = self.0.borrow_mut();
        if known.len() >= limits::OUTSIDE_ADDRESSES {
            known.clear();
        }
        known.insert(address, now);
    }
}

/// Serves a redirected connection.
pub(crate) async fn serve(slot: ConnectionSlot, stream: TcpStream, from: SocketAddr, OriginalDst(to): OriginalDst) {
    let worker = slot.worker();
    if is_own(to, worker.shared.args.outbound) {
        // It would come back here for ever.
        return refuse(worker, &stream, format_args!("redirected connection from {from} refused: it was going here"));
    }
    let Ok(found) = find(worker, to).await else {
        // What may be a service's is not sent in plain text for want of an answer.
        let why = format_args!("redirected connection from {from} to {to} refused: too many wait for discovery");
        return refuse(worker, &stream, why);
    };
    match found {
        Some(service) if service.protocol == Protocol::Tcp => {
            tcp::serve(Downstream::new(worker), stream, from, &service.name).await;
        }
        Some(service) => detect_and_serve(worker, &service, stream, from).await,
        None if worker.shared.args.outside == args::Outside::Deny => {
            worker.shared.metrics.counters.outside_refused.fetch_add(1, Relaxed);
            let why = format_args!("redirected connection from {from} refused: no service of the mesh is at {to}");
            refuse(worker, &stream, why);
        }
        None => pass_through(worker, stream, from, to).await,
    }
}

/// Whether a connection to there is one to this sidecar's own port.
fn is_own(to: SocketAddr, outbound: SocketAddr) -> bool {
    // What can be bound is an address of this host.
    to.port() == outbound.port() && UdpSocket::bind((to.ip(), 0)).is_ok()
}

/// The service that is called there, if there is one.
async fn find(worker: &Worker, to: SocketAddr) -> Result<Option<Arc<Service>>, Unknown> {
    let asked = Asked::Address(to);
    if let Some(service) = worker.shared.catalog.known(&asked) {
        return Ok(Some(service));
    }
    if worker.outside.is_known(to, Instant::now()) {
        return Ok(None);
    }
    match worker.shared.catalog.find(asked).await {
        Ok(service) => Ok(Some(service)),
        Err(Unknown::Full) => Err(Unknown::Full),
        // Nobody who could say so knows of a service there: it is as if there were none.
        Err(Unknown::NotFound { .. } | Unknown::Away) => {
            worker.outside.note(to, Instant::now());
            Ok(None)
        }
    }
}

/// The service speaks HTTP, so its clients speak first; one that speaks something else has its reason.
async fn detect_and_serve(worker: &Rc<Worker>, service: &Service, stream: TcpStream, from: SocketAddr) {
    match detect::wire(&stream, limits::INTERCEPTED_SILENCE).await {
        Ok(wire) => speak(Downstream::to(worker, &service.name), wire, stream, from).await,
        Err(Undetected::Gone | Undetected::Io(_)) => {}
        Err(why) => {
            worker.shared.metrics.counters.detection_fallbacks.fetch_add(1, Relaxed);
            let name = &service.name;
            worker.log(|| format!("connection from {from} to {name} goes as it is: {why}"));
            tcp::serve(Downstream::new(worker), stream, from, name).await;
        }
    }
}

fn refuse(worker: &Worker, stream: &TcpStream, why: std::fmt::Arguments<'_>) {
    worker.log(|| why.to_string());
    // A reset says that nobody is there; where it can't be sent, the connection is closed all the same.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// What one direction may have under way.
const BUFFER_BYTES: usize = 32 * 1024;
/// Peers outside the mesh are asked for a sign of life by the kernel.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(6);

async fn pass_through(worker: &Worker, mut stream: TcpStream, from: SocketAddr, to: SocketAddr) {
    let counters = &worker.shared.metrics.counters;
    let outside = match connect_within(limits::OUTSIDE_CONNECT_TIMEOUT, to).await {
        Ok(outside) => outside,
        Err(why) => {
            counters.upstream_connects_failed.fetch_add(1, Relaxed);
            return refuse(
                worker,
                &stream,
                format_args!("connection from {from} to {to}, outside the mesh, failed: {why}"),
            );
        }
    };
    counters.outside_connections.fetch_add(1, Relaxed);
    for socket in [SockRef::from(&stream), SockRef::from(&outside)] {
        // Only to find the dead.
        let _ = socket.set_tcp_keepalive(&KEEP_ALIVE);
    }
    let mut outside = Counted { stream: outside, counters };
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut outside, BUFFER_BYTES, BUFFER_BYTES).await;
    if let Err(e) = copied {
        tracing::debug!("the connection from {from} to {to}, outside the mesh, broke: {e}");
        // Neither is to take what it has for whole.
        for socket in [SockRef::from(&stream), SockRef::from(&outside.stream)] {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
    }
}

/// A connection to the outside whose bytes are counted as they go: it may live for long.
struct Counted<'a> {
    stream: TcpStream,
    counters: &'a Counters,
}

fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Relaxed);
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        count(&self.counters.outside_received_bytes, out.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            count(&self.counters.outside_sent_bytes, written);
        }
        written
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
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_outside_is_asked_for_again_after_a_while() {
        let (outside, address) = (Outside::default(), "192.0.2.1:443".parse().unwrap());
        outside.note(address, Instant::now());
        assert!(outside.is_known(address, Instant::now()));
        tokio::time::advance(limits::OUTSIDE_MEMORY).await;
        assert!(!outside.is_known(address, Instant::now()));
    }

    #[test]
    fn the_own_port_is_known_by_every_address_of_this_host() {
        let outbound = SocketAddr::from(([127, 0, 0, 1], 15001));
        assert!(is_own(outbound, outbound));
        assert!(is_own("127.0.0.2:15001".parse().unwrap(), outbound));
        assert!(!is_own("127.0.0.1:15002".parse().unwrap(), outbound));
        assert!(!is_own("192.0.2.1:15001".parse().unwrap(), outbound), "that of another sidecar");
    }

    #[test]
    fn what_is_outside_is_not_remembered_without_bound() {
        let (outside, now) = (Outside::default(), Instant::now());
        for port in 0..=limits::OUTSIDE_ADDRESSES as u16 {
            outside.note(SocketAddr::from(([192, 0, 2, 1], port)), now);
        }
        assert!(outside.0.borrow().len() <= limits::OUTSIDE_ADDRESSES);
    }
}
