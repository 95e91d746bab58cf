//! The fields of a circuit breaker that a MethodPolicy gives.

use std::time::Duration;

use weft_contracts::weft::policy::v1::{self as wire, Origin};

use super::duration;
use crate::{
    config::{Node, Reader, Table},
    errors::GRPC_CODES,
    policy::{
        BreakerPolicy, CodeSet, SlowCall, Sourced,
        breaker::{LONGER_THAN, OPEN_FOR, WINDOW},
        codes,
        rule::{self, Violation},
    },
};

const KEYS: &[&str] =
    &["consecutiveFailures", "failureRatio", "minimumCalls", "window", "openFor", "probes", "failureCodes", "slowCall"];
const SLOW_CALL_KEYS: &[&str] = &["longerThan", "ratio"];
const CODE: &str = "the name of a gRPC status, such as UNAVAILABLE";

/// The fields that are given; the others stay as the contract has them. The names are those of the option, as protobuf writes
/// them in JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BreakerFields {
    consecutive_failures: Option<u32>,
    failure_ratio: Option<f64>,
    minimum_calls: Option<u32>,
    window: Option<Duration>,
    open_for: Option<Duration>,
    probes: Option<u32>,
    failure_codes: Option<CodeSet>,
    slow_call: Option<SlowCall>,
}

impl BreakerFields {
    pub(super) fn read(reader: &mut Reader<'_>, field: &str, node: &Node) -> Option<Self> {
        let table = reader.table(field, node, KEYS)?;
        reader.must_have_values(&table, KEYS);
        if table.entries().is_empty() {
            reader.problem(node.line, field, format!("without a value; allowed: a table of {}", KEYS.join(", ")));
        }
        Some(Self {
            consecutive_failures: count(reader, &table, "consecutiveFailures", 0),
            failure_ratio: ratio(reader, &table, "failureRatio"),
            minimum_calls: count(reader, &table, "minimumCalls", 0),
            window: duration(reader, &table, "window", &WINDOW),
            open_for: duration(reader, &table, "openFor", &OPEN_FOR),
            probes: count(reader, &table, "probes", 1),
            failure_codes: read_codes(reader, &table),
            slow_call: read_slow_call(reader, &table),
        })
    }

    pub(super) fn apply(&self, policy: &mut wire::ServicePolicy) {
        let default = || wire::Breaker::from(&Sourced::<BreakerPolicy>::default());
        let breaker = policy.breaker.get_or_insert_with(default);
        breaker.set_origin(Origin::ServicePolicy);
        set(&mut breaker.consecutive_failures, self.consecutive_failures);
        set(&mut breaker.failure_ratio, self.failure_ratio);
        set(&mut breaker.minimum_calls, self.minimum_calls);
        set(&mut breaker.window, self.window.map(|window| Some(rule::duration_to_wire(window))));
        set(&mut breaker.open_for, self.open_for.map(|open_for| Some(rule::duration_to_wire(open_for))));
        set(&mut breaker.probes, self.probes);
        set(&mut breaker.failure_codes, self.failure_codes.map(|codes| codes.iter().map(u32::from).collect()));
        set(&mut breaker.slow_call, self.slow_call.map(|slow_call| Some(slow_call.into())));
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn count(reader: &mut Reader<'_>, table: &Table<'_>, key: &str, least: i64) -> Option<u32> {
    let found = reader.whole_number(table, key, least..=i64::from(u32::MAX), "")?;
    u32::try_from(found.value).ok()
}

fn ratio(reader: &mut Reader<'_>, table: &Table<'_>, key: &str) -> Option<f64> {
    let found = reader.share(table, key)?;
    checked(reader, table, key, rule::checked_ratio(found))
}

fn checked<T>(reader: &mut Reader<'_>, table: &Table<'_>, key: &str, value: Result<T, Violation>) -> Option<T> {
    let line = table.get(key).map_or(0, |node| node.line);
    value
        .map_err(|Violation { found, allowed }| {
            reader.problem(line, &table.path(key), format!("found {found}; allowed: {allowed}"))
        })
        .ok()
}

fn read_codes(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<CodeSet> {
    let names = reader.texts(table, "failureCodes", CODE)?;
    let field = table.path("failureCodes");
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        match GRPC_CODES.iter().position(|known| *known == name.value) {
            Some(code) => found.push(code as i64),
            None => {
                let text = format!("found {:?}; allowed: {CODE}", crate::names::shown(&name.value));
                reader.problem(name.line, &field, text);
            }
        }
    }
    if found.is_empty() {
        reader.problem(table.get("failureCodes")?.line, &field, format!("found no status; allowed: {CODE}"));
        return None;
    }
    checked(reader, table, "failureCodes", codes::checked_failures(found.into_iter()))
}

fn read_slow_call(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<SlowCall> {
    let node = table.get("slowCall")?;
    let slow_call = reader.table(&table.path("slowCall"), node, SLOW_CALL_KEYS)?;
    reader.must_have_values(&slow_call, SLOW_CALL_KEYS);
    if slow_call.get("longerThan").is_none() {
        let text = format!("missing; allowed: {}", LONGER_THAN.allowed);
        reader.problem(node.line, &slow_call.path("longerThan"), text);
    }
    let ratio = match slow_call.get("ratio") {
        Some(_) => ratio(reader, &slow_call, "ratio")?,
        None => SlowCall::DEFAULT_RATIO,
    };
    Some(SlowCall { longer_than: duration(reader, &slow_call, "longerThan", &LONGER_THAN)?, ratio })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::{
        ServicePolicy,
        overrides::Overrides,
        testing::{policy, service},
    };

    fn read(breaker: Value) -> Result<Overrides, String> {
        let spec = json!({"service": "users", "breaker": breaker});
        Overrides::read("MethodPolicy shop/slow", &Node::of_json(&spec)).map_err(|problems| problems.to_string())
    }

    #[test]
    fn what_is_left_out_stays_as_the_contract_has_it() {
        let contract = r#"option (weft.options.v1.service) = { breaker: { probes: 2 open_for: { seconds: 3 } } };"#;
        let of_contract = policy(&service(contract)).unwrap();
        let with = |breaker: Value| {
            let mut of_service = wire::ServicePolicy::from(&of_contract);
            read(breaker).unwrap().apply("shop/slow", &mut of_service);
            ServicePolicy::try_from(of_service).expect("it is well-formed").breaker
        };
        let before = of_contract.breaker.value.clone();
        let breaker = with(json!({"probes": 5}));
        assert_eq!(breaker.value, BreakerPolicy { probes: 5, ..before.clone() });
        assert_eq!(breaker.origin, crate::policy::Origin::ServicePolicy);
        let breaker = with(json!({
            "consecutiveFailures": 0, "failureRatio": 0.25, "minimumCalls": 7, "window": "30s", "openFor": "500ms",
            "failureCodes": ["UNKNOWN", "UNAVAILABLE"], "slowCall": {"longerThan": "1s500ms"},
        }));
        let expected = BreakerPolicy {
            consecutive_failures: 0,
            failure_ratio: 0.25,
            minimum_calls: 7,
            window: Duration::from_secs(30),
            open_for: Duration::from_millis(500),
            probes: 2,
            failure_codes: [2, 14].into_iter().collect(),
            slow_call: Some(SlowCall { longer_than: Duration::from_millis(1500), ratio: 0.5 }),
        };
        assert_eq!(breaker.value, expected);
    }

    #[test]
    fn each_problem_names_the_field() {
        for (breaker, problem) in [
            (json!({}), "spec.breaker: without a value; allowed: a table of consecutiveFailures,"),
            (json!([]), "spec.breaker: found a list; allowed: a table of"),
            (json!({"probes": 0}), "spec.breaker.probes: found the number 0; allowed: a whole number from 1 to"),
            (
                json!({"minimumCalls": -1}),
                "spec.breaker.minimumCalls: found the number -1; allowed: a whole number from 0",
            ),
            (json!({"failureRatio": 0}), "spec.breaker.failureRatio: found 0; allowed: a number above 0, at most 1"),
            (
                json!({"failureRatio": 1.5}),
                "spec.breaker.failureRatio: found the number 1.5; allowed: a number from 0 to 1",
            ),
            (
                json!({"window": "999ms"}),
                "spec.breaker.window: found the text \"999ms\"; allowed: a time from 1 s to 10 min",
            ),
            (json!({"openFor": "11m"}), "spec.breaker.openFor: found the text \"11m\"; allowed: a time from 100 ms"),
            (
                json!({"failureCodes": ["UNAVAILABEL"]}),
                "spec.breaker.failureCodes: found \"UNAVAILABEL\"; allowed: the name",
            ),
            (
                json!({"failureCodes": []}),
                "spec.breaker.failureCodes: found no status; allowed: the name of a gRPC status",
            ),
            (json!({"failureCodes": ["OK"]}), "spec.breaker.failureCodes: found OK; allowed: a gRPC status but OK,"),
            (
                json!({"slowCall": {"ratio": 0.5}}),
                "spec.breaker.slowCall.longerThan: missing; allowed: a time from 1 ms",
            ),
            (json!({"open_for": "1s"}), "spec.breaker.open_for: unknown key; allowed: consecutiveFailures,"),
        ] {
            let told = read(breaker.clone()).expect_err("it is wrong");
            assert!(told.contains(&format!("MethodPolicy shop/slow: {problem}")), "{breaker}: {told}");
        }
    }
}
