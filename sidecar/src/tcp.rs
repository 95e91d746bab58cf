//! Bytes as they are: a connection of any protocol is a call whose request and answer are its two directions. Between
//! sidecars it is a CONNECT stream (RFC 9113, section 8.5), so it has identity, balancing, breakers, flow control and
//! half-closes as other calls do.

use std::{net::SocketAddr, rc::Rc};

use tokio::{net::TcpStream, task::spawn_local};
use weft_mesh::names::{ServiceName, header};
use weft_wire::{Headers, Name, http1};

use crate::{
    attempt::{Miss, Tries},
    call::{Call, Side, Way},
    connect,
    link::Role,
    outbound::{Downstream, carry, too_many_calls},
    pool::ConnectError,
    shared::Phase,
    socket::{Driver, Occasion, Socket},
    worker::ConnectionSlot,
};

/// The method of a tunnel.
pub(crate) const CONNECT: &[u8] = b"CONNECT";

/// Whether a head asks for bytes as they are, and for no other protocol.
pub(crate) fn is_tunnel(head: &Headers) -> bool {
    head.method() == Some(CONNECT) && head.protocol().is_none()
}

const TUNNEL: Name = Name::other(header::TUNNEL);

/// Says of a tunnel whether this sidecar has made it, of a connection that is not HTTP, or its caller has asked for one
/// by CONNECT.
pub(crate) fn mark(head: &mut Headers, is_made_here: bool) {
    head.remove(TUNNEL);
    if is_made_here {
        head.append(TUNNEL, b"1");
    }
}

/// Whether a tunnel's bytes are for the service itself. Otherwise its head is, as the service may have its own answer.
pub(crate) fn is_for_bytes(head: &Headers) -> bool {
    is_tunnel(head) && head.get(TUNNEL).is_some()
}

/// Whether an answer lets a tunnel begin.
pub(crate) fn is_accepted(head: &Headers) -> bool {
    head.status().is_some_and(|status| (200..300).contains(&status)) && head.get(DECLINED).is_none()
}

const DECLINED: Name = Name::other(http1::DECLINED);

/// Carries a connection of a port that leads to one service.
pub(crate) async fn forward(slot: ConnectionSlot, stream: TcpStream, from: SocketAddr, service: ServiceName) {
    serve(Downstream::new(slot.worker()), stream, from, &service).await;
}

/// Carries one connection of the own service to another service.
pub(crate) async fn serve(downstream: Rc<Downstream>, stream: TcpStream, from: SocketAddr, service: &ServiceName) {
    let worker = Rc::clone(&downstream.worker);
    worker.tick();
    let socket = Socket::raw(&worker, Role::Server);
    let Some(slot) = worker.call_slot() else {
        worker.shared.metrics.failure(weft_mesh::errors::Reason::Overloaded);
        return worker.log(|| format!("connection from {from} to {service} closed: {}", too_many_calls().message));
    };
    let mut head = Headers::new();
    head.set(Name::METHOD, CONNECT);
    head.set(Name::AUTHORITY, service.as_str().as_bytes());
    let caller = Side::Socket(Rc::clone(&socket));
    let _accepted = worker.accepted(Rc::clone(&socket) as _, Phase::Stopping);
    let call = Call::begin(&worker, Way::Outbound(Tries::default()), caller, head, false, slot);
    let carrying = spawn_local(carry(downstream, Rc::clone(&call)));
    call.waits_in(Some(carrying.abort_handle()));
    drop(call);
    if let Err(e) = Driver::new(&worker, &socket, stream, |_: Occasion| {}).await {
        tracing::debug!("the connection from {from} to {service} broke: {e}");
    }
}

/// Connects a call with the own service.
pub(crate) async fn send(address: SocketAddr, call: &Rc<Call>) -> Result<(), Miss> {
    let stream = connect::to_local(address, || true).await;
    let stream = stream.map_err(|why| Miss::NotSent(ConnectError::Failed(why.to_string().into())))?;
    let worker = &call.worker;
    worker.tick();
    let socket = Socket::raw(worker, Role::Client);
    let driver = Driver::new(worker, &socket, stream, |_: Occasion| {});
    let mut head = Headers::new();
    head.set(Name::STATUS, b"200");
    call.send_raw(&socket);
    spawn_local(async move {
        if let Err(e) = driver.await {
            tracing::debug!("the connection to the service at {address} broke: {e}");
        }
    });
    call.response_head(head, false);
    Ok(())
}
