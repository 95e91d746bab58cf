//! What the rules of a service decide.

use std::sync::Arc;

use super::{AccessRule, MeshAccess, paths::Found, source::Source};
use crate::{
    identity::SpiffeId,
    names::ServiceName,
    policy::{ContractPolicy, MethodPolicy, Origin},
};

/// All rules for calls to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRules {
    /// The namespace of the service.
    home: String,
    mesh: MeshAccess,
}

/// What a caller asks of a service.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// What is called.
    pub called: Called<'r>,
    /// The method of HTTP that the service sees.
    pub http_method: &'r [u8],
    /// Its path without the query; empty if it has none.
    pub path: &'r [u8],
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub enum Called<'r> {
    /// A method of the service's contracts.
    Method(&'r MethodPolicy),
    /// Whether the service is well: gRPC's own service of health checks.
    Health,
    /// Anything else.
    Other,
}

impl Called<'_> {
    /// What a path stands for that is of no method of the contracts.
    pub fn unlisted(path: &[u8]) -> Self {
        match path.strip_prefix(b"/grpc.health.v1.Health/") {
            Some(b"Check" | b"Watch" | b"List") => Self::Health,
            _ => Self::Other,
        }
    }
}

/// What is decided of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the rule allows it.
    pub is_allowed: bool,
    /// If not: whether the call goes on all the same, as the rule is only tried.
    pub is_audit: bool,
    /// What decided.
    pub source: Source,
}

impl Verdict {
    /// Whether the call is refused.
    pub fn refuses(self) -> bool {
        !self.is_allowed && !self.is_audit
    }
}

impl AccessRules {
    /// The rules for a service, without those in its contracts, which [`judge`](Self::judge) gets.
    pub fn new(service: &ServiceName, mesh: MeshAccess) -> Self {
        Self { home: service.namespace().to_owned(), mesh }
    }

    /// Whether what is decided depends on more than caller and method: on paths.
    pub fn look_at_paths(&self) -> bool {
        self.mesh.service.as_ref().is_some_and(|service| !service.paths.written().is_empty())
    }

    /// The object on Kubernetes that a rule is from, as `AccessPolicy NAMESPACE/NAME`, if it is from one.
    pub fn object_of(&self, source: Source) -> Option<&str> {
        let from = &self.mesh.from;
        let object = match source {
            Source::MeshRule | Source::PathRule | Source::OtherMethod | Source::AmbiguousPath => &from.rule,
            Source::MeshDefault | Source::NamespaceDefault => &from.default,
            Source::BuiltIn | Source::NoContract | Source::ServiceOption | Source::MethodOption => return None,
        };
        (!object.is_empty()).then_some(object.as_str())
    }

    /// Decides about a call to a service with these contracts.
    pub fn judge(&self, contracts: &[ContractPolicy], request: Request<'_>, caller: &SpiffeId) -> Verdict {
        let by_path = self.judge_path(request.http_method, request.path, caller);
        by_path.unwrap_or_else(|| self.judge_called(contracts, request.called, caller))
    }

    /// The first part of [`judge`](Self::judge): what the rules for paths decide, if one of them is for this request.
    pub fn judge_path(&self, http_method: &[u8], path: &[u8], caller: &SpiffeId) -> Option<Verdict> {
        let refused = |source, is_audit| self.audited(Verdict { is_allowed: false, is_audit, source });
        match self.mesh.service.as_ref()?.paths.find(http_method, path) {
            Found::Rule(rule) => Some(self.audited(self.by(rule, Source::PathRule, caller))),
            Found::OtherMethod { is_audit } => Some(refused(Source::OtherMethod, is_audit)),
            Found::Ambiguous { is_audit } => Some(refused(Source::AmbiguousPath, is_audit)),
            Found::Nothing => None,
        }
    }

    /// The second part of [`judge`](Self::judge): what depends only on the caller and on what is called.
    pub fn judge_called(&self, contracts: &[ContractPolicy], called: Called<'_>, caller: &SpiffeId) -> Verdict {
        self.audited(self.rule(contracts, called, caller))
    }

    fn audited(&self, verdict: Verdict) -> Verdict {
        Verdict { is_audit: !verdict.is_allowed && (verdict.is_audit || self.mesh.is_audit), ..verdict }
    }

    fn by(&self, rule: &AccessRule, source: Source, caller: &SpiffeId) -> Verdict {
        Verdict { is_allowed: rule.callers.admit(caller, &self.home), is_audit: rule.is_audit, source }
    }

    fn rule(&self, contracts: &[ContractPolicy], called: Called<'_>, caller: &SpiffeId) -> Verdict {
        if let Some(rule) = self.mesh.service.as_ref().and_then(|service| service.rule.as_ref()) {
            let by_rule = self.by(rule, Source::MeshRule, caller);
            if !self.mesh.contracts_hold_too {
                return by_rule;
            }
            let refusals = [by_rule, self.without_rule(contracts, called, caller)];
            let refusals = refusals.into_iter().filter(|verdict| !verdict.is_allowed);
            return refusals.min_by_key(|verdict| verdict.is_audit).unwrap_or(by_rule);
        }
        self.without_rule(contracts, called, caller)
    }

    /// What the options in contracts decide, and the default.
    fn without_rule(&self, contracts: &[ContractPolicy], called: Called<'_>, caller: &SpiffeId) -> Verdict {
        let methods = contracts.iter().flat_map(|contract| &contract.methods);
        match called {
            Called::Method(method) => self.of_method(method, caller),
            // Whoever may call anything may ask. One that is refused here would be refused everywhere.
            Called::Health => {
                let verdicts = methods.map(|method| self.of_method(method, caller));
                verdicts
                    .max_by_key(|verdict| (verdict.is_allowed, verdict.is_audit))
                    .unwrap_or_else(|| self.by_default())
            }
            // A server may find one of its methods by a path that is not quite that of the contract.
            Called::Other => {
                // Methods that have their service's rule share it.
                let mut before = std::ptr::null();
                let mut is_new = |rule| std::mem::replace(&mut before, rule) != rule;
                let rules = methods.filter_map(|method| method.access.as_ref()).map(|access| &access.value);
                let rules = rules.filter(|rule| is_new(Arc::as_ptr(rule)));
                let verdicts = rules.map(|rule| self.by(rule, Source::NoContract, caller));
                let refusals = verdicts.chain([self.by_default()]).filter(|verdict| !verdict.is_allowed);
                // One that is only tried must not take the place of one that refuses.
                refusals.min_by_key(|verdict| verdict.is_audit).unwrap_or_else(|| self.by_default())
            }
        }
    }

    fn of_method(&self, method: &MethodPolicy, caller: &SpiffeId) -> Verdict {
        match &method.access {
            Some(access) if access.origin == Origin::MethodOption => {
                self.by(&access.value, Source::MethodOption, caller)
            }
            Some(access) => self.by(&access.value, Source::ServiceOption, caller),
            None => self.by_default(),
        }
    }

    fn by_default(&self) -> Verdict {
        let (is_allowed, source) = self.mesh.default.decides();
        Verdict { is_allowed, is_audit: false, source }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Callers, DefaultAccess, PathRule, PathRules, ServiceAccess},
        *,
    };
    use crate::policy::{Idempotency, Sourced};

    fn rule(caller: &str) -> AccessRule {
        AccessRule { callers: Callers::parse(&[caller]).unwrap(), is_audit: false }
    }

    fn method(name: &str, access: Option<(AccessRule, Origin)>) -> MethodPolicy {
        MethodPolicy {
            name: name.into(),
            client_streaming: false,
            server_streaming: false,
            timeout: None,
            idempotency: Idempotency::Unknown,
            fallback: None,
            refuses_fallback: false,
            hedge: None,
            access: access.map(|(rule, origin)| Sourced::new(Arc::new(rule), origin)),
        }
    }

    fn judge(mesh: MeshAccess, methods: Vec<MethodPolicy>, name: &str, caller: &str) -> (bool, &'static str) {
        let rules = AccessRules::new(&ServiceName::parse("users.shop").unwrap(), mesh);
        let caller = format!("spiffe://weft.local/ns/shop/sa/{caller}").parse().unwrap();
        let contracts = [ContractPolicy { name: "t.S".into(), methods, stands_in_for: Vec::new() }];
        let method = contracts[0].methods.iter().find(|method| method.name == name);
        let path = if name.starts_with('/') { name.to_owned() } else { format!("/t.S/{name}") };
        let called = method.map_or(Called::unlisted(path.as_bytes()), Called::Method);
        let request = Request { called, http_method: b"POST", path: path.as_bytes() };
        let verdict = rules.judge(&contracts, request, &caller);
        (!verdict.refuses(), verdict.source.as_str())
    }

    fn with_default(default: DefaultAccess) -> MeshAccess {
        MeshAccess { default, ..MeshAccess::default() }
    }

    #[test]
    fn the_strongest_rule_decides_alone() {
        let methods = || {
            vec![
                method("Open", None),
                method("Closed", Some((rule("web"), Origin::ServiceOption))),
                method("Own", Some((rule("ops"), Origin::MethodOption))),
            ]
        };
        let allow = MeshAccess::default;
        let deny = || with_default(DefaultAccess::Mesh { is_allowed: false });
        let deny_here = || with_default(DefaultAccess::Namespace { is_allowed: false });
        assert_eq!(judge(allow(), methods(), "Open", "web"), (true, "built-in"));
        assert_eq!(judge(deny(), methods(), "Open", "web"), (false, "mesh-default"));
        assert_eq!(judge(deny_here(), methods(), "Open", "web"), (false, "namespace-default"));
        assert_eq!(judge(deny(), methods(), "Closed", "web"), (true, "service-option"));
        assert_eq!(judge(allow(), methods(), "Closed", "ops"), (false, "service-option"));
        assert_eq!(judge(deny(), methods(), "Own", "ops"), (true, "method-option"));
        assert_eq!(judge(allow(), methods(), "Own", "web"), (false, "method-option"));

        let paths =
            |rule| PathRules::new(vec![PathRule { path: "/t.S/Own".into(), methods: Vec::new(), rule }]).unwrap();
        let of_service = |rule, paths| MeshAccess { service: Some(ServiceAccess { rule, paths }), ..deny() };
        let of_mesh = || of_service(Some(rule("cron")), paths(rule("night")));
        assert_eq!(judge(of_mesh(), methods(), "Closed", "web"), (false, "mesh-rule"));
        assert_eq!(judge(of_mesh(), methods(), "Closed", "cron"), (true, "mesh-rule"));
        assert_eq!(judge(of_mesh(), methods(), "Own", "cron"), (false, "path-rule"));
        assert_eq!(judge(of_mesh(), methods(), "Own", "night"), (true, "path-rule"));
        let only_paths = of_service(None, paths(rule("night")));
        assert_eq!(judge(only_paths, methods(), "Closed", "web"), (true, "service-option"));
    }

    #[test]
    fn a_rule_of_an_object_names_it() {
        use super::super::FromObjects;
        let from = FromObjects { rule: "AccessPolicy shop/users".into(), default: "MeshDefaults default".into() };
        let users = ServiceName::parse("users.shop").unwrap();
        let rules = AccessRules::new(&users, MeshAccess { from, ..MeshAccess::default() });
        for (source, object) in [
            (Source::MeshRule, Some("AccessPolicy shop/users")),
            (Source::OtherMethod, Some("AccessPolicy shop/users")),
            (Source::NamespaceDefault, Some("MeshDefaults default")),
            (Source::MethodOption, None),
        ] {
            assert_eq!(rules.object_of(source), object, "{source}");
        }
        assert_eq!(AccessRules::new(&users, MeshAccess::default()).object_of(Source::MeshRule), None);
    }

    #[test]
    fn a_rule_beside_contracts_takes_the_place_of_nothing() {
        let methods = || vec![method("Open", None), method("Closed", Some((rule("web"), Origin::ServiceOption)))];
        let with = |caller, default| MeshAccess {
            service: Some(ServiceAccess { rule: Some(rule(caller)), paths: PathRules::default() }),
            contracts_hold_too: true,
            ..with_default(default)
        };
        let allow = DefaultAccess::BuiltIn;
        assert_eq!(judge(with("any", allow), methods(), "Closed", "ops"), (false, "service-option"));
        assert_eq!(judge(with("any", allow), methods(), "Closed", "web"), (true, "mesh-rule"));
        assert_eq!(judge(with("ops", allow), methods(), "Closed", "web"), (false, "mesh-rule"));
        assert_eq!(judge(with("ops", allow), methods(), "Open", "ops"), (true, "mesh-rule"));
        assert_eq!(judge(with("any", allow), methods(), "closed", "ops"), (false, "no-contract"));
        let deny = DefaultAccess::Mesh { is_allowed: false };
        assert_eq!(judge(with("any", deny), methods(), "Open", "web"), (false, "mesh-default"));
        // What is only tried does not take the place of what refuses.
        let mut tried = with("nobody", allow);
        tried.service.as_mut().unwrap().rule.as_mut().unwrap().is_audit = true;
        assert_eq!(judge(tried.clone(), methods(), "Closed", "ops"), (false, "service-option"));
        assert_eq!(judge(tried, methods(), "Open", "ops"), (true, "mesh-rule"));
    }

    #[test]
    fn a_path_of_no_contract_needs_what_every_method_needs() {
        let some = || vec![method("Open", None), method("Closed", Some((rule("web"), Origin::MethodOption)))];
        for path in ["closed", "Closed/", "%43losed", "x/../Closed"] {
            assert_eq!(judge(MeshAccess::default(), some(), path, "ops"), (false, "no-contract"), "{path}");
            assert_eq!(judge(MeshAccess::default(), some(), path, "web"), (true, "built-in"), "{path}");
        }
        let deny = with_default(DefaultAccess::Mesh { is_allowed: false });
        assert_eq!(judge(deny, some(), "closed", "web"), (false, "mesh-default"));
        // Two rules, one of which is only tried.
        let tried = || Some((AccessRule { is_audit: true, ..rule("cron") }, Origin::MethodOption));
        let both = vec![method("A", tried()), method("B", Some((rule("cron"), Origin::MethodOption)))];
        assert_eq!(judge(MeshAccess::default(), both, "C", "ops"), (false, "no-contract"));
        assert_eq!(judge(MeshAccess::default(), vec![method("A", tried())], "C", "ops"), (true, "no-contract"));
        let deny = with_default(DefaultAccess::Mesh { is_allowed: false });
        assert_eq!(judge(deny, vec![method("A", tried())], "C", "ops"), (false, "mesh-default"));
    }

    #[test]
    fn whoever_may_call_anything_may_ask_whether_the_service_is_well() {
        const HEALTH: &str = "/grpc.health.v1.Health/Check";
        let rules = || {
            vec![
                method("A", Some((rule("web"), Origin::MethodOption))),
                method("B", Some((rule("ops"), Origin::ServiceOption))),
            ]
        };
        let deny = || with_default(DefaultAccess::Mesh { is_allowed: false });
        for caller in ["web", "ops"] {
            assert!(judge(deny(), rules(), HEALTH, caller).0, "{caller}");
        }
        assert!(!judge(deny(), rules(), HEALTH, "cron").0);
        assert!(!judge(MeshAccess::default(), rules(), HEALTH, "cron").0, "the default is for no method");
        for other in
            ["/grpc.health.v1.healthy/Check", "/grpc.health.v1.Health/../t.S/A", "/grpc.health.v1.Health/check"]
        {
            assert!(!judge(deny(), rules(), other, "web").0, "{other}");
        }
        assert_eq!(judge(deny(), Vec::new(), HEALTH, "web"), (false, "mesh-default"));
        assert_eq!(judge(MeshAccess::default(), Vec::new(), HEALTH, "web"), (true, "built-in"));
        let tried = AccessRule { is_audit: true, ..rule("web") };
        assert!(
            judge(deny(), vec![method("A", Some((tried, Origin::MethodOption)))], HEALTH, "cron").0,
            "as the method"
        );
    }

    #[test]
    fn a_mesh_that_only_tries_its_rules_refuses_nobody() {
        let closed = || vec![method("Closed", Some((rule("web"), Origin::MethodOption)))];
        let audit = || MeshAccess { is_audit: true, ..with_default(DefaultAccess::Mesh { is_allowed: false }) };
        assert_eq!(judge(audit(), closed(), "Closed", "ops"), (true, "method-option"));
        assert_eq!(judge(audit(), closed(), "Other", "web"), (true, "mesh-default"));
    }
}
