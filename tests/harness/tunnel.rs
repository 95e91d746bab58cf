//! Connects programs that have no SVID to a sidecar's inbound port.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;
use weft_control::ca::Ca;
use weft_mesh::{
    identity::SpiffeId,
    tls::{WorkloadKey, client_config, install_crypto_provider, server_name},
};

use crate::Bed;

/// Takes plain connections on a loopback port and passes them on to the inbound port of a service's first replica, over
/// mutual TLS with an SVID that the mesh's own CA has signed.
///
/// # Panics
/// The bed has no such service, or its CA gives no SVID.
pub async fn tunnel(bed: &Bed, service: &str) -> u16 {
    install_crypto_provider();
    let inbound = bed.ports(&format!("{service}-1")).inbound;
    let (peer, config) = identity(bed, service);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("a bound socket").port();
    tokio::spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let (connector, name) = (TlsConnector::from(Arc::clone(&config)), server_name(&peer));
            tokio::spawn(async move {
                let tcp = TcpStream::connect(("127.0.0.1", inbound)).await?;
                // Frames that a suite sends one by one must arrive one by one.
                tcp.set_nodelay(true)?;
                plain.set_nodelay(true)?;
                let mut tls = connector.connect(name, tcp).await?;
                copy_bidirectional(&mut plain, &mut tls).await
            });
        }
    });
    port
}

/// The identity to expect, and a TLS configuration with an SVID to present.
fn identity(bed: &Bed, service: &str) -> (SpiffeId, Arc<ClientConfig>) {
    let id = |name: &str| -> SpiffeId {
        format!("spiffe://weft.local/ns/shop/sa/{name}").parse().expect("a name is part of a SPIFFE ID")
    };
    let trust_domain = "weft.local".parse().expect("a trust domain");
    let ca = Ca::open_or_create(&bed.state_dir().join("control"), &trust_domain).expect("the mesh has a CA");
    let key = WorkloadKey::generate().expect("a key");
    let issued = ca.sign(&key.signing_request().expect("a request"), &id("tunnel")).expect("an SVID");
    let svid = key.into_svid(issued.chain_der).expect("an SVID");
    let config = client_config(Some(&svid), ca.bundle(), id(service)).expect("a configuration");
    (id(service), config)
}
