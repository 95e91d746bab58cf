//! The policy as `weft.policy.v1` carries it.

use std::time::Duration;

use weft_contracts::weft::policy::v1 as wire;

use super::{
    BreakerPolicy, ContractPolicy, Idempotency, MethodPolicy, Origin, ServicePolicy, Sourced,
    compile::{self, Rule},
};

/// A `weft.policy.v1` message with a field that says nothing usable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("weft.policy.v1: {field} is {found}; allowed is {allowed}")]
pub struct MalformedPolicy {
    /// The field, with its message.
    pub field: &'static str,
    /// What stood there.
    pub found: String,
    /// What could stand there.
    pub allowed: &'static str,
}

impl From<&ServicePolicy> for wire::ServicePolicy {
    fn from(policy: &ServicePolicy) -> Self {
        Self {
            contracts: policy.contracts.iter().map(wire::Contract::from).collect(),
            breaker: Some((&policy.breaker).into()),
        }
    }
}

impl From<&ContractPolicy> for wire::Contract {
    fn from(contract: &ContractPolicy) -> Self {
        Self { name: contract.name.clone(), methods: contract.methods.iter().map(wire::Method::from).collect() }
    }
}

impl From<&MethodPolicy> for wire::Method {
    fn from(method: &MethodPolicy) -> Self {
        Self {
            name: method.name.clone(),
            client_streaming: method.client_streaming,
            server_streaming: method.server_streaming,
            timeout: method.timeout.map(|timeout| wire::Timeout {
                value: Some(duration_to_wire(timeout.value)),
                origin: wire::Origin::from(timeout.origin).into(),
            }),
            idempotency: wire::Idempotency::from(method.idempotency).into(),
        }
    }
}

impl From<&Sourced<BreakerPolicy>> for wire::Breaker {
    fn from(breaker: &Sourced<BreakerPolicy>) -> Self {
        let value = &breaker.value;
        Self {
            consecutive_failures: value.consecutive_failures,
            failure_ratio: value.failure_ratio,
            minimum_calls: value.minimum_calls,
            window: Some(duration_to_wire(value.window)),
            open_for: Some(duration_to_wire(value.open_for)),
            probes: value.probes,
            origin: wire::Origin::from(breaker.origin).into(),
            failure_codes: value.failure_codes.iter().map(u32::from).collect(),
        }
    }
}

impl From<Origin> for wire::Origin {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Default => Self::Default,
            Origin::ServiceOption => Self::ServiceOption,
            Origin::MethodOption => Self::MethodOption,
        }
    }
}

impl From<Idempotency> for wire::Idempotency {
    fn from(idempotency: Idempotency) -> Self {
        match idempotency {
            Idempotency::Unknown => Self::Unknown,
            Idempotency::Idempotent => Self::Idempotent,
            Idempotency::NoSideEffects => Self::NoSideEffects,
        }
    }
}

impl TryFrom<wire::ServicePolicy> for ServicePolicy {
    type Error = MalformedPolicy;

    fn try_from(policy: wire::ServicePolicy) -> Result<Self, MalformedPolicy> {
        Ok(Self {
            contracts: policy.contracts.into_iter().map(ContractPolicy::try_from).collect::<Result<_, _>>()?,
            breaker: policy.breaker.map(Sourced::try_from).transpose()?.unwrap_or_default(),
        })
    }
}

impl TryFrom<wire::Contract> for ContractPolicy {
    type Error = MalformedPolicy;

    fn try_from(contract: wire::Contract) -> Result<Self, MalformedPolicy> {
        let methods = contract.methods.into_iter().map(MethodPolicy::try_from).collect::<Result<_, _>>()?;
        Ok(Self { name: contract.name, methods })
    }
}

impl TryFrom<wire::Method> for MethodPolicy {
    type Error = MalformedPolicy;

    fn try_from(method: wire::Method) -> Result<Self, MalformedPolicy> {
        let idempotency = match method.idempotency() {
            wire::Idempotency::Idempotent => Idempotency::Idempotent,
            wire::Idempotency::NoSideEffects => Idempotency::NoSideEffects,
            // What a later version may mean is not known here, and not to repeat a call is always right.
            wire::Idempotency::Unknown | wire::Idempotency::Unspecified => Idempotency::Unknown,
        };
        let timeout = match method.timeout {
            None => None,
            Some(timeout) => Some(Sourced {
                value: duration("Timeout.value", timeout.value, compile::TIMEOUT)?,
                origin: origin(timeout.origin()),
            }),
        };
        Ok(Self {
            name: method.name,
            client_streaming: method.client_streaming,
            server_streaming: method.server_streaming,
            timeout,
            idempotency,
        })
    }
}

impl TryFrom<wire::Breaker> for Sourced<BreakerPolicy> {
    type Error = MalformedPolicy;

    fn try_from(breaker: wire::Breaker) -> Result<Self, MalformedPolicy> {
        let field = |field| move |rule: Rule| MalformedPolicy { field, found: rule.found, allowed: rule.allowed };
        let value = BreakerPolicy {
            consecutive_failures: breaker.consecutive_failures,
            failure_ratio: compile::checked_ratio(breaker.failure_ratio).map_err(field("Breaker.failure_ratio"))?,
            minimum_calls: breaker.minimum_calls,
            window: duration("Breaker.window", breaker.window, compile::WINDOW)?,
            open_for: duration("Breaker.open_for", breaker.open_for, compile::OPEN_FOR)?,
            probes: compile::checked_probes(breaker.probes).map_err(field("Breaker.probes"))?,
            failure_codes: compile::checked_codes(breaker.failure_codes.iter().map(|code| i64::from(*code)))
                .map_err(field("Breaker.failure_codes"))?,
        };
        Ok(Self { value, origin: origin(breaker.origin()) })
    }
}

/// An origin of a later version is shown as the weakest: it is there to be read by people, and nothing hangs on it.
fn origin(origin: wire::Origin) -> Origin {
    match origin {
        wire::Origin::Default | wire::Origin::Unspecified => Origin::Default,
        wire::Origin::ServiceOption => Origin::ServiceOption,
        wire::Origin::MethodOption => Origin::MethodOption,
    }
}

fn duration(
    field: &'static str,
    value: Option<prost_types::Duration>,
    range: compile::DurationRange,
) -> Result<Duration, MalformedPolicy> {
    let value = value.unwrap_or_default();
    range.check(&value).map_err(|rule| MalformedPolicy { field, found: rule.found, allowed: rule.allowed })
}

fn duration_to_wire(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        // Always below a thousand million.
        nanos: value.subsec_nanos().cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ServicePolicy {
        let failure_codes = [2, 14].into_iter().collect();
        ServicePolicy {
            contracts: vec![ContractPolicy {
                name: "a.B".into(),
                methods: vec![
                    MethodPolicy {
                        name: "Get".into(),
                        client_streaming: false,
                        server_streaming: true,
                        timeout: Some(Sourced::new(Duration::from_millis(1500), Origin::MethodOption)),
                        idempotency: Idempotency::NoSideEffects,
                    },
                    MethodPolicy {
                        name: "Put".into(),
                        client_streaming: true,
                        server_streaming: false,
                        timeout: None,
                        idempotency: Idempotency::Idempotent,
                    },
                ],
            }],
            breaker: Sourced::new(
                BreakerPolicy { probes: 3, failure_codes, ..BreakerPolicy::default() },
                Origin::ServiceOption,
            ),
        }
    }

    #[test]
    fn a_policy_survives_the_wire() {
        for policy in [sample(), ServicePolicy::default()] {
            assert_eq!(ServicePolicy::try_from(wire::ServicePolicy::from(&policy)), Ok(policy));
        }
    }

    #[test]
    fn an_empty_message_is_the_default_policy() {
        assert_eq!(ServicePolicy::try_from(wire::ServicePolicy::default()), Ok(ServicePolicy::default()));
    }

    #[test]
    fn what_could_break_a_breaker_is_refused() {
        let refusal = |change: fn(&mut wire::Breaker)| {
            let mut policy = wire::ServicePolicy::from(&sample());
            change(policy.breaker.as_mut().unwrap());
            ServicePolicy::try_from(policy).unwrap_err().field
        };
        assert_eq!(refusal(|breaker| breaker.failure_ratio = f64::NAN), "Breaker.failure_ratio");
        assert_eq!(refusal(|breaker| breaker.window = None), "Breaker.window");
        assert_eq!(refusal(|breaker| breaker.open_for.as_mut().unwrap().seconds = i64::MAX), "Breaker.open_for");
        assert_eq!(refusal(|breaker| breaker.probes = 0), "Breaker.probes");
        assert_eq!(refusal(|breaker| breaker.failure_codes.push(99)), "Breaker.failure_codes");
    }
}
