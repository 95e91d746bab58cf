//! Interception: the packet filter redirects connections here from programs that know nothing of the mesh. The kernel
//! tells the original destination of each.
//!
//! A connection goes to the service that is called at its original destination, whatever its requests name. A service
//! of HTTP gets each request as a call, another one gets the bytes. A connection to an address outside the mesh is
//! passed through in plain text, or refused.
//!
//! An address is outside only if the control plane says so, which it does only once it knows all of the mesh. Until
//! then the address is unknown and connections to it are refused: a service may be there, and traffic to a service
//! never leaves in plain text. So an attacker who cuts off the control plane can delay a connection but not read it.
//! While the control plane can't be asked, its last answer stays valid, as all else that it said does.

use std::{
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
    accept::{
        detect::{self, Undetected},
        http::speak,
        tcp,
    },
    args,
    endpoints::catalog::{Asked, Service, Unknown},
    proxy::{Proxy, outbound::Downstream},
    telemetry::metrics::Counters,
    thread::{slots::ConnectionSlot, worker::Worker},
    transport::connect,
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
    // A connection that was not redirected has no original destination, or has its local address as one.
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok()?.as_socket().filter(|original| *original != local).map(OriginalDst)
}

/// Where a redirected connection goes.
enum Found {
    Service(Arc<Service>),
    Outside,
    /// The control plane has not said yet whether a service is there.
    Unknown(&'static str),
}

/// Serves a redirected connection.
pub(crate) async fn serve(
    proxy: &Rc<Proxy>,
    _slot: ConnectionSlot,
    stream: TcpStream,
    from: SocketAddr,
    OriginalDst(to): OriginalDst,
) {
    let worker = &proxy.worker;
    if is_own(to, worker.shared.args.outbound) {
        // It would come back here in an endless loop.
        return close_with_reset(
            worker,
            &stream,
            format_args!("redirected connection from {from} refused: its destination is this sidecar itself"),
        );
    }
    let counters = &worker.shared.metrics.counters;
    match find(proxy, to).await {
        Found::Service(service) if service.protocol == Protocol::Tcp => {
            tcp::serve(Downstream::new(proxy), stream, from, &service.name).await;
        }
        Found::Service(service) => {
            let downstream = Downstream::to_address_of(proxy, &service.name);
            detect_and_serve(downstream, &service, stream, from).await;
        }
        Found::Outside if worker.shared.args.outside == args::Outside::Deny => {
            counters.outside_refused.fetch_add(1, Relaxed);
            let why = format_args!("redirected connection from {from} refused: no service of the mesh is at {to}");
            close_with_reset(worker, &stream, why);
        }
        Found::Outside => pass_through(worker, stream, from, to).await,
        Found::Unknown(why) => {
            counters.unknown_refused.fetch_add(1, Relaxed);
            let what = "a service of the mesh may be there, so nothing is sent in plain text";
            close_with_reset(
                worker,
                &stream,
                format_args!("redirected connection from {from} to {to} refused: {what} ({why})"),
            );
        }
    }
}

/// Whether a connection to this address reaches this sidecar's own port.
fn is_own(to: SocketAddr, outbound: SocketAddr) -> bool {
    // An address that can be bound is one of this host.
    to.port() == outbound.port() && UdpSocket::bind((to.ip(), 0)).is_ok()
}

/// Finds out what is at an address.
async fn find(proxy: &Proxy, to: SocketAddr) -> Found {
    let (asked, shared, outside) = (Asked::Address(to), &proxy.worker.shared, &proxy.outside);
    if let Some(service) = shared.catalog.known(&asked) {
        outside.forget(to);
        return Found::Service(service);
    }
    let is_asked_in_vain = || !shared.is_control_plane_connected.load(Relaxed);
    if outside.is_fresh(to, Instant::now()) || (is_asked_in_vain() && outside.holds_on(to, Instant::now())) {
        return Found::Outside;
    }
    match shared.catalog.find(asked).await {
        Ok(service) => {
            outside.forget(to);
            Found::Service(service)
        }
        // The control plane says this only once it knows all of the mesh.
        Err(Unknown::NotFound { .. }) => {
            outside.note(to, Instant::now());
            Found::Outside
        }
        Err(_) if outside.holds_on(to, Instant::now()) => Found::Outside,
        Err(Unknown::Away) => Found::Unknown("the control plane can't be asked, or does not know all of the mesh yet"),
        Err(Unknown::Full) => Found::Unknown("too many questions wait for the control plane"),
    }
}

/// Serves a connection on which each call goes to `service`, which speaks HTTP: so the client sends first. A client
/// that speaks something else is refused: see [`crate::message::tunnel::refusal`].
pub(super) async fn detect_and_serve(
    downstream: Rc<Downstream>,
    service: &Service,
    stream: TcpStream,
    from: SocketAddr,
) {
    match detect::wire(&stream, limits::DETECT_TIMEOUT).await {
        Ok(wire) => speak(downstream, wire, stream, from).await,
        Err(Undetected::Gone | Undetected::Io(_)) => {}
        Err(why) => {
            let worker = downstream.worker();
            worker.shared.metrics.counters.detection_refused.fetch_add(1, Relaxed);
            if matches!(why, Undetected::Silent(_)) {
                worker.shared.metrics.limit_reached("DETECT_TIMEOUT");
            }
            let name = &service.name;
            let what = "declare a service that does not speak HTTP with `protocol: tcp`";
            close_with_reset(worker, &stream, format_args!("connection from {from} to {name} refused: {why}; {what}"));
        }
    }
}

/// Refuses a connection with a reset.
pub(super) fn close_with_reset(worker: &Worker, stream: &TcpStream, why: std::fmt::Arguments<'_>) {
    worker.log(|| why.to_string());
    // Without linger time the close sends a reset. If this fails, the connection is closed all the same.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// How many bytes one direction may hold.
const BUFFER_BYTES: usize = 32 * 1024;
/// The kernel probes peers outside the mesh, so that dead ones are found.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(6);

async fn pass_through(worker: &Worker, mut stream: TcpStream, from: SocketAddr, to: SocketAddr) {
    let counters = &worker.shared.metrics.counters;
    let outside = match connect::to_address(limits::OUTSIDE_CONNECT_TIMEOUT, to).await {
        Ok(outside) => outside,
        Err(why) => {
            counters.upstream_connects_failed.fetch_add(1, Relaxed);
            return close_with_reset(
                worker,
                &stream,
                format_args!("connection from {from} to {to}, outside the mesh, failed: {why}"),
            );
        }
    };
    counters.outside_connections.fetch_add(1, Relaxed);
    for socket in [SockRef::from(&stream), SockRef::from(&outside)] {
        // The connection works without probes, too.
        let _ = socket.set_tcp_keepalive(&KEEP_ALIVE);
    }
    let mut outside = CountedStream { stream: outside, counters };
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut outside, BUFFER_BYTES, BUFFER_BYTES).await;
    if let Err(e) = copied {
        tracing::debug!("the connection from {from} to {to}, outside the mesh, broke: {e}");
        // A reset, so that neither side takes what it has received for complete.
        for socket in [SockRef::from(&stream), SockRef::from(&outside.stream)] {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
    }
}

/// A connection to the outside. Its bytes are counted at once, as it may stay open for long.
struct CountedStream<'a> {
    stream: TcpStream,
    counters: &'a Counters,
}

fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Relaxed);
}

impl AsyncRead for CountedStream<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        count(&self.counters.outside_received_bytes, out.filled().len() - before);
        read
    }
}

impl AsyncWrite for CountedStream<'_> {
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

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 443);

    /// What `find` returns if the control plane answers like this, and the proxy that asked.
    async fn found(answer: Option<Unknown>) -> (Found, Rc<Proxy>) {
        let (worker, mut questions) = crate::trial::worker_with_questions();
        let proxy = Proxy::new(worker);
        let answering = async {
            // Questions without an answer are kept, as discovery keeps them.
            let mut kept = Vec::new();
            while let Some(question) = questions.recv().await {
                match &answer {
                    Some(answer) => drop(question.answer.send(Err(answer.clone()))),
                    None => kept.push(question),
                }
            }
        };
        let found = tokio::select! {
            found = find(&proxy, ADDRESS) => found,
            () = answering => unreachable!("the worker may ask"),
        };
        (found, proxy)
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_outside_only_if_the_control_plane_says_so() {
        let (settled, proxy) = found(Some(Unknown::NotFound { closest: None })).await;
        assert!(matches!(settled, Found::Outside));
        // From now on this worker gets no answer, and its control plane counts as away, then as connected. The last
        // answer stays valid.
        for is_connected in [false, true] {
            proxy.worker.shared.is_control_plane_connected.store(is_connected, Relaxed);
            tokio::time::advance(10 * limits::OUTSIDE_MEMORY).await;
            assert!(matches!(find(&proxy, ADDRESS).await, Found::Outside));
            let other = SocketAddr::new(ADDRESS.ip(), 444);
            assert!(matches!(find(&proxy, other).await, Found::Unknown(_)));
        }
        // Nothing is outside while the control plane does not answer, is away, or has too many questions.
        for silent in [None, Some(Unknown::Away), Some(Unknown::Full)] {
            let (unknown, proxy) = found(silent).await;
            assert!(matches!(unknown, Found::Unknown(_)));
            assert!(!proxy.outside.holds_on(ADDRESS, Instant::now()));
        }
    }

    #[test]
    fn the_own_port_is_recognized_at_every_address_of_this_host() {
        let outbound = SocketAddr::from(([127, 0, 0, 1], 15001));
        assert!(is_own(outbound, outbound));
        assert!(is_own("127.0.0.2:15001".parse().unwrap(), outbound));
        assert!(!is_own("127.0.0.1:15002".parse().unwrap(), outbound));
        assert!(!is_own("192.0.2.1:15001".parse().unwrap(), outbound), "the port of another sidecar");
    }
}
