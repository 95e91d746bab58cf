//! Changes of a service as a whole and of its endpoints, and when its watchers are told.

use std::{collections::BTreeMap, mem, sync::Arc};

use tokio::time::Instant;
use weft_contracts::weft::discovery::v1::{Change, Endpoint};
use weft_mesh::{limits, names::ServiceName};

use super::{Event, Registry};
use crate::{directory::rates::Bucket, rules::OfService};

/// Whether watchers must still be told of a service's protocol and policy, of its claims, and of its endpoints. Each has a
/// rate of its own: with many replicas addresses change often, and policies do not.
#[derive(Debug, Default)]
pub(super) struct News {
    policy: Untold,
    claims: Untold,
    endpoints: UntoldEndpoints,
}

#[derive(Debug, Default)]
struct UntoldEndpoints {
    /// By id; `None` for those that have gone.
    changed: BTreeMap<String, Option<Endpoint>>,
    rate: Bucket,
}

impl UntoldEndpoints {
    fn note(&mut self, upserted: Vec<Endpoint>, removed_ids: Vec<String>) {
        self.changed.extend(removed_ids.into_iter().map(|id| (id, None)));
        self.changed.extend(upserted.into_iter().map(|endpoint| (endpoint.id.clone(), Some(endpoint))));
    }

    /// What there is to tell, which counts as told then: the endpoints that are new or changed, and the ids of those that
    /// have gone.
    fn take(&mut self) -> (Vec<Endpoint>, Vec<String>) {
        let (mut upserted, mut removed_ids) = (Vec::new(), Vec::new());
        for (id, endpoint) in mem::take(&mut self.changed) {
            match endpoint {
                Some(endpoint) => upserted.push(endpoint),
                None => removed_ids.push(id),
            }
        }
        (upserted, removed_ids)
    }
}

#[derive(Debug, Default)]
struct Untold {
    is_there: bool,
    rate: Bucket,
}

impl Untold {
    /// True if there is something to tell and the rate allows it: then it counts as told.
    fn take(&mut self, now: Instant) -> bool {
        let is_due = self.is_there && self.rate.take(limits::SERVICE_NEWS, now);
        self.is_there &= !is_due;
        is_due
    }
}

impl News {
    /// The policy, or the claims, have changed.
    pub(super) fn note(&mut self, policy: bool, claims: bool) {
        self.policy.is_there |= policy;
        // Claims are told together with the policy.
        self.claims.is_there |= claims && !policy;
    }
}

impl Registry {
    /// Whether what watchers are told of a service has the values of this MethodPolicy in it.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only statuses of objects say it"))]
    pub(crate) fn tells(&self, methods: &Arc<OfService>) -> bool {
        self.methods.get(&methods.service) == Some(methods)
            && self
                .services
                .get(&methods.service)
                .is_some_and(|entry| !entry.news.policy.is_there && entry.policy.method_policy == methods.name)
    }

    /// Tells watchers that endpoints of a service have changed, together with changes from before that they are not told of
    /// yet. If that is too often, [`Self::tell_all_anew`] does it.
    pub(super) fn emit_change(
        &mut self,
        service: &ServiceName,
        upserted: Vec<Endpoint>,
        removed_ids: Vec<String>,
        now: Instant,
    ) {
        let Some(entry) = self.services.get_mut(service) else { return };
        let endpoints = &mut entry.news.endpoints;
        // An endpoint that has left takes no calls. How many can leave is limited by how many announce themselves.
        let has_left = !removed_ids.is_empty();
        endpoints.note(upserted, removed_ids);
        if has_left || endpoints.rate.take(limits::ENDPOINT_NEWS, now) {
            self.tell_endpoints(service);
        }
    }

    fn tell_endpoints(&mut self, service: &ServiceName) {
        let Some(entry) = self.services.get_mut(service) else { return };
        if entry.news.endpoints.changed.is_empty() {
            return;
        }
        let (upserted, removed_ids) = entry.news.endpoints.take();
        let version = Some(self.bump());
        let change = Change { service: service.to_string(), upserted, removed_ids, version };
        self.events.push(Event::Endpoints(service.clone(), Arc::new(change)));
    }

    /// Tells watchers of a service whose policy or claims have changed, if its rate allows it: a policy may be large,
    /// and there may be many watchers.
    pub(super) fn tell_anew(&mut self, service: &ServiceName, now: Instant) {
        let Some(entry) = self.services.get_mut(service) else { return };
        let has_policy = entry.news.policy.take(now);
        if has_policy {
            let of_contracts = entry.claimed.policy(entry.described.as_ref().map(|(_, policy)| policy));
            let with_methods = self.methods.get(service).and_then(|methods| methods.in_place_of(&of_contracts));
            entry.policy = with_methods.map_or(of_contracts, Arc::new);
            entry.news.claims.is_there = false;
        }
        if has_policy || entry.news.claims.take(now) {
            self.bump();
            self.events.push(Event::Service(service.clone()));
        }
    }

    /// Tells watchers of all services that they are not told of yet; of endpoints at any rate, as this is done once a second.
    pub(super) fn tell_all_anew(&mut self, now: Instant) {
        let is_untold = |News { policy, claims, endpoints }: &News| {
            policy.is_there || claims.is_there || !endpoints.changed.is_empty()
        };
        let untold = self.services.iter().filter(|(_, entry)| is_untold(&entry.news));
        let untold: Vec<ServiceName> = untold.map(|(service, _)| service.clone()).collect();
        for service in &untold {
            self.tell_endpoints(service);
            self.tell_anew(service, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeSet, HashMap},
        sync::Arc,
        time::Duration,
    };

    use weft_contracts::weft::{
        discovery::v1::{Endpoint, Health, Protocol},
        policy::v1::{Contract, Method, ServicePolicy},
    };

    use weft_mesh::{config::Node, policy::Overrides};

    use super::*;
    use crate::{
        directory::registry::Announcement,
        rules::{ByService, OfService},
    };

    fn policy(method: &str) -> Arc<ServicePolicy> {
        let methods = vec![Method { name: method.into(), ..Method::default() }];
        Arc::new(ServicePolicy {
            contracts: vec![Contract { name: "shop.Users".into(), methods, stands_in_for: Vec::new() }],
            ..ServicePolicy::default()
        })
    }

    fn announcement(digest: u8, policy: &Arc<ServicePolicy>, protocol: Protocol, contract: &str) -> Announcement {
        Announcement {
            service: ServiceName::parse("users.shop").unwrap(),
            endpoint: Endpoint {
                id: "a".into(),
                address: "10.0.0.1:1".into(),
                health: Health::Up.into(),
                ..Endpoint::default()
            },
            protocol,
            contracts: BTreeSet::from([contract.to_owned()]),
            addresses: BTreeSet::new(),
            allowed: BTreeSet::new(),
            of_cluster: BTreeSet::new(),
            descriptors: Some([digest; 32]),
            policy: Some(Arc::clone(policy)),
        }
    }

    /// How often watchers are told of the whole service.
    fn told(registry: &mut Registry) -> usize {
        registry.take_events().iter().filter(|event| matches!(event, Event::Service(_))).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_needs_no_change_is_shared_with_its_descriptors() {
        let mut registry = Registry::new(1, Instant::now());
        let known = policy("Get");
        registry.announce(announcement(1, &known, Protocol::Http2, "shop.Users"), Instant::now()).unwrap();
        let users = ServiceName::parse("users.shop").unwrap();
        assert!(Arc::ptr_eq(&registry.services[&users].policy, &known));
        registry.announce(announcement(1, &known, Protocol::Http2, "shop.Other"), Instant::now()).unwrap();
        let made = &registry.services[&users].policy;
        assert!(!Arc::ptr_eq(made, &known) && made.contracts[0].name == "shop.Other");
    }

    fn methods(timeout: &str) -> Arc<ByService> {
        let service = ServiceName::parse("users.shop").unwrap();
        let spec =
            serde_json::json!({"service": "users", "methods": [{"method": "shop.Users/Get", "timeout": timeout}]});
        let values = Overrides::read("MethodPolicy shop/slow", &Node::of_json(&spec)).unwrap();
        let of = OfService { service: service.clone(), name: "shop/slow".into(), values };
        Arc::new(HashMap::from([(service, Arc::new(of))]))
    }

    #[tokio::test(start_paused = true)]
    async fn a_method_policy_takes_the_place_of_a_contract_until_it_is_gone() {
        let now = Instant::now();
        let mut registry = Registry::new(1, now);
        let users = ServiceName::parse("users.shop").unwrap();
        // It may be there before its service.
        registry.set_methods(methods("1s"), now);
        registry.announce(announcement(1, &policy("Get"), Protocol::Http2, "shop.Users"), now).unwrap();
        let seconds = |registry: &Registry| {
            let policy = &registry.services[&users].policy;
            let timeout = policy.contracts[0].methods[0].timeout.as_ref();
            (policy.method_policy.clone(), timeout.and_then(|timeout| Some(timeout.value?.seconds)))
        };
        assert_eq!(seconds(&registry), ("shop/slow".to_owned(), Some(1)));
        told(&mut registry);
        let tells = |registry: &Registry, timeout: &str| registry.tells(&methods(timeout)[&users]);
        assert_eq!((tells(&registry, "1s"), tells(&registry, "2s")), (true, false));
        registry.set_methods(methods("2s"), now);
        assert_eq!((tells(&registry, "1s"), tells(&registry, "2s")), (false, true));
        assert_eq!((seconds(&registry).1, told(&mut registry)), (Some(2), 1));
        registry.set_methods(methods("2s"), now);
        assert_eq!(told(&mut registry), 0, "it says the same");
        registry.set_methods(Arc::default(), now);
        assert_eq!((seconds(&registry), told(&mut registry)), ((String::new(), None), 1));
        assert!(!tells(&registry, "2s"));
        // It changes too often: watchers are told later.
        let timeouts = ["1s", "2s"].into_iter().cycle().take(1_000);
        timeouts.for_each(|timeout| registry.set_methods(methods(timeout), now));
        assert!(!tells(&registry, "2s"));
        tokio::time::advance(Duration::from_secs(1)).await;
        registry.tick(Instant::now());
        assert!(tells(&registry, "2s"));
    }

    #[tokio::test(start_paused = true)]
    async fn many_replicas_with_addresses_of_their_own_do_not_delay_a_policy() {
        let mut registry = Registry::new(1, Instant::now());
        let known = policy("Get");
        for number in 0..100 {
            let address = format!("10.0.0.1:{}", 1_000 + number);
            let endpoint = Endpoint { id: address.clone(), address: address.clone(), ..Endpoint::default() };
            let addresses = BTreeSet::from([address]);
            let of_first = announcement(1, &known, Protocol::Http2, "shop.Users");
            registry.announce(Announcement { endpoint, addresses, ..of_first }, Instant::now()).unwrap();
        }
        let newer = policy("Get2");
        registry.announce(announcement(2, &newer, Protocol::Http2, "shop.Users"), Instant::now()).unwrap();
        let users = ServiceName::parse("users.shop").unwrap();
        assert!(Arc::ptr_eq(&registry.services[&users].policy, &newer));
    }

    #[tokio::test(start_paused = true)]
    async fn frequent_changes_are_told_once_a_second_and_the_latest_state_wins() {
        let known = [policy("Even"), policy("Odd")];
        let protocols = [Protocol::Http2, Protocol::Http1];
        type Flip<'a> = Box<dyn Fn(usize) -> Announcement + 'a>;
        let flips: [Flip; 3] = [
            Box::new(|n| announcement(n as u8 % 2, &known[n % 2], Protocol::Http2, "shop.Users")),
            Box::new(|n| announcement(0, &known[0], protocols[n % 2], "shop.Users")),
            Box::new(|n| announcement(0, &known[0], Protocol::Http2, ["shop.Users", "shop.Other"][n % 2])),
        ];
        let (at_once, ..) = limits::SERVICE_NEWS;
        for flip in flips {
            let mut registry = Registry::new(1, Instant::now());
            for number in 0..1_000 {
                registry.announce(flip(number), Instant::now()).unwrap();
            }
            // One more, as it is a new service at first.
            assert_eq!(told(&mut registry), at_once as usize + 1);
            for _ in 0..3 {
                (0..1_000).for_each(|number| drop(registry.announce(flip(number), Instant::now()).unwrap()));
                tokio::time::advance(Duration::from_secs(1)).await;
                registry.tick(Instant::now());
                assert_eq!(told(&mut registry), 1);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            registry.tick(Instant::now());
            assert_eq!(told(&mut registry), 0, "there is nothing left to tell");
            let last = flip(999);
            let snapshot = registry.snapshot(&last.service).unwrap();
            let contract = &snapshot.policy.as_ref().unwrap().contracts[0];
            assert_eq!((snapshot.protocol(), Some(&contract.name)), (last.protocol, last.contracts.first()));
            if contract.name == "shop.Users" {
                assert_eq!(contract.methods, last.policy.unwrap().contracts[0].methods);
            }
        }
    }

    /// Each watcher goes through all endpoints of a service for each message about them.
    #[tokio::test(start_paused = true)]
    async fn endpoints_that_change_too_often_are_told_together() {
        const ENDPOINTS: usize = 1_000;
        let mut registry = Registry::new(1, Instant::now());
        let numbered = |number: usize| {
            let mut announced = announcement(0, &policy("Get"), Protocol::Http2, "shop.Users");
            announced.endpoint.id = format!("e{number}");
            announced.endpoint.address = format!("10.0.0.1:{}", number + 1);
            announced
        };
        let service = numbered(0).service;
        let mut told: BTreeMap<String, Endpoint> = BTreeMap::new();
        let hear = |registry: &mut Registry, told: &mut BTreeMap<String, Endpoint>| {
            let events = registry.take_events();
            let changes = events.iter().filter_map(|event| match event {
                Event::Endpoints(_, change) => Some(change),
                _ => None,
            });
            let mut count = 0;
            for change in changes {
                count += 1;
                told.retain(|id, _| !change.removed_ids.contains(id));
                told.extend(change.upserted.iter().map(|endpoint| (endpoint.id.clone(), endpoint.clone())));
            }
            count
        };
        let is_told = |registry: &Registry, told: &BTreeMap<String, Endpoint>| {
            registry.snapshot(&service).unwrap().endpoints.iter().eq(told.values())
        };
        let (at_once, a_second, _) = limits::ENDPOINT_NEWS;
        let join = |registry: &mut Registry, number| registry.announce(numbered(number), Instant::now()).unwrap();
        let sessions: Vec<_> = (0..ENDPOINTS).map(|number| join(&mut registry, number).session).collect();
        // The first is told with its service.
        told.insert("e0".into(), numbered(0).endpoint);
        assert_eq!(hear(&mut registry, &mut told), at_once as usize);
        assert!(!is_told(&registry, &told));
        registry.tick(Instant::now());
        assert_eq!(hear(&mut registry, &mut told), 1);
        assert!(is_told(&registry, &told));
        for second in 0..5 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let health = [Health::Down, Health::Up][second % 2];
            for session in &sessions {
                registry.heartbeat(session, health, Instant::now()).unwrap();
            }
            registry.tick(Instant::now());
            assert_eq!(hear(&mut registry, &mut told), a_second as usize + 1);
            assert!(is_told(&registry, &told));
        }
        // One that comes and goes again before it is told.
        for session in &sessions[..100] {
            registry.deregister(session, Instant::now());
        }
        assert_eq!(hear(&mut registry, &mut told), 100, "those that have left take no calls: that is told at once");
        assert!(is_told(&registry, &told));
        let back = join(&mut registry, 3).session;
        let short = join(&mut registry, 2_000).session;
        registry.deregister(&short, Instant::now());
        registry.heartbeat(&back, Health::Draining, Instant::now()).unwrap();
        registry.tick(Instant::now());
        hear(&mut registry, &mut told);
        assert!(is_told(&registry, &told));
        assert_eq!(told.len(), ENDPOINTS - 99);
    }
}
