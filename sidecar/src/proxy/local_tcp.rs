//! Tunnels to a local service that does not speak HTTP: each call has a connection of its own.

use std::{net::SocketAddr, rc::Rc};

use tokio::task::spawn_local;
use weft_wire::{Headers, Name};

use crate::{
    call::Call,
    policy::retry::{ConnectError, Miss},
    transport::{
        connect,
        link::Role,
        socket::{Occasion, Socket, SocketDriver},
    },
};

/// Connects a call with the local service.
pub(crate) async fn send(address: SocketAddr, call: &Rc<Call>) -> Result<(), Miss> {
    let stream = connect::to_local(address, || true).await;
    let stream = stream.map_err(|why| Miss::NotSent(ConnectError::Failed(why.to_string().into())))?;
    let worker = &call.worker;
    worker.tick();
    let socket = Socket::raw(worker, Role::Client);
    let driver = SocketDriver::new(worker, &socket, stream, |_: Occasion| {});
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
