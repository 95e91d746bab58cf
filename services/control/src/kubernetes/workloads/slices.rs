//! EndpointSlices, with a limit for each namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use tokio::sync::Notify;

use super::{Condition, Key, Object, State, Workloads, index};

/// How many endpoints the EndpointSlices of a namespace may have together. With more, its pods back nothing.
const ENDPOINTS_OF_NAMESPACE: usize = 50_000;
/// So many endpoints a slice counts as, besides those that it has.
const SLICE_WEIGHT: usize = 10;

/// An EndpointSlice: some of the endpoints of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Slice {
    /// The Service's name, in the slice's namespace.
    pub(crate) service: String,
    /// The ports of the endpoints, by the names of the Service's ports.
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) endpoints: Vec<SliceEndpoint>,
    /// How many more it has that are not kept.
    pub(crate) not_kept: usize,
}

/// An endpoint in a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceEndpoint {
    pub(crate) ips: Vec<IpAddr>,
    /// The name of its pod, if it names one.
    pub(crate) pod: Option<String>,
    pub(crate) condition: Condition,
}

impl Object for Slice {
    fn keys(state: &State) -> impl Iterator<Item = &Key> {
        state.weights.keys()
    }

    fn weight(&self) -> usize {
        self.endpoints.len() + self.not_kept + SLICE_WEIGHT
    }

    fn lighten(&mut self) {
        self.not_kept += std::mem::take(&mut self.endpoints).len();
    }

    fn lacks(workloads: &Workloads) -> Option<&Notify> {
        Some(&workloads.lacks_slices)
    }

    fn put(state: &mut State, key: Key, slice: Option<Self>) -> BTreeSet<IpAddr> {
        let mut touched = state.weigh_slice(&key, slice.as_ref());
        let is_kept = state.weights_of.get(&key.0).is_none_or(|weight| !are_too_many(*weight));
        touched.extend(state.keep_slice(key, slice.filter(|_| is_kept)));
        touched
    }
}

/// Whether objects of a namespace that weigh so much together are too many to be kept.
pub(crate) fn are_too_many(weight: usize) -> bool {
    weight > ENDPOINTS_OF_NAMESPACE
}

/// An object of a namespace weighs something else than before. Returns whether those of the namespace were too many, and whether
/// they are.
pub(super) fn weigh(of: &mut HashMap<String, usize>, namespace: &str, before: usize, now: usize) -> (bool, bool) {
    let all = of.entry(namespace.to_owned()).or_default();
    let had_too_many = are_too_many(*all);
    *all = (*all + now).saturating_sub(before);
    let has_too_many = are_too_many(*all);
    if *all == 0 {
        of.remove(namespace);
    }
    (had_too_many, has_too_many)
}

impl State {
    /// Counts a slice. Returns the addresses of those that are no longer kept, as their namespace has too many endpoints.
    fn weigh_slice(&mut self, key: &Key, slice: Option<&Slice>) -> BTreeSet<IpAddr> {
        let weight = slice.map_or(0, Object::weight);
        let before = match slice {
            Some(_) => self.weights.insert(key.clone(), weight),
            None => self.weights.remove(key),
        };
        match weigh(&mut self.weights_of, &key.0, before.unwrap_or_default(), weight) {
            (false, true) => {
                tracing::error!(
                    namespace = key.0,
                    most = ENDPOINTS_OF_NAMESPACE,
                    "the EndpointSlices of a namespace have too many endpoints: its pods back no Services until there are fewer"
                );
                let kept: Vec<Key> = self.slices.keys().filter(|other| other.0 == key.0).cloned().collect();
                kept.into_iter().flat_map(|key| self.keep_slice(key, None)).collect()
            }
            (true, false) => {
                self.lacks_slices = true;
                BTreeSet::new()
            }
            _ => BTreeSet::new(),
        }
    }

    fn keep_slice(&mut self, key: Key, slice: Option<Slice>) -> BTreeSet<IpAddr> {
        let state = self;
        let before = match &slice {
            Some(slice) => state.slices.insert(key.clone(), slice.clone()),
            None => state.slices.remove(&key),
        };
        if before == slice {
            return BTreeSet::new();
        }
        let service_of = |slice: &Option<Slice>| slice.as_ref().map(|slice| (key.0.clone(), slice.service.clone()));
        let (old, new): (Vec<Key>, Vec<Key>) =
            (service_of(&before).into_iter().collect(), service_of(&slice).into_iter().collect());
        index(&mut state.slices_of, &key, &old, &new);
        let ips = |slice: &Option<Slice>| slice.iter().flat_map(Slice::ips).collect::<Vec<IpAddr>>();
        let (old, new) = (ips(&before), ips(&slice));
        index(&mut state.slices_at, &key, &old, &new);
        old.into_iter().chain(new).collect()
    }
}

impl Slice {
    pub(super) fn ips(&self) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.endpoints.iter().flat_map(|endpoint| endpoint.ips.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::{
        super::{
            Service,
            tests::{key, large},
        },
        *,
    };

    /// Otherwise one namespace fills the memory.
    #[test]
    fn a_namespace_with_too_many_endpoints_is_left_out_until_it_has_fewer() {
        let workloads = Arc::new(Workloads::default());
        let other = |name: &str| ("other".to_owned(), name.to_owned());
        workloads.set(key("orders"), Some(Service::default()));
        workloads.set(key("orders-1"), Some(Slice { service: "orders".into(), ..large("orders", 10) }));
        workloads.set(other("a-1"), Some(large("a", 1)));
        let kept = || {
            let state = workloads.lock();
            (state.slices.len(), state.slices_at.len(), state.weights.len())
        };
        assert_eq!(kept(), (2, 10, 2));
        let almost = ENDPOINTS_OF_NAMESPACE - 11 - SLICE_WEIGHT;
        workloads.set(other("a-2"), Some(large("a", almost - SLICE_WEIGHT + 10)));
        assert_eq!(kept().0, 3);
        workloads.set(other("a-3"), Some(large("a", 1)));
        assert_eq!(kept(), (1, 10, 4), "those of shop stay");
        workloads.set(other("a-4"), Some(large("a", 1_000)));
        assert_eq!(kept(), (1, 10, 5), "it only counts");
        assert!(workloads.lacks_slices.notified().now_or_never().is_none());
        workloads.set(other("a-2"), None::<Slice>);
        assert!(workloads.lacks_slices.notified().now_or_never().is_some());
        // The next list has them all.
        let mut light = large("a", 7);
        light.lighten();
        assert_eq!((light.endpoints.len(), light.weight()), (0, 7 + SLICE_WEIGHT));
        workloads.set_all(HashMap::from([(other("a-1"), large("a", 1)), (key("orders-1"), large("orders", 10))]));
        assert_eq!(kept(), (2, 10, 2), "what is gone is not counted any more");
        assert_eq!(workloads.lock().weights_of["other"], 1 + SLICE_WEIGHT);
    }
}
