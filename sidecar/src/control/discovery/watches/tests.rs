use std::time::Duration;

use tokio::time::advance;
use weft_contracts::weft::{
    discovery::v1::{Change, Endpoint, Health, Protocol},
    policy::v1::{Breaker, Contract, Method, ServicePolicy as WirePolicy},
};
use weft_mesh::policy::ServicePolicy;

use super::*;
use crate::{policy::breaker::Verdict, telemetry::metrics::Metrics, time::moment::Moment};

const USERS: &str = "users.shop";
const CONTRACT: &str = "shop.users.v1.Users";
const ADDRESS: &str = "10.0.0.1:8080";

fn watches() -> Watches {
    Watches::new(Builder::new(Arc::new(Metrics::default()), "orders.shop".into()))
}

fn endpoint(id: &str, port: u16, health: Health) -> Endpoint {
    Endpoint {
        id: id.into(),
        address: format!("127.0.0.1:{port}"),
        spiffe_id: "spiffe://weft.local/ns/shop/sa/users".into(),
        health: health.into(),
        silent: false,
    }
}

fn silent(id: &str, port: u16) -> Endpoint {
    Endpoint { silent: true, ..endpoint(id, port, Health::Down) }
}

fn are_up(watches: &Watches) -> Vec<String> {
    let view = watches.view();
    let users = &view.services[&ServiceName::parse(USERS).unwrap()];
    let mut up: Vec<_> = users.endpoints.iter().filter(|e| e.is_up()).map(|e| e.id.clone()).collect();
    up.sort();
    up
}

fn policy(consecutive_failures: u32) -> WirePolicy {
    let default: WirePolicy = (&ServicePolicy::default()).into();
    WirePolicy {
        contracts: vec![Contract {
            name: CONTRACT.into(),
            stands_in_for: Vec::new(),
            methods: vec![Method { name: "Get".into(), idempotency: 3, ..Default::default() }],
        }],
        breaker: default.breaker.map(|breaker| Breaker { consecutive_failures, ..breaker }),
        ..WirePolicy::default()
    }
}

fn snapshot(version: (u64, u64), complete: bool, endpoints: Vec<Endpoint>) -> WatchResponse {
    message(watch_response::What::Snapshot(wire::Service {
        name: USERS.into(),
        protocol: Protocol::Http2.into(),
        endpoints,
        policy: Some(policy(5)),
        version: Some(Version { epoch: version.0, counter: version.1 }),
        complete,
        addresses: vec![ADDRESS.into()],
    }))
}

fn change(version: (u64, u64), upserted: Vec<Endpoint>, removed: &[&str]) -> WatchResponse {
    message(watch_response::What::Change(Change {
        service: USERS.into(),
        upserted,
        removed_ids: removed.iter().map(|id| (*id).to_owned()).collect(),
        version: Some(Version { epoch: version.0, counter: version.1 }),
    }))
}

#[tokio::test(start_paused = true)]
async fn a_service_is_found_by_its_address_for_as_long_as_it_has_that_address() {
    let mut watches = watches();
    let address: std::net::SocketAddr = ADDRESS.parse().unwrap();
    let (answer, mut answered) = oneshot::channel();
    let mut asked = watches.ask(DiscoveryQuestion { asked: Asked::Address(address), answer }, Instant::now());
    let requests: Vec<_> = asked.take_requests().into_iter().filter_map(|request| request.what).collect();
    assert_eq!(requests, [What::SubscribeAddress(ADDRESS.into())]);
    let owner = ContractOwner { contract: ADDRESS.into(), service: USERS.into() };
    watches.take([message(watch_response::What::Owner(owner))], Instant::now()).answer();
    watches.take([snapshot((1, 1), true, Vec::new())], Instant::now()).answer();
    assert_eq!(answered.try_recv().unwrap().unwrap().name.as_str(), USERS);
    assert!(watches.view().addresses.contains_key(&address) && watches.view().contracts.is_empty());

    let elsewhere = watch_response::What::Snapshot(wire::Service {
        name: USERS.into(),
        version: Some(Version { epoch: 1, counter: 2 }),
        complete: true,
        ..wire::Service::default()
    });
    watches.take([message(elsewhere)], Instant::now()).answer();
    assert!(watches.view().addresses.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_service_is_starting_until_it_was_up_or_its_time_is_over() {
    let is_starting =
        |watches: &Watches| watches.view().services[&ServiceName::parse(USERS).unwrap()].is_starting(Moment::now());
    let down = |counter| snapshot((1, counter), true, vec![endpoint("a", 1, Health::Down)]);
    let begun = || {
        let mut watches = watches();
        let _asked = ask(&mut watches, users());
        take(&mut watches, down(1));
        watches
    };
    let mut watches = begun();
    assert!(is_starting(&watches));
    advance(limits::STARTING_TIME / 2).await;
    take(&mut watches, down(2));
    assert!(is_starting(&watches));
    advance(limits::STARTING_TIME / 2).await;
    assert!(!is_starting(&watches), "the start takes too long, even if messages came meanwhile");

    let mut watches = begun();
    take(&mut watches, change((1, 2), vec![endpoint("a", 1, Health::Up)], &[]));
    take(&mut watches, change((1, 3), vec![endpoint("a", 1, Health::Down)], &[]));
    assert!(!is_starting(&watches), "it went down");
}

fn not_found(what: not_found::What, complete: bool) -> WatchResponse {
    message(watch_response::What::NotFound(NotFound { what: Some(what), closest: "users.shop".into(), complete }))
}

fn message(what: watch_response::What) -> WatchResponse {
    WatchResponse { what: Some(what) }
}

fn users() -> Asked {
    Asked::Service(ServiceName::parse(USERS).unwrap())
}

/// Asks a question, and returns the requests that it sends to the control plane.
fn ask(watches: &mut Watches, asked: Asked) -> (oneshot::Receiver<Answer>, Vec<What>) {
    let (answer, answered) = oneshot::channel();
    let mut effects = watches.ask(DiscoveryQuestion { asked, answer }, Instant::now());
    let requests = requests(&mut effects);
    effects.answer();
    (answered, requests)
}

fn take(watches: &mut Watches, message: WatchResponse) -> Vec<What> {
    let mut effects = watches.take([message], Instant::now());
    let requests = requests(&mut effects);
    effects.answer();
    requests
}

fn requests(effects: &mut Effects) -> Vec<What> {
    effects.take_requests().into_iter().filter_map(|request| request.what).collect()
}

fn ids(watches: &Watches) -> Vec<String> {
    let view = watches.view();
    let service = &view.services[&ServiceName::parse(USERS).unwrap()];
    let mut ids: Vec<String> = service.endpoints.iter().map(|endpoint| endpoint.id.clone()).collect();
    ids.sort();
    ids
}

/// Watches that know users with two endpoints, from a complete snapshot at version 1.5.
fn knowing_users() -> Watches {
    let mut watches = watches();
    let (mut answered, _) = ask(&mut watches, users());
    let endpoints = vec![endpoint("a", 1, Health::Up), endpoint("b", 2, Health::Up)];
    take(&mut watches, snapshot((1, 5), true, endpoints));
    assert!(answered.try_recv().unwrap().is_ok());
    watches
}

#[tokio::test(start_paused = true)]
async fn questions_for_one_name_share_a_subscription_and_its_answer() {
    let mut watches = watches();
    let (mut first, requests) = ask(&mut watches, users());
    assert_eq!(requests, [What::SubscribeService(USERS.into())]);
    let (mut second, requests) = ask(&mut watches, users());
    assert_eq!(requests, []);
    take(&mut watches, snapshot((1, 1), true, vec![endpoint("a", 1, Health::Up)]));
    for answered in [&mut first, &mut second] {
        assert_eq!(answered.try_recv().unwrap().unwrap().endpoints.len(), 1);
    }
    let (mut third, requests) = ask(&mut watches, users());
    assert_eq!(requests, []);
    let service = third.try_recv().unwrap().unwrap();
    assert_eq!(&*service.method("/shop.users.v1.Users/Get").name, "shop.users.v1.Users/Get");
    assert_eq!(&*service.method("/x.Y/Z").name, "_other");
}

#[tokio::test(start_paused = true)]
async fn a_contract_is_answered_with_its_owner() {
    let mut watches = watches();
    let (mut answered, requests) = ask(&mut watches, Asked::Contract(CONTRACT.into()));
    assert_eq!(requests, [What::SubscribeContract(CONTRACT.into())]);
    let owner = ContractOwner { contract: CONTRACT.into(), service: USERS.into() };
    take(&mut watches, message(watch_response::What::Owner(owner)));
    assert!(answered.try_recv().is_err());
    take(&mut watches, snapshot((1, 1), true, vec![]));
    assert_eq!(answered.try_recv().unwrap().unwrap().name.as_str(), USERS);
    assert!(watches.view().contracts.contains_key(CONTRACT));
}

#[tokio::test(start_paused = true)]
async fn not_found_is_answered_only_when_the_control_plane_knows_all_services() {
    let mut watches = watches();
    let asked = Asked::Service(ServiceName::parse("usrs.shop").unwrap());
    let (mut answered, _) = ask(&mut watches, asked.clone());
    take(&mut watches, not_found(not_found::What::Service("usrs.shop".into()), false));
    assert!(answered.try_recv().is_err());
    take(&mut watches, not_found(not_found::What::Service("usrs.shop".into()), true));
    let closest = Some("users.shop".into());
    assert_eq!(answered.try_recv().unwrap().unwrap_err(), Unknown::NotFound { closest });
    let (_answered, requests) = ask(&mut watches, asked);
    assert_eq!(requests.len(), 1, "a later question asks again");
}

#[tokio::test(start_paused = true)]
async fn changes_keep_unchanged_endpoints_and_breakers() {
    let mut watches = knowing_users();
    let before = watches.view();
    let before = &before.services[&ServiceName::parse(USERS).unwrap()];
    let upserted = vec![endpoint("a", 1, Health::Down), endpoint("c", 3, Health::Up)];
    assert_eq!(take(&mut watches, change((1, 9), upserted, &["b"])), []);
    assert_eq!(ids(&watches), ["a", "c"]);
    let after = watches.view();
    let after = &after.services[&ServiceName::parse(USERS).unwrap()];
    let a = after.endpoints.iter().find(|endpoint| endpoint.id == "a").unwrap();
    assert!(before.endpoints.iter().any(|old| Arc::ptr_eq(old, a)), "its connections go on");
    assert_eq!(a.health(), Health::Down);
    assert!(Arc::ptr_eq(&before.breaker, &after.breaker));
    assert!(Arc::ptr_eq(&before.last_used, &after.last_used));
    assert!(Arc::ptr_eq(&before.policy, &after.policy), "a contract may be large");
    assert!(Arc::ptr_eq(&before.methods, &after.methods));
}

/// A service with thousands of endpoints, of which many change each second, must not take its callers' CPU.
#[tokio::test(start_paused = true)]
async fn changes_that_come_at_once_build_a_service_once_and_look_at_each_endpoint_once() {
    const ENDPOINTS: usize = 1_000;
    for is_complete in [true, false] {
        let mut watches = watches();
        let _asked = ask(&mut watches, users());
        let numbered = |number: usize, health| endpoint(&format!("e{number}"), 1 + number as u16, health);
        let all = (0..ENDPOINTS).map(|number| numbered(number, Health::Up)).collect();
        take(&mut watches, snapshot((1, 1), is_complete, all));
        watches.builder.work.set((0, 0));
        let changes = (0..ENDPOINTS as u64)
            .map(|number| change((1, number + 2), vec![numbered(number as usize, Health::Down)], &[]))
            .chain([
                change((1, 5_000), vec![], &["e0"]),
                change((1, 5_001), vec![endpoint("new", 1, Health::Up)], &[]),
            ]);
        let effects = watches.take(changes, Instant::now());
        assert!(effects.is_view_changed);
        assert_eq!(watches.builder.work.get(), (1, ENDPOINTS - 1));
        assert_eq!((are_up(&watches), ids(&watches).len()), (vec!["new".to_owned()], ENDPOINTS));
        // One at a time costs no more than going through them.
        for counter in 6_000..6_010 {
            take(&mut watches, change((1, counter), vec![numbered(5, Health::Up)], &[]));
        }
        assert_eq!(watches.builder.work.get(), (11, 11 * ENDPOINTS - 1));
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_come_at_once_count_in_their_order() {
    let mut watches = knowing_users();
    let a_goes = change((1, 6), vec![endpoint("c", 3, Health::Up)], &["a"]);
    let out_of_order = change((1, 6), vec![], &["b"]);
    let mut effects = watches.take([a_goes, out_of_order], Instant::now());
    assert_eq!(requests(&mut effects).len(), 2, "it subscribes again");
    assert_eq!(ids(&watches), ["b", "c"]);
    let newer = snapshot((1, 8), true, vec![endpoint("d", 4, Health::Up)]);
    watches.take([change((1, 7), vec![], &["b"]), newer], Instant::now()).answer();
    assert_eq!(ids(&watches), ["d"]);
    let older = snapshot((1, 8), true, vec![endpoint("e", 5, Health::Up)]);
    let back = change((1, 10), vec![endpoint("a", 1, Health::Up)], &[]);
    assert!(watches.take([change((1, 9), vec![], &["d"]), older, back], Instant::now()).is_view_changed);
    assert_eq!(ids(&watches), ["a"], "an outdated snapshot");
    let gone = not_found(not_found::What::Service(USERS.into()), true);
    watches.take([change((1, 11), vec![endpoint("b", 2, Health::Up)], &[]), gone], Instant::now()).answer();
    assert!(watches.view().services.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_new_policy_does_not_change_keeps_its_state() {
    let mut watches = watches();
    let _asked = ask(&mut watches, users());
    let told = |counter, consecutive_failures, idempotency: [i32; 2]| {
        let method = |name: &str, idempotency| Method { name: name.into(), idempotency, ..Default::default() };
        let methods = vec![method("Get", idempotency[0]), method("List", idempotency[1])];
        let contracts = vec![Contract { name: CONTRACT.into(), methods, stands_in_for: Vec::new() }];
        message(watch_response::What::Snapshot(wire::Service {
            name: USERS.into(),
            endpoints: vec![endpoint("a", 1, Health::Up)],
            policy: Some(WirePolicy { contracts, ..policy(consecutive_failures) }),
            version: Some(Version { epoch: 1, counter }),
            complete: true,
            ..wire::Service::default()
        }))
    };
    let mut users = |told| {
        take(&mut watches, told);
        Arc::clone(&watches.view().services[&ServiceName::parse(USERS).unwrap()])
    };
    let first = users(told(1, 5, [3, 3]));
    let is_same = |service: &Service, method: &str| {
        let path = format!("/{CONTRACT}/{method}");
        Arc::ptr_eq(service.method(&path), first.method(&path))
    };
    let second = users(told(2, 5, [3, 1]));
    assert!(is_same(&second, "Get") && !is_same(&second, "List"), "only one of them has changed");
    assert!(Arc::ptr_eq(&second.breaker, &first.breaker));
    assert!(Arc::ptr_eq(&second.endpoints[0], &first.endpoints[0]), "with its breaker");
    let third = users(told(3, 6, [3, 1]));
    assert!(is_same(&third, "Get") && !Arc::ptr_eq(&third.breaker, &first.breaker));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_comes_back_starts_with_a_closed_breaker() {
    let mut watches = knowing_users();
    let name = ServiceName::parse(USERS).unwrap();
    take(&mut watches, change((1, 6), vec![endpoint("a", 1, Health::Down)], &["b"]));
    let breaker = Arc::clone(&watches.view().services[&name].breaker);
    for _ in 0..5 {
        let permit = breaker.admit(Moment::now()).unwrap();
        breaker.settle(permit, Verdict::Failure, Moment::now());
    }
    take(&mut watches, change((1, 7), vec![endpoint("c", 3, Health::Down)], &[]));
    assert!(breaker.is_open(Moment::now()));
    take(&mut watches, change((1, 8), vec![endpoint("c", 3, Health::Up)], &[]));
    assert!(!breaker.is_open(Moment::now()));
}

#[tokio::test(start_paused = true)]
async fn a_change_out_of_order_is_ignored_and_the_service_is_subscribed_again() {
    let mut watches = knowing_users();
    for version in [(1, 5), (1, 4), (2, 6)] {
        let requests = take(&mut watches, change(version, vec![], &["a", "b"]));
        assert_eq!(requests, [What::UnsubscribeService(USERS.into()), What::SubscribeService(USERS.into())]);
        assert_eq!(ids(&watches), ["a", "b"]);
    }
    take(&mut watches, snapshot((1, 4), true, vec![]));
    assert_eq!(ids(&watches), ["a", "b"], "an outdated snapshot");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_control_plane_removes_nothing_before_it_knows_all() {
    let mut watches = knowing_users();
    watches.disconnected();
    assert_eq!(ids(&watches), ["a", "b"]);
    assert_eq!(requests(&mut watches.connected()), [What::SubscribeService(USERS.into())]);

    take(&mut watches, not_found(not_found::What::Service(USERS.into()), false));
    assert_eq!(ids(&watches), ["a", "b"], "the control plane does not know it yet");
    take(&mut watches, snapshot((2, 1), false, vec![endpoint("a", 1, Health::Up)]));
    assert_eq!(ids(&watches), ["a", "b"], "b has not announced itself yet");
    // The sidecar of b was restarted at its old address.
    take(&mut watches, change((2, 2), vec![endpoint("b2", 2, Health::Up)], &[]));
    assert_eq!(ids(&watches), ["a", "b2"]);
    take(&mut watches, snapshot((2, 3), true, vec![endpoint("a", 1, Health::Up)]));
    assert_eq!(ids(&watches), ["a"], "what is missing now is gone");
    take(&mut watches, not_found(not_found::What::Service(USERS.into()), true));
    assert!(watches.view().services.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_called_for_long_is_dropped() {
    let mut watches = knowing_users();
    advance(limits::WATCH_IDLE).await;
    assert_eq!(requests(&mut watches.tidy(true, Instant::now())), []);
    let (mut answered, _) = ask(&mut watches, users());
    assert!(answered.try_recv().is_ok());
    advance(limits::WATCH_IDLE).await;
    assert_eq!(requests(&mut watches.tidy(true, Instant::now())), []);
    advance(Duration::from_secs(1)).await;
    assert_eq!(requests(&mut watches.tidy(true, Instant::now())), [What::UnsubscribeService(USERS.into())]);
    assert!(watches.view().services.is_empty());
    let requests = take(&mut watches, snapshot((1, 6), true, vec![]));
    assert_eq!(requests, [What::UnsubscribeService(USERS.into())], "the snapshot crossed with it");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_while_the_control_plane_is_away() {
    let mut watches = knowing_users();
    watches.disconnected();
    advance(10 * limits::WATCH_IDLE).await;
    assert_eq!(requests(&mut watches.tidy(false, Instant::now())), []);
    assert_eq!(ids(&watches), ["a", "b"]);
}

/// Like Envoy's panic threshold: if most endpoints are lost, the cause may be the control plane or the network.
#[tokio::test(start_paused = true)]
async fn endpoints_stay_in_use_if_most_are_silent() {
    let mut watches = knowing_users();
    take(&mut watches, change((1, 9), vec![silent("a", 1)], &[]));
    assert_eq!(are_up(&watches), ["b"], "there is another one");
    take(&mut watches, change((1, 10), vec![silent("b", 2)], &[]));
    assert_eq!(are_up(&watches), ["a", "b"], "the last ones stay in use");
    let mut second = self::watches();
    second.restore(watches.saved(), Instant::now(), Instant::now());
    assert_eq!(are_up(&second), ["a", "b"], "also after a restart");
    // An endpoint to which no connection can be made is given up, but not the very last one.
    let lose = |watches: &Watches, id: &str| {
        let (catalog, _questions) = crate::endpoints::catalog::Catalog::new();
        catalog.publish(watches.view());
        let users = catalog.known(&users()).unwrap();
        catalog.not_connected(users.endpoints.iter().find(|endpoint| endpoint.id == id).unwrap());
    };
    lose(&watches, "a");
    assert_eq!(are_up(&watches), ["b"]);
    lose(&watches, "b");
    assert_eq!(are_up(&watches), ["a", "b"]);
    take(&mut watches, change((1, 11), vec![endpoint("b", 2, Health::Up)], &[]));
    assert_eq!(are_up(&watches), ["b"]);
    take(&mut watches, change((1, 12), vec![endpoint("b", 2, Health::Down)], &[]));
    assert_eq!(are_up(&watches), ["a"], "an endpoint that reports itself down is down");
    // An endpoint that died earlier does not count among those that were lost at once.
    take(&mut watches, change((1, 13), vec![endpoint("b", 2, Health::Up), endpoint("c", 3, Health::Up)], &[]));
    take(&mut watches, change((1, 14), vec![silent("b", 2)], &[]));
    assert_eq!(are_up(&watches), ["c"], "one of two that may work");
    take(&mut watches, change((1, 15), vec![endpoint("a", 1, Health::Draining)], &["b", "c"]));
    assert_eq!(are_up(&watches), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn saved_services_are_used_until_the_control_plane_says_otherwise() {
    let mut first = knowing_users();
    let (_answered, _) = ask(&mut first, Asked::Contract(CONTRACT.into()));
    let owner = ContractOwner { contract: CONTRACT.into(), service: USERS.into() };
    take(&mut first, message(watch_response::What::Owner(owner)));

    let mut second = watches();
    second.restore(first.saved(), Instant::now(), Instant::now());
    assert_eq!(ids(&second), ["a", "b"]);
    let (mut answered, requests_made) = ask(&mut second, Asked::Contract(CONTRACT.into()));
    assert_eq!(answered.try_recv().unwrap().unwrap().endpoints.len(), 2);
    assert_eq!(requests_made, []);
    assert_eq!(requests(&mut second.connected()), [What::SubscribeService(USERS.into())]);
    take(&mut second, snapshot((7, 1), false, vec![endpoint("a", 1, Health::Up)]));
    assert_eq!(ids(&second), ["a", "b"]);
    take(&mut second, snapshot((7, 2), true, vec![endpoint("a", 1, Health::Up)]));
    assert_eq!(ids(&second), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_watched_services_is_bounded() {
    let mut watches = watches();
    let mut waiting = Vec::new();
    for n in 0..limits::SERVICES_WATCHED {
        waiting.push(ask(&mut watches, Asked::Contract(n.to_string().into())).0);
    }
    let (mut refused, requests_made) = ask(&mut watches, users());
    assert_eq!(refused.try_recv().unwrap().unwrap_err(), Unknown::Full);
    assert_eq!(requests_made, []);
    drop(waiting);
    watches.tidy(true, Instant::now());
    assert_eq!(ask(&mut watches, users()).1.len(), 1, "askers that gave up make room");
}
