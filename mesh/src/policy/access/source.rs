//! Where a rule is from.

use std::fmt;

/// Where the rule that decides is from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// There is no rule: every member may call.
    BuiltIn,
    /// The default of the mesh.
    MeshDefault,
    /// The default of the service's namespace.
    NamespaceDefault,
    /// The path is of no contract, so only those who may call everything else may call it.
    NoContract,
    /// The option of a protobuf service.
    ServiceOption,
    /// The option of a method.
    MethodOption,
    /// The mesh's rule for the service.
    MeshRule,
    /// The mesh's rule for a path.
    PathRule,
    /// The mesh has rules for the path, but none for the method of HTTP.
    OtherMethod,
    /// The mesh has rules for paths, and services may read this path in several ways.
    AmbiguousPath,
}

impl Source {
    /// All of them, weakest first.
    pub const ALL: [Self; 10] = [
        Self::BuiltIn,
        Self::MeshDefault,
        Self::NamespaceDefault,
        Self::NoContract,
        Self::ServiceOption,
        Self::MethodOption,
        Self::MeshRule,
        Self::PathRule,
        Self::OtherMethod,
        Self::AmbiguousPath,
    ];

    /// In metrics, logs, spans and `google.rpc.ErrorInfo`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BuiltIn => "built-in",
            Self::MeshDefault => "mesh-default",
            Self::NamespaceDefault => "namespace-default",
            Self::NoContract => "no-contract",
            Self::ServiceOption => "service-option",
            Self::MethodOption => "method-option",
            Self::MeshRule => "mesh-rule",
            Self::PathRule => "path-rule",
            Self::OtherMethod => "other-method",
            Self::AmbiguousPath => "ambiguous-path",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "no rule",
            Self::MeshDefault => "the mesh's default",
            Self::NamespaceDefault => "the namespace's default",
            Self::NoContract => "the rules of all its methods, as this is none of them",
            Self::ServiceOption => "the option `access` of the protobuf service",
            Self::MethodOption => "the option `access` of the method",
            Self::MeshRule => "the mesh's rule for the service",
            Self::PathRule => "the mesh's rule for the path",
            Self::OtherMethod => "the mesh's rules for the path, of which none is for this method of HTTP",
            Self::AmbiguousPath => "the mesh's rules for paths, as servers may read this path in several ways",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Source::ALL.iter().map(|source| source.as_str()).collect();
        assert_eq!(names.len(), Source::ALL.len());
        assert!(Source::ALL.is_sorted());
    }
}
