//! The contracts of the local service, from its own descriptors. They may change while the sidecar runs.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use weft_mesh::policy::ServicePolicy;

/// The contracts of the local service at one time.
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
}

/// The contracts that the local service has now. The control side replaces them; workers look at [`Self::version`] with
/// each call, which costs no lock and no count of references.
pub(crate) struct LocalContracts {
    current: ArcSwap<Contracts>,
    version: AtomicU64,
}

impl LocalContracts {
    pub(crate) fn new(contracts: Contracts) -> Self {
        Self { current: ArcSwap::from_pointee(contracts), version: AtomicU64::new(0) }
    }

    /// Another number whenever the contracts were replaced.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    /// The contracts of this version, or of a later one.
    pub(crate) fn get(&self) -> Arc<Contracts> {
        self.current.load_full()
    }

    /// Replaces them. Calls that come in from now on are handled by the new ones.
    pub(crate) fn replace(&self, contracts: Contracts) {
        self.current.store(Arc::new(contracts));
        self.version.fetch_add(1, Release);
    }
}
