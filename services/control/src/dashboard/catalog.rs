//! What the dashboard shows of the mesh, and how it gets that from the directory.

use std::net::IpAddr;

use weft_contracts::weft::discovery::v1::Service;
use weft_mesh::{identity::SpiffeId, names::ServiceName};

use super::words::health;
use crate::{
    claims::{self, visibility::Sight},
    directory::{Directory, denials},
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

/// Calls of one kind that the rules for who may call did not allow.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NotAllowed {
    /// The called service.
    pub service: String,
    /// The service that calls.
    pub caller: String,
    /// `PACKAGE.SERVICE/METHOD`; empty for what is in no contract.
    pub method: String,
    /// Where the rule is from, as `method-option`.
    pub rule: &'static str,
    /// Whether the calls went on all the same, as the rule is only tried.
    pub audit: bool,
    /// How many there were.
    pub calls: u64,
}

/// A sidecar, by the address of its host and its identity.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Sidecar {
    /// Where its connection comes from, or where its endpoints are.
    pub address: IpAddr,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// Whether it has a stream to the control plane on which it learns of the services that it calls.
    pub connected: bool,
    /// How long it has been connected.
    pub connected_seconds: u64,
    /// How many services it follows.
    pub follows: usize,
    /// Of how many names it has not been sent the newest state. 0: it is in sync.
    pub unsent: usize,
    /// Of which services it is an endpoint.
    pub endpoints: Vec<SidecarEndpoint>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SidecarEndpoint {
    /// `NAME.NAMESPACE`
    pub service: String,
    /// `up`, `down` or `draining`.
    pub health: &'static str,
    /// The stream on which it was announced is broken.
    pub silent: bool,
}

/// A part of all sidecars.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sidecars {
    /// Sorted by address and identity.
    pub sidecars: Vec<Sidecar>,
    /// If there are more: the address and the identity of the last one here, with a comma between them.
    pub next: Option<String>,
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

    /// Calls that the rules for who may call did not allow.
    fn not_allowed(&self) -> Vec<NotAllowed> {
        Vec::new()
    }

    /// The sidecars after this one, by address and identity, at most so many.
    fn sidecars(&self, after: Option<&(IpAddr, String)>, most: usize) -> Sidecars {
        let _ = (after, most);
        Sidecars::default()
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

    fn not_allowed(&self) -> Vec<NotAllowed> {
        let row = |service: &ServiceName, (kind, calls): (denials::Kind, u64)| NotAllowed {
            service: service.to_string(),
            caller: kind.caller.to_string(),
            method: kind.method,
            rule: kind.source.as_str(),
            audit: kind.is_audit,
            calls,
        };
        let of = |(service, kinds): (ServiceName, Vec<_>)| kinds.into_iter().map(move |kind| row(&service, kind));
        self.denials().into_iter().flat_map(of).collect()
    }

    fn sidecars(&self, after: Option<&(IpAddr, String)>, most: usize) -> Sidecars {
        let (found, is_more) = Directory::sidecars(self, after, most);
        let next = found.last().filter(|_| is_more).map(|((address, id), _)| format!("{address},{id}"));
        let sidecars = found.into_iter().map(|((address, spiffe_id), found)| Sidecar {
            address,
            spiffe_id,
            connected: found.streams > 0,
            connected_seconds: found.connected_seconds,
            follows: found.follows,
            unsent: found.unsent,
            endpoints: found
                .endpoints
                .into_iter()
                .map(|of| SidecarEndpoint { service: of.service, health: health(of.health), silent: of.silent })
                .collect(),
        });
        Sidecars { sidecars: sidecars.collect(), next }
    }

    fn figures(&self) -> Figures {
        let (pinned, refused) = self.claim_counts();
        Figures { claims_pinned: pinned as u64, claims_refused: refused }
    }
}
