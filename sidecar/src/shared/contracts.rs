//! The contracts of the local service, from its own descriptors, and who may call it. Both may change while the sidecar
//! runs.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use weft_mesh::{
    identity::SpiffeId,
    policy::{AccessRules, Called, MethodPolicy, ServicePolicy, Source, Verdict},
};

/// The contracts of the local service.
#[derive(Default)]
pub(crate) struct Contracts {
    pub(crate) policy: ServicePolicy,
    /// The serialized `FileDescriptorSet` that they are from, if there is one.
    pub(crate) descriptors: Option<Bytes>,
    /// Empty without descriptors.
    pub(crate) descriptors_sha256: Bytes,
    /// The names of their methods, shared with the spans of calls.
    methods: Vec<Arc<str>>,
    /// The index in `methods` of each path.
    places: HashMap<Box<str>, usize>,
}

impl Contracts {
    pub(crate) fn new(policy: ServicePolicy, descriptors: Option<Bytes>) -> Self {
        let methods: Vec<Arc<str>> = policy
            .contracts
            .iter()
            .flat_map(|contract| {
                contract.methods.iter().map(move |method| format!("{}/{}", contract.name, method.name).into())
            })
            .collect();
        let places = methods.iter().enumerate().map(|(place, name)| (format!("/{name}").into(), place)).collect();
        let sha256 = |set| Bytes::copy_from_slice(&Sha256::digest(set));
        let descriptors_sha256 = descriptors.as_ref().map(sha256).unwrap_or_default();
        Self { policy, descriptors, descriptors_sha256, methods, places }
    }

    /// How many methods they have.
    pub(crate) fn method_count(&self) -> usize {
        self.methods.len()
    }

    /// The full name of the method at a place: `shop.users.v1.Users/Create`.
    pub(crate) fn method(&self, place: Option<usize>) -> Option<&Arc<str>> {
        self.methods.get(place?)
    }

    /// The place of the method that has this path. The path has no query.
    pub(crate) fn place(&self, path: &str) -> Option<usize> {
        self.places.get(path).copied()
    }

    fn policy_of(&self, place: Option<usize>) -> Option<&MethodPolicy> {
        let methods = self.policy.contracts.iter().flat_map(|contract| &contract.methods);
        methods.into_iter().nth(place?)
    }
}

/// What holds for calls in to the local service at one time.
#[derive(Clone)]
pub(crate) struct Terms {
    /// Perhaps those of an earlier process of the service: see `are_known`.
    pub(crate) contracts: Arc<Contracts>,
    /// False until the service was asked for its contracts, if it has to be. Until then nobody may call it.
    pub(crate) are_known: bool,
    /// Who may call, besides what the contracts say. `None` until the control plane has told it: then nobody may.
    access: Option<Arc<AccessRules>>,
}

impl Terms {
    /// Whether it depends on more than caller and method: on paths.
    pub(crate) fn look_at_paths(&self) -> bool {
        self.access.as_ref().is_some_and(|access| access.look_at_paths())
    }

    /// What rules for paths decide, if one of them is for this request. The path has no query.
    pub(crate) fn judge_path(&self, http_method: &[u8], path: &[u8], caller: &SpiffeId) -> Option<Verdict> {
        self.access.as_ref()?.judge_path(http_method, path, caller)
    }

    /// The object on Kubernetes that a rule is from, if it is from one.
    pub(crate) fn object_of(&self, source: Source) -> Option<&str> {
        self.access.as_ref()?.object_of(source)
    }

    /// What is decided of calls of the method at a place, or else of this path. `None` if it is not known yet who may call.
    pub(crate) fn judge_called(&self, place: Option<usize>, path: &[u8], caller: &SpiffeId) -> Option<Verdict> {
        let access = self.access.as_ref().filter(|_| self.are_known)?;
        let called = self.contracts.policy_of(place).map_or(Called::unlisted(path), Called::Method);
        Some(access.judge_called(&self.contracts.policy.contracts, called, caller))
    }
}

/// The terms that hold now. The control side replaces them; workers look at [`Self::version`] with each call, which costs
/// no lock and no count of references.
pub(crate) struct LocalTerms {
    current: ArcSwap<Terms>,
    version: AtomicU64,
    changed: watch::Sender<()>,
    /// Locked while they are replaced.
    replacing: Mutex<()>,
}

impl LocalTerms {
    pub(crate) fn new(contracts: Contracts, are_known: bool) -> Self {
        Self {
            current: ArcSwap::from_pointee(Terms { contracts: Arc::new(contracts), are_known, access: None }),
            version: AtomicU64::new(0),
            changed: watch::channel(()).0,
            replacing: Mutex::default(),
        }
    }

    /// Another number whenever the terms were replaced.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    /// The terms of this version, or of a later one.
    pub(crate) fn get(&self) -> Arc<Terms> {
        self.current.load_full()
    }

    /// Is told whenever the terms were replaced.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Replaces the contracts. Calls that come in from now on are handled by the new ones.
    pub(crate) fn set_contracts(&self, contracts: Contracts) {
        self.replace(|terms| Terms { contracts: Arc::new(contracts), are_known: true, ..terms.clone() });
    }

    /// The service may have other contracts by now. Nobody may call it before they were set.
    pub(crate) fn doubt_contracts(&self) {
        self.replace(|terms| Terms { are_known: false, ..terms.clone() });
    }

    /// Replaces the rules that are not in contracts. False if they are the same as before.
    pub(crate) fn set_access(&self, access: AccessRules) -> bool {
        if self.get().access.as_deref() == Some(&access) {
            return false;
        }
        self.replace(|terms| Terms { access: Some(Arc::new(access)), ..terms.clone() });
        true
    }

    /// As before the control plane has told the rules.
    #[cfg(test)]
    pub(crate) fn forget_access(&self) {
        self.replace(|terms| Terms { access: None, ..terms.clone() });
    }

    fn replace(&self, with: impl FnOnce(&Terms) -> Terms) {
        let _one_at_a_time = self.replacing.lock().unwrap_or_else(|e| e.into_inner());
        self.current.store(Arc::new(with(&self.get())));
        self.version.fetch_add(1, Release);
        self.changed.send_replace(());
    }
}
