//! A port that leads to one service, for clients that can't name the service: `--forward`.
//!
//! If the service speaks HTTP, it gets each call on the port, whatever path the call has. Calls that a web page of another
//! site may have sent are refused: see [`crate::message::site`]. If the service speaks another protocol, it gets the
//! bytes of each connection unchanged.

use std::{net::SocketAddr, rc::Rc};

use tokio::net::TcpStream;
use weft_contracts::weft::discovery::v1::Protocol;
use weft_mesh::names::ServiceName;

use crate::{
    accept::{
        intercept::{close_with_reset, detect_and_serve},
        tcp,
    },
    endpoints::catalog::Asked,
    proxy::{Proxy, outbound::Downstream, route},
    thread::slots::ConnectionSlot,
};

/// Serves one connection of such a port.
pub(crate) async fn serve(
    proxy: Rc<Proxy>,
    _slot: ConnectionSlot,
    stream: TcpStream,
    from: SocketAddr,
    service: ServiceName,
) {
    let worker = &proxy.worker;
    match route::find(worker, Asked::Service(service)).await {
        Ok(service) if service.protocol == Protocol::Tcp => {
            tcp::serve(Downstream::new(&proxy), stream, from, &service.name).await;
        }
        // In a box, so that connections to services of TCP need no room for it.
        Ok(service) => {
            let downstream = Downstream::to_port_of(&proxy, &service.name);
            Box::pin(detect_and_serve(downstream, &service, stream, from)).await;
        }
        Err(failure) => {
            worker.shared.metrics.failure(failure.reason);
            close_with_reset(
                worker,
                &stream,
                format_args!("forwarded connection from {from} refused: {}", failure.message),
            );
        }
    }
}
