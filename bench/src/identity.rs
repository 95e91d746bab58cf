//! Joining a mesh as the echo server's sidecar does, with a token.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use weft_contracts::weft::identity::v1::{SignRequest, identity_client::IdentityClient};
use weft_mesh::{
    identity::SpiffeId,
    tls::{self, Svid, TrustBundle, WorkloadKey},
};

use crate::{bed::Joinable, weft::TRUST_DOMAIN};

/// An SVID of the echo service.
pub(crate) async fn join(mesh: &Joinable, bundle: &TrustBundle) -> Result<Svid> {
    join_with(mesh.control, mesh.join_token.clone(), bundle).await
}

/// An SVID of the service that the token names.
pub(crate) async fn join_with(control: SocketAddr, join_token: String, bundle: &TrustBundle) -> Result<Svid> {
    let key = WorkloadKey::generate()?;
    let request = SignRequest { csr_der: key.signing_request()?.into(), join_token, ..SignRequest::default() };
    let channel = connect(control, None, bundle).await?;
    let signed =
        IdentityClient::new(channel).sign(request).await.context("the control plane gives no identity")?.into_inner();
    Ok(key.into_svid(signed.chain_der.into_iter().map(Into::into).collect())?)
}

/// A channel to the control plane.
pub(crate) async fn connect(to: SocketAddr, svid: Option<&Svid>, bundle: &TrustBundle) -> Result<Channel> {
    connect_from(Ipv4Addr::LOCALHOST, to, svid, bundle).await
}

/// A channel to the control plane from an address of this machine.
pub(crate) async fn connect_from(
    from: Ipv4Addr,
    to: SocketAddr,
    svid: Option<&Svid>,
    bundle: &TrustBundle,
) -> Result<Channel> {
    let control = SpiffeId::of_control_plane(&TRUST_DOMAIN.parse()?);
    let name = tls::server_name(&control);
    let connector = TlsConnector::from(tls::client_config(svid, bundle, control)?);
    let connector = tower::service_fn(move |_: Uri| {
        let (connector, name) = (connector.clone(), name.clone());
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            connector.connect(name, socket.connect(to).await?).await.map(TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://control.weft").connect_with_connector(connector).await;
    channel.context("no connection to the control plane")
}
