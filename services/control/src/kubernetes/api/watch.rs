//! Watches of pods, Services and EndpointSlices, which fill the [`Workloads`].
//!
//! A watch that breaks begins anew, with pauses that grow. What it knew stays meanwhile, and a new list replaces it only
//! when it is whole: an API server that restarts takes nothing away.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::Arc,
};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{LIST_PAUSE, due, events, policies, seen::Seen};
use crate::{
    kubernetes::{
        contracts::{self, Named},
        names::annotation,
        workloads::{Condition, Key, Object, Pod, Service, Slice, SliceEndpoint, Workloads, slices::are_too_many},
    },
    rules::Rules,
};

/// So many objects are read at once: each may have more than 1 MB, and anybody can make some.
pub(super) const PAGE: u32 = 50;
/// The label by which a slice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The watches: they end when this is dropped.
pub(crate) struct Watches {
    tasks: JoinSet<()>,
    /// Why that of the rules has ended.
    failed: oneshot::Receiver<anyhow::Error>,
}

impl Watches {
    /// Starts them, and that of the rules. Returns when each has its first list.
    ///
    /// # Errors
    /// One of them has ended.
    pub(super) async fn start(client: &Client, workloads: &Arc<Workloads>, rules: &Arc<Rules>) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        let (has_pods, pods_there) = watch::channel(false);
        let (has_services, services_there) = watch::channel(false);
        let (has_slices, slices_there) = watch::channel(false);
        let (has_rules, rules_there) = watch::channel(false);
        let to = || Arc::clone(workloads);
        let (reports, telling) = events::start(client.clone());
        tasks.spawn(telling);
        let of_services = reports.clone();
        let look = move |pod: &SeenPod| reports.look(&pod.metadata, &pod.content.spec);
        tasks.spawn(follow(Api::all(client.clone()), "pods", pod, look, has_pods, to()));
        let look = move |service: &SeenService| of_services.look_at_service(&service.metadata);
        tasks.spawn(follow(Api::all(client.clone()), "services", service, look, has_services, to()));
        tasks.spawn(follow(Api::all(client.clone()), "endpointslices", slice, |_| {}, has_slices, to()));
        let (failing, failed) = oneshot::channel();
        let keeping = policies::keep(client.clone(), Arc::clone(rules), has_rules);
        tasks.spawn(async move {
            let _ = failing.send(keeping.await);
        });
        for mut is_there in [pods_there, services_there, slices_there, rules_there] {
            // Without what it follows, sidecars would be told that there is nothing.
            is_there.wait_for(|is_there| *is_there).await.context("a watch of the cluster has ended: see the log")?;
        }
        Ok(Self { tasks, failed })
    }

    /// Waits until one of them has ended. That of the rules does so if they can't be followed any more, while a control plane that
    /// starts anew would wait for them. Says why.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        // Each of them runs for ever. One that ends without a word has panicked, which is logged.
        tokio::select! {
            biased;
            Ok(why) = &mut self.failed => why,
            Some(_) = self.tasks.join_next() => anyhow::anyhow!("a watch of the cluster has ended: see the log"),
            else => anyhow::anyhow!("no watch of the cluster runs"),
        }
    }
}

/// Watches all objects of a kind. `read` takes what is needed of one; `None` if it does not count. `look` sees each one that is
/// new or has changed since the watch began.
async fn follow<K, T>(
    api: Api<K>,
    kind: &'static str,
    read: fn(&K) -> Option<T>,
    look: impl Fn(&K),
    has_first: watch::Sender<bool>,
    to: Arc<Workloads>,
) where
    T: Object,
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = || Box::pin(watcher(api.clone(), watcher::Config::default().page_size(PAGE)).default_backoff());
    let mut events = begin();
    let (mut listed, mut weights) = (HashMap::new(), HashMap::new());
    let mut is_broken = false;
    let mut list_at = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = lacks_some::<T>(&to), if list_at.is_none() => {
                list_at = Some(Instant::now() + LIST_PAUSE);
                continue;
            }
            () = due(list_at) => {
                list_at = None;
                events = begin();
                continue;
            }
        };
        let Some(event) = event else { return };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if !is_broken {
                    tracing::warn!(kind, error = %format_args!("{:#}", anyhow::Error::new(error)), "a watch broke; it is begun anew");
                }
                is_broken = true;
                continue;
            }
        };
        if std::mem::take(&mut is_broken) {
            tracing::info!(kind, "the watch goes on");
        }
        match event {
            Event::Init => {
                listed.clear();
                weights.clear();
            }
            Event::InitApply(object) => {
                if let Some(mut content) = read(&object) {
                    let weight: &mut usize = weights.entry(object.namespace().unwrap_or_default()).or_default();
                    *weight += content.weight();
                    if are_too_many(*weight) {
                        content.lighten();
                    }
                    listed.insert(key(&object), content);
                }
            }
            Event::InitDone => {
                to.set_all(std::mem::take(&mut listed));
                has_first.send_replace(true);
            }
            Event::Apply(object) => {
                look(&object);
                to.set(key(&object), read(&object));
            }
            Event::Delete(object) => to.set(key(&object), None::<T>),
        }
    }
}

/// Waits until objects are to be listed that are not kept.
async fn lacks_some<T: Object>(workloads: &Workloads) {
    match T::lacks(workloads) {
        Some(lacks) => lacks.notified().await,
        None => std::future::pending().await,
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What is read of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct OfPod {
    pub(super) spec: Value,
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct OfService {
    spec: ServiceSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
}

/// A port of a Service or a slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    port: Option<i64>,
    protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct OfSlice {
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    target_ref: Option<Target>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Target {
    kind: Option<String>,
    name: Option<String>,
}

pub(super) type SeenPod = Seen<core::Pod, OfPod>;
type SeenService = Seen<core::Service, OfService>;
type SeenSlice = Seen<EndpointSlice, OfSlice>;

/// A pod that has an address of its own and runs: an address is used again when its pod has ended.
fn pod(pod: &SeenPod) -> Option<Pod> {
    let OfPod { spec, status } = &pod.content;
    if spec["hostNetwork"] == true || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let several = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_deref());
    let ips: Vec<_> = several.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    let mut unique = Vec::with_capacity(ips.len());
    ips.into_iter().for_each(|ip| {
        if !unique.contains(&ip) {
            unique.push(ip)
        }
    });
    if unique.is_empty() {
        return None;
    }
    let account = spec["serviceAccountName"].as_str().filter(|name| !name.is_empty());
    Some(Pod { account: account.unwrap_or("default").to_owned(), ips: unique })
}

fn service(service: &SeenService) -> Option<Service> {
    let spec = &service.content.spec;
    let several = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    // A headless Service has "None".
    let mut cluster_ips: Vec<_> = several.filter_map(|ip| ip.parse().ok()).collect();
    cluster_ips.sort_unstable();
    cluster_ips.dedup();
    let metadata = &service.metadata;
    let text = metadata.annotations.as_ref().and_then(|all| all.get(annotation::CONTRACTS));
    // If it is wrong, an Event says so, and contracts stay where they are.
    let named = text.and_then(|text| contracts::read(text).ok()).map(|contracts| {
        let created = metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        Arc::new(Named { created, contracts })
    });
    Some(Service { cluster_ips, ports: ports(&spec.ports), named, not_kept: 0 })
}

fn slice(slice: &SeenSlice) -> Option<Slice> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?.clone();
    let endpoints = slice.content.endpoints.iter().flatten().map(|endpoint| {
        let conditions = endpoint.conditions.unwrap_or_default();
        let is_terminating = conditions.terminating == Some(true);
        // What is not said counts as ready (EndpointConditions). With publishNotReadyAddresses it says ready at all times.
        let condition = match conditions.ready.unwrap_or(true) {
            true => Condition::Ready,
            false if is_terminating && conditions.serving != Some(false) => Condition::Terminating,
            false => Condition::NotReady,
        };
        // More addresses than the first mean nothing (Endpoint.addresses).
        let ips = endpoint.addresses.iter().flatten().next().and_then(|ip| ip.parse().ok()).into_iter().collect();
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        SliceEndpoint { ips, pod: target.and_then(|target| target.name.clone()), condition }
    });
    Some(Slice { service, ports: ports(&slice.content.ports), endpoints: endpoints.collect(), not_kept: 0 })
}

/// Those of TCP, by name.
fn ports(all: &Option<Vec<Port>>) -> BTreeMap<String, u16> {
    let tcp = all.iter().flatten().filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| Some((port.name.clone().unwrap_or_default(), number(port.port?)?))).collect()
}

fn number(port: i64) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of<K: DeserializeOwned>(object: serde_json::Value) -> K {
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_pod_counts_while_it_runs_with_an_address_of_its_own() {
        let with = |spec: serde_json::Value, status: serde_json::Value| {
            let object = json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec, "status": status});
            pod(&of::<SeenPod>(object))
        };
        let spec = json!({"containers": [], "serviceAccountName": "users"});
        let status =
            json!({"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]});
        let found = with(spec.clone(), status.clone()).unwrap();
        assert_eq!(
            found,
            Pod { account: "users".into(), ips: ["10.0.0.7", "fd00::7"].map(|ip| ip.parse().unwrap()).to_vec() }
        );
        assert_eq!(with(json!({"containers": []}), status.clone()).unwrap().account, "default");
        assert_eq!(with(spec.clone(), json!({"phase": "Pending"})), None);
        assert_eq!(with(spec, json!({"phase": "Succeeded", "podIP": "10.0.0.7"})), None);
        assert_eq!(with(json!({"containers": [], "hostNetwork": true}), status), None);
    }

    #[test]
    fn a_service_has_its_addresses_and_tcp_ports() {
        let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"], "ports": [
            {"name": "grpc", "port": 80, "targetPort": "grpc"}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
        let found = service(&of(json!({"metadata": {"name": "users"}, "spec": spec}))).unwrap();
        assert_eq!(found.cluster_ips, ["10.96.0.9", "fd00::9"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
        assert_eq!(found.ports, BTreeMap::from([("grpc".to_owned(), 80)]));
        let headless = json!({"metadata": {"name": "x"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
        assert_eq!(service(&of(headless)), Some(Service::default()));
        let named = |text: &str| {
            let metadata = json!({"name": "users", "creationTimestamp": "1970-01-01T00:01:00Z",
                "annotations": {"weft.dev/contracts": text}});
            service(&of(json!({"metadata": metadata, "spec": {}}))).unwrap().named
        };
        let found = named("a.B,c.D").unwrap();
        assert_eq!((found.created, found.contracts.len()), (60, 2));
        assert_eq!(named("a b"), None);
    }

    #[test]
    fn the_conditions_of_an_endpoint() {
        let with = |conditions: serde_json::Value| {
            let endpoint = json!({"addresses": ["10.0.0.7"], "conditions": conditions});
            let labels = json!({SERVICE_LABEL: "users"});
            let object = json!({"metadata": {"name": "users-x", "labels": labels}, "addressType": "IPv4",
                "endpoints": [endpoint], "ports": [{"name": "grpc", "port": 9000, "protocol": "TCP"}]});
            let found = slice(&of(object)).unwrap();
            assert_eq!((found.service.as_str(), found.ports["grpc"]), ("users", 9000));
            found.endpoints[0].condition
        };
        assert_eq!(with(json!({})), Condition::Ready);
        assert_eq!(with(json!({"ready": true, "serving": true, "terminating": false})), Condition::Ready);
        assert_eq!(with(json!({"ready": false, "serving": false, "terminating": false})), Condition::NotReady);
        assert_eq!(with(json!({"ready": false, "serving": true, "terminating": true})), Condition::Terminating);
        assert_eq!(with(json!({"ready": false, "serving": false, "terminating": true})), Condition::NotReady);
        // Go writes lists that are empty as null, and a slice may have any number as its port.
        let empty =
            json!({"metadata": {"name": "x", "labels": {SERVICE_LABEL: "users"}}, "endpoints": null, "ports": null});
        assert_eq!(slice(&of(empty)), Some(Slice { service: "users".into(), ..Slice::default() }));
        let ports = json!([{"name": "a", "port": -1}, {"name": "b", "port": 70000}, {"name": "c", "port": null}]);
        let odd = json!({"metadata": {"name": "x", "labels": {SERVICE_LABEL: "users"}}, "ports": ports});
        assert_eq!(slice(&of(odd)).unwrap().ports, BTreeMap::new());
        // A slice that a person has made has no label.
        let unlabelled = json!({"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": []});
        assert_eq!(slice(&of(unlabelled)), None);
    }
}
