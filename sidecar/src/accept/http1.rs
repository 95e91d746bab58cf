//! HTTP/1.1 on the outbound port. Sidecars speak HTTP/2 to each other, so heads have HTTP/2's form from here on.

use std::{net::SocketAddr, rc::Rc, sync::atomic::Ordering::Relaxed};

use tokio::net::TcpStream;
use weft_wire::http1;

use crate::{
    accept::refused,
    call::{Call, Side},
    message::failure::Failure,
    proxy::outbound::{Downstream, carry, too_many_calls},
    shared::Phase,
    thread::{step::Steps, worker::Worker},
    transport::socket::{Occasion, Socket, SocketDriver, SocketError},
};

/// Serves one connection of the local service.
pub(crate) async fn serve(downstream: Rc<Downstream>, stream: TcpStream, from: SocketAddr) {
    let worker = Rc::clone(downstream.worker());
    worker.tick();
    let socket = Socket::http1_server(&worker);
    let _accepted = worker.accepted(Rc::clone(&socket) as _, Phase::Stopping);
    let mut steps = Steps::new();
    let on = |occasion| {
        let Occasion::Request(head, is_whole) = occasion else { return };
        let Some(slot) = worker.call_slot() else { return refuse(&worker, &socket, &too_many_calls(&worker)) };
        let caller = Side::Socket(Rc::clone(&socket));
        let call = Call::begin(&worker, Rc::clone(&downstream) as _, caller, head, is_whole, slot);
        call.waits_in(steps.run(carry(Rc::clone(&downstream), Rc::clone(&call))));
    };
    let ended = SocketDriver::new(&worker, &socket, stream, on).await;
    if let Err(SocketError::HalfClosed) = ended {
        worker.shared.metrics.limit_reached("HALF_CLOSED_TIME");
    }
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

/// Answers a request for which there is no slot.
fn refuse(worker: &Worker, socket: &Socket, failure: &Failure) {
    refused::note(worker, failure);
    let (head, text) = failure.to_http();
    socket.refuse(&head, &text);
}
