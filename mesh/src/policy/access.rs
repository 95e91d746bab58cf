//! Who may call: the option `access`, the rules of the mesh, and what they decide together.
//!
//! From weakest to strongest: the mesh allows every member, the mesh's default, its namespace's default, the option of a
//! protobuf service, the option of a method, the mesh's rule for a service, its rules for paths. The strongest that there is
//! decides alone.

mod callers;
#[cfg(feature = "config")]
mod file;
mod judge;
mod of_mesh;
mod paths;
#[cfg(feature = "config")]
mod resource;
mod source;

use std::sync::Arc;

use weft_contracts::weft::options::v1 as options;

pub use self::{
    callers::{Callers, RESERVED_CALLERS},
    judge::{AccessRules, Called, Request, Verdict},
    of_mesh::{DefaultAccess, FromObjects, MeshAccess, ServiceAccess},
    paths::{PathRule, PathRules},
    source::Source,
};
#[cfg(feature = "config")]
pub use self::{
    file::{MeshRules, read_mesh_access, read_service_access},
    resource::{AccessPolicy, InvalidDefaults},
};
use super::{
    error::PolicyError,
    origin::{Origin, Sourced},
    rule::Violation,
};
use crate::schema::{Method, Service};

/// Who may call something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// The identities that may call.
    pub callers: Callers,
    /// Calls of others are counted and logged, but not refused.
    pub is_audit: bool,
}

/// The rule of a service's option, for those of its methods that have none.
pub(super) fn of_service(service: &Service) -> Result<Option<Sourced<Arc<AccessRule>>>, PolicyError> {
    let Some(option) = service.options.as_ref().and_then(|options| options.access.as_ref()) else { return Ok(None) };
    let rule = compile(option).map_err(|broken| broken.in_service(service, "access.allow"))?;
    Ok(Some(Sourced::new(Arc::new(rule), Origin::ServiceOption)))
}

/// The rule of a method: that of its own option, or else `of_service`.
pub(super) fn of_method(
    service: &Service,
    method: &Method,
    of_service: Option<&Sourced<Arc<AccessRule>>>,
) -> Result<Option<Sourced<Arc<AccessRule>>>, PolicyError> {
    let Some(option) = method.options.as_ref().and_then(|options| options.access.as_ref()) else {
        return Ok(of_service.cloned());
    };
    let rule = compile(option).map_err(|broken| broken.in_method(service, method, "access.allow"))?;
    Ok(Some(Sourced::new(Arc::new(rule), Origin::MethodOption)))
}

fn compile(option: &options::Access) -> Result<AccessRule, Violation> {
    let callers = Callers::parse(&option.allow).map_err(|found| Violation { found, allowed: callers::ALLOWED })?;
    Ok(AccessRule { callers, is_audit: option.audit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{policy, refusal, service};

    #[test]
    fn a_methods_rule_wins_over_its_services() {
        let policy = policy(&service(
            r#"option (weft.options.v1.service) = { access: { allow: ["web", "*.ops"] } };
               rpc Read(M) returns (M);
               rpc Write(M) returns (M) { option (weft.options.v1.method) = { access: { allow: "any" audit: true } }; }"#,
        ))
        .unwrap();
        let rule = |method: &str| policy.method("t.S", method).unwrap().access.clone().unwrap();
        let (read, write) = (rule("Read"), rule("Write"));
        assert_eq!((read.value.callers.to_string(), read.value.is_audit), ("web, *.ops".into(), false));
        assert_eq!(read.origin, Origin::ServiceOption);
        assert_eq!((write.value.callers.to_string(), write.value.is_audit), ("any".into(), true));
        assert_eq!(write.origin, Origin::MethodOption);
    }

    #[test]
    fn wrong_rules_are_refused_by_name() {
        let allowed = "allowed is the NAME or NAME.NAMESPACE of a service, *.NAMESPACE, a SPIFFE ID, any, nobody";
        assert_eq!(
            refusal("option (weft.options.v1.service) = { access: { allow: 'Web' } }; rpc Do(M) returns (M);"),
            format!("t.proto: option (weft.options.v1.service) of service t.S: access.allow is \"Web\"; {allowed}")
        );
        assert_eq!(
            refusal("rpc Do(M) returns (M) { option (weft.options.v1.method) = { access: {} }; }"),
            format!(
                "t.proto: option (weft.options.v1.method) of method t.S/Do: access.allow is without a name; write \
                 `nobody` if that is meant; {allowed}"
            )
        );
    }
}
