use std::{collections::HashSet, time::Duration};

use tokio::time::advance;
use weft_contracts::weft::{
    discovery::v1::{WatchResponse, watch_response::What},
    policy::v1::{Contract, Method},
};

use super::*;

mod claims;
mod watching;

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

fn registry() -> Registry {
    Registry::new(1, Instant::now())
}

fn announcement(service: &str, id: &str, port: u16) -> Announcement {
    Announcement {
        service: name(service),
        endpoint: endpoint(id, port),
        protocol: Protocol::Http2,
        contracts: BTreeSet::new(),
        addresses: BTreeSet::new(),
        allowed: BTreeSet::new(),
        of_cluster: BTreeSet::new(),
        descriptors: None,
        policy: None,
    }
}

fn of_contracts(service: &str, id: &str, port: u16, contracts: &[&str]) -> Announcement {
    let contracts = contracts.iter().map(|c| (*c).to_owned()).collect();
    Announcement { contracts, ..announcement(service, id, port) }
}

fn healths(registry: &Registry, service: &str) -> Vec<(String, Health)> {
    let service = registry.snapshot(&name(service)).unwrap();
    service.endpoints.iter().map(|e| (e.id.clone(), e.health())).collect()
}

fn up(id: &str) -> (String, Health) {
    (id.to_owned(), Health::Up)
}

/// Lets time pass; the registry ticks each second.
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
async fn a_silent_endpoint_is_evicted_after_90_s_and_not_before() {
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
async fn the_last_endpoints_of_a_service_are_kept_for_an_hour() {
    let mut registry = Registry::new(1, Instant::now());
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.announce(announcement("users.shop", "b", 2), Instant::now()).unwrap();
    registry.stream_broken(&a, Instant::now());
    assert!(pass(&mut registry, limits::SERVICE_MEMORY - Duration::from_secs(1)).await.is_empty());
    assert_eq!(pass(&mut registry, Duration::from_secs(1)).await.len(), 2);
    // Once another member is heard, the silent one is evicted after the usual time.
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.stream_broken(&a, Instant::now());
    assert!(pass(&mut registry, limits::ENDPOINT_EXPIRY).await.is_empty());
    registry.announce(announcement("users.shop", "c", 3), Instant::now()).unwrap();
    assert_eq!(pass(&mut registry, Duration::from_secs(1)).await.len(), 1);
    assert_eq!(healths(&registry, "users.shop"), [up("c")]);
}

/// A member whose health flaps causes at most one message a second to each watcher.
#[tokio::test(start_paused = true)]
async fn health_that_changes_often_is_sent_once_a_second_and_the_latest_state_wins() {
    let mut registry = Registry::new(1, Instant::now());
    let session = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.take_events();
    for _ in 0..100 {
        registry.heartbeat(&session, Health::Down, Instant::now()).unwrap();
        registry.heartbeat(&session, Health::Up, Instant::now()).unwrap();
    }
    assert_eq!(registry.take_events().len(), 1, "the first change is sent at once");
    assert_eq!(healths(&registry, "users.shop"), [down("a")]);
    pass(&mut registry, limits::HEALTH_PAUSE).await;
    assert_eq!(registry.take_events().len(), 1);
    assert_eq!(healths(&registry, "users.shop"), [up("a")]);
    // A change that was reverted in time is not sent.
    registry.heartbeat(&session, Health::Down, Instant::now()).unwrap();
    registry.heartbeat(&session, Health::Up, Instant::now()).unwrap();
    pass(&mut registry, limits::HEALTH_PAUSE).await;
    assert_eq!(registry.take_events().len(), 0);
    assert_eq!(healths(&registry, "users.shop"), [up("a")]);
}

#[tokio::test(start_paused = true)]
async fn streams_that_broke_during_a_standstill_do_not_count() {
    let mut registry = Registry::new(1, Instant::now());
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    let b = registry.announce(announcement("users.shop", "b", 2), Instant::now()).unwrap().session;
    pass(&mut registry, limits::SETTLING_TIME).await;
    assert!(registry.is_settled());
    // The process was stopped for longer than the expiry. A broken stream may be noticed before the clock is read.
    advance(2 * limits::ENDPOINT_EXPIRY).await;
    assert!(registry.stream_broken(&a, Instant::now()));
    assert!(registry.tick(Instant::now()).is_empty(), "the standstill does not count as silence");
    assert!(registry.stream_broken(&b, Instant::now()));
    assert_eq!(healths(&registry, "users.shop"), [up("a"), up("b")]);
    assert!(!registry.is_settled() && !registry.snapshot(&name("users.shop")).unwrap().complete);
    registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap();
    assert!(pass(&mut registry, limits::SETTLING_TIME - Duration::from_secs(1)).await.is_empty());
    assert_eq!(healths(&registry, "users.shop"), [up("a"), up("b")]);
    pass(&mut registry, Duration::from_secs(1)).await;
    assert_eq!(healths(&registry, "users.shop"), [up("a"), down("b")], "b had time to announce itself again");
    assert_eq!(silent(&registry, "users.shop"), ["b"]);
    // From then on a broken stream counts at once.
    let a = registry.announce(announcement("users.shop", "a", 1), Instant::now()).unwrap().session;
    registry.stream_broken(&a, Instant::now());
    assert_eq!(silent(&registry, "users.shop"), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_older_stream_does_not_affect_the_newer_one() {
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
async fn endpoint_ids_are_per_service_and_a_restarted_sidecar_replaces_its_predecessor() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    // Every watcher can see ids, so taking another service's id must not keep its endpoint out.
    let squatting = registry.announce(announcement("greedy.shop", "a", 9), now).unwrap().session;
    registry.announce(announcement("users.shop", "a", 1), now).unwrap();
    assert!(registry.deregister(&squatting, now));
    assert_eq!(healths(&registry, "users.shop"), [up("a")]);
    // A restarted sidecar announces itself before its predecessor's end is noticed.
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

/// On a cluster, pods of several accounts may back one Service.
#[tokio::test]
async fn an_endpoint_is_not_replaced_by_another_identity() {
    let mut registry = registry();
    let of = |account: &str, port| {
        let spiffe_id = format!("spiffe://weft.test/ns/shop/sa/{account}");
        Announcement {
            endpoint: Endpoint { spiffe_id, ..endpoint("u1", port) },
            ..announcement("users.shop", "u1", port)
        }
    };
    registry.announce(of("users", 1), Instant::now()).unwrap();
    let refused = registry.announce(of("canary", 2), Instant::now()).unwrap_err();
    assert!(matches!(refused, Refusal::OtherIdentity { .. }), "{refused}");
    assert!(registry.announce(of("users", 2), Instant::now()).unwrap().is_again);
}

/// All parts of a snapshot at their limits together fit into one message.
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
    // A policy of nearly the largest size.
    let method = Method { name: "m".repeat(1_000), ..Method::default() };
    let methods = vec![method; limits::POLICY_BYTES / 1_010];
    let policy = ServicePolicy {
        contracts: vec![Contract { name: "t.S".into(), methods, stands_in_for: Vec::new() }],
        ..ServicePolicy::default()
    };
    assert!(policy.encoded_len() > limits::POLICY_BYTES * 9 / 10 && policy.encoded_len() <= limits::POLICY_BYTES);
    registry.describe(&session.unwrap(), Arc::new(policy), now).unwrap();
    let snapshot = registry.snapshot(&name(&service)).unwrap();
    assert_eq!(snapshot.addresses.len(), limits::ADDRESSES_PER_SERVICE);
    let answer = WatchResponse { what: Some(What::Snapshot(snapshot)) };
    assert!(answer.encoded_len() > limits::POLICY_BYTES && answer.encoded_len() <= limits::CONTROL_MESSAGE_BYTES);
}

#[tokio::test(start_paused = true)]
async fn the_newest_known_policy_holds_until_a_newer_one_is_known() {
    let now = Instant::now();
    let mut registry = Registry::new(1, now);
    let policy = |method: &str| {
        let methods = vec![Method { name: method.into(), ..Method::default() }];
        let contracts = vec![Contract { name: "shop.Users".into(), methods, stands_in_for: Vec::new() }];
        Arc::new(ServicePolicy { contracts, ..ServicePolicy::default() })
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

#[tokio::test(start_paused = true)]
async fn after_a_standstill_it_settles_only_when_the_time_has_passed() {
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
