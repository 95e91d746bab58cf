//! From options in descriptors to a policy, with a check of every value.

use std::{collections::BTreeSet, time::Duration};

use weft_contracts::weft::options::v1::Breaker;

use super::{BreakerPolicy, CodeSet, ContractPolicy, MethodPolicy, Origin, PolicyError, ServicePolicy, Sourced};
use crate::{
    errors::GRPC_CODES,
    names,
    schema::{self, Method, Schema, Service},
};

/// The limit of protobuf's own `Duration`, in seconds: 10,000 years. What lies beyond could overflow a clock.
const LONGEST_SECONDS: u64 = 315_576_000_000;

pub(super) const TIMEOUT: DurationRange = DurationRange {
    min: Duration::from_nanos(1),
    max: Duration::from_secs(LONGEST_SECONDS),
    allowed: "a positive time of at most 10,000 years",
};
pub(super) const WINDOW: DurationRange =
    DurationRange { min: Duration::from_secs(1), max: Duration::from_secs(600), allowed: "a time from 1 s to 10 min" };
pub(super) const OPEN_FOR: DurationRange = DurationRange {
    min: Duration::from_millis(100),
    max: Duration::from_secs(600),
    allowed: "a time from 100 ms to 10 min",
};

const SERVICE_OPTION: &str = "(weft.options.v1.service)";
const METHOD_OPTION: &str = "(weft.options.v1.method)";

impl ServicePolicy {
    /// Compiles a service's policy from a serialized `google.protobuf.FileDescriptorSet`: see [`Self::from_schema`].
    pub fn from_descriptors(descriptor_set: &[u8], contracts: Option<&[String]>) -> Result<Self, PolicyError> {
        Self::from_schema(&*schema::from_descriptor_set(descriptor_set)?, contracts)
    }

    /// Compiles the policy of a service that implements the protobuf services of these full names. `None` means all
    /// that the schema defines, but those of `google.*`, `grpc.*` and `weft.*`, which come along with imports.
    pub fn from_schema(schema: &dyn Schema, contracts: Option<&[String]>) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        let mut breaker_of: Option<&Service> = None;
        for service in implemented(schema, contracts)? {
            policy.contracts.push(compile_contract(service)?);
            let Some(breaker) = compile_breaker(service)? else { continue };
            if let Some(first) = breaker_of.filter(|_| policy.breaker.value != breaker) {
                let describe = |service: &Service| format!("{} ({})", service.name, service.file);
                return Err(PolicyError::BreakerConflict { first: describe(first), second: describe(service) });
            }
            breaker_of.get_or_insert(service);
            policy.breaker = Sourced::new(breaker, Origin::ServiceOption);
        }
        Ok(policy)
    }
}

fn implemented<'s>(schema: &'s dyn Schema, contracts: Option<&[String]>) -> Result<Vec<&'s Service>, PolicyError> {
    let Some(contracts) = contracts else {
        return Ok(schema.services().iter().filter(|service| !is_foreign(&service.name)).collect());
    };
    let unique: BTreeSet<&String> = contracts.iter().collect();
    let find = |contract: &String| {
        schema.service(contract).ok_or_else(|| PolicyError::UnknownContract {
            contract: contract.clone(),
            closest: names::closest_of_sorted(contract, schema.services(), |service| &service.name).map(str::to_owned),
        })
    };
    unique.into_iter().map(find).collect()
}

/// Whether a protobuf service is part of somebody's machinery rather than a user's own.
fn is_foreign(service: &str) -> bool {
    ["google.", "grpc.", "weft."].iter().any(|package| service.starts_with(package))
}

fn compile_contract(service: &Service) -> Result<ContractPolicy, PolicyError> {
    let service_timeout = service
        .options
        .as_ref()
        .and_then(|options| options.timeout.as_ref())
        .map(|timeout| TIMEOUT.check(timeout).map_err(|rule| rule.in_service(service, "timeout")))
        .transpose()?
        .map(|timeout| Sourced::new(timeout, Origin::ServiceOption));
    let methods = service.methods.iter().map(|method| compile_method(service, method, service_timeout));
    Ok(ContractPolicy { name: service.name.clone(), methods: methods.collect::<Result<_, _>>()? })
}

fn compile_method(
    service: &Service,
    method: &Method,
    service_timeout: Option<Sourced<Duration>>,
) -> Result<MethodPolicy, PolicyError> {
    let own = method
        .options
        .as_ref()
        .and_then(|options| options.timeout.as_ref())
        .map(|timeout| TIMEOUT.check(timeout).map_err(|rule| rule.in_method(service, method, "timeout")))
        .transpose()?
        .map(|timeout| Sourced::new(timeout, Origin::MethodOption));
    let is_unary = !method.client_streaming && !method.server_streaming;
    Ok(MethodPolicy {
        name: method.name.clone(),
        client_streaming: method.client_streaming,
        server_streaming: method.server_streaming,
        timeout: own.or(service_timeout.filter(|_| is_unary)),
        idempotency: method.idempotency,
    })
}

fn compile_breaker(service: &Service) -> Result<Option<BreakerPolicy>, PolicyError> {
    let Some(Breaker { consecutive_failures, failure_ratio, minimum_calls, window, open_for, probes, failure_codes }) =
        service.options.as_ref().and_then(|options| options.breaker.as_ref())
    else {
        return Ok(None);
    };
    let default = BreakerPolicy::default();
    let duration = |value: &Option<prost_types::Duration>, range: DurationRange, field, default| match value {
        Some(value) => range.check(value).map_err(|rule| rule.in_service(service, field)),
        None => Ok(default),
    };
    Ok(Some(BreakerPolicy {
        consecutive_failures: consecutive_failures.unwrap_or(default.consecutive_failures),
        failure_ratio: checked_ratio(failure_ratio.unwrap_or(default.failure_ratio))
            .map_err(|rule| rule.in_service(service, "breaker.failure_ratio"))?,
        minimum_calls: minimum_calls.unwrap_or(default.minimum_calls),
        window: duration(window, WINDOW, "breaker.window", default.window)?,
        open_for: duration(open_for, OPEN_FOR, "breaker.open_for", default.open_for)?,
        probes: checked_probes(probes.unwrap_or(default.probes))
            .map_err(|rule| rule.in_service(service, "breaker.probes"))?,
        failure_codes: checked_codes(failure_codes.iter().map(|code| i64::from(*code)))
            .map_err(|rule| rule.in_service(service, "breaker.failure_codes"))?,
    }))
}

/// A rule for values that a value breaks.
pub(super) struct Rule {
    pub(super) found: String,
    pub(super) allowed: &'static str,
}

impl Rule {
    fn in_service(self, service: &Service, field: &'static str) -> PolicyError {
        self.at(service, SERVICE_OPTION, format!("service {}", service.name), field)
    }

    fn in_method(self, service: &Service, method: &Method, field: &'static str) -> PolicyError {
        self.at(service, METHOD_OPTION, format!("method {}/{}", service.name, method.name), field)
    }

    fn at(self, service: &Service, option: &'static str, element: String, field: &'static str) -> PolicyError {
        let Self { found, allowed } = self;
        PolicyError::InvalidOption { file: service.file.clone(), option, element, field, found, allowed }
    }
}

/// The durations that a field may have.
#[derive(Clone, Copy)]
pub(super) struct DurationRange {
    min: Duration,
    max: Duration,
    allowed: &'static str,
}

impl DurationRange {
    pub(super) fn check(&self, value: &prost_types::Duration) -> Result<Duration, Rule> {
        is_well_formed(value)
            .then(|| Duration::try_from(*value).ok())
            .flatten()
            .filter(|duration| (self.min..=self.max).contains(duration))
            .ok_or_else(|| Rule { found: describe_duration(value), allowed: self.allowed })
    }
}

/// Whether a duration lies in protobuf's own range. Beyond it the library's conversions overflow.
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

pub(super) fn checked_ratio(ratio: f64) -> Result<f64, Rule> {
    if ratio > 0.0 && ratio <= 1.0 {
        Ok(ratio)
    } else {
        Err(Rule { found: ratio.to_string(), allowed: "a number above 0, at most 1" })
    }
}

pub(super) fn checked_probes(probes: u32) -> Result<u32, Rule> {
    if probes > 0 { Ok(probes) } else { Err(Rule { found: probes.to_string(), allowed: "a number from 1 on" }) }
}

/// Statuses that may count as failures; none: the default.
pub(super) fn checked_codes(codes: impl Iterator<Item = i64>) -> Result<CodeSet, Rule> {
    // Not OK, nor the two with which a call ends when its caller has had enough.
    const ALLOWED: &str = "a gRPC status but OK, CANCELLED and DEADLINE_EXCEEDED";
    let mut set = Vec::new();
    for code in codes {
        match u8::try_from(code) {
            Ok(code @ (2 | 3 | 5..=16)) => set.push(code),
            Ok(code) if usize::from(code) < GRPC_CODES.len() => {
                return Err(Rule { found: GRPC_CODES[usize::from(code)].to_owned(), allowed: ALLOWED });
            }
            _ => return Err(Rule { found: code.to_string(), allowed: ALLOWED }),
        }
    }
    Ok(if set.is_empty() { CodeSet::FAILURES } else { set.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::Idempotency, schema::testing::compile};

    fn policy(source: &str) -> Result<ServicePolicy, PolicyError> {
        ServicePolicy::from_descriptors(&compile(&[("t.proto", source)]), None)
    }

    fn refusal(service_body: &str) -> String {
        policy(&service(service_body)).unwrap_err().to_string()
    }

    fn service(body: &str) -> String {
        format!(
            r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
               message M {{}}
               service S {{ {body} }}"#
        )
    }

    #[test]
    fn options_become_policy_with_their_origins() {
        let policy = policy(&service(
            r#"option (weft.options.v1.service) = {
                   timeout: { seconds: 5 }
                   breaker: { probes: 3, window: { seconds: 1 }, failure_codes: [UNKNOWN, UNAVAILABLE] }
               };
               rpc Plain(M) returns (M);
               rpc Own(M) returns (M) { option (weft.options.v1.method) = { timeout: { nanos: 500000000 } }; }
               rpc Read(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
               rpc Watch(M) returns (stream M) { option idempotency_level = IDEMPOTENT; }
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
        let idempotency = |method: &str| policy.method("t.S", method).unwrap().idempotency;
        assert_eq!(idempotency("Plain"), Idempotency::Unknown);
        assert_eq!(idempotency("Read"), Idempotency::NoSideEffects);
        assert_eq!(idempotency("Watch"), Idempotency::Idempotent);
        let failure_codes = [2, 14].into_iter().collect();
        let window = Duration::from_secs(1);
        let breaker = BreakerPolicy { probes: 3, window, failure_codes, ..BreakerPolicy::default() };
        assert_eq!(policy.breaker, Sourced::new(breaker, Origin::ServiceOption));
    }

    #[test]
    fn without_options_everything_is_default() {
        let policy = policy(r#"syntax = "proto3"; message M {} service S { rpc Do(M) returns (M); }"#).unwrap();
        assert_eq!(policy.breaker, Sourced::default());
        assert_eq!(policy.method("S", "Do").unwrap().timeout, None);
    }

    #[test]
    fn the_shop_s_own_contracts_compile_and_leave_out_the_mesh_s() {
        let users = Some(&["shop.users.v1.Users".to_owned()][..]);
        let policy = ServicePolicy::from_descriptors(weft_contracts::FILE_DESCRIPTOR_SET, users).unwrap();
        assert_eq!(policy.method("shop.users.v1.Users", "Create").unwrap().timeout.unwrap().value.as_secs(), 2);
        assert_eq!(policy.breaker.value.open_for, Duration::from_secs(2));

        let all = ServicePolicy::from_descriptors(weft_contracts::FILE_DESCRIPTOR_SET, None).unwrap();
        assert!(all.contracts.iter().all(|contract| contract.name.starts_with("shop.")), "{:?}", all.contracts);
    }

    #[test]
    fn an_unknown_contract_is_refused_with_the_closest() {
        let asked = Some(&["shop.users.v1.User".to_owned()][..]);
        let error = ServicePolicy::from_descriptors(weft_contracts::FILE_DESCRIPTOR_SET, asked).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the descriptors define no service `shop.users.v1.User`; did you mean `shop.users.v1.Users`?"
        );
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
        ] {
            let error = breaker(field);
            assert!(error.contains(named), "{error}");
        }
        let error = refusal("option (weft.options.v1.service) = { timeout: {} };");
        assert!(error.contains("of service t.S: timeout is 0s; allowed is a positive time"), "{error}");
        let error = refusal(
            "rpc Do(M) returns (M) { option (weft.options.v1.method) = { timeout: { seconds: 9223372036854775807 } }; }",
        );
        assert!(error.contains("of method t.S/Do: timeout is { seconds: 9223372036854775807 nanos: 0 };"), "{error}");
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
    fn editions_are_read() {
        use buffa::Message as _;
        use buffa_descriptor::generated::descriptor::{Edition, FileDescriptorSet};

        // The compiler at hand writes no editions, so the file becomes one afterwards.
        let source =
            service("rpc Do(M) returns (M) { option (weft.options.v1.method) = { timeout: { seconds: 3 } }; }");
        let mut set = FileDescriptorSet::decode_from_slice(&compile(&[("t.proto", &source)])).unwrap();
        let file = set.file.iter_mut().find(|file| file.name.as_deref() == Some("t.proto")).unwrap();
        file.syntax = Some("editions".to_owned());
        file.edition = Some(Edition::EDITION_2023);
        let policy = ServicePolicy::from_descriptors(&set.encode_to_vec(), None).unwrap();
        assert_eq!(policy.method("t.S", "Do").unwrap().timeout.unwrap().value, Duration::from_secs(3));
    }
}
