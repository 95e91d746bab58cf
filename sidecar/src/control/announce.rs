//! Tells the registry of the endpoint in front of which this sidecar stands, for as long as it takes calls.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_contracts::weft::discovery::v1::{
    Announce, AnnounceRequest, AnnounceResponse, Deregister, Endpoint, Health, Heartbeat, Protocol,
    announce_request::What, registry_client::RegistryClient,
};
use weft_mesh::{limits, names::ServiceName};

use super::{
    Control,
    channel::CALL_TIMEOUT,
    retry::{Backoff, Trouble, status},
};
use crate::{args::AppProtocol, shared::Phase};

/// Messages to the registry that wait for the stream; few are ever under way.
const MESSAGES_QUEUED: usize = 8;
/// How long a sidecar that leaves waits for the registry to have seen it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// No control plane makes sidecars chatter faster than that.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);

/// What this sidecar fronts.
pub(super) struct Front {
    service: ServiceName,
    /// Unique in the mesh and for the life of this process.
    id: String,
    /// A serialized `FileDescriptorSet`.
    descriptors: Option<Bytes>,
    descriptors_sha256: Bytes,
}

impl Front {
    pub(super) fn new(service: &ServiceName, id: String, descriptors: Option<Bytes>) -> Self {
        use sha2::Digest;
        let descriptors_sha256 =
            descriptors.as_ref().map(|set| Bytes::copy_from_slice(&sha2::Sha256::digest(set))).unwrap_or_default();
        Self { service: service.clone(), id, descriptors, descriptors_sha256 }
    }

    fn announce(&self, control: &Control, health: Health) -> Result<Announce, Status> {
        let shared = &control.shared;
        let identity = shared.identity.load();
        let identity = identity.as_ref().ok_or_else(|| Status::internal("announced before it has an identity"))?;
        let protocol = match shared.args.protocol {
            AppProtocol::Grpc => Protocol::Http2,
            AppProtocol::Http1 => Protocol::Http1,
            AppProtocol::Tcp => Protocol::Tcp,
        };
        Ok(Announce {
            service: self.service.to_string(),
            endpoint: Some(Endpoint {
                id: self.id.clone(),
                address: shared.args.advertised().to_string(),
                spiffe_id: identity.svid.id().to_string(),
                health: health.into(),
            }),
            protocol: protocol.into(),
            contracts: shared.own_policy.contracts.iter().map(|contract| contract.name.clone()).collect(),
            descriptors_sha256: self.descriptors_sha256.clone(),
            addresses: shared.args.called_at().map(|address| address.to_string()).collect(),
        })
    }
}

/// Announces until the sidecar drains, then leaves the registry. When the stream breaks, it announces again. While a
/// thread makes no progress it leaves, too.
pub(super) async fn run(control: Arc<Control>, front: Front) -> anyhow::Result<()> {
    // Announced as down it would be passed over; one that takes another's place would leave a gap.
    let mut health = control.health.subscribe();
    let _ = timeout(limits::HEALTH_CHECK_TIMEOUT * 2, health.wait_for(|health| *health != Health::Unspecified)).await;
    let mut trouble = Trouble::new("announcing to the control plane");
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let ended = tokio::select! {
            // Nothing to leave before there was anything: a stream that is being opened is dropped.
            () = control.shared.reached(Phase::Draining) => return Ok(()),
            () = control.shared.stalled(true) => Ok(Ended::Stalled),
            opened = Session::open(&control, &front) => match opened {
                Ok(mut session) => {
                    trouble.is_over();
                    backoff.reset();
                    session.run(&control, &front).await
                }
                Err(error) => Err(error),
            },
        };
        match ended {
            Ok(Ended::Left) => return Ok(()),
            Ok(Ended::Stalled) => tokio::select! {
                () = control.shared.reached(Phase::Draining) => return Ok(()),
                () = control.shared.stalled(false) => continue,
            },
            Ok(Ended::ByRegistry) => trouble.is(&"the control plane ended the stream"),
            Err(error) => trouble.is(&status(&error)),
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

enum Ended {
    /// Deregistered, as this sidecar drains.
    Left,
    /// Deregistered, or never registered, as a thread makes no progress.
    Stalled,
    ByRegistry,
}

/// One stream to the registry.
struct Session {
    requests: mpsc::Sender<AnnounceRequest>,
    answers: Streaming<AnnounceResponse>,
    health: watch::Receiver<Health>,
    heartbeat_interval: Duration,
}

impl Session {
    async fn open(control: &Control, front: &Front) -> Result<Self, Status> {
        let channel = control.plane.ready().await;
        let mut health = control.health.subscribe();
        let announce = front.announce(control, announced(*health.borrow_and_update()))?;
        let (requests, queue) = mpsc::channel(MESSAGES_QUEUED);
        let mut client = RegistryClient::new(channel).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES);
        let opening = async {
            send(&requests, What::Announce(announce)).await?;
            client.announce(ReceiverStream::new(queue)).await
        };
        let answers = timeout(CALL_TIMEOUT, opening).await.map_err(|_| Status::deadline_exceeded("no answer"))??;
        Ok(Self { requests, answers: answers.into_inner(), health, heartbeat_interval: limits::HEARTBEAT_INTERVAL })
    }

    async fn run(&mut self, control: &Control, front: &Front) -> Result<Ended, Status> {
        let mut heartbeat_at = Instant::now() + self.heartbeat_interval;
        loop {
            tokio::select! {
                answer = self.answers.message() => {
                    let Some(answer) = answer? else { return Ok(Ended::ByRegistry) };
                    self.take(answer, control, front).await?;
                    heartbeat_at = heartbeat_at.min(Instant::now() + self.heartbeat_interval);
                    continue;
                }
                () = tokio::time::sleep_until(heartbeat_at) => {}
                // The sender lives as long as `control`.
                _ = self.health.changed() => {}
                () = control.shared.reached(Phase::Draining) => {
                    self.leave().await;
                    return Ok(Ended::Left);
                }
                () = control.shared.stalled(true) => {
                    self.leave().await;
                    return Ok(Ended::Stalled);
                }
            }
            let health = announced(*self.health.borrow_and_update());
            send(&self.requests, What::Heartbeat(Heartbeat { health: health.into() })).await?;
            heartbeat_at = Instant::now() + self.heartbeat_interval;
        }
    }

    async fn take(&mut self, answer: AnnounceResponse, control: &Control, front: &Front) -> Result<(), Status> {
        if let Some(interval) = answer.heartbeat_interval.and_then(|interval| Duration::try_from(interval).ok()) {
            self.heartbeat_interval = interval.clamp(SHORTEST_HEARTBEAT, limits::ENDPOINT_EXPIRY / 3);
        }
        if answer.send_descriptors
            && let Some(descriptors) = &front.descriptors
        {
            send(&self.requests, What::Descriptors(descriptors.clone())).await?;
        }
        if !answer.descriptors_refused.is_empty() {
            let why = answer.descriptors_refused;
            tracing::error!(why, "the control plane can't use the descriptors of the local service");
        }
        control.was_announced.store(true, Relaxed);
        Ok(())
    }

    /// Says goodbye, and waits a moment for the registry to end the stream: then it has told the callers.
    async fn leave(&mut self) {
        let goodbye = async {
            if send(&self.requests, What::Deregister(Deregister {})).await.is_ok() {
                // With our side of the stream the registry ends its own, once it has done what came before.
                self.requests = mpsc::channel(1).0;
                while let Ok(Some(_)) = self.answers.message().await {}
            }
        };
        if timeout(LEAVE_TIMEOUT, goodbye).await.is_err() {
            tracing::warn!("the control plane did not confirm that this endpoint left");
        }
    }
}

async fn send(requests: &mpsc::Sender<AnnounceRequest>, what: What) -> Result<(), Status> {
    let sent = timeout(CALL_TIMEOUT, requests.send(AnnounceRequest { what: Some(what) })).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::unavailable("the stream to the control plane broke")),
        Err(_) => Err(Status::deadline_exceeded("the control plane takes no more of the stream")),
    }
}

/// What is not known to be up gets no calls.
fn announced(health: Health) -> Health {
    if health == Health::Up { Health::Up } else { Health::Down }
}
