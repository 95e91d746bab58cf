//! What a pod's annotations and ports say about its sidecar. What they leave out, the [`Config`] says.

use serde_json::json;
use weft_mesh::{
    names::{is_label, port},
    telemetry::LogFormat,
};

use super::{
    super::names::{OBJECT_NAMES, annotation, is_object_name},
    annotations::{field, only_known, parsed},
    config::{Amounts, Config, LEAST_MEMORY_LIMIT, Resources},
    pod::{Error, PORTS, Pod, Port},
    quantity::Quantity,
    redirect::Redirect,
};

/// The ports of a sidecar, with room for those of later versions. A pod's containers share one network, so that the
/// application can't have them.
pub(super) const SIDECAR_PORTS: std::ops::RangeInclusive<u16> = port::ADMIN..=port::METRICS;

/// How long Kubernetes waits for a pod to end if the pod does not say.
pub(super) const GRACE_SECONDS: u64 = 30;
/// How long a sidecar drains if nobody says, as long as the pod's grace period allows it.
const DRAIN_SECONDS: u64 = 10;
/// What is left of the grace period after the drain: the application still has to end.
const SECONDS_AFTER_DRAIN: u64 = 5;

/// The least that a sidecar's `--memory` may be, and the most.
const MEMORY: std::ops::RangeInclusive<u64> = 16 << 20..=1 << 40;
/// What a sidecar needs beside `--memory`: its own code and tables.
const MEMORY_BESIDE: u64 = 32 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Settings {
    /// What others call. Without it, the sidecar only carries outgoing calls.
    pub(super) app: Option<App>,
    /// How the pod's connections get to the sidecar, if they are redirected.
    pub(super) redirect: Option<Redirect>,
    pub(super) log_format: LogFormat,
    /// What all connections of the sidecar may hold together, in bytes.
    pub(super) memory: u64,
    pub(super) drain_seconds: u64,
    pub(super) sample_ratio: f64,
    pub(super) resources: Resources,
}

/// The application of a pod, as others call it.
#[derive(Debug)]
pub(super) struct App {
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// As the flag `--health` of a sidecar.
    pub(super) health: Option<String>,
    /// The ConfigMap with its contracts. Without it, the sidecar asks the application if it speaks gRPC.
    pub(super) contracts: Option<String>,
}

/// What an application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    Http1,
    Tcp,
}

impl Settings {
    pub(super) fn read(config: &Config, pod: &Pod<'_>) -> Result<Self, Error> {
        only_known(pod)?;
        check_account(pod)?;
        let resources = resources(&config.resources, pod)?;
        let is_format = |text: &str| text.parse().ok();
        let is_share = |text: &str| text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        Ok(Self {
            app: app(pod)?,
            redirect: Redirect::read(config, pod)?,
            log_format: parsed(pod, annotation::LOG_FORMAT, "text, json", is_format)?.unwrap_or(config.log_format),
            memory: memory(pod, resources.limits.memory.units())?,
            drain_seconds: drain_seconds(pod)?,
            sample_ratio: parsed(pod, annotation::SAMPLE_RATIO, "a number from 0 to 1", is_share)?
                .unwrap_or(config.sample_ratio),
            resources,
        })
    }
}

/// The service account is the sidecar's identity, and names its service.
fn check_account(pod: &Pod<'_>) -> Result<(), Error> {
    for key in ["serviceAccountName", "serviceAccount"] {
        let Some(found) = pod.spec(key).filter(|found| *found != "") else { continue };
        if !found.as_str().is_some_and(is_label) {
            let allowed = "the name of a service: 1 to 63 of a-z, 0-9 and -, no - at either end, since its service has \
                           the name of its account";
            return Err(Error::found(format!("spec.{key}"), found, allowed));
        }
    }
    Ok(())
}

fn app(pod: &Pod<'_>) -> Result<Option<App>, Error> {
    let mut ports = Vec::new();
    for container in pod.all_containers()? {
        ports.extend(container.ports()?);
    }
    if let Some(taken) = ports.iter().find(|port| SIDECAR_PORTS.contains(&port.number)) {
        return Err(Error::found(&*taken.field, &json!(taken.number), &free_ports()));
    }
    let is_free = |port: &u16| *port > 0 && !SIDECAR_PORTS.contains(port);
    let port = parsed(pod, annotation::PORT, &free_ports(), |text| text.parse().ok().filter(is_free))?;
    let protocol = parsed(pod, annotation::PROTOCOL, "grpc, http1, tcp", Protocol::read)?;
    let health = parsed(pod, annotation::HEALTH, "grpc, tcp, http:/PATH", |text| {
        is_health_check(text).then(|| text.to_owned())
    })?;
    let contracts = parsed(pod, annotation::CONTRACTS, &format!("the name of a ConfigMap: {OBJECT_NAMES}"), |text| {
        is_object_name(text).then(|| text.to_owned())
    })?;
    let first = || Some(pod.containers("containers").ok()?.first()?.ports().ok()?.first()?.number);
    let Some(port) = port.or_else(first) else {
        for (key, is_given) in [
            (annotation::PROTOCOL, protocol.is_some()),
            (annotation::HEALTH, health.is_some()),
            (annotation::CONTRACTS, contracts.is_some()),
        ] {
            if is_given {
                let text = format!(
                    "found no port that it is of; allowed: with {}, or with a port of the first container",
                    annotation::PORT
                );
                return Err(Error::new(field(key), text));
            }
        }
        return Ok(None);
    };
    let named = || ports.iter().find(|of| of.number == port).and_then(Protocol::of_port);
    let protocol = protocol.or_else(named).unwrap_or(Protocol::Grpc);
    if contracts.is_some() && protocol != Protocol::Grpc {
        let text = format!(
            "found an application that speaks {}; allowed: for one that speaks grpc ({})",
            protocol.as_str(),
            annotation::PROTOCOL
        );
        return Err(Error::new(field(annotation::CONTRACTS), text));
    }
    Ok(Some(App { port, protocol, health, contracts }))
}

fn free_ports() -> String {
    let (first, last) = SIDECAR_PORTS.into_inner();
    format!("{PORTS}, but for {first} to {last}: these are the sidecar's")
}

fn is_health_check(text: &str) -> bool {
    let is_path = |path: &str| path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    matches!(text, "grpc" | "tcp") || text.strip_prefix("http:").is_some_and(is_path)
}

impl Protocol {
    fn read(text: &str) -> Option<Self> {
        [Self::Grpc, Self::Http1, Self::Tcp].into_iter().find(|protocol| protocol.as_str() == text)
    }

    /// As the flag `--protocol` of a sidecar.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http1 => "http1",
            Self::Tcp => "tcp",
        }
    }

    /// What the name of a port says. TLS of the application's own passes through as bytes.
    fn of_port(port: &Port<'_>) -> Option<Self> {
        const NAMES: &[(&str, Protocol)] = &[
            ("grpc", Protocol::Grpc),
            ("h2c", Protocol::Grpc),
            ("http2", Protocol::Grpc),
            ("https", Protocol::Tcp),
            ("http", Protocol::Http1),
            ("tcp", Protocol::Tcp),
        ];
        NAMES.iter().find(|(start, _)| port.name.starts_with(start)).map(|(_, protocol)| *protocol)
    }
}

fn drain_seconds(pod: &Pod<'_>) -> Result<u64, Error> {
    const KEY: &str = "terminationGracePeriodSeconds";
    let grace = match pod.spec(KEY) {
        None => GRACE_SECONDS,
        // The API server takes a negative one for 1.
        Some(found) => match found.as_i64() {
            Some(seconds) => u64::try_from(seconds).unwrap_or(1),
            None => return Err(Error::found(format!("spec.{KEY}"), found, "a whole number")),
        },
    };
    let allowed = format!("a whole number from 0 to {grace}, which is the pod's {KEY}");
    let given =
        parsed(pod, annotation::DRAIN_SECONDS, &allowed, |text| text.parse().ok().filter(|seconds| *seconds <= grace))?;
    Ok(given.unwrap_or_else(|| DRAIN_SECONDS.min(grace.saturating_sub(SECONDS_AFTER_DRAIN).max(1))))
}

fn resources(defaults: &Resources, pod: &Pod<'_>) -> Result<Resources, Error> {
    let amount = |key| {
        parsed(pod, key, "an amount above 0, such as 500m, 2, 256Mi or 1.5Gi", |text| {
            text.parse::<Quantity>().ok().filter(|amount| amount.units() > 0)
        })
    };
    let pair = |keys: [&'static str; 2], request: &Quantity, limit: &Quantity| -> Result<_, Error> {
        Ok(match (amount(keys[0])?, amount(keys[1])?) {
            (Some(request), Some(limit)) if request > limit => {
                let allowed = format!("at most {limit}, which is {}", keys[1]);
                return Err(Error::found(field(keys[0]), &json!(request.as_str()), &allowed));
            }
            (Some(request), Some(limit)) => (request, limit),
            // If only one is given, the other makes room for it.
            (Some(request), None) => (request.clone(), request.max(limit.clone())),
            (None, Some(limit)) => (request.clone().min(limit.clone()), limit),
            (None, None) => (request.clone(), limit.clone()),
        })
    };
    let (cpu_request, cpu_limit) =
        pair([annotation::CPU_REQUEST, annotation::CPU_LIMIT], &defaults.requests.cpu, &defaults.limits.cpu)?;
    let (memory_request, memory_limit) = pair(
        [annotation::MEMORY_REQUEST, annotation::MEMORY_LIMIT],
        &defaults.requests.memory,
        &defaults.limits.memory,
    )?;
    if memory_limit.units() < LEAST_MEMORY_LIMIT {
        let allowed = format!("from {} on", Quantity::of_bytes(LEAST_MEMORY_LIMIT));
        return Err(Error::found(field(annotation::MEMORY_LIMIT), &json!(memory_limit.as_str()), &allowed));
    }
    Ok(Resources {
        requests: Amounts { cpu: cpu_request, memory: memory_request },
        limits: Amounts { cpu: cpu_limit, memory: memory_limit },
    })
}

/// What connections may hold together: half of the container's limit, unless the pod says otherwise. With more than the
/// limit leaves free, the kernel would end the sidecar before the sidecar refuses a call.
fn memory(pod: &Pod<'_>, limit: u64) -> Result<u64, Error> {
    let (least, most) = MEMORY.into_inner();
    let half = (limit / 2).clamp(least, most);
    let most = limit.saturating_sub(MEMORY_BESIDE).clamp(half, most);
    let allowed = format!(
        "an amount from {} to {}, as the sidecar's memory is limited to {} (weft.dev/memory-limit)",
        Quantity::of_bytes(least),
        Quantity::of_bytes(most),
        Quantity::of_bytes(limit)
    );
    let given = parsed(pod, annotation::MEMORY, &allowed, |text| {
        let bytes = text.parse::<Quantity>().ok()?.units();
        (least..=most).contains(&bytes).then_some(bytes)
    })?;
    Ok(given.unwrap_or(half))
}
