//! Announces the endpoint of the local service to the registry, for as long as it takes calls.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use weft_contracts::weft::{
    discovery::v1::{
        AccessReport, Announce, AnnounceRequest, AnnounceResponse, ContestedClaim, Deregister, Endpoint, Health,
        Heartbeat, Protocol, WatchAccessRequest, WatchAccessResponse, access_report::Row, announce_request::What,
        registry_client::RegistryClient,
    },
    policy::v1 as wire,
};
use weft_mesh::{
    limits,
    names::ServiceName,
    policy::{AccessRules, MeshAccess, Source},
};

use super::{
    Control,
    channel::{CALL_TIMEOUT, next_channel},
    due,
    retry::{Backoff, Trouble, status},
};
use crate::{
    args::AppProtocol,
    shared::{Phase, Shared, contracts::Contracts},
    telemetry::metrics::{CallLabels, Metrics, OTHER},
};

/// Messages to the registry that wait for the stream; there are never many.
const MESSAGES_QUEUED: usize = 8;
/// How long a sidecar that leaves waits for the registry's confirmation.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before another try to announce with the renewed identity; the older announcement holds meanwhile.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);
/// How often to tell which calls were not allowed.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Heartbeats are never sent faster, whatever the control plane asks for.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);

/// The local service as it is announced.
pub(super) struct Front {
    service: ServiceName,
    /// Unique in its service, and the same for the life of this process.
    id: String,
}

impl Front {
    pub(super) fn new(service: &ServiceName, id: String) -> Self {
        Self { service: service.clone(), id }
    }

    fn announce(&self, control: &Control, contracts: &Contracts, health: Health) -> Result<Announce, Status> {
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
                silent: false,
            }),
            protocol: protocol.into(),
            contracts: contracts.policy.contracts.iter().map(|contract| contract.name.clone()).collect(),
            descriptors_sha256: contracts.descriptors_sha256.clone(),
            addresses: shared.args.called_at().map(|address| address.to_string()).collect(),
        })
    }
}

/// Announces until the sidecar drains, then leaves the registry, and only follows the rules for its last calls. If the stream breaks, it announces again. It also
/// leaves while a thread makes no progress.
pub(super) async fn run(control: Arc<Control>, front: Front) -> anyhow::Result<()> {
    tokio::select! {
        () = control.shared.reached(Phase::Draining) => return Ok(()),
        () = can_announce(&control) => {}
    }
    let mut trouble = Trouble::new("announcing to the control plane");
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let ended = tokio::select! {
            // Nothing is announced yet: a stream that is being opened is just dropped.
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
            Ok(Ended::Left) => return follow_rules(&control, &front.service).await,
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
    /// Deregistered because this sidecar drains.
    Left,
    /// Deregistered, or never registered, because a thread makes no progress.
    Stalled,
    ByRegistry,
}

/// Takes the mesh's rules for calls to the local service. Rules that this version does not understand are not taken: those
/// from before hold, and without any, nobody may call.
fn set_access(shared: &Shared, service: &ServiceName, access: wire::MeshAccess) {
    match MeshAccess::try_from(access) {
        Ok(access) => {
            if shared.local_terms.set_access(AccessRules::new(service, access)) {
                tracing::info!("the mesh's rules for who may call the local service were set");
            }
        }
        Err(error) => tracing::error!(%error, "the mesh's rules for who may call the local service can't be used"),
    }
}

/// Takes the mesh's rules for the calls that still run after this sidecar has left the registry. Ends with the process.
async fn follow_rules(control: &Control, service: &ServiceName) -> anyhow::Result<()> {
    let mut channels = control.plane.channels();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let mut client = RegistryClient::new(next_channel(&mut channels).await)
            .max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES);
        if let Ok(answers) = client.watch_access(WatchAccessRequest {}).await {
            let mut answers = answers.into_inner();
            while let Ok(Some(WatchAccessResponse { access })) = answers.message().await {
                backoff.reset();
                access.into_iter().for_each(|access| set_access(&control.shared, service, access));
            }
        }
        // What it knows holds on.
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// One stream to the registry.
struct Session {
    requests: mpsc::Sender<AnnounceRequest>,
    answers: Streaming<AnnounceResponse>,
    health: watch::Receiver<Health>,
    heartbeat_interval: Duration,
    /// Another channel means that the identity was renewed.
    channels: watch::Receiver<Option<Channel>>,
    /// What is announced, and whether the service has other contracts by now.
    contracts: Arc<Contracts>,
    are_contracts_known: bool,
    contracts_changed: watch::Receiver<()>,
    terms_changed: watch::Receiver<()>,
    /// When to announce again because of either.
    renew_at: Option<Instant>,
    /// How many calls that were not allowed the control plane knows of.
    reported: u64,
}

impl Session {
    async fn open(control: &Control, front: &Front) -> Result<Self, Status> {
        let mut channels = control.plane.channels();
        let channel = next_channel(&mut channels).await;
        let mut health = control.health.subscribe();
        let mut contracts_changed = control.contracts_changed.subscribe();
        contracts_changed.borrow_and_update();
        let terms_changed = control.shared.local_terms.changes();
        let terms = control.shared.local_terms.get();
        let (contracts, are_contracts_known) = (Arc::clone(&terms.contracts), terms.are_known);
        let health_now = announced(*health.borrow_and_update(), control);
        let announce = front.announce(control, &contracts, health_now)?;
        let (requests, queue) = mpsc::channel(MESSAGES_QUEUED);
        let mut client = RegistryClient::new(channel).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES);
        let opening = async {
            send(&requests, What::Announce(announce)).await?;
            client.announce(ReceiverStream::new(queue)).await
        };
        let answers = timeout(CALL_TIMEOUT, opening).await.map_err(|_| Status::deadline_exceeded("no answer"))??;
        Ok(Self {
            requests,
            answers: answers.into_inner(),
            health,
            heartbeat_interval: limits::HEARTBEAT_INTERVAL,
            channels,
            contracts,
            are_contracts_known,
            contracts_changed,
            terms_changed,
            renew_at: None,
            reported: 0,
        })
    }

    /// Announces again, with the renewed identity or with changed contracts. The control plane ends the older stream when
    /// the older certificate expires. That stream stays until the new announcement is answered, so the endpoint never
    /// disappears.
    async fn renew(&mut self, control: &Control, front: &Front) {
        let renewing = async {
            let mut newer = Self::open(control, front).await?;
            let answer = timeout(CALL_TIMEOUT, newer.answers.message()).await;
            let answer = answer.map_err(|_| Status::deadline_exceeded("no answer"))??;
            newer.take(answer.ok_or_else(|| Status::unavailable("the stream ended"))?, control).await?;
            Ok::<_, Status>(newer)
        };
        let renewed = tokio::select! {
            renewed = renewing => renewed,
            () = control.shared.reached(Phase::Draining) => return,
        };
        match renewed {
            Ok(newer) => *self = newer,
            Err(error) => {
                tracing::debug!(error = status(&error), "can't announce again yet");
                self.renew_at = Some(Instant::now() + RENEWAL_PAUSE);
            }
        }
    }

    async fn run(&mut self, control: &Control, front: &Front) -> Result<Ended, Status> {
        let mut heartbeat_at = Instant::now() + self.heartbeat_interval;
        let mut report_at = Instant::now() + REPORT_INTERVAL;
        loop {
            tokio::select! {
                answer = self.answers.message() => {
                    let Some(answer) = answer? else { return Ok(Ended::ByRegistry) };
                    self.take(answer, control).await?;
                    heartbeat_at = heartbeat_at.min(Instant::now() + self.heartbeat_interval);
                    continue;
                }
                () = tokio::time::sleep_until(heartbeat_at) => {}
                () = tokio::time::sleep_until(report_at) => {
                    self.report(&control.shared.metrics).await?;
                    report_at = Instant::now() + REPORT_INTERVAL;
                    continue;
                }
                // The senders live as long as `control`.
                _ = self.health.changed() => {}
                // Perhaps its contracts are no longer known.
                _ = self.terms_changed.changed() => {}
                _ = self.channels.changed() => {
                    self.renew_at = Some(Instant::now());
                    continue;
                }
                _ = self.contracts_changed.changed() => {
                    self.renew_at = Some(Instant::now());
                    continue;
                }
                () = due(self.renew_at) => {
                    self.renew_at = None;
                    self.renew(control, front).await;
                    heartbeat_at = Instant::now();
                    continue;
                }
                () = control.shared.reached(Phase::Draining) => {
                    self.leave().await;
                    return Ok(Ended::Left);
                }
                () = control.shared.stalled(true) => {
                    self.leave().await;
                    return Ok(Ended::Stalled);
                }
            }
            let health = announced(*self.health.borrow_and_update(), control);
            send(&self.requests, What::Heartbeat(Heartbeat { health: health.into() })).await?;
            heartbeat_at = Instant::now() + self.heartbeat_interval;
        }
    }

    /// Tells which calls were not allowed, if there were more.
    async fn report(&mut self, metrics: &Metrics) -> Result<(), Status> {
        let counted = metrics.not_allowed.load(Relaxed);
        if counted == self.reported {
            return Ok(());
        }
        self.reported = counted;
        let row = |(labels, source, audit, calls): (CallLabels, Source, bool, u64)| Row {
            caller: labels.peer,
            method: if labels.method == OTHER { String::new() } else { labels.method },
            rule: source.as_str().to_owned(),
            audit,
            calls,
        };
        let rows = metrics.most_not_allowed(limits::DENIALS_TOLD).into_iter().map(row).collect();
        send(&self.requests, What::AccessReport(AccessReport { rows })).await
    }

    async fn take(&mut self, answer: AnnounceResponse, control: &Control) -> Result<(), Status> {
        if let Some(interval) = answer.heartbeat_interval.and_then(|interval| Duration::try_from(interval).ok()) {
            self.heartbeat_interval = interval.clamp(SHORTEST_HEARTBEAT, limits::ENDPOINT_EXPIRY / 3);
        }
        if answer.send_descriptors
            && let Some(descriptors) = &self.contracts.descriptors
        {
            send(&self.requests, What::Descriptors(descriptors.clone())).await?;
        }
        if let (Some(access), Some(service)) = (answer.access, &control.shared.local_service) {
            set_access(&control.shared, service, access);
        }
        let are_refused = !answer.descriptors_refused.is_empty();
        if are_refused {
            let why = answer.descriptors_refused;
            tracing::error!(why, "the control plane can't use the descriptors of the local service");
        }
        for ContestedClaim { claim, owner } in &answer.contested {
            tracing::warn!(claim, owner, "the local service gets no calls by this claim: it belongs to another");
        }
        for claim in &answer.unlisted {
            tracing::warn!(claim, "the local service gets no calls by this claim: the mesh's operator must list it");
        }
        if answer.claims_without_room > 0 {
            let claims = answer.claims_without_room;
            tracing::warn!(claims, "some claims of the local service are ignored: too many are pinned");
        }
        // Before that, callers would not know the contract's options.
        let is_described = answer.is_described || are_refused || self.contracts.descriptors.is_none();
        if is_described && self.are_contracts_known {
            control.was_announced.store(true, Relaxed);
        }
        Ok(())
    }

    /// Deregisters, and waits a moment for the registry to end the stream: by then it has told the callers.
    async fn leave(&mut self) {
        let goodbye = async {
            if send(&self.requests, What::Deregister(Deregister {})).await.is_ok() {
                // Ends our side of the stream. The registry then ends its side, after all earlier messages.
                self.requests = mpsc::channel(1).0;
                while let Ok(Some(_)) = self.answers.message().await {}
            }
        };
        if timeout(LEAVE_TIMEOUT, goodbye).await.is_err() {
            tracing::warn!("the control plane did not confirm in time that this endpoint left");
        }
    }
}

async fn send(requests: &mpsc::Sender<AnnounceRequest>, what: What) -> Result<(), Status> {
    let sent = timeout(CALL_TIMEOUT, requests.send(AnnounceRequest { what: Some(what) })).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::unavailable("the stream to the control plane broke")),
        Err(_) => Err(Status::deadline_exceeded("the control plane does not read the stream")),
    }
}

/// A service must get no calls if it is not known to be up, or if its contracts are not known.
fn announced(health: Health, control: &Control) -> Health {
    let are_known = control.shared.local_terms.get().are_known;
    if health == Health::Up && are_known { Health::Up } else { Health::Down }
}

/// Waits until it is known what to announce. Callers would skip an endpoint that is announced as down: if this sidecar
/// replaces another, that would be a gap.
async fn can_announce(control: &Control) {
    let mut health = control.health.subscribe();
    let _ = timeout(limits::HEALTH_CHECK_TIMEOUT * 2, health.wait_for(|health| *health != Health::Unspecified)).await;
    let mut terms = control.shared.local_terms.changes();
    while *health.borrow_and_update() == Health::Up && !control.shared.local_terms.get().are_known {
        tokio::select! {
            _ = terms.changed() => {}
            _ = health.changed() => {}
        }
    }
}
