use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;
use tokio::time::advance;
use weft_contracts::weft::{
    discovery::v1::{WatchResponse, watch_response::What},
    policy::v1::{Contract, Method},
};

use super::*;
use crate::{claims::visibility::Visibility, directory::watcher::Watcher};

fn name(service: &str) -> ServiceName {
    ServiceName::parse(service).unwrap()
}

fn endpoint(id: &str, port: u16) -> Endpoint {
    Endpoint {
        id: id.into(),
        address: format!("10.0.0.1:{port}"),
        spiffe_id: String::new(),
        health: Health::Up.into(),
        silent: false,
    }
}

fn announcement(service: &str, id: &str, port: u16) -> Announcement {
    Announcement {
        service: name(service),
        endpoint: endpoint(id, port),
        protocol: Protocol::Http2,
        contracts: BTreeSet::new(),
        addresses: BTreeSet::new(),
        allowed: BTreeSet::new(),
        descriptors: None,
        policy: None,
    }
}

fn of_contracts(service: &str, id: &str, port: u16, contracts: &[&str]) -> Announcement {
    let contracts = contracts.iter().map(|c| (*c).to_owned()).collect();
    Announcement { contracts, ..announcement(service, id, port) }
}

#[tokio::test(start_paused = true)]
async fn an_address_belongs_to_the_service_that_said_so_first_and_is_no_contract() {
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
    assert_eq!(registry.snapshot(&name("orders.shop")).unwrap().addresses, [""; 0], "it is not called there");
    assert_eq!(registry.owner("10.96.0.1:80"), Some(&name("users.shop")));
    assert_eq!(registry.contract_names().count(), 0);
    assert_eq!(registry.snapshot(&name("users.shop")).unwrap().addresses, ["10.96.0.1:80"]);
    for event in registry.take_events() {
        watcher.observe(&event);
    }
    let told = std::iter::from_fn(|| watcher.next(&registry)).filter_map(|told| told.what);
    assert!(told.into_iter().any(|what| matches!(what, What::Owner(owner) if owner.service == "users.shop")));
    assert!(registry.deregister(&first.session, Instant::now()));
    assert_eq!(registry.owner("10.96.0.1:80"), Some(&name("users.shop")), "it does not go to whoever is there");

    // Of addresses outside the mesh there is no end: once it is sure that nobody is there, they are forgotten.
    pass(&mut registry, limits::SETTLING_TIME).await;
    watcher.subscribe_contract("192.0.2.1:443").unwrap();
    assert!(std::iter::from_fn(|| watcher.next(&registry)).count() > 0);
    assert!(!watcher.asks_for("192.0.2.1:443") && watcher.asks_for("10.96.0.1:80"));
}

fn healths(registry: &Registry, service: &str) -> Vec<(String, Health)> {
    let service = registry.snapshot(&name(service)).unwrap();
    service.endpoints.iter().map(|e| (e.id.clone(), e.health())).collect()
}

fn up(id: &str) -> (String, Health) {
    (id.to_owned(), Health::Up)
}

/// Time passes, and the registry looks at its clock each second.
async fn pass(registry: &mut Registry, time: Duration) -> Vec<Evicted> {
    let end = Instant::now() + time;
    let mut evicted = Vec::new();
    while Instant::now() < end {
        advance((end - Instant::now()).min(Duration::from_secs(1))).await;
        evicted.extend(registry.tick(Instant::now()));
    }
    evicted
}

fn silent(registry: &Registry, service: &str) -> Vec<String> {
    let service = registry.snapshot(&name(service)).unwrap();
    service.endpoints.into_iter().filter(|e| e.silent).map(|e| e.id).collect()
}

fn down(id: &str) -> (String, Health) {
    (id.to_owned(), Health::Down)
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_says_nothing_is_gone_after_90_s_and_not_before() {
    let mut registry = Registry::new(1, Instant::now());
    let silent = registry.announce(announcement("users.shop", "silent", 1), Instant::now()).unwrap().session;
    let alive = registry.announce(announcement("users.shop", "alive", 2), Instant::now()).unwrap().session;
    for _ in 0..17 {
        assert!(pass(&mut registry, Duration::from_secs(5)).await.is_empty());
        registry.heartbeat(&alive, Health::Up, Instant::now()).unwrap();
    }
    assert!(pass(&mut registry, Duration::from_millis(4_999)).await.is_empty());
    let evicted = pass(&mut registry, Duration::from_millis(1)).await;
    assert_eq!(evicted.iter().map(|e| e.endpoint.as_str()).collect::<Vec<_>>(), ["silent"]);
    assert_eq!(healths(&registry, "users.shop"), [up("alive")]);
    assert_eq!(registry.heartbeat(&silent, Health::Up, Instant::now()), Err(SessionOver));
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_makes_its_endpoint_silent_at_once_and_evicts_it_90_s_after_it_was_last_heard() {
    let mut registry = Registry::new(1, Instant::now());
    let session = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    let other = registry.announce(announcement("users.shop", "b", 2), Instant::now()).unwrap().session;
    pass(&mut registry, Duration::from_secs(30)).await;
    registry.heartbeat(&session, Health::Up, Instant::now()).unwrap();
    pass(&mut registry, Duration::from_secs(10)).await;
    registry.take_events();
    assert!(registry.stream_broken(&session, Instant::now()));
    assert_eq!(healths(&registry, "users.shop"), [down("a"), up("b")]);
    assert_eq!(silent(&registry, "users.shop"), ["a"]);
    assert!(matches!(&registry.take_events()[..], [Event::Endpoints(..)]));
    registry.heartbeat(&other, Health::Up, Instant::now()).unwrap();
    assert!(pass(&mut registry, Duration::from_secs(79)).await.is_empty());
    assert_eq!(pass(&mut registry, Duration::from_secs(1)).await.len(), 1);
    assert_eq!(healths(&registry, "users.shop"), [up("b")]);
}

#[tokio::test(start_paused = true)]
async fn the_last_endpoints_of_a_service_are_kept_for_its_callers_to_judge() {
    let mut registry = Registry::new(1, Instant::now());
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.announce(announcement("users.shop", "b", 2), Instant::now()).unwrap();
    registry.stream_broken(&a, Instant::now());
    assert!(pass(&mut registry, limits::SERVICE_MEMORY - Duration::from_secs(1)).await.is_empty());
    assert_eq!(pass(&mut registry, Duration::from_secs(1)).await.len(), 2);
    // One that is heard of takes their place.
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.stream_broken(&a, Instant::now());
    assert!(pass(&mut registry, limits::ENDPOINT_EXPIRY).await.is_empty());
    registry.announce(announcement("users.shop", "c", 3), Instant::now()).unwrap();
    assert_eq!(pass(&mut registry, Duration::from_secs(1)).await.len(), 1);
    assert_eq!(healths(&registry, "users.shop"), [up("c")]);
}

/// A member that says another thing each moment costs its watchers a message a second.
#[tokio::test(start_paused = true)]
async fn health_that_changes_often_is_told_once_a_second_and_the_last_word_counts() {
    let mut registry = Registry::new(1, Instant::now());
    let session = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.take_events();
    for _ in 0..100 {
        registry.heartbeat(&session, Health::Down, Instant::now()).unwrap();
        registry.heartbeat(&session, Health::Up, Instant::now()).unwrap();
    }
    assert_eq!(registry.take_events().len(), 1, "the first at once");
    assert_eq!(healths(&registry, "users.shop"), [down("a")]);
    pass(&mut registry, limits::HEALTH_PAUSE).await;
    assert_eq!(registry.take_events().len(), 1);
    assert_eq!(healths(&registry, "users.shop"), [up("a")]);
    // A word that was taken back in time is not told.
    registry.heartbeat(&session, Health::Down, Instant::now()).unwrap();
    registry.heartbeat(&session, Health::Up, Instant::now()).unwrap();
    pass(&mut registry, limits::HEALTH_PAUSE).await;
    assert_eq!(registry.take_events().len(), 0);
    assert_eq!(healths(&registry, "users.shop"), [up("a")]);
}

#[tokio::test(start_paused = true)]
async fn streams_that_broke_while_the_control_plane_stood_still_say_nothing() {
    let mut registry = Registry::new(1, Instant::now());
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    let b = registry.announce(announcement("users.shop", "b", 2), Instant::now()).unwrap().session;
    pass(&mut registry, limits::SETTLING_TIME).await;
    assert!(registry.is_settled());
    // Stopped for longer than silence is forgiven, and gone on: the broken streams may be met before the clock.
    advance(2 * limits::ENDPOINT_EXPIRY).await;
    assert!(registry.stream_broken(&a, Instant::now()));
    assert!(registry.tick(Instant::now()).is_empty(), "nobody is evicted for what was not heard meanwhile");
    assert!(registry.stream_broken(&b, Instant::now()));
    assert_eq!(healths(&registry, "users.shop"), [up("a"), up("b")]);
    assert!(!registry.is_settled() && !registry.snapshot(&name("users.shop")).unwrap().complete);
    registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap();
    assert!(pass(&mut registry, limits::SETTLING_TIME - Duration::from_secs(1)).await.is_empty());
    assert_eq!(healths(&registry, "users.shop"), [up("a"), up("b")]);
    pass(&mut registry, Duration::from_secs(1)).await;
    assert_eq!(healths(&registry, "users.shop"), [up("a"), down("b")], "it had time to announce itself again");
    assert_eq!(silent(&registry, "users.shop"), ["b"]);
    // From then on a broken stream counts at once.
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.stream_broken(&a, Instant::now());
    assert_eq!(silent(&registry, "users.shop"), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn the_newest_stream_of_an_endpoint_counts_and_the_end_of_the_older_means_nothing() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let older = registry.announce(announcement("users.shop", "a", 1), now).unwrap().session;
    let newer = registry.announce(announcement("users.shop", "a", 2), now).unwrap();
    assert!(newer.is_again);
    assert!(!registry.stream_broken(&older, now));
    assert_eq!(registry.heartbeat(&older, Health::Down, now), Err(SessionOver));
    assert!(!registry.deregister(&older, now));
    let service = registry.snapshot(&name("users.shop")).unwrap();
    assert_eq!(service.endpoints, [endpoint("a", 2)]);
    assert!(registry.stream_broken(&newer.session, now));
    let again = registry.announce(announcement("users.shop", "a", 2), now).unwrap().session;
    assert_eq!(healths(&registry, "users.shop"), [up("a")]);
    assert!(registry.deregister(&again, now));
    assert!(healths(&registry, "users.shop").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_id_is_a_service_s_own_and_so_is_the_address_of_its_endpoint() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    // Everybody who watches learns of ids: who takes one for itself keeps nobody out.
    let squatting = registry.announce(announcement("greedy.shop", "a", 9), now).unwrap().session;
    registry.announce(announcement("users.shop", "a", 1), now).unwrap();
    assert!(registry.deregister(&squatting, now));
    assert_eq!(healths(&registry, "users.shop"), [up("a")]);
    // A sidecar that was started again, before anyone saw that the former is gone.
    registry.announce(announcement("users.shop", "b", 1), now).unwrap();
    assert_eq!(healths(&registry, "users.shop"), [up("b")]);
}

#[tokio::test(start_paused = true)]
async fn a_service_without_endpoints_is_remembered_for_an_hour() {
    let mut registry = Registry::new(1, Instant::now());
    let announce = of_contracts("users.shop", "a", 1, &["shop.Users"]);
    let session = registry.announce(announce, Instant::now()).unwrap().session;
    registry.deregister(&session, Instant::now());
    assert_eq!(registry.owner("shop.Users"), Some(&name("users.shop")));
    pass(&mut registry, limits::SERVICE_MEMORY - Duration::from_secs(1)).await;
    assert!(registry.snapshot(&name("users.shop")).is_some());
    pass(&mut registry, Duration::from_secs(1)).await;
    assert!(registry.snapshot(&name("users.shop")).is_none());
    assert_eq!(registry.owner("shop.Users"), None);
}

#[tokio::test(start_paused = true)]
async fn a_contract_stays_its_first_owner_s_whether_or_not_that_is_there() {
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
    assert!(again.denied.listed.is_empty(), "it is logged once");
    assert_eq!(again.denied.contested.len(), 1);
    registry.stream_broken(&first.session, now);
    assert_eq!(registry.owner("shop.Users"), users.as_ref());
    registry.take_events();
    registry.deregister(&first.session, now);
    assert_eq!(registry.owner("shop.Users"), users.as_ref(), "its last endpoint has left");
    announce(&mut registry, "impostor.shop", 3);
    assert_eq!(registry.owner("shop.Users"), users.as_ref());
    // Long after, nobody remembers that there was such a service; but what was its own is not the other's.
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
async fn a_released_claim_goes_to_who_claims_it_and_else_to_the_next() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let announce = |registry: &mut Registry, service: &str, port| {
        registry.announce(of_contracts(service, service, port, &["shop.Users"]), now).unwrap()
    };
    announce(&mut registry, "users.shop", 1);
    announce(&mut registry, "people.shop", 2);
    registry.take_events();
    assert_eq!(registry.release("shop.Users", now), Some(name("users.shop")));
    assert_eq!(registry.owner("shop.Users"), Some(&name("people.shop")), "it has waited for it");
    assert!(registry.take_events().iter().any(|e| matches!(e, Event::Contract(c) if c == "shop.Users")));
    let denied = announce(&mut registry, "users.shop", 1).denied;
    assert_eq!(denied.contested, [("shop.Users".to_owned(), name("people.shop"))]);
    assert_eq!(registry.release("shop.Orders", now), None);
    // Nobody waits for this one: it stays where it is until somebody else announces it.
    registry.announce(of_contracts("orders.shop", "o", 3, &["shop.Orders"]), now).unwrap();
    registry.release("shop.Orders", now);
    assert_eq!(registry.owner("shop.Orders"), Some(&name("orders.shop")));
    registry.announce(of_contracts("next.shop", "n", 4, &["shop.Orders"]), now).unwrap();
    assert_eq!(registry.owner("shop.Orders"), Some(&name("next.shop")));
}

#[tokio::test(start_paused = true)]
async fn an_address_of_a_host_is_its_endpoint_s_and_goes_with_it() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let at = |service: &str, port: u16, address: &str| Announcement {
        addresses: BTreeSet::from([address.to_owned()]),
        allowed: BTreeSet::from([address.to_owned()]),
        ..announcement(service, service, port)
    };
    // The endpoints are at 10.0.0.1; someone elsewhere was quicker with an address there.
    let mut elsewhere = at("greedy.shop", 9, "10.0.0.1:80");
    elsewhere.endpoint.address = "10.0.0.9:9".into();
    registry.announce(elsewhere.clone(), now).unwrap();
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("greedy.shop")));
    let users = registry.announce(at("users.shop", 1, "10.0.0.1:80"), now).unwrap();
    assert!(users.denied.contested.is_empty());
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("users.shop")), "it is on that host");
    assert_eq!(registry.announce(elsewhere, now).unwrap().denied.contested.len(), 1);
    let neighbour = registry.announce(at("orders.shop", 2, "10.0.0.1:80"), now).unwrap();
    assert_eq!(neighbour.denied.contested, [("10.0.0.1:80".to_owned(), name("users.shop"))]);
    registry.stream_broken(&users.session, now);
    registry.announce(at("orders.shop", 2, "10.0.0.1:80"), now).unwrap();
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("users.shop")), "it may come back");
    // The host is another's now, with the same address.
    registry.deregister(&users.session, now);
    assert!(registry.announce(at("orders.shop", 2, "10.0.0.1:80"), now).unwrap().denied.contested.is_empty());
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&name("orders.shop")));
    assert_eq!(registry.claims().pins(), 1, "of hosts' own addresses none is pinned");
}

#[tokio::test(start_paused = true)]
async fn what_a_service_claims_in_all_is_bounded() {
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

/// The largest snapshot that there can be: what is bounded one by one fits a message together.
#[tokio::test(start_paused = true)]
async fn the_largest_snapshot_fits_a_message() {
    use prost::Message;
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let label = "x".repeat(63);
    let service = format!("{label}.{label}");
    let spiffe_id = format!("spiffe://{}/ns/{label}/sa/{label}", "d".repeat(255));
    let mut session = None;
    for number in 0..limits::ENDPOINTS_PER_SERVICE {
        let id = format!("{number:0>width$}", width = limits::ENDPOINT_ID_BYTES);
        let mut announcement = announcement(&service, &id, 1);
        announcement.endpoint.address = format!("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:{number:04x}]:65535");
        announcement.endpoint.spiffe_id.clone_from(&spiffe_id);
        let two = |n: usize| format!("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:{number:04x}]:{}", 60_000 + n);
        announcement.addresses = (0..limits::ADDRESSES_PER_SERVICE / limits::ENDPOINTS_PER_SERVICE).map(two).collect();
        announcement.descriptors = Some([1; 32]);
        if number == 0 {
            announcement.contracts = BTreeSet::from(["t.S".to_owned()]);
        }
        session = Some(registry.announce(announcement, now).unwrap().session);
    }
    // As much policy as is taken.
    let method = Method { name: "m".repeat(1_000), ..Method::default() };
    let methods = vec![method; limits::POLICY_BYTES / 1_010];
    let policy = ServicePolicy { contracts: vec![Contract { name: "t.S".into(), methods }], breaker: None };
    assert!(policy.encoded_len() > limits::POLICY_BYTES * 9 / 10 && policy.encoded_len() <= limits::POLICY_BYTES);
    registry.describe(&session.unwrap(), Arc::new(policy), now).unwrap();
    let snapshot = registry.snapshot(&name(&service)).unwrap();
    assert_eq!(snapshot.addresses.len(), limits::ADDRESSES_PER_SERVICE);
    let answer = WatchResponse { what: Some(What::Snapshot(snapshot)) };
    assert!(answer.encoded_len() > limits::POLICY_BYTES && answer.encoded_len() <= limits::CONTROL_MESSAGE_BYTES);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_forgotten_once_that_is_sure() {
    let mut registry = Registry::new(1, Instant::now());
    let mut watcher = Watcher::default();
    let ask = |watcher: &mut Watcher, registry: &Registry| {
        watcher.subscribe_service("nobody.shop").unwrap();
        watcher.subscribe_contract("shop.Nothing").unwrap();
        assert_eq!(std::iter::from_fn(|| watcher.next(registry)).count(), 2);
    };
    ask(&mut watcher, &registry);
    assert!(watcher.follows("nobody.shop") && watcher.asks_for("shop.Nothing"), "they may yet come");
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
async fn what_is_not_in_sight_is_not_there() {
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
async fn so_many_hints_are_given_in_a_second_and_no_more() {
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

#[tokio::test(start_paused = true)]
async fn policy_is_the_newest_known_and_survives_until_a_newer_one_is() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let policy = |method: &str| {
        let methods = vec![Method { name: method.into(), ..Method::default() }];
        let contracts = vec![Contract { name: "shop.Users".into(), methods }];
        Arc::new(ServicePolicy { contracts, breaker: None })
    };
    let methods = |registry: &Registry| -> Vec<String> {
        let policy = registry.snapshot(&name("users.shop")).unwrap().policy.unwrap();
        assert_eq!(policy.contracts.len(), 1);
        policy.contracts[0].methods.iter().map(|m| m.name.clone()).collect()
    };
    let announce = |registry: &mut Registry, id: &str, port, digest| {
        let descriptors = Some([digest; 32]);
        let announcement = of_contracts("users.shop", id, port, &["shop.Users"]);
        registry.announce(Announcement { descriptors, ..announcement }, now).unwrap().session
    };
    let old = announce(&mut registry, "old", 1, 1);
    assert!(methods(&registry).is_empty());
    registry.describe(&old, policy("Old"), now).unwrap();
    assert_eq!(methods(&registry), ["Old"]);
    let new = announce(&mut registry, "new", 2, 2);
    assert_eq!(methods(&registry), ["Old"]);
    registry.describe(&new, policy("New"), now).unwrap();
    assert_eq!(methods(&registry), ["New"]);
    assert_eq!(registry.descriptors_in_use(), HashSet::from([[1; 32], [2; 32]]));
    // Rolled back.
    registry.deregister(&new, now);
    assert_eq!(methods(&registry), ["Old"]);
    registry.deregister(&old, now);
    assert_eq!(methods(&registry), ["Old"]);
    assert_eq!(registry.descriptors_in_use(), HashSet::from([[1; 32]]));
}

/// What a sidecar makes of what it is told.
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

/// A snapshot that is not complete takes nothing away, so what left is told by itself.
#[tokio::test(start_paused = true)]
async fn who_leaves_before_it_has_settled_is_said_to_have_left() {
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
async fn until_it_has_settled_nothing_is_complete_and_then_all_are_told_again() {
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
async fn where_all_services_are_known_it_has_settled_once_all_are_there() {
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
    assert!(!join("users.shop", "a", 1), "the same one again is no other");
    assert!(!join("auth.shop", "b", 2));
    assert!(!join("others.shop", "c", 3), "nobody waits for it");
    assert!(join("users.shop", "d", 4));
    assert_eq!(
        told.not_found.last().unwrap(),
        r#"Service("usrs.shop") users.shop true"#,
        "its watcher is told at once"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_standstill_it_settles_by_time_alone() {
    let mesh = BTreeMap::from([(name("users.shop"), 1), (name("auth.shop"), 1)]);
    let mut registry = Registry::new(1, Instant::now());
    registry.await_all(mesh);
    registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap();
    advance(limits::STANDSTILL).await;
    registry.announce(announcement("auth.shop", "b", 2), Instant::now()).unwrap();
    assert!(!registry.is_settled());
    pass(&mut registry, limits::SETTLING_TIME).await;
    assert!(registry.is_settled());
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_what_is_not_there_is_told_when_it_comes_and_when_it_moves() {
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
    // What is no longer followed is no longer told.
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
fn a_watcher_follows_so_many_and_no_more() {
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
    /// Whatever happens, and however slowly a watcher reads: what it has put together from snapshots and changes is
    /// in the end what the registry says.
    #[test]
    fn a_watcher_that_has_read_all_knows_what_the_registry_knows(steps in prop::collection::vec(step(), 1..120)) {
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
                // Unless it was given up together with its service.
                let is_asked = watcher.asks_for(contract);
                prop_assert!(!is_asked || owner == truth.as_str());
            }
        }
    }
}

/// What is meant for an endpoint does not leave its callers in plain text because the control plane has lost sight of it.
#[tokio::test(start_paused = true)]
async fn an_address_of_an_endpoint_that_went_without_a_word_stays_its_services() {
    let mut registry = Registry::new(1, Instant::now());
    let at = |service: &str, id: &str, port: u16, address: &str| Announcement {
        addresses: BTreeSet::from([address.to_owned()]),
        ..announcement(service, id, port)
    };
    let users = name("users.shop");
    let lost = registry.announce(at("users.shop", "lost", 1, "10.0.0.1:80"), Instant::now()).unwrap().session;
    let polite = registry.announce(at("users.shop", "polite", 2, "10.0.0.1:81"), Instant::now()).unwrap().session;
    let stays = registry.announce(announcement("users.shop", "stays", 3), Instant::now()).unwrap().session;
    // What it was refused is not its own afterwards either.
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
    assert_eq!(healths(&registry, "users.shop"), [up("stays")], "it is evicted");
    assert_eq!(registry.owner("10.0.0.1:80"), Some(&users));
    assert_eq!(registry.snapshot(&users).unwrap().addresses, ["10.0.0.1:80"]);
    assert_eq!((registry.owner("10.0.0.1:81"), registry.owner("192.0.2.1:443")), (None, None));

    // The same of a service that has gone altogether.
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

    // Whoever announces the address has it; and in the end it is nobody's.
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

/// An address that is written or pinned to a service is the mesh's, whether or not that service is there.
#[tokio::test(start_paused = true)]
async fn an_address_that_is_named_is_never_outside() {
    let users = name("users.shop");
    let listed = BTreeMap::from([("10.96.0.1:80".to_owned(), users.clone()), ("shop.Users".to_owned(), users.clone())]);
    let claims = Claims::new(listed, Default::default(), BTreeMap::new());
    let registry = Registry::new(1, Instant::now()).with_claims(claims);
    assert_eq!(registry.owner("10.96.0.1:80"), Some(&users));
    assert!(registry.snapshot(&users).unwrap().endpoints.is_empty());
    assert_eq!(registry.owner("shop.Users"), None, "a contract that nobody implements");
    assert!(registry.snapshot(&name("orders.shop")).is_none());
}

/// For who does not see a service its address is not outside the mesh: bytes for it would leave in plain text.
#[tokio::test(start_paused = true)]
async fn an_address_that_a_watcher_does_not_see_is_not_said_to_be_outside() {
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
