//! Where calls of the local service go: to which service, and which of its methods.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use weft_contracts::weft::discovery::v1::Protocol;
use weft_mesh::{
    errors::Reason,
    names::{ServiceName, shown},
};
use weft_wire::Headers;

use crate::{
    call::Call,
    endpoints::catalog::{Asked, Route, Service, Unknown},
    message::{
        failure::Failure,
        site,
        target::{self, Target, TargetError},
        tunnel,
    },
    thread::worker::Worker,
};

/// Where a call goes.
pub(crate) enum Routed {
    To(Rc<Route>),
    /// To the sidecar itself.
    Reflection,
}

/// Where the calls of one connection go.
pub(crate) struct Routes {
    lead: Lead,
    last: RefCell<LastRoute>,
}

/// Which service the calls of a connection go to.
enum Lead {
    /// The one that each names.
    AsNamed {
        /// The clients are a person's programs, and a browser may be one of them.
        is_persons: bool,
    },
    /// This one, whatever they name: the connection was redirected from an address of it.
    Address(ServiceName),
    /// This one: the connection came in on a port that leads to it.
    Port(ServiceName),
}

/// Where the last call of a connection went: most of its calls go to the same method.
#[derive(Default)]
struct LastRoute {
    authority: Vec<u8>,
    path: Vec<u8>,
    /// The version of the catalog in which the route was found.
    view: u64,
    /// The first route. A call that it cannot take finds the next in it: see [`Route`].
    route: Option<Rc<Route>>,
}

impl Routes {
    /// Each call goes to the service that it names. If the sidecar is a person's, calls that a web page of another site may
    /// have sent are refused: see [`site`].
    pub(crate) fn as_named(is_persons: bool) -> Self {
        Self { lead: Lead::AsNamed { is_persons }, last: RefCell::default() }
    }

    /// All calls go to this service, whatever they name.
    pub(crate) fn to_address_of(service: &ServiceName) -> Self {
        Self { lead: Lead::Address(service.clone()), last: RefCell::default() }
    }

    /// All calls go to this service. Those that a web page of another site may have sent are refused: see [`site`].
    pub(crate) fn to_port_of(service: &ServiceName) -> Self {
        Self { lead: Lead::Port(service.clone()), last: RefCell::default() }
    }

    /// Where the call goes, if the last one went there and nothing has changed since.
    pub(crate) fn known(&self, worker: &Worker, head: &Headers) -> Option<Rc<Route>> {
        let last = self.last.borrow();
        let route = last.route.as_ref()?;
        let is_same = last.view == worker.shared.catalog.version()
            && head.path() == Some(&last.path)
            && head.authority().is_some_and(|authority| authority == last.authority)
            && self.is_by_authority_and_path(head);
        is_same.then(|| Rc::clone(route))
    }

    /// Whether only authority and path decide where the call goes, and whether it may.
    #[inline]
    fn is_by_authority_and_path(&self, head: &Headers) -> bool {
        match &self.lead {
            Lead::AsNamed { is_persons } => !(target::is_named(head) || *is_persons && site::may_be_foreign(head)),
            Lead::Address(_) => true,
            Lead::Port(_) => !site::may_be_foreign(head),
        }
    }

    /// Finds where the call goes. May have to wait for discovery.
    pub(crate) async fn find(&self, worker: &Worker, call: &Call) -> Result<Routed, Failure> {
        // Only what authority and path alone decide is remembered: no call with `x-weft-service`, and no path that is
        // stripped.
        let named = self.is_by_authority_and_path(&call.head()).then(|| {
            let head = call.head();
            Some((head.authority()?.to_vec(), head.path().unwrap_or_default().to_vec()))
        });
        let view = worker.shared.catalog.version();
        let target = self.target(worker, &mut call.head_mut())?;
        let service = match target {
            Target::Reflection => return Ok(Routed::Reflection),
            Target::Service(name) => find(worker, Asked::Service(name)).await?,
            Target::Contract => {
                let path = target::path(&call.head()).into_owned();
                find_contract(worker, &path).await?
            }
        };
        worker.tick();
        let head = &*call.head();
        if service.protocol == Protocol::Tcp && !tunnel::is_tunnel(head) {
            return Err(speaks_tcp(&service));
        }
        let route = Route::new(service, target::without_query(head.path().unwrap_or_default()));
        if let Some((authority, path)) = named.flatten().filter(|(_, path)| head.path() == Some(path)) {
            *self.last.borrow_mut() = LastRoute { authority, path, view, route: Some(Rc::clone(&route)) };
        }
        Ok(Routed::To(route))
    }

    /// What a head asks for.
    fn target(&self, worker: &Worker, head: &mut Headers) -> Result<Target, Failure> {
        match &self.lead {
            Lead::AsNamed { is_persons } => {
                let namespace = &worker.shared.args.namespace;
                if *is_persons {
                    check_site_of_any(head, namespace)?;
                }
                target::resolve(head, namespace).map_err(no_target)
            }
            Lead::Address(service) => Ok(Target::Service(service.clone())),
            Lead::Port(service) => {
                check_site_of_port(head, service)?;
                Ok(Target::Service(service.clone()))
            }
        }
    }
}

/// Refuses calls on a port that leads to `service` if a web page of another site may have sent them.
fn check_site_of_port(head: &Headers, service: &ServiceName) -> Result<(), Failure> {
    let misdirected = |authority: &str| {
        let message = || {
            format!(
                "this port leads to {service}, and takes no calls to `{}`: a web site may have that name. Give an IP \
                 address, localhost, or {service} as the authority (`Host`)",
                shown(authority)
            )
        };
        (!site::is_of_port(authority, service)).then(message)
    };
    check_site(head, misdirected, format_args!(" from the port of {service}"))
        .map_err(|failure| failure.of_service(service.as_str()))
}

/// Refuses calls on the outbound port of a person's sidecar if a web page of another site may have sent them.
fn check_site_of_any(head: &Headers, namespace: &str) -> Result<(), Failure> {
    let misdirected = |authority: &str| {
        let message = || {
            format!(
                "a web site may have the name `{}`: give a service of the mesh, an IP address or localhost as the \
                 authority (`Host`)",
                shown(authority)
            )
        };
        (!site::is_of_mesh(authority, target::named(head), namespace)).then(message)
    };
    check_site(head, misdirected, format_args!(""))
}

/// Refuses a call if a web page of another site may have sent it. `misdirected` says why its authority is not taken.
fn check_site(
    head: &Headers,
    misdirected: impl FnOnce(&str) -> Option<String>,
    reads: std::fmt::Arguments<'_>,
) -> Result<(), Failure> {
    // A browser sends CONNECT only to its own proxy, and a proxy's CONNECT names any host.
    if tunnel::is_tunnel(head) {
        return Ok(());
    }
    let authority = target::authority(head);
    if let Some(message) = misdirected(&authority) {
        return Err(Failure::new(Reason::Misdirected, message));
    }
    if site::is_foreign(head, &authority) {
        let message =
            format!("a web page of another site sent this (see its `Origin`): such a page may only read{reads}");
        return Err(Failure::new(Reason::PermissionDenied, message));
    }
    Ok(())
}

/// The service that implements the protobuf service in a path, or why there is none.
async fn find_contract(worker: &Worker, path: &str) -> Result<Arc<Service>, Failure> {
    let Some(contract) = target::contract(path) else {
        let message = format!("`{path}` is not a gRPC path: /PACKAGE.SERVICE/METHOD");
        return Err(Failure::new(Reason::NoSuchService, message));
    };
    // No allocation for a known service, which nearly every call names.
    if let Some(service) = worker.shared.catalog.view().contracts.get(contract) {
        return Ok(Arc::clone(service));
    }
    find(worker, Asked::Contract(contract.into())).await
}

/// The service that is asked for, or why there is none.
pub(crate) async fn find(worker: &Worker, asked: Asked) -> Result<Arc<Service>, Failure> {
    let name = asked.to_string();
    Err(match worker.shared.catalog.find(asked).await {
        Ok(service) => return Ok(service),
        Err(Unknown::NotFound { closest }) => {
            let hint = closest.map(|closest| format!("; the closest is {closest}")).unwrap_or_default();
            Failure::new(Reason::NoSuchService, format!("the mesh has no {name}{hint}"))
        }
        Err(Unknown::Away) => Failure::new(
            Reason::ControlPlaneAway,
            format!(
                "{name} is not known here, and the control plane could not say yet whether there is one; try again"
            ),
        ),
        Err(Unknown::Full) => {
            Failure::new(Reason::Overloaded, "too many calls wait for discovery; slow down").retry_after(RETRY_SOON)
        }
    })
}

pub(crate) const RETRY_SOON: Duration = Duration::from_secs(1);

pub(crate) fn speaks_tcp(service: &Service) -> Failure {
    let message = format!(
        "{} does not speak HTTP: connect to it by CONNECT or by a port that leads to it (--forward)",
        service.name
    );
    Failure::new(Reason::Malformed, message).of_service(service.name.as_str())
}

fn no_target(why: TargetError) -> Failure {
    Failure::new(Reason::NoSuchService, why.to_string())
}

/// The failure if the breaker of a service refuses the call.
pub(crate) fn breaker_open(service: &Service, wait: Duration) -> Failure {
    let message = format!("{} fails too often; its breaker is open for {wait:?} more", service.name);
    Failure::new(Reason::BreakerOpen, message).of_service(service.name.as_str()).retry_after(wait)
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;
    use weft_wire::Name;

    use super::*;
    use crate::trial::{
        self,
        peer::{self, post},
        service::{publish, service},
    };

    #[tokio::test(start_paused = true)]
    async fn a_connection_keeps_the_first_route_and_with_it_the_others() {
        LocalSet::new()
            .run_until(async {
                let worker = trial::worker_with_flags(&["--namespace", "shop"]);
                let probe = || service(&worker, "probe", None);
                publish(&worker, [probe(), service(&worker, "other", None)]);
                let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, true);
                let mut named = post();
                named.append(Name::other("x-weft-service"), b"other");
                client.call(&post(), 0);
                client.call(&named, 0);
                client.pass(1).await.expect("the connection lives");
                let call = |number: usize| Rc::clone(&calls.borrow()[number]);

                let routes = Routes::as_named(false);
                assert!(routes.known(&worker, &call(0).head()).is_none());
                let found = async |call: Rc<Call>| match routes.find(&worker, &call).await {
                    Ok(Routed::To(route)) => route,
                    Ok(Routed::Reflection) => panic!("it asks for a service"),
                    Err(failure) => panic!("{}", failure.message),
                };
                let route = found(call(0)).await;
                assert_eq!(route.service.name.as_str(), "probe.shop");
                let kept = routes.known(&worker, &call(0).head()).expect("it was just found");
                assert!(Rc::ptr_eq(&kept, &route));
                kept.fallback.get_or_init(|| Route::new(Arc::clone(&route.service), "/elsewhere"));
                assert!(route.fallback.get().is_some(), "what one call has found, the next one knows");

                assert!(routes.known(&worker, &call(1).head()).is_none(), "it names another service");
                assert_eq!(found(call(1)).await.service.name.as_str(), "other.shop");
                assert!(routes.known(&worker, &call(0).head()).is_some(), "which is not remembered");
                publish(&worker, [probe()]);
                assert!(routes.known(&worker, &call(0).head()).is_none(), "the service may have changed");
                drop(calls.take());
            })
            .await;
    }

    /// What happens to calls with these heads on a port that leads to the service `probe`: the reason why each is refused,
    /// and whether its route is remembered.
    async fn on_a_port(heads: Vec<Headers>) -> Vec<(Option<Reason>, bool)> {
        let worker = trial::worker_with_flags(&["--namespace", "shop"]);
        publish(&worker, [service(&worker, "probe", None)]);
        let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, true);
        for head in &heads {
            client.call(head, 0);
        }
        client.pass(1).await.expect("the connection lives");
        let mut said = Vec::new();
        for call in calls.take() {
            let routes = Routes::to_port_of(&ServiceName::new("probe", "shop").expect("a name"));
            let reason = match routes.find(&worker, &call).await {
                Ok(Routed::To(route)) => {
                    assert_eq!(route.service.name.as_str(), "probe.shop");
                    None
                }
                Ok(Routed::Reflection) => panic!("the port leads to a service"),
                Err(failure) => Some(failure.reason),
            };
            said.push((reason, routes.known(&worker, &call.head()).is_some()));
        }
        said
    }

    fn to(authority: &[u8], fields: &[(&'static str, &str)]) -> Headers {
        let mut head = post();
        head.set(Name::AUTHORITY, authority);
        fields.iter().for_each(|(name, value)| head.append_bytes(name.as_bytes(), value.as_bytes()));
        head
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_of_one_service_takes_no_call_that_another_site_may_have_sent() {
        LocalSet::new()
            .run_until(async {
                let local = &b"127.0.0.1:2379"[..];
                let mut get = to(local, &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")]);
                get.set(Name::METHOD, b"GET");
                let mut bare = to(local, &[("host", "evil.example:80")]);
                bare.remove(Name::AUTHORITY);
                let said = on_a_port(vec![
                    to(local, &[]),
                    to(b"other", &[("x-weft-service", "nobody")]),
                    to(b"evil.example:2379", &[]),
                    bare,
                    to(local, &[("origin", "https://evil.example")]),
                    to(local, &[("origin", "http://127.0.0.1:2379")]),
                    get,
                ])
                .await;
                let misdirected = (Some(Reason::Misdirected), false);
                let expected = [
                    (None, true),
                    (None, true),
                    misdirected,
                    misdirected,
                    (Some(Reason::PermissionDenied), false),
                    (None, false),
                    (None, false),
                ];
                assert_eq!(said, expected);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_names_its_service_by_host_alone_is_looked_up_each_time() {
        LocalSet::new()
            .run_until(async {
                let worker = trial::worker_with_flags(&["--namespace", "shop"]);
                publish(&worker, [service(&worker, "probe", None), service(&worker, "other", None)]);
                let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, true);
                for host in ["probe", "other"] {
                    let mut head = to(b"", &[("host", host)]);
                    head.remove(Name::AUTHORITY);
                    client.call(&head, 0);
                }
                client.pass(1).await.expect("the connection lives");
                let routes = Routes::as_named(false);
                for (call, name) in std::iter::zip(calls.take(), ["probe.shop", "other.shop"]) {
                    assert!(routes.known(&worker, &call.head()).is_none());
                    let Ok(Routed::To(route)) = routes.find(&worker, &call).await else { panic!("it is there") };
                    assert_eq!(route.service.name.as_str(), name);
                }
            })
            .await;
    }
}
