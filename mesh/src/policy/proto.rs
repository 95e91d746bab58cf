//! The policy as `weft.policy.v1` carries it. The files of the policies convert their own messages.

use weft_contracts::weft::policy::v1 as wire;

use super::{ContractPolicy, MethodPolicy, ServicePolicy, error::MalformedPolicy, fallback, origin::Sourced};
use crate::schema::Idempotency;

impl From<&ServicePolicy> for wire::ServicePolicy {
    fn from(policy: &ServicePolicy) -> Self {
        Self {
            contracts: policy.contracts.iter().map(wire::Contract::from).collect(),
            breaker: Some((&policy.breaker).into()),
            method_policy: policy.method_policy.clone(),
        }
    }
}

impl From<&ContractPolicy> for wire::Contract {
    fn from(contract: &ContractPolicy) -> Self {
        Self {
            name: contract.name.clone(),
            methods: contract.methods.iter().map(wire::Method::from).collect(),
            stands_in_for: contract.stands_in_for.clone(),
        }
    }
}

impl From<&MethodPolicy> for wire::Method {
    fn from(method: &MethodPolicy) -> Self {
        Self {
            name: method.name.clone(),
            client_streaming: method.client_streaming,
            server_streaming: method.server_streaming,
            timeout: method.timeout.map(wire::Timeout::from),
            idempotency: wire::Idempotency::from(method.idempotency).into(),
            fallback: match &method.fallback {
                Some(fallback) => Some(fallback.into()),
                None => method.refuses_fallback.then(fallback::refused),
            },
            hedge: method.hedge.map(wire::Hedge::from),
        }
    }
}

impl TryFrom<wire::ServicePolicy> for ServicePolicy {
    type Error = MalformedPolicy;

    fn try_from(policy: wire::ServicePolicy) -> Result<Self, MalformedPolicy> {
        Ok(Self {
            contracts: policy.contracts.into_iter().map(ContractPolicy::try_from).collect::<Result<_, _>>()?,
            breaker: policy.breaker.map(Sourced::try_from).transpose()?.unwrap_or_default(),
            method_policy: policy.method_policy,
        })
    }
}

impl TryFrom<wire::Contract> for ContractPolicy {
    type Error = MalformedPolicy;

    fn try_from(contract: wire::Contract) -> Result<Self, MalformedPolicy> {
        let methods = contract.methods.into_iter().map(MethodPolicy::try_from).collect::<Result<_, _>>()?;
        let stands_in_for = fallback::stands_in_for_from_wire(contract.stands_in_for)?;
        Ok(Self { name: contract.name, methods, stands_in_for })
    }
}

impl TryFrom<wire::Method> for MethodPolicy {
    type Error = MalformedPolicy;

    fn try_from(method: wire::Method) -> Result<Self, MalformedPolicy> {
        let idempotency = Idempotency::from(method.idempotency());
        let hedge = method.hedge.map(Sourced::try_from).transpose()?;
        Ok(Self {
            name: method.name,
            client_streaming: method.client_streaming,
            server_streaming: method.server_streaming,
            timeout: method.timeout.map(Sourced::try_from).transpose()?,
            idempotency,
            fallback: method.fallback.map(fallback::from_wire).transpose()?.flatten(),
            refuses_fallback: false,
            // Whoever sent it, a call is never sent twice where that may do harm.
            hedge: hedge.filter(|_| idempotency.is_safe_to_repeat()),
            access: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::{BreakerPolicy, Fallback, Hedge, Origin};

    #[test]
    fn a_policy_survives_the_wire() {
        let get = MethodPolicy {
            name: "Get".into(),
            client_streaming: false,
            server_streaming: true,
            timeout: Some(Sourced::new(Duration::from_millis(1500), Origin::MethodOption)),
            idempotency: Idempotency::NoSideEffects,
            access: None,
            fallback: Some(Sourced::new(
                Fallback::Elsewhere { service: Some("cache".into()), method: None },
                Origin::ServiceOption,
            )),
            refuses_fallback: false,
            hedge: Some(Sourced::new(Hedge { after: Duration::from_millis(50) }, Origin::ServiceOption)),
        };
        let put = MethodPolicy {
            access: None,
            name: "Put".into(),
            client_streaming: true,
            server_streaming: false,
            timeout: None,
            idempotency: Idempotency::Idempotent,
            fallback: None,
            refuses_fallback: false,
            hedge: None,
        };
        let breaker = BreakerPolicy { probes: 3, ..BreakerPolicy::default() };
        let full = ServicePolicy {
            contracts: vec![ContractPolicy {
                name: "a.B".into(),
                methods: vec![get, put],
                stands_in_for: vec!["prices".into(), "stock.other".into()],
            }],
            breaker: Sourced::new(breaker, Origin::ServiceOption),
            method_policy: "shop/slow".into(),
        };
        for policy in [full, ServicePolicy::default()] {
            assert_eq!(ServicePolicy::try_from(wire::ServicePolicy::from(&policy)), Ok(policy));
        }
    }

    #[test]
    fn an_empty_message_is_the_default_policy() {
        assert_eq!(ServicePolicy::try_from(wire::ServicePolicy::default()), Ok(ServicePolicy::default()));
    }
}
