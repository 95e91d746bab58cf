//! What MethodPolicies put in the place of values in contracts.

use std::{collections::HashMap, sync::Arc};

use prost::Message as _;
use weft_contracts::weft::policy::v1::ServicePolicy;
use weft_mesh::{limits, names::ServiceName, policy::Overrides};

/// The MethodPolicy that holds for a service.
#[derive(Debug, PartialEq)]
pub(crate) struct OfService {
    pub(crate) service: ServiceName,
    /// The object, `NAMESPACE/NAME`.
    pub(crate) name: String,
    pub(crate) values: Overrides,
}

/// By service.
pub(crate) type ByService = HashMap<ServiceName, Arc<OfService>>;

impl OfService {
    /// The policy of the service with its values. `None` if that would be larger than a policy may be.
    pub(crate) fn in_place_of(&self, of_contracts: &ServicePolicy) -> Option<ServicePolicy> {
        let mut policy = of_contracts.clone();
        self.values.apply(&self.name, &mut policy);
        let bytes = policy.encoded_len();
        if bytes > limits::POLICY_BYTES {
            let (policy, service, most) = (&self.name, &self.service, limits::POLICY_BYTES);
            tracing::warn!(policy, %service, bytes, most, "a MethodPolicy has no effect: the policy of its service is too large with it");
            return None;
        }
        Some(policy)
    }
}
