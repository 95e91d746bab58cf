//! The control plane in a cluster: the API server's part is played by the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures_util::future::BoxFuture;

use super::*;
use crate::kubernetes::{
    accounts::{Review, Tokens},
    workloads::{Condition, Key, Pod, Service, Slice, SliceEndpoint, Workloads},
};

/// Knows one token.
struct OneToken;

const TOKEN: &str = "e30.e30.c2ln";

impl Tokens for OneToken {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
        let extra = BTreeMap::from([("authentication.kubernetes.io/pod-uid".to_owned(), vec!["0a1b".to_owned()])]);
        let review = Review {
            is_authenticated: token == TOKEN,
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
    let endpoints = vec![SliceEndpoint { ips: vec![here()], condition }];
    Some(Slice { service: service.into(), ports: BTreeMap::from([("grpc".into(), 9000)]), endpoints })
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
    let svid = mesh.sign(mesh.channel(None).await.unwrap(), TOKEN.into()).await.unwrap();
    assert_eq!(svid.id(), &mesh.id("people.shop"));
    let refused = mesh.sign(mesh.channel(None).await.unwrap(), "e30.e30.b3Ro".into()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("the API server does not accept the token"), "{refused}");
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

    workloads.set_service(
        key("users"),
        Some(Service {
            cluster_ips: vec!["10.96.0.9".parse().unwrap()],
            ports: BTreeMap::from([("grpc".into(), 80), ("metrics".into(), 9090)]),
        }),
    );
    workloads.set_slice(key("users-x"), slice("users", Condition::Ready));
    workloads.set_pod(key("people-1"), pod("people"));
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
    workloads.set_slice(key("canary-x"), slice("canary", Condition::Ready));
    canary.health_becomes("p1", Health::Up).await;

    // Both say whether it takes calls.
    workloads.set_slice(key("users-x"), slice("users", Condition::NotReady));
    watching.health_becomes("p1", Health::Down).await;
    workloads.set_slice(key("users-x"), slice("users", Condition::Ready));
    watching.health_becomes("p1", Health::Up).await;
    heartbeat(&announcing, Health::Down).await;
    watching.health_becomes("p1", Health::Down).await;
    heartbeat(&announcing, Health::Up).await;
    watching.health_becomes("p1", Health::Up).await;
    workloads.set_slice(key("users-x"), slice("users", Condition::Terminating));
    watching.health_becomes("p1", Health::Draining).await;

    // It no longer belongs to the Service, then it is gone.
    workloads.set_slice(key("users-x"), None);
    watching.is_empty().await;
    announcing.say(announce_request::What::Deregister(Deregister {})).await;
    canary.is_empty().await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_pod_can_only_be_announced_by_its_own_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, workloads) = start(dir.path()).await;
    workloads.set_pod(key("users-1"), pod("users"));
    workloads.set_slice(key("users-x"), slice("users", Condition::Ready));
    let sidecar = mesh.sidecar("people.shop").await;
    let refused = Announcing::open(&sidecar, as_people(&mesh)).await.refusal().await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("the pod there runs as another service account"), "{refused}");

    // Announced before the API server knew the pod, which is another's.
    workloads.set_pod(key("users-1"), None);
    let mut announcing = Announcing::open(&sidecar, as_people(&mesh)).await;
    announcing.answer().await.unwrap();
    workloads.set_pod(key("users-1"), pod("users"));
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
