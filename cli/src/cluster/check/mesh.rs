//! What the control plane knows against what the cluster says: sidecars that are not connected, Services without an
//! endpoint in the mesh, and contracts that several Services claim.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use weft_control::kubernetes::names::{CONTROL, NAMESPACE, annotation};
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    names::ServiceName,
};

use super::{
    super::{
        api::Api,
        control_plane::{self, Contest, Sidecar},
        finding::{Finding, Findings},
        objects::EndpointSlice,
        pods::Pod,
    },
    cut, unread,
};

/// A Service: the addresses of its pods, and the ports of the pods that it leads to.
#[derive(Debug, Default)]
struct Service {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

/// By namespace and name.
type Services = BTreeMap<(String, String), Service>;

pub(super) async fn check(api: &Api, pods: &[Pod], trust_domain: &str, findings: &mut Findings) {
    let right = format!("get services/proxy in the namespace {NAMESPACE}");
    let sidecars = match control_plane::sidecars(api).await {
        Ok(sidecars) => sidecars,
        Err(trouble) => return findings.add(unread("mesh", &right, &trouble)),
    };
    findings.add(of_connections(pods, &sidecars, trust_domain));
    let mut services = Services::new();
    let listed = api.list("/apis/discovery.k8s.io/v1/endpointslices", "", |slice: EndpointSlice| {
        take(&mut services, slice);
        Some(())
    });
    match listed.await {
        Ok(listed) => {
            if listed.is_cut {
                findings.add(cut("services"));
            }
            of_services(&services, pods, &sidecars).into_iter().for_each(|finding| findings.add(finding));
        }
        Err(trouble) => findings.add(unread("services", "list endpointslices in all namespaces", &trouble)),
    }
    match control_plane::contests(api).await {
        Ok(contests) => findings.add(of_contests(&contests, &services)),
        Err(trouble) => findings.add(unread("contracts", &right, &trouble)),
    }
}

/// Whether each ready pod's sidecar is connected.
fn of_connections(pods: &[Pod], sidecars: &[Sidecar], trust_domain: &str) -> Finding {
    let connected: BTreeSet<(IpAddr, &str)> = sidecars
        .iter()
        .filter(|sidecar| sidecar.connected)
        .map(|sidecar| (sidecar.address, sidecar.spiffe_id.as_str()))
        .collect();
    let ready: Vec<&Pod> = pods.iter().filter(|pod| pod.has_sidecar() && pod.not_ready.is_none()).collect();
    let is_away = |pod: &&&Pod| {
        let id = identity(pod, trust_domain);
        !pod.ip.zip(id).is_some_and(|(ip, id)| connected.contains(&(ip, id.as_str())))
    };
    let away: Vec<String> = ready.iter().filter(is_away).map(|pod| pod.full_name()).collect();
    if away.is_empty() {
        return Finding::good("mesh", format!("the sidecars of all {} ready pods are connected", ready.len()));
    }
    let found = "the sidecars of these pods are not connected to the control plane: they go on with what they know";
    let to_do = "kubectl -n NAMESPACE logs NAME -c weft-sidecar; if the control plane was restarted just now, run this again; \
                 pods that are older than the CA have to be restarted";
    Finding::error("mesh", found, to_do).about(away)
}

/// A pod's identity, as text.
pub(in crate::cluster) fn identity(pod: &Pod, trust_domain: &str) -> Option<String> {
    let trust_domain: TrustDomain = trust_domain.parse().ok()?;
    let service = ServiceName::new(&pod.account, &pod.namespace).ok()?;
    Some(SpiffeId::of_service(&trust_domain, &service).to_string())
}

fn take(services: &mut Services, slice: EndpointSlice) {
    let Some(name) = slice.metadata.labels.get("kubernetes.io/service-name") else { return };
    let service = services.entry((slice.metadata.namespace.clone(), name.clone())).or_default();
    let addresses = slice.endpoints.iter().filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
    service.addresses.extend(addresses);
    service.ports.extend(slice.ports.iter().filter_map(|port| u16::try_from(port.port?).ok()));
}

/// Services whose pods have a sidecar and that are not in the mesh, or lead past it. Sidecars that are not connected are left
/// out: that they are not is said already.
fn of_services(services: &Services, pods: &[Pod], sidecars: &[Sidecar]) -> Vec<Finding> {
    let ready = pods.iter().filter(|pod| pod.has_sidecar() && pod.not_ready.is_none());
    let connected: BTreeSet<IpAddr> = sidecars.iter().filter(|of| of.connected).map(|of| of.address).collect();
    let by_ip = ready.filter_map(|pod| Some((pod.ip.filter(|ip| connected.contains(ip))?, pod)));
    let by_ip: HashMap<IpAddr, &Pod> = by_ip.collect();
    let known: BTreeSet<&str> =
        sidecars.iter().flat_map(|sidecar| &sidecar.endpoints).map(|endpoint| endpoint.service.as_str()).collect();
    let (mut absent, mut past, mut in_mesh) = (Vec::new(), Vec::new(), 0);
    for ((namespace, name), service) in services {
        let of: Vec<&&Pod> = service.addresses.iter().filter_map(|ip| by_ip.get(ip)).collect();
        let Some(first) = of.first() else { continue };
        let shown = format!("{namespace}/{name}");
        if !known.contains(format!("{name}.{namespace}").as_str()) {
            absent.push(match of.iter().all(|pod| pod.port.is_none()) {
                true => format!("{shown}: its pods, as {}, declare no TCP port", first.name),
                false => format!("{shown}: its pods, as {}, are ready", first.name),
            });
            continue;
        }
        in_mesh += 1;
        let ports = of.iter().filter_map(|pod| Some((pod.port?, *pod)));
        let mut other = ports.filter(|(port, _)| !service.ports.contains(port));
        if let Some((port, pod)) = other.next() {
            past.push(format!("{shown}: the mesh leads to port {port} of {}", pod.name));
        }
    }
    let mut findings = Vec::new();
    if !absent.is_empty() {
        let found = "the pods of these Services have a sidecar, but the Services have no endpoint in the mesh";
        let to_do = format!(
            "declare the port in the first container, or in the annotation {}; if it is declared, see kubectl -n {NAMESPACE} \
             logs deployment/{CONTROL}",
            annotation::PORT
        );
        findings.push(Finding::warning("services", found, to_do).about(absent));
    }
    if !past.is_empty() {
        let found = "no port of these Services leads to the port of their pods that the mesh calls: by their cluster \
                     addresses they are outside the mesh";
        let to_do = format!("let the Services' targetPort and the annotation {} agree", annotation::PORT);
        findings.push(Finding::warning("services", found, to_do).about(past));
    }
    if findings.is_empty() {
        findings.push(Finding::good(
            "services",
            format!("all {in_mesh} Services whose pods have a sidecar are in the mesh"),
        ));
    }
    findings
}

fn of_contests(contests: &[Contest], services: &Services) -> Finding {
    if contests.is_empty() {
        return Finding::good("contracts", "no contract or address is claimed by two Services");
    }
    let service = |id: &str| id.parse::<SpiffeId>().ok().map(|id| id.service().clone());
    let addresses = |of: &ServiceName| services.get(&(of.namespace().to_owned(), of.name().to_owned()));
    let text = |contest: &Contest| {
        let Contest { claim, owner, claimant } = contest;
        let Some((owner, claimant)) = service(owner).zip(service(claimant)) else {
            return format!("{claim}: {owner} has it, {claimant} claims it");
        };
        let shared = addresses(&owner).zip(addresses(&claimant));
        let are_shared = shared.is_some_and(|(one, other)| !one.addresses.is_disjoint(&other.addresses));
        let why = if are_shared { "; both Services select the same pods" } else { "" };
        format!("{claim}: {owner} has it, {claimant} claims it{why}")
    };
    let found = "these contracts or addresses are claimed by two Services; the one that has it gets the calls";
    let to_do = format!(
        "let only one of them implement it, or say which one has it: by the annotation {} of that Service if both are in one \
         namespace, else in `contracts` of MeshDefaults. What MeshDefaults does not name can also be released: kubectl -n \
         {NAMESPACE} exec deployment/{CONTROL} -- /weft identity release CONTRACT --state-dir /var/lib/weft",
        annotation::CONTRACTS
    );
    Finding::warning("contracts", found, to_do).about(contests.iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::{control_plane::Endpoint, finding::Level, tests},
        *,
    };

    fn pod(name: &str, ip: [u8; 4], port: Option<u16>) -> Pod {
        Pod { port, ..tests::pod(name, ip) }
    }

    fn sidecar(name: &str, ip: [u8; 4], services: &[&str]) -> Sidecar {
        let endpoint =
            |service: &&str| Endpoint { service: (*service).to_owned(), health: "up".to_owned(), silent: false };
        Sidecar {
            address: ip.into(),
            spiffe_id: format!("spiffe://weft.test/ns/shop/sa/{name}"),
            connected: true,
            connected_seconds: 1,
            follows: 0,
            unsent: 0,
            endpoints: services.iter().map(endpoint).collect(),
        }
    }

    fn services(all: &[(&str, [u8; 4], u16)]) -> Services {
        let of = |(name, ip, port): &(&str, [u8; 4], u16)| {
            let service = Service { addresses: [(*ip).into()].into(), ports: [*port].into() };
            (("shop".to_owned(), (*name).to_owned()), service)
        };
        all.iter().map(of).collect()
    }

    #[test]
    fn a_sidecar_is_connected_under_the_pods_own_identity() {
        let pods = [pod("a", [10, 0, 0, 1], None), pod("b", [10, 0, 0, 2], None)];
        let both = [sidecar("a", [10, 0, 0, 1], &[]), sidecar("b", [10, 0, 0, 2], &[])];
        assert_eq!(of_connections(&pods, &both, "weft.test").level, Level::Good);
        let other = [sidecar("a", [10, 0, 0, 1], &[]), sidecar("a", [10, 0, 0, 2], &[])];
        let found = of_connections(&pods, &other, "weft.test");
        assert_eq!((found.level, found.objects), (Level::Error, vec!["shop/b".to_owned()]));
        let broken = [both[0].clone(), Sidecar { connected: false, ..both[1].clone() }];
        assert_eq!(of_connections(&pods, &broken, "weft.test").objects, ["shop/b"]);
        let waits = [pods[0].clone(), Pod { not_ready: Some("it waits".to_owned()), ..pods[1].clone() }];
        assert_eq!(of_connections(&waits, &both[..1], "weft.test").level, Level::Good);
    }

    #[test]
    fn a_service_is_in_the_mesh_by_the_port_of_its_pods() {
        let pods = [pod("a", [10, 0, 0, 1], Some(9000)), pod("b", [10, 0, 0, 2], None)];
        let known = [sidecar("a", [10, 0, 0, 1], &["a.shop"]), sidecar("b", [10, 0, 0, 2], &[])];
        let of = |all: &[(&str, [u8; 4], u16)]| of_services(&services(all), &pods, &known);
        assert_eq!(of(&[("a", [10, 0, 0, 1], 9000), ("plain", [10, 0, 0, 9], 1)])[0].level, Level::Good);
        let absent = of(&[("b", [10, 0, 0, 2], 80), ("other", [10, 0, 0, 1], 9000)]);
        assert_eq!(
            absent[0].objects,
            ["shop/b: its pods, as b, declare no TCP port", "shop/other: its pods, as a, are ready"]
        );
        let past = of(&[("a", [10, 0, 0, 1], 80)]);
        assert_eq!(past[0].objects, ["shop/a: the mesh leads to port 9000 of a"]);
    }

    #[test]
    fn a_contest_says_who_has_it() {
        let id = |name: &str| format!("spiffe://weft.test/ns/shop/sa/{name}");
        let contest = Contest { claim: "shop.Users".to_owned(), owner: id("a"), claimant: id("b") };
        let one_pod = services(&[("a", [10, 0, 0, 1], 1), ("b", [10, 0, 0, 1], 1)]);
        let found = of_contests(std::slice::from_ref(&contest), &one_pod);
        assert_eq!(found.objects, ["shop.Users: a.shop has it, b.shop claims it; both Services select the same pods"]);
        assert!(found.to_do.unwrap().contains("MeshDefaults"));
        assert_eq!(of_contests(&[], &one_pod).level, Level::Good);
    }
}
