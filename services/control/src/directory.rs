//! The registry, the descriptors and the watchers, behind one lock: what one says, the others are told.
//!
//! The lock is held for the length of a step of plain state machines and never across an await. Joins, leaves and
//! evictions are logged here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use weft_contracts::weft::{
    discovery::v1::{Health, Service, WatchResponse},
    policy::v1::ServicePolicy,
};
use weft_mesh::{limits, names::ServiceName, policy};

use crate::{
    dashboard::Catalog,
    descriptors::DescriptorSet,
    registry::{Announcement, Digest, Evicted, Joined, Refusal, Registry, Session, SessionOver},
    watcher::{TooManyWatched, Watcher},
};

const TICK: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Directory {
    state: Mutex<State>,
}

struct State {
    registry: Registry,
    sets: BTreeMap<Digest, Arc<DescriptorSet>>,
    /// What was compiled, as replicas share it: one set may describe several services.
    policies: HashMap<(Digest, BTreeSet<String>), Arc<ServicePolicy>>,
    watchers: HashMap<u64, (Watcher, Arc<Notify>)>,
    watchers_made: u64,
    is_frozen: bool,
}

/// Why descriptors were not taken; the text is for their sidecar.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorsRefused {
    #[error("no descriptors were announced")]
    NotAnnounced,
    #[error("these are not the descriptors that were announced: their SHA-256 is another")]
    OtherDigest,
    #[error("the control plane holds {} bytes of descriptors, which is the limit", limits::DESCRIPTORS_HELD_BYTES)]
    NoRoom,
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    SessionOver(#[from] SessionOver),
}

/// What is asked of the contracts.
pub(crate) enum Question {
    Symbol(String),
    File(String),
    Extension(String, i32),
}

impl Directory {
    /// An empty one.
    pub(crate) fn new() -> Arc<Self> {
        // Microseconds since 1970, so that a later process has a higher one.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let registry = Registry::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX), Instant::now());
        let state = State {
            registry,
            sets: BTreeMap::new(),
            policies: HashMap::new(),
            watchers: HashMap::new(),
            watchers_made: 0,
            is_frozen: false,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in one step must not end the mesh: each step leaves its maps usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due, each second; never ends.
    pub(crate) async fn tick_for_ever(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            self.lock().tick(now);
        }
    }

    /// From now on streams that end mean nothing: the control plane is stopping, not the members.
    pub(crate) fn freeze(&self) {
        self.lock().is_frozen = true;
    }

    /// Takes an endpoint in.
    pub(crate) fn join(self: &Arc<Self>, announcement: Announcement) -> Result<Membership, Refusal> {
        let mut state = self.lock();
        let (descriptors, contracts) = (announcement.descriptors, announcement.contracts.clone());
        let policy = descriptors.and_then(|digest| state.known_policy(digest, &contracts));
        let wants_descriptors = descriptors.is_some() && policy.is_none();
        let address = announcement.endpoint.address.clone();
        let joined = state.registry.announce(Announcement { policy, ..announcement }, Instant::now())?;
        state.tell();
        let Joined { session, is_again, contested } = joined;
        let (service, endpoint) = (&session.service, &session.endpoint);
        tracing::info!(%service, endpoint, address, is_again, "joined");
        for (contract, owner) in contested {
            tracing::warn!(%service, contract, %owner, "the contract has another owner, who keeps it");
        }
        Ok(Membership {
            directory: Arc::clone(self),
            session,
            descriptors,
            contracts,
            wants_descriptors,
            is_over: false,
        })
    }

    /// Begins to watch.
    pub(crate) fn watch(self: &Arc<Self>) -> Watching {
        let news = Arc::new(Notify::new());
        let mut state = self.lock();
        state.watchers_made += 1;
        let id = state.watchers_made;
        state.watchers.insert(id, (Watcher::default(), Arc::clone(&news)));
        Watching { directory: Arc::clone(self), id, news }
    }

    /// Every contract in the mesh, sorted.
    pub(crate) fn contracts(&self) -> Vec<String> {
        self.lock().registry.contract_names().map(str::to_owned).collect()
    }

    /// The files that answer a question; else the name closest to what was asked, if any is close.
    pub(crate) fn describe(&self, question: &Question) -> Result<Vec<Bytes>, Option<String>> {
        let state = self.lock();
        let sets = state.sets_for(question);
        let found = sets.iter().find_map(|set| match question {
            Question::Symbol(symbol) => set.of_symbol(symbol),
            Question::File(name) => set.of_file(name),
            Question::Extension(extendee, number) => set.of_extension(extendee, *number),
        });
        found.ok_or_else(|| match question {
            Question::Symbol(symbol) => {
                let symbols = sets.iter().flat_map(|set| set.symbols());
                weft_mesh::names::closest(symbol, symbols).map(str::to_owned)
            }
            Question::File(_) | Question::Extension(..) => None,
        })
    }

    /// The numbers of all known extensions of a message; `None` when nobody knows the message.
    pub(crate) fn extension_numbers(&self, extendee: &str) -> Option<BTreeSet<i32>> {
        let state = self.lock();
        let known: Vec<_> = state.sets.values().filter_map(|set| set.extension_numbers(extendee)).collect();
        (!known.is_empty()).then(|| known.into_iter().flatten().collect())
    }
}

impl Catalog for Directory {
    fn services(&self) -> Vec<Service> {
        let state = self.lock();
        state.registry.service_names().filter_map(|name| state.registry.snapshot(name)).collect()
    }
}

impl State {
    fn tick(&mut self, now: Instant) {
        for Evicted { service, endpoint, address } in self.registry.tick(now) {
            tracing::warn!(%service, endpoint, address, "evicted: nothing was heard of it");
        }
        let in_use = self.registry.descriptors_in_use();
        self.sets.retain(|digest, _| in_use.contains(digest));
        self.policies.retain(|(digest, _), _| in_use.contains(digest));
        self.tell();
    }

    /// Hands what happened to the watchers.
    fn tell(&mut self) {
        for event in self.registry.take_events() {
            for (watcher, news) in self.watchers.values_mut() {
                if watcher.observe(&event) {
                    news.notify_one();
                }
            }
        }
    }

    fn known_policy(&mut self, digest: Digest, contracts: &BTreeSet<String>) -> Option<Arc<ServicePolicy>> {
        let set = Arc::clone(self.sets.get(&digest)?);
        self.compile(digest, &set, contracts).ok()
    }

    fn compile(
        &mut self,
        digest: Digest,
        set: &DescriptorSet,
        contracts: &BTreeSet<String>,
    ) -> Result<Arc<ServicePolicy>, DescriptorsRefused> {
        let key = (digest, contracts.clone());
        if let Some(policy) = self.policies.get(&key) {
            return Ok(Arc::clone(policy));
        }
        let names: Vec<String> = contracts.iter().cloned().collect();
        let compiled = policy::ServicePolicy::from_descriptors(set.bytes(), Some(&names))
            .map_err(|e| DescriptorsRefused::Unusable(e.to_string()))?;
        let policy = Arc::new(ServicePolicy::from(&compiled));
        self.policies.insert(key, Arc::clone(&policy));
        Ok(policy)
    }

    fn take_descriptors(
        &mut self,
        digest: Digest,
        bytes: Bytes,
        contracts: &BTreeSet<String>,
    ) -> Result<Arc<ServicePolicy>, DescriptorsRefused> {
        if Sha256::digest(&bytes)[..] != digest {
            return Err(DescriptorsRefused::OtherDigest);
        }
        let held: usize = self.sets.values().map(|set| set.bytes().len()).sum();
        if !self.sets.contains_key(&digest) && held + bytes.len() > limits::DESCRIPTORS_HELD_BYTES {
            return Err(DescriptorsRefused::NoRoom);
        }
        let set = DescriptorSet::parse(bytes).map_err(|e| DescriptorsRefused::Unusable(e.to_string()))?;
        let policy = self.compile(digest, &set, contracts)?;
        self.sets.insert(digest, Arc::new(set));
        Ok(policy)
    }

    /// Where to look, the likeliest first: what a contract's owner says of it counts before what others have of it.
    fn sets_for(&self, question: &Question) -> Vec<&DescriptorSet> {
        let owner = match question {
            // A method's contract is what stands before its last dot.
            Question::Symbol(symbol) => self
                .registry
                .owner(symbol)
                .or_else(|| symbol.rsplit_once('.').and_then(|(contract, _)| self.registry.owner(contract))),
            Question::File(_) | Question::Extension(..) => None,
        };
        let digests =
            owner.into_iter().chain(self.registry.service_names()).filter_map(|s| self.registry.descriptors(s));
        let mut seen = BTreeSet::new();
        digests.filter(|d| seen.insert(**d)).filter_map(|d| self.sets.get(d)).map(|set| &**set).collect()
    }
}

/// An endpoint's place in the registry, held by its stream. Dropping it says that the stream broke.
pub(crate) struct Membership {
    directory: Arc<Directory>,
    session: Session,
    descriptors: Option<Digest>,
    contracts: BTreeSet<String>,
    wants_descriptors: bool,
    is_over: bool,
}

impl Membership {
    /// Whether the announced descriptors are not known.
    pub(crate) fn wants_descriptors(&self) -> bool {
        self.wants_descriptors
    }

    /// The sidecar lives.
    pub(crate) fn heartbeat(&self, health: Health) -> Result<(), SessionOver> {
        let mut state = self.directory.lock();
        state.registry.heartbeat(&self.session, health, Instant::now())?;
        state.tell();
        Ok(())
    }

    /// The announced descriptors have come.
    pub(crate) fn describe(&self, bytes: Bytes) -> Result<(), DescriptorsRefused> {
        let digest = self.descriptors.ok_or(DescriptorsRefused::NotAnnounced)?;
        let mut state = self.directory.lock();
        let policy = state.take_descriptors(digest, bytes, &self.contracts)?;
        state.registry.describe(&self.session, policy, Instant::now())?;
        state.tell();
        Ok(())
    }

    /// The endpoint leaves of its own will.
    pub(crate) fn leave(mut self) {
        self.is_over = true;
        let Session { service, endpoint, .. } = &self.session;
        let mut state = self.directory.lock();
        if state.registry.deregister(&self.session, Instant::now()) {
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
            tracing::warn!(%service, endpoint, "its sidecar's stream broke: callers who have others call it no longer");
            state.tell();
        }
    }
}

/// A watcher's place among those that are told. Dropping it ends the watch.
pub(crate) struct Watching {
    directory: Arc<Directory>,
    id: u64,
    news: Arc<Notify>,
}

impl Watching {
    /// Changes what is followed.
    pub(crate) fn update(
        &self,
        change: impl FnOnce(&mut Watcher) -> Result<(), TooManyWatched>,
    ) -> Result<(), TooManyWatched> {
        let mut state = self.directory.lock();
        let (watcher, _) = state.watchers.get_mut(&self.id).expect("it is there until `self` is dropped");
        change(watcher)
    }

    /// The next that there is to tell now.
    pub(crate) fn next(&self) -> Option<WatchResponse> {
        let state = &mut *self.directory.lock();
        let (watcher, _) = state.watchers.get_mut(&self.id).expect("it is there until `self` is dropped");
        watcher.next(&state.registry)
    }

    /// Waits until there may be something to tell. Dropping the future loses nothing.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.directory.lock().watchers.remove(&self.id);
    }
}
