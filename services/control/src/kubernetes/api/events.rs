//! Tells owners what is wrong, by an Event: of a pod that gets no sidecar although a label asks for one, and of a Service
//! whose annotation says wrongly which contracts it implements.
//!
//! The webhook says so too, but only to who makes the pod, and that is mostly a controller. It is not the place to make an
//! Event: it is asked about dry runs, and anybody can ask it. So this looks at the pods that the API server has.
//!
//! Anyone who can make pods causes Events, so there are few in a minute for each namespace and for all. An Event is named
//! after its object and what it says, so that the API server keeps one of each.
//!
//! They are hints. One that is over the limit or can't be made is only tried again when its object changes, and what is wrong
//! when the control plane starts is not looked at. `weft cluster check` finds all of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ObjectReference},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::PostParams,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, timeout},
};

use super::{
    TIMEOUT,
    seen::{Nothing, Seen},
};
use crate::kubernetes::{
    contracts,
    inject::{self, Reason},
    names::{CONTAINER, CONTROL, ENABLED, LABEL_INJECT, NAMESPACE, annotation},
};

/// The objects that wait to be looked at. What finds no room is not told: it is only a hint.
const QUEUE: usize = 256;
/// How many Events are made in [`WINDOW`], of one namespace and of all.
const OF_NAMESPACE: usize = 5;
const OF_ALL: usize = 60;
const WINDOW: Duration = Duration::from_secs(60);
/// How many Events are remembered, so that they are not made twice.
const REMEMBERED: usize = 4_096;
/// The longest names and notes that the API server allows for an Event.
const NAME_BYTES: usize = 253;
const NOTE_BYTES: usize = 1_024;

/// An object with which something may be wrong.
#[derive(Debug)]
pub(super) struct Suspect {
    namespace: String,
    name: String,
    uid: String,
    why: Why,
    /// Whether it is wrong by itself, and not only if its namespace has the label.
    asks_itself: bool,
}

impl Suspect {
    /// What its Event says.
    fn note(&self) -> String {
        let mut note = match &self.why {
            Why::NoSidecar(why) => format!("Weft adds no sidecar: {why}"),
            Why::Contracts(why) => format!("the annotation {} has no effect: {why}", annotation::CONTRACTS),
        };
        note.truncate(note.floor_char_boundary(NOTE_BYTES));
        note
    }

    /// The same for the same object and the same note, also in another control plane of this version.
    fn key(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.note().hash(&mut hasher);
        format!("{}-{:016x}", self.uid, hasher.finish())
    }
}

/// What is wrong.
#[derive(Debug, PartialEq, Eq)]
enum Why {
    /// Why a pod gets no sidecar.
    NoSidecar(Reason),
    /// What is wrong with the annotation of a Service.
    Contracts(String),
}

/// Where watched objects are reported.
#[derive(Clone)]
pub(super) struct Reports(mpsc::Sender<Suspect>);

impl Reports {
    /// Looks at a pod that is new or has changed.
    pub(super) fn look(&self, metadata: &ObjectMeta, spec: &Value) {
        if let Some(suspect) = suspect(metadata, spec) {
            // See `QUEUE`.
            let _ = self.0.try_send(suspect);
        }
    }

    /// Looks at a Service that is new or has changed.
    pub(super) fn look_at_service(&self, service: &ObjectMeta) {
        if let Some(suspect) = wrongly_annotated(service) {
            let _ = self.0.try_send(suspect);
        }
    }
}

fn wrongly_annotated(service: &ObjectMeta) -> Option<Suspect> {
    let text = service.annotations.as_ref()?.get(annotation::CONTRACTS)?;
    let why = Why::Contracts(contracts::read(text).err()?);
    let (namespace, name, uid) = (service.namespace.clone()?, service.name.clone()?, service.uid.clone()?);
    Some(Suspect { namespace, name, uid, why, asks_itself: true })
}

/// Where objects are reported, and the task that tells their owners; it never ends.
pub(super) fn start(client: Client) -> (Reports, impl Future<Output = ()>) {
    let (reports, suspects) = mpsc::channel(QUEUE);
    (Reports(reports), tell(client, suspects))
}

/// Most pods have a sidecar, or nobody asks for one: they are no suspects.
fn suspect(metadata: &ObjectMeta, spec: &Value) -> Option<Suspect> {
    let has = |name: &str| metadata.annotations.as_ref().is_some_and(|all| all.contains_key(name));
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_INJECT)).map(String::as_str);
    let (namespace, name, uid) = (metadata.namespace.clone()?, metadata.name.clone()?, metadata.uid.clone()?);
    if label.is_some_and(|value| value != ENABLED) || has(annotation::INJECTED) || metadata.deletion_timestamp.is_some()
    {
        return None;
    }
    let containers = ["containers", "initContainers"].map(|key| spec[key].as_array());
    let mut containers = containers.into_iter().flatten().flatten();
    // What costs little; the rest is decided by what decides for the webhook.
    let is_special = spec["hostNetwork"] == true
        || !spec["os"].is_null()
        || !spec["nodeSelector"].is_null()
        || namespace == NAMESPACE
        || containers.any(|container| container["name"] == CONTAINER);
    if !is_special {
        return None;
    }
    let pod = json!({"metadata": {"labels": metadata.labels, "annotations": metadata.annotations}, "spec": spec});
    let why = Why::NoSidecar(inject::refusal(&namespace, &pod)?);
    Some(Suspect { namespace, name, uid, why, asks_itself: label.is_some() })
}

/// Never ends.
async fn tell(client: Client, mut suspects: mpsc::Receiver<Suspect>) {
    let with_label = watcher::Config::default().labels(&format!("{LABEL_INJECT}={ENABLED}"));
    let namespaces = watcher(Api::<Seen<Namespace, Nothing>>::all(client.clone()), with_label).default_backoff();
    pin_mut!(namespaces);
    let (mut labelled, mut listed, mut are_known) = (BTreeSet::new(), BTreeSet::new(), false);
    let mut told = Told::default();
    let mut is_broken = false;
    loop {
        tokio::select! {
            Some(event) = namespaces.next() => match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(namespace)) => drop(listed.insert(namespace.name_any())),
                Ok(watcher::Event::InitDone) => (labelled, are_known) = (std::mem::take(&mut listed), true),
                Ok(watcher::Event::Apply(namespace)) => drop(labelled.insert(namespace.name_any())),
                Ok(watcher::Event::Delete(namespace)) => drop(labelled.remove(&namespace.name_any())),
                Err(error) => tracing::debug!(%error, "the watch of namespaces broke"),
            },
            Some(suspect) = suspects.recv(), if are_known => {
                let is_asked = suspect.asks_itself || labelled.contains(&suspect.namespace);
                let key = suspect.key();
                if !is_asked || !told.may_tell(&suspect.namespace, &key, Instant::now()) {
                    continue;
                }
                let trouble = match timeout(TIMEOUT, make(&client, &suspect)).await {
                    Ok(Ok(())) => {
                        told.remember(key);
                        None
                    }
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("no answer".to_owned()),
                };
                if let Some(error) = trouble.as_ref().filter(|_| !is_broken) {
                    tracing::warn!(namespace = suspect.namespace, error, "an Event can't be made");
                }
                is_broken = trouble.is_some();
            }
        }
    }
}

/// Makes the Event, unless the API server has it already.
async fn make(client: &Client, suspect: &Suspect) -> kube::Result<()> {
    let api: Api<Event> = Api::namespaced(client.clone(), &suspect.namespace);
    match api.create(&PostParams::default(), &event(suspect, Timestamp::now())).await {
        // An earlier control plane has said it.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        made => made.map(drop),
    }
}

fn event(suspect: &Suspect, now: Timestamp) -> Event {
    let Suspect { namespace, name, uid, why, .. } = suspect;
    let key = suspect.key();
    // The name of a pod may be as long as that of an Event. Before the dot there must be a letter or a digit.
    let room = NAME_BYTES.saturating_sub(".weft-".len() + key.len());
    let stem: String = name.chars().take(room).collect();
    let stem = stem.trim_end_matches(['-', '.']);
    let (kind, action, reason) = match why {
        Why::NoSidecar(_) => ("Pod", "Inject", "NoSidecar"),
        Why::Contracts(_) => ("Service", "Decide", "InvalidContracts"),
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{stem}.weft-{key}")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        action: Some(action.to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(suspect.note()),
        reason: Some(reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("weft.dev/injector".to_owned()),
        reporting_instance: Some(CONTROL.to_owned()),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

/// Which Events were made lately.
#[derive(Debug, Default)]
struct Told {
    window: Option<Instant>,
    of_all: usize,
    /// At most as many as there were Events in the window.
    of_namespaces: BTreeMap<String, usize>,
    /// The keys of what was told, the oldest first.
    order: VecDeque<String>,
    keys: BTreeSet<String>,
}

impl Told {
    /// Whether an Event may be made now. If so, it counts.
    fn may_tell(&mut self, namespace: &str, key: &str, now: Instant) -> bool {
        if self.keys.contains(key) {
            return false;
        }
        if self.window.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW) {
            (self.window, self.of_all) = (Some(now), 0);
            self.of_namespaces.clear();
        }
        let before = self.of_namespaces.get(namespace).copied().unwrap_or(0);
        if self.of_all >= OF_ALL || before >= OF_NAMESPACE {
            return false;
        }
        self.of_all += 1;
        self.of_namespaces.insert(namespace.to_owned(), before + 1);
        true
    }

    /// The API server has the Event.
    fn remember(&mut self, key: String) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        self.order.push_back(key.clone());
        self.keys.insert(key);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
    };

    use super::*;
    use http::{Method, Request, Response};
    use kube::client::Body;

    fn pod(name: &str, labels: Value, spec: Value) -> (ObjectMeta, Value) {
        let metadata = json!({"name": name, "namespace": "shop", "uid": format!("uid-of-{name}"), "labels": labels});
        (serde_json::from_value(metadata).unwrap(), spec)
    }

    fn suspect((metadata, spec): &(ObjectMeta, Value)) -> Option<Suspect> {
        super::suspect(metadata, spec)
    }

    fn on_host(name: &str) -> (ObjectMeta, Value) {
        pod(name, json!({}), json!({"hostNetwork": true, "containers": [{"name": "app"}]}))
    }

    #[test]
    fn only_a_pod_that_should_have_a_sidecar_is_a_suspect() {
        let found = suspect(&on_host("a")).unwrap();
        assert_eq!(
            (found.why, found.asks_itself, found.uid.as_str()),
            (Why::NoSidecar(Reason::HostNetwork), false, "uid-of-a")
        );
        let host = json!({"hostNetwork": true, "containers": [{"name": "app"}]});
        assert!(suspect(&pod("a", json!({"weft.dev/inject": "enabled"}), host.clone())).unwrap().asks_itself);
        assert!(suspect(&pod("a", json!({"weft.dev/inject": "disabled"}), host)).is_none());
        assert!(suspect(&pod("a", json!({}), json!({"containers": [{"name": "app"}]}))).is_none());
        let windows = json!({"nodeSelector": {"kubernetes.io/os": "windows"}, "containers": [{"name": "app"}]});
        assert_eq!(suspect(&pod("a", json!({}), windows)).unwrap().why, Why::NoSidecar(Reason::Windows));
        let linux = json!({"nodeSelector": {"kubernetes.io/os": "linux"}, "containers": [{"name": "app"}]});
        assert!(suspect(&pod("a", json!({}), linux)).is_none());
        let taken = json!({"containers": [{"name": "weft-sidecar"}]});
        assert_eq!(suspect(&pod("a", json!({}), taken)).unwrap().why, Why::NoSidecar(Reason::NameTaken));
        let mut deleted = on_host("a");
        deleted.0.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(suspect(&deleted).is_none());
    }

    #[test]
    fn an_annotation_that_is_wrong_is_told_with_what_is_allowed() {
        let service = |annotations: Value| -> ObjectMeta {
            let metadata = json!({"name": "users", "namespace": "shop", "uid": "u1", "annotations": annotations});
            serde_json::from_value(metadata).unwrap()
        };
        assert!(wrongly_annotated(&service(json!({}))).is_none());
        assert!(wrongly_annotated(&service(json!({"weft.dev/contracts": "a.B"}))).is_none());
        let wrong = wrongly_annotated(&service(json!({"weft.dev/contracts": "a b"}))).unwrap();
        assert!(wrong.asks_itself);
        let found = event(&wrong, Timestamp::UNIX_EPOCH);
        let regarding = found.regarding.unwrap();
        assert_eq!((regarding.kind.as_deref(), regarding.name.as_deref()), (Some("Service"), Some("users")));
        assert_eq!(found.reason.as_deref(), Some("InvalidContracts"));
        let note = found.note.unwrap();
        let said = "the annotation weft.dev/contracts has no effect: found the text \"a b\"; allowed: the full names";
        assert!(note.starts_with(said), "{note}");
        // Another mistake is another Event.
        let other = wrongly_annotated(&service(json!({"weft.dev/contracts": "a c"}))).unwrap();
        assert_ne!(other.key(), wrong.key());
        assert_ne!(event(&other, Timestamp::UNIX_EPOCH).metadata.name, found.metadata.name);
        let again = wrongly_annotated(&service(json!({"weft.dev/contracts": "a b"}))).unwrap();
        assert_eq!(again.key(), wrong.key());
    }

    /// The API server refuses longer ones.
    #[test]
    fn the_note_of_an_event_is_not_too_long() {
        let mut wrong = suspect(&on_host("a")).unwrap();
        for odd in ["\\u{202e}", "\u{e9}"] {
            wrong.why = Why::Contracts(odd.repeat(2_000));
            let note = wrong.note();
            assert!(note.len() > NOTE_BYTES - 8 && note.len() <= NOTE_BYTES, "{note}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_pods_of_one_namespace_leave_room_for_others() {
        let mut told = Told::default();
        let now = Instant::now();
        let some = |told: &mut Told, namespace: &str, at| {
            let tell = |n: &usize| {
                let key = format!("{namespace}-{n}-{at:?}");
                let may = told.may_tell(namespace, &key, at);
                if may {
                    told.remember(key);
                }
                may
            };
            (0..1_000).filter(tell).count()
        };
        assert_eq!(some(&mut told, "flood", now), OF_NAMESPACE);
        assert!(told.may_tell("shop", "a", now));
        told.remember("a".to_owned());
        assert!(!told.may_tell("shop", "a", now), "each is told once");
        let all: usize = (0..100).map(|n| some(&mut told, &format!("other-{n}"), now)).sum();
        assert_eq!(all, OF_ALL - OF_NAMESPACE - 1);
        assert!(told.of_namespaces.len() <= OF_ALL);
        let later = now + WINDOW;
        assert!(!told.may_tell("shop", "a", later), "it is told once in any window");
        assert_eq!(some(&mut told, "flood", later), OF_NAMESPACE);
        for minute in 0..u32::try_from(REMEMBERED).unwrap() / 10 {
            some(&mut told, &format!("n-{minute}"), later + WINDOW * (minute + 1));
            some(&mut told, &format!("m-{minute}"), later + WINDOW * (minute + 1));
        }
        assert!(told.keys.len() <= REMEMBERED && told.order.len() == told.keys.len());
    }

    #[test]
    fn the_name_of_an_event_is_not_too_long() {
        let mut long = suspect(&on_host(&format!("{}-{}", "x".repeat(210), "y".repeat(42)))).unwrap();
        long.uid = "c0ffee00-0000-4000-8000-000000000000".to_owned();
        let found = event(&long, Timestamp::UNIX_EPOCH);
        let name = found.metadata.name.unwrap();
        assert_eq!((name.len(), name.ends_with(&format!("x.weft-{}", long.key()))), (NAME_BYTES, true));
        let short = event(&suspect(&on_host("a")).unwrap(), Timestamp::UNIX_EPOCH);
        assert!(short.metadata.name.unwrap().starts_with("a.weft-uid-of-a-"));
        assert!(short.note.unwrap().contains("hostNetwork"));
    }

    /// One namespace has the label, and another has not. The API server can't make the first Event.
    #[tokio::test(start_paused = true)]
    async fn the_owner_of_a_pod_is_told_once() {
        let (events, mut made) = mpsc::unbounded_channel();
        let is_away = Arc::new(AtomicBool::new(true));
        let api_server = tower::service_fn(move |request: Request<Body>| {
            let (events, is_away) = (events.clone(), Arc::clone(&is_away));
            async move {
                let (path, query) =
                    (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
                if query.contains("watch=") {
                    return pending().await;
                }
                let content = match request.method() {
                    &Method::POST => {
                        let _ = events.send(path);
                        if is_away.swap(false, Relaxed) {
                            return Ok(Response::builder().status(500).body(Body::empty()).unwrap());
                        }
                        let conflict = json!({"kind": "Status", "status": "Failure", "reason": "AlreadyExists", "code": 409, "message": ""});
                        let body = Body::from(conflict.to_string().into_bytes());
                        return Ok::<_, Infallible>(Response::builder().status(409).body(body).unwrap());
                    }
                    _ => json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                        "metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "shop"}}]}),
                };
                Ok(Response::new(Body::from(content.to_string().into_bytes())))
            }
        });
        let (reports, telling) = start(Client::new(api_server, "default"));
        let telling = tokio::spawn(telling);
        let mut elsewhere = on_host("b");
        elsewhere.0.namespace = Some("other".to_owned());
        for _ in 0..3 {
            for (metadata, spec) in [&elsewhere, &on_host("a")] {
                reports.look(metadata, spec);
            }
        }
        for _ in 0..2 {
            assert_eq!(made.recv().await.unwrap(), "/apis/events.k8s.io/v1/namespaces/shop/events");
        }
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert!(made.try_recv().is_err(), "once after it can be made");
        telling.abort();
    }
}
