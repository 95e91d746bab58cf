//! The watch of policies, with an API server that the test plays.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Mutex, MutexGuard},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::UnboundedReceiverStream;
use weft_mesh::{names::ServiceName, policy::DefaultAccess};

use super::*;

/// A guard, in virtual time.
const SOON: Duration = Duration::from_secs(600);

/// Where a watch is told something.
type Watcher = mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>;

/// The API server.
#[derive(Default)]
struct Server {
    /// The kinds that it has, with their objects by namespace and name.
    kinds: BTreeMap<&'static str, BTreeMap<Key, Value>>,
    /// What it answers to lists instead.
    fails: Option<StatusCode>,
    /// By path.
    watches: Vec<(String, Watcher)>,
    /// The paths and conditions of the statuses that were written.
    written: Vec<(String, Value)>,
    /// The same of those that say on how many sidecars an object holds.
    counted: Vec<(String, Value)>,
}

struct World {
    server: Arc<Mutex<Server>>,
    rules: Arc<Rules>,
    are_read: watch::Receiver<bool>,
    keeping: JoinHandle<anyhow::Error>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl World {
    fn start(server: Server) -> Self {
        let server = Arc::new(Mutex::new(server));
        let serving = Arc::clone(&server);
        let service = tower::service_fn(move |request| answer(Arc::clone(&serving), request));
        let client = Client::new(service, "default");
        let rules = Arc::new(Rules::new(None).unwrap());
        let (has_read, are_read) = watch::channel(false);
        let keeping = tokio::spawn(keep(client, Arc::clone(&rules), has_read));
        Self { server, rules, are_read, keeping }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap()
    }

    async fn is_read(&mut self) {
        timeout(SOON, self.are_read.wait_for(|is_read| *is_read)).await.expect("nothing was read").unwrap();
    }

    /// Waits until the rule for a Service allows these, or there is none.
    async fn allows(&self, service: &str, expected: Option<&str>) {
        let mut changes = self.rules.changes();
        let service = ServiceName::new(service, "shop").unwrap();
        let is_so = |rules: &Arc<crate::rules::InForce>| {
            let access = rules.of_service(&service).service;
            access.map(|access| access.rule.as_ref().unwrap().callers.to_string()).as_deref() == expected
        };
        timeout(SOON, changes.wait_for(is_so)).await.expect("the rule does not become so").unwrap();
    }

    /// Waits until a status says this.
    async fn says(&self, path: &str, status: &str, reason: &str) {
        let is_so = || {
            let written = &self.server().written;
            let last = written.iter().rev().find(|(of, _)| of == path);
            last.is_some_and(|(_, condition)| condition["status"] == status && condition["reason"] == reason)
        };
        timeout(SOON, async {
            while !is_so() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{path} does not say {status} {reason}: {:?}", self.server().written));
    }

    /// Waits until a status says on how many sidecars its object holds.
    async fn counts(&self, path: &str, (told, of): (u64, u64), reason: &str) {
        let is_so = || {
            let counted = &self.server().counted;
            let last = counted.iter().rev().find(|(of, _)| of == path);
            last.is_some_and(|(_, status)| {
                status["sidecars"] == json!({"told": told, "of": of}) && status["conditions"][0]["reason"] == reason
            })
        };
        timeout(SOON, async {
            while !is_so() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{path} does not say {told} of {of}, {reason}: {:?}", self.server().counted));
    }

    /// Tells those who watch a kind.
    fn tell(&self, kind: Kind, what: &str, object: &Value) {
        let line = json!({"type": what, "object": object}).to_string() + "\n";
        self.server().watches.retain(|(path, to)| {
            !path.ends_with(kind.plural()) || to.send(Ok(Frame::data(Bytes::from(line.clone())))).is_ok()
        });
    }

    fn put(&self, object: &Value) {
        self.server().put(object);
        self.tell(kind_of(object), "MODIFIED", object);
    }

    fn delete(&self, object: &Value) {
        let kind = kind_of(object);
        self.server().kinds.get_mut(kind.plural()).unwrap().remove(&key_of(object));
        self.tell(kind, "DELETED", object);
    }

    /// Waits until a kind is watched.
    async fn is_watched(&self, kind: Kind) {
        let is_so = || self.server().watches.iter().any(|(path, to)| path.ends_with(kind.plural()) && !to.is_closed());
        timeout(SOON, async {
            while !is_so() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("nobody watches");
    }
}

impl Server {
    /// With both kinds, and these objects.
    fn with(objects: &[Value]) -> Self {
        let mut server = Self::default();
        server.has_kinds();
        objects.iter().for_each(|object| server.put(object));
        server
    }

    fn has_kinds(&mut self) {
        for kind in [Kind::AccessPolicy, Kind::MeshDefaults] {
            self.kinds.entry(kind.plural()).or_default();
        }
    }

    fn put(&mut self, object: &Value) {
        self.kinds.get_mut(kind_of(object).plural()).unwrap().insert(key_of(object), object.clone());
    }
}

fn kind_of(object: &Value) -> Kind {
    if object["kind"] == "MeshDefaults" { Kind::MeshDefaults } else { Kind::AccessPolicy }
}

fn key_of(object: &Value) -> Key {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(server: Arc<Mutex<Server>>, request: Request<Body>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = head.uri.path().trim_start_matches("/apis/weft.dev/v1alpha1").to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let mut server = server.lock().unwrap();
    let refused = |code: StatusCode| {
        let status =
            json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "no", "code": code.as_u16()});
        (code, status)
    };
    let kind = path.rsplit('/').find_map(|part| server.kinds.keys().copied().find(|kind| *kind == part));
    // What the API server says of a path that it does not know.
    let unknown = || {
        let body = Full::new(Bytes::from("404 page not found\n")).boxed_unsync();
        Ok(Response::builder().status(StatusCode::NOT_FOUND).body(body).unwrap())
    };
    let (code, answer) = if path.is_empty() {
        let names: Vec<Value> = server
            .kinds
            .keys()
            .map(|name| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": []}))
            .collect();
        match names.is_empty() {
            true => return unknown(),
            false => (StatusCode::OK, json!({"groupVersion": "weft.dev/v1alpha1", "resources": names})),
        }
    } else if let Some(code) = server.fails {
        refused(code)
    } else if head.method == Method::PATCH {
        let object: Value = serde_json::from_slice(&body).unwrap();
        match object["status"]["conditions"][0].clone() {
            condition if condition["type"] == "Accepted" => server.written.push((path, condition)),
            _ => server.counted.push((path, object["status"].clone())),
        }
        (StatusCode::OK, object)
    } else if let Some(kind) = kind {
        if query.contains("watch=") {
            let (to, said) = mpsc::unbounded_channel();
            server.watches.push((path, to));
            return Ok(Response::new(StreamBody::new(UnboundedReceiverStream::new(said)).boxed_unsync()));
        }
        let items: Vec<Value> = server.kinds[kind].values().cloned().collect();
        let list = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
        (StatusCode::OK, list)
    } else {
        return unknown();
    };
    let body = Full::new(Bytes::from(answer.to_string())).boxed_unsync();
    Ok(Response::builder().status(code).body(body).unwrap())
}

fn policy(name: &str, generation: i64, allow: &[&str]) -> Value {
    let metadata = json!({"name": name, "namespace": "shop", "uid": name, "generation": generation,
        "creationTimestamp": "2026-11-30T00:00:00Z", "resourceVersion": "2"});
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AccessPolicy", "metadata": metadata,
        "spec": {"service": name, "allow": allow}})
}

fn defaults(access: Value) -> Value {
    let metadata = json!({"name": "default", "uid": access.to_string(), "generation": 1, "resourceVersion": "2",
        "creationTimestamp": "2026-11-30T00:00:00Z"});
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshDefaults", "metadata": metadata, "spec": {"access": access}})
}

const STATUS: &str = "/namespaces/shop/accesspolicies/orders/status";

#[tokio::test(start_paused = true)]
async fn policies_hold_from_the_start_and_as_they_change() {
    let mut world = World::start(Server::with(&[policy("orders", 1, &["web"]), defaults(json!({"default": "deny"}))]));
    world.is_read().await;
    world.allows("orders", Some("web")).await;
    let denied = DefaultAccess::Mesh { is_allowed: false };
    assert_eq!(world.rules.changes().borrow().default_of("shop"), denied);
    world.says(STATUS, "True", "Accepted").await;
    world.says("/meshdefaults/default/status", "True", "Accepted").await;
    world.is_watched(Kind::AccessPolicy).await;
    world.put(&policy("orders", 2, &["ops"]));
    world.allows("orders", Some("ops")).await;
    // Wrong: the last one stays, and is told why.
    world.put(&policy("orders", 3, &["unauthenticated"]));
    world.says(STATUS, "False", "Invalid").await;
    world.allows("orders", Some("ops")).await;
    let message = world.server().written.last().unwrap().1["message"].to_string();
    assert!(message.contains("spec.allow: found `unauthenticated`"), "{message}");
    world.delete(&policy("orders", 3, &[]));
    world.allows("orders", None).await;
}

/// Otherwise sidecars that announce themselves meanwhile are told that there are no rules.
#[tokio::test(start_paused = true)]
async fn nothing_counts_as_read_before_the_lists_are_whole() {
    // It has no right to read them, or the API server is in trouble.
    for code in [StatusCode::FORBIDDEN, StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_FOUND] {
        let server = Server { fails: Some(code), ..Server::with(&[policy("orders", 1, &["web"])]) };
        let mut world = World::start(server);
        sleep(SOON).await;
        assert!(!*world.are_read.borrow(), "{code}");
        world.server().fails = None;
        world.is_read().await;
        world.allows("orders", Some("web")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_the_kinds_has_no_rules_until_it_has_them() {
    let mut world = World::start(Server::default());
    world.is_read().await;
    world.allows("orders", None).await;
    let mut server = Server::with(&[policy("orders", 1, &["web"])]);
    std::mem::swap(&mut world.server().kinds, &mut server.kinds);
    world.allows("orders", Some("web")).await;
}

/// Otherwise policies have no effect, and nobody is told.
#[tokio::test(start_paused = true)]
async fn a_kind_that_comes_later_and_can_not_be_read_ends_the_control_plane() {
    let mut world = World::start(Server::default());
    world.is_read().await;
    let mut server = Server::with(&[policy("orders", 1, &["web"])]);
    std::mem::swap(&mut world.server().kinds, &mut server.kinds);
    world.server().fails = Some(StatusCode::FORBIDDEN);
    let why = timeout(SOON, &mut world.keeping).await.expect("it goes on").unwrap().to_string();
    assert!(why.contains("needs the right to list and watch them"), "{why}");
    // Unless its rights follow soon.
    let mut world = World::start(Server::default());
    world.is_read().await;
    let mut server = Server::with(&[policy("orders", 1, &["web"])]);
    std::mem::swap(&mut world.server().kinds, &mut server.kinds);
    world.server().fails = Some(StatusCode::FORBIDDEN);
    sleep(UNREADABLE / 2).await;
    world.server().fails = None;
    world.allows("orders", Some("web")).await;
    assert!(!world.keeping.is_finished());
}

#[tokio::test(start_paused = true)]
async fn what_was_read_stays_while_the_api_server_is_away_and_a_new_list_takes_away() {
    let mut world = World::start(Server::with(&[policy("orders", 1, &["web"]), policy("users", 1, &["web"])]));
    world.is_read().await;
    world.allows("orders", Some("web")).await;
    world.is_watched(Kind::AccessPolicy).await;
    world.server().fails = Some(StatusCode::NOT_FOUND);
    world.server().kinds.get_mut("accesspolicies").unwrap().remove(&("shop".into(), "users".into()));
    // It has forgotten what happened since, and so asks for a new list.
    let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    world.tell(Kind::AccessPolicy, "ERROR", &gone);
    sleep(SOON).await;
    world.allows("orders", Some("web")).await;
    world.allows("users", Some("web")).await;
    world.server().fails = None;
    world.allows("users", None).await;
    world.allows("orders", Some("web")).await;
}

/// Otherwise one namespace has the control plane and the API server do nothing else.
#[tokio::test(start_paused = true)]
async fn rules_change_only_so_often() {
    let mut world = World::start(Server::with(&[]));
    world.is_read().await;
    world.is_watched(Kind::AccessPolicy).await;
    let (mut changes, mut count) = (world.rules.changes(), 0);
    let started = Instant::now();
    for generation in 1..=1_000 {
        world.put(&policy("orders", generation, &[&format!("caller-{generation}")]));
        sleep(Duration::from_millis(1)).await;
        count += u32::from(changes.has_changed().unwrap());
        changes.mark_unchanged();
    }
    world.allows("orders", Some("caller-1000")).await;
    let most = started.elapsed().as_millis() / SETTLE_PAUSE.as_millis() + 1;
    assert!(u128::from(count) <= most && count > 0, "{count} of {most}");
}

/// Otherwise one namespace has all sidecars of the mesh look at their rules without end.
#[tokio::test(start_paused = true)]
async fn one_namespace_changes_the_rules_once_in_a_second() {
    let mut world = World::start(Server::with(&[]));
    world.is_read().await;
    world.is_watched(Kind::AccessPolicy).await;
    let (mut changes, mut count) = (world.rules.changes(), 0);
    let started = Instant::now();
    for generation in 1..=300 {
        world.put(&policy("orders", generation, &[&format!("caller-{generation}")]));
        sleep(SETTLE_PAUSE * 2).await;
        count += u32::from(changes.has_changed().unwrap());
        changes.mark_unchanged();
    }
    let (at_once, a_second, _) = SETTLED_OF_NAMESPACE;
    let most = u64::from(at_once) + u64::from(a_second) * (started.elapsed().as_secs() + 1);
    assert!(u64::from(count) <= most, "{count} of {most}");
    // Another one does not wait.
    let mut other = policy("users", 1, &["web"]);
    other["metadata"]["namespace"] = "other".into();
    world.put(&other);
    let is_so = |rules: &Arc<crate::rules::InForce>| {
        rules.of_service(&ServiceName::new("users", "other").unwrap()).service.is_some()
    };
    timeout(SETTLE_PAUSE * 2, changes.wait_for(is_so)).await.expect("another namespace waits").unwrap();
    world.allows("orders", Some("caller-300")).await;
}

/// Otherwise one namespace has the API server write without end.
#[tokio::test(start_paused = true)]
async fn all_statuses_are_written_in_the_end() {
    let policies: Vec<Value> = (0..120).map(|number| policy(&format!("s{number:03}"), 1, &["web"])).collect();
    let mut world = World::start(Server::with(&policies));
    let started = Instant::now();
    world.is_read().await;
    for number in 0..120 {
        world.says(&format!("/namespaces/shop/accesspolicies/s{number:03}/status"), "True", "Accepted").await;
    }
    assert!(started.elapsed() >= Duration::from_secs(60), "{:?}", started.elapsed());
}

/// A status that somebody else changes is written over, and keeps the time of what it said before.
#[tokio::test(start_paused = true)]
async fn a_status_keeps_its_time_while_it_says_the_same() {
    let mut object = policy("orders", 2, &["web"]);
    object["status"] = json!({"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted",
        "message": "of the first generation", "observedGeneration": 1, "lastTransitionTime": "2020-01-01T00:00:00Z"}]});
    let mut world = World::start(Server::with(&[object]));
    world.is_read().await;
    world.says(STATUS, "True", "Accepted").await;
    let written = world.server().written[0].1.clone();
    assert_eq!(written["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(written["observedGeneration"], 2);
    world.is_watched(Kind::AccessPolicy).await;
    world.put(&policy("orders", 3, &["unauthenticated"]));
    world.says(STATUS, "False", "Invalid").await;
    assert_ne!(world.server().written.last().unwrap().1["lastTransitionTime"], "2020-01-01T00:00:00Z");
}

#[tokio::test(start_paused = true)]
async fn statuses_say_on_how_many_sidecars_policies_hold_and_are_not_written_too_often() {
    let mut world = World::start(Server::with(&[policy("orders", 1, &["web"]), defaults(json!({"default": "deny"}))]));
    world.is_read().await;
    world.counts(STATUS, (0, 0), "NoSidecars").await;
    let orders = ServiceName::new("orders", "shop").unwrap();
    let [one, other] = [1, 2].map(|last| world.rules.listen(orders.clone(), [10, 0, 0, last].into()));
    let version = || world.rules.changes().borrow().version();
    let tell = |listens: &crate::rules::Listens| {
        let said = listens.is_told(std::slice::from_ref(&orders), version(), crate::rules::Access::default());
        listens.taking().took(said.number);
    };
    tell(&one);
    let untold = other.is_told(std::slice::from_ref(&orders), version(), crate::rules::Access::default());
    world.counts(STATUS, (1, 2), "Pending").await;
    world.counts("/meshdefaults/default/status", (1, 2), "Pending").await;
    other.taking().took(untold.number);
    world.counts(STATUS, (2, 2), "Programmed").await;
    // Nothing changes.
    sleep(SOON).await;
    let before = world.server().counted.len();
    sleep(SOON).await;
    assert_eq!(world.server().counted.len(), before);
    // It changes without end.
    let mut other = Some(other);
    let started = Instant::now();
    for _ in 0..100 {
        other = match other {
            Some(_) => None,
            None => Some(world.rules.listen(orders.clone(), [10, 0, 0, 3].into())),
        };
        other.iter().for_each(tell);
        sleep(Duration::from_millis(700)).await;
    }
    let written = world.server().counted.iter().skip(before).filter(|(path, _)| path == STATUS).count();
    let most = started.elapsed().as_secs() / 10 + 1;
    assert!(u64::try_from(written).unwrap() <= most && written > 0, "{written} of {most}");
}
