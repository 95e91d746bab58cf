//! Connections of programs that know nothing of the mesh: the packet filter has sent them here, and they say where they
//! were going.
//!
//! The service that is called at that address gets them, whatever they name: for a service of HTTP each call goes its way,
//! for others the bytes do. What is outside the mesh is passed through in plain text, or refused.
//!
//! An address is outside only where the control plane has said so, and it says so only when it knows all of the mesh. Until
//! then the address is unknown, and a connection to it is refused: it may be a service's, and what is meant for a service
//! never leaves in plain text. So who keeps the control plane away can delay a connection, and not read it. What was said
//! holds on while the control plane can't be asked, as all that is known does.

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
    transport::pool::connect_within,
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

/// Where a redirected connection goes.
enum Found {
    Service(Arc<Service>),
    Outside,
    /// Nobody who could say so has said whether a service is there.
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
        // It would come back here for ever.
        return refuse(worker, &stream, format_args!("redirected connection from {from} refused: it was going here"));
    }
    let counters = &worker.shared.metrics.counters;
    match find(proxy, to).await {
        Found::Service(service) if service.protocol == Protocol::Tcp => {
            tcp::serve(Downstream::new(proxy), stream, from, &service.name).await;
        }
        Found::Service(service) => detect_and_serve(proxy, &service, stream, from).await,
        Found::Outside if worker.shared.args.outside == args::Outside::Deny => {
            counters.outside_refused.fetch_add(1, Relaxed);
            let why = format_args!("redirected connection from {from} refused: no service of the mesh is at {to}");
            refuse(worker, &stream, why);
        }
        Found::Outside => pass_through(worker, stream, from, to).await,
        Found::Unknown(why) => {
            counters.unknown_refused.fetch_add(1, Relaxed);
            let what = "whether a service of the mesh is there is not known, so nothing is sent there in plain text";
            refuse(worker, &stream, format_args!("redirected connection from {from} to {to} refused: {what} ({why})"));
        }
    }
}

/// Whether a connection to there is one to this sidecar's own port.
fn is_own(to: SocketAddr, outbound: SocketAddr) -> bool {
    // What can be bound is an address of this host.
    to.port() == outbound.port() && UdpSocket::bind((to.ip(), 0)).is_ok()
}

/// What is there, as far as it is known.
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
        // Only a control plane that knows all of the mesh says so.
        Err(Unknown::NotFound { .. }) => {
            outside.note(to, Instant::now());
            Found::Outside
        }
        Err(_) if outside.holds_on(to, Instant::now()) => Found::Outside,
        Err(Unknown::Away) => Found::Unknown("the control plane can't be asked, or does not know all of the mesh yet"),
        Err(Unknown::Full) => Found::Unknown("too many questions wait for the control plane"),
    }
}

/// Serves a connection on which each call goes to `service`. The service speaks HTTP, so its clients speak first. One that
/// speaks something else is refused: see [`crate::message::tunnel::refusal`].
pub(super) async fn detect_and_serve(proxy: &Rc<Proxy>, service: &Service, stream: TcpStream, from: SocketAddr) {
    match detect::wire(&stream, limits::DETECT_TIMEOUT).await {
        Ok(wire) => speak(Downstream::to(proxy, &service.name), wire, stream, from).await,
        Err(Undetected::Gone | Undetected::Io(_)) => {}
        Err(why) => {
            let worker = &proxy.worker;
            worker.shared.metrics.counters.detection_refused.fetch_add(1, Relaxed);
            if matches!(why, Undetected::Silent(_)) {
                worker.shared.metrics.limit_reached("DETECT_TIMEOUT");
            }
            let name = &service.name;
            let what = "a service of another protocol than HTTP is declared with `protocol: tcp`";
            refuse(worker, &stream, format_args!("connection from {from} to {name} refused: {why}; {what}"));
        }
    }
}

/// Ends a connection that leads nowhere.
pub(super) fn refuse(worker: &Worker, stream: &TcpStream, why: std::fmt::Arguments<'_>) {
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

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 443);

    /// What a control plane that answers like this makes of an address, and the proxy.
    async fn found(answer: Option<Unknown>) -> (Found, Rc<Proxy>) {
        let (worker, mut questions) = crate::trial::worker_with_questions();
        let proxy = Proxy::new(worker);
        let answering = async {
            // Those whose answer does not come are kept, as discovery keeps them.
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
    async fn only_what_was_said_to_be_outside_is_outside() {
        let (settled, proxy) = found(Some(Unknown::NotFound { closest: None })).await;
        assert!(matches!(settled, Found::Outside));
        // From now on nobody answers this worker, be the control plane away or silent. What was said holds on.
        for is_connected in [false, true] {
            proxy.worker.shared.is_control_plane_connected.store(is_connected, Relaxed);
            tokio::time::advance(10 * limits::OUTSIDE_MEMORY).await;
            assert!(matches!(find(&proxy, ADDRESS).await, Found::Outside));
            let other = SocketAddr::new(ADDRESS.ip(), 444);
            assert!(matches!(find(&proxy, other).await, Found::Unknown(_)));
        }
        // Neither while it settles, nor while it is away, nor when it is asked too much.
        for silent in [None, Some(Unknown::Away), Some(Unknown::Full)] {
            let (unknown, proxy) = found(silent).await;
            assert!(matches!(unknown, Found::Unknown(_)));
            assert!(!proxy.outside.holds_on(ADDRESS, Instant::now()));
        }
    }

    #[test]
    fn the_own_port_is_known_by_every_address_of_this_host() {
        let outbound = SocketAddr::from(([127, 0, 0, 1], 15001));
        assert!(is_own(outbound, outbound));
        assert!(is_own("127.0.0.2:15001".parse().unwrap(), outbound));
        assert!(!is_own("127.0.0.1:15002".parse().unwrap(), outbound));
        assert!(!is_own("192.0.2.1:15001".parse().unwrap(), outbound), "that of another sidecar");
    }
}
