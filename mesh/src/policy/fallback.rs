//! What answers a call that its service cannot take: the option `fallback`, and `weft.policy.v1.Fallback`.

use std::collections::HashMap;

use bytes::Bytes;
use weft_contracts::weft::{options::v1 as options, policy::v1 as wire};

use super::{
    ServicePolicy,
    error::{MalformedPolicy, PolicyError},
    origin::{Origin, Sourced},
    rule::Violation,
};
use crate::{
    limits,
    names::{self, ServiceName},
    schema::{Method, Schema, SchemaError, Service},
};

/// What answers a call that its service cannot take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Another service or another method.
    Elsewhere {
        /// `NAME` in the namespace of the service that has this policy, or `NAME.NAMESPACE`. `None`: whichever service
        /// implements the method.
        service: Option<String>,
        /// The method's full name, `a.b.C/D`. `None`: the method that was called.
        method: Option<String>,
    },
    /// A fixed answer, in both encodings that callers may use.
    Answer {
        /// The message in protobuf's binary encoding.
        message: Bytes,
        /// The same in protobuf's JSON, on one line.
        json: String,
    },
}

const SERVICE: &str = "fallback.service";
const METHOD: &str = "fallback.method";
const ANSWER: &str = "fallback.answer";
const SERVICE_ALLOWED: &str = "NAME, or NAME.NAMESPACE, of another service";

/// Checks what the option of a service says by itself.
pub(super) fn check_of_service(service: &Service) -> Result<(), PolicyError> {
    let Some(option) = service.options.as_ref().and_then(|options| options.fallback.as_ref()) else { return Ok(()) };
    let violation = |found: &str, allowed| Violation { found: found.to_owned(), allowed };
    if !option.method.is_empty() {
        let allowed = "a `service` or an `answer`: a method is named in the option of a method only";
        return Err(violation(&names::shown(&option.method), allowed).in_service(service, METHOD));
    }
    if is_empty(option) {
        return Err(violation("empty", "a `service` or an `answer`").in_service(service, "fallback"));
    }
    checked_target(option).map(|_| ()).map_err(|(field, broken)| broken.in_service(service, field))
}

/// A method's fallback: that of its own option, or else that of its service. `implemented` are the protobuf services of the
/// service that implements this one.
pub(super) fn of_method(
    schema: &dyn Schema,
    implemented: &[&Service],
    service: &Service,
    method: &Method,
) -> Result<Option<Sourced<Fallback>>, PolicyError> {
    let Some((option, origin)) = option_of(service, method) else { return Ok(None) };
    let place = |(field, broken): (&'static str, Violation)| match origin {
        Origin::MethodOption => broken.in_method(service, method, field),
        Origin::ServiceOption | Origin::Default => broken.in_service(service, field),
    };
    checked_target(option).map_err(place)?;
    if let Some(json) = &option.answer {
        let answer = checked_answer(schema, method, json).map_err(|broken| place((ANSWER, broken)))?;
        return Ok(Some(Sourced::new(answer, origin)));
    }
    if !option.method.is_empty() {
        let check = || -> Result<(), Violation> {
            check_method(schema, service, method, option)?;
            let is_own = implemented.iter().any(|own| option.method.strip_prefix(&own.name).is_some_and(is_method));
            if is_own && option.service.is_empty() {
                let found = format!("`{}`, a method of the same service", option.method);
                return Err(Violation { found, allowed: "a method of another service, as this one cannot be reached" });
            }
            check_no_loop(schema, service, method)
        };
        check().map_err(|broken| place((METHOD, broken)))?;
    }
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let to = Fallback::Elsewhere { service: given(&option.service), method: given(&option.method) };
    Ok(Some(Sourced::new(to, origin)))
}

/// The option that holds for a method, unless there is none or it is empty.
fn option_of<'s>(service: &'s Service, method: &'s Method) -> Option<(&'s options::Fallback, Origin)> {
    let own = method.options.as_ref().and_then(|options| options.fallback.as_ref());
    if let Some(own) = own {
        return (!is_empty(own)).then_some((own, Origin::MethodOption));
    }
    let of_service = service.options.as_ref().and_then(|options| options.fallback.as_ref())?;
    // An answer is one message.
    let holds = of_service.answer.is_none() || !method.server_streaming;
    holds.then_some((of_service, Origin::ServiceOption))
}

fn is_empty(option: &options::Fallback) -> bool {
    *option == options::Fallback::default()
}

/// Checks that the option names one way, and that its service can be one.
fn checked_target(option: &options::Fallback) -> Result<(), (&'static str, Violation)> {
    let is_elsewhere = !option.service.is_empty() || !option.method.is_empty();
    if option.answer.is_some() && is_elsewhere {
        let found = "given beside another service or method".to_owned();
        return Err((ANSWER, Violation { found, allowed: "either an `answer`, or a `service` and a `method`" }));
    }
    check_service_name(&option.service).map_err(|broken| (SERVICE, broken))
}

fn check_service_name(name: &str) -> Result<(), Violation> {
    match name.is_empty() || ServiceName::parse_in(name, names::DEFAULT_NAMESPACE).is_ok() {
        true => Ok(()),
        false => Err(Violation { found: format!("`{}`", names::shown(name)), allowed: SERVICE_ALLOWED }),
    }
}

fn checked_answer(schema: &dyn Schema, method: &Method, json: &str) -> Result<Fallback, Violation> {
    let violation = |found, allowed| Violation { found, allowed };
    if method.server_streaming {
        let found = format!("given for {}, which streams its answers", method.name);
        return Err(violation(found, "an answer for a method that answers with one message"));
    }
    let encode = || -> Result<_, SchemaError> {
        let message = schema.json_to_binary(&method.output, json)?;
        // In the form that protobuf's own libraries write, whatever form the contract uses.
        let json = schema.binary_to_json(&method.output, &message)?;
        Ok((message, json))
    };
    let (message, json) = encode().map_err(|error| {
        let found = format!("`{}` for {} ({error})", names::shown(json), method.name);
        violation(found, "a message of the method's response type in JSON")
    })?;
    let bytes = message.len().max(json.len());
    if bytes > limits::FALLBACK_ANSWER_BYTES {
        return Err(violation(format!("a message of {bytes} bytes"), ANSWER_SIZE));
    }
    Ok(Fallback::Answer { message: message.into(), json })
}

const ANSWER_SIZE: &str = "at most 16 KiB";
const _: () = assert!(limits::FALLBACK_ANSWER_BYTES == 16 * 1024, "ANSWER_SIZE says so");

/// Whether this follows a service's name as a method's name does: `/Get`.
fn is_method(rest: &str) -> bool {
    rest.starts_with('/')
}

/// The method of that full name.
fn find<'s>(schema: &'s dyn Schema, full_name: &str) -> Option<(&'s Service, &'s Method)> {
    let (contract, name) = full_name.split_once('/')?;
    Some((schema.service(contract)?, schema.method(contract, name)?))
}

/// Checks that the other method can answer in this one's stead.
fn check_method(
    schema: &dyn Schema,
    service: &Service,
    method: &Method,
    option: &options::Fallback,
) -> Result<(), Violation> {
    let Some((_, other)) = find(schema, &option.method) else {
        let allowed = "the full name of a method, PACKAGE.SERVICE/METHOD, from a file that this one imports";
        return Err(Violation { found: format!("`{}`", names::shown(&option.method)), allowed });
    };
    let shape = |method: &Method| {
        let streams = |is_stream| if is_stream { "stream " } else { "" };
        let (takes, gives) = (streams(method.client_streaming), streams(method.server_streaming));
        format!("({takes}{}) returns ({gives}{})", method.input, method.output)
    };
    if shape(other) != shape(method) {
        let found = format!(
            "`{}` {}, while {}/{} is {}",
            option.method,
            shape(other),
            service.name,
            method.name,
            shape(method)
        );
        return Err(Violation { found, allowed: "a method with the same request and response types" });
    }
    Ok(())
}

/// Checks that the fallbacks of the methods, one after the other, do not lead back to one of them.
fn check_no_loop(schema: &dyn Schema, service: &Service, method: &Method) -> Result<(), Violation> {
    let mut way = vec![format!("{}/{}", service.name, method.name)];
    let (mut service, mut method) = (service, method);
    while let Some((option, _)) = option_of(service, method) {
        let Some((next_service, next_method)) = find(schema, &option.method) else { return Ok(()) };
        (service, method) = (next_service, next_method);
        let is_loop = way.contains(&option.method);
        way.push(option.method.clone());
        if is_loop {
            let allowed = "a method whose own fallback does not lead back";
            return Err(Violation { found: way.join(" → "), allowed });
        }
    }
    Ok(())
}

/// Fallbacks that lead back to where they began, if there are some: the service where they begin, and their way. Each
/// service comes by its name, with its policy.
pub fn find_loop<'s>(services: &[(&'s ServiceName, &'s ServicePolicy)]) -> Option<(&'s ServiceName, String)> {
    let by_name: HashMap<&ServiceName, &ServicePolicy> = services.iter().copied().collect();
    let owners: HashMap<&str, &ServiceName> = services
        .iter()
        .flat_map(|(name, policy)| policy.contracts.iter().map(|contract| (contract.name.as_str(), *name)))
        .collect();
    let methods = services.iter().flat_map(|(name, policy)| {
        let methods = policy
            .contracts
            .iter()
            .flat_map(|contract| contract.methods.iter().map(|method| format!("{}/{}", contract.name, method.name)));
        methods.map(|method| (*name, method))
    });
    // The next step of a call, if the service's policy knows its method.
    let next = |(service, method): &(ServiceName, String)| {
        let (contract, name) = method.split_once('/')?;
        let fallback = by_name.get(service)?.method(contract, name)?.fallback.as_ref()?;
        let Fallback::Elsewhere { service: to, method: other } = &fallback.value else { return None };
        let other = other.as_ref().unwrap_or(method);
        let to = match to {
            Some(to) => ServiceName::parse_in(to, service.namespace()).ok()?,
            None => (*owners.get(other.split_once('/')?.0)?).clone(),
        };
        Some((to, other.clone()))
    };
    for (begin, method) in methods {
        let mut way = vec![(begin.clone(), method)];
        while let Some(step) = next(way.last()?) {
            let is_loop = way.contains(&step);
            way.push(step);
            if is_loop {
                let steps: Vec<_> = way.iter().map(|(service, method)| format!("{service} {method}")).collect();
                return Some((begin, steps.join(" → ")));
            }
        }
    }
    None
}

impl From<&Sourced<Fallback>> for wire::Fallback {
    fn from(fallback: &Sourced<Fallback>) -> Self {
        let to = match fallback.value.clone() {
            Fallback::Elsewhere { service, method } => wire::fallback::To::Elsewhere(wire::fallback::Elsewhere {
                service: service.unwrap_or_default(),
                method: method.unwrap_or_default(),
            }),
            Fallback::Answer { message, json } => wire::fallback::To::Answer(wire::fallback::Answer { message, json }),
        };
        Self { to: Some(to), origin: wire::Origin::from(fallback.origin).into() }
    }
}

/// The fallback in a message; `None` if only a later version knows what it is.
pub(super) fn from_wire(fallback: wire::Fallback) -> Result<Option<Sourced<Fallback>>, MalformedPolicy> {
    let origin = fallback.origin().into();
    let value = match fallback.to {
        None => return Ok(None),
        Some(wire::fallback::To::Elsewhere(wire::fallback::Elsewhere { service, method })) => {
            check_service_name(&service).map_err(|broken| broken.in_message("Fallback.elsewhere.service"))?;
            let is_method_name = |name: &str| {
                name.split_once('/').is_some_and(|(contract, method)| {
                    names::is_contract_name(contract) && names::is_contract_name(method) && !method.contains('.')
                })
            };
            let is_good = match method.is_empty() {
                true => !service.is_empty(),
                false => is_method_name(&method),
            };
            if !is_good {
                let broken =
                    Violation { found: format!("`{}`", names::shown(&method)), allowed: "PACKAGE.SERVICE/METHOD" };
                return Err(broken.in_message("Fallback.elsewhere.method"));
            }
            let given = |text: String| (!text.is_empty()).then_some(text);
            Fallback::Elsewhere { service: given(service), method: given(method) }
        }
        Some(wire::fallback::To::Answer(wire::fallback::Answer { message, json })) => {
            let bytes = message.len().max(json.len());
            if bytes > limits::FALLBACK_ANSWER_BYTES {
                let broken = Violation { found: format!("a message of {bytes} bytes"), allowed: ANSWER_SIZE };
                return Err(broken.in_message("Fallback.answer"));
            }
            Fallback::Answer { message, json }
        }
    };
    Ok(Some(Sourced::new(value, origin)))
}

#[cfg(test)]
mod tests;
