//! The control plane in a cluster: the API server's part is played by the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures_util::future::BoxFuture;

use super::*;
use crate::kubernetes::{
    accounts::{Review, Tokens, token_of},
    contracts::Named,
    workloads::{Condition, Key, Pod, Service, Slice, SliceEndpoint, Workloads},
};

/// Knows one token.
struct OneToken;

/// The token that it knows.
fn token() -> String {
    token_of("shop", "people", "right")
}

impl Tokens for OneToken {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
        let extra = BTreeMap::from([("authentication.kubernetes.io/pod-uid".to_owned(), vec!["0a1b".to_owned()])]);
        let review = Review {
            is_authenticated: token == self::token(),
            username: "system:serviceaccount:shop:people".into(),
            audiences: vec!["weft".into()],
            extra,
            error: "unknown".into(),
        };
        Box::pin(async move { Ok(review) })
    }
}

fn key(name: &str) -> Key {
    ("shop".into(), name.into())
}

/// The address at which all of this test's sidecars are.
fn here() -> IpAddr {
    [127, 0, 0, 1].into()
}

fn pod(account: &str) -> Option<Pod> {
    Some(Pod { account: account.into(), ips: vec![here()] })
}

/// A slice of a Service with its one pod.
fn slice(service: &str, condition: Condition) -> Option<Slice> {
    let endpoints = vec![SliceEndpoint { ips: vec![here()], pod: None, condition }];
    Some(Slice { service: service.into(), ports: BTreeMap::from([("grpc".into(), 9000)]), endpoints, not_kept: 0 })
}

async fn start(state_dir: &Path) -> (Running, Arc<Workloads>) {
    let workloads = Arc::<Workloads>::default();
    let cluster = Cluster { workloads: Arc::clone(&workloads), tokens: Box::new(OneToken) };
    let budget = Budget::of_files(1 << 20);
    (Running::start_of(state_dir, budget, None, Some(Arc::new(cluster))).await, workloads)
}

fn people(mesh: &Running) -> Announce {
    Announce { addresses: vec!["127.0.0.1:9000".into()], ..users_with_descriptors(mesh, "p1", 15006) }
}

/// As `people`: the sidecar announces itself under its identity.
fn as_people(mesh: &Running) -> Announce {
    let announce = people(mesh);
    let endpoint = announce.endpoint.unwrap();
    let endpoint = Endpoint { spiffe_id: mesh.id("people.shop").to_string(), ..endpoint };
    Announce { service: "people.shop".into(), endpoint: Some(endpoint), ..announce }
}

async fn heartbeat(announcing: &Announcing, health: Health) {
    announcing.say(announce_request::What::Heartbeat(Heartbeat { health: health.into() })).await;
}

impl Watching {
    /// Waits until the answers say that a contract or an address is this service's.
    async fn owner_becomes(&mut self, name: &str, service: &str) {
        loop {
            match self.next().await {
                What::Owner(owner) if owner.contract == name && owner.service == service => return,
                _ => {}
            }
        }
    }

    /// Waits until the answers show that the service has no endpoint any more.
    async fn is_empty(&mut self) {
        loop {
            match self.next().await {
                What::Snapshot(service) if service.endpoints.is_empty() => return,
                What::Change(change) if !change.removed_ids.is_empty() => return,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn the_token_of_a_service_account_gives_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, _workloads) = start(dir.path()).await;
    let svid = mesh.sign(mesh.channel(None).await.unwrap(), token()).await.unwrap();
    assert_eq!(svid.id(), &mesh.id("people.shop"));
    let refused = mesh.sign(mesh.channel(None).await.unwrap(), token_of("shop", "people", "wrong")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("the API server does not accept the token"), "{refused}");
    mesh.stop().await;
}

/// Asks for a new SVID with the key of an older one, as after its expiry.
async fn renew_late(mesh: &Running, svid: &Svid) -> Result<SpiffeId, Status> {
    let csr_der = WorkloadKey::generate().unwrap().signing_request().unwrap();
    let expired_svid_proof = svid.prove_late(&csr_der).unwrap().into();
    let expired_svid_der = Bytes::copy_from_slice(svid.leaf());
    let request =
        SignRequest { csr_der: csr_der.into(), expired_svid_der, expired_svid_proof, ..SignRequest::default() };
    let signed = IdentityClient::new(mesh.channel(None).await.unwrap()).sign(request).await?.into_inner();
    Ok(SpiffeId::of_certificate(&signed.chain_der[0]).unwrap())
}

/// Otherwise whoever took the key of a pod along keeps its identity when the pod, its account and its namespace are gone.
#[tokio::test]
async fn what_a_cluster_has_proven_is_not_renewed_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, _workloads) = start(dir.path()).await;
    let mut svid = mesh.sign(mesh.channel(None).await.unwrap(), token()).await.unwrap();
    for _ in 0..2 {
        let with_svid = || mesh.channel(Some(&svid));
        let refused = mesh.sign(with_svid().await.unwrap(), String::new()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("show the token of the pod's service account"), "{refused}");
        assert_eq!(renew_late(&mesh, &svid).await.unwrap_err().code(), Code::Unauthenticated);
        // Its pod is still there.
        svid = mesh.sign(with_svid().await.unwrap(), token()).await.unwrap();
    }
    mesh.stop().await;
}

/// A host outside of the cluster has no other token than that with which it joined.
#[tokio::test]
async fn what_a_join_token_has_proven_is_renewed_by_its_svid_in_a_cluster_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    let mut svid = mesh.join("outside.shop").await;
    for _ in 0..2 {
        svid = mesh.sign(mesh.channel(Some(&svid)).await.unwrap(), String::new()).await.unwrap();
        assert_eq!(svid.id(), &mesh.id("outside.shop"));
        assert_eq!(renew_late(&mesh, &svid).await.unwrap(), mesh.id("outside.shop"));
    }
    // Its address may be a pod's as well, as behind NAT.
    workloads.set(key("users-1"), pod("users"));
    mesh.sign(mesh.channel(Some(&svid)).await.unwrap(), String::new()).await.unwrap();
    mesh.stop().await;
}

#[tokio::test]
async fn a_pod_is_an_endpoint_of_each_service_that_it_backs() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    let mut watching = Watching::open(&mesh.sidecar("orders.shop").await).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    assert!(matches!(watching.next().await, What::NotFound(_)));
    let mut canary = Watching::open(&mesh.sidecar("orders.shop").await).await;
    canary.ask(watch_request::What::SubscribeService("canary.shop".into())).await;
    assert!(matches!(canary.next().await, What::NotFound(_)));

    // The API server does not know the pod yet: it backs nothing, and its sidecar need not wait.
    let sidecar = mesh.sidecar("people.shop").await;
    let mut announcing = Announcing::open(&sidecar, as_people(&mesh)).await;
    let answer = announcing.answer().await.unwrap();
    assert!(answer.is_described && !answer.send_descriptors && answer.access.is_some());

    workloads.set(
        key("users"),
        Some(Service {
            cluster_ips: vec!["10.96.0.9".parse().unwrap()],
            ports: BTreeMap::from([("grpc".into(), 80), ("metrics".into(), 9090)]),
            ..Service::default()
        }),
    );
    workloads.set(key("users-x"), slice("users", Condition::Ready));
    workloads.set(key("people-1"), pod("people"));
    assert!(announcing.answer().await.unwrap().send_descriptors);
    announcing.say(announce_request::What::Descriptors(Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET))).await;
    assert!(announcing.answer().await.unwrap().is_described);
    loop {
        let What::Snapshot(service) = watching.next().await else { continue };
        let has_contract = service.policy.as_ref().is_some_and(|policy| !policy.contracts.is_empty());
        if !service.endpoints.is_empty() && has_contract {
            assert_eq!(service.endpoints[0].spiffe_id, mesh.id("people.shop").to_string());
            let addresses: BTreeSet<&str> = service.addresses.iter().map(String::as_str).collect();
            assert_eq!(addresses, BTreeSet::from(["127.0.0.1:9000", "10.96.0.9:80"]));
            break;
        }
    }

    // A second Service selects the same pod. Its policy needs no other descriptors.
    workloads.set(key("canary"), Some(Service::default()));
    workloads.set(key("canary-x"), slice("canary", Condition::Ready));
    canary.health_becomes("p1", Health::Up).await;

    // Both say whether it takes calls.
    workloads.set(key("users-x"), slice("users", Condition::NotReady));
    watching.health_becomes("p1", Health::Down).await;
    workloads.set(key("users-x"), slice("users", Condition::Ready));
    watching.health_becomes("p1", Health::Up).await;
    heartbeat(&announcing, Health::Down).await;
    watching.health_becomes("p1", Health::Down).await;
    heartbeat(&announcing, Health::Up).await;
    watching.health_becomes("p1", Health::Up).await;
    workloads.set(key("users-x"), slice("users", Condition::Terminating));
    watching.health_becomes("p1", Health::Draining).await;

    // It no longer belongs to the Service, then it is gone.
    workloads.set::<Slice>(key("users-x"), None);
    watching.is_empty().await;
    announcing.say(announce_request::What::Deregister(Deregister {})).await;
    canary.is_empty().await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_pod_can_only_be_announced_by_its_own_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    workloads.set(key("users-1"), pod("users"));
    workloads.set(key("users"), Some(Service::default()));
    workloads.set(key("users-x"), slice("users", Condition::Ready));
    let sidecar = mesh.sidecar("people.shop").await;
    let refused = Announcing::open(&sidecar, as_people(&mesh)).await.refusal().await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("the pod there runs as another service account"), "{refused}");

    // Announced before the API server knew the pod, which is another's.
    workloads.set::<Pod>(key("users-1"), None);
    let mut announcing = Announcing::open(&sidecar, as_people(&mesh)).await;
    announcing.answer().await.unwrap();
    workloads.set(key("users-1"), pod("users"));
    let users = mesh.sidecar("users.shop").await;
    let mut honest = Announcing::open(&users, people(&mesh)).await;
    honest.answer().await.unwrap();
    let mut watching = Watching::open(&mesh.sidecar("orders.shop").await).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    watching.health_becomes("p1", Health::Up).await;
    watching.ask(watch_request::What::UnsubscribeService("users.shop".into())).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    let What::Snapshot(service) = watching.next().await else { panic!() };
    let ids: Vec<&str> = service.endpoints.iter().map(|endpoint| endpoint.spiffe_id.as_str()).collect();
    assert_eq!(ids, [mesh.id("users.shop").to_string()]);
    mesh.stop().await;
}

/// The Service that is called like the account comes first: what only one can have is its.
#[tokio::test]
async fn what_only_one_service_can_have_goes_to_the_one_called_like_the_account_and_is_released_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    let address = |ip: &str| Service {
        cluster_ips: vec![ip.parse().unwrap()],
        ports: BTreeMap::from([("grpc".into(), 80)]),
        ..Service::default()
    };
    // Before the other in the alphabet.
    workloads.set(key("people-headless"), Some(Service::default()));
    workloads.set(key("people-headless-x"), slice("people-headless", Condition::Ready));
    workloads.set(key("people"), Some(address("10.96.0.9")));
    workloads.set(key("people-x"), slice("people", Condition::Ready));
    workloads.set(key("people-1"), pod("people"));
    let mut announcing = Announcing::open(&mesh.sidecar("people.shop").await, as_people(&mesh)).await;
    let answer = announcing.answer().await.unwrap();
    assert_eq!(answer.contested.len(), 1, "the other Service claims the contract in vain: {:?}", answer.contested);
    let mut watching = Watching::open(&mesh.sidecar("orders.shop").await).await;
    for asked in [USERS, "127.0.0.1:9000", "10.96.0.9:80"] {
        let what = if asked == USERS {
            watch_request::What::SubscribeContract(asked.into())
        } else {
            watch_request::What::SubscribeAddress(asked.into())
        };
        watching.ask(what).await;
        watching.owner_becomes(asked, "people.shop").await;
    }

    // It is deleted, and its address is given to another.
    workloads.set::<Service>(key("people"), None);
    watching.owner_becomes(USERS, "people-headless.shop").await;
    workloads.set::<Slice>(key("people-x"), None);
    workloads.set(key("people-headless"), Some(address("10.96.0.9")));
    watching.owner_becomes("10.96.0.9:80", "people-headless.shop").await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_contract_moves_to_the_service_whose_annotation_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    for name in ["people", "people-headless"] {
        workloads.set(key(name), Some(Service::default()));
        workloads.set(key(&format!("{name}-x")), slice(name, Condition::Ready));
    }
    workloads.set(key("people-1"), pod("people"));
    let mut announcing = Announcing::open(&mesh.sidecar("people.shop").await, as_people(&mesh)).await;
    announcing.answer().await.unwrap();
    let mut watching = Watching::open(&mesh.sidecar("orders.shop").await).await;
    watching.ask(watch_request::What::SubscribeContract(USERS.into())).await;
    watching.owner_becomes(USERS, "people.shop").await;
    let named = |contracts: &[&str]| {
        let contracts = contracts.iter().map(|contract| (*contract).to_owned()).collect();
        Some(Service { named: Some(Arc::new(Named { created: 1, contracts })), ..Service::default() })
    };
    workloads.set(("other".to_owned(), "thief".to_owned()), named(&[USERS]));
    workloads.set(key("people-headless"), named(&[USERS]));
    watching.owner_becomes(USERS, "people-headless.shop").await;
    workloads.set(key("people-headless"), Some(Service::default()));
    workloads.set(key("people"), named(&[USERS]));
    watching.owner_becomes(USERS, "people.shop").await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_pod_is_announced_from_its_own_address_only() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    let sidecar = mesh.sidecar("people.shop").await;
    let elsewhere = Announce {
        endpoint: Some(Endpoint { address: "10.0.0.8:15006".into(), ..as_people(&mesh).endpoint.unwrap() }),
        ..as_people(&mesh)
    };
    // Another pod of the same account.
    workloads.set(key("people-2"), Some(Pod { account: "people".into(), ips: vec!["10.0.0.8".parse().unwrap()] }));
    let refused = Announcing::open(&sidecar, elsewhere.clone()).await.refusal().await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    mesh.stop().await;
}

#[tokio::test]
async fn an_identity_takes_no_endpoint_of_another_at_the_same_service() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    workloads.set(key("users"), Some(Service::default()));
    workloads.set(key("users-x"), slice("users", Condition::Ready));
    workloads.set(key("people-1"), pod("people"));
    let mut honest = Announcing::open(&mesh.sidecar("people.shop").await, as_people(&mesh)).await;
    honest.answer().await.unwrap();
    let mut watching = Watching::open(&mesh.sidecar("orders.shop").await).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    watching.health_becomes("p1", Health::Up).await;
    // A pod of another account backs the same Service, and announces the id of the first.
    workloads.set(key("people-1"), pod("canary"));
    let endpoint = Endpoint { spiffe_id: mesh.id("canary.shop").to_string(), ..as_people(&mesh).endpoint.unwrap() };
    let taking = Announce { service: "canary.shop".into(), endpoint: Some(endpoint), ..as_people(&mesh) };
    // The first has left with its pod; it is another's from then on.
    watching.is_empty().await;
    let mut taken = Announcing::open(&mesh.sidecar("canary.shop").await, taking).await;
    taken.answer().await.unwrap();
    watching.health_becomes("p1", Health::Up).await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_service_that_goes_while_its_descriptors_are_asked_for_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    workloads.set(key("users"), Some(Service::default()));
    workloads.set(key("users-x"), slice("users", Condition::Ready));
    workloads.set(key("people-1"), pod("people"));
    let mut announcing = Announcing::open(&mesh.sidecar("people.shop").await, as_people(&mesh)).await;
    assert!(announcing.answer().await.unwrap().send_descriptors);
    workloads.set::<Slice>(key("users-x"), None);
    let mut watching = Watching::open(&mesh.sidecar("orders.shop").await).await;
    watching.ask(watch_request::What::SubscribeService("users.shop".into())).await;
    watching.is_empty().await;
    announcing.say(announce_request::What::Descriptors(Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET))).await;
    assert!(announcing.answer().await.unwrap().is_described, "its sidecar becomes ready");
    mesh.stop().await;
}
