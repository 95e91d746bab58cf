//! Which services a workload may know of.

use std::sync::Arc;

use weft_mesh::names::ServiceName;

/// What the mesh's owner has configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// Every workload knows of every service.
    #[default]
    All,
    /// A workload knows of the services in its own namespace, and gets the same answers as if there were no others.
    Namespace,
}

impl Visibility {
    /// What a workload of this service sees.
    pub(crate) fn of(self, viewer: &ServiceName) -> Sight {
        match self {
            Self::All => Sight::default(),
            Self::Namespace => Sight(Some(viewer.namespace().into())),
        }
    }
}

/// What one workload sees: a namespace, or everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sight(Option<Arc<str>>);

impl Sight {
    pub(crate) fn sees(&self, service: &ServiceName) -> bool {
        self.0.as_ref().is_none_or(|namespace| **namespace == *service.namespace())
    }
}
