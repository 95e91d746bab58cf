//! The ownership of announced contracts and addresses.

use super::*;
use crate::directory::watcher::Watcher;

#[tokio::test(start_paused = true)]
async fn an_address_belongs_to_the_first_service_that_claimed_it_and_is_not_listed_as_a_contract() {
    let mut registry = Registry::new(1, Instant::now());
    let mut watcher = Watcher::default();
    watcher.subscribe_contract("10.96.0.1:80").unwrap();
    let at = |service: &str, id: &str, port: u16| Announcement {
        addresses: BTreeSet::from(["10.96.0.1:80".to_owned()]),
        allowed: BTreeSet::from(["10.96.0.1:80".to_owned()]),
        ..announcement(service, id, port)
    };
    let first = registry.announce(at("users.shop", "a", 1), Instant::now()).unwrap();
    let second = registry.announce(at("orders.shop", "b", 2), Instant::now()).unwrap();
    assert_eq!(second.denied.contested, [("10.96.0.1:80".to_owned(), name("users.shop"))]);
    assert_eq!(registry.snapshot(&name("orders.shop")).unwrap().addresses, [""; 0], "the address is not its own");
    assert_eq!(registry.owner("10.96.0.1:80"), Some(&name("users.shop")));
    assert_eq!(registry.contract_names().count(), 0);
    assert_eq!(registry.snapshot(&name("users.shop")).unwrap().addresses, ["10.96.0.1:80"]);
    for event in registry.take_events() {
        watcher.observe(&event);
    }
    let told = std::iter::from_fn(|| watcher.next(&registry)).filter_map(|told| told.what);
    assert!(told.into_iter().any(|what| matches!(what, What::Owner(owner) if owner.service == "users.shop")));
    assert!(registry.deregister(&first.session, Instant::now()));
    assert_eq!(registry.owner("10.96.0.1:80"), Some(&name("users.shop")), "another claimant does not inherit it");

    // There are any number of addresses outside the mesh, so after settling one without an owner is not followed.
    pass(&mut registry, limits::SETTLING_TIME).await;
    watcher.subscribe_contract("192.0.2.1:443").unwrap();
    assert!(std::iter::from_fn(|| watcher.next(&registry)).count() > 0);
    assert!(!watcher.asks_for("192.0.2.1:443") && watcher.asks_for("10.96.0.1:80"));
}

#[tokio::test(start_paused = true)]
async fn a_contract_stays_with_its_first_owner_even_if_that_has_no_endpoint() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    let users = Some(name("users.shop"));
    let first = announce(&mut registry, "users.shop", 1);
    assert!(first.denied.contested.is_empty());
    let impostor = announce(&mut registry, "impostor.shop", 2);
    assert_eq!(impostor.denied.contested, [("shop.Users".to_owned(), name("users.shop"))]);
    assert_eq!(impostor.denied.listed, impostor.denied.contested);
    let again = announce(&mut registry, "impostor.shop", 2);
    assert!(again.denied.listed.is_empty(), "a contest is logged once");
    assert_eq!(again.denied.contested.len(), 1);
    registry.stream_broken(&first.session, now);
    assert_eq!(registry.owner("shop.Users"), users.as_ref());
    registry.take_events();
    registry.deregister(&first.session, now);
    assert_eq!(registry.owner("shop.Users"), users.as_ref(), "its last endpoint has left");
    announce(&mut registry, "impostor.shop", 3);
    assert_eq!(registry.owner("shop.Users"), users.as_ref());
    // An hour later the service is forgotten, but its contract is still pinned to it.
    pass(&mut registry, limits::SERVICE_MEMORY).await;
    let now = Instant::now();
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    announce(&mut registry, "impostor.shop", 4);
    assert_eq!(registry.owner("shop.Users"), None);
    announce(&mut registry, "users.shop", 1);
    assert_eq!(registry.owner("shop.Users"), users.as_ref());
    assert_eq!(registry.claims().refused(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_released_claim_goes_to_a_waiting_claimant_or_else_to_the_next_one() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    announce(&mut registry, "users.shop", 1);
    announce(&mut registry, "people.shop", 2);
    registry.take_events();
    assert_eq!(registry.release("shop.Users", now), Some(name("users.shop")));
    assert_eq!(registry.owner("shop.Users"), Some(&name("people.shop")), "it is waiting for the claim");
    assert!(registry.take_events().iter().any(|e| matches!(e, Event::Contract(c) if c == "shop.Users")));
    let denied = announce(&mut registry, "users.shop", 1).denied;
    assert_eq!(denied.contested, [("shop.Users".to_owned(), name("people.shop"))]);
    assert_eq!(registry.release("shop.Orders", now), None);
    // No other service claims this one: its owner keeps it until another announces it.
    registry.announce(of_contracts("orders.shop", "o", 3, &["shop.Orders"]), now).unwrap();
    registry.release("shop.Orders", now);
    assert_eq!(registry.owner("shop.Orders"), Some(&name("orders.shop")));
    registry.announce(of_contracts("next.shop", "n", 4, &["shop.Orders"]), now).unwrap();
    assert_eq!(registry.owner("shop.Orders"), Some(&name("next.shop")));
}

#[tokio::test(start_paused = true)]
async fn an_address_on_a_host_belongs_to_its_endpoint_and_is_freed_with_it() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let at = |service: &str, port: u16, address: &str| Announcement {
        addresses: BTreeSet::from([address.to_owned()]),
        allowed: BTreeSet::from([address.to_owned()]),
        ..announcement(service, service, port)
    };
    // The endpoints are at 10.0.0.1; a service elsewhere was first to claim an address there.
    let mut elsewhere = at("greedy.shop", 9, "10.0.0.1:80");
    elsewhere.endpoint.address = "10.0.0.9:9".into();
    registry.announce(elsewhere.clone(), now).unwrap();
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("greedy.shop")));
    let users = registry.announce(at("users.shop", 1, "10.0.0.1:80"), now).unwrap();
    assert!(users.denied.contested.is_empty());
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("users.shop")), "its endpoint is on that host");
    assert_eq!(registry.announce(elsewhere, now).unwrap().denied.contested.len(), 1);
    let neighbour = registry.announce(at("orders.shop", 2, "10.0.0.1:80"), now).unwrap();
    assert_eq!(neighbour.denied.contested, [("10.0.0.1:80".to_owned(), name("users.shop"))]);
    registry.stream_broken(&users.session, now);
    registry.announce(at("orders.shop", 2, "10.0.0.1:80"), now).unwrap();
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("users.shop")), "its stream broke, but it may come back");
    // Another service now runs on that host.
    registry.deregister(&users.session, now);
    assert!(registry.announce(at("orders.shop", 2, "10.0.0.1:80"), now).unwrap().denied.contested.is_empty());
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("orders.shop")));
    assert_eq!(registry.claims().pins(), 1, "addresses on the endpoints' own hosts are not pinned");
}

#[tokio::test(start_paused = true)]
async fn the_claims_of_one_service_are_bounded() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let many =
        |from: usize, count: usize| -> BTreeSet<String> { (from..from + count).map(|n| format!("t.S{n}")).collect() };
    let announce = |id: &str, port, contracts| Announcement { contracts, ..announcement("users.shop", id, port) };
    let most = limits::CONTRACTS_PER_SERVICE;
    registry.announce(announce("a", 1, many(0, most - 1)), now).unwrap();
    registry.announce(announce("b", 2, many(1, most - 1)), now).unwrap();
    let refused = registry.announce(announce("c", 3, many(2, most - 1)), now).unwrap_err();
    assert_eq!(refused, Refusal::Contracts { service: name("users.shop") });
    assert_eq!(healths(&registry, "users.shop"), [up("a"), up("b")]);

    let mut addresses = |port: u16| {
        let of_one = (0..limits::ADDRESSES_PER_ENDPOINT).map(|n| format!("10.{}.{}.{n}:80", port / 256, port % 256));
        registry.announce(
            Announcement { addresses: of_one.collect(), ..announcement("web.shop", &port.to_string(), port) },
            now,
        )
    };
    let refused = (1..1_000).find_map(|port| addresses(port).err()).expect("a bound");
    assert_eq!(refused, Refusal::Addresses { service: name("web.shop") });
}

/// If its address counted as outside the mesh, calls to it would leave their sidecars in plain text.
#[tokio::test(start_paused = true)]
async fn the_address_of_an_endpoint_that_vanished_stays_with_its_service() {
    let mut registry = Registry::new(1, Instant::now());
    let at = |service: &str, id: &str, port: u16, address: &str| Announcement {
        addresses: BTreeSet::from([address.to_owned()]),
        ..announcement(service, id, port)
    };
    let users = name("users.shop");
    let lost = registry.announce(at("users.shop", "lost", 1, "10.0.0.1:80"), Instant::now()).unwrap().session;
    let polite = registry.announce(at("users.shop", "polite", 2, "10.0.0.1:81"), Instant::now()).unwrap().session;
    let stays = registry.announce(announcement("users.shop", "stays", 3), Instant::now()).unwrap().session;
    // An address that was refused to a service does not become its own afterwards.
    let greedy = registry.announce(at("greedy.shop", "a", 4, "192.0.2.1:443"), Instant::now()).unwrap();
    assert_eq!(greedy.denied.unlisted, ["192.0.2.1:443"]);
    let other = registry.announce(announcement("greedy.shop", "b", 5), Instant::now()).unwrap().session;
    registry.stream_broken(&lost, Instant::now());
    registry.stream_broken(&greedy.session, Instant::now());
    registry.deregister(&polite, Instant::now());
    let mut watcher = Watcher::default();
    for _ in 0..100 {
        pass(&mut registry, Duration::from_secs(1)).await;
        for session in [&stays, &other] {
            registry.heartbeat(session, Health::Up, Instant::now()).unwrap();
        }
    }
    assert_eq!(healths(&registry, "users.shop"), [up("stays")], "the other was evicted");
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&users));
    assert_eq!(registry.snapshot(&users).unwrap().addresses, ["10.0.0.1:80"]);
    assert_eq!((registry.owner("10.0.0.1:81"), registry.owner("192.0.2.1:443")), (None, None));

    // The same holds for a service without any endpoint.
    registry.stream_broken(&stays, Instant::now());
    for _ in 0..3 {
        pass(&mut registry, limits::SERVICE_MEMORY).await;
    }
    registry.take_events();
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&users));
    watcher.subscribe_contract("10.0.0.1:80").unwrap();
    let told: Vec<WatchResponse> = std::iter::from_fn(|| watcher.next(&registry)).collect();
    let is_known =
        |response: &WatchResponse| matches!(&response.what, Some(What::Snapshot(s)) if s.endpoints.is_empty());
    assert!(told.iter().any(is_known), "{told:?}");
    assert!(!told.iter().any(|response| matches!(response.what, Some(What::NotFound(_)))), "{told:?}");

    // Another service that announces the address gets it. After 24 h without an endpoint nobody has it.
    let heir = registry.announce(at("heir.shop", "a", 9, "10.0.0.1:80"), Instant::now()).unwrap();
    assert!(heir.denied.contested.is_empty() && heir.denied.unlisted.is_empty());
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("heir.shop")));
    registry.stream_broken(&heir.session, Instant::now());
    for _ in 0..limits::ADDRESS_MEMORY.as_secs() / 3600 + 5 {
        pass(&mut registry, limits::SERVICE_MEMORY).await;
    }
    assert_eq!(registry.owner("10.0.0.1:80"), None);
    assert!(registry.snapshot(&name("heir.shop")).is_none());
}

/// Whether or not the service has endpoints.
#[tokio::test(start_paused = true)]
async fn an_address_that_is_listed_or_pinned_is_never_outside_the_mesh() {
    let users = name("users.shop");
    let listed = BTreeMap::from([("10.96.0.1:80".to_owned(), users.clone()), ("shop.Users".to_owned(), users.clone())]);
    let claims = Claims::new(listed, Default::default(), BTreeMap::new());
    let registry = Registry::new(1, Instant::now()).with_claims(claims);
    assert_eq!(registry.owner("10.96.0.1:80"), Some(&users));
    assert!(registry.snapshot(&users).unwrap().endpoints.is_empty());
    assert_eq!(registry.owner("shop.Users"), None, "no endpoint implements the contract");
    assert!(registry.snapshot(&name("orders.shop")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_contract_moves_to_the_service_that_its_namespace_chooses() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    let chosen = |service: &str| BTreeMap::from([("shop.Users".to_owned(), name(service))]);
    let is_told = |registry: &mut Registry| {
        registry.take_events().iter().filter(|event| matches!(event, Event::Contract(c) if c == "shop.Users")).count()
    };
    announce(&mut registry, "first.shop", 1);
    announce(&mut registry, "users.shop", 2);
    announce(&mut registry, "thief.other", 3);
    registry.take_events();
    assert!(registry.choose("other", chosen("thief.other"), now).is_empty());
    assert_eq!((registry.owner("shop.Users").cloned(), is_told(&mut registry)), (Some(name("first.shop")), 0));
    assert_eq!(registry.choose("shop", chosen("users.shop"), now).len(), 1);
    assert_eq!((registry.owner("shop.Users").cloned(), is_told(&mut registry)), (Some(name("users.shop")), 1));
    let contested: Vec<ServiceName> = registry.claims().contests().map(|contest| contest.claimant).collect();
    assert_eq!(contested, [name("first.shop"), name("thief.other")]);
    assert!(registry.choose("shop", chosen("users.shop"), now).is_empty(), "once more changes nothing");
    // A Service that has not announced it yet: calls don't go to another one meanwhile.
    registry.choose("shop", chosen("later.shop"), now);
    assert_eq!((registry.owner("shop.Users").cloned(), is_told(&mut registry)), (None, 1));
    announce(&mut registry, "later.shop", 4);
    assert_eq!(registry.owner("shop.Users"), Some(&name("later.shop")));
    // And without the annotation it has it still.
    registry.choose("shop", BTreeMap::new(), now);
    assert_eq!(announce(&mut registry, "users.shop", 2).denied.contested.len(), 1);
    assert_eq!(registry.owner("shop.Users"), Some(&name("later.shop")));
}

#[tokio::test(start_paused = true)]
async fn the_mesh_s_owner_takes_a_contract_from_another_namespace() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    announce(&mut registry, "thief.other", 1);
    announce(&mut registry, "users.shop", 2);
    let owners = BTreeMap::from([("shop.Users".to_owned(), name("users.shop"))]);
    assert_eq!(registry.own(&owners, now), owners);
    assert_eq!(registry.owner("shop.Users"), Some(&name("users.shop")));
    let contested: Vec<ServiceName> = registry.claims().contests().map(|contest| contest.claimant).collect();
    assert_eq!(contested, [name("thief.other")]);
    assert!(registry.own(&BTreeMap::new(), now).is_empty());
    assert_eq!(announce(&mut registry, "thief.other", 1).denied.contested.len(), 1, "it does not go back");
    assert_eq!(registry.owner("shop.Users"), Some(&name("users.shop")));
}

/// And not to another namespace's that comes first by name and contests it, or to one that is gone, too.
#[tokio::test(start_paused = true)]
async fn the_contract_of_a_service_that_is_gone_stays_in_its_namespace() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let mut port = 0;
    let mut announce = |registry: &mut Registry, service: &str| {
        port += 1;
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    announce(&mut registry, "users.shop");
    for other in ["0.evil", "a.shop", "b.shop", "c.shop", "d.shop"] {
        announce(&mut registry, other);
    }
    registry.choose("shop", BTreeMap::from([("shop.Users".to_owned(), name("users.shop"))]), now);
    // The Service that was chosen is gone, and with it what it was chosen for.
    registry.choose("shop", BTreeMap::new(), now);
    let gone = |service: &ServiceName| [name("users.shop"), name("a.shop")].contains(service);
    assert!(registry.release_all_of(gone, now).keys().eq(["shop.Users"]));
    assert_eq!(registry.owner("shop.Users"), Some(&name("b.shop")));
    // The last of a namespace leaves it to whoever waits for it.
    registry.release_all_of(|service| service.namespace() == "shop", now);
    assert_eq!(registry.owner("shop.Users"), Some(&name("0.evil")));
}

#[tokio::test(start_paused = true)]
async fn a_contract_that_another_claimant_frees_is_the_chosen_service_s_at_once() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    announce(&mut registry, "first.other", 1);
    announce(&mut registry, "a.shop", 2);
    announce(&mut registry, "users.shop", 3);
    registry.choose("shop", BTreeMap::from([("shop.Users".to_owned(), name("users.shop"))]), now);
    registry.take_events();
    // The first claimant by name is not the one that its namespace has chosen.
    registry.release("shop.Users", now);
    assert_eq!(registry.owner("shop.Users"), Some(&name("users.shop")), "no further announcement is needed");
    assert!(registry.take_events().iter().any(|e| matches!(e, Event::Contract(c) if c == "shop.Users")));
    let contested: Vec<ServiceName> = registry.claims().contests().map(|contest| contest.claimant).collect();
    assert_eq!(contested, [name("a.shop"), name("first.other")]);
}

/// What is said before the Service is there holds as well as what is said later.
#[tokio::test(start_paused = true)]
async fn what_the_mesh_s_owner_said_stays_when_it_is_no_longer_said() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    let owners = BTreeMap::from([("shop.Users".to_owned(), name("users.shop"))]);
    registry.own(&owners, now);
    registry.release_all_of(|service| *service == name("users.shop"), now);
    assert_eq!(announce(&mut registry, "thief.other", 1).denied.contested.len(), 1);
    announce(&mut registry, "users.shop", 2);
    registry.own(&BTreeMap::new(), now);
    assert_eq!(announce(&mut registry, "thief.other", 1).denied.contested.len(), 1);
    assert_eq!(registry.owner("shop.Users"), Some(&name("users.shop")));
    // Once it has announced and is released, only its holder is left to say whose it is.
    registry.own(&owners, now);
    registry.claims_mut().release("shop.Users");
    registry.own(&BTreeMap::new(), now);
    assert_eq!(announce(&mut registry, "thief.other", 1).denied.contested.len(), 1);
}
