//! What watchers receive.

use std::collections::HashMap;

use proptest::prelude::*;
use weft_contracts::weft::discovery::v1::Service;

use super::*;
use crate::{claims::visibility::Visibility, directory::watcher::Watcher};

/// The state that a sidecar puts together from what it receives.
#[derive(Default)]
struct Told {
    services: HashMap<String, Service>,
    not_found: Vec<String>,
    owners: HashMap<String, String>,
    versions: HashMap<String, Version>,
}

impl Told {
    fn take(&mut self, answer: WatchResponse) {
        match answer.what.unwrap() {
            What::Snapshot(service) => {
                self.rises(&service.name, service.version.unwrap(), true);
                self.services.insert(service.name.clone(), service);
            }
            What::Change(change) => {
                self.rises(&change.service, change.version.unwrap(), false);
                let service = self.services.get_mut(&change.service).expect("a snapshot comes first");
                let is_kept = |e: &Endpoint| {
                    !change.removed_ids.contains(&e.id) && change.upserted.iter().all(|upserted| upserted.id != e.id)
                };
                service.endpoints.retain(is_kept);
                service.endpoints.extend(change.upserted);
                service.endpoints.sort_by(|a, b| a.id.cmp(&b.id));
            }
            What::NotFound(not_found) => {
                let text = format!("{:?} {} {}", not_found.what.unwrap(), not_found.closest, not_found.complete);
                self.not_found.push(text);
            }
            What::Owner(owner) => {
                self.owners.insert(owner.contract, owner.service);
            }
        }
    }

    fn rises(&mut self, service: &str, version: Version, may_repeat: bool) {
        if let Some(last) = self.versions.insert(service.to_owned(), version) {
            assert_eq!(last.epoch, version.epoch);
            assert!(last.counter < version.counter || may_repeat && last.counter == version.counter);
        }
    }

    fn read_all(&mut self, watcher: &mut Watcher, registry: &mut Registry) {
        for event in registry.take_events() {
            watcher.observe(&event);
        }
        while let Some(answer) = watcher.next(registry) {
            self.take(answer);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn names_that_do_not_exist_are_not_followed_after_settling() {
    let mut registry = Registry::new(1, Instant::now());
    let mut watcher = Watcher::default();
    let ask = |watcher: &mut Watcher, registry: &Registry| {
        watcher.subscribe_service("nobody.shop").unwrap();
        watcher.subscribe_contract("shop.Nothing").unwrap();
        assert_eq!(std::iter::from_fn(|| watcher.next(registry)).count(), 2);
    };
    ask(&mut watcher, &registry);
    assert!(watcher.follows("nobody.shop") && watcher.asks_for("shop.Nothing"), "they may still appear");
    pass(&mut registry, limits::SETTLING_TIME).await;
    for event in registry.take_events() {
        watcher.observe(&event);
    }
    assert_eq!(std::iter::from_fn(|| watcher.next(&registry)).count(), 2);
    assert!(!watcher.follows("nobody.shop") && !watcher.asks_for("shop.Nothing"));
    ask(&mut watcher, &registry);
    assert!(!watcher.follows("nobody.shop") && !watcher.asks_for("shop.Nothing"));
}

#[tokio::test(start_paused = true)]
async fn services_out_of_sight_are_answered_as_missing() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    registry.announce(of_contracts("vault.bank", "v", 1, &["bank.Vault"]), now).unwrap();
    registry.announce(of_contracts("users.shop", "u", 2, &["shop.Users"]), now).unwrap();
    let mut watcher = Watcher::new(Visibility::Namespace.of(&name("orders.shop")));
    let mut told = Told::default();
    let ask = |watcher: &mut Watcher| {
        for service in ["vault.bank", "vaults.bank", "users.shop"] {
            watcher.subscribe_service(service).unwrap();
        }
        for contract in ["bank.Vault", "bank.Vaults", "shop.Users"] {
            watcher.subscribe_contract(contract).unwrap();
        }
    };
    ask(&mut watcher);
    told.read_all(&mut watcher, &mut registry);
    registry.announce(of_contracts("vault.bank", "v2", 3, &["bank.Vault"]), now).unwrap();
    told.read_all(&mut watcher, &mut registry);
    assert_eq!(told.services.keys().collect::<Vec<_>>(), ["users.shop"]);
    assert_eq!(told.owners.keys().collect::<Vec<_>>(), ["shop.Users"]);
    assert_eq!(told.not_found.len(), 4);
    let text = told.not_found.join("\n");
    assert!(!text.contains(" vault.bank ") && !text.contains(" bank.Vault "), "no hint names them: {text}");
    let mut all = Watcher::new(Visibility::All.of(&name("orders.shop")));
    ask(&mut all);
    let mut told = Told::default();
    told.read_all(&mut all, &mut registry);
    assert_eq!((told.services.len(), told.owners.len(), told.not_found.len()), (2, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn hints_are_limited_per_second() {
    let mut registry = Registry::new(1, Instant::now());
    registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap();
    let mut watcher = Watcher::default();
    let hints = |watcher: &mut Watcher| {
        let asked = 2 * limits::HINTS_PER_SECOND;
        for _ in 0..asked {
            watcher.subscribe_service("usrs.shop").unwrap();
            let what = watcher.next(&registry).and_then(|told| told.what);
            assert!(matches!(what, Some(What::NotFound(_))));
        }
        let told = |watcher: &mut Watcher| {
            watcher.subscribe_service("usrs.shop").unwrap();
            let what = watcher.next(&registry).and_then(|told| told.what);
            matches!(what, Some(What::NotFound(not_found)) if !not_found.closest.is_empty())
        };
        told(watcher)
    };
    assert!(!hints(&mut watcher));
    watcher.allow_hints();
    watcher.subscribe_service("usrs.shop").unwrap();
    let told = watcher.next(&registry).and_then(|told| told.what);
    assert!(matches!(told, Some(What::NotFound(not_found)) if not_found.closest == "users.shop"));
}

/// An incomplete snapshot removes nothing, so a removal is sent as a change.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_leaves_before_settling_is_reported_as_removed() {
    let mut registry = Registry::new(1, Instant::now());
    let at = |id: &str, port: u16, address: &str| Announcement {
        addresses: BTreeSet::from([address.to_owned()]),
        ..announcement("users.shop", id, port)
    };
    registry.announce(at("a", 1, "10.0.0.1:80"), Instant::now()).unwrap();
    let leaving = registry.announce(at("b", 2, "10.0.0.2:80"), Instant::now()).unwrap().session;
    let mut watcher = Watcher::default();
    watcher.subscribe_service("users.shop").unwrap();
    Told::default().read_all(&mut watcher, &mut registry);
    assert!(registry.deregister(&leaving, Instant::now()));
    for event in registry.take_events() {
        watcher.observe(&event);
    }
    let told: Vec<_> = std::iter::from_fn(|| watcher.next(&registry)).filter_map(|answer| answer.what).collect();
    let [What::Change(change), What::Snapshot(snapshot)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(change.removed_ids, ["b"]);
    assert_eq!(snapshot.addresses, ["10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_complete_before_settling_and_all_is_sent_again_after_it() {
    let mut registry = Registry::new(1, Instant::now());
    registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap();
    let (mut watcher, mut told) = (Watcher::default(), Told::default());
    watcher.subscribe_service("users.shop").unwrap();
    watcher.subscribe_service("usrs.shop").unwrap();
    watcher.subscribe_contract("shop.Users").unwrap();
    told.read_all(&mut watcher, &mut registry);
    assert!(!told.services["users.shop"].complete);
    let early = [r#"Service("usrs.shop") users.shop false"#, r#"Contract("shop.Users")  false"#];
    assert_eq!(told.not_found, early);
    pass(&mut registry, limits::SETTLING_TIME - Duration::from_millis(1)).await;
    told.read_all(&mut watcher, &mut registry);
    assert!(!told.services["users.shop"].complete);
    told.not_found.clear();
    pass(&mut registry, Duration::from_millis(1)).await;
    told.read_all(&mut watcher, &mut registry);
    assert!(told.services["users.shop"].complete);
    told.not_found.sort();
    assert_eq!(told.not_found, [r#"Contract("shop.Users")  true"#, r#"Service("usrs.shop") users.shop true"#]);
}

#[tokio::test(start_paused = true)]
async fn it_settles_as_soon_as_all_known_services_are_there() {
    let now = Instant::now();
    let mesh = BTreeMap::from([(name("users.shop"), 2), (name("auth.shop"), 1)]);
    let mut registry = Registry::new(1, now);
    registry.await_all(mesh);
    let (mut watcher, mut told) = (Watcher::default(), Told::default());
    watcher.subscribe_service("usrs.shop").unwrap();
    let mut join = |service: &str, id: &str, port: u16| {
        registry.announce(announcement(service, id, port), now).unwrap();
        told.read_all(&mut watcher, &mut registry);
        registry.is_settled()
    };
    assert!(!join("users.shop", "a", 1));
    assert!(!join("users.shop", "a", 1), "the same endpoint again does not count twice");
    assert!(!join("auth.shop", "b", 2));
    assert!(!join("others.shop", "c", 3), "it is not awaited");
    assert!(join("users.shop", "d", 4));
    assert_eq!(told.not_found.last().unwrap(), r#"Service("usrs.shop") users.shop true"#, "watchers are told at once");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_of_a_missing_name_is_told_when_it_appears_and_when_it_moves() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let (mut watcher, mut told) = (Watcher::default(), Told::default());
    watcher.subscribe_service("orders.shop").unwrap();
    watcher.subscribe_contract("shop.Users").unwrap();
    watcher.subscribe_service("not a name").unwrap();
    told.read_all(&mut watcher, &mut registry);
    assert_eq!(told.not_found.len(), 3);
    registry.announce(announcement("orders.shop", "o", 1), now).unwrap();
    let users = registry.announce(of_contracts("users.shop", "u", 2, &["shop.Users"]), now).unwrap().session;
    told.read_all(&mut watcher, &mut registry);
    assert_eq!(told.services["orders.shop"].endpoints.len(), 1);
    assert_eq!(told.services["users.shop"].endpoints.len(), 1);
    assert_eq!(told.owners["shop.Users"], "users.shop");
    registry.deregister(&users, now);
    registry.announce(of_contracts("people.shop", "p", 3, &["shop.Users"]), now).unwrap();
    registry.release("shop.Users", now);
    told.read_all(&mut watcher, &mut registry);
    assert_eq!(told.owners["shop.Users"], "people.shop");
    assert_eq!(told.services["people.shop"].endpoints.len(), 1);
    // Changes of a service that is no longer followed are not sent.
    watcher.unsubscribe_service("people.shop");
    registry.announce(of_contracts("people.shop", "p2", 4, &["shop.Users"]), now).unwrap();
    told.read_all(&mut watcher, &mut registry);
    assert_eq!(told.services["people.shop"].endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_does_not_read_gets_one_snapshot_instead_of_every_change() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let session = registry.announce(announcement("users.shop", "a", 1), now).unwrap().session;
    let (mut watcher, mut told) = (Watcher::default(), Told::default());
    watcher.subscribe_service("users.shop").unwrap();
    told.read_all(&mut watcher, &mut registry);
    for turn in 0..=limits::WATCH_QUEUE {
        let health = if turn % 2 == 0 { Health::Down } else { Health::Up };
        registry.heartbeat(&session, health, now + limits::HEALTH_PAUSE * turn as u32).unwrap();
    }
    for event in registry.take_events() {
        watcher.observe(&event);
    }
    let answer = watcher.next(&registry).unwrap();
    assert!(matches!(answer.what, Some(What::Snapshot(_))));
    told.take(answer);
    assert!(watcher.next(&registry).is_none());
    assert_eq!(told.services["users.shop"].endpoints[0].health(), Health::Down);
}

#[test]
fn a_watcher_follows_a_limited_number_of_names() {
    let mut watcher = Watcher::default();
    for number in 0..limits::SERVICES_WATCHED {
        watcher.subscribe_service(&format!("s{number}.shop")).unwrap();
    }
    assert!(watcher.subscribe_service("users.shop").is_err());
    assert!(watcher.subscribe_contract("shop.Users").is_err());
    assert!(watcher.subscribe_service("s0.shop").is_ok());
    watcher.unsubscribe_service("s0.shop");
    assert!(watcher.subscribe_contract("shop.Users").is_ok());
}

#[derive(Debug, Clone)]
enum Step {
    Announce { service: usize, endpoint: u16, port: u16, contract: usize },
    Heartbeat { session: usize, health: Health },
    Break { session: usize },
    Deregister { session: usize },
    Pass { seconds: u64 },
    Subscribe { service: usize },
    SubscribeContract { contract: usize },
    Unsubscribe { service: usize },
    Read { answers: usize },
}

const SERVICES: [&str; 3] = ["users.shop", "orders.shop", "auth.shop"];
const CONTRACTS: [&str; 3] = ["shop.Users", "shop.Orders", "shop.Auth"];

fn step() -> impl Strategy<Value = Step> {
    let health = prop_oneof![Just(Health::Up), Just(Health::Down), Just(Health::Draining)];
    prop_oneof![
        4 => (0..3usize, 0..4u16, 0..6u16, 0..3usize).prop_map(|(service, endpoint, port, contract)| {
            Step::Announce { service, endpoint, port, contract }
        }),
        6 => (any::<usize>(), health).prop_map(|(session, health)| Step::Heartbeat { session, health }),
        2 => any::<usize>().prop_map(|session| Step::Break { session }),
        1 => any::<usize>().prop_map(|session| Step::Deregister { session }),
        2 => prop_oneof![1..10u64, 80..100u64, Just(3_600u64)].prop_map(|seconds| Step::Pass { seconds }),
        2 => (0..3usize).prop_map(|service| Step::Subscribe { service }),
        1 => (0..3usize).prop_map(|contract| Step::SubscribeContract { contract }),
        1 => (0..3usize).prop_map(|service| Step::Unsubscribe { service }),
        3 => (0..5usize).prop_map(|answers| Step::Read { answers }),
    ]
}

proptest! {
    /// After any sequence of events, and however slowly a watcher reads, the snapshots and changes that it received
    /// add up to the registry's own state.
    #[test]
    fn a_watcher_that_has_read_everything_agrees_with_the_registry(steps in prop::collection::vec(step(), 1..120)) {
        let mut now = Instant::now();
        let mut registry = Registry::new(1, now);
        let (mut watcher, mut told) = (Watcher::default(), Told::default());
        let mut sessions: Vec<Session> = Vec::new();
        let mut followed = BTreeSet::new();
        for step in steps {
            let session = |number: usize| sessions.get(number % sessions.len().max(1)).cloned();
            match step {
                Step::Announce { service, endpoint, port, contract } => {
                    let (service, id) = (SERVICES[service], format!("{service}-{endpoint}"));
                    let announcement = of_contracts(service, &id, port, &[CONTRACTS[contract]]);
                    sessions.push(registry.announce(announcement, now).unwrap().session);
                }
                Step::Heartbeat { session: s, health } => {
                    let _ = session(s).map(|s| registry.heartbeat(&s, health, now));
                }
                Step::Break { session: s } => {
                    session(s).map(|s| registry.stream_broken(&s, Instant::now()));
                }
                Step::Deregister { session: s } => {
                    session(s).map(|s| registry.deregister(&s, now));
                }
                Step::Pass { seconds } => {
                    now += Duration::from_secs(seconds);
                    registry.tick(now);
                }
                Step::Subscribe { service } => {
                    watcher.subscribe_service(SERVICES[service]).unwrap();
                    followed.insert(SERVICES[service]);
                }
                Step::SubscribeContract { contract } => watcher.subscribe_contract(CONTRACTS[contract]).unwrap(),
                Step::Unsubscribe { service } => {
                    watcher.unsubscribe_service(SERVICES[service]);
                    followed.remove(SERVICES[service]);
                    told.services.remove(SERVICES[service]);
                }
                Step::Read { answers } => {
                    for answer in (0..answers).map_while(|_| watcher.next(&registry)) {
                        told.take(answer);
                    }
                }
            }
            for event in registry.take_events() {
                watcher.observe(&event);
            }
        }
        told.read_all(&mut watcher, &mut registry);
        for service in followed.into_iter().filter(|service| watcher.follows(service)) {
            if let Some(truth) = registry.snapshot(&name(service)) {
                let told = &told.services[service];
                prop_assert_eq!(&told.endpoints, &truth.endpoints);
                prop_assert_eq!(&told.policy, &truth.policy);
                prop_assert_eq!(told.complete, truth.complete);
            }
        }
        for (contract, owner) in &told.owners {
            let is_followed = told.services.contains_key(owner);
            if let Some(truth) = registry.owner(contract).filter(|_| is_followed) {
                // Unless the contract was unsubscribed together with its service.
                let is_asked = watcher.asks_for(contract);
                prop_assert!(!is_asked || owner == truth.as_str());
            }
        }
    }
}

/// If it were, a caller in another namespace would send bytes to it in plain text.
#[tokio::test(start_paused = true)]
async fn an_address_out_of_sight_is_not_reported_as_outside_the_mesh() {
    let mut registry = Registry::new(1, Instant::now());
    let announce =
        Announcement { addresses: BTreeSet::from(["10.0.0.1:80".to_owned()]), ..announcement("users.people", "a", 1) };
    registry.announce(announce, Instant::now()).unwrap();
    for _ in 0..2 * limits::SETTLING_TIME.as_secs() {
        pass(&mut registry, Duration::from_secs(1)).await;
    }
    let mut watcher = Watcher::new(Visibility::Namespace.of(&name("orders.shop")));
    for (address, is_outside) in [("10.0.0.1:80", false), ("10.0.0.1:81", true)] {
        watcher.subscribe_contract(address).unwrap();
        let said = watcher.next(&registry).and_then(|said| said.what);
        assert!(matches!(said, Some(What::NotFound(said)) if said.complete == is_outside), "{address}");
    }
}
