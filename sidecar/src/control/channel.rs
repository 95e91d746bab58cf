//! The connection to the control plane: HTTP/2 over mutual TLS, which accepts only the control plane's identity.

use std::{sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    limits,
    tls::{TlsSetupError, TrustBundle, client_config, server_name},
};

use crate::shared::Identity;

/// How long one unary call to the control plane may take, or opening a stream.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection to the control plane, shared by all parts of a sidecar. Cheap to clone.
///
/// Its channels run on the runtime that makes them, the control side's; they may be used from any other.
#[derive(Clone, Debug)]
pub(crate) struct ControlPlane {
    uri: Uri,
    id: SpiffeId,
    channel: watch::Sender<Option<Channel>>,
}

/// The address of the control plane is wrong.
#[derive(Debug, thiserror::Error)]
#[error("--control-plane is `{0}`; allowed: https://HOST:PORT")]
pub(crate) struct BadAddress(Uri);

impl ControlPlane {
    pub(crate) fn new(uri: &Uri, trust_domain: &TrustDomain) -> Result<Self, BadAddress> {
        let is_plain_path = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if uri.scheme_str() != Some("https") || uri.host().is_none_or(str::is_empty) || !is_plain_path {
            return Err(BadAddress(uri.clone()));
        }
        let id = SpiffeId::of_control_plane(trust_domain);
        Ok(Self { uri: uri.clone(), id, channel: watch::Sender::new(None) })
    }

    /// From now on, calls and new streams use this identity. Open streams go on unchanged, until the control plane ends
    /// them when the certificate of their connection expires. If a stream must not end, open a new one before that: see
    /// [`Self::channels`].
    pub(crate) fn use_identity(&self, identity: &Identity) -> Result<(), TlsSetupError> {
        let channel = self.connect_lazily(identity.client(&self.id)?);
        self.channel.send_replace(Some(channel));
        Ok(())
    }

    /// A channel with this sidecar's identity; `None` until there is one.
    pub(crate) fn channel(&self) -> Option<Channel> {
        self.channel.borrow().clone()
    }

    /// A channel with this sidecar's identity, as soon as there is one.
    pub(crate) async fn ready(&self) -> Channel {
        next_channel(&mut self.channels()).await
    }

    /// The channels with this sidecar's identity: a new one each time the identity changes.
    pub(crate) fn channels(&self) -> watch::Receiver<Option<Channel>> {
        self.channel.subscribe()
    }

    /// A channel without a client certificate, for requests with another proof of identity, such as a join token.
    pub(crate) fn without_identity(&self, bundle: &TrustBundle) -> Result<Channel, TlsSetupError> {
        Ok(self.connect_lazily(client_config(None, bundle, self.id.clone())?))
    }

    fn connect_lazily(&self, tls: Arc<ClientConfig>) -> Channel {
        let tls = TlsConnector::from(tls);
        let name = server_name(&self.id);
        let connector = tower::service_fn(move |uri: Uri| {
            let (tls, name) = (tls.clone(), name.clone());
            async move { connect(&uri, &tls, name).await.map(TokioIo::new) }
        });
        Endpoint::from(self.uri.clone())
            .http2_keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }
}

/// The newest channel, as soon as there is one; it is marked as seen.
pub(crate) async fn next_channel(channels: &mut watch::Receiver<Option<Channel>>) -> Channel {
    let newest = channels.wait_for(Option::is_some).await.ok().and_then(|channel| channel.clone());
    match newest {
        Some(channel) => channel,
        // Only when the sender is gone, which means that the control side has ended.
        None => std::future::pending().await,
    }
}

async fn connect(
    uri: &Uri,
    tls: &TlsConnector,
    name: rustls_pki_types::ServerName<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(weft_mesh::names::port::CONTROL);
    let tcp = tokio::time::timeout(limits::CONNECT_TIMEOUT, TcpStream::connect((host, port))).await??;
    tcp.set_nodelay(true)?;
    tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, tls.connect(name, tcp)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_https_address_is_accepted() {
        let domain: TrustDomain = "weft.local".parse().unwrap();
        for good in ["https://127.0.0.1:15010", "https://control.weft:15010/", "https://[::1]:1"] {
            assert!(ControlPlane::new(&good.parse().unwrap(), &domain).is_ok(), "{good}");
        }
        for bad in ["http://127.0.0.1:15010", "127.0.0.1:15010", "/x", "https://a/b", "https://a?x"] {
            let error = ControlPlane::new(&bad.parse().unwrap(), &domain).unwrap_err().to_string();
            assert!(error.contains("https://HOST:PORT"), "{error}");
        }
    }
}
