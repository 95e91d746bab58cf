//! Questions about the rules of a mesh file, answered as the sidecars would decide.

use std::{collections::BTreeSet, fmt::Display};

use anyhow::bail;
use weft_mesh::{
    identity::SpiffeId,
    names::{ServiceName, closest},
    policy::{self, AccessRule, AccessRules, Callers, MethodPolicy, Origin, PathRule, Request, Source, Verdict},
    schema,
};

use crate::mesh_file::{MeshFile, Service, model::KEYBOARD};

/// The most names of one list that are remarked on.
const NAMES_SHOWN: usize = 10;

/// The rules of a mesh file.
pub(super) struct Rules<'m> {
    mesh: &'m MeshFile,
    /// All identities of the mesh.
    members: Vec<SpiffeId>,
}

/// What is called.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Called {
    Method { contract: String, method: String },
    Service(ServiceName),
    Path { service: ServiceName, http_method: String, path: String },
}

/// What the rules of one service decide.
pub(super) struct Answer<'m> {
    mesh: &'m MeshFile,
    service: &'m Service,
    method: Option<(&'m str, &'m MethodPolicy)>,
    caller: SpiffeId,
    called: String,
    pub(super) verdict: Verdict,
}

impl<'m> Rules<'m> {
    pub(super) fn new(mesh: &'m MeshFile) -> Self {
        let keyboard = ServiceName::new(KEYBOARD, &mesh.namespace).ok();
        let names = mesh.services.iter().map(|service| &service.name).chain(&keyboard);
        let members = names.map(|name| SpiffeId::of_service(&mesh.trust_domain, name)).collect();
        Self { mesh, members }
    }

    /// Reads who calls.
    ///
    /// # Errors
    /// It is no name of a caller.
    pub(super) fn caller(&self, text: &str) -> anyhow::Result<SpiffeId> {
        if text.starts_with("spiffe:") {
            return Ok(text.parse()?);
        }
        Ok(SpiffeId::of_service(&self.mesh.trust_domain, &ServiceName::parse_in(text, &self.mesh.namespace)?))
    }

    /// What to say of a caller that is not in the mesh file.
    pub(super) fn unknown_caller(&self, caller: &SpiffeId) -> Option<String> {
        if self.members.contains(caller) {
            return None;
        }
        let near = closest(caller.service().as_str(), self.members.iter().map(|member| member.service().as_str()));
        Some(format!("{caller} is not in {}{}", self.mesh.path.display(), hint(near)))
    }

    /// Reads what is called.
    ///
    /// # Errors
    /// No service of the mesh has it.
    pub(super) fn called(&self, text: &str, http_method: &str) -> anyhow::Result<Called> {
        let (name, rest) = text.split_once('/').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let contracts = || self.mesh.services.iter().filter_map(|service| service.contracts.as_ref());
        let of_name = || contracts().filter_map(|contracts| contracts.policy.contract(name));
        if of_name().next().is_some() {
            let methods = || of_name().flat_map(|contract| &contract.methods).map(|method| method.name.as_str());
            let method = rest.unwrap_or_default();
            if !methods().any(|known| known == method) {
                let near = closest(method, methods()).map(|near| format!("{name}/{near}"));
                bail!("{name} has no method {method:?}{}", hint(near));
            }
            return Ok(Called::Method { contract: name.to_owned(), method: method.to_owned() });
        }
        let service = ServiceName::parse_in(name, &self.mesh.namespace).ok();
        let is_known = |service: &ServiceName| self.mesh.services.iter().any(|known| known.name == *service);
        match (service.filter(is_known), rest) {
            (Some(service), None) => Ok(Called::Service(service)),
            (Some(_), Some(_)) if http_method.bytes().any(|b| b.is_ascii_lowercase()) => {
                bail!("{http_method:?} is no method of HTTP: they are in upper case")
            }
            (Some(service), Some(path)) => {
                let http_method = http_method.to_owned();
                Ok(Called::Path { service, http_method, path: format!("/{path}") })
            }
            (None, _) => {
                let all = contracts().flat_map(|contracts| &contracts.policy.contracts);
                let names = all.map(|contract| contract.name.as_str());
                let near = closest(name, names.chain(self.mesh.services.iter().map(|service| service.name.name())));
                bail!("{name:?} is no contract and no service of {}{}", self.mesh.path.display(), hint(near))
            }
        }
    }

    /// What each service decides that is meant: of a contract, all that implement it.
    pub(super) fn ask(&self, caller: &SpiffeId, called: &Called) -> Vec<Answer<'m>> {
        let mut answers = Vec::new();
        for service in &self.mesh.services {
            let rules = AccessRules::new(&service.name, self.mesh.access.of(&service.name));
            let answer =
                |method: Option<(&'m str, &'m MethodPolicy)>, http_method: &str, path: &str, called: String| {
                    let contracts = service.contracts.as_ref().map(|contracts| &contracts.policy.contracts[..]);
                    let request = Request {
                        called: method.map_or(policy::Called::unlisted(path.as_bytes()), |(_, method)| {
                            policy::Called::Method(method)
                        }),
                        http_method: http_method.as_bytes(),
                        path: path.as_bytes(),
                    };
                    let verdict = rules.judge(contracts.unwrap_or_default(), request, caller);
                    Answer { mesh: self.mesh, service, method, caller: caller.clone(), called, verdict }
                };
            let contracts = service.contracts.iter().flat_map(|contracts| &contracts.policy.contracts);
            let methods =
                contracts.flat_map(|contract| contract.methods.iter().map(|method| (contract.name.as_str(), method)));
            let of_method = |(contract, method): (&'m str, &'m MethodPolicy)| {
                let name = format!("{contract}/{}", method.name);
                answer(Some((contract, method)), "POST", &format!("/{name}"), name)
            };
            match called {
                Called::Method { contract, method } => {
                    let is_meant = |(of, policy): &(&str, &MethodPolicy)| of == contract && policy.name == *method;
                    answers.extend(methods.filter(is_meant).map(of_method));
                }
                // All of it: each method, each path that has a rule, and whatever else there is.
                Called::Service(name) if *name == service.name => {
                    answers.push(answer(None, "CONNECT", "", name.to_string()));
                    answers.extend(methods.map(of_method));
                    let rules = self.mesh.access.services.get(name).map(|access| access.paths.written());
                    for PathRule { path, methods, .. } in rules.unwrap_or_default() {
                        let all = [String::from("GET")];
                        for http_method in if methods.is_empty() { &all[..] } else { methods } {
                            answers.push(answer(None, http_method, path, format!("{http_method} {name}{path}")));
                        }
                    }
                }
                Called::Path { service: name, http_method, path } if *name == service.name => {
                    let plain = path.split_once('?').map_or(path.as_str(), |(plain, _)| plain);
                    let is_meant = |(of, policy): &(&str, &MethodPolicy)| {
                        plain.strip_prefix('/').and_then(|path| path.split_once('/')) == Some((of, &policy.name))
                    };
                    let method = methods.into_iter().find(is_meant);
                    answers.push(answer(method, http_method, plain, format!("{http_method} {name}{path}")));
                }
                Called::Service(_) | Called::Path { .. } => {}
            }
        }
        answers
    }

    /// Names that match nobody, and rules without effect.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let homes: BTreeSet<&str> = self.mesh.services.iter().map(|service| service.name.namespace()).collect();
        for namespace in self.mesh.access.namespaces.keys().filter(|namespace| !homes.contains(namespace.as_str())) {
            let near = hint(closest(namespace, homes.iter().copied()).map(|near| format!("`{near}`")));
            remarks.push(format!("access.namespaces.{namespace}: no service of this mesh is in that namespace{near}"));
        }
        for service in &self.mesh.services {
            let home = service.name.namespace();
            let unknown = |place: String, callers: &Callers, remarks: &mut Vec<String>| {
                for (name, near) in callers.unknown(&self.members, home).take(NAMES_SHOWN) {
                    let near = near.map(|near| format!("`{near}`"));
                    remarks.push(format!("{place}: `{name}` matches no service of this mesh{}", hint(near)));
                }
            };
            let of_mesh = self.mesh.access.of(&service.name).service.unwrap_or_default();
            let field = format!("services.{}.access", service.name.name());
            let rules = of_mesh.rule.iter().chain(of_mesh.paths.written().iter().map(|path| &path.rule));
            for rule in rules {
                unknown(field.clone(), &rule.callers, &mut remarks);
            }
            let Some(contracts) = &service.contracts else { continue };
            for contract in &contracts.policy.contracts {
                let mut of_service = BTreeSet::new();
                for method in &contract.methods {
                    let Some(access) = &method.access else { continue };
                    let is_methods = access.origin == Origin::MethodOption;
                    if is_methods || of_service.insert(&contract.name) {
                        let element = match is_methods {
                            true => format!("method {}/{}", contract.name, method.name),
                            false => format!("service {}", contract.name),
                        };
                        unknown(format!("the option `access` of {element}"), &access.value.callers, &mut remarks);
                    }
                }
                if of_mesh.rule.is_some() && contract.methods.iter().any(|method| method.access.is_some()) {
                    let contract = &contract.name;
                    remarks.push(format!("{field} takes the place of the options `access` of {contract}"));
                }
            }
        }
        remarks
    }
}

/// What may have been meant.
fn hint(near: Option<impl Display>) -> String {
    near.map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

impl Answer<'_> {
    /// `users.shop may not call …, by …`
    pub(super) fn short(&self) -> String {
        let may = if self.verdict.is_allowed { "may" } else { "may not" };
        format!("{} {may} call {}, by {}", self.caller.service(), self.called, self.verdict.source)
    }

    /// Whether there may be rules that are not known here: those of contracts that the service tells itself.
    pub(super) fn is_incomplete(&self) -> bool {
        let is_by_mesh = [Source::MeshRule, Source::PathRule, Source::OtherMethod, Source::AmbiguousPath];
        self.service.is_asked && !is_by_mesh.contains(&self.verdict.source)
    }

    /// What decides, where it is, and what that means.
    pub(super) fn explained(&self) -> Vec<String> {
        let mut lines = vec![format!("{} (service {})", self.short(), self.service.name)];
        lines.extend(self.place().map(|place| format!("  {place}")));
        if self.is_incomplete() {
            lines.push(
                "  it has no `protos`: the rules of contracts that it tells itself are not known here".to_owned(),
            );
        }
        if !self.verdict.is_allowed && self.verdict.is_audit {
            lines.push("  the rule is only tried (audit): the call goes on, and is counted and logged".to_owned());
        }
        lines
    }

    /// Where the rule is that decides, and what it says.
    fn place(&self) -> Option<String> {
        let file = self.mesh.path.display();
        let service = self.service.name.name();
        let says = |rule: &AccessRule| {
            let audit = if rule.is_audit { ", audit: true" } else { "" };
            format!("allow: {}{audit}", rule.callers)
        };
        let of_mesh = self.mesh.access.of(&self.service.name).service;
        match self.verdict.source {
            Source::BuiltIn => Some(format!("{file}: no `access`, and no option either")),
            Source::MeshDefault => Some(format!("{file}: access: {}", self.default())),
            Source::NamespaceDefault => {
                let namespace = self.service.name.namespace();
                Some(format!("{file}: access.namespaces.{namespace}: {}", self.default()))
            }
            Source::ServiceOption | Source::MethodOption => {
                let (contract, method) = self.method?;
                let rule = method.access.as_ref()?;
                Some(format!("{}: {}", self.file_of(contract), says(&rule.value)))
            }
            Source::MeshRule => Some(format!("{file}: services.{service}.access: {}", says(&of_mesh?.rule?))),
            Source::PathRule | Source::OtherMethod | Source::AmbiguousPath => {
                Some(format!("{file}: services.{service}.access.paths"))
            }
            Source::NoContract => None,
        }
    }

    fn default(&self) -> &'static str {
        if self.verdict.is_allowed { "allow" } else { "deny" }
    }

    /// The file that defines a protobuf service.
    fn file_of(&self, contract: &str) -> String {
        let set = self.service.contracts.as_ref().map(|contracts| &contracts.descriptor_set[..]);
        let schema = set.and_then(|set| schema::from_descriptor_set(set).ok());
        let file = schema.as_ref().and_then(|schema| Some(schema.service(contract)?.file.clone()));
        file.unwrap_or_else(|| contract.to_owned())
    }
}
