//! A custom resource as far as it counts, and what is said of it.

use serde_json::Value;
use weft_mesh::{
    config::{Node, Problems},
    names::shown_up_to,
};

use super::programmed::Said;
use crate::kubernetes::{names, workloads::Key};

/// The name of the one MeshDefaults that counts.
pub(super) const DEFAULTS: &str = "default";

/// How much of what is wrong with an object its status says.
const WHY_CHARS: usize = 1_000;

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    AccessPolicy,
    MethodPolicy,
    MeshDefaults,
}

impl Kind {
    /// Its name in objects.
    pub(crate) const fn as_str(self) -> &'static str {
        self.names().0
    }

    /// Its name in addresses of the API server.
    pub(crate) const fn plural(self) -> &'static str {
        self.names().1
    }

    const fn names(self) -> names::PolicyKind {
        match self {
            Self::AccessPolicy => names::ACCESS_POLICY,
            Self::MethodPolicy => names::METHOD_POLICY,
            Self::MeshDefaults => names::MESH_DEFAULTS,
        }
    }

    /// An object in messages and logs.
    pub(super) fn origin(self, (namespace, name): &Key) -> String {
        match self {
            Self::AccessPolicy | Self::MethodPolicy => format!("{} {namespace}/{name}", self.as_str()),
            Self::MeshDefaults => format!("{} {name}", self.as_str()),
        }
    }
}

/// An object as the API server has it.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// Another object of the same name has another one.
    pub(crate) uid: String,
    /// In seconds since 1970.
    pub(crate) created: i64,
    /// It grows with each change of the spec.
    pub(crate) generation: i64,
    pub(crate) spec: Value,
    pub(crate) told: Option<Told>,
    /// What its status says of the sidecars on which it holds.
    pub(crate) said: Option<Said>,
}

/// What the condition `Accepted` of an object's status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) verdict: Verdict,
    /// When it began to be accepted, or not: as it is written.
    pub(crate) since: String,
}

/// Whether an object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Of which generation.
    pub(crate) generation: i64,
    pub(crate) is_accepted: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Verdict {
    pub(crate) const ACCEPTED: &str = "Accepted";
    /// It is wrong.
    pub(crate) const INVALID: &str = "Invalid";
    /// Another one is for the same.
    pub(crate) const CONFLICTED: &str = "Conflicted";
    /// Its namespace has too many.
    pub(crate) const TOO_MANY: &str = "TooMany";
}

impl Object {
    /// The spec, as it is read.
    pub(super) fn spec_node(&self) -> Node {
        Node::of_json(&self.spec)
    }

    /// The size of the spec as JSON.
    pub(super) fn bytes(&self) -> usize {
        self.spec.to_string().len()
    }
}

/// What is wrong with an object, for its status: each problem names its field.
pub(super) fn why(kind: Kind, key: &Key, problems: &Problems) -> String {
    let origin = format!("{}: ", kind.origin(key));
    let lines = problems.iter().map(|problem| problem.to_string().trim_start_matches(&origin).to_owned());
    shown_up_to(&lines.collect::<Vec<_>>().join("; "), WHY_CHARS)
}
