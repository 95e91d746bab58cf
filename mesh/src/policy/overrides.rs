//! The spec of a MethodPolicy on Kubernetes: values that take the place of those in a service's contracts.
//!
//! What is said of a method wins over what is said of the service, whoever says it. Of two at the same place, the MethodPolicy
//! wins over the option in the contract: [`Origin`] has them in this order.

mod breaker;

use std::{collections::BTreeMap, time::Duration};

use weft_contracts::weft::policy::v1 as wire;

use self::breaker::BreakerFields;
use super::{
    Hedge, Idempotency, hedge,
    origin::{Origin, Sourced},
    rule::DurationRange,
    timeout,
};
use crate::{
    config::{self, Node, Problems, Reader, Table, Value},
    names::{LABEL, is_label, shown},
};

const SPEC: &str = "spec";
const KEYS: &[&str] = &["service", "timeout", "breaker", "methods"];
const METHOD_KEYS: &[&str] = &["method", "timeout", "hedge"];
const METHOD: &str = "PACKAGE.SERVICE/METHOD";
const NEVER: &str = "never";
/// How many methods one MethodPolicy may name.
const METHODS: usize = 200;
/// The longest name of a method with its contract, in bytes.
const METHOD_BYTES: usize = 512;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Overrides {
    /// The Service that it is for, in the namespace of the object.
    pub service: String,
    timeout: Option<Duration>,
    breaker: Option<BreakerFields>,
    /// By `PACKAGE.SERVICE/METHOD`.
    methods: BTreeMap<String, OfMethod>,
}

/// What is said of one method.
#[derive(Clone, Debug, Default, PartialEq)]
struct OfMethod {
    timeout: Option<Duration>,
    hedge: Option<Hedging>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Hedging {
    Never,
    After(Duration),
}

impl Overrides {
    /// Reads it. `origin` names the object in problems.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(origin: &str, spec: &Node) -> Result<Self, Problems> {
        config::take(origin, spec, |reader, node| {
            let table = reader.table(SPEC, node, KEYS)?;
            reader.must_have_values(&table, KEYS);
            if KEYS[1..].iter().all(|key| table.get(key).is_none()) {
                let text =
                    "without a value; allowed: `service` with `timeout`, `breaker`, `methods`, or several of them";
                reader.problem(node.line, SPEC, text);
            }
            if table.get("service").is_none() {
                reader.problem(node.line, &table.path("service"), format!("missing; allowed: {LABEL}"));
            }
            let service = reader.parsed(&table, "service", LABEL, |text| match is_label(text) {
                true => Ok(text.to_owned()),
                false => Err(format!("found the text {:?}; allowed: {LABEL}", shown(text))),
            });
            let breaker =
                table.get("breaker").and_then(|node| BreakerFields::read(reader, &table.path("breaker"), node));
            Some(Self {
                timeout: duration(reader, &table, "timeout", &timeout::TIMEOUT),
                breaker,
                methods: read_methods(reader, &table),
                service: service?,
            })
        })
    }

    /// Puts its values into the policy of a service. `name` is that of the object, `NAMESPACE/NAME`.
    pub fn apply(&self, name: &str, policy: &mut wire::ServicePolicy) {
        name.clone_into(&mut policy.method_policy);
        if let Some(fields) = &self.breaker {
            fields.apply(policy);
        }
        for contract in &mut policy.contracts {
            for method in &mut contract.methods {
                let own = self.methods.get(&format!("{}/{}", contract.name, method.name));
                self.apply_to(method, own.unwrap_or(&OfMethod::default()));
            }
        }
    }

    fn apply_to(&self, method: &mut wire::Method, own: &OfMethod) {
        let is_unary = !method.client_streaming && !method.server_streaming;
        let is_own = method.timeout.as_ref().is_some_and(|timeout| timeout.origin() == wire::Origin::MethodOption);
        let of_service = self.timeout.filter(|_| is_unary && !is_own);
        let of_service = of_service.map(|timeout| Sourced::new(timeout, Origin::ServicePolicy));
        let of_method = own.timeout.map(|timeout| Sourced::new(timeout, Origin::MethodPolicy));
        if let Some(timeout) = of_method.or(of_service) {
            method.timeout = Some(timeout.into());
        }
        match own.hedge {
            Some(Hedging::Never) => method.hedge = None,
            Some(Hedging::After(after)) if Idempotency::from(method.idempotency()).is_safe_to_repeat() => {
                method.hedge = Some(Sourced::new(Hedge { after }, Origin::MethodPolicy).into());
            }
            // A call is never sent twice where that may do harm.
            Some(Hedging::After(_)) | None => {}
        }
    }
}

fn read_methods(reader: &mut Reader<'_>, table: &Table<'_>) -> BTreeMap<String, OfMethod> {
    let mut methods = BTreeMap::new();
    let Some(node) = table.get("methods") else { return methods };
    let field = table.path("methods");
    let Value::List(items) = &node.value else {
        let found = node.describe();
        reader.problem(
            node.line,
            &field,
            format!("found {found}; allowed: a list of tables of method, timeout, hedge"),
        );
        return methods;
    };
    if !(1..=METHODS).contains(&items.len()) {
        let text = format!("found {} entries; allowed: 1 to {METHODS}", items.len());
        reader.problem(node.line, &field, text);
        return methods;
    }
    for (place, item) in items.iter().enumerate() {
        let field = format!("{field}[{place}]");
        let Some((name, own)) = read_method(reader, &field, item) else { continue };
        if methods.contains_key(&name) {
            reader.problem(item.line, &format!("{field}.method"), format!("{name} is there twice; allowed: once"));
        }
        methods.insert(name, own);
    }
    methods
}

fn read_method(reader: &mut Reader<'_>, field: &str, node: &Node) -> Option<(String, OfMethod)> {
    let table = reader.table(field, node, METHOD_KEYS)?;
    reader.must_have_values(&table, METHOD_KEYS);
    let own =
        OfMethod { timeout: duration(reader, &table, "timeout", &timeout::TIMEOUT), hedge: read_hedge(reader, &table) };
    if METHOD_KEYS[1..].iter().all(|key| table.get(key).is_none()) {
        reader.problem(node.line, field, "without a value; allowed: `method` with `timeout`, `hedge`, or both");
    }
    if table.get("method").is_none() {
        reader.problem(node.line, &table.path("method"), format!("missing; allowed: {METHOD}"));
    }
    let name = reader.parsed(&table, "method", METHOD, |text| match is_method(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("found the text {:?}; allowed: {METHOD}", shown(text))),
    });
    Some((name?, own))
}

/// Whether a text is `PACKAGE.SERVICE/METHOD`, of identifiers of protobuf.
fn is_method(text: &str) -> bool {
    let is_identifier = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text.len() <= METHOD_BYTES
        && text
            .split_once('/')
            .is_some_and(|(contract, method)| contract.split('.').all(is_identifier) && is_identifier(method))
}

fn read_hedge(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Hedging> {
    if matches!(&table.get("hedge")?.value, Value::Text(text) if text == NEVER) {
        return Some(Hedging::Never);
    }
    duration(reader, table, "hedge", &hedge::AFTER).map(Hedging::After)
}

fn duration(reader: &mut Reader<'_>, table: &Table<'_>, key: &str, range: &DurationRange) -> Option<Duration> {
    reader.duration(table, key, &(range.min..=range.max), range.allowed)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::{
        ServicePolicy,
        testing::{policy, service},
    };

    fn read(spec: Value) -> Result<Overrides, String> {
        let lines = |problems: Problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        Overrides::read("MethodPolicy shop/slow", &Node::of_json(&spec)).map_err(lines)
    }

    const CONTRACT: &str = r#"
        option (weft.options.v1.service) = {
            timeout: { seconds: 5 }
            breaker: { probes: 2 open_for: { seconds: 3 } }
            hedge: { after: { nanos: 50000000 } }
        };
        rpc Plain(M) returns (M);
        rpc Own(M) returns (M) { option (weft.options.v1.method) = { timeout: { seconds: 1 } }; }
        rpc Read(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
        rpc Watch(M) returns (stream M);"#;

    fn wire_policy() -> wire::ServicePolicy {
        (&policy(&service(CONTRACT)).unwrap()).into()
    }

    fn applied(spec: Value) -> ServicePolicy {
        let mut of_service = wire_policy();
        let overrides = read(spec).unwrap();
        overrides.apply("shop/slow", &mut of_service);
        assert_eq!(of_service.method_policy, "shop/slow");
        ServicePolicy::try_from(of_service).expect("it is well-formed")
    }

    #[test]
    fn what_is_said_of_a_method_wins_over_what_is_said_of_the_service() {
        let policy = applied(json!({
            "service": "users", "timeout": "2s",
            "methods": [
                {"method": "t.S/Read", "timeout": "1m30s", "hedge": "never"},
                {"method": "t.S/Watch", "timeout": "1h"},
                {"method": "t.S/Plain", "hedge": "20ms"},
            ],
        }));
        let method = |name: &str| policy.method("t.S", name).unwrap();
        let of = |seconds, origin| Some(Sourced::new(Duration::from_secs(seconds), origin));
        assert_eq!(method("Plain").timeout, of(2, Origin::ServicePolicy));
        assert_eq!(method("Plain").hedge, None, "it may not be safe to repeat");
        assert_eq!(method("Own").timeout, of(1, Origin::MethodOption), "the contract says it of the method");
        assert_eq!(method("Read").timeout, of(90, Origin::MethodPolicy));
        assert_eq!(method("Read").hedge, None);
        assert_eq!(method("Watch").timeout, of(3600, Origin::MethodPolicy));
        let policy = applied(json!({"service": "users", "timeout": "2s"}));
        assert_eq!(policy.method("t.S", "Watch").unwrap().timeout, None, "it is for unary methods");
        let hedged = applied(json!({"service": "users", "methods": [{"method": "t.S/Read", "hedge": "20ms"}]}));
        let hedge = hedged.method("t.S", "Read").unwrap().hedge.unwrap();
        assert_eq!((hedge.value.after, hedge.origin), (Duration::from_millis(20), Origin::MethodPolicy));
        assert_eq!(hedged.breaker.origin, Origin::ServiceOption);
    }

    #[test]
    fn each_problem_names_the_object_and_the_field() {
        let many: Vec<Value> = (0..201).map(|n| json!({"method": format!("a.B/M{n}"), "timeout": "1s"})).collect();
        for (spec, problem) in [
            (json!({"service": "users"}), "spec: without a value; allowed: `service` with"),
            (json!({"timeout": "1s"}), "spec.service: missing; allowed: 1 to 63 of"),
            (json!({"service": "users.shop", "timeout": "1s"}), "spec.service: found the text \"users.shop\""),
            (json!({"service": "users", "timeout": null}), "spec.timeout: found nothing; allowed: a value"),
            (
                json!({"service": "users", "timeout": 2}),
                "spec.timeout: found the number 2; allowed: a positive time of",
            ),
            (
                json!({"service": "users", "timeout": "2"}),
                "spec.timeout: found the text \"2\"; allowed: a positive time",
            ),
            (
                json!({"service": "users", "timeout": "0s"}),
                "spec.timeout: found the text \"0s\"; allowed: a positive time",
            ),
            (json!({"service": "users", "timout": "1s"}), "spec.timout: unknown key; allowed: service, timeout,"),
            (
                json!({"service": "users", "methods": {}}),
                "spec.methods: found a table of keys and values; allowed: a list",
            ),
            (json!({"service": "users", "methods": []}), "spec.methods: found 0 entries; allowed: 1 to 200"),
            (json!({"service": "users", "methods": many}), "spec.methods: found 201 entries; allowed: 1 to 200"),
            (
                json!({"service": "users", "methods": [{"method": "a.B/C"}]}),
                "spec.methods[0]: without a value; allowed: `method` with",
            ),
            (
                json!({"service": "users", "methods": [{"timeout": "1s"}]}),
                "spec.methods[0].method: missing; allowed: PACK",
            ),
            (
                json!({"service": "users", "methods": [{"method": "Get", "timeout": "1s"}]}),
                "spec.methods[0].method: found the text \"Get\"; allowed: PACKAGE.SERVICE/METHOD",
            ),
            (
                json!({"service": "users", "methods": [{"method": "a.B/C", "hedge": "0.5s"}]}),
                "spec.methods[0].hedge: found the text \"0.5s\"; allowed: a time from 1 ms",
            ),
            (
                json!({"service": "users", "methods":
                    [{"method": "a.B/C", "timeout": "1s"}, {"method": "a.B/C", "hedge": "never"}]}),
                "spec.methods[1].method: a.B/C is there twice; allowed: once",
            ),
        ] {
            let told = read(spec.clone()).expect_err("it is wrong");
            assert!(told.contains(&format!("MethodPolicy shop/slow: {problem}")), "{spec}: {told}");
        }
    }
}
