//! The gRPC port: TCP, TLS with the peer's identity, HTTP/2, and the four services on it.
//!
//! Each handshake runs in a task of its own with a time limit, so that a slow one does not delay others. [`admission`]
//! limits the connections, and [`connection`] ends those without a call. The others are pinged: if a sidecar does not
//! answer, its streams break within [`limits::KEEP_ALIVE_INTERVAL`] plus [`limits::KEEP_ALIVE_TIMEOUT`].

mod activity;
pub(crate) mod admission;
mod announce;
mod announcement;
mod answers;
mod connection;
mod contracts;
mod discovery;
mod identity;
mod messages;
mod pace;
mod peer;
mod streams;
mod unread;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;
use tower::util::MapRequestLayer;
use weft_contracts::weft::{
    discovery::v1::{
        contracts_server::ContractsServer, discovery_server::DiscoveryServer, registry_server::RegistryServer,
    },
    identity::v1::identity_server::IdentityServer,
};
use weft_mesh::limits;

use self::{
    admission::{Admission, Budget, Place},
    announce::RegistryService,
    answers::Counting,
    connection::Connection,
    contracts::ContractsService,
    discovery::DiscoveryService,
    identity::IdentityService,
    peer::Peer,
};
use crate::{
    authority::{ca::Ca, credentials::Credentials},
    directory::{Directory, rates::Rates},
    kubernetes::{cluster::Cluster, reviews::Reviews},
    log_limit,
    rules::Rules,
};

/// The longest request for a signature: a key, some attributes, a token.
const SIGN_MESSAGE_BYTES: usize = 64 * 1024;
/// The longest subscription or question.
const QUESTION_BYTES: usize = 64 * 1024;
/// How long accepting pauses after a failure, such as too few file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many connections may wait between handshake and server, which takes each at once.
const READY: usize = 16;

/// What the services on the port stand on.
pub(crate) struct Parts {
    pub(crate) ca: Arc<Ca>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) rules: Arc<Rules>,
    /// On Kubernetes.
    pub(crate) cluster: Option<Arc<Cluster>>,
}

/// Serves until `stopping` is cancelled and everything open has ended. Dropping the future stops accepting; open
/// connections end with the runtime.
pub(crate) async fn serve(
    listener: TcpListener,
    parts: Parts,
    budget: Budget,
    stopping: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let Parts { ca, credentials, directory, rules, cluster } = parts;
    let streams = TaskTracker::new();
    let identity = IdentityService {
        ca,
        bundle: credentials.bundle(),
        directory: Arc::clone(&directory),
        cluster: cluster.clone(),
        reviews: Reviews::default(),
        signatures: Rates::new(limits::SIGNATURES),
        stopping: stopping.clone(),
    };
    let registry = RegistryService {
        directory: Arc::clone(&directory),
        rules,
        cluster,
        streams: streams.clone(),
        stopping: stopping.clone(),
    };
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
        .layer(Counting)
        .layer(MapRequestLayer::new(messages::watch_over as fn(_) -> _))
        .add_service(IdentityServer::new(identity).max_decoding_message_size(SIGN_MESSAGE_BYTES))
        .add_service(RegistryServer::new(registry).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES))
        .add_service(DiscoveryServer::new(discovery).max_decoding_message_size(QUESTION_BYTES))
        .add_service(ContractsServer::new(contracts).max_decoding_message_size(QUESTION_BYTES))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stopping.clone().cancelled_owned());
    let (served, ()) = tokio::join!(server, accept(listener, credentials, Admission::new(budget), ready, stopping));
    streams.close();
    streams.wait().await;
    served
}

/// Takes connections until `stopping` is cancelled. Handshakes that are running then are given up.
async fn accept(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    admission: Admission,
    ready: mpsc::Sender<io::Result<Connection>>,
    stopping: CancellationToken,
) {
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
            Ok((stream, from)) => match admission.enter(from.ip(), Instant::now()) {
                Ok(place) => {
                    let acceptor = TlsAcceptor::from(credentials.config());
                    handshakes.spawn(admit(stream, from, acceptor, place, ready.clone()));
                }
                // Closed at once. No warning, as a peer could cause any number of them.
                Err(full) => tracing::debug!(%from, %full, "a connection was refused"),
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

/// One connection until the server has it. The handshake is boxed, so that a silent connection needs little memory.
async fn admit(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    mut place: Place,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let (must_go, deadline) = (place.must_go(), Instant::now() + limits::HANDSHAKE_TIMEOUT);
    let mut first = [0];
    let spoken = tokio::select! {
        spoken = timeout_at(deadline, stream.peek(&mut first)) => spoken,
        () = must_go.cancelled() => return made_room(from),
    };
    match spoken {
        Ok(_) => place.note_sent(Instant::now()),
        Err(_) => return late(from),
    }
    Box::pin(handshake(stream, from, acceptor, place, deadline, ready)).await;
}

fn made_room(from: SocketAddr) {
    tracing::debug!(%from, "a handshake was given up to make room for another");
}

fn late(from: SocketAddr) {
    if log_limit::STRANGERS.allows() {
        tracing::warn!(%from, within = ?limits::HANDSHAKE_TIMEOUT, "a handshake was not finished in time");
    }
}

/// One handshake. Its connection goes to the server.
async fn handshake(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    mut place: Place,
    deadline: Instant,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let must_go = place.must_go();
    let shaking = async {
        // Messages are small, and the other side waits for each.
        stream.set_nodelay(true)?;
        acceptor.accept(stream).await
    };
    let shaken = tokio::select! {
        shaken = timeout_at(deadline, shaking) => shaken,
        () = must_go.cancelled() => return made_room(from),
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            if log_limit::STRANGERS.allows() {
                tracing::warn!(%from, %error, "a peer was refused in its handshake");
            }
            return;
        }
        Err(_) => return late(from),
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = match Peer::new(from, leaf.map(|leaf| &leaf[..]), Arc::default()) {
        Ok(peer) => peer,
        Err(error) => {
            if log_limit::STRANGERS.allows() {
                tracing::warn!(%from, %error, "a peer was refused for its certificate");
            }
            return;
        }
    };
    let peer = match peer.id().cloned() {
        None => peer,
        Some(id) => match place.become_member(&id) {
            Ok(of_identity) => peer.of_identity(of_identity),
            Err(full) => {
                if log_limit::MEMBERS.allows(id.service()) {
                    tracing::warn!(%from, %id, %full, "a connection of a member was refused");
                }
                return;
            }
        },
    };
    // Fails only if the server has stopped.
    drop(ready.send(Ok(Connection::new(stream, peer, place))).await);
}
