//! Rules for the values of a policy. The same rule checks an option in a `.proto` file and a field of
//! `weft.policy.v1`.

use std::time::Duration;

use super::error::{MalformedPolicy, PolicyError};
use crate::schema::{Method, Service};

const SERVICE_OPTION: &str = "(weft.options.v1.service)";
const METHOD_OPTION: &str = "(weft.options.v1.method)";

/// The limit of protobuf's own `Duration`, in seconds: 10,000 years. A longer one could overflow a clock.
const LONGEST_SECONDS: u64 = 315_576_000_000;

/// The longest duration that protobuf can express.
pub(super) const LONGEST: Duration = Duration::from_secs(LONGEST_SECONDS);

/// A value that breaks a rule.
pub(super) struct Violation {
    pub(super) found: String,
    pub(super) allowed: &'static str,
}

impl Violation {
    /// The error for a field of the service's option, such as `breaker.window`.
    pub(super) fn in_service(self, service: &Service, field: &'static str) -> PolicyError {
        self.at(service, SERVICE_OPTION, format!("service {}", service.name), field)
    }

    /// The error for a field of the method's option, such as `timeout`.
    pub(super) fn in_method(self, service: &Service, method: &Method, field: &'static str) -> PolicyError {
        self.at(service, METHOD_OPTION, format!("method {}/{}", service.name, method.name), field)
    }

    fn at(self, service: &Service, option: &'static str, element: String, field: &'static str) -> PolicyError {
        let Self { found, allowed } = self;
        PolicyError::InvalidOption { file: service.file.clone(), option, element, field, found, allowed }
    }

    /// The error for a field of a `weft.policy.v1` message, such as `Breaker.window`.
    pub(super) fn in_message(self, field: &'static str) -> MalformedPolicy {
        MalformedPolicy { field, found: self.found, allowed: self.allowed }
    }
}

/// The durations that a field may have: `min` to `max`, both included.
#[derive(Clone, Copy)]
pub(super) struct DurationRange {
    pub(super) min: Duration,
    pub(super) max: Duration,
    pub(super) allowed: &'static str,
}

impl DurationRange {
    pub(super) fn check(&self, value: &prost_types::Duration) -> Result<Duration, Violation> {
        is_well_formed(value)
            .then(|| Duration::try_from(*value).ok())
            .flatten()
            .filter(|duration| (self.min..=self.max).contains(duration))
            .ok_or_else(|| Violation { found: describe_duration(value), allowed: self.allowed })
    }
}

/// Whether a duration is in protobuf's own range. Outside it the library's conversions overflow.
fn is_well_formed(value: &prost_types::Duration) -> bool {
    value.seconds.unsigned_abs() <= LONGEST_SECONDS && value.nanos.unsigned_abs() < 1_000_000_000
}

fn describe_duration(value: &prost_types::Duration) -> String {
    if is_well_formed(value) {
        value.to_string()
    } else {
        format!("{{ seconds: {} nanos: {} }}", value.seconds, value.nanos)
    }
}

/// A duration as protobuf writes it.
pub(super) fn duration_to_wire(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        // Always below a thousand million.
        nanos: value.subsec_nanos().cast_signed(),
    }
}

/// A share of calls: above 0, at most 1.
pub(super) fn checked_ratio(ratio: f64) -> Result<f64, Violation> {
    if ratio > 0.0 && ratio <= 1.0 {
        Ok(ratio)
    } else {
        Err(Violation { found: ratio.to_string(), allowed: "a number above 0, at most 1" })
    }
}

/// A count of which there must be at least one.
pub(super) fn checked_count(count: u32) -> Result<u32, Violation> {
    if count > 0 { Ok(count) } else { Err(Violation { found: count.to_string(), allowed: "a number from 1 on" }) }
}
