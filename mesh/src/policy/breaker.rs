//! The circuit breaker of a service: the option `breaker`, and `weft.policy.v1.Breaker`.

use std::time::Duration;

use weft_contracts::weft::{
    options::v1::{Breaker, breaker},
    policy::v1 as wire,
};

use super::{
    codes::{self, CodeSet},
    error::{MalformedPolicy, PolicyError},
    origin::{Origin, Sourced},
    rule::{self, DurationRange},
};
use crate::schema::Service;

pub(super) const WINDOW: DurationRange =
    DurationRange { min: Duration::from_secs(1), max: Duration::from_secs(600), allowed: "a time from 1 s to 10 min" };
pub(super) const OPEN_FOR: DurationRange = DurationRange {
    min: Duration::from_millis(100),
    max: Duration::from_secs(600),
    allowed: "a time from 100 ms to 10 min",
};

pub(super) const LONGER_THAN: DurationRange = DurationRange {
    min: Duration::from_millis(1),
    max: Duration::from_secs(600),
    allowed: "a time from 1 ms to 10 min",
};

/// When a circuit breaker opens and closes. It opens when any of the rules for opening says so.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// The breaker opens after this many failures in a row; 0 switches this rule off.
    pub consecutive_failures: u32,
    /// The breaker opens when this share of the calls in the window failed: above 0, at most 1.
    pub failure_ratio: f64,
    /// The ratio is judged only when the window has at least this many calls.
    pub minimum_calls: u32,
    /// The rolling window over which the ratio is taken.
    pub window: Duration,
    /// How long an open breaker refuses calls before it lets one probe through.
    pub open_for: Duration,
    /// The breaker closes after this many probes in a row succeeded, one at a time. At least 1.
    pub probes: u32,
    /// The gRPC statuses of an answer that count as failures of the service.
    pub failure_codes: CodeSet,
    /// When too many calls are slow. `None`: how long a call takes does not matter.
    pub slow_call: Option<SlowCall>,
}

/// The breaker opens when too many calls are slow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowCall {
    /// A call is slow if the service takes longer than this: from the complete request to the head of its answer.
    pub longer_than: Duration,
    /// The breaker opens when this share of the calls in the window was slow: above 0, at most 1.
    pub ratio: f64,
}

impl SlowCall {
    /// The ratio that `weft.options.v1.Breaker.SlowCall` documents for a field that is left out.
    pub(super) const DEFAULT_RATIO: f64 = 0.5;
}

/// The values that `weft.options.v1.Breaker` documents for fields that are left out.
impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_ratio: 0.5,
            minimum_calls: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            probes: 1,
            failure_codes: CodeSet::FAILURES,
            slow_call: None,
        }
    }
}

/// The one breaker of a service that implements these protobuf services: those that have the option must agree.
pub(super) fn of(services: &[&Service]) -> Result<Sourced<BreakerPolicy>, PolicyError> {
    let mut found: Option<(&Service, BreakerPolicy)> = None;
    for &service in services {
        let Some(policy) = from_options(service)? else { continue };
        match &found {
            Some((first, other)) if *other != policy => {
                let describe = |service: &Service| format!("{} ({})", service.name, service.file);
                return Err(PolicyError::BreakerConflict { first: describe(first), second: describe(service) });
            }
            Some(_) => {}
            None => found = Some((service, policy)),
        }
    }
    Ok(found.map_or_else(Sourced::default, |(_, policy)| Sourced::new(policy, Origin::ServiceOption)))
}

fn from_options(service: &Service) -> Result<Option<BreakerPolicy>, PolicyError> {
    let Some(options) = service.options.as_ref().and_then(|options| options.breaker.as_ref()) else { return Ok(None) };
    let Breaker {
        consecutive_failures,
        failure_ratio,
        minimum_calls,
        window,
        open_for,
        probes,
        failure_codes,
        slow_call,
    } = options;
    let default = BreakerPolicy::default();
    let duration = |value: &Option<prost_types::Duration>, range: DurationRange, field, default| match value {
        Some(value) => range.check(value).map_err(|broken| broken.in_service(service, field)),
        None => Ok(default),
    };
    Ok(Some(BreakerPolicy {
        consecutive_failures: consecutive_failures.unwrap_or(default.consecutive_failures),
        failure_ratio: rule::checked_ratio(failure_ratio.unwrap_or(default.failure_ratio))
            .map_err(|broken| broken.in_service(service, "breaker.failure_ratio"))?,
        minimum_calls: minimum_calls.unwrap_or(default.minimum_calls),
        window: duration(window, WINDOW, "breaker.window", default.window)?,
        open_for: duration(open_for, OPEN_FOR, "breaker.open_for", default.open_for)?,
        probes: rule::checked_count(probes.unwrap_or(default.probes))
            .map_err(|broken| broken.in_service(service, "breaker.probes"))?,
        failure_codes: codes::checked_failures(failure_codes.iter().map(|code| i64::from(*code)))
            .map_err(|broken| broken.in_service(service, "breaker.failure_codes"))?,
        slow_call: slow_call.as_ref().map(|slow_call| slow_from_options(service, slow_call)).transpose()?,
    }))
}

fn slow_from_options(service: &Service, slow_call: &breaker::SlowCall) -> Result<SlowCall, PolicyError> {
    Ok(SlowCall {
        longer_than: LONGER_THAN
            .check(&slow_call.longer_than.unwrap_or_default())
            .map_err(|broken| broken.in_service(service, "breaker.slow_call.longer_than"))?,
        ratio: rule::checked_ratio(slow_call.ratio.unwrap_or(SlowCall::DEFAULT_RATIO))
            .map_err(|broken| broken.in_service(service, "breaker.slow_call.ratio"))?,
    })
}

impl From<SlowCall> for wire::breaker::SlowCall {
    fn from(slow_call: SlowCall) -> Self {
        Self { longer_than: Some(rule::duration_to_wire(slow_call.longer_than)), ratio: slow_call.ratio }
    }
}

impl From<&Sourced<BreakerPolicy>> for wire::Breaker {
    fn from(breaker: &Sourced<BreakerPolicy>) -> Self {
        let value = &breaker.value;
        Self {
            consecutive_failures: value.consecutive_failures,
            failure_ratio: value.failure_ratio,
            minimum_calls: value.minimum_calls,
            window: Some(rule::duration_to_wire(value.window)),
            open_for: Some(rule::duration_to_wire(value.open_for)),
            probes: value.probes,
            origin: wire::Origin::from(breaker.origin).into(),
            failure_codes: value.failure_codes.iter().map(u32::from).collect(),
            slow_call: value.slow_call.map(Into::into),
        }
    }
}

impl TryFrom<wire::Breaker> for Sourced<BreakerPolicy> {
    type Error = MalformedPolicy;

    fn try_from(breaker: wire::Breaker) -> Result<Self, MalformedPolicy> {
        let duration = |value: Option<prost_types::Duration>, range: DurationRange, field| {
            range.check(&value.unwrap_or_default()).map_err(|broken| broken.in_message(field))
        };
        let slow_call = |slow_call: wire::breaker::SlowCall| -> Result<_, MalformedPolicy> {
            Ok(SlowCall {
                longer_than: duration(slow_call.longer_than, LONGER_THAN, "Breaker.slow_call.longer_than")?,
                ratio: rule::checked_ratio(slow_call.ratio)
                    .map_err(|broken| broken.in_message("Breaker.slow_call.ratio"))?,
            })
        };
        let value = BreakerPolicy {
            consecutive_failures: breaker.consecutive_failures,
            failure_ratio: rule::checked_ratio(breaker.failure_ratio)
                .map_err(|broken| broken.in_message("Breaker.failure_ratio"))?,
            minimum_calls: breaker.minimum_calls,
            window: duration(breaker.window, WINDOW, "Breaker.window")?,
            open_for: duration(breaker.open_for, OPEN_FOR, "Breaker.open_for")?,
            probes: rule::checked_count(breaker.probes).map_err(|broken| broken.in_message("Breaker.probes"))?,
            failure_codes: codes::checked_failures(breaker.failure_codes.iter().map(|code| i64::from(*code)))
                .map_err(|broken| broken.in_message("Breaker.failure_codes"))?,
            slow_call: breaker.slow_call.map(slow_call).transpose()?,
        };
        Ok(Self { value, origin: breaker.origin().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{
            ServicePolicy,
            testing::{policy, refusal, service},
        },
        schema::testing::compile,
    };

    #[test]
    fn the_option_sets_fields_and_the_rest_is_default() {
        let source = service(
            r#"option (weft.options.v1.service) = {
                   breaker: { probes: 3, window: { seconds: 1 }, failure_codes: [UNKNOWN, UNAVAILABLE] }
               };"#,
        );
        let failure_codes = [2, 14].into_iter().collect();
        let window = Duration::from_secs(1);
        let expected = BreakerPolicy { probes: 3, window, failure_codes, ..BreakerPolicy::default() };
        assert_eq!(policy(&source).unwrap().breaker, Sourced::new(expected, Origin::ServiceOption));
        assert_eq!(policy(&service("")).unwrap().breaker, Sourced::default());
    }

    #[test]
    fn slow_calls_are_judged_only_if_the_option_says_when_a_call_is_slow() {
        let slow_call = |fields: &str| {
            let option = format!("option (weft.options.v1.service) = {{ breaker: {{ {fields} }} }};");
            policy(&service(&option)).unwrap().breaker.value.slow_call
        };
        let longer_than = Duration::from_secs(1);
        assert_eq!(slow_call(""), None);
        let with = |ratio| Some(SlowCall { longer_than, ratio });
        assert_eq!(slow_call("slow_call: { longer_than: { seconds: 1 } }"), with(0.5));
        assert_eq!(slow_call("slow_call: { longer_than: { seconds: 1 } ratio: 0.9 }"), with(0.9));
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let breaker =
            |field: &str| refusal(&format!("option (weft.options.v1.service) = {{ breaker: {{ {field} }} }};"));
        assert_eq!(
            breaker("failure_ratio: 1.5"),
            "t.proto: option (weft.options.v1.service) of service t.S: breaker.failure_ratio is 1.5; allowed is a \
             number above 0, at most 1"
        );
        for (field, named) in [
            ("failure_ratio: 0", "breaker.failure_ratio is 0;"),
            ("failure_ratio: nan", "breaker.failure_ratio is NaN;"),
            ("window: { nanos: 999999999 }", "breaker.window is 0.999999999s;"),
            ("window: { seconds: 601 }", "breaker.window is 601s;"),
            ("open_for: { nanos: 99000000 }", "breaker.open_for is 0.099s;"),
            ("open_for: { seconds: -1 }", "breaker.open_for is -1s;"),
            (
                "open_for: { seconds: -9223372036854775808 }",
                "breaker.open_for is { seconds: -9223372036854775808 nanos: 0 };",
            ),
            ("open_for: { nanos: -2147483648 }", "breaker.open_for is { seconds: 0 nanos: -2147483648 };"),
            ("probes: 0", "breaker.probes is 0;"),
            ("failure_codes: [UNKNOWN, OK]", "breaker.failure_codes is OK;"),
            ("slow_call: {}", "breaker.slow_call.longer_than is 0s; allowed is a time from 1 ms to 10 min"),
            ("slow_call: { longer_than: { seconds: 601 } }", "breaker.slow_call.longer_than is 601s;"),
            ("slow_call: { longer_than: { seconds: 1 } ratio: 1.1 }", "breaker.slow_call.ratio is 1.1;"),
        ] {
            let error = breaker(field);
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn breakers_of_one_service_must_agree() {
        let file = |name: &str, breaker: &str| {
            format!(
                r#"syntax = "proto3"; package {name}; import "weft/options/v1/options.proto";
                   service S {{ option (weft.options.v1.service) = {{ {breaker} }}; }}"#
            )
        };
        let both = |a: &str, b: &str| {
            let (a, b) = (file("a", a), file("b", b));
            ServicePolicy::from_descriptors(&compile(&[("a.proto", &a), ("b.proto", &b)]), None)
        };
        assert_eq!(both("breaker: { probes: 2 }", "").unwrap().breaker.value.probes, 2);
        assert_eq!(both("", "breaker: { probes: 2 }").unwrap().breaker.value.probes, 2);
        assert_eq!(both("breaker: { probes: 2 }", "breaker: { probes: 2 }").unwrap().breaker.value.probes, 2);
        let error = both("breaker: { probes: 2 }", "breaker: { probes: 3 }").unwrap_err().to_string();
        assert!(error.contains("a.S (a.proto) and b.S (b.proto)"), "{error}");
    }

    #[test]
    fn a_breaker_survives_the_wire() {
        let failure_codes = [2, 14].into_iter().collect();
        let slow_call = Some(SlowCall { longer_than: Duration::from_millis(300), ratio: 0.25 });
        let value = BreakerPolicy { probes: 3, failure_codes, slow_call, ..BreakerPolicy::default() };
        for breaker in [Sourced::new(value, Origin::ServiceOption), Sourced::default()] {
            assert_eq!(Sourced::<BreakerPolicy>::try_from(wire::Breaker::from(&breaker)), Ok(breaker));
        }
    }

    #[test]
    fn values_that_could_break_a_breaker_are_refused_from_the_wire() {
        let refusal = |change: fn(&mut wire::Breaker)| {
            let mut breaker = wire::Breaker::from(&Sourced::<BreakerPolicy>::default());
            change(&mut breaker);
            Sourced::<BreakerPolicy>::try_from(breaker).unwrap_err().field
        };
        assert_eq!(refusal(|breaker| breaker.failure_ratio = f64::NAN), "Breaker.failure_ratio");
        assert_eq!(refusal(|breaker| breaker.window = None), "Breaker.window");
        assert_eq!(refusal(|breaker| breaker.open_for.as_mut().unwrap().seconds = i64::MAX), "Breaker.open_for");
        assert_eq!(refusal(|breaker| breaker.probes = 0), "Breaker.probes");
        assert_eq!(refusal(|breaker| breaker.failure_codes.push(99)), "Breaker.failure_codes");
        let longer_than = |breaker: &mut wire::Breaker| breaker.slow_call = Some(wire::breaker::SlowCall::default());
        assert_eq!(refusal(longer_than), "Breaker.slow_call.longer_than");
    }
}
