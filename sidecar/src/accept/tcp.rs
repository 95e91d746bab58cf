//! Opaque TCP: a connection of any protocol is a call, whose request and answer are the two directions. Between
//! sidecars it is a CONNECT stream (RFC 9113, section 8.5), so it has identity, balancing, breakers, flow control and
//! half-closes as other calls do.

use std::{net::SocketAddr, rc::Rc};

use tokio::{net::TcpStream, task::spawn_local};
use weft_mesh::names::ServiceName;
use weft_wire::{Headers, Name};

use crate::{
    call::{Call, Side},
    message::tunnel::CONNECT,
    proxy::outbound::{Downstream, carry, too_many_calls},
    shared::Phase,
    transport::{
        link::Role,
        socket::{Occasion, Socket, SocketDriver},
    },
};

/// Carries one connection of the local service to another service.
pub(crate) async fn serve(downstream: Rc<Downstream>, stream: TcpStream, from: SocketAddr, service: &ServiceName) {
    let worker = Rc::clone(downstream.worker());
    worker.tick();
    let socket = Socket::raw(&worker, Role::Server);
    let Some(slot) = worker.call_slot() else {
        worker.shared.metrics.failure(weft_mesh::errors::Reason::Overloaded);
        return worker
            .log(|| format!("connection from {from} to {service} closed: {}", too_many_calls(&worker).message));
    };
    let mut head = Headers::new();
    head.set(Name::METHOD, CONNECT);
    head.set(Name::AUTHORITY, service.as_str().as_bytes());
    let caller = Side::Socket(Rc::clone(&socket));
    let _accepted = worker.accepted(Rc::clone(&socket) as _, Phase::Stopping);
    let call = Call::begin(&worker, Rc::clone(&downstream) as _, caller, head, false, slot);
    let carrying = spawn_local(carry(downstream, Rc::clone(&call)));
    call.waits_in(Some(carrying.abort_handle()));
    drop(call);
    if let Err(e) = SocketDriver::new(&worker, &socket, stream, |_: Occasion| {}).await {
        tracing::debug!("the connection from {from} to {service} broke: {e}");
    }
}
