//! The spec of a MethodPolicy on Kubernetes: values that take the place of those in a service's contracts.
//!
//! What is said of a method wins over what is said of the service, whoever says it. Of two at the same place, the MethodPolicy
//! wins over the option in the contract: [`Origin`] has them in this order.

mod breaker;
mod fallback;

use std::{collections::BTreeMap, time::Duration};

use weft_contracts::weft::policy::v1 as wire;

use self::{breaker::BreakerFields, fallback::FallbackTo};
use super::{
    Hedge, Idempotency, hedge,
    origin::{Origin, Sourced},
    rule::DurationRange,
    timeout,
};
use crate::{
    config::{self, Node, Problems, Reader, Table, Value},
    names::{LABEL, ServiceName, is_label, shown},
};

const SPEC: &str = "spec";
const KEYS: &[&str] = &["service", "timeout", "breaker", "fallback", "methods"];
const METHOD_KEYS: &[&str] = &["method", "timeout", "hedge", "fallback"];
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
    fallback: Option<FallbackTo>,
    /// By `PACKAGE.SERVICE/METHOD`.
    methods: BTreeMap<String, OfMethod>,
}

/// What is said of one method.
#[derive(Clone, Debug, Default, PartialEq)]
struct OfMethod {
    timeout: Option<Duration>,
    hedge: Option<Hedging>,
    fallback: Option<FallbackTo>,
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
                let text = "without a value; allowed: `service` with `timeout`, `breaker`, `fallback`, `methods`, or several of them";
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
                fallback: read_fallback(reader, &table, false),
                methods: read_methods(reader, &table),
                service: service?,
            })
        })
    }

    /// Where it has a fallback that leads to the service of which it is itself, if it has one.
    pub fn fallback_to_itself(&self, service: &ServiceName) -> Option<String> {
        let leads_there = |fallback: &Option<FallbackTo>| fallback.as_ref().is_some_and(|to| to.leads_to(service));
        if leads_there(&self.fallback) {
            return Some(format!("{SPEC}.fallback.service"));
        }
        let (name, _) = self.methods.iter().find(|(_, own)| leads_there(&own.fallback))?;
        Some(format!("{SPEC}.methods: fallback.service of {name}"))
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
        let is_own = method.fallback.as_ref().is_some_and(|own| own.origin() == wire::Origin::MethodOption);
        let of_service = self.fallback.as_ref().filter(|_| !is_own);
        let of_service = of_service.map(|fallback| fallback.to_wire(Origin::ServicePolicy));
        let of_method = own.fallback.as_ref().map(|fallback| fallback.to_wire(Origin::MethodPolicy));
        if let Some(fallback) = of_method.or(of_service) {
            method.fallback = Some(fallback);
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
            format!("found {found}; allowed: a list of tables of {}", METHOD_KEYS.join(", ")),
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
    let own = OfMethod {
        timeout: duration(reader, &table, "timeout", &timeout::TIMEOUT),
        hedge: read_hedge(reader, &table),
        fallback: read_fallback(reader, &table, true),
    };
    if METHOD_KEYS[1..].iter().all(|key| table.get(key).is_none()) {
        let text = "without a value; allowed: `method` with `timeout`, `hedge`, `fallback`, or several of them";
        reader.problem(node.line, field, text);
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

fn read_fallback(reader: &mut Reader<'_>, table: &Table<'_>, may_be_nothing: bool) -> Option<FallbackTo> {
    FallbackTo::read(reader, &table.path("fallback"), table.get("fallback")?, may_be_nothing)
}

fn duration(reader: &mut Reader<'_>, table: &Table<'_>, key: &str, range: &DurationRange) -> Option<Duration> {
    reader.duration(table, key, &(range.min..=range.max), range.allowed)
}

#[cfg(test)]
mod tests;
