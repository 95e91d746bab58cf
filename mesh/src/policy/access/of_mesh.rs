//! What the rules of the mesh say of one service, and how it goes over the wire.

use weft_contracts::weft::policy::v1 as wire;

use super::{
    AccessRule, Callers,
    callers::ALLOWED,
    paths::{PATH, PathRule, PathRules},
    source::Source,
};
use crate::{names::shown_up_to, policy::error::MalformedPolicy};

/// What the mesh's rules say of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshAccess {
    /// What holds where there is no rule.
    pub default: DefaultAccess,
    /// All rules are only tried: calls that they do not allow are counted, and go on.
    pub is_audit: bool,
    /// The mesh's rules for the service.
    pub service: Option<ServiceAccess>,
    /// The rule for the service takes the place of nothing: what would hold without it has to allow a call, too.
    pub contracts_hold_too: bool,
    /// The objects that all this is from, for people.
    pub from: FromObjects,
}

/// The objects on Kubernetes that rules are from, as `AccessPolicy NAMESPACE/NAME`; empty if they are from none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromObjects {
    /// Of the rules for the service.
    pub rule: String,
    /// Of what holds where there is no rule.
    pub default: String,
}

/// The most characters of a text about objects that are shown.
const FROM_CHARS: usize = 600;

/// What holds where there is no rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultAccess {
    /// Every member may call, as nobody said otherwise.
    #[default]
    BuiltIn,
    /// The mesh's default.
    Mesh {
        /// Whether every member may call, or nobody.
        is_allowed: bool,
    },
    /// The default of the service's namespace.
    Namespace {
        /// Whether every member may call, or nobody.
        is_allowed: bool,
    },
}

impl DefaultAccess {
    pub(super) fn decides(self) -> (bool, Source) {
        match self {
            Self::BuiltIn => (true, Source::BuiltIn),
            Self::Mesh { is_allowed } => (is_allowed, Source::MeshDefault),
            Self::Namespace { is_allowed } => (is_allowed, Source::NamespaceDefault),
        }
    }
}

/// The mesh's rules for one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAccess {
    /// Who may call it. It takes the place of all `access` options of its contracts. `None`: they hold.
    pub rule: Option<AccessRule>,
    /// Who may call some of its paths.
    pub paths: PathRules,
}

impl From<&AccessRule> for wire::AccessRule {
    fn from(rule: &AccessRule) -> Self {
        Self { allow: rule.callers.written().to_vec(), audit: rule.is_audit }
    }
}

impl TryFrom<wire::AccessRule> for AccessRule {
    type Error = MalformedPolicy;

    fn try_from(rule: wire::AccessRule) -> Result<Self, MalformedPolicy> {
        let wrong = |found| MalformedPolicy { field: "AccessRule.allow", found, allowed: ALLOWED };
        Ok(Self { callers: Callers::parse(&rule.allow).map_err(wrong)?, is_audit: rule.audit })
    }
}

impl From<&MeshAccess> for wire::MeshAccess {
    fn from(access: &MeshAccess) -> Self {
        use wire::mesh_access::Otherwise;
        let (is_allowed, source) = access.default.decides();
        let default = match (source, is_allowed) {
            (Source::NamespaceDefault, true) => Otherwise::NamespaceAllow,
            (Source::NamespaceDefault, false) => Otherwise::NamespaceDeny,
            (Source::MeshDefault, true) => Otherwise::MeshAllow,
            (Source::MeshDefault, false) => Otherwise::MeshDeny,
            _ => Otherwise::BuiltInAllow,
        };
        let service = access.service.as_ref();
        let path = |path: &PathRule| wire::PathRule {
            path: path.path.clone(),
            methods: path.methods.clone(),
            rule: Some((&path.rule).into()),
        };
        Self {
            otherwise: default.into(),
            audit: access.is_audit,
            contracts_hold_too: access.contracts_hold_too,
            rule_from: access.from.rule.clone(),
            otherwise_from: access.from.default.clone(),
            rule: service.and_then(|service| service.rule.as_ref()).map(Into::into),
            paths: service.map(|service| service.paths.written().iter().map(path).collect()).unwrap_or_default(),
        }
    }
}

/// What only a later version knows is refused: a rule must not be taken for a weaker one.
impl TryFrom<wire::MeshAccess> for MeshAccess {
    type Error = MalformedPolicy;

    fn try_from(access: wire::MeshAccess) -> Result<Self, MalformedPolicy> {
        use wire::mesh_access::Otherwise;
        let default = match Otherwise::try_from(access.otherwise) {
            Ok(Otherwise::BuiltInAllow) => DefaultAccess::BuiltIn,
            Ok(Otherwise::MeshAllow) => DefaultAccess::Mesh { is_allowed: true },
            Ok(Otherwise::MeshDeny) => DefaultAccess::Mesh { is_allowed: false },
            Ok(Otherwise::NamespaceAllow) => DefaultAccess::Namespace { is_allowed: true },
            Ok(Otherwise::NamespaceDeny) => DefaultAccess::Namespace { is_allowed: false },
            Ok(Otherwise::Unspecified) | Err(_) => {
                let allowed = "a default that this version knows";
                return Err(MalformedPolicy {
                    field: "MeshAccess.otherwise",
                    found: access.otherwise.to_string(),
                    allowed,
                });
            }
        };
        let path = |path: wire::PathRule| {
            let allowed = "a rule";
            let missing = || MalformedPolicy { field: "PathRule.rule", found: "missing".to_owned(), allowed };
            let rule = path.rule.ok_or_else(missing)?.try_into()?;
            Ok(PathRule { path: path.path, methods: path.methods, rule })
        };
        let paths = access.paths.into_iter().map(path).collect::<Result<Vec<_>, _>>()?;
        let wrong = |(_, _, found)| MalformedPolicy { field: "MeshAccess.paths", found, allowed: PATH };
        let paths = PathRules::new(paths).map_err(wrong)?;
        let rule = access.rule.map(AccessRule::try_from).transpose()?;
        let service = (rule.is_some() || !paths.written().is_empty()).then_some(ServiceAccess { rule, paths });
        let shown = |text: &str| shown_up_to(text, FROM_CHARS);
        let from = FromObjects { rule: shown(&access.rule_from), default: shown(&access.otherwise_from) };
        Ok(Self { default, is_audit: access.audit, service, contracts_hold_too: access.contracts_hold_too, from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_of_rules_arrive_and_act_on_no_terminal() {
        let from = |rule: &str| FromObjects { rule: rule.to_owned(), default: "MeshDefaults default".to_owned() };
        let access = MeshAccess { from: from("AccessPolicy shop/reports"), ..MeshAccess::default() };
        assert_eq!(MeshAccess::try_from(wire::MeshAccess::from(&access)).unwrap(), access);
        let odd = MeshAccess { from: from(&"\u{1b}[2J".repeat(1_000)), ..MeshAccess::default() };
        let arrived = MeshAccess::try_from(wire::MeshAccess::from(&odd)).unwrap().from.rule;
        assert!(!arrived.contains('\u{1b}') && arrived.chars().count() <= FROM_CHARS * 10, "{arrived}");
    }

    #[test]
    fn what_a_later_version_says_is_not_taken_for_something_weaker() {
        assert_eq!(MeshAccess::try_from(wire::MeshAccess::default()).unwrap_err().field, "MeshAccess.otherwise");
        let full = wire::MeshAccess::from(&MeshAccess::default());
        let rule = Some(wire::AccessRule { allow: vec!["group:admins".into()], audit: false });
        let newer = wire::MeshAccess { rule, ..full.clone() };
        assert_eq!(MeshAccess::try_from(newer).unwrap_err().field, "AccessRule.allow");
        let path = wire::PathRule { path: "/a".into(), methods: Vec::new(), rule: None };
        let newer = wire::MeshAccess { paths: vec![path], ..full };
        assert_eq!(MeshAccess::try_from(newer).unwrap_err().field, "PathRule.rule");
    }
}
