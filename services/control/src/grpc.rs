//! The gRPC port: TCP, TLS with its peer's identity, HTTP/2, and the four services on it.
//!
//! Handshakes run in tasks of their own with a time limit, so that a slow one keeps nobody waiting. Idle connections
//! are pinged: the streams of a sidecar that is half-dead break within [`limits::KEEP_ALIVE_INTERVAL`] and
//! [`limits::KEEP_ALIVE_TIMEOUT`].

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinError, JoinSet},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::Connected};
use weft_contracts::weft::{
    discovery::v1::{
        contracts_server::ContractsServer, discovery_server::DiscoveryServer, registry_server::RegistryServer,
    },
    identity::v1::identity_server::IdentityServer,
};
use weft_mesh::limits;

use crate::{
    announce::RegistryService, ca::Ca, contracts::ContractsService, credentials::Credentials, directory::Directory,
    discovery::DiscoveryService, identity::IdentityService, peer::Peer,
};

/// A request for a signature: a key, some attributes, a token.
const SIGN_MESSAGE_BYTES: usize = 64 * 1024;
/// A subscription or a question.
const QUESTION_BYTES: usize = 64 * 1024;
/// How long accepting pauses when it fails, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections between handshake and server; the server takes each at once.
const READY: usize = 16;

/// Serves until `stopping` is cancelled and what was open has ended. Dropping the future ends the accepting; open
/// connections end with the runtime.
pub(crate) async fn serve(
    listener: TcpListener,
    ca: Arc<Ca>,
    credentials: Arc<Credentials>,
    directory: Arc<Directory>,
    stopping: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let streams = TaskTracker::new();
    let identity = IdentityService { ca, bundle: credentials.bundle(), stopping: stopping.clone() };
    let registry =
        RegistryService { directory: Arc::clone(&directory), streams: streams.clone(), stopping: stopping.clone() };
    let discovery = DiscoveryService { directory: Arc::clone(&directory), stopping: stopping.clone() };
    let contracts = ContractsService { directory };
    let (ready, connections) = mpsc::channel(READY);
    let server = Server::builder()
        .http2_keepalive_interval(Some(limits::KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(limits::CONTROL_STREAMS)
        .http2_max_header_list_size(limits::CONTROL_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(limits::RESETS_PENDING_ACCEPT))
        .http2_max_local_error_reset_streams(Some(limits::LOCAL_RESETS))
        .max_frame_size(limits::MAX_FRAME_BYTES)
        .add_service(IdentityServer::new(identity).max_decoding_message_size(SIGN_MESSAGE_BYTES))
        .add_service(RegistryServer::new(registry).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES))
        .add_service(DiscoveryServer::new(discovery).max_decoding_message_size(QUESTION_BYTES))
        .add_service(ContractsServer::new(contracts).max_decoding_message_size(QUESTION_BYTES))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stopping.clone().cancelled_owned());
    let (served, ()) = tokio::join!(server, accept(listener, credentials, ready, stopping));
    streams.close();
    streams.wait().await;
    served
}

/// Takes connections until `stopping` is cancelled; handshakes under way are then given up.
async fn accept(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    ready: mpsc::Sender<io::Result<Connection>>,
    stopping: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(limits::CONTROL_CONNECTIONS));
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => return,
            Some(ended) = handshakes.join_next() => {
                look_at(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => match Arc::clone(&room).try_acquire_owned() {
                Ok(permit) => {
                    let acceptor = TlsAcceptor::from(credentials.config());
                    handshakes.spawn(handshake(stream, from, acceptor, permit, ready.clone()));
                }
                Err(_) => tracing::warn!(%from, limit = limits::CONTROL_CONNECTIONS, "too many connections"),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn look_at(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a handshake panicked");
    }
}

/// One handshake; its connection goes to the server.
async fn handshake(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    permit: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    // Messages are small, and each is waited for.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%from, %error, "a connection was gone before its handshake");
        return;
    }
    let stream = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::warn!(%from, %error, "a peer was refused in its handshake");
            return;
        }
        Err(_) => {
            tracing::warn!(%from, within = ?limits::HANDSHAKE_TIMEOUT, "a handshake was not finished in time");
            return;
        }
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    match Peer::new(from, leaf.map(|leaf| &leaf[..])) {
        // Fails only when the server has stopped.
        Ok(peer) => drop(ready.send(Ok(Connection { stream, peer, _permit: permit })).await),
        Err(error) => tracing::warn!(%from, %error, "a peer was refused for its certificate"),
    }
}

/// A connection whose peer is known.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
