//! Which services a pod backs, as the API server says: a plain state of pods, Services and EndpointSlices.
//!
//! Who exists is decided here, by the cluster's objects; whether it works is decided by its sidecar. A sidecar announces
//! itself under its identity, and the stream of its announcement follows the pod at its address ([`Workloads::follow`]).

mod services;
pub(crate) mod slices;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map},
    hash::Hash,
    net::{IpAddr, SocketAddr},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, watch};
use weft_mesh::{identity::SpiffeId, names::ServiceName};

pub(crate) use self::{
    services::Service,
    slices::{Slice, SliceEndpoint},
};
use super::contracts::{Annotated, Chosen};

/// How many Services a pod may back. With more, it backs none: it is not known which of them would count.
const SERVICES_OF_POD: usize = 64;

/// The namespace and name of an object.
pub(crate) type Key = (String, String);

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Its service account, which is its identity.
    pub(crate) account: String,
    /// All of its addresses.
    pub(crate) ips: Vec<IpAddr>,
}

/// What the API server says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    /// A probe fails, or it is not up yet.
    NotReady,
    /// It is being deleted.
    Terminating,
    Ready,
}

/// What is known of the pod at an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Its namespace and service account; `None` as long as no pod is known there.
    pub(crate) account: Option<(String, String)>,
    /// All of its addresses.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) services: BTreeMap<ServiceName, Backed>,
}

impl Backing {
    /// Whether the pod runs as this identity. A pod that is not known runs as none.
    pub(crate) fn is_of(&self, id: &SpiffeId) -> bool {
        let service = id.service();
        self.account.as_ref().is_some_and(|(ns, account)| ns == service.namespace() && account == service.name())
    }

    /// Whether it is the pod with this identity and this address.
    pub(crate) fn is_pod_of(&self, id: &SpiffeId, host: IpAddr) -> bool {
        self.is_of(id) && self.ips.contains(&host)
    }
}

/// A Service that a pod backs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backed {
    pub(crate) condition: Condition,
    /// The Service's own addresses, each with the port of the pod to which it leads.
    pub(crate) virtual_addresses: BTreeSet<(u16, SocketAddr)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Workloads {
    state: Mutex<State>,
    /// Services may have been removed.
    are_gone: Notify,
    /// There is room for slices that are not kept.
    lacks_slices: Notify,
    /// The same of Services.
    lacks_services: Notify,
    /// Services may name other contracts.
    are_annotated: Notify,
}

/// Which objects have something. A slice may have many addresses, so they share its name.
type Index<K> = HashMap<K, BTreeSet<Arc<Key>>>;

#[derive(Debug, Default)]
pub(crate) struct State {
    pods: HashMap<Key, Pod>,
    services: HashMap<Key, Service>,
    slices: HashMap<Key, Slice>,
    /// How many endpoints each slice counts as, and those of a namespace together. Of a namespace with too many, nothing else is
    /// kept.
    weights: HashMap<Key, usize>,
    weights_of: HashMap<String, usize>,
    /// The same of the Services of each namespace.
    service_weights_of: HashMap<String, usize>,
    pods_at: Index<IpAddr>,
    slices_at: Index<IpAddr>,
    slices_of: Index<Key>,
    annotated: Annotated,
    followed: HashMap<IpAddr, watch::Sender<Arc<Backing>>>,
    /// In the change that is being made.
    has_lost_services: bool,
    /// The same: a namespace has no longer too many endpoints.
    lacks_slices: bool,
    lacks_services: bool,
}

/// A kind of objects that is kept here.
pub(crate) trait Object: Sized {
    /// All that are there.
    fn keys(state: &State) -> impl Iterator<Item = &Key>;
    /// How much memory it takes, in endpoints. There is a limit for a namespace.
    fn weight(&self) -> usize {
        0
    }
    /// Forgets what takes memory, and has the same weight.
    fn lighten(&mut self) {}
    /// Tells when all have to be listed again, as not all are kept and there is room.
    fn lacks(_workloads: &Workloads) -> Option<&Notify> {
        None
    }
    /// Keeps one, or removes it (`None`). Returns the addresses of which something else may be known now.
    fn put(state: &mut State, key: Key, object: Option<Self>) -> BTreeSet<IpAddr>;
}

impl Workloads {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is there with this content, or no longer (`None`).
    pub(crate) fn set<T: Object>(&self, key: Key, object: Option<T>) {
        self.change(|state| T::put(state, key, object));
    }

    /// These are all objects of their kind: others are gone.
    pub(crate) fn set_all<T: Object>(&self, objects: HashMap<Key, T>) {
        self.change(|state| {
            let gone: Vec<Key> = T::keys(state).filter(|key| !objects.contains_key(*key)).cloned().collect();
            let mut touched: BTreeSet<IpAddr> = gone.into_iter().flat_map(|key| T::put(state, key, None)).collect();
            touched.extend(objects.into_iter().flat_map(|(key, object)| T::put(state, key, Some(object))));
            touched
        });
    }

    /// Makes a change, and tells it to those who follow the addresses that it returns.
    fn change(&self, make: impl FnOnce(&mut State) -> BTreeSet<IpAddr>) {
        let mut state = self.lock();
        let touched = make(&mut state);
        state.tell(touched);
        if std::mem::take(&mut state.has_lost_services) {
            self.are_gone.notify_one();
        }
        if std::mem::take(&mut state.lacks_slices) {
            self.lacks_slices.notify_one();
        }
        if std::mem::take(&mut state.lacks_services) {
            self.lacks_services.notify_one();
        }
        if state.annotated.has_changed() {
            self.are_annotated.notify_one();
        }
    }

    /// What is known of the pod at an address, now and whenever it changes.
    pub(crate) fn follow(self: &Arc<Self>, ip: IpAddr) -> Following {
        let mut state = self.lock();
        let now = state.backing(ip);
        let backing = match state.followed.entry(ip) {
            hash_map::Entry::Occupied(sender) => sender.get().subscribe(),
            hash_map::Entry::Vacant(free) => free.insert(watch::Sender::new(Arc::new(now))).subscribe(),
        };
        Following { workloads: Arc::clone(self), ip, backing }
    }

    /// Whether there is such a Service.
    pub(crate) fn has_service(&self, name: &ServiceName) -> bool {
        self.lock().services.contains_key(&(name.namespace().to_owned(), name.name().to_owned()))
    }

    /// Waits until Services may have been removed. Dropping the future loses nothing.
    pub(crate) async fn services_are_gone(&self) {
        self.are_gone.notified().await;
    }

    /// Which of its Services have which contracts, says each namespace that may say something else than at the last call.
    pub(crate) fn take_contracts(&self) -> Vec<(String, Chosen)> {
        self.lock().annotated.take()
    }

    /// Waits until [`Self::take_contracts`] may have something to say. Dropping the future loses nothing.
    pub(crate) async fn contracts_have_changed(&self) {
        self.are_annotated.notified().await;
    }

    /// What is known of the pod at an address.
    pub(crate) fn at(&self, ip: IpAddr) -> Backing {
        self.lock().backing(ip)
    }
}

/// The pod at an address, followed until this is dropped.
#[derive(Debug)]
pub(crate) struct Following {
    workloads: Arc<Workloads>,
    ip: IpAddr,
    backing: watch::Receiver<Arc<Backing>>,
}

impl Following {
    /// What is known now.
    pub(crate) fn now(&mut self) -> Arc<Backing> {
        Arc::clone(&self.backing.borrow_and_update())
    }

    /// The same, for a look that [`Self::changed`] does not count.
    pub(crate) fn peek(&self) -> Arc<Backing> {
        Arc::clone(&self.backing.borrow())
    }

    /// Waits until something else is known than [`Self::now`] said. Dropping the future loses nothing.
    pub(crate) async fn changed(&mut self) {
        if self.backing.changed().await.is_err() {
            // The sender lives as long as this.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut state = self.workloads.lock();
        // This receiver is the last one.
        if state.followed.get(&self.ip).is_some_and(|sender| sender.receiver_count() <= 1) {
            state.followed.remove(&self.ip);
        }
    }
}

impl Object for Pod {
    fn keys(state: &State) -> impl Iterator<Item = &Key> {
        state.pods.keys()
    }

    fn put(state: &mut State, key: Key, pod: Option<Self>) -> BTreeSet<IpAddr> {
        let before = match &pod {
            Some(pod) => state.pods.insert(key.clone(), pod.clone()),
            None => state.pods.remove(&key),
        };
        if before == pod {
            return BTreeSet::new();
        }
        let (old, new) = (before.map(|pod| pod.ips).unwrap_or_default(), pod.map(|pod| pod.ips).unwrap_or_default());
        index(&mut state.pods_at, &key, &old, &new);
        old.into_iter().chain(new).collect()
    }
}

impl State {
    /// The pod at an address. While there are two, one of them is gone and nobody knows which: then there is none.
    fn pod_at(&self, ip: IpAddr) -> Option<(&Key, &Pod)> {
        let keys = self.pods_at.get(&ip)?;
        let key = keys.first().filter(|_| keys.len() == 1)?;
        self.pods.get_key_value(&**key)
    }

    fn backing(&self, ip: IpAddr) -> Backing {
        let mut services: BTreeMap<ServiceName, Backed> = BTreeMap::new();
        let own = [ip];
        let pod = self.pod_at(ip);
        let ips = pod.map_or(&own[..], |(_, pod)| &pod.ips);
        // A Service's pods are in its own namespace. Slices of others may name any address.
        let first = pod.map(|((namespace, _), _)| (namespace.clone(), String::new()));
        let from = first.as_ref().map_or(Bound::Unbounded, Bound::Included);
        for ip in ips {
            let there = self.slices_at.get(ip).into_iter();
            let there = there.flat_map(|keys| keys.range::<Key, _>((from, Bound::Unbounded)));
            for key in there.take_while(|key| first.as_ref().is_none_or(|first| first.0 == key.0)) {
                if services.len() > SERVICES_OF_POD {
                    break;
                }
                let Some(slice) = self.slices.get(&**key) else { continue };
                let Ok(name) = ServiceName::new(&slice.service, &key.0) else { continue };
                // It may still name the pod that had the address before.
                let is_it = |endpoint: &&SliceEndpoint| {
                    let is_other = |((_, name), _): (&Key, &Pod)| endpoint.pod.as_ref().is_some_and(|pod| pod != name);
                    endpoint.ips.contains(ip) && !pod.is_some_and(is_other)
                };
                let conditions = slice.endpoints.iter().filter(is_it).map(|endpoint| endpoint.condition);
                let Some(condition) = conditions.max() else { continue };
                // A slice of no Service says nothing.
                let Some(virtual_addresses) = self.virtual_addresses(&key.0, slice) else { continue };
                let backed =
                    services.entry(name).or_insert_with(|| Backed { condition, virtual_addresses: BTreeSet::new() });
                backed.condition = backed.condition.max(condition);
                backed.virtual_addresses.extend(virtual_addresses);
            }
        }
        if services.len() > SERVICES_OF_POD {
            services.clear();
        }
        let account = pod.map(|(key, pod)| (key.0.clone(), pod.account.clone()));
        Backing { account, ips: ips.to_vec(), services }
    }

    /// The addresses of a slice's Service; `None` if there is no such Service.
    fn virtual_addresses(&self, namespace: &str, slice: &Slice) -> Option<BTreeSet<(u16, SocketAddr)>> {
        let service = self.services.get(&(namespace.to_owned(), slice.service.clone()))?;
        let leads = service.ports.iter().filter_map(|(name, port)| Some((*slice.ports.get(name)?, *port)));
        let addresses =
            leads.flat_map(|(to, port)| service.cluster_ips.iter().map(move |ip| (to, SocketAddr::new(*ip, port))));
        Some(addresses.collect())
    }

    fn tell(&mut self, touched: BTreeSet<IpAddr>) {
        // A pod's other addresses show the same.
        let all: BTreeSet<IpAddr> = touched
            .iter()
            .flat_map(|ip| self.pod_at(*ip).map(|(_, pod)| pod.ips.clone()).unwrap_or_default())
            .collect();
        for ip in touched.union(&all) {
            if !self.followed.contains_key(ip) {
                continue;
            }
            let now = self.backing(*ip);
            if let Some(sender) = self.followed.get(ip) {
                sender.send_if_modified(|before| {
                    let is_other = **before != now;
                    if is_other {
                        *before = Arc::new(now);
                    }
                    is_other
                });
            }
        }
    }
}

/// An object is found by `new` from now on, and no longer by `old`.
fn index<K: Eq + Hash + Clone>(by: &mut Index<K>, object: &Key, old: &[K], new: &[K]) {
    let object = Arc::new(object.clone());
    for key in old.iter().filter(|key| !new.contains(key)) {
        if let Some(objects) = by.get_mut(key) {
            objects.remove(&object);
            if objects.is_empty() {
                by.remove(key);
            }
        }
    }
    for key in new {
        by.entry(key.clone()).or_default().insert(Arc::clone(&object));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    pub(super) fn key(name: &str) -> Key {
        ("shop".to_owned(), name.to_owned())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pod(account: &str, ips: &[&str]) -> Option<Pod> {
        Some(Pod { account: account.to_owned(), ips: ips.iter().map(|text| ip(text)).collect() })
    }

    fn service(cluster_ip: &str, ports: &[(&str, u16)]) -> Option<Service> {
        let ports = ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        Some(Service { cluster_ips: vec![ip(cluster_ip)], ports, ..Service::default() })
    }

    fn slice(service: &str, ports: &[(&str, u16)], endpoints: &[(&str, Condition)]) -> Option<Slice> {
        let ports = ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        let endpoints = endpoints.iter().map(|(text, condition)| SliceEndpoint {
            ips: vec![ip(text)],
            pod: None,
            condition: *condition,
        });
        Some(Slice { service: service.to_owned(), ports, endpoints: endpoints.collect(), not_kept: 0 })
    }

    fn names(backing: &Backing) -> Vec<String> {
        backing.services.keys().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_pod_backs_the_services_whose_slices_name_it() {
        let workloads = Arc::new(Workloads::default());
        let mut follows = workloads.follow(ip("10.0.0.7"));
        assert!(follows.now().account.is_none() && follows.now().services.is_empty());
        // In any order.
        workloads.set(key("users-x"), slice("users", &[("grpc", 9000)], &[("10.0.0.7", Condition::NotReady)]));
        assert!(follows.changed().now_or_never().is_none(), "a slice of no Service says nothing");
        workloads.set(key("users"), service("10.96.0.9", &[("grpc", 80), ("metrics", 9090)]));
        workloads.set(key("canary"), service("10.96.0.10", &[]));
        workloads.set(key("users-1"), pod("people", &["10.0.0.7"]));
        follows.changed().now_or_never().expect("it is known");
        let now = follows.now();
        assert_eq!(now.account, Some(("shop".to_owned(), "people".to_owned())));
        let backed = &now.services[&ServiceName::parse("users.shop").unwrap()];
        assert_eq!(backed.condition, Condition::NotReady);
        assert_eq!(backed.virtual_addresses, BTreeSet::from([(9000, "10.96.0.9:80".parse().unwrap())]));

        workloads.set(key("users-x"), slice("users", &[("grpc", 9000)], &[("10.0.0.7", Condition::Ready)]));
        workloads.set(key("canary-x"), slice("canary", &[], &[("10.0.0.7", Condition::Ready)]));
        follows.changed().now_or_never().expect("it is ready");
        assert_eq!(names(&follows.now()), ["canary.shop", "users.shop"]);
        // What does not concern it is not told.
        workloads.set(key("users-y"), slice("users", &[("grpc", 9000)], &[("10.0.0.8", Condition::Ready)]));
        workloads.set(key("users-2"), pod("people", &["10.0.0.8"]));
        assert!(follows.changed().now_or_never().is_none());
        workloads.set::<Slice>(key("users-x"), None);
        follows.changed().now_or_never().expect("it backs one service less");
        assert_eq!(names(&follows.now()), ["canary.shop"]);
    }

    #[tokio::test]
    async fn a_whole_list_removes_what_is_not_in_it() {
        let workloads = Arc::new(Workloads::default());
        workloads.set(key("users"), service("10.96.0.9", &[]));
        workloads.set(key("users-1"), pod("people", &["10.0.0.7"]));
        workloads.set(key("users-x"), slice("users", &[], &[("10.0.0.7", Condition::Ready)]));
        let mut follows = workloads.follow(ip("10.0.0.7"));
        let before = follows.now();
        let same = HashMap::from([(key("users-1"), pod("people", &["10.0.0.7"]).unwrap())]);
        workloads.set_all(same);
        assert!(follows.changed().now_or_never().is_none(), "nothing is different");
        // Its address was given to another pod while the watch was down.
        workloads.set_all(HashMap::from([(key("other"), pod("other", &["10.0.0.7"]).unwrap())]));
        workloads.set_all::<Slice>(HashMap::new());
        workloads.set_all::<Service>(HashMap::new());
        follows.changed().now_or_never().expect("it is another pod");
        let now = follows.now();
        assert_ne!(now, before);
        assert_eq!(now.account, Some(("shop".to_owned(), "other".to_owned())));
        assert!(now.services.is_empty());
    }

    #[tokio::test]
    async fn all_addresses_of_a_pod_count_and_other_namespaces_do_not() {
        let workloads = Arc::new(Workloads::default());
        workloads.set(key("users"), service("10.96.0.9", &[]));
        workloads.set(("evil".to_owned(), "users".to_owned()), service("10.96.0.66", &[]));
        workloads.set(key("users-1"), pod("people", &["10.0.0.7", "fd00::7"]));
        let mut follows = workloads.follow(ip("10.0.0.7"));
        workloads.set(key("users-6"), slice("users", &[], &[("fd00::7", Condition::Ready)]));
        follows.changed().now_or_never().expect("a slice names its other address");
        assert_eq!(names(&follows.now()), ["users.shop"]);
        // Anybody who may write slices in another namespace could name it there.
        let foreign = ("evil".to_owned(), "x".to_owned());
        workloads.set(foreign, slice("users", &[], &[("10.0.0.7", Condition::Ready)]));
        assert!(follows.changed().now_or_never().is_none());
    }

    /// Until the API server has removed it, a pod that is gone may be at the address of another.
    #[test]
    fn an_address_of_two_pods_is_nobodys_and_a_slice_may_still_name_the_former_one() {
        let workloads = Arc::new(Workloads::default());
        workloads.set(("aaa".to_owned(), "stale".to_owned()), pod("people", &["10.0.0.7"]));
        workloads.set(key("users-1"), pod("users", &["10.0.0.7"]));
        assert_eq!(workloads.at(ip("10.0.0.7")).account, None);
        workloads.set::<Pod>(("aaa".to_owned(), "stale".to_owned()), None);
        assert_eq!(workloads.at(ip("10.0.0.7")).account, Some(("shop".to_owned(), "users".to_owned())));

        workloads.set(key("orders"), service("10.96.0.9", &[]));
        let of = |pod: &str| {
            let mut slice = slice("orders", &[], &[("10.0.0.7", Condition::Ready)]);
            slice.iter_mut().for_each(|slice| slice.endpoints[0].pod = Some(pod.to_owned()));
            slice
        };
        workloads.set(key("orders-x"), of("orders-1"));
        assert!(workloads.at(ip("10.0.0.7")).services.is_empty());
        workloads.set(key("orders-x"), of("users-1"));
        assert_eq!(names(&workloads.at(ip("10.0.0.7"))), ["orders.shop"]);
    }

    #[test]
    fn nothing_is_kept_of_what_nobody_follows() {
        let workloads = Arc::new(Workloads::default());
        let (one, two) = (workloads.follow(ip("10.0.0.7")), workloads.follow(ip("10.0.0.7")));
        drop(one);
        assert_eq!(workloads.lock().followed.len(), 1);
        drop(two);
        workloads.set(key("users-1"), pod("people", &["10.0.0.7"]));
        workloads.set::<Pod>(key("users-1"), None);
        let state = workloads.lock();
        assert!(state.followed.is_empty() && state.pods_at.is_empty() && state.slices_at.is_empty());
    }

    pub(super) fn large(service: &str, endpoints: usize) -> Slice {
        let endpoint = |number: usize| {
            let ips = vec![IpAddr::from(u32::try_from(number).unwrap().to_be_bytes())];
            SliceEndpoint { ips, pod: None, condition: Condition::Ready }
        };
        let endpoints = (0..endpoints).map(endpoint).collect();
        Slice { service: service.to_owned(), endpoints, ..Slice::default() }
    }

    /// Otherwise each change of a slice takes longer with each Service.
    #[test]
    fn a_pod_of_too_many_services_backs_none() {
        let workloads = Arc::new(Workloads::default());
        workloads.set(key("users-1"), pod("users", &["0.0.0.0"]));
        for number in 0..=SERVICES_OF_POD {
            workloads.set(key(&format!("s{number:03}")), Some(Service::default()));
            workloads.set(key(&format!("s{number:03}-1")), Some(large(&format!("s{number:03}"), 1)));
            // Those of another namespace don't count.
            workloads.set(("other".into(), format!("s{number:03}-1")), Some(large("other", 1)));
            let expected = if number == SERVICES_OF_POD { 0 } else { number + 1 };
            assert_eq!(workloads.at(ip("0.0.0.0")).services.len(), expected);
        }
    }
}
