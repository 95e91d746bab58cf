//! When a call is sent to another endpoint as well: the option `hedge`, and `weft.policy.v1.Hedge`.

use std::time::Duration;

use weft_contracts::weft::{options::v1 as options, policy::v1 as wire};

use super::{
    error::{MalformedPolicy, PolicyError},
    origin::{Origin, Sourced},
    rule::{self, DurationRange, Violation},
};
use crate::schema::{Method, Service};

pub(super) const AFTER: DurationRange =
    DurationRange { min: Duration::from_millis(1), max: rule::LONGEST, allowed: "a time from 1 ms to 10,000 years" };

/// A call that is not answered in time is sent to another endpoint as well (gRFC A6). The first answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// How long the head of the answer may take after the request was sent. At least 1 ms.
    pub after: Duration,
}

/// The hedging that a service's option sets. It holds for the methods that are safe to repeat and take one message.
pub(super) fn of_service(service: &Service) -> Result<Option<Sourced<Hedge>>, PolicyError> {
    let Some(option) = service.options.as_ref().and_then(|options| options.hedge.as_ref()) else { return Ok(None) };
    let after = checked_after(option).map_err(|broken| broken.in_service(service, "hedge.after"))?;
    if !service.methods.iter().any(|method| method.idempotency.is_safe_to_repeat()) {
        let found = "given for a service none of whose methods is safe to repeat".to_owned();
        let allowed = "a service with a method whose `idempotency_level` is NO_SIDE_EFFECTS or IDEMPOTENT";
        return Err(Violation { found, allowed }.in_service(service, "hedge"));
    }
    Ok(Some(Sourced::new(Hedge { after }, Origin::ServiceOption)))
}

/// A method's hedging: that of its own option, or else `of_service` if the method is safe to repeat and takes one message.
pub(super) fn of_method(
    service: &Service,
    method: &Method,
    of_service: Option<Sourced<Hedge>>,
) -> Result<Option<Sourced<Hedge>>, PolicyError> {
    let is_safe = method.idempotency.is_safe_to_repeat();
    let Some(option) = method.options.as_ref().and_then(|options| options.hedge.as_ref()) else {
        return Ok(of_service.filter(|_| is_safe && !method.client_streaming));
    };
    if *option == options::Hedge::default() {
        return Ok(None);
    }
    if !is_safe {
        let found = "given for a method that may not be safe to repeat".to_owned();
        let allowed = "a method whose `idempotency_level` is NO_SIDE_EFFECTS or IDEMPOTENT";
        return Err(Violation { found, allowed }.in_method(service, method, "hedge"));
    }
    let after = checked_after(option).map_err(|broken| broken.in_method(service, method, "hedge.after"))?;
    Ok(Some(Sourced::new(Hedge { after }, Origin::MethodOption)))
}

fn checked_after(option: &options::Hedge) -> Result<Duration, Violation> {
    AFTER.check(&option.after.unwrap_or_default())
}

impl From<Sourced<Hedge>> for wire::Hedge {
    fn from(hedge: Sourced<Hedge>) -> Self {
        let after = Some(rule::duration_to_wire(hedge.value.after));
        Self { after, origin: wire::Origin::from(hedge.origin).into() }
    }
}

impl TryFrom<wire::Hedge> for Sourced<Hedge> {
    type Error = MalformedPolicy;

    fn try_from(hedge: wire::Hedge) -> Result<Self, MalformedPolicy> {
        let origin = hedge.origin().into();
        let after = AFTER.check(&hedge.after.unwrap_or_default()).map_err(|broken| broken.in_message("Hedge.after"))?;
        Ok(Self::new(Hedge { after }, origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        Idempotency, MethodPolicy,
        testing::{policy, refusal, service},
    };

    fn of(after_ms: u64, origin: Origin) -> Option<Sourced<Hedge>> {
        Some(Sourced::new(Hedge { after: Duration::from_millis(after_ms) }, origin))
    }

    #[test]
    fn a_methods_hedging_wins_over_its_services_which_holds_where_repeating_is_safe() {
        let policy = policy(&service(
            r#"option (weft.options.v1.service) = { hedge: { after: { nanos: 50000000 } } };
               rpc Read(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
               rpc Watch(M) returns (stream M) { option idempotency_level = NO_SIDE_EFFECTS; }
               rpc Write(M) returns (M);
               rpc Fill(stream M) returns (M) { option idempotency_level = IDEMPOTENT; }
               rpc Own(M) returns (M) {
                   option idempotency_level = IDEMPOTENT;
                   option (weft.options.v1.method) = { hedge: { after: { nanos: 1000000 } } };
               }
               rpc Never(M) returns (M) {
                   option idempotency_level = IDEMPOTENT;
                   option (weft.options.v1.method) = { hedge: {} };
               }
               rpc Pour(stream M) returns (M) {
                   option idempotency_level = IDEMPOTENT;
                   option (weft.options.v1.method) = { hedge: { after: { seconds: 2 } } };
               }"#,
        ))
        .unwrap();
        let hedge = |method: &str| policy.method("t.S", method).unwrap().hedge;
        assert_eq!(hedge("Read"), of(50, Origin::ServiceOption));
        assert_eq!(hedge("Watch"), of(50, Origin::ServiceOption));
        assert_eq!(hedge("Write"), None, "the service may have seen it");
        assert_eq!(hedge("Fill"), None, "its request may go on for long");
        assert_eq!(hedge("Own"), of(1, Origin::MethodOption));
        assert_eq!(hedge("Never"), None);
        assert_eq!(hedge("Pour"), of(2_000, Origin::MethodOption), "its own option says so");
    }

    #[test]
    fn it_is_refused_where_repeating_may_do_harm() {
        let hedge = "(weft.options.v1.method) = { hedge: { after: { seconds: 1 } } };";
        assert_eq!(
            refusal(&format!("rpc Do(M) returns (M) {{ option {hedge} }}")),
            "t.proto: option (weft.options.v1.method) of method t.S/Do: hedge is given for a method that may not be safe \
             to repeat; allowed is a method whose `idempotency_level` is NO_SIDE_EFFECTS or IDEMPOTENT"
        );
        let unknown = "option idempotency_level = IDEMPOTENCY_UNKNOWN;";
        let error = refusal(&format!("rpc Do(M) returns (M) {{ {unknown} option {hedge} }}"));
        assert!(error.contains("of method t.S/Do: hedge is given"), "{error}");
        let of_service = "option (weft.options.v1.service) = { hedge: { after: { seconds: 1 } } };";
        let error = refusal(&format!("{of_service} rpc Do(M) returns (M);"));
        assert!(error.contains("of service t.S: hedge is given for a service none of whose methods"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let safe = "rpc Get(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS;";
        for (after, found) in [
            ("{ nanos: 999999 }", "0.000999999s"),
            ("{}", "0s"),
            ("{ seconds: -1 }", "-1s"),
            ("{ seconds: 9223372036854775807 }", "{ seconds: 9223372036854775807 nanos: 0 }"),
        ] {
            let rule = format!("hedge.after is {found}; allowed is a time from 1 ms to 10,000 years");
            let error =
                refusal(&format!("{safe} option (weft.options.v1.method) = {{ hedge: {{ after: {after} }} }}; }}"));
            assert!(error.contains("of method t.S/Get: ") && error.ends_with(&rule), "{error}");
            let error =
                refusal(&format!("option (weft.options.v1.service) = {{ hedge: {{ after: {after} }} }}; {safe} }}"));
            assert!(error.contains("of service t.S: ") && error.ends_with(&rule), "{error}");
        }
        let error = refusal(&format!("option (weft.options.v1.service) = {{ hedge: {{}} }}; {safe} }}"));
        assert!(error.contains("of service t.S: hedge.after is 0s;"), "{error}");
        assert_eq!(Sourced::<Hedge>::try_from(wire::Hedge::default()).unwrap_err().field, "Hedge.after");
    }

    #[test]
    fn hedging_survives_the_wire_unless_repeating_may_do_harm() {
        let hedge = of(50, Origin::MethodOption);
        assert_eq!(Sourced::<Hedge>::try_from(wire::Hedge::from(hedge.unwrap())).ok(), hedge);
        for (idempotency, expected) in [(wire::Idempotency::NoSideEffects, hedge), (wire::Idempotency::Unknown, None)] {
            let method = wire::Method {
                name: "Get".into(),
                idempotency: idempotency.into(),
                hedge: hedge.map(wire::Hedge::from),
                ..wire::Method::default()
            };
            let method = MethodPolicy::try_from(method).unwrap();
            assert_eq!((method.hedge, method.idempotency), (expected, Idempotency::from(idempotency)));
        }
    }
}
