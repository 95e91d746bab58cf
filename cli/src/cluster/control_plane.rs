//! What the control plane knows, read from its dashboard through the API server's proxy of Services. So nothing but the
//! API server has to be reachable, and the user needs a right to `get` `services/proxy` in its namespace.

use std::{collections::HashMap, net::IpAddr};

use http::{HeaderValue, Method, StatusCode, header};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use weft_control::kubernetes::names::{CONTROL, NAMESPACE};

use super::api::{Api, MOST, Trouble, escaped, read, refusal, request};

/// The largest answer. Members of the mesh choose what is in it.
const ANSWER_BYTES: usize = 8 << 20;

/// A sidecar that the control plane knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sidecar {
    pub(super) address: IpAddr,
    pub(super) spiffe_id: String,
    pub(super) connected: bool,
    pub(super) connected_seconds: u64,
    pub(super) follows: u64,
    pub(super) unsent: u64,
    pub(super) endpoints: Vec<Endpoint>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    /// `NAME.NAMESPACE`
    pub(super) service: String,
    pub(super) health: String,
    pub(super) silent: bool,
}

#[derive(Deserialize)]
struct Sidecars {
    sidecars: Vec<Sidecar>,
    next: Option<String>,
}

/// A contract or address that one service has and another claims.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Contest {
    pub(super) claim: String,
    /// SPIFFE IDs.
    pub(super) owner: String,
    pub(super) claimant: String,
}

/// A method of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RpcMethod {
    /// Whether it is sent to another endpoint as well if it is not answered in time.
    pub(super) is_hedged: bool,
}

#[derive(Deserialize)]
struct Services {
    services: Vec<OfService>,
}

#[derive(Deserialize)]
struct OfService {
    name: String,
    contracts: Vec<Contract>,
}

#[derive(Deserialize)]
struct Contract {
    name: String,
    methods: Vec<OfMethod>,
}

#[derive(Deserialize)]
struct OfMethod {
    name: String,
    hedge: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    contested: Vec<Contest>,
}

/// All sidecars.
pub(super) async fn sidecars(api: &Api) -> Result<Vec<Sidecar>, Trouble> {
    let (mut all, mut after): (Vec<Sidecar>, Option<String>) = (Vec::new(), None);
    loop {
        let query = after.map_or_else(String::new, |after| format!("&after={}", escaped(&after)));
        let page: Sidecars = get(api, &format!("api/sidecars?limit=500{query}")).await?;
        let is_empty = page.sidecars.is_empty();
        all.extend(page.sidecars);
        after = page.next;
        if after.is_none() || is_empty || all.len() >= MOST {
            return Ok(all);
        }
    }
}

/// All claims that were refused because another service has them.
pub(super) async fn contests(api: &Api) -> Result<Vec<Contest>, Trouble> {
    Ok(get::<Claims>(api, "api/claims").await?.contested)
}

/// The methods of all services, by `PACKAGE.SERVICE/METHOD`.
pub(super) async fn methods(api: &Api) -> Result<HashMap<String, HashMap<String, RpcMethod>>, Trouble> {
    let named = |contract: Contract| {
        let name = contract.name;
        let of = move |method: OfMethod| {
            (format!("{name}/{}", method.name), RpcMethod { is_hedged: method.hedge.is_some() })
        };
        contract.methods.into_iter().map(of)
    };
    let of = |service: OfService| (service.name, service.contracts.into_iter().flat_map(named).collect());
    Ok(get::<Services>(api, "api/services").await?.services.into_iter().map(of).collect())
}

async fn get<T: DeserializeOwned>(api: &Api, what: &str) -> Result<T, Trouble> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/services/{CONTROL}:dashboard/proxy/{what}");
    let mut answer = api.send(request(Method::GET, &path, None), ANSWER_BYTES).await?;
    if answer.status == StatusCode::MISDIRECTED_REQUEST {
        // The proxy passes on by what name the API server was called, and the dashboard answers to its own names only.
        let mut named = request(Method::GET, &path, None);
        let host = format!("{CONTROL}.{NAMESPACE}.svc");
        named.headers_mut().insert(header::HOST, HeaderValue::try_from(host).expect("it is a host name"));
        answer = api.send(named, ANSWER_BYTES).await?;
    }
    if answer.status.is_success() { read(&path, &answer.body) } else { Err(refusal(&answer)) }
}
