//! Connections of other sidecars, on the inbound port.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;
use weft_mesh::{identity::SpiffeId, limits};
use weft_wire::Headers;

use crate::{
    accept::http2::{self, Terms},
    call::{Call, Side},
    message::failure::Hop,
    proxy::{
        Proxy,
        inbound::{Peer, carry, too_many_calls},
    },
    shared::{Identity, Phase},
    thread::{slots::ConnectionSlot, step::Steps},
    transport::{link::Link, tls_stream::TlsStream},
};

/// Serves one connection of another sidecar.
pub(crate) async fn serve(proxy: Rc<Proxy>, mut slot: ConnectionSlot, stream: TcpStream, from: SocketAddr) {
    let worker = &proxy.worker;
    let Some(identity) = worker.shared.identity.load_full() else {
        return worker.log(|| format!("inbound connection from {from} closed: this sidecar has no identity yet"));
    };
    // In a box, which is freed when the handshake is done.
    let accepting = Box::pin(TlsAcceptor::from(Arc::clone(&identity.server)).accept(stream));
    let accepted = tokio::select! {
        accepted = timeout(limits::HANDSHAKE_TIMEOUT, accepting) => accepted,
        () = slot.makes_room() => {
            return worker
                .log(|| format!("inbound connection from {from} closed in its handshake, to make room for others"));
        }
    };
    let refused = match accepted {
        Ok(Ok(stream)) => match peer_of(&proxy, &mut slot, from, &identity, stream.get_ref().1) {
            Ok((peer, expiry)) => {
                let name = format!("inbound connection of {} from {from}", peer.id);
                let (mut steps, load) = (Steps::new(), Rc::clone(&peer.load));
                let begin = |link: &Rc<Link>, stream, head: Headers, is_whole| {
                    let Some(slot) = worker.inbound_slot(&load) else {
                        let why = too_many_calls(worker, &load);
                        http2::refuse(worker, link, stream, &head, is_whole, &why, Hop::Inbound);
                        return None;
                    };
                    let caller = Side::Stream(Rc::clone(link), stream);
                    Some(Call::begin(worker, Rc::clone(&peer) as _, caller, head, is_whole, slot))
                };
                let carry = |call: Rc<Call>| {
                    call.waits_in(steps.run(carry(Rc::clone(&peer), Rc::clone(&call))));
                };
                let stream = TlsStream::server(stream);
                let terms = Terms { load: &load, last: Phase::Draining, expiry: Some(expiry) };
                return http2::serve(worker, stream, terms, &name, begin, carry).await;
            }
            Err(why) => why,
        },
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => "it closed during the TLS handshake".to_owned(),
        Ok(Err(e)) => format!("only mutual TLS with an SVID of this trust domain is accepted: {e}"),
        Err(_) => {
            worker.shared.metrics.limit_reached("HANDSHAKE_TIMEOUT");
            format!("its TLS handshake took longer than {:?}", limits::HANDSHAKE_TIMEOUT)
        }
    };
    worker.shared.metrics.counters.handshakes_failed.fetch_add(1, Relaxed);
    worker.log(|| format!("inbound connection from {from} closed: {refused}"));
}

/// The peer of a connection, and when the connection must end: when its certificate expires, or this sidecar's if that
/// is sooner. From now on the connection counts for this peer.
fn peer_of(
    proxy: &Rc<Proxy>,
    slot: &mut ConnectionSlot,
    from: SocketAddr,
    own: &Identity,
    tls: &rustls::ServerConnection,
) -> Result<(Rc<Peer>, SystemTime), String> {
    let chain = tls.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or("it showed no certificate")?;
    let id = SpiffeId::of_certificate(leaf).map_err(|e| e.to_string())?;
    let expiry = own.connection_end(chain).map_err(|e| e.to_string())?;
    let hash: String = sha256(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    let client_cert = format!("By={};Hash={hash};URI={id}", own.svid.id()).into_bytes();
    let load = slot.is_of(&id).ok_or_else(|| format!("{id} has too many connections (CONNECTIONS_PER_SIDE)"))?;
    Ok((Peer::new(proxy, id, from, &load, client_cert), expiry))
}

fn sha256(bytes: &[u8]) -> impl AsRef<[u8]> + std::ops::Deref<Target = [u8]> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}
