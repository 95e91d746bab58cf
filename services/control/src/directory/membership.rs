//! An endpoint's membership in the registry, held by its stream.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    sync::oneshot::error::TryRecvError,
    time::{Instant, sleep_until},
};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::{limits, names::ServiceName};

use super::{
    Directory,
    denials::Denials,
    reading::{Read, Reading, Subject},
    registry::{Contracts, Digest, GaveWay, Session, SessionOver},
    shelf::{self, DescriptorsRefused},
};

/// See the module. Dropping it means that the stream broke.
pub(crate) struct Membership {
    directory: Arc<Directory>,
    session: Session,
    /// Ends when the session is over.
    gave_way: GaveWay,
    gave_way_at: Option<Instant>,
    descriptors: Option<Digest>,
    contracts: Contracts,
    lacks: Lacks,
    is_over: bool,
}

/// What the directory lacks of an endpoint's policy when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lacks {
    Nothing,
    /// The descriptors are known from another service or for other contracts, and have to be compiled:
    /// [`Membership::compile`].
    Policy,
    /// The descriptors have to be sent: [`Membership::read`].
    Descriptors,
    /// The descriptors were refused before, for this reason.
    Use(Arc<str>),
}

impl Membership {
    pub(super) fn new(
        directory: Arc<Directory>,
        session: Session,
        gave_way: GaveWay,
        descriptors: Option<Digest>,
        contracts: Contracts,
        lacks: Lacks,
    ) -> Self {
        Self { directory, session, gave_way, gave_way_at: None, descriptors, contracts, lacks, is_over: false }
    }

    /// What is lacking of its policy.
    pub(crate) fn lacks(&self) -> &Lacks {
        &self.lacks
    }

    /// Waits until the session has been over for [`limits::ANNOUNCE_WAIT`]: another stream has announced its endpoint,
    /// or the endpoint was evicted. The wait gives a sidecar that is being replaced time to leave by itself. Dropping
    /// the future loses nothing.
    pub(crate) async fn superseded(&mut self) -> SessionOver {
        let at = match self.gave_way_at {
            Some(at) => at,
            None => {
                // Nothing is ever sent: the channel closes when the member is removed.
                let _ = (&mut self.gave_way).await;
                *self.gave_way_at.insert(Instant::now())
            }
        };
        sleep_until(at + limits::ANNOUNCE_WAIT).await;
        SessionOver
    }

    /// Whether another stream has announced its endpoint.
    pub(crate) fn has_given_way(&mut self) -> bool {
        self.gave_way_at.is_some() || !matches!(self.gave_way.try_recv(), Err(TryRecvError::Empty))
    }

    /// Checks again what is lacking: a replica may have sent it in the meantime.
    pub(crate) fn look_again(&mut self) -> Result<(), SessionOver> {
        let state = &mut *self.directory.lock();
        let contracts = || self.contracts.iter().map(|name| &**name);
        let (policy, lacks) = state.what_is_known(&self.session.service, self.descriptors, contracts);
        self.lacks = lacks;
        if let Some(policy) = policy {
            state.registry.describe(&self.session, policy, Instant::now())?;
            state.tell();
        }
        Ok(())
    }

    /// The sidecar is alive.
    pub(crate) fn heartbeat(&self, health: Health) -> Result<(), SessionOver> {
        let mut state = self.directory.lock();
        state.registry.heartbeat(&self.session, health, Instant::now())?;
        state.tell();
        Ok(())
    }

    /// The sidecar reports the calls that it did not allow.
    pub(crate) fn report(&self, denials: Denials) -> Result<(), SessionOver> {
        self.directory.lock().registry.report(&self.session, denials)
    }

    /// Reads the announced descriptors, which have arrived. Pass the result to [`Self::keep`].
    pub(crate) fn read(&self, bytes: Bytes) -> Result<Reading, DescriptorsRefused> {
        let subject = self.subject().ok_or(DescriptorsRefused::NotAnnounced)?;
        let Subject { service, digest, contracts } = subject.clone();
        self.directory.lock().shelf.check_room(&service, &digest, bytes.len())?;
        Ok(self.directory.read(subject, move || shelf::make(digest, bytes, &contracts)))
    }

    /// Compiles descriptors that are known already for its contracts; `None` if they are no longer known. Pass the
    /// result to [`Self::keep`].
    pub(crate) fn compile(&self) -> Option<Reading> {
        let subject = self.subject()?;
        let set = Arc::clone(self.directory.lock().shelf.set(&subject.digest)?);
        let contracts = Arc::clone(&subject.contracts);
        let make = move || shelf::compile(&set, &contracts).map(|policy| (set, policy));
        Some(self.directory.read(subject, make))
    }

    fn subject(&self) -> Option<Subject> {
        let (service, contracts) = (self.session.service.clone(), Arc::clone(&self.contracts));
        Some(Subject { service, digest: self.descriptors?, contracts })
    }

    /// Keeps the policy in its descriptors.
    pub(crate) fn keep(&mut self, Read { set, policy }: Read) -> Result<(), DescriptorsRefused> {
        let digest = self.descriptors.ok_or(DescriptorsRefused::NotAnnounced)?;
        let state = &mut *self.directory.lock();
        let (service, contracts) = (&self.session.service, &self.contracts);
        // A replica may have been faster.
        let known = state.shelf.policy(service, &digest, || contracts.iter().map(|name| &**name));
        let policy = match (known, set) {
            (Some(known), _) => known,
            (None, Some(set)) => {
                state.shelf.put(service, digest, Arc::clone(contracts), set, Arc::clone(&policy))?;
                policy
            }
            (None, None) => policy,
        };
        state.registry.describe(&self.session, policy, Instant::now())?;
        state.tell();
        self.lacks = Lacks::Nothing;
        Ok(())
    }

    /// The endpoint says that it leaves.
    pub(crate) fn leave(mut self) {
        self.is_over = true;
        let Session { service, endpoint, .. } = &self.session;
        let mut state = self.directory.lock();
        if state.registry.deregister(&self.session, Instant::now()) && self.directory.lines.allows(service) {
            tracing::info!(%service, endpoint, "left");
        }
        state.tell();
    }

    pub(crate) fn service(&self) -> &ServiceName {
        &self.session.service
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.session.endpoint
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let Session { service, endpoint, .. } = &self.session;
        let mut state = self.directory.lock();
        if !state.is_frozen && state.registry.stream_broken(&self.session, Instant::now()) {
            if self.directory.lines.allows(service) {
                tracing::warn!(%service, endpoint, "its sidecar's stream broke: callers that know other endpoints no longer call it");
            }
            state.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::mpsc};

    use futures_util::FutureExt as _;
    use tokio::time::{advance, timeout};
    use weft_contracts::weft::discovery::v1::{Endpoint, Protocol};

    use super::*;
    use crate::{
        claims::{Claims, hosts::Hosts, visibility::Visibility},
        directory::registry::Announcement,
    };

    fn directory() -> Arc<Directory> {
        let trust_domain = "weft.test".parse().unwrap();
        Directory::new(trust_domain, Visibility::All, Claims::default(), Hosts::default())
    }

    fn announcement(id: &str, port: u16) -> Announcement {
        Announcement {
            service: ServiceName::parse("users.shop").unwrap(),
            endpoint: Endpoint {
                id: id.into(),
                address: format!("10.0.0.1:{port}"),
                health: Health::Up.into(),
                ..Endpoint::default()
            },
            protocol: Protocol::Http2,
            contracts: BTreeSet::from(["shop.Users".to_owned()]),
            addresses: BTreeSet::new(),
            allowed: BTreeSet::new(),
            of_cluster: BTreeSet::new(),
            descriptors: None,
            policy: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_another_replaced_is_over_and_the_other_is_not() {
        let directory = directory();
        let join = |id: &str, port| directory.join(announcement(id, port)).unwrap().0;
        // Another has taken its id, or its address.
        for (newer_id, newer_port) in [("u1", 2), ("u2", 1)] {
            let mut older = join("u1", 1);
            assert!(older.superseded().now_or_never().is_none());
            let mut newer = join(newer_id, newer_port);
            assert!(older.superseded().now_or_never().is_none(), "its sidecar has time to leave");
            advance(limits::ANNOUNCE_WAIT).await;
            assert!(older.superseded().now_or_never().is_some());
            assert!(newer.superseded().now_or_never().is_none());
            drop(older);
            assert!(newer.heartbeat(Health::Up).is_ok());
            newer.leave();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_silent_for_too_long_is_over() {
        let directory = directory();
        let mut silent = directory.join(announcement("u1", 1)).unwrap().0;
        let alive = directory.join(announcement("u2", 2)).unwrap().0;
        let began = Instant::now();
        while silent.superseded().now_or_never().is_none() {
            assert!(began.elapsed() < limits::ENDPOINT_EXPIRY * 2, "the session never ends");
            advance(std::time::Duration::from_secs(1)).await;
            alive.heartbeat(Health::Up).unwrap();
            directory.lock().tick(Instant::now(), &directory.lines);
        }
        assert!(began.elapsed() >= limits::ENDPOINT_EXPIRY);
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_share_the_names_of_their_contracts() {
        let directory = directory();
        let (one, two) =
            (directory.join(announcement("u1", 1)).unwrap().0, directory.join(announcement("u2", 2)).unwrap().0);
        assert!(Arc::ptr_eq(&one.contracts[0], &two.contracts[0]));
    }

    /// Descriptors with this digest, for the contracts of `users.shop`.
    fn subject(directory: &Arc<Directory>, service: &str, digest: u8) -> Subject {
        let contracts = directory.join(announcement("u1", 1)).unwrap().0.contracts.clone();
        Subject { service: ServiceName::parse(service).unwrap(), digest: [digest; 32], contracts }
    }

    #[tokio::test]
    async fn a_dropped_reading_keeps_its_turn_until_it_has_finished() {
        let directory = directory();
        let (started, starts) = mpsc::channel();
        let mut gates = Vec::new();
        let refused = || Err(DescriptorsRefused::OtherDigest);
        for number in 0..limits::DESCRIPTORS_READ {
            let (gate, opened) = mpsc::channel::<()>();
            gates.push(gate);
            let started = started.clone();
            let subject = subject(&directory, &format!("s{number}.shop"), 1);
            let mut reading = directory.read(subject, move || {
                started.send(()).unwrap();
                let _ = opened.recv();
                refused()
            });
            // The reading starts, and its future is dropped.
            assert!(futures_util::poll!(&mut reading).is_pending());
        }
        gates.iter().for_each(|_| starts.recv().unwrap());
        let mut next = directory.read(subject(&directory, "next.shop", 1), refused);
        assert!(timeout(std::time::Duration::from_millis(100), &mut next).await.is_err(), "all turns are taken");
        gates.pop();
        assert!(matches!(next.await, Err(DescriptorsRefused::OtherDigest)));
    }

    #[tokio::test]
    async fn one_service_reads_one_set_at_a_time_and_never_a_refused_one_again() {
        let directory = directory();
        let (gate, opened) = mpsc::channel::<()>();
        let mut first = directory.read(subject(&directory, "greedy.shop", 1), move || {
            let _ = opened.recv();
            Err(DescriptorsRefused::Unusable("no good".into()))
        });
        assert!(futures_util::poll!(&mut first).is_pending());
        drop(first);
        let never = || panic!("refused descriptors were read again");
        let mut same = directory.read(subject(&directory, "greedy.shop", 1), never);
        let mut other = directory.read(subject(&directory, "greedy.shop", 2), || Err(DescriptorsRefused::OtherDigest));
        assert!(futures_util::poll!(&mut same).is_pending() && futures_util::poll!(&mut other).is_pending());
        // Other services do not wait.
        let users = directory.read(subject(&directory, "users.shop", 1), || Err(DescriptorsRefused::OtherDigest));
        assert!(matches!(users.await, Err(DescriptorsRefused::OtherDigest)));
        drop(gate);
        let refused = same.await.unwrap_err();
        assert!(matches!(&refused, DescriptorsRefused::Known(why) if &**why == "no good"), "{refused}");
        assert!(matches!(other.await, Err(DescriptorsRefused::OtherDigest)));
        // A refusal for lack of room says nothing about the descriptors, so it is not remembered.
        let again = directory.read(subject(&directory, "greedy.shop", 2), || Err(DescriptorsRefused::NoRoom));
        assert!(matches!(again.await, Err(DescriptorsRefused::NoRoom)));
    }
}
