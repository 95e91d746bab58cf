//! Connects attackers that do not speak TLS to the inbound port.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use weft_mesh::tls::{self, TrustBundle};

use crate::{bed::Joinable, identity};

/// Passes plain connections on over mutual TLS, with an SVID of the mesh.
pub(super) struct Tunnel {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Tunnel {
    pub(super) async fn start(mesh: &Joinable) -> Result<Self> {
        let bundle = TrustBundle::from_pem(&mesh.bundle)?;
        let svid = identity::join(mesh, &bundle).await?;
        let peer = svid.id().clone();
        let connector = TlsConnector::from(tls::client_config(Some(&svid), &bundle, peer.clone())?);
        let name = tls::server_name(&peer);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, inbound) = (listener.local_addr()?, mesh.inbound);
        let task = tokio::spawn(async move {
            while let Ok((mut plain, _)) = listener.accept().await {
                let (connector, name) = (connector.clone(), name.clone());
                tokio::spawn(async move {
                    let mut tls = connector.connect(name, TcpStream::connect(inbound).await?).await?;
                    copy_bidirectional(&mut plain, &mut tls).await
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}
