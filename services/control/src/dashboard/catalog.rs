//! What the dashboard shows of the mesh, and how it gets that from the directory.

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
    /// The owner, as a SPIFFE ID.
    pub owner: String,
    /// The other claimant, as a SPIFFE ID.
    pub claimant: String,
}

/// What the control plane counts for `/metrics`.
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

    /// Claims that were refused because they belong to another service.
    fn contests(&self) -> Vec<Contest> {
        Vec::new()
    }

    /// The counts for `/metrics`.
    fn figures(&self) -> Figures {
        Figures::default()
    }

    /// Whether `/readyz` reports ready.
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
