//! `weft.discovery.v1.Registry`: sidecars announce the services that they front.
//!
//! Each stream is read by a task of its own, so that heartbeats are seen while the connection is busy with something
//! else, such as descriptors. The task ends with its stream, or when the control plane stops.

mod access;
mod membership;
#[cfg(test)]
mod tests;
mod waiting;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, unfold};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use weft_contracts::weft::discovery::v1::{
    Announce, AnnounceRequest, AnnounceResponse, ContestedClaim, WatchAccessRequest, WatchAccessResponse,
    announce_request::What, registry_server,
};
use weft_mesh::{
    identity::SpiffeId,
    limits,
    names::{ServiceName, shown_up_to},
};

use self::{
    access::{Callee, Telling},
    membership::{Happened, Memberships},
    waiting::{Answers, ToSidecar, answers},
};
use super::{
    announcement::{Announcer, check},
    messages::{Allowance, Allowed},
    pace::Pace,
    peer::{Caller, authenticated},
    streams::{Kind, OpenStream},
};
use crate::{
    claims::Denied,
    directory::{
        Directory, Lacks, Read, Reading,
        denials::Denials,
        registry::Refusal,
        shelf::{DescriptorsRefused, REFUSAL_CHARS},
    },
    kubernetes::cluster::Cluster,
    rules::{Rules, Said},
};

/// See the module.
pub(crate) struct RegistryService {
    pub(crate) directory: Arc<Directory>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) streams: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

#[tonic::async_trait]
impl registry_server::Registry for RegistryService {
    type AnnounceStream = Answers;
    type WatchAccessStream = BoxStream<'static, Result<WatchAccessResponse, Status>>;

    async fn announce(
        &self,
        request: Request<Streaming<AnnounceRequest>>,
    ) -> Result<Response<Self::AnnounceStream>, Status> {
        let caller = authenticated(&request)?;
        let open = caller.open(Kind::Announce)?;
        let allowance = request.extensions().get::<Allowance>().cloned().unwrap_or_default();
        let telling = Telling::new(&self.rules, caller.id.service(), caller.host);
        let (to_sidecar, answers) = answers(open, telling.taking());
        let directory = Arc::clone(&self.directory);
        let (memberships, descriptors) = (Memberships::default(), Descriptors::NotWanted);
        let cluster = self.cluster.clone();
        let requests = request.into_inner();
        let pace = Pace::new(limits::ANNOUNCE_MESSAGES);
        let mut stream = Stream {
            directory,
            caller,
            telling,
            cluster,
            requests,
            pace,
            to_sidecar,
            allowance,
            memberships,
            descriptors,
            has_left: false,
        };
        let stopping = self.stopping.clone();
        self.streams.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = stream.run() => {}
            }
        });
        Ok(Response::new(answers))
    }

    async fn watch_access(
        &self,
        request: Request<WatchAccessRequest>,
    ) -> Result<Response<Self::WatchAccessStream>, Status> {
        let caller = authenticated(&request)?;
        // It takes the place of the stream on which the caller has left.
        let open = caller.open(Kind::Announce)?;
        let telling = Telling::new(&self.rules, caller.id.service(), caller.host);
        let cluster = self.cluster.clone();
        let watch = AccessWatch { telling, cluster, caller, stopping: self.stopping.clone(), _open: open };
        let answers = unfold(watch, async |mut watch| Some((Ok(watch.next().await?), watch)));
        Ok(Response::new(answers.boxed()))
    }
}

/// A stream that is told the rules for calls to the caller's service.
struct AccessWatch {
    telling: Telling,
    cluster: Option<Arc<Cluster>>,
    caller: Caller,
    stopping: CancellationToken,
    _open: OpenStream,
}

impl AccessWatch {
    /// The rules, now and when they have changed; `None` at the end.
    async fn next(&mut self) -> Option<WatchAccessResponse> {
        loop {
            if let Some(callee) = callee(&self.caller, self.cluster.as_deref())
                && let Some(Said { access, number }) = self.telling.news(callee)
            {
                self.telling.taking().took(number);
                return Some(WatchAccessResponse { access: Some((&access).into()) });
            }
            tokio::select! {
                () = self.telling.changed() => {}
                () = self.stopping.cancelled() => return None,
                () = self.caller.expired() => return None,
            }
        }
    }
}

/// Whose rules a sidecar is told that has left. `None` if its pod is gone or backs nothing: it keeps to what it knows.
fn callee<'a>(caller: &'a Caller, cluster: Option<&Cluster>) -> Option<Callee<'a>> {
    let id = caller.id.service();
    let Some(cluster) = cluster else { return Some(Callee::Service(id)) };
    let pod = cluster.workloads.at(caller.host);
    let services: Vec<ServiceName> = pod.services.keys().cloned().collect();
    (pod.is_of(&caller.id) && !services.is_empty()).then_some(Callee::Pod(id, services))
}

/// The life of an announcing stream.
struct Stream {
    directory: Arc<Directory>,
    caller: Caller,
    /// Who may call by the rules of the mesh.
    telling: Telling,
    cluster: Option<Arc<Cluster>>,
    requests: Streaming<AnnounceRequest>,
    pace: Pace,
    to_sidecar: ToSidecar,
    allowance: Allowance,
    memberships: Memberships,
    descriptors: Descriptors,
    has_left: bool,
}

/// The state of a stream's descriptors. They are the only large message of a sidecar, and reading them takes long, so
/// only a few streams of one identity do that at once. When replicas start together, one of them sends what the others
/// have as well.
enum Descriptors {
    NotWanted,
    /// The descriptors, or their policy, are lacking. The stream waits for its turn.
    Wanted,
    /// The sidecar was asked for them and has to send them by this time.
    Asked {
        turn: OwnedSemaphorePermit,
        until: Instant,
        _allowed: Allowed,
    },
    /// They are being read, or known ones are being compiled. The stream is still read, so that its heartbeats count.
    Read {
        /// For which service.
        service: ServiceName,
        reading: Reading,
        turn: OwnedSemaphorePermit,
        /// The descriptors that this stream sent, if it did.
        bytes: Option<Bytes>,
    },
    /// They were refused. The decoder's buffer still contains them, and it takes a new buffer for the next message only
    /// if they are held here until then. So the turn is kept until the next message.
    Refused {
        _turn: OwnedSemaphorePermit,
        _bytes: Bytes,
    },
}

/// The next step with a stream's descriptors.
enum Progress {
    Turn(OwnedSemaphorePermit),
    Overdue,
    Read(Result<Read, DescriptorsRefused>),
}

impl Descriptors {
    /// Waits for the next step. Dropping the future loses nothing.
    async fn progress(&mut self, caller: &Caller) -> Progress {
        match self {
            Self::Wanted => match Arc::clone(caller.turns()).acquire_owned().await {
                Ok(turn) => Progress::Turn(turn),
                // The semaphore is never closed.
                Err(_) => std::future::pending().await,
            },
            Self::Asked { until, .. } => {
                sleep_until(*until).await;
                Progress::Overdue
            }
            Self::Read { reading, .. } => Progress::Read(reading.await),
            Self::NotWanted | Self::Refused { .. } => std::future::pending().await,
        }
    }
}

impl Stream {
    /// Reads until the stream ends. If the stream ends without a `Deregister`, or the future is dropped, the endpoint
    /// becomes silent.
    async fn run(&mut self) {
        let ended = self.read().await;
        if let Err(status) = ended {
            tracing::debug!(peer = %self.caller, %status, "an announcing stream is ended");
            // Before the status is sent, as the sidecar may be slow to read it: the endpoint gets no new calls from now
            // on.
            self.memberships.drop_all();
            let _ = self.to_sidecar.end(status).await;
        }
    }

    async fn read(&mut self) -> Result<(), Status> {
        let first = timeout(limits::ANNOUNCE_WAIT, self.requests.message()).await;
        let mut next = first.map_err(|_| Status::deadline_exceeded("no announcement came"))??;
        while let Some(request) = next {
            if matches!(self.descriptors, Descriptors::Refused { .. }) {
                self.descriptors = Descriptors::NotWanted;
            }
            // A newer sidecar may send messages that are not known here: they are ignored.
            if let Some(what) = request.what {
                self.take(what)?;
            }
            // What comes after that has no rights: it would only be kept.
            if self.has_left {
                return Ok(());
            }
            next = self.next().await?;
        }
        Ok(())
    }

    /// The next message; `None` at the end of the stream. Meanwhile the descriptors make progress.
    async fn next(&mut self) -> Result<Option<AnnounceRequest>, Status> {
        loop {
            tokio::select! {
                message = self.pace.next(&mut self.requests) => return message,
                () = self.to_sidecar.closed() => return Ok(None),
                () = self.caller.expired() => return Err(Caller::expiry_status()),
                () = self.telling.changed(), if self.memberships.is_announced() => self.tell_access()?,
                happened = self.memberships.next() => match happened {
                    Happened::Over(over) => return Err(Status::failed_precondition(over.to_string())),
                    Happened::BacksOthers => self.follow()?,
                },
                progress = self.descriptors.progress(&self.caller) => match progress {
                    Progress::Turn(turn) => self.take_turn(turn)?,
                    Progress::Read(read) => self.keep(read)?,
                    Progress::Overdue => {
                        return Err(Status::deadline_exceeded("the descriptors that were asked for did not come"));
                    }
                },
            }
        }
    }

    /// It is this stream's turn: asks for its descriptors or has them compiled, if they are still lacking.
    fn take_turn(&mut self, turn: OwnedSemaphorePermit) -> Result<(), Status> {
        self.descriptors = Descriptors::NotWanted;
        if self.memberships.look_again().is_err() {
            // What ended the session also ends the stream.
            return Ok(());
        }
        let Some(membership) = self.memberships.lacking() else { return self.is_described() };
        match membership.lacks() {
            Lacks::Nothing | Lacks::Descriptors => {}
            Lacks::Use(why) => {
                let why = Arc::clone(why);
                return self.refuse_descriptors(&why);
            }
            Lacks::Policy => {
                if let Some(reading) = membership.compile() {
                    let service = membership.service().clone();
                    self.descriptors = Descriptors::Read { service, reading, turn, bytes: None };
                    return Ok(());
                }
            }
        }
        self.ask(turn);
        self.to_sidecar.send(AnnounceResponse { send_descriptors: true, ..AnnounceResponse::default() })
    }

    fn ask(&mut self, turn: OwnedSemaphorePermit) {
        let until = Instant::now() + limits::CONTROL_MESSAGE_TIME;
        self.descriptors = Descriptors::Asked { turn, until, _allowed: self.allowance.allow_descriptors() };
    }

    fn take(&mut self, what: What) -> Result<(), Status> {
        match what {
            What::Announce(announce) => self.announce(announce),
            What::Heartbeat(heartbeat) => {
                let beat = self.memberships.heartbeat(heartbeat.health());
                beat.map_err(|over| Status::failed_precondition(over.to_string()))
            }
            What::Deregister(_) => {
                self.memberships.leave();
                self.descriptors = Descriptors::NotWanted;
                self.has_left = true;
                Ok(())
            }
            What::Descriptors(bytes) => self.read_descriptors(bytes),
            What::AccessReport(report) => {
                let reported = self.memberships.report(Denials::read(report));
                reported.map_err(|over| Status::failed_precondition(over.to_string()))
            }
        }
    }

    fn announce(&mut self, announce: Announce) -> Result<(), Status> {
        let Self { directory, caller, .. } = self;
        let service = caller.id.service();
        if !directory.announcements.allows(service) {
            return Err(directory.announcements.refusal(service, "announces itself"));
        }
        let announcer = Announcer { id: &caller.id, host: caller.host };
        let cluster = self.cluster.as_ref();
        let is_its_pod = |ip| cluster.is_some_and(|cluster| cluster.is_pod_of(ip, &caller.id, caller.host));
        let allows = |service: &_, address| directory.allows_host(service, address) || is_its_pod(address);
        let checked = check(announcer, announce, allows).and_then(|announcement| {
            let pod = cluster.map(|cluster| cluster.check(announcer.id, announcer.host, &announcement)).transpose()?;
            Ok((announcement, pod))
        });
        let (announcement, pod) = checked.inspect_err(|status| {
            if directory.lines.allows(caller.id.service()) {
                tracing::warn!(peer = %caller, why = status.message(), "an announcement was refused");
            }
        })?;
        let joined = match pod {
            Some(pod) => self.memberships.join_as_pod(directory, (&caller.id, caller.host), announcement, pod),
            None => self.memberships.join(directory, announcement),
        };
        let denied = self.joined(joined)?;
        let contested = self.contested(&denied);
        let claims_without_room = u32::try_from(denied.without_room).unwrap_or(u32::MAX);
        let unlisted = denied.unlisted.iter().take(limits::CONTESTS_TOLD).cloned().collect();
        let lacks = self.want_descriptors();
        let send_descriptors = matches!(self.descriptors, Descriptors::Asked { .. });
        let said = self.telling.again(self.memberships.callee(self.caller.id.service()));
        let answer = AnnounceResponse {
            send_descriptors,
            is_described: lacks == Lacks::Nothing,
            contested,
            claims_without_room,
            unlisted,
            ..Default::default()
        };
        self.to_sidecar.send_with(said, answer)?;
        match lacks {
            Lacks::Use(why) => self.refuse_descriptors(&why),
            Lacks::Nothing | Lacks::Policy | Lacks::Descriptors => Ok(()),
        }
    }

    /// On Kubernetes: the pod backs other Services.
    fn follow(&mut self) -> Result<(), Status> {
        // First of all: callers hear of it when it is a member.
        self.tell_access()?;
        self.memberships.follow(&self.directory);
        // What is being read goes on.
        if matches!(self.descriptors, Descriptors::NotWanted) {
            self.want_descriptors();
            if matches!(self.descriptors, Descriptors::Asked { .. }) {
                return self
                    .to_sidecar
                    .send(AnnounceResponse { send_descriptors: true, ..AnnounceResponse::default() });
            }
        }
        Ok(())
    }

    fn joined(&self, joined: Result<Denied, Refusal>) -> Result<Denied, Status> {
        joined.map_err(|refusal| {
            if self.directory.lines.allows(self.caller.id.service()) {
                tracing::warn!(peer = %self.caller, why = %refusal, "an announcement was refused");
            }
            match refusal {
                Refusal::Endpoints { .. }
                | Refusal::Services
                | Refusal::Contracts { .. }
                | Refusal::Addresses { .. } => Status::resource_exhausted(refusal.to_string()),
                Refusal::OtherIdentity { .. } => Status::permission_denied(refusal.to_string()),
            }
        })
    }

    /// Asks for descriptors if they are lacking and it is this stream's turn; otherwise it waits for its turn.
    fn want_descriptors(&mut self) -> Lacks {
        let lacks = self.memberships.lacks();
        self.descriptors = match lacks {
            Lacks::Nothing | Lacks::Use(_) => Descriptors::NotWanted,
            Lacks::Policy | Lacks::Descriptors => Descriptors::Wanted,
        };
        if lacks == Lacks::Descriptors
            && let Ok(turn) = Arc::clone(self.caller.turns()).try_acquire_owned()
        {
            self.ask(turn);
        }
        lacks
    }

    /// Tells the sidecar who may call, if that is news to it.
    fn tell_access(&mut self) -> Result<(), Status> {
        match self.telling.news(self.memberships.callee(self.caller.id.service())) {
            Some(said) => self.to_sidecar.send_rules(said),
            None => Ok(()),
        }
    }

    fn contested(&self, denied: &Denied) -> Vec<ContestedClaim> {
        let trust_domain = self.caller.id.trust_domain();
        let contested = denied.contested.iter().take(limits::CONTESTS_TOLD);
        let sight = self.directory.sight_of(self.caller.id.service());
        // A claim must not reveal services that are out of the caller's sight.
        let shown =
            |owner: &ServiceName| sight.sees(owner).then(|| SpiffeId::of_service(trust_domain, owner).to_string());
        let told = |(claim, owner): &(String, _)| ContestedClaim {
            claim: claim.clone(),
            owner: shown(owner).unwrap_or_default(),
        };
        contested.map(told).collect()
    }

    fn read_descriptors(&mut self, bytes: Bytes) -> Result<(), Status> {
        // Reading takes long, so descriptors that were not asked for are ignored. They may also cross a newer
        // announcement that needs none.
        if !matches!(self.descriptors, Descriptors::Asked { .. }) {
            return Ok(());
        }
        // A replica has sent them in the meantime, or the pod no longer backs the Service for which they were lacking.
        let Some(membership) = self.memberships.lacking() else { return self.look_on() };
        let (service, reading) = (membership.service().clone(), membership.read(bytes.clone()));
        let Descriptors::Asked { turn, .. } = std::mem::replace(&mut self.descriptors, Descriptors::NotWanted) else {
            return Ok(());
        };
        match reading {
            Ok(reading) => {
                self.descriptors = Descriptors::Read { service, reading, turn, bytes: Some(bytes) };
                Ok(())
            }
            Err(refused) => {
                self.descriptors = Descriptors::Refused { _turn: turn, _bytes: bytes };
                self.refuse_descriptors(&refused.to_string())
            }
        }
    }

    /// The descriptors were read.
    fn keep(&mut self, read: Result<Read, DescriptorsRefused>) -> Result<(), Status> {
        let before = std::mem::replace(&mut self.descriptors, Descriptors::NotWanted);
        let Descriptors::Read { service, turn, bytes, .. } = before else { return Ok(()) };
        // The pod may no longer back the Service.
        let Some(membership) = self.memberships.of(&service) else { return self.look_on() };
        match read.and_then(|read| membership.keep(read)) {
            Ok(()) => self.look_on(),
            Err(refused) => {
                if let Some(bytes) = bytes {
                    self.descriptors = Descriptors::Refused { _turn: turn, _bytes: bytes };
                }
                self.refuse_descriptors(&refused.to_string())
            }
        }
    }

    /// Goes on with the next Service for which descriptors are lacking, or says that there is none.
    fn look_on(&mut self) -> Result<(), Status> {
        match self.memberships.lacks() {
            Lacks::Nothing => {
                self.descriptors = Descriptors::NotWanted;
                self.is_described()
            }
            Lacks::Policy | Lacks::Descriptors | Lacks::Use(_) => {
                self.descriptors = Descriptors::Wanted;
                Ok(())
            }
        }
    }

    /// The sidecar waits for this before it is ready.
    fn is_described(&self) -> Result<(), Status> {
        self.to_sidecar.send(AnnounceResponse { is_described: true, ..AnnounceResponse::default() })
    }

    fn refuse_descriptors(&self, why: &str) -> Result<(), Status> {
        // The reason may quote what was sent.
        let why = shown_up_to(why, REFUSAL_CHARS);
        if let Some(membership) = self.memberships.first() {
            let (service, endpoint) = (membership.service(), membership.endpoint());
            if self.directory.lines.allows(service) {
                tracing::warn!(%service, endpoint, why, "descriptors were refused");
            }
        }
        self.to_sidecar.send(AnnounceResponse { descriptors_refused: why, ..AnnounceResponse::default() })
    }
}
