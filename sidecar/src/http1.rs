//! HTTP/1.1: the own service's requests on the outbound port, and requests to an own service that speaks nothing else.
//! Between sidecars everything rides on HTTP/2; heads are in its form from the first step to the last.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::{net::TcpStream, task::spawn_local};
use weft_wire::{Headers, Name, http1};

use crate::{
    answer::Failure,
    attempt::{Miss, Tries},
    call::{Call, Side, Way},
    outbound::{Downstream, carry, too_many_calls},
    pool::{ConnectError, connect_tcp},
    shared::{Phase, Shared},
    socket::{Driver, Occasion, Socket, SocketError},
    step::Steps,
    worker::Worker,
};

/// Serves one connection of the own service.
pub(crate) async fn serve(downstream: Rc<Downstream>, stream: TcpStream, from: SocketAddr) {
    let worker = Rc::clone(&downstream.worker);
    worker.tick();
    let socket = Socket::http1_server(&worker);
    let _accepted = worker.accepted(Rc::clone(&socket) as _, Phase::Stopping);
    let mut steps = Steps::new();
    let on = |occasion| {
        let Occasion::Request(head, is_whole) = occasion else { return };
        let Some(slot) = worker.call_slot() else { return refuse(&worker, &socket, &too_many_calls()) };
        let caller = Side::Socket(Rc::clone(&socket));
        let call = Call::begin(&worker, Way::Outbound(Tries::default()), caller, head, is_whole, slot);
        call.waits_in(steps.run(carry(Rc::clone(&downstream), Rc::clone(&call))));
    };
    let ended = Driver::new(&worker, &socket, stream, on).await;
    if let Err(error @ (SocketError::Protocol(_) | SocketError::SlowHead)) = ended {
        worker.shared.metrics.counters.connections_malformed.fetch_add(1, Relaxed);
        let row = match error {
            SocketError::SlowHead => Some("DETECT_TIMEOUT"),
            SocketError::Protocol(http1::Error::HeadTooLarge) => Some("HEADER_LIST_BYTES"),
            SocketError::Protocol(http1::Error::ChunkTooLarge) => Some("HTTP1_CHUNK_LINE_BYTES"),
            _ => None,
        };
        row.into_iter().for_each(|row| worker.shared.metrics.limit_reached(row));
        worker.log(|| format!("outbound connection from {from} closed: {error}"));
    }
}

/// Answers a request for which there is no place.
fn refuse(worker: &Worker, socket: &Socket, failure: &Failure) {
    worker.shared.metrics.failure(failure.reason);
    worker.log(|| format!("request refused ({}): {}", failure.reason.as_str(), failure.message));
    let (head, text) = failure.to_http();
    socket.refuse(&head, &text);
}

/// One worker's connections to an own service that speaks HTTP/1.1: one for each call that runs, and idle ones.
pub(crate) struct Pool {
    worker: Weak<Worker>,
    shared: Arc<Shared>,
    address: SocketAddr,
    idle: RefCell<Vec<Rc<Socket>>>,
}

/// Connections kept for the next request.
const IDLE_CONNECTIONS: usize = 64;

impl Pool {
    pub(crate) fn new(worker: Weak<Worker>, shared: Arc<Shared>, address: SocketAddr) -> Rc<Self> {
        Rc::new(Self { worker, shared, address, idle: RefCell::default() })
    }

    /// The one that was used last, so that those too many become old.
    fn idle(&self) -> Option<Rc<Socket>> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop()).find(|socket| !socket.is_gone())
    }

    fn keep(&self, socket: &Rc<Socket>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_CONNECTIONS { idle.push(Rc::clone(socket)) } else { socket.close() }
    }

    async fn connect(self: &Rc<Self>) -> Result<Rc<Socket>, ConnectError> {
        let counters = &self.shared.metrics.counters;
        let stream = connect_tcp(self.address).await.map_err(|why| {
            counters.upstream_connects_failed.fetch_add(1, Relaxed);
            ConnectError::Failed(why.into())
        })?;
        counters.upstream_connections_opened.fetch_add(1, Relaxed);
        let worker = self.worker.upgrade().ok_or_else(|| ConnectError::Failed("the sidecar is stopping".into()))?;
        worker.tick();
        let socket = Socket::http1_client(&worker);
        let (pool, kept) = (Rc::clone(self), Rc::downgrade(&socket));
        let on = move |occasion| match occasion {
            Occasion::Free => kept.upgrade().iter().for_each(|socket| pool.keep(socket)),
            Occasion::Stale(call) => drop(spawn_local(again(Rc::clone(&pool), call))),
            Occasion::Request(..) => {}
        };
        let (pool, driver) = (Rc::clone(self), Driver::new(&worker, &socket, stream, on));
        spawn_local(async move {
            if let Err(e) = driver.await {
                tracing::debug!("the connection to the service at {} broke: {e}", pool.address);
            }
            pool.idle.borrow_mut().retain(|socket| !socket.is_gone());
        });
        Ok(socket)
    }
}

/// Sends a call to the own service.
pub(crate) async fn send(pool: &Rc<Pool>, call: &Rc<Call>) -> Result<(), Miss> {
    let socket = match pool.idle() {
        Some(socket) => socket,
        None => pool.connect().await.map_err(Miss::NotSent)?,
    };
    call.send_over_socket(&socket).map_err(|e| Miss::Broke(e.to_string()))
}

/// Sends a call once more that a connection did not take which was kept too long.
async fn again(pool: Rc<Pool>, call: Rc<Call>) {
    call.lose_endpoint();
    let sent = match pool.connect().await {
        Ok(socket) => call.send_over_socket(&socket).map_err(|e| Miss::Broke(e.to_string())),
        Err(why) => Err(Miss::NotSent(why)),
    };
    if let Err(miss) = sent {
        call.missed(miss);
    }
}

/// Says with a whole answer that the own service does not speak what a request wants.
pub(crate) fn decline(call: &Rc<Call>) {
    let mut head = Headers::new();
    head.set(Name::STATUS, b"501");
    head.append(Name::CONTENT_LENGTH, b"0");
    call.response_head(head, true);
}
