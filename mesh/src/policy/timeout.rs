//! How long a call may take: the option `timeout`, and `weft.policy.v1.Timeout`.

use std::time::Duration;

use weft_contracts::weft::policy::v1 as wire;

use super::{
    error::{MalformedPolicy, PolicyError},
    origin::{Origin, Sourced},
    rule::{self, DurationRange},
};
use crate::schema::{Method, Service};

pub(super) const TIMEOUT: DurationRange = DurationRange {
    min: Duration::from_nanos(1),
    max: rule::LONGEST,
    allowed: "a positive time of at most 10,000 years",
};

/// The timeout that a service's option sets. It holds for unary methods only.
pub(super) fn of_service(service: &Service) -> Result<Option<Sourced<Duration>>, PolicyError> {
    let Some(timeout) = service.options.as_ref().and_then(|options| options.timeout.as_ref()) else { return Ok(None) };
    let value = TIMEOUT.check(timeout).map_err(|broken| broken.in_service(service, "timeout"))?;
    Ok(Some(Sourced::new(value, Origin::ServiceOption)))
}

/// A method's timeout: that of its own option, or else `of_service` if the method is unary.
pub(super) fn of_method(
    service: &Service,
    method: &Method,
    of_service: Option<Sourced<Duration>>,
) -> Result<Option<Sourced<Duration>>, PolicyError> {
    let is_unary = !method.client_streaming && !method.server_streaming;
    let Some(timeout) = method.options.as_ref().and_then(|options| options.timeout.as_ref()) else {
        return Ok(of_service.filter(|_| is_unary));
    };
    let value = TIMEOUT.check(timeout).map_err(|broken| broken.in_method(service, method, "timeout"))?;
    Ok(Some(Sourced::new(value, Origin::MethodOption)))
}

impl From<Sourced<Duration>> for wire::Timeout {
    fn from(timeout: Sourced<Duration>) -> Self {
        Self { value: Some(rule::duration_to_wire(timeout.value)), origin: wire::Origin::from(timeout.origin).into() }
    }
}

impl TryFrom<wire::Timeout> for Sourced<Duration> {
    type Error = MalformedPolicy;

    fn try_from(timeout: wire::Timeout) -> Result<Self, MalformedPolicy> {
        let origin = timeout.origin().into();
        let value =
            TIMEOUT.check(&timeout.value.unwrap_or_default()).map_err(|broken| broken.in_message("Timeout.value"))?;
        Ok(Self { value, origin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{policy, refusal, service};

    #[test]
    fn a_methods_timeout_wins_over_its_services() {
        let policy = policy(&service(
            r#"option (weft.options.v1.service) = { timeout: { seconds: 5 } };
               rpc Plain(M) returns (M);
               rpc Own(M) returns (M) { option (weft.options.v1.method) = { timeout: { nanos: 500000000 } }; }
               rpc Watch(M) returns (stream M);
               rpc Chat(stream M) returns (stream M) {
                   option (weft.options.v1.method) = { timeout: { seconds: 60 } };
               }"#,
        ))
        .unwrap();
        let timeout = |method: &str| policy.method("t.S", method).unwrap().timeout;
        let from_service = Some(Sourced::new(Duration::from_secs(5), Origin::ServiceOption));
        assert_eq!(timeout("Plain"), from_service);
        assert_eq!(timeout("Own"), Some(Sourced::new(Duration::from_millis(500), Origin::MethodOption)));
        assert_eq!(timeout("Watch"), None, "a service's timeout is for unary methods only");
        assert_eq!(timeout("Chat"), Some(Sourced::new(Duration::from_secs(60), Origin::MethodOption)));
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let error = refusal("option (weft.options.v1.service) = { timeout: {} };");
        assert!(error.contains("of service t.S: timeout is 0s; allowed is a positive time"), "{error}");
        let error = refusal(
            "rpc Do(M) returns (M) { option (weft.options.v1.method) = { timeout: { seconds: 9223372036854775807 } }; }",
        );
        assert!(error.contains("of method t.S/Do: timeout is { seconds: 9223372036854775807 nanos: 0 };"), "{error}");
        let field = Sourced::<Duration>::try_from(wire::Timeout::default()).unwrap_err().field;
        assert_eq!(field, "Timeout.value");
    }

    #[test]
    fn a_timeout_survives_the_wire() {
        let timeout = Sourced::new(Duration::from_millis(1500), Origin::MethodOption);
        assert_eq!(Sourced::<Duration>::try_from(wire::Timeout::from(timeout)), Ok(timeout));
    }
}
