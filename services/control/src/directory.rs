//! The registry, the descriptors and the watchers, behind one lock: what one says, the others are told.
//!
//! The lock is held for the length of a step of plain state machines and never across an await. Joins, leaves and
//! evictions are logged here.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior},
};
use weft_contracts::weft::discovery::v1::{Health, Service, WatchResponse};
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    limits,
    names::ServiceName,
};

use crate::{
    claims::{Claims, Contest, Denied, Saved},
    dashboard::{self, Catalog},
    descriptors::DescriptorSet,
    hints,
    hosts::{Hosts, Network},
    registry::{Announcement, Digest, Evicted, Joined, Refusal, Registry, Session, SessionOver},
    shelf::{self, DescriptorsRefused, Shelf},
    visibility::{Sight, Visibility},
    watcher::{TooManyWatched, Watcher},
};

const TICK: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Directory {
    trust_domain: TrustDomain,
    visibility: Visibility,
    state: Mutex<State>,
    /// There is something to keep in the store.
    to_keep: Notify,
}

struct State {
    registry: Registry,
    hosts: Hosts,
    are_new_hosts: bool,
    shelf: Shelf,
    /// How many more who ask for an unknown symbol are told the closest, in this second.
    hints: u32,
    watchers: HashMap<u64, (Watcher, Arc<Notify>)>,
    watchers_made: u64,
    is_frozen: bool,
}

/// What is asked of the contracts.
pub(crate) enum Question {
    Symbol(String),
    File(String),
    Extension(String, i32),
}

impl Directory {
    /// One without services, with the claims that are written or were pinned before.
    pub(crate) fn new(trust_domain: TrustDomain, visibility: Visibility, claims: Claims, hosts: Hosts) -> Arc<Self> {
        // Microseconds since 1970, so that a later process has a higher one.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let registry = Registry::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX), Instant::now());
        let state = State {
            registry: registry.with_claims(claims),
            hosts,
            are_new_hosts: false,
            shelf: Shelf::default(),
            hints: limits::HINTS_PER_SECOND,
            watchers: HashMap::new(),
            watchers_made: 0,
            is_frozen: false,
        };
        Arc::new(Self { trust_domain, visibility, state: Mutex::new(state), to_keep: Notify::new() })
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
        let (descriptors, contracts) = (announcement.descriptors, Arc::new(announcement.contracts.clone()));
        let policy = descriptors.and_then(|digest| state.shelf.policy(&announcement.service, &digest, &contracts));
        let lacks = match descriptors {
            Some(digest) if policy.is_none() && state.shelf.set(&digest).is_some() => Lacks::Policy,
            Some(_) if policy.is_none() => Lacks::Descriptors,
            _ => Lacks::Nothing,
        };
        let address = announcement.endpoint.address.clone();
        let joined = state.registry.announce(Announcement { policy, ..announcement }, Instant::now())?;
        state.tell();
        let Joined { session, is_again, denied } = joined;
        let (service, endpoint) = (&session.service, &session.endpoint);
        tracing::info!(%service, endpoint, address, is_again, "joined");
        self.log(service, &denied);
        // Claims may have been pinned.
        self.to_keep.notify_one();
        let directory = Arc::clone(self);
        Ok(Membership { directory, session, descriptors, contracts, lacks, denied, is_over: false })
    }

    fn log(&self, claimant: &ServiceName, denied: &Denied) {
        let id = |service: &ServiceName| SpiffeId::of_service(&self.trust_domain, service);
        for (claim, owner) in &denied.listed {
            tracing::warn!(
                claim,
                owner = %id(owner),
                claimant = %id(claimant),
                "a claim is contested and refused; if it is to go to another, release it: weft identity release"
            );
        }
        if denied.without_room > 0 {
            let (claims, limit) = (denied.without_room, limits::CLAIMS_PER_IDENTITY);
            tracing::warn!(claimant = %id(claimant), claims, limit, "claims were refused: too many are pinned");
        }
        if let Some(first) = denied.unlisted.first() {
            let (claimant, claims) = (id(claimant), denied.unlisted.len());
            tracing::warn!(
                %claimant,
                claims,
                first,
                "claims were refused: the file of --services has to name them, or the join token to allow their addresses"
            );
        }
    }

    /// Whether an identity's endpoints may be at an address by its join token.
    pub(crate) fn allows_host(&self, service: &ServiceName, address: std::net::IpAddr) -> bool {
        self.lock().hosts.allows(service, address)
    }

    /// A join token allows an identity's endpoints to be in these networks.
    pub(crate) fn allow_hosts(&self, service: &ServiceName, networks: Vec<Network>) {
        let mut state = self.lock();
        if state.hosts.allow(service, networks) {
            state.are_new_hosts = true;
            self.to_keep.notify_one();
        }
    }

    /// Gives up pinned claims.
    pub(crate) fn release(&self, claims: &[String]) {
        let mut state = self.lock();
        for claim in claims {
            match state.registry.release(claim, Instant::now()) {
                Some(owner) => tracing::info!(claim, %owner, "a claim was released"),
                None => tracing::warn!(claim, "a claim can't be released: it is not pinned"),
            }
        }
        state.tell();
    }

    /// Waits until there may be something to keep. Dropping the future loses nothing.
    pub(crate) async fn has_to_keep(&self) {
        self.to_keep.notified().await;
    }

    /// What is to be kept across restarts, if it changed since this was last asked.
    pub(crate) fn take_changes(&self) -> Option<(Saved, Hosts)> {
        let state = &mut *self.lock();
        if std::mem::take(&mut state.are_new_hosts) {
            state.registry.claims_mut().keep_again();
        }
        let saved = state.registry.claims_mut().take_changes()?;
        Some((saved, state.hosts.clone()))
    }

    /// What was taken could not be kept.
    pub(crate) fn keep_again(&self) {
        self.lock().registry.claims_mut().keep_again();
    }

    /// What a workload of this service may know of.
    pub(crate) fn sight_of(&self, viewer: &ServiceName) -> Sight {
        self.visibility.of(viewer)
    }

    /// A workload of this service begins to watch.
    pub(crate) fn watch(self: &Arc<Self>, viewer: &ServiceName) -> Watching {
        let news = Arc::new(Notify::new());
        let mut state = self.lock();
        state.watchers_made += 1;
        let id = state.watchers_made;
        state.watchers.insert(id, (Watcher::new(self.sight_of(viewer)), Arc::clone(&news)));
        Watching { directory: Arc::clone(self), id, news }
    }

    /// Every contract in the mesh that is in sight, sorted.
    pub(crate) fn contracts(&self, sight: &Sight) -> Vec<String> {
        let state = self.lock();
        let registry = &state.registry;
        let is_seen = |name: &&str| registry.owner(name).is_some_and(|owner| sight.sees(owner));
        registry.contract_names().filter(is_seen).map(str::to_owned).collect()
    }

    /// Every service that is in sight, sorted.
    pub(crate) fn services_in(&self, sight: &Sight) -> Vec<Service> {
        let state = self.lock();
        let registry = &state.registry;
        let seen = registry.service_names().filter(|name| sight.sees(name));
        seen.filter_map(|name| registry.snapshot(name)).collect()
    }

    /// The files that answer a question; else the name closest to what was asked, if any is close.
    pub(crate) fn describe(&self, question: &Question, sight: &Sight) -> Result<Vec<Bytes>, Option<String>> {
        let state = &mut *self.lock();
        let sets = state.sets_for(question, sight);
        let found = sets.iter().find_map(|set| match question {
            Question::Symbol(symbol) => set.of_symbol(symbol),
            Question::File(name) => set.of_file(name),
            Question::Extension(extendee, number) => set.of_extension(extendee, *number),
        });
        if let Some(files) = found {
            return Ok(files);
        }
        let Question::Symbol(symbol) = question else { return Err(None) };
        if state.hints == 0 {
            return Err(None);
        }
        let hint = hints::symbol(symbol, sets.iter().flat_map(|set| set.symbols()));
        state.hints -= 1;
        Err(hint)
    }

    /// The numbers of all known extensions of a message; `None` when nobody knows the message.
    pub(crate) fn extension_numbers(&self, extendee: &str, sight: &Sight) -> Option<BTreeSet<i32>> {
        let state = self.lock();
        let sets = state.sets_in(None, sight);
        let known: Vec<_> = sets.into_iter().filter_map(|set| set.extension_numbers(extendee)).collect();
        (!known.is_empty()).then(|| known.into_iter().flatten().collect())
    }
}

impl Catalog for Directory {
    fn services(&self) -> Vec<Service> {
        self.services_in(&Sight::default())
    }

    fn contests(&self) -> Vec<dashboard::Contest> {
        let id = |service: &ServiceName| SpiffeId::of_service(&self.trust_domain, service).to_string();
        let shown = |Contest { claim, owner, claimant }| dashboard::Contest {
            claim,
            owner: id(&owner),
            claimant: id(&claimant),
        };
        self.lock().registry.claims().contests().map(shown).collect()
    }

    fn figures(&self) -> dashboard::Figures {
        let state = self.lock();
        let claims = state.registry.claims();
        dashboard::Figures { claims_pinned: claims.pins() as u64, claims_refused: claims.refused() }
    }
}

impl State {
    fn tick(&mut self, now: Instant) {
        for Evicted { service, endpoint, address } in self.registry.tick(now) {
            tracing::warn!(%service, endpoint, address, "evicted: nothing was heard of it");
        }
        let in_use = self.registry.descriptors_in_use();
        self.shelf.tidy(&in_use);
        self.hints = limits::HINTS_PER_SECOND;
        self.watchers.values_mut().for_each(|(watcher, _)| watcher.allow_hints());
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

    /// Where to look, the likeliest first: what a contract's owner says of it counts before what others have of it.
    fn sets_for(&self, question: &Question, sight: &Sight) -> Vec<&DescriptorSet> {
        let owner = match question {
            // A method's contract is what stands before its last dot.
            Question::Symbol(symbol) => self
                .registry
                .owner(symbol)
                .or_else(|| symbol.rsplit_once('.').and_then(|(contract, _)| self.registry.owner(contract))),
            Question::File(_) | Question::Extension(..) => None,
        };
        self.sets_in(owner, sight)
    }

    /// The sets that describe services in sight, each once; that of `first` before all others.
    fn sets_in(&self, first: Option<&ServiceName>, sight: &Sight) -> Vec<&DescriptorSet> {
        let services = first.into_iter().chain(self.registry.service_names()).filter(|service| sight.sees(service));
        let mut seen = BTreeSet::new();
        services
            .filter_map(|service| self.registry.descriptors(service))
            .filter(|digest| seen.insert(**digest))
            .filter_map(|digest| self.shelf.set(digest))
            .map(|set| &**set)
            .collect()
    }
}

/// An endpoint's place in the registry, held by its stream. Dropping it says that the stream broke.
pub(crate) struct Membership {
    directory: Arc<Directory>,
    session: Session,
    descriptors: Option<Digest>,
    contracts: Arc<BTreeSet<String>>,
    lacks: Lacks,
    denied: Denied,
    is_over: bool,
}

/// What is not known of an endpoint's service when it joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacks {
    Nothing,
    /// Its descriptors are known, of another service or for other contracts: [`Membership::compile`].
    Policy,
    /// They are to be sent: [`Membership::describe`].
    Descriptors,
}

impl Membership {
    /// What is not known when it joins.
    pub(crate) fn lacks(&self) -> Lacks {
        self.lacks
    }

    /// What of its claims was refused.
    pub(crate) fn denied(&self) -> &Denied {
        &self.denied
    }

    /// The sidecar lives.
    pub(crate) fn heartbeat(&self, health: Health) -> Result<(), SessionOver> {
        let mut state = self.directory.lock();
        state.registry.heartbeat(&self.session, health, Instant::now())?;
        state.tell();
        Ok(())
    }

    /// The announced descriptors have come. Dropping the future leaves the endpoint without policy of its own.
    pub(crate) async fn describe(&self, bytes: Bytes) -> Result<(), DescriptorsRefused> {
        let digest = self.descriptors.ok_or(DescriptorsRefused::NotAnnounced)?;
        let service = &self.session.service;
        self.directory.lock().shelf.check_room(service, &digest, bytes.len())?;
        let contracts = Arc::clone(&self.contracts);
        let (set, policy) = elsewhere(move || shelf::make(digest, bytes, &contracts)).await?;
        self.keep(digest, set, policy)
    }

    /// Finds out what descriptors that are known say of its contracts. Dropping the future is as with
    /// [`Self::describe`].
    pub(crate) async fn compile(&self) -> Result<(), DescriptorsRefused> {
        let digest = self.descriptors.ok_or(DescriptorsRefused::NotAnnounced)?;
        let set = self.directory.lock().shelf.set(&digest).map(Arc::clone);
        let Some(set) = set else { return Ok(()) };
        let (contracts, for_compiler) = (Arc::clone(&self.contracts), Arc::clone(&set));
        let policy = elsewhere(move || shelf::compile(&for_compiler, &contracts)).await?;
        self.keep(digest, set, policy)
    }

    fn keep(
        &self,
        digest: Digest,
        set: Arc<DescriptorSet>,
        policy: Arc<weft_contracts::weft::policy::v1::ServicePolicy>,
    ) -> Result<(), DescriptorsRefused> {
        let state = &mut *self.directory.lock();
        let (service, contracts) = (&self.session.service, &self.contracts);
        // A replica may have been quicker.
        let policy = match state.shelf.policy(service, &digest, contracts) {
            Some(known) => known,
            None => {
                state.shelf.put(service, digest, Arc::clone(contracts), set, Arc::clone(&policy))?;
                policy
            }
        };
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

/// Runs what takes long beside what others ask for.
async fn elsewhere<T: Send + 'static>(
    make: impl FnOnce() -> Result<T, DescriptorsRefused> + Send + 'static,
) -> Result<T, DescriptorsRefused> {
    match spawn_blocking(make).await {
        Ok(made) => made,
        Err(_) => Err(DescriptorsRefused::Unusable("they could not be read".to_owned())),
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
