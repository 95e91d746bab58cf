//! What answers a call that its service cannot take: the option `fallback`, and `weft.policy.v1.Fallback`.

mod answers;

use std::{cell::OnceCell, collections::HashMap, sync::Arc};

use bytes::Bytes;
use weft_contracts::weft::{options::v1 as options, policy::v1 as wire};

use self::answers::{ANSWER_SIZE, Answer, Answers};
use super::{
    ServicePolicy,
    error::{MalformedPolicy, PolicyError},
    origin::{Origin, Sourced},
    rule::Violation,
};
use crate::{
    limits,
    names::{self, ServiceName},
    schema::{Method, Schema, Service},
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
        json: Arc<str>,
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
    checked_target(option).map_err(|(field, broken)| broken.in_service(service, field))
}

/// By the names of their service and their own.
type Methods<'s> = HashMap<(&'s str, &'s str), (&'s Service, &'s Method)>;

/// Compiles the fallbacks of one service. Its work and what it makes are bounded, since any service of the mesh may ask the
/// control plane to compile its contracts.
pub(super) struct Compiler<'s> {
    schema: &'s dyn Schema,
    /// The protobuf services that the service implements, in the order of their names.
    implemented: &'s [&'s Service],
    /// All methods by their names, made when a fallback names one.
    methods: OnceCell<Methods<'s>>,
    answers: Answers<'s>,
}

impl<'s> Compiler<'s> {
    pub(super) fn new(schema: &'s dyn Schema, implemented: &'s [&'s Service]) -> Self {
        Self { schema, implemented, methods: OnceCell::new(), answers: Answers::new(schema) }
    }

    /// A method's fallback: that of its own option, or else that of its service.
    pub(super) fn of_method(
        &mut self,
        service: &'s Service,
        method: &'s Method,
    ) -> Result<Option<Sourced<Fallback>>, PolicyError> {
        let Some((option, origin)) = option_of(service, method) else { return Ok(None) };
        let compiled = self.compile(service, method, option, origin);
        let at = |(field, broken): (&'static str, Violation)| match origin {
            Origin::MethodOption | Origin::MethodPolicy => broken.in_method(service, method, field),
            Origin::Default | Origin::ServiceOption | Origin::ServicePolicy => broken.in_service(service, field),
        };
        compiled.map(|fallback| Some(Sourced::new(fallback, origin))).map_err(at)
    }

    fn compile(
        &mut self,
        service: &'s Service,
        method: &'s Method,
        option: &'s options::Fallback,
        origin: Origin,
    ) -> Result<Fallback, (&'static str, Violation)> {
        checked_target(option)?;
        if let Some(json) = &option.answer {
            let Answer { message, json } =
                self.answers.of(service, method, json, origin).map_err(|broken| (ANSWER, broken))?;
            return Ok(Fallback::Answer { message, json });
        }
        if !option.method.is_empty() {
            self.check_method(service, method, option).map_err(|broken| (METHOD, broken))?;
        }
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        Ok(Fallback::Elsewhere { service: given(&option.service), method: given(&option.method) })
    }

    fn check_method(
        &self,
        service: &'s Service,
        method: &'s Method,
        option: &'s options::Fallback,
    ) -> Result<(), Violation> {
        check_same_types(self.find(&option.method), service, method, option)?;
        let is_own = option.method.split_once('/').is_some_and(|(contract, _)| self.is_implemented(contract));
        if is_own && option.service.is_empty() {
            let found = format!("`{}`, a method of the same service", option.method);
            return Err(Violation { found, allowed: "a method of another service, as this one cannot be reached" });
        }
        self.check_end(service, method)
    }

    fn is_implemented(&self, contract: &str) -> bool {
        self.implemented.binary_search_by(|own| own.name.as_str().cmp(contract)).is_ok()
    }

    /// The method of that full name.
    fn find(&self, full_name: &str) -> Option<(&'s Service, &'s Method)> {
        let methods = self.methods.get_or_init(|| {
            let services = self.schema.services().iter();
            let named = |service: &'s Service| {
                service.methods.iter().map(move |method| ((&*service.name, &*method.name), (service, method)))
            };
            services.flat_map(named).collect()
        });
        methods.get(&full_name.split_once('/')?).copied()
    }

    /// Checks that the fallbacks of the methods, one after the other, come to an end before a sidecar takes no more of them.
    fn check_end(&self, service: &'s Service, method: &'s Method) -> Result<(), Violation> {
        let mut way = vec![format!("{}/{}", service.name, method.name)];
        let (mut service, mut method) = (service, method);
        while let Some((option, _)) = option_of(service, method) {
            let Some((next_service, next_method)) = self.find(&option.method) else { return Ok(()) };
            (service, method) = (next_service, next_method);
            let is_loop = way.contains(&option.method);
            way.push(option.method.clone());
            if is_loop {
                let allowed = "a method whose own fallback does not lead back";
                return Err(Violation { found: way.join(" → "), allowed });
            }
            if way.len() > limits::FALLBACKS as usize + 1 {
                return Err(Violation { found: way.join(" → "), allowed: CHAIN });
            }
        }
        Ok(())
    }
}

const CHAIN: &str = "at most 3 fallbacks, one after the other";
const _: () = assert!(limits::FALLBACKS == 3, "CHAIN says so");

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

/// Whether the method's own option says that it has no fallback.
pub(super) fn is_refused(method: &Method) -> bool {
    method.options.as_ref().and_then(|options| options.fallback.as_ref()).is_some_and(is_empty)
}

/// That a method's own option says that it has no fallback, in a message.
pub(super) fn refused() -> wire::Fallback {
    wire::Fallback { to: None, origin: wire::Origin::MethodOption.into() }
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
    check_target_service(&option.service).map_err(|broken| (SERVICE, broken))
}

/// The service of a fallback may be left out.
fn check_target_service(name: &str) -> Result<(), Violation> {
    if name.is_empty() { Ok(()) } else { check_service_name(name) }
}

fn check_service_name(name: &str) -> Result<(), Violation> {
    match ServiceName::parse_in(name, names::DEFAULT_NAMESPACE).is_ok() {
        true => Ok(()),
        false => Err(Violation { found: format!("`{}`", names::shown(name)), allowed: SERVICE_ALLOWED }),
    }
}

/// Checks that the other method can answer in this one's stead.
fn check_same_types(
    other: Option<(&Service, &Method)>,
    service: &Service,
    method: &Method,
    option: &options::Fallback,
) -> Result<(), Violation> {
    let Some((_, other)) = other else {
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

/// The services whose calls to this contract its service answers as their fallback, each once.
pub(super) fn stands_in_for(service: &Service) -> Result<Vec<String>, PolicyError> {
    let mut names = service.options.as_ref().map(|options| options.stands_in_for.clone()).unwrap_or_default();
    names.sort();
    names.dedup();
    check_stand_ins(&names).map_err(|broken| broken.in_service(service, "stands_in_for"))?;
    Ok(names)
}

fn check_stand_ins(names: &[String]) -> Result<(), Violation> {
    if names.len() > limits::STANDS_IN_FOR {
        return Err(Violation { found: format!("{} services", names.len()), allowed: STANDS_IN_FOR_MOST });
    }
    names.iter().try_for_each(|name| check_service_name(name))
}

const STANDS_IN_FOR_MOST: &str = "at most 64 services";
const _: () = assert!(limits::STANDS_IN_FOR == 64, "STANDS_IN_FOR_MOST says so");

/// The services that a contract's service stands in for, in a message.
pub(super) fn stands_in_for_from_wire(names: Vec<String>) -> Result<Vec<String>, MalformedPolicy> {
    check_stand_ins(&names).map_err(|broken| broken.in_message("Contract.stands_in_for"))?;
    Ok(names)
}

/// The services of a mesh, as far as their fallbacks matter.
struct Services<'s> {
    by_name: HashMap<&'s ServiceName, &'s ServicePolicy>,
    /// Of each contract. If two services have the same, it belongs to the first.
    owners: HashMap<&'s str, &'s ServiceName>,
}

impl<'s> Services<'s> {
    fn new(services: &[(&'s ServiceName, &'s ServicePolicy)]) -> Self {
        let mut owners = HashMap::new();
        for (name, policy) in services {
            for contract in &policy.contracts {
                owners.entry(contract.name.as_str()).or_insert(*name);
            }
        }
        Self { by_name: services.iter().copied().collect(), owners }
    }

    /// The service that a fallback of `from` leads to: the one that it names, or else the owner of the method.
    fn target(&self, from: &ServiceName, service: Option<&String>, method: &str) -> Option<ServiceName> {
        match service {
            Some(service) => ServiceName::parse_in(service, from.namespace()).ok(),
            None => Some((*self.owners.get(method.split_once('/')?.0)?).clone()),
        }
    }
}

/// A fallback to a service that does not say that it stands in for the one that calls fall back from: the name of that one,
/// and the name of the other. Each service comes by its name, with its policy.
pub fn find_unwelcome<'s>(services: &[(&'s ServiceName, &'s ServicePolicy)]) -> Option<(&'s ServiceName, ServiceName)> {
    let mesh = Services::new(services);
    let unwelcome = |(from, policy): &(&'s ServiceName, &ServicePolicy)| {
        let methods = policy.contracts.iter().flat_map(|contract| &contract.methods);
        methods.filter_map(|method| method.fallback.as_ref()).find_map(|fallback| {
            let Fallback::Elsewhere { service, method } = &fallback.value else { return None };
            let to = mesh.target(from, service.as_ref(), method.as_deref().unwrap_or_default())?;
            let called = method.as_ref().map(|method| method.split_once('/').map_or("", |(contract, _)| contract));
            let is_welcome = mesh.by_name.get(&to)?.is_stand_in_for(&to, called, from);
            (!is_welcome).then_some((*from, to))
        })
    };
    services.iter().find_map(unwelcome)
}

/// Fallbacks that lead back to where they began, if there are some: the service where they begin, and their way. Each
/// service comes by its name, with its policy.
pub fn find_loop<'s>(services: &[(&'s ServiceName, &'s ServicePolicy)]) -> Option<(&'s ServiceName, String)> {
    let mesh = Services::new(services);
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
        let fallback = mesh.by_name.get(service)?.method(contract, name)?.fallback.as_ref()?;
        let Fallback::Elsewhere { service: to, method: other } = &fallback.value else { return None };
        let other = other.as_ref().unwrap_or(method);
        Some((mesh.target(service, to.as_ref(), other)?, other.clone()))
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
            Fallback::Answer { message, json } => {
                wire::fallback::To::Answer(wire::fallback::Answer { message, json: json.to_string() })
            }
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
            check_target_service(&service).map_err(|broken| broken.in_message("Fallback.elsewhere.service"))?;
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
            Fallback::Answer { message, json: json.into() }
        }
    };
    Ok(Some(Sourced::new(value, origin)))
}

#[cfg(test)]
mod tests;
