//! Of several control planes one acts: the one that holds the Lease `weft-control`. The others stand by.
//!
//! Sidecars of two would not learn of each other, and each control plane would decide for itself whose a contract is.
//!
//! As in client-go's `leaderelection`, a Lease is another's until this process has seen it unchanged for its duration, by
//! its own clock, so clocks of nodes may differ. Unlike there, a holder that can't reach the API server goes on until it
//! sees another one: if the API server is away, nobody else can take the Lease.

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease as Object, LeaseSpec},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use weft_mesh::names::shown;

use super::{MANAGER, TIMEOUT};
use crate::kubernetes::names::{LABEL_ROLE, LEADER, NAMESPACE};

const NAME: &str = "weft-control";
/// For how long a Lease that nobody renews is still held, and how often it is renewed: the defaults of client-go.
const DURATION: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(2);
/// The longest duration that is believed.
const LONGEST: Duration = Duration::from_secs(60);
/// How often the label of the pod that acts is looked at.
const LABELLING: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone)]
pub(crate) struct Lease {
    leases: Api<Object>,
    pods: Api<Pod>,
    /// The name of this pod. Its container may start anew and still holds the Lease.
    pod: Arc<str>,
    renewed: watch::Sender<Option<Instant>>,
}

/// Says whether this control plane acts.
#[derive(Clone)]
pub(crate) struct Held(watch::Receiver<Option<Instant>>);

impl Held {
    /// Whether it acts, and nobody else can before a request that begins now has ended.
    pub(super) fn is_sure(&self) -> bool {
        self.0.borrow().is_some_and(|at| at.elapsed() + TIMEOUT < DURATION)
    }
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Ours,
    Of(String),
}

/// A Lease of another as it was first seen.
struct Seen {
    version: Option<String>,
    at: Instant,
}

impl Lease {
    pub(super) fn new(client: &Client, pod: &str) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), NAMESPACE),
            pods: Api::namespaced(client.clone(), NAMESPACE),
            pod: pod.into(),
            renewed: watch::channel(None).0,
        }
    }

    pub(crate) fn held(&self) -> Held {
        Held(self.renewed.subscribe())
    }

    /// Waits until this control plane is the one that acts. `stands_by` is called when another does.
    pub(crate) async fn acquire(&self, mut stands_by: impl FnMut()) {
        let mut seen = None;
        let mut told = String::new();
        loop {
            match self.attempt(&mut seen).await {
                Ok(Turn::Ours) => {
                    tracing::info!(pod = &*self.pod, "holds the Lease {NAME}: acts as the control plane");
                    return;
                }
                Ok(Turn::Of(holder)) => {
                    stands_by();
                    if told != holder {
                        tracing::info!(holder = %shown(&holder), "stands by: another pod holds the Lease {NAME}");
                        told = holder;
                    }
                }
                Err(error) => tracing::warn!(error, "the Lease {NAME} can't be read or written yet"),
            }
            sleep(RENEWAL).await;
        }
    }

    /// Renews the Lease. Ends when another holder is seen.
    pub(crate) async fn renew(&self) -> anyhow::Error {
        let (mut seen, mut is_failing) = (None, false);
        loop {
            sleep(RENEWAL).await;
            match self.attempt(&mut seen).await {
                Ok(Turn::Ours) => is_failing = false,
                Ok(Turn::Of(holder)) => {
                    self.renewed.send_replace(None);
                    let holder = shown(&holder);
                    return anyhow!("the pod {holder} holds the Lease {NAME} now: this one starts anew and stands by");
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(
                            error,
                            "the Lease {NAME} can't be renewed; this one acts until it sees another holder"
                        );
                    }
                    is_failing = true;
                }
            }
        }
    }

    /// Keeps the label that leads sidecars to this pod. Never ends.
    pub(crate) async fn keep_label(&self) {
        loop {
            let pause = match timeout(TIMEOUT, self.label()).await {
                Ok(Ok(())) if self.held().is_sure() => LABELLING,
                Ok(Ok(())) => RENEWAL,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the label {LABEL_ROLE} can't be set: sidecars don't find this pod");
                    RENEWAL
                }
                Err(_) => RENEWAL,
            };
            sleep(pause).await;
        }
    }

    /// Gives the Lease to whoever stands by.
    pub(crate) async fn release(&self) {
        let releasing = async {
            let Some(mut found) = self.leases.get_opt(NAME).await? else { return Ok(()) };
            let spec = found.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&*self.pod) {
                spec.holder_identity = None;
                self.leases.replace(NAME, &parameters(), &found).await?;
            }
            Ok::<_, kube::Error>(())
        };
        self.renewed.send_replace(None);
        if !matches!(timeout(TIMEOUT / 5, releasing).await, Ok(Ok(()))) {
            tracing::warn!(after = ?DURATION, "the Lease {NAME} can't be given up; others take it by themselves");
        }
    }

    /// Takes or renews the Lease, if it is ours to take.
    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<Turn, String> {
        match timeout(TIMEOUT, self.try_once(seen)).await {
            Ok(turn) => turn.map_err(|error| error.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        }
    }

    async fn try_once(&self, seen: &mut Option<Seen>) -> kube::Result<Turn> {
        let began = Instant::now();
        let Some(found) = self.leases.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Object { metadata, spec: Some(self.spec(LeaseSpec::default())) };
            self.leases.create(&parameters(), &lease).await?;
            self.renewed.send_replace(Some(began));
            return Ok(Turn::Ours);
        };
        let spec = found.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty() && **holder != *self.pod);
        if let Some(holder) = holder {
            let version = found.resource_version();
            let since = match seen {
                Some(before) if before.version == version => before.at,
                _ => seen.insert(Seen { version, at: Instant::now() }).at,
            };
            let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let duration = seconds.map_or(DURATION, |seconds| Duration::from_secs(seconds).min(LONGEST));
            if since.elapsed() < duration {
                return Ok(Turn::Of(holder));
            }
        }
        // Fails if it has changed since it was read.
        let lease = Object { spec: Some(self.spec(spec)), ..found };
        self.leases.replace(NAME, &parameters(), &lease).await?;
        self.renewed.send_replace(Some(began));
        Ok(Turn::Ours)
    }

    /// The Lease as ours.
    fn spec(&self, before: LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let is_ours = before.holder_identity.as_deref() == Some(&*self.pod);
        LeaseSpec {
            holder_identity: Some(self.pod.to_string()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(now.clone()),
            acquire_time: if is_ours { before.acquire_time } else { Some(now) },
            lease_transitions: Some(before.lease_transitions.unwrap_or_default().saturating_add(i32::from(!is_ours))),
            ..before
        }
    }

    /// Gives this pod the label by which the Service `control` finds the one that acts, and takes it from all others. Does
    /// nothing while another one may act.
    async fn label(&self) -> kube::Result<()> {
        let labelled = ListParams::default().labels(&format!("{LABEL_ROLE}={LEADER}")).limit(100);
        let labelled = self.pods.list_metadata(&labelled).await?;
        // It may have lost the Lease while the API server could not be reached.
        if !self.held().is_sure() {
            return Ok(());
        }
        let (ours, others): (Vec<_>, Vec<_>) =
            labelled.iter().map(|pod| pod.name_any()).partition(|pod| **pod == *self.pod);
        for other in others {
            match self.set_label(&other, None).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                done => done?,
            }
        }
        if ours.is_empty() { self.set_label(&self.pod, Some(LEADER)).await } else { Ok(()) }
    }

    async fn set_label(&self, pod: &str, role: Option<&str>) -> kube::Result<()> {
        let change = json!({"metadata": {"labels": {LABEL_ROLE: role}}});
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.pods.patch_metadata(pod, &parameters, &Patch::Merge(change)).await.map(drop)
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt as _;
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// An API server with one Lease at most, and the names of pods that have the label.
    #[derive(Default)]
    struct Fake {
        is_away: bool,
        lease: Option<Value>,
        labelled: Vec<String>,
        version: u64,
    }

    impl Fake {
        fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
            let refuse = |code: StatusCode, reason: &str| {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                    "reason": reason, "code": code.as_u16()});
                (code, status)
            };
            if self.is_away {
                return refuse(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
            }
            if let Some(pods) = path.strip_prefix("/api/v1/namespaces/weft/pods") {
                let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
                let Some(name) = pods.strip_prefix('/') else {
                    let items: Vec<Value> = self.labelled.iter().map(|name| pod(name)).collect();
                    return (
                        StatusCode::OK,
                        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                        "metadata": {}, "items": items}),
                    );
                };
                let patch: Value = serde_json::from_slice(body).unwrap();
                self.labelled.retain(|labelled| labelled != name);
                if patch["metadata"]["labels"][LABEL_ROLE] == LEADER {
                    self.labelled.push(name.to_owned());
                }
                return (StatusCode::OK, pod(name));
            }
            assert!(path.starts_with("/apis/coordination.k8s.io/v1/namespaces/weft/leases"), "{path}");
            match (method, &self.lease) {
                (&Method::GET, None) => refuse(StatusCode::NOT_FOUND, "NotFound"),
                (&Method::GET, Some(lease)) => (StatusCode::OK, lease.clone()),
                (_, before) => {
                    let new: Value = serde_json::from_slice(body).unwrap();
                    let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
                    if before.as_ref().is_some_and(|before| version(before) != version(&new)) {
                        return refuse(StatusCode::CONFLICT, "Conflict");
                    }
                    (StatusCode::OK, self.put(new))
                }
            }
        }

        fn put(&mut self, mut lease: Value) -> Value {
            self.version += 1;
            lease["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.lease = Some(lease.clone());
            lease
        }

        /// What another pod writes, whose clock is wrong.
        fn put_of(&mut self, holder: &str) {
            self.put(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 4,
                    "renewTime": "2001-01-01T00:00:00.000000Z"}}));
        }

        fn holder(&self) -> String {
            self.lease.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
        }
    }

    fn lease_of(pod: &str, fake: &Arc<Mutex<Fake>>) -> Lease {
        let fake = Arc::clone(fake);
        let api_server = tower::service_fn(move |request: Request<Body>| {
            let fake = Arc::clone(&fake);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (code, answer) = fake.lock().unwrap().answer(&head.method, head.uri.path(), &body);
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
            }
        });
        Lease::new(&Client::new(api_server, NAMESPACE), pod)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_one_acts_and_its_container_may_start_anew() {
        let fake = Arc::<Mutex<Fake>>::default();
        for _ in 0..2 {
            let before = Instant::now();
            let lease = lease_of("control-1", &fake);
            assert!(!lease.held().is_sure());
            lease.acquire(|| panic!("nobody else is there")).await;
            assert_eq!(before.elapsed(), Duration::ZERO);
            assert!(lease.held().is_sure());
        }
        let fake = fake.lock().unwrap();
        let spec = &fake.lease.as_ref().unwrap()["spec"];
        assert_eq!((fake.holder().as_str(), &spec["leaseTransitions"]), ("control-1", &json!(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn it_takes_over_when_it_has_seen_no_renewal_for_the_leases_duration() {
        let fake = Arc::<Mutex<Fake>>::default();
        fake.lock().unwrap().put_of("control-1");
        let (lease, mut has_stood_by) = (lease_of("control-2", &fake), false);
        let before = Instant::now();
        let renewing = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(10)).await;
                fake.lock().unwrap().put_of("control-1");
            }
            std::future::pending().await
        };
        tokio::select! {
            () = lease.acquire(|| has_stood_by = true) => {}
            () = renewing => {}
        }
        let waited = before.elapsed() - Duration::from_secs(100);
        assert!((DURATION..=DURATION + 2 * RENEWAL).contains(&waited), "{waited:?}");
        assert!(has_stood_by);
        let fake = fake.lock().unwrap();
        let spec = &fake.lease.as_ref().unwrap()["spec"];
        assert_eq!((fake.holder().as_str(), &spec["leaseTransitions"]), ("control-2", &json!(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_given_up_is_taken_at_once_and_by_one_alone() {
        let fake = Arc::<Mutex<Fake>>::default();
        let first = lease_of("control-1", &fake);
        first.acquire(|| ()).await;
        let (second, third) = (lease_of("control-2", &fake), lease_of("control-3", &fake));
        second.release().await;
        assert_eq!(fake.lock().unwrap().holder(), "control-1", "nobody gives up what is another's");
        first.release().await;
        assert!(!first.held().is_sure());
        let won = tokio::select! {
            () = second.acquire(|| ()) => "control-2",
            () = third.acquire(|| ()) => "control-3",
        };
        assert_eq!(fake.lock().unwrap().holder(), won);
    }

    #[tokio::test(start_paused = true)]
    async fn it_acts_while_the_api_server_is_away_and_until_it_sees_another() {
        let fake = Arc::<Mutex<Fake>>::default();
        let lease = lease_of("control-1", &fake);
        lease.acquire(|| ()).await;
        let held = lease.held();
        let mut keeping = std::pin::pin!(lease.renew());
        assert!(timeout(Duration::from_secs(60), &mut keeping).await.is_err());
        assert!(held.is_sure());
        fake.lock().unwrap().is_away = true;
        assert!(timeout(Duration::from_secs(600), &mut keeping).await.is_err(), "nobody else can act");
        assert!(!held.is_sure(), "but it writes nothing that could be another's");
        fake.lock().unwrap().is_away = false;
        assert!(timeout(Duration::from_secs(10), &mut keeping).await.is_err());
        assert!(held.is_sure());
        fake.lock().unwrap().put_of("control-2");
        let error = timeout(Duration::from_secs(10), keeping).await.unwrap().to_string();
        assert!(error.contains("control-2") && !held.is_sure(), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_label_leads_to_the_one_that_acts_alone() {
        let fake = Arc::<Mutex<Fake>>::default();
        fake.lock().unwrap().labelled = vec!["control-1".into(), "control-2".into()];
        let lease = lease_of("control-3", &fake);
        lease.acquire(|| ()).await;
        assert_eq!(fake.lock().unwrap().labelled.len(), 2, "its ports are not bound yet");
        let renewing = async {
            lease.renew().await;
        };
        let mut keeping = std::pin::pin!(async { tokio::join!(lease.keep_label(), renewing) });
        assert!(timeout(Duration::from_secs(1), &mut keeping).await.is_err());
        assert_eq!(fake.lock().unwrap().labelled, ["control-3"]);
        // Somebody takes it away.
        fake.lock().unwrap().labelled.clear();
        assert!(timeout(LABELLING + RENEWAL, keeping).await.is_err());
        assert_eq!(fake.lock().unwrap().labelled, ["control-3"]);
    }
    /// Otherwise sidecars would be led to one that is about to start anew.
    #[tokio::test(start_paused = true)]
    async fn one_that_may_have_lost_the_lease_leaves_the_label_alone() {
        let fake = Arc::<Mutex<Fake>>::default();
        let lease = lease_of("control-1", &fake);
        lease.acquire(|| ()).await;
        sleep(DURATION).await;
        fake.lock().unwrap().labelled = vec!["control-2".into()];
        assert!(timeout(LABELLING, lease.keep_label()).await.is_err());
        assert_eq!(fake.lock().unwrap().labelled, ["control-2"]);
    }
}
