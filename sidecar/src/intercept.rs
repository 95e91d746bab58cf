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
    slots::ConnectionSlot,
    tcp,
    worker::Worker,
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

/// The addresses of which the control plane has said to a worker that they are outside the mesh.
#[derive(Debug, Default)]
pub(crate) struct Outside(RefCell<HashMap<SocketAddr, Word>>);

#[derive(Clone, Copy, Debug)]
struct Word {
    said: Instant,
    /// When the control plane was last asked, be it in vain.
    asked: Instant,
}

impl Outside {
    /// Whether this was said, and so lately that it need not be asked again.
    fn is_fresh(&self, address: SocketAddr, now: Instant) -> bool {
        let known = self.0.borrow();
        known.get(&address).is_some_and(|word| now.saturating_duration_since(word.asked) < limits::OUTSIDE_MEMORY)
    }

    /// It was said now.
    fn note(&self, address: SocketAddr, now: Instant) {
        let mut known = self.0.borrow_mut();
        if known.len() >= limits::OUTSIDE_ADDRESSES && !known.contains_key(&address) {
            // The control plane is there, so what is forgotten can be asked again.
            let oldest = known.iter().min_by_key(|(_, word)| word.said).map(|(address, _)| *address);
            if let Some(oldest) = oldest {
                known.remove(&oldest);
            }
        }
        known.insert(address, Word { said: now, asked: now });
    }

    /// There is no answer now. Whether it was said before, and holds on.
    fn holds_on(&self, address: SocketAddr, now: Instant) -> bool {
        let mut known = self.0.borrow_mut();
        let word = known.get_mut(&address);
        let word = word.filter(|word| now.saturating_duration_since(word.said) < limits::OUTSIDE_KEPT);
        word.map(|word| word.asked = now).is_some()
    }

    /// A service is called there now.
    fn forget(&self, address: SocketAddr) {
        self.0.borrow_mut().remove(&address);
    }
}

/// Where a redirected connection goes.
enum Found {
    Service(Arc<Service>),
    Outside,
    /// Nobody who could say so has said whether a service is there.
    Unknown(&'static str),
}

/// Serves a redirected connection.
pub(crate) async fn serve(slot: ConnectionSlot, stream: TcpStream, from: SocketAddr, OriginalDst(to): OriginalDst) {
    let worker = slot.worker();
    if is_own(to, worker.shared.args.outbound) {
        // It would come back here for ever.
        return refuse(worker, &stream, format_args!("redirected connection from {from} refused: it was going here"));
    }
    let counters = &worker.shared.metrics.counters;
    match find(worker, to).await {
        Found::Service(service) if service.protocol == Protocol::Tcp => {
            tcp::serve(Downstream::new(worker), stream, from, &service.name).await;
        }
        Found::Service(service) => detect_and_serve(worker, &service, stream, from).await,
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
async fn find(worker: &Worker, to: SocketAddr) -> Found {
    let (asked, shared) = (Asked::Address(to), &worker.shared);
    if let Some(service) = shared.catalog.known(&asked) {
        worker.outside.forget(to);
        return Found::Service(service);
    }
    let is_asked_in_vain = || !shared.is_control_plane_connected.load(Relaxed);
    if worker.outside.is_fresh(to, Instant::now())
        || (is_asked_in_vain() && worker.outside.holds_on(to, Instant::now()))
    {
        return Found::Outside;
    }
    match shared.catalog.find(asked).await {
        Ok(service) => {
            worker.outside.forget(to);
            Found::Service(service)
        }
        // Only a control plane that knows all of the mesh says so.
        Err(Unknown::NotFound { .. }) => {
            worker.outside.note(to, Instant::now());
            Found::Outside
        }
        Err(_) if worker.outside.holds_on(to, Instant::now()) => Found::Outside,
        Err(Unknown::Away) => Found::Unknown("the control plane can't be asked, or does not know all of the mesh yet"),
        Err(Unknown::Full) => Found::Unknown("too many questions wait for the control plane"),
    }
}

/// The service speaks HTTP, so its clients speak first. One that speaks something else is refused: see [`tcp::refusal`].
async fn detect_and_serve(worker: &Rc<Worker>, service: &Service, stream: TcpStream, from: SocketAddr) {
    match detect::wire(&stream, limits::DETECT_TIMEOUT).await {
        Ok(wire) => speak(Downstream::to(worker, &service.name), wire, stream, from).await,
        Err(Undetected::Gone | Undetected::Io(_)) => {}
        Err(why) => {
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

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 443);

    #[tokio::test(start_paused = true)]
    async fn what_is_outside_is_asked_for_again_after_a_while() {
        let outside = Outside::default();
        outside.note(ADDRESS, Instant::now());
        assert!(outside.is_fresh(ADDRESS, Instant::now()));
        tokio::time::advance(limits::OUTSIDE_MEMORY).await;
        assert!(!outside.is_fresh(ADDRESS, Instant::now()));
        assert!(outside.holds_on(ADDRESS, Instant::now()), "it was said, and nobody says otherwise");
        assert!(outside.is_fresh(ADDRESS, Instant::now()), "it was just asked again");
        outside.forget(ADDRESS);
        assert!(!outside.holds_on(ADDRESS, Instant::now()), "a service was there meanwhile");
        outside.note(ADDRESS, Instant::now());
        for _ in 0..2 {
            tokio::time::advance(limits::OUTSIDE_KEPT / 2 - Duration::from_secs(1)).await;
            assert!(outside.holds_on(ADDRESS, Instant::now()));
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!outside.holds_on(ADDRESS, Instant::now()), "asking in vain does not make it last");
    }

    /// What a control plane that answers like this makes of an address, and the worker.
    async fn found(answer: Option<Unknown>) -> (Found, Rc<Worker>) {
        let (worker, mut questions) = crate::trial::worker_with_questions();
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
            found = find(&worker, ADDRESS) => found,
            () = answering => unreachable!("the worker may ask"),
        };
        (found, worker)
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_said_to_be_outside_is_outside() {
        let (settled, worker) = found(Some(Unknown::NotFound { closest: None })).await;
        assert!(matches!(settled, Found::Outside));
        // From now on nobody answers this worker, be the control plane away or silent. What was said holds on.
        for is_connected in [false, true] {
            worker.shared.is_control_plane_connected.store(is_connected, Relaxed);
            tokio::time::advance(10 * limits::OUTSIDE_MEMORY).await;
            assert!(matches!(find(&worker, ADDRESS).await, Found::Outside));
            let other = SocketAddr::new(ADDRESS.ip(), 444);
            assert!(matches!(find(&worker, other).await, Found::Unknown(_)));
        }
        // Neither while it settles, nor while it is away, nor when it is asked too much.
        for silent in [None, Some(Unknown::Away), Some(Unknown::Full)] {
            let (unknown, worker) = found(silent).await;
            assert!(matches!(unknown, Found::Unknown(_)));
            assert!(!worker.outside.holds_on(ADDRESS, Instant::now()));
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

    #[test]
    fn what_is_outside_is_not_remembered_without_bound() {
        let (outside, now) = (Outside::default(), Instant::now());
        let at = |port: usize| SocketAddr::new(ADDRESS.ip(), port as u16);
        for port in 0..=limits::OUTSIDE_ADDRESSES {
            outside.note(at(port), now + Duration::from_millis(port as u64));
        }
        assert_eq!(outside.0.borrow().len(), limits::OUTSIDE_ADDRESSES);
        assert!(!outside.0.borrow().contains_key(&at(0)), "the oldest makes room");
        assert!(outside.0.borrow().contains_key(&at(1)));
    }
}
