//! What the dashboard shows of the mesh, and how the directory tells it.

use weft_contracts::weft::discovery::v1::Service;
use weft_mesh::{identity::SpiffeId, names::ServiceName};

use crate::{
    claims::{self, visibility::Sight},
    directory::Directory,
};

/// A contract or address that one identity has and another claims.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Contest {
    /// The contract's full name, or `IP:PORT`.
    pub claim: String,
    /// Whose it is, as a SPIFFE ID.
    pub owner: String,
    /// Who claims it, as a SPIFFE ID.
    pub claimant: String,
}

/// What the control plane counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Contracts and virtual addresses that are pinned to an identity.
    pub claims_pinned: u64,
    /// Claims that were refused since the start.
    pub claims_refused: u64,
}

/// What the dashboard shows of the mesh.
pub trait Catalog: Send + Sync {
    /// Every service that is known, sorted by name.
    fn services(&self) -> Vec<Service>;

    /// Claims that were refused because they are another's.
    fn contests(&self) -> Vec<Contest> {
        Vec::new()
    }

    /// For `/metrics`.
    fn figures(&self) -> Figures {
        Figures::default()
    }

    /// Whether `/readyz` says so.
    fn is_ready(&self) -> bool {
        true
    }
}

impl Catalog for Directory {
    fn services(&self) -> Vec<Service> {
        self.services_in(&Sight::default())
    }

    fn contests(&self) -> Vec<Contest> {
        let id = |service: &ServiceName| SpiffeId::of_service(self.trust_domain(), service).to_string();
        let shown =
            |claims::Contest { claim, owner, claimant }| Contest { claim, owner: id(&owner), claimant: id(&claimant) };
        self.contested().into_iter().map(shown).collect()
    }

    fn figures(&self) -> Figures {
        let (pinned, refused) = self.claim_counts();
        Figures { claims_pinned: pinned as u64, claims_refused: refused }
    }
}
