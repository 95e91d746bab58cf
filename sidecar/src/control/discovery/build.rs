//! Makes [`Service`]s from the control plane's messages, and keeps what must survive a change.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use weft_contracts::weft::discovery::v1 as wire;
use weft_mesh::{
    names::ServiceName,
    policy::{Idempotency, MethodPolicy, ServicePolicy},
};

use crate::{
    endpoints::catalog::{Endpoint, Method, Service, judge_silent, reset},
    policy::{
        breaker::{Breaker, Owner},
        fallback::Fallback,
    },
    telemetry::metrics::{BreakerOpenings, CallLabels, CallMetrics, Direction, Metrics, OTHER},
    time::moment::Moment,
};

/// See the module.
pub(super) struct Builder {
    metrics: Arc<Metrics>,
    /// The caller's label in metrics.
    caller: String,
    /// How often a service was built, and how often an endpoint was compared with an older one.
    #[cfg(test)]
    pub(super) work: std::cell::Cell<(usize, usize)>,
}

/// A service, decoded.
pub(super) struct Parts {
    pub(super) name: ServiceName,
    pub(super) protocol: wire::Protocol,
    pub(super) version: wire::Version,
    pub(super) policy: Arc<ServicePolicy>,
    pub(super) endpoints: Vec<EndpointParts>,
    pub(super) addresses: Vec<SocketAddr>,
    /// When the control plane sent this.
    pub(super) heard: Instant,
    pub(super) is_complete: bool,
}

/// An endpoint, decoded.
#[derive(Clone)]
pub(super) struct EndpointParts {
    pub(super) id: String,
    address: SocketAddr,
    spiffe_id: weft_mesh::identity::SpiffeId,
    health: wire::Health,
    /// It is down only because the control plane has lost its stream.
    is_silent: bool,
}

impl EndpointParts {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn of(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id.clone(),
            address: endpoint.address,
            spiffe_id: endpoint.spiffe_id.clone(),
            health: if endpoint.is_silent() { wire::Health::Down } else { endpoint.health() },
            is_silent: endpoint.is_silent(),
        }
    }
}

impl TryFrom<wire::Endpoint> for EndpointParts {
    type Error = String;

    fn try_from(endpoint: wire::Endpoint) -> Result<Self, String> {
        Ok(Self {
            address: endpoint.address.parse().map_err(|e| format!("{}: {e}", endpoint.address))?,
            spiffe_id: endpoint.spiffe_id.parse().map_err(|e: weft_mesh::identity::IdentityError| e.to_string())?,
            health: endpoint.health(),
            is_silent: endpoint.silent,
            id: endpoint.id,
        })
    }
}

impl Builder {
    pub(super) fn new(metrics: Arc<Metrics>, caller: String) -> Self {
        Self {
            metrics,
            caller,
            #[cfg(test)]
            work: std::cell::Cell::default(),
        }
    }

    /// A time in the unit of [`Service::last_used`].
    pub(super) fn seconds(&self, now: Instant) -> u64 {
        Moment::of(now).since_start().as_secs()
    }

    /// Makes the service, and keeps what is worth keeping from `before`.
    pub(super) fn service(&self, parts: Parts, before: Option<&Service>, now: Instant) -> Service {
        let breaker_policy = &parts.policy.breaker.value;
        let BreakerOpenings { itself, endpoints: of_endpoints } = self.metrics.breaker_openings(parts.name.as_str());
        let owner = Owner { service: parts.name.clone(), endpoint: None, openings: itself };
        let breaker = match before {
            Some(before) if before.breaker.policy() == breaker_policy => Arc::clone(&before.breaker),
            _ => Arc::new(Breaker::new(breaker_policy.clone()).of(owner.clone())),
        };
        let (methods, other) = match before {
            // A change of an endpoint keeps the methods: its cost must not depend on the size of the contract, which
            // its owner chooses.
            Some(before) if Arc::ptr_eq(&before.policy, &parts.policy) || before.policy == parts.policy => {
                (Arc::clone(&before.methods), Arc::clone(&before.other))
            }
            _ => (Arc::new(self.methods(&parts, before)), Arc::new(self.other(&parts.name))),
        };
        #[cfg(test)]
        self.work.update(|(built, compared)| (built + 1, compared));
        let before_endpoints = before.map_or(&[][..], |before| &before.endpoints);
        let is_sure = |endpoint: &Arc<Endpoint>| endpoint.is_up() && !endpoint.is_silent();
        let was_up = before_endpoints.iter().any(is_sure);
        let new_breaker = |address| {
            let owner = Owner { endpoint: Some(address), openings: Arc::clone(&of_endpoints), ..owner.clone() };
            Breaker::new(breaker_policy.clone()).of(owner)
        };
        // A service may have thousands of endpoints, and any of them changes all the time.
        let by_id: HashMap<&str, &Arc<Endpoint>> =
            before_endpoints.iter().map(|endpoint| (endpoint.id.as_str(), endpoint)).collect();
        let is_same = |new: &EndpointParts, old: &Endpoint| {
            #[cfg(test)]
            self.work.update(|(built, compared)| (built, compared + 1));
            old.id == new.id
                && old.address == new.address
                && old.spiffe_id == new.spiffe_id
                && old.breaker.policy() == breaker_policy
        };
        let endpoint = |new: EndpointParts| {
            let same = by_id.get(new.id.as_str()).filter(|old| is_same(&new, old));
            endpoint(new, same.copied(), new_breaker)
        };
        let endpoints: Vec<_> = parts.endpoints.into_iter().map(endpoint).collect();
        judge_silent(&endpoints);
        let is_up = endpoints.iter().any(is_sure);
        let starts_since = match before {
            _ if is_up => None,
            Some(before) => before.starts_since,
            None => Some(now),
        };
        if !was_up && is_up {
            // Failures from before an endpoint was surely up say nothing about the endpoints that are up now.
            reset(&breaker);
        }
        Service {
            name: parts.name,
            protocol: parts.protocol,
            version: parts.version,
            endpoints,
            addresses: parts.addresses,
            breaker,
            methods,
            other,
            last_used: before
                .map_or_else(|| Arc::new(AtomicU64::new(self.seconds(now))), |before| Arc::clone(&before.last_used)),
            policy: parts.policy,
            heard: parts.heard,
            is_complete: parts.is_complete,
            starts_since,
        }
    }

    /// The methods of a service. One whose own policy stays the same stays itself, and keeps what it knows.
    fn methods(&self, parts: &Parts, before: Option<&Service>) -> HashMap<Box<str>, Arc<Method>> {
        let policies_before: HashMap<Box<str>, &MethodPolicy> =
            before.into_iter().flat_map(|before| methods_of(&before.policy)).collect();
        let method = |(path, policy): (Box<str>, &MethodPolicy)| {
            let is_same = policies_before.get(&path).is_some_and(|before| *before == policy);
            let same = before.filter(|_| is_same).and_then(|before| before.methods.get(&path));
            let method = same.map_or_else(|| Arc::new(self.method(&parts.name, &path[1..], policy)), Arc::clone);
            (path, method)
        };
        methods_of(&parts.policy).map(method).collect()
    }

    /// The method of this name: `shop.users.v1.Users/Create`.
    fn method(&self, service: &ServiceName, name: &str, policy: &MethodPolicy) -> Method {
        Method {
            name: name.into(),
            timeout: policy.timeout.as_ref().map(|timeout| timeout.value),
            idempotency: policy.idempotency,
            fallback: policy.fallback.as_ref().map(|fallback| Box::new(Fallback::new(&fallback.value, service))),
            hedge_after: policy.hedge.map(|hedge| hedge.value.after),
            metrics: self.counters(service, name),
        }
    }

    fn other(&self, service: &ServiceName) -> Method {
        Method {
            name: OTHER.into(),
            timeout: None,
            idempotency: Idempotency::Unknown,
            fallback: None,
            hedge_after: None,
            metrics: self.counters(service, OTHER),
        }
    }

    fn counters(&self, service: &ServiceName, method: &str) -> Arc<CallMetrics> {
        self.metrics.calls(CallLabels {
            direction: Direction::Outbound,
            service: service.to_string(),
            method: method.to_owned(),
            peer: self.caller.clone(),
        })
    }
}

/// The methods of a service's contracts with their paths: `/shop.users.v1.Users/Create`.
fn methods_of(policy: &ServicePolicy) -> impl Iterator<Item = (Box<str>, &MethodPolicy)> {
    policy.contracts.iter().flat_map(|contract| {
        contract.methods.iter().map(|method| (format!("/{}/{}", contract.name, method.name).into(), method))
    })
}

/// An endpoint with the same id, address and identity, and the same policy, stays the same object, to keep its connections
/// and its breaker's state.
fn endpoint(
    new: EndpointParts,
    same: Option<&Arc<Endpoint>>,
    new_breaker: impl FnOnce(SocketAddr) -> Breaker,
) -> Arc<Endpoint> {
    match same {
        Some(old) => {
            old.set_health(new.health, new.is_silent);
            Arc::clone(old)
        }
        None => {
            let breaker = new_breaker(new.address);
            let endpoint = Endpoint::new(new.id, new.address, new.spiffe_id, new.health, breaker);
            endpoint.set_health(new.health, new.is_silent);
            Arc::new(endpoint)
        }
    }
}

/// Adds what was known before to an incomplete snapshot.
pub(super) fn merge(parts: &mut Parts, known: &Service) {
    let ids: HashSet<&str> = parts.endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect();
    let places: HashSet<SocketAddr> = parts.endpoints.iter().map(EndpointParts::address).collect();
    // One with another id at the same address can only be an earlier endpoint there.
    let is_missing = |old: &&Arc<Endpoint>| !ids.contains(old.id.as_str()) && !places.contains(&old.address);
    let missing: Vec<EndpointParts> =
        known.endpoints.iter().filter(is_missing).map(|old| EndpointParts::of(old)).collect();
    parts.endpoints.extend(missing);
    let addresses: HashSet<SocketAddr> = parts.addresses.iter().copied().collect();
    parts.addresses.extend(known.addresses.iter().filter(|old| !addresses.contains(old)).copied());
    // Descriptors come after the announcement that names them.
    if !is_described(&parts.policy, &known.policy) {
        parts.policy = Arc::clone(&known.policy);
    }
}

/// Whether a policy is more than the names of the contracts, which are known: the control plane may still have to read the
/// descriptors.
fn is_described(policy: &ServicePolicy, known: &ServicePolicy) -> bool {
    let names =
        |policy: &ServicePolicy| policy.contracts.iter().map(|contract| contract.name.clone()).collect::<Vec<_>>();
    let has_methods = policy.contracts.iter().any(|contract| !contract.methods.is_empty());
    has_methods || !(policy.contracts.is_empty() || names(policy) == names(known))
}

/// Logs and skips what can't be read.
pub(super) fn decode(service: wire::Service, heard: Instant) -> Option<Parts> {
    let protocol = service.protocol();
    let name = ServiceName::parse(&service.name)
        .inspect_err(|error| tracing::error!(%error, "the control plane sent a service with a bad name"))
        .ok()?;
    let policy = service
        .policy
        .map_or_else(|| Ok(ServicePolicy::default()), ServicePolicy::try_from)
        .inspect_err(
            |error| tracing::error!(service = %name, %error, "the control plane sent a policy that can't be read"),
        )
        .ok()?;
    Some(Parts {
        name,
        protocol,
        version: service.version.unwrap_or_default(),
        policy: Arc::new(policy),
        endpoints: service.endpoints.into_iter().filter_map(decode_endpoint).collect(),
        // Addresses that can't be read are skipped.
        addresses: service.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        heard,
        is_complete: service.complete,
    })
}

pub(super) fn decode_endpoint(endpoint: wire::Endpoint) -> Option<EndpointParts> {
    EndpointParts::try_from(endpoint)
        .inspect_err(|error| tracing::error!(error, "the control plane sent an endpoint that can't be read"))
        .ok()
}

/// A service as a message, for the disk.
pub(super) fn to_wire(service: &Service) -> wire::Service {
    wire::Service {
        name: service.name.to_string(),
        protocol: service.protocol.into(),
        endpoints: service
            .endpoints
            .iter()
            .map(|endpoint| wire::Endpoint {
                id: endpoint.id.clone(),
                address: endpoint.address.to_string(),
                spiffe_id: endpoint.spiffe_id.to_string(),
                health: if endpoint.is_silent() { wire::Health::Down } else { endpoint.health() }.into(),
                silent: endpoint.is_silent(),
            })
            .collect(),
        policy: Some((&*service.policy).into()),
        version: Some(service.version),
        complete: false,
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
    }
}

/// Whether a service was called within the last `seconds`.
pub(super) fn was_used_within(service: &Service, seconds: u64, now_seconds: u64) -> bool {
    service.last_used.load(Relaxed) + seconds >= now_seconds
}
