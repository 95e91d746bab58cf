//! Connections of the local service, on the outbound port.

use std::{net::SocketAddr, rc::Rc, sync::atomic::Ordering::Relaxed};

use tokio::net::TcpStream;
use weft_mesh::limits;

use crate::{
    accept::{detect, http::speak, intercept},
    proxy::{Proxy, outbound::Downstream},
    thread::slots::ConnectionSlot,
};

/// Serves one connection of the local service.
pub(crate) async fn serve(proxy: Rc<Proxy>, slot: ConnectionSlot, stream: TcpStream, from: SocketAddr) {
    let worker = &proxy.worker;
    if let Some(to) = intercept::original(worker, &stream) {
        // In a box, so that the other connections need no room for it.
        return Box::pin(intercept::serve(&proxy, slot, stream, from, to)).await;
    }
    let wire = match detect::wire(&stream, limits::DETECT_TIMEOUT).await {
        Ok(wire) => wire,
        Err(detect::Undetected::Gone) => return,
        Err(why) => {
            worker.shared.metrics.counters.connections_malformed.fetch_add(1, Relaxed);
            if matches!(why, detect::Undetected::Silent(_)) {
                worker.shared.metrics.limit_reached("DETECT_TIMEOUT");
            }
            return worker.log(|| format!("outbound connection from {from} closed: {why}"));
        }
    };
    speak(Downstream::new(&proxy), wire, stream, from).await;
}
