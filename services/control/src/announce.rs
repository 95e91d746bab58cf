//! `weft.discovery.v1.Registry`: where sidecars announce what they front.
//!
//! Each stream is read by a task of its own, so that a sidecar's heartbeats count whatever else its connection is
//! busy with. The task ends with its stream, or when the control plane stops.

use std::{net::SocketAddr, sync::Arc};

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use weft_contracts::weft::discovery::v1::{
    Announce, AnnounceRequest, AnnounceResponse, Endpoint, Protocol, announce_request::What, registry_server,
};
use weft_mesh::{identity::SpiffeId, limits, names::ServiceName};

use crate::{
    directory::{Directory, Membership},
    peer::authenticated,
    registry::{Announcement, Digest, Refusal},
};

/// Answers that wait for a sidecar that does not read: there is one for each announcement and each descriptor set.
const ANSWERS: usize = 4;

/// See the module.
pub(crate) struct RegistryService {
    pub(crate) directory: Arc<Directory>,
    pub(crate) streams: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

#[tonic::async_trait]
impl registry_server::Registry for RegistryService {
    type AnnounceStream = ReceiverStream<Result<AnnounceResponse, Status>>;

    async fn announce(
        &self,
        request: Request<Streaming<AnnounceRequest>>,
    ) -> Result<Response<Self::AnnounceStream>, Status> {
        let peer = authenticated(&request)?;
        let (answers, stream) = mpsc::channel(ANSWERS);
        let stream_of_one = Stream { directory: Arc::clone(&self.directory), peer, answers, membership: None };
        let stopping = self.stopping.clone();
        self.streams.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = stream_of_one.run(request.into_inner()) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// An announcing stream's life.
struct Stream {
    directory: Arc<Directory>,
    peer: SpiffeId,
    answers: mpsc::Sender<Result<AnnounceResponse, Status>>,
    membership: Option<Membership>,
}

impl Stream {
    /// Reads until the stream ends. Dropping the future, like an end without a farewell, takes the endpoint down.
    async fn run(mut self, mut requests: Streaming<AnnounceRequest>) {
        let ended = self.read(&mut requests).await;
        if let Err(status) = ended {
            tracing::debug!(peer = %self.peer, %status, "an announcing stream is ended");
            // Before the last word is sent, as its reader may be slow: the endpoint gets no new calls from now on.
            self.membership = None;
            let _ = timeout(limits::ANNOUNCE_WAIT, self.answers.send(Err(status))).await;
        }
    }

    async fn read(&mut self, requests: &mut Streaming<AnnounceRequest>) -> Result<(), Status> {
        let first = timeout(limits::ANNOUNCE_WAIT, requests.message()).await;
        let mut next = first.map_err(|_| Status::deadline_exceeded("no announcement came"))??;
        let reader_gone = self.answers.clone();
        while let Some(request) = next {
            // What a newer sidecar may say that is not known here is no reason to cut it off.
            if let Some(what) = request.what {
                self.take(what)?;
            }
            next = tokio::select! {
                message = requests.message() => message?,
                () = reader_gone.closed() => None,
            };
        }
        Ok(())
    }

    fn take(&mut self, what: What) -> Result<(), Status> {
        match what {
            What::Announce(announce) => self.announce(announce),
            What::Heartbeat(heartbeat) => match &self.membership {
                Some(membership) => {
                    membership.heartbeat(heartbeat.health()).map_err(|e| Status::failed_precondition(e.to_string()))
                }
                None => Ok(()),
            },
            What::Deregister(_) => {
                if let Some(membership) = self.membership.take() {
                    membership.leave();
                }
                Ok(())
            }
            What::Descriptors(bytes) => self.describe(bytes),
        }
    }

    fn announce(&mut self, announce: Announce) -> Result<(), Status> {
        let announcement = check(&self.peer, announce).inspect_err(|status| {
            tracing::warn!(peer = %self.peer, why = status.message(), "an announcement was refused");
        })?;
        let membership = self.directory.join(announcement).map_err(|refusal| {
            tracing::warn!(peer = %self.peer, why = %refusal, "an announcement was refused");
            match refusal {
                Refusal::TakenId { .. } => Status::permission_denied(refusal.to_string()),
                Refusal::TooManyEndpoints { .. } | Refusal::TooManyServices => {
                    Status::resource_exhausted(refusal.to_string())
                }
            }
        })?;
        let send_descriptors = membership.wants_descriptors();
        // Of a stream that announces again, the older session is over by now: dropping it changes nothing.
        self.membership = Some(membership);
        self.answer(AnnounceResponse { send_descriptors, ..AnnounceResponse::default() })
    }

    fn describe(&mut self, bytes: bytes::Bytes) -> Result<(), Status> {
        let Some(membership) = &self.membership else { return Ok(()) };
        let Err(refused) = membership.describe(bytes) else { return Ok(()) };
        let (service, endpoint) = (membership.service(), membership.endpoint());
        tracing::warn!(%service, endpoint, why = %refused, "descriptors were refused");
        self.answer(AnnounceResponse { descriptors_refused: refused.to_string(), ..AnnounceResponse::default() })
    }

    fn answer(&self, answer: AnnounceResponse) -> Result<(), Status> {
        let heartbeat_interval = limits::HEARTBEAT_INTERVAL.try_into().ok();
        self.answers
            .try_send(Ok(AnnounceResponse { heartbeat_interval, ..answer }))
            .map_err(|_| Status::resource_exhausted("answers to announcements are not read"))
    }
}

/// An announcement as the registry takes it, if the peer may make it and it is well-formed.
fn check(peer: &SpiffeId, announce: Announce) -> Result<Announcement, Status> {
    let invalid = |what: String| Status::invalid_argument(what);
    let protocol = announce.protocol();
    let service = ServiceName::parse(&announce.service).map_err(|e| invalid(e.to_string()))?;
    if peer.service() != &service {
        return Err(Status::permission_denied(format!(
            "{peer} may not announce {service}: its identity names another"
        )));
    }
    let endpoint = announce.endpoint.ok_or_else(|| invalid("no endpoint is announced".into()))?;
    // Who announces is heard.
    let endpoint = Endpoint { silent: false, ..endpoint };
    if endpoint.spiffe_id != peer.to_string() {
        return Err(Status::permission_denied(format!(
            "{peer} may not announce an endpoint of {}",
            endpoint.spiffe_id
        )));
    }
    let is_id = (1..=limits::ENDPOINT_ID_BYTES).contains(&endpoint.id.len())
        && endpoint.id.bytes().all(|b| b.is_ascii_graphic());
    if !is_id {
        let most = limits::ENDPOINT_ID_BYTES;
        return Err(invalid(format!("an endpoint's id is 1 to {most} printable ASCII characters without spaces")));
    }
    match endpoint.address.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_unspecified() && address.port() != 0 => {}
        _ => return Err(invalid(format!("`{}` is not IP:PORT of a reachable sidecar", endpoint.address))),
    }
    if endpoint.health() == weft_contracts::weft::discovery::v1::Health::Unspecified {
        return Err(invalid("the endpoint's health is not said".into()));
    }
    if protocol == Protocol::Unspecified {
        return Err(invalid("the service's protocol is not said".into()));
    }
    if announce.contracts.len() > limits::CONTRACTS_PER_SERVICE {
        return Err(invalid(format!("a service implements {} contracts at most", limits::CONTRACTS_PER_SERVICE)));
    }
    if let Some(wrong) = announce.contracts.iter().find(|contract| !is_contract_name(contract)) {
        return Err(invalid(format!("`{wrong}` is not the full name of a protobuf service")));
    }
    let is_address =
        |text: &String| text.parse::<SocketAddr>().is_ok_and(|at| !at.ip().is_unspecified() && at.port() != 0);
    if announce.addresses.len() > limits::ADDRESSES_PER_ENDPOINT {
        return Err(invalid(format!("an endpoint is called at {} addresses at most", limits::ADDRESSES_PER_ENDPOINT)));
    }
    if let Some(wrong) = announce.addresses.iter().find(|address| !is_address(address)) {
        return Err(invalid(format!("`{wrong}` is not IP:PORT of a service")));
    }
    let descriptors = match announce.descriptors_sha256.len() {
        0 => None,
        _ => Some(
            Digest::try_from(&announce.descriptors_sha256[..])
                .map_err(|_| invalid(format!("a SHA-256 has 32 bytes, not {}", announce.descriptors_sha256.len())))?,
        ),
    };
    let contracts = announce.contracts.into_iter().collect();
    let addresses = announce.addresses.into_iter().collect();
    Ok(Announcement { service, endpoint, protocol, contracts, addresses, descriptors, policy: None })
}

fn is_contract_name(name: &str) -> bool {
    let is_identifier = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    name.len() <= limits::CONTRACT_NAME_BYTES && name.split('.').all(is_identifier)
}
