//! Services, with a limit for each namespace.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map},
    net::IpAddr,
    sync::Arc,
};

use tokio::sync::Notify;

use super::{
    super::contracts::Named,
    Key, Object, State, Workloads,
    slices::{Slice, are_too_many, weigh},
};

/// So many endpoints a contract in an annotation counts as: its name may have 512 bytes.
const CONTRACT_WEIGHT: usize = 10;

/// A Service with its own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// Empty for a headless one.
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// By name, which is empty if there is only one.
    pub(crate) ports: BTreeMap<String, u16>,
    /// The contracts that its annotation names, if it is right.
    pub(crate) named: Option<Arc<Named>>,
    /// The weight of the ports and contracts that it has and that are not kept.
    pub(crate) not_kept: usize,
}

impl Object for Service {
    fn keys(state: &State) -> impl Iterator<Item = &Key> {
        state.services.keys()
    }

    /// Of its ports and contracts: a namespace's Services may have any number of them.
    fn weight(&self) -> usize {
        let contracts = self.named.as_ref().map_or(0, |named| named.contracts.len());
        self.ports.len() + contracts * CONTRACT_WEIGHT + self.not_kept
    }

    fn lighten(&mut self) {
        self.not_kept = self.weight();
        self.ports.clear();
        self.named = None;
    }

    fn lacks(workloads: &Workloads) -> Option<&Notify> {
        Some(&workloads.lacks_services)
    }

    fn put(state: &mut State, key: Key, mut service: Option<Self>) -> BTreeSet<IpAddr> {
        let mut touched = state.weigh_service(&key, service.as_ref());
        if state.service_weights_of.get(&key.0).is_some_and(|weight| are_too_many(*weight)) {
            service.iter_mut().for_each(Object::lighten);
        }
        touched.extend(state.keep_service(key, service));
        touched
    }
}

impl State {
    /// Counts a Service. Returns the addresses of endpoints of those whose ports are no longer kept, as those of their namespace
    /// have too many.
    fn weigh_service(&mut self, key: &Key, service: Option<&Service>) -> BTreeSet<IpAddr> {
        let before = self.services.get(key).map_or(0, Object::weight);
        let now = service.map_or(0, Object::weight);
        match weigh(&mut self.service_weights_of, &key.0, before, now) {
            (false, true) => {
                tracing::error!(
                    namespace = key.0,
                    "the Services of a namespace have too many ports and contracts: until there are fewer, the mesh knows neither \
                     their cluster addresses nor their annotations"
                );
                let heavy =
                    |(other, service): &(&Key, &Service)| other.0 == key.0 && service.not_kept < service.weight();
                let heavy: Vec<Key> = self.services.iter().filter(heavy).map(|(key, _)| key.clone()).collect();
                let lighten = |key: Key| {
                    let mut service = self.services.get(&key).cloned();
                    service.iter_mut().for_each(Object::lighten);
                    self.keep_service(key, service)
                };
                heavy.into_iter().flat_map(lighten).collect()
            }
            (true, false) => {
                self.lacks_services = true;
                BTreeSet::new()
            }
            _ => BTreeSet::new(),
        }
    }

    /// Returns the addresses of its endpoints if something else is known of them now.
    fn keep_service(&mut self, key: Key, service: Option<Service>) -> BTreeSet<IpAddr> {
        let slices = self.slices_of.get(&key).into_iter().flatten().filter_map(|slice| self.slices.get(&**slice));
        let endpoints = || slices.flat_map(Slice::ips).collect();
        let named = service.as_ref().and_then(|service| service.named.as_ref());
        // It keeps the same `Arc` as this.
        self.annotated.set(&key, named);
        let leads_elsewhere =
            |one: &Service, other: &Service| one.cluster_ips != other.cluster_ips || one.ports != other.ports;
        match (self.services.entry(key), service) {
            (hash_map::Entry::Vacant(free), Some(service)) => {
                free.insert(service);
                endpoints()
            }
            (hash_map::Entry::Occupied(there), None) => {
                there.remove();
                self.has_lost_services = true;
                endpoints()
            }
            (hash_map::Entry::Occupied(mut there), Some(service)) => {
                let before = there.insert(service);
                if leads_elsewhere(&before, there.get()) { endpoints() } else { BTreeSet::new() }
            }
            (hash_map::Entry::Vacant(_), None) => BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use futures_util::FutureExt as _;
    use weft_mesh::names::ServiceName;

    use super::{
        super::{
            super::contracts::Chosen,
            tests::{key, large},
        },
        *,
    };

    fn named(contracts: impl IntoIterator<Item = String>) -> Option<Arc<Named>> {
        Some(Arc::new(Named { created: 1, contracts: contracts.into_iter().collect() }))
    }

    fn with_ports(count: u16) -> Service {
        Service { ports: (1..=count).map(|port| (format!("p{port}"), port)).collect(), ..Service::default() }
    }

    fn other(name: &str) -> Key {
        ("other".to_owned(), name.to_owned())
    }

    #[tokio::test]
    async fn what_services_say_of_contracts_goes_with_them() {
        let workloads = Workloads::default();
        let users = |contract: &str| Some(Service { named: named([contract.to_owned()]), ..Service::default() });
        workloads.set(key("users"), Some(Service::default()));
        assert!(workloads.contracts_have_changed().now_or_never().is_none());
        workloads.set(key("users"), users("a.B"));
        workloads.contracts_have_changed().now_or_never().expect("it names one");
        let name = ServiceName::parse("users.shop").unwrap();
        assert_eq!(workloads.take_contracts(), [("shop".to_owned(), Chosen::from([("a.B".to_owned(), name)]))]);
        workloads.set_all::<Service>(HashMap::new());
        workloads.contracts_have_changed().now_or_never().expect("it is gone");
        assert_eq!(workloads.take_contracts(), [("shop".to_owned(), Chosen::new())]);
        assert!(workloads.take_contracts().is_empty());
    }

    /// Otherwise each change of it costs as much as the Service has endpoints.
    #[test]
    fn an_annotation_concerns_no_endpoint() {
        let mut state = State::default();
        Slice::put(&mut state, key("users-1"), Some(large("users", 3)));
        assert_eq!(Service::put(&mut state, key("users"), Some(with_ports(1))).len(), 3);
        let annotated = Service { named: named(["a.B".to_owned()]), ..with_ports(1) };
        assert!(Service::put(&mut state, key("users"), Some(annotated.clone())).is_empty());
        assert!(state.annotated.has_changed());
        let elsewhere = Service { cluster_ips: vec![[10, 96, 0, 9].into()], ..annotated };
        assert_eq!(Service::put(&mut state, key("users"), Some(elsewhere)).len(), 3);
        assert_eq!(Service::put(&mut state, key("users"), Some(with_ports(1))).len(), 3);
        assert_eq!(Service::put(&mut state, key("users"), None).len(), 3);
    }

    /// Otherwise one namespace fills the memory.
    #[test]
    fn of_a_namespace_with_too_many_ports_and_contracts_only_the_services_are_known() {
        let workloads = Arc::new(Workloads::default());
        workloads.set(key("orders"), Some(with_ports(2)));
        let kept = || {
            let state = workloads.lock();
            let ports = |key: Key| state.services.get(&key).map(|service| service.ports.len());
            (ports(key("orders")), ports(other("a")))
        };
        workloads.set(other("a"), Some(with_ports(40_000)));
        assert_eq!(kept(), (Some(2), Some(40_000)));
        let contracts = |count: usize| named((0..count).map(|number| format!("a.S{number}")));
        workloads.set(other("b"), Some(Service { named: contracts(64), ..Service::default() }));
        workloads.take_contracts();
        workloads.set(other("c"), Some(Service { named: contracts(1_000), ..Service::default() }));
        assert_eq!(kept(), (Some(2), Some(0)), "those of shop stay");
        assert!(workloads.lock().services.values().all(|service| service.named.is_none()));
        assert_eq!(workloads.take_contracts(), [("other".to_owned(), Chosen::new())]);
        assert!(workloads.has_service(&ServiceName::parse("a.other").unwrap()));
        workloads.set(other("d"), Some(with_ports(5)));
        assert_eq!(workloads.lock().services[&other("d")].ports.len(), 0, "they only count");
        assert_eq!(workloads.lock().service_weights_of["other"], 40_000 + 640 + 10_000 + 5);
        // What was read without its ports weighs the same.
        let mut light = with_ports(5);
        light.lighten();
        workloads.set(other("d"), Some(light));
        assert_eq!(workloads.lock().service_weights_of["other"], 40_000 + 640 + 10_000 + 5);
        assert!(workloads.lacks_services.notified().now_or_never().is_none());
        workloads.set(other("c"), None::<Service>);
        workloads.lacks_services.notified().now_or_never().expect("there is room, so all are listed again");
        workloads.set_all(HashMap::from([(other("a"), with_ports(40_000)), (key("orders"), with_ports(2))]));
        assert_eq!(kept(), (Some(2), Some(40_000)));
        assert_eq!(workloads.lock().service_weights_of["other"], 40_000);
        workloads.set_all::<Service>(HashMap::new());
        assert!(workloads.lock().service_weights_of.is_empty());
    }
}
