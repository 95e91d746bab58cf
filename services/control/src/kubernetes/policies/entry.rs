//! What is kept of an object.

use std::{collections::BTreeSet, fmt, sync::Arc};

use weft_mesh::{
    names::{NameError, ServiceName},
    policy::{AccessPolicy, ServiceAccess},
};

use super::{
    object::{Kind, Object, Told, Verdict},
    programmed::{Counted, Standing, Subject},
};
use crate::{
    kubernetes::workloads::Key,
    rules::{ByService, InForce},
};

/// An object, and what it says: a `T`.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) bytes: usize,
    pub(super) content: Content<T>,
    /// What its status says.
    pub(super) told: Option<Told>,
    /// On how many sidecars it holds.
    pub(super) counted: Counted,
}

#[derive(Debug)]
pub(super) enum Content<T> {
    Valid(T),
    Invalid {
        why: String,
        /// `None` if it can't be for anything.
        target: Option<Target>,
        /// What it said when it was right.
        last: Option<T>,
    },
    /// There are too many, so it is not kept.
    LeftOut(Option<Target>),
}

/// What an AccessPolicy says.
#[derive(Debug, Clone)]
pub(super) enum Rule {
    Service(ServiceName, Arc<ServiceAccess>),
    Namespace(bool),
}

/// What a policy is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Service(ServiceName),
    Namespace,
}

/// What follows from the objects.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) rules: InForce,
    /// What MethodPolicies say.
    pub(crate) methods: ByService,
    /// All that has changed is in them.
    pub(crate) is_whole: bool,
    /// The objects whose status says something else.
    pub(crate) verdicts: Vec<(Kind, Key, Verdict)>,
    /// The policies that there was no room for, and now is.
    pub(crate) to_read: Vec<(Kind, Key)>,
    /// The kinds of which there is room for policies of which not even the names are known.
    pub(crate) lists_again: BTreeSet<Kind>,
}

/// What is kept of an object of any kind.
pub(super) struct Known<'a> {
    uid: &'a str,
    generation: i64,
    pub(super) is_left_out: bool,
    pub(super) told: &'a mut Option<Told>,
    pub(super) counted: &'a mut Counted,
}

impl<'a> Known<'a> {
    pub(super) fn of<T>(entry: &'a mut Entry<T>) -> Self {
        let is_left_out = entry.is_left_out();
        let (uid, generation) = (&entry.uid, entry.generation);
        Self { uid, generation, is_left_out, told: &mut entry.told, counted: &mut entry.counted }
    }

    /// Whether the object says the same: a generation is that of its spec.
    pub(super) fn is_of(&self, object: &Object) -> bool {
        self.uid == object.uid && self.generation == object.generation
    }
}

impl<T> Entry<T> {
    pub(super) fn new(object: Object, content: Content<T>) -> Self {
        let bytes = object.bytes();
        let counted = Counted::new(object.said);
        Self { uid: object.uid, generation: object.generation, bytes, content, told: object.told, counted }
    }

    pub(super) fn is_left_out(&self) -> bool {
        matches!(self.content, Content::LeftOut(_))
    }

    pub(super) fn accepted(&self, message: String) -> Verdict {
        Verdict { generation: self.generation, is_accepted: true, reason: Verdict::ACCEPTED.to_owned(), message }
    }

    pub(super) fn refused(&self, reason: &str, message: String) -> Verdict {
        Verdict { generation: self.generation, is_accepted: false, reason: reason.to_owned(), message }
    }

    /// Says a verdict, if the status says another one. `subject` is who has to obey it if it is accepted.
    pub(super) fn say(
        &mut self,
        kind: Kind,
        key: Key,
        verdict: Verdict,
        subject: Option<Subject>,
        settled: &mut Settled,
    ) {
        self.counted.standing = match subject {
            Some(subject) if verdict.is_accepted => Standing::Accepted(subject),
            _ => Standing::Refused,
        };
        if self.told.as_ref().map(|told| &told.verdict) != Some(&verdict) {
            settled.verdicts.push((kind, key, verdict));
        }
    }
}

/// What a policy says.
pub(super) trait Says {
    /// What nobody may call while the policy is wrong or left out. `None`: it takes nothing away then.
    fn closes(&self) -> Option<Target>;
}

impl<T: Says> Entry<T> {
    pub(super) fn leave_out(&mut self) {
        let target = match &self.content {
            Content::Valid(rule) => rule.closes(),
            Content::Invalid { target, .. } | Content::LeftOut(target) => target.clone(),
        };
        self.content = Content::LeftOut(target);
    }
}

impl<T> Content<T> {
    /// What it said when it was right.
    pub(super) fn last(self) -> Option<T> {
        match self {
            Self::Valid(content) => Some(content),
            Self::Invalid { last, .. } => last,
            Self::LeftOut(_) => None,
        }
    }
}

impl Says for Rule {
    fn closes(&self) -> Option<Target> {
        Some(self.target())
    }
}

impl Rule {
    pub(super) fn of(policy: AccessPolicy, namespace: &str) -> Result<Self, NameError> {
        Ok(match policy {
            AccessPolicy::Service { name, access } => Self::Service(ServiceName::new(&name, namespace)?, access),
            AccessPolicy::Namespace { is_allowed } => Self::Namespace(is_allowed),
        })
    }

    pub(super) fn target(&self) -> Target {
        match self {
            Self::Service(service, _) => Target::Service(service.clone()),
            Self::Namespace(_) => Target::Namespace,
        }
    }
}

impl Target {
    /// Of an object that may be wrong. `None` if it names what can't be a Service.
    pub(super) fn of(object: &Object, namespace: &str) -> Option<Self> {
        match object.spec.get("service") {
            Some(name) => Some(Self::Service(ServiceName::new(name.as_str()?, namespace).ok()?)),
            None => Some(Self::Namespace),
        }
    }

    /// Which sidecars have to obey what is said of it.
    pub(super) fn subject(&self, namespace: &str) -> Subject {
        match self {
            Self::Service(service) => Subject::Service(service.clone()),
            Self::Namespace => Subject::Namespace(namespace.to_owned()),
        }
    }

    /// What holds if nothing else does.
    pub(super) fn closed(&self) -> String {
        match self {
            Self::Service(_) => format!("nobody may call {self}"),
            Self::Namespace => format!("the default of {self} is deny"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "the Service {}", service.name()),
            Self::Namespace => f.write_str("the namespace"),
        }
    }
}
