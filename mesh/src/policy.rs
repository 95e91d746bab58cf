//! The rules for calls to a service, such as timeouts and circuit breakers: one compiled model with the origin of each
//! value.
//!
//! [`ServicePolicy::from_schema`] compiles it from the options in a service's `.proto` files; `weft.policy.v1` carries
//! it from the control plane to the sidecars. Each policy is one file: its values, how they are read from options, and
//! how they go over the wire. `compile` and `proto` put the policies of a service together.

mod access;
mod breaker;
mod codes;
mod compile;
mod error;
mod fallback;
mod hedge;
mod origin;
#[cfg(feature = "config")]
mod overrides;
mod proto;
mod retry;
mod rule;
#[cfg(test)]
mod testing;
mod timeout;

use std::{sync::Arc, time::Duration};

#[cfg(feature = "config")]
pub use self::{
    access::{AccessPolicy, InvalidDefaults, MeshRules, read_mesh_access, read_service_access},
    overrides::Overrides,
};
pub use self::{
    access::{
        AccessRule, AccessRules, Called, Callers, DefaultAccess, FromObjects, MeshAccess, PathRule, PathRules,
        RESERVED_CALLERS, Request, ServiceAccess, Source, Verdict,
    },
    breaker::{BreakerPolicy, SlowCall},
    codes::CodeSet,
    error::{MalformedPolicy, PolicyError},
    fallback::{Fallback, find_loop, find_unwelcome},
    hedge::Hedge,
    origin::{Origin, Sourced},
};
use crate::names::ServiceName;
pub use crate::schema::Idempotency;

/// The policy of one service of the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePolicy {
    /// The protobuf services that it implements.
    pub contracts: Vec<ContractPolicy>,
    /// When calls to it, or to one of its endpoints, are stopped.
    pub breaker: Sourced<BreakerPolicy>,
    /// The MethodPolicy that has set some of the values, `NAMESPACE/NAME`: see [`Origin`]. Empty: there is none.
    pub method_policy: String,
}

impl ServicePolicy {
    /// The policy of the protobuf service with this full name: `shop.users.v1.Users`.
    pub fn contract(&self, name: &str) -> Option<&ContractPolicy> {
        self.contracts.iter().find(|contract| contract.name == name)
    }

    /// Whether the service `own`, whose policy this is, answers calls of `other` as its fallback: by the contract that is
    /// named, or by the one that the call is of (`None`), which is a contract of `other`.
    pub fn is_stand_in_for(&self, own: &ServiceName, contract: Option<&str>, other: &ServiceName) -> bool {
        let is_other = |name: &String| ServiceName::parse_in(name, own.namespace()).is_ok_and(|name| name == *other);
        let agrees = |contract: &ContractPolicy| contract.stands_in_for.iter().any(is_other);
        match contract {
            Some(contract) => self.contract(contract).is_some_and(agrees),
            None => self.contracts.iter().any(agrees),
        }
    }

    /// The policy of a method: `("shop.users.v1.Users", "Create")`.
    pub fn method(&self, contract: &str, method: &str) -> Option<&MethodPolicy> {
        self.contract(contract)?.methods.iter().find(|candidate| candidate.name == method)
    }
}

/// The policy of one protobuf service.
#[derive(Clone, Debug, PartialEq)]
pub struct ContractPolicy {
    /// Its full name: `shop.users.v1.Users`.
    pub name: String,
    /// All its methods.
    pub methods: Vec<MethodPolicy>,
    /// The services whose calls its service answers by it as their fallback, `NAME` or `NAME.NAMESPACE`. The fallbacks of
    /// others do not lead to it: a caller would call it, with its own rights, because of what another owner says.
    pub stands_in_for: Vec<String>,
}

/// The policy of one method.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodPolicy {
    /// Its name without its service: `Create`.
    pub name: String,
    /// Whether the caller sends any number of messages.
    pub client_streaming: bool,
    /// Whether the service sends any number of messages.
    pub server_streaming: bool,
    /// How long a call may take in all. `None`: only the caller's own limit applies.
    pub timeout: Option<Sourced<Duration>>,
    /// Whether it is safe to make a call twice.
    pub idempotency: Idempotency,
    /// What answers a call that the service cannot take. `None`: the call fails.
    pub fallback: Option<Sourced<Fallback>>,
    /// The method's own option says that it has none, so that of a service does not hold for it. Only who compiles a contract
    /// knows it.
    pub refuses_fallback: bool,
    /// When a call is sent to another endpoint as well. `None`: never. Only a method that is safe to repeat has it.
    pub hedge: Option<Sourced<Hedge>>,
    /// Who may call it. `None`: those whom the mesh's rules allow. Only the sidecar of the service uses it, so callers are
    /// not told.
    pub access: Option<Sourced<Arc<AccessRule>>>,
}
