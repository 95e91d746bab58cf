//! All watchers, and an index of what each follows.
//!
//! So an event costs time only for the watchers that follow its subject, however many others there are.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use tokio::{sync::Notify, time::Instant};
use weft_contracts::weft::discovery::v1::WatchResponse;
use weft_mesh::names::ServiceName;

use super::{
    registry::{Event, Registry},
    watcher::{Move, Watcher},
};
use crate::{claims::visibility::Sight, rules::Reach};

/// A watcher's number.
pub(crate) type WatcherId = u64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    made: WatcherId,
    all: HashMap<WatcherId, Watched>,
    index: Index,
}

/// Whose a watcher is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    /// The service of its identity.
    pub(crate) service: ServiceName,
    /// Where its connection comes from.
    pub(crate) host: IpAddr,
}

#[derive(Debug)]
struct Watched {
    who: Who,
    since: Instant,
    watcher: Watcher,
    news: Arc<Notify>,
}

/// A watcher as it is now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State<'a> {
    pub(crate) who: &'a Who,
    pub(crate) since: Instant,
    /// How many services it follows.
    pub(crate) follows: usize,
    /// Of how many names it has not been sent the newest state.
    pub(crate) unsent: usize,
}

impl Watched {
    fn observe(&mut self, event: &Event) {
        if self.watcher.observe(event) {
            self.news.notify_one();
        }
    }
}

/// The watchers of each name.
#[derive(Debug, Default)]
struct Index {
    services: HashMap<ServiceName, BTreeSet<WatcherId>>,
    contracts: HashMap<String, BTreeSet<WatcherId>>,
}

/// The watchers that an event concerns.
#[derive(Debug, PartialEq, Eq)]
enum Concerned<'a> {
    Everybody,
    These(&'a BTreeSet<WatcherId>),
    Nobody,
}

impl Watchers {
    /// Adds a watcher. Returns its number, and the notifier that wakes it when there may be news.
    pub(crate) fn add(&mut self, who: Who, sight: Sight, now: Instant) -> (WatcherId, Arc<Notify>) {
        self.made += 1;
        let news = Arc::<Notify>::default();
        let watched = Watched { who, since: now, watcher: Watcher::new(sight), news: Arc::clone(&news) };
        self.all.insert(self.made, watched);
        (self.made, news)
    }

    /// All watchers, in no order.
    pub(crate) fn states(&self) -> impl Iterator<Item = State<'_>> {
        self.all.values().map(|Watched { who, since, watcher, .. }| State {
            who,
            since: *since,
            follows: watcher.services_followed(),
            unsent: watcher.unsent(),
        })
    }

    /// How many sidecars follow a service, and how many of them have been sent all that is known of it. Of a sidecar with
    /// several streams, the newest counts.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only statuses of objects say it"))]
    pub(crate) fn followers(&self, service: &ServiceName) -> Reach {
        let watched = self.index.services.get(service).into_iter().flatten().filter_map(|id| self.all.get(id));
        // The newest last: they are in order.
        let of_each: HashMap<(&ServiceName, IpAddr), &Watcher> =
            watched.map(|Watched { who, watcher, .. }| ((&who.service, who.host.to_canonical()), watcher)).collect();
        let mut reach = Reach::default();
        of_each.into_values().for_each(|watcher| reach.count(watcher.has_sent(service)));
        reach
    }

    /// Removes a watcher.
    pub(crate) fn remove(&mut self, id: WatcherId) {
        if let Some(Watched { watcher, .. }) = self.all.remove(&id) {
            watcher.into_followed().for_each(|what| self.index.note(id, what));
        }
    }

    /// Changes what a watcher follows; `None` if there is no such watcher.
    pub(crate) fn update<R>(&mut self, id: WatcherId, change: impl FnOnce(&mut Watcher) -> R) -> Option<R> {
        let Watched { watcher, .. } = self.all.get_mut(&id)?;
        let result = change(watcher);
        watcher.take_moves().for_each(|what| self.index.note(id, what));
        Some(result)
    }

    /// The next response for a watcher.
    pub(crate) fn next(&mut self, id: WatcherId, registry: &Registry) -> Option<WatchResponse> {
        self.update(id, |watcher| watcher.next(registry)).flatten()
    }

    /// Passes an event on to the watchers that it concerns.
    pub(crate) fn tell(&mut self, event: &Event) {
        match self.index.concerned(event) {
            Concerned::Nobody => {}
            Concerned::Everybody => self.all.values_mut().for_each(|watched| watched.observe(event)),
            Concerned::These(ids) => {
                for id in ids {
                    if let Some(watched) = self.all.get_mut(id) {
                        watched.observe(event);
                    }
                }
            }
        }
    }

    /// A second has passed: watchers may get hints again.
    pub(crate) fn allow_hints(&mut self) {
        self.all.values_mut().for_each(|watched| watched.watcher.allow_hints());
    }
}

impl Index {
    fn note(&mut self, id: WatcherId, what: Move) {
        match what {
            Move::Follows(service) => drop(self.services.entry(service).or_default().insert(id)),
            Move::Asks(contract) => drop(self.contracts.entry(contract).or_default().insert(id)),
            Move::Leaves(service) => {
                if let Some(ids) = self.services.get_mut(&service)
                    && ids.remove(&id)
                    && ids.is_empty()
                {
                    self.services.remove(&service);
                }
            }
            Move::Forgets(contract) => {
                if let Some(ids) = self.contracts.get_mut(&contract)
                    && ids.remove(&id)
                    && ids.is_empty()
                {
                    self.contracts.remove(&contract);
                }
            }
        }
    }

    fn concerned(&self, event: &Event) -> Concerned<'_> {
        let these = |ids: Option<_>| ids.map_or(Concerned::Nobody, Concerned::These);
        match event {
            Event::Endpoints(service, _) | Event::Service(service) => these(self.services.get(service)),
            Event::Contract(contract) => these(self.contracts.get(contract)),
            Event::Settled => Concerned::Everybody,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tokio::time::Instant;
    use weft_contracts::weft::discovery::v1::{Endpoint, Health, Protocol};

    use super::*;
    use crate::directory::registry::Announcement;

    fn announcement(service: &str, contract: &str, port: u16) -> Announcement {
        Announcement {
            service: ServiceName::parse(service).unwrap(),
            endpoint: Endpoint {
                id: format!("{service}-{port}"),
                address: format!("10.0.0.1:{port}"),
                health: Health::Up.into(),
                ..Endpoint::default()
            },
            protocol: Protocol::Http2,
            contracts: BTreeSet::from([contract.to_owned()]),
            addresses: BTreeSet::new(),
            allowed: BTreeSet::new(),
            of_cluster: BTreeSet::new(),
            descriptors: None,
            policy: None,
        }
    }

    fn add(watchers: &mut Watchers) -> (WatcherId, Arc<Notify>) {
        let who = Who { service: ServiceName::parse("web.shop").unwrap(), host: [10, 0, 0, 1].into() };
        watchers.add(who, Sight::default(), Instant::now())
    }

    fn told(watchers: &mut Watchers, registry: &mut Registry) -> Vec<WatcherId> {
        for event in registry.take_events() {
            watchers.tell(&event);
        }
        let mut told: Vec<_> = watchers.all.iter().filter(|(_, w)| w.watcher.has_news()).map(|(id, _)| *id).collect();
        told.sort_unstable();
        for id in &told {
            while watchers.next(*id, registry).is_some() {}
        }
        told
    }

    /// The index agrees with what each watcher follows.
    fn check(watchers: &Watchers) {
        let index = &watchers.index;
        for (id, Watched { watcher, .. }) in &watchers.all {
            for (service, ids) in &index.services {
                assert_eq!(ids.contains(id), watcher.follows(&service.to_string()), "{id} and {service}");
            }
            for (contract, ids) in &index.contracts {
                assert_eq!(ids.contains(id), watcher.asks_for(contract), "{id} and {contract}");
            }
            for service in ["users.shop", "orders.shop", "later.shop"] {
                let is_in = index.services.get(&ServiceName::parse(service).unwrap()).is_some_and(|i| i.contains(id));
                assert_eq!(is_in, watcher.follows(service), "{id} and {service}");
            }
            for contract in ["shop.Users", "shop.Later"] {
                let is_in = index.contracts.get(contract).is_some_and(|ids| ids.contains(id));
                assert_eq!(is_in, watcher.asks_for(contract), "{id} and {contract}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_reaches_only_the_watchers_it_concerns() {
        let mut registry = Registry::new(1, Instant::now());
        let mut watchers = Watchers::default();
        let users = ServiceName::parse("users.shop").unwrap();
        for _ in 0..1_000 {
            let (id, _news) = add(&mut watchers);
            watchers.update(id, |watcher| watcher.subscribe_service("orders.shop")).unwrap().unwrap();
        }
        let (concerned, _news) = add(&mut watchers);
        watchers.update(concerned, |watcher| watcher.subscribe_service("users.shop")).unwrap().unwrap();
        told(&mut watchers, &mut registry);
        let event = Event::Service(users);
        assert_eq!(watchers.index.concerned(&event), Concerned::These(&BTreeSet::from([concerned])));
        assert_eq!(watchers.index.concerned(&Event::Contract("shop.Users".into())), Concerned::Nobody);
        registry.announce(announcement("users.shop", "shop.Users", 1), Instant::now()).unwrap();
        assert_eq!(told(&mut watchers, &mut registry), [concerned]);
        registry.announce(announcement("orders.shop", "shop.Orders", 2), Instant::now()).unwrap();
        assert_eq!(told(&mut watchers, &mut registry).len(), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_has_not_read_everything_says_so() {
        let mut registry = Registry::new(1, Instant::now());
        let mut watchers = Watchers::default();
        let (id, _news) = add(&mut watchers);
        let now = |watchers: &Watchers| watchers.states().map(|s| (s.follows, s.unsent)).collect::<Vec<_>>();
        assert_eq!(now(&watchers), [(0, 0)]);
        watchers.update(id, |watcher| watcher.subscribe_service("users.shop")).unwrap().unwrap();
        assert_eq!(now(&watchers), [(1, 1)]);
        assert_eq!(told(&mut watchers, &mut registry), [id]);
        assert_eq!(now(&watchers), [(1, 0)]);
        registry.announce(announcement("users.shop", "shop.Users", 1), Instant::now()).unwrap();
        for event in registry.take_events() {
            watchers.tell(&event);
        }
        assert_eq!(now(&watchers), [(1, 1)]);
        watchers.remove(id);
        assert!(now(&watchers).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_followers_of_a_service_count_once_each_and_only_what_they_were_sent() {
        let mut registry = Registry::new(1, Instant::now());
        let mut watchers = Watchers::default();
        let [users, orders] = ["users.shop", "orders.shop"].map(|text| ServiceName::parse(text).unwrap());
        let reach = |watchers: &Watchers, service: &ServiceName| {
            let Reach { told, of } = watchers.followers(service);
            (told, of)
        };
        registry.announce(announcement("users.shop", "shop.Users", 1), Instant::now()).unwrap();
        let follow = |watchers: &mut Watchers, host: u8, service: &ServiceName| {
            let who = Who { service: orders.clone(), host: [10, 0, 0, host].into() };
            let id = watchers.add(who, Sight::default(), Instant::now()).0;
            watchers.update(id, |watcher| watcher.subscribe_service(&service.to_string())).unwrap().unwrap();
            id
        };
        let first = follow(&mut watchers, 1, &users);
        follow(&mut watchers, 2, &users);
        follow(&mut watchers, 3, &orders);
        assert_eq!((reach(&watchers, &users), reach(&watchers, &orders)), ((0, 2), (0, 1)));
        while watchers.next(first, &registry).is_some() {}
        assert_eq!(reach(&watchers, &users), (1, 2));
        let newer = follow(&mut watchers, 1, &users);
        assert_eq!(reach(&watchers, &users), (0, 2), "its newer stream has sent nothing");
        while watchers.next(newer, &registry).is_some() {}
        assert_eq!(reach(&watchers, &users), (1, 2));
        told(&mut watchers, &mut registry);
        assert_eq!(reach(&watchers, &users), (2, 2));
        registry.announce(announcement("users.shop", "shop.Users", 2), Instant::now()).unwrap();
        registry.take_events().iter().for_each(|event| watchers.tell(event));
        assert_eq!(reach(&watchers, &users), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_index_agrees_with_what_watchers_follow() {
        let mut registry = Registry::new(1, Instant::now());
        registry.announce(announcement("users.shop", "shop.Users", 1), Instant::now()).unwrap();
        let mut watchers = Watchers::default();
        let ids: Vec<_> = (0..3).map(|_| add(&mut watchers).0).collect();
        let [by_name, by_contract, of_none] = ids[..] else { unreachable!() };
        watchers.update(by_name, |watcher| watcher.subscribe_service("users.shop")).unwrap().unwrap();
        watchers.update(by_contract, |watcher| watcher.subscribe_contract("shop.Users")).unwrap().unwrap();
        for id in [by_contract, of_none] {
            watchers.update(id, |watcher| watcher.subscribe_contract("shop.Later")).unwrap().unwrap();
            watchers.update(id, |watcher| watcher.subscribe_service("later.shop")).unwrap().unwrap();
        }
        check(&watchers);
        assert_eq!(told(&mut watchers, &mut registry).len(), 3);
        check(&watchers);
        // By its contract it follows the service.
        let change = |registry: &mut Registry, port| {
            registry.announce(announcement("users.shop", "shop.Users", port), Instant::now()).unwrap();
        };
        change(&mut registry, 2);
        assert_eq!(told(&mut watchers, &mut registry), [by_name, by_contract]);
        // A missing name is followed until it is known not to exist.
        registry.announce(announcement("later.shop", "shop.Later", 3), Instant::now()).unwrap();
        assert_eq!(told(&mut watchers, &mut registry), [by_contract, of_none]);
        check(&watchers);
        watchers.update(by_contract, |watcher| watcher.unsubscribe_service("users.shop"));
        watchers.update(of_none, |watcher| watcher.unsubscribe_service("later.shop"));
        watchers.update(of_none, |watcher| watcher.subscribe_contract("shop.Never")).unwrap().unwrap();
        check(&watchers);
        while !registry.is_settled() {
            tokio::time::advance(Duration::from_secs(1)).await;
            registry.tick(Instant::now());
        }
        told(&mut watchers, &mut registry);
        check(&watchers);
        assert!(!watchers.index.contracts.contains_key("shop.Never"), "it is known not to exist");
        change(&mut registry, 4);
        assert_eq!(told(&mut watchers, &mut registry), [by_name]);
        for id in ids {
            watchers.remove(id);
        }
        assert!(watchers.all.is_empty() && watchers.index.services.is_empty() && watchers.index.contracts.is_empty());
    }
}
