//! A process that has a certificate of the mesh and connects by itself, without a sidecar.

use std::{io, sync::Arc};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, ServerConfig};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};
use weft_contracts::weft::discovery::v1::{
    Announce, AnnounceRequest, AnnounceResponse, Endpoint as Announcement, Health, Protocol, announce_request::What,
    registry_client::RegistryClient,
};
use weft_mesh::{
    identity::SpiffeId,
    tls::{ClientCertificate, Svid, client_config, server_config, server_name},
};

use crate::{Bed, Forge, Shown};

/// The control plane's identity.
const CONTROL: &str = "spiffe://weft.local/ns/weft/sa/control";

/// See the module.
#[derive(Clone)]
pub struct Member<'f> {
    ca: &'f Forge,
    shown: Option<Shown>,
}

/// An endpoint that the control plane knows, until this is dropped.
pub struct Announced {
    /// The control plane's first answer.
    pub answer: AnnounceResponse,
    _requests: mpsc::Sender<AnnounceRequest>,
    _answers: Streaming<AnnounceResponse>,
}

impl Announced {
    /// Announces over a member's channel to the control plane.
    ///
    /// # Errors
    /// The control plane refuses it.
    ///
    /// # Panics
    /// The stream takes no message.
    pub async fn open(control: &Channel, announce: Announce) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(1);
        requests.send(AnnounceRequest { what: Some(What::Announce(announce)) }).await.expect("there is room");
        let answers = RegistryClient::new(control.clone()).announce(ReceiverStream::new(queue)).await;
        let mut answers = answers?.into_inner();
        let answer = answers.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
        Ok(Self { answer, _requests: requests, _answers: answers })
    }
}

impl<'f> Member<'f> {
    /// A member that presents `shown`, or no certificate at all.
    pub fn new(ca: &'f Forge, shown: Option<Shown>) -> Self {
        Self { ca, shown }
    }

    /// The TLS configuration of a client that expects `peer`.
    ///
    /// # Panics
    /// `peer` is not a SPIFFE ID.
    pub fn client(&self, peer: &str) -> Arc<ClientConfig> {
        let peer = peer.parse().expect("a SPIFFE ID");
        let config = client_config(None, self.ca.bundle(), peer).expect("a configuration");
        let mut config = ClientConfig::clone(&config);
        if let Some(shown) = &self.shown {
            config.client_auth_cert_resolver = Arc::new(shown.clone());
        }
        Arc::new(config)
    }

    /// The TLS configuration of a server that accepts members of the mesh.
    ///
    /// # Panics
    /// This member has no certificate.
    pub fn server(&self) -> Arc<ServerConfig> {
        // A valid certificate: `server_config` wants one. The resolver replaces it.
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = Forge::params(CONTROL).signed_by(&key, self.ca.issuer()).expect("it is signed");
        let svid = Svid::new(vec![leaf.der().to_vec()], key.serialize_der()).expect("an SVID");
        let config = server_config(&svid, self.ca.bundle(), ClientCertificate::Required).expect("a configuration");
        let mut config = ServerConfig::clone(&config);
        config.cert_resolver = Arc::new(self.shown.clone().expect("a server presents a certificate"));
        Arc::new(config)
    }

    /// A TLS connection to a loopback port. In TLS 1.3 a client learns only by its first read that it was refused.
    ///
    /// # Errors
    /// The connection fails, or the server has another identity.
    ///
    /// # Panics
    /// `peer` is not a SPIFFE ID.
    pub async fn dial(&self, port: u16, peer: &str) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        let name = server_name(&peer.parse::<SpiffeId>().expect("a SPIFFE ID"));
        TlsConnector::from(self.client(peer)).connect(name, tcp).await
    }

    /// A channel to the control plane.
    ///
    /// # Panics
    /// Never: the URL is valid.
    pub fn control(&self, bed: &Bed) -> Channel {
        let (port, config) = (bed.control(), self.client(CONTROL));
        let connect = move |_: http::Uri| {
            let config = Arc::clone(&config);
            async move {
                let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
                let name = server_name(&CONTROL.parse::<SpiffeId>().expect("a SPIFFE ID"));
                TlsConnector::from(config).connect(name, tcp).await.map(TokioIo::new)
            }
        };
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).expect("a URL");
        endpoint.connect_with_connector_lazy(tower::service_fn(connect))
    }

    /// Announces an endpoint that speaks HTTP/2 on a loopback port.
    ///
    /// # Errors
    /// The control plane refuses it.
    pub async fn announce(&self, bed: &Bed, service: &str, spiffe_id: &str, port: u16) -> Result<Announced, Status> {
        let endpoint = Announcement {
            id: format!("{service}-{port}"),
            address: format!("127.0.0.1:{port}"),
            spiffe_id: spiffe_id.into(),
            health: Health::Up.into(),
            silent: false,
        };
        let announce = Announce {
            service: service.into(),
            endpoint: Some(endpoint),
            protocol: Protocol::Http2.into(),
            ..Announce::default()
        };
        Announced::open(&self.control(bed), announce).await
    }
}
