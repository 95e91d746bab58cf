//! The control plane: identities, what runs where, and the contracts of services.
//!
//! - `authority`: identities. A sidecar proves itself with a join token ([`join_token`]) and gets an SVID from the
//!   certificate authority ([`ca`]).
//! - `claims`: what belongs to whom. Which service is called by which contract and address, on which hosts its
//!   endpoints may be, and who may see it.
//! - `rules`: who may call whom by the rules of the mesh.
//! - `directory`: what runs now. The registry of services and endpoints, their descriptors, and the watchers that are
//!   told of changes.
//! - [`kubernetes`]: what is different on a cluster. Which pods get a sidecar, what is added to them, who a pod is, and which
//!   services it backs.
//! - `grpc`: the port where sidecars get their SVIDs, announce what they front, and watch what their services call,
//!   with the limits of connections, streams and messages.
//! - [`traces`] keeps spans, and [`dashboard`] shows people the mesh and its traces.
//! - `commands`: what the command line does with the state folder.
//! - `run` puts them together, from start to stop.
//!
//! Imports run down this list from the end: `authority` needs none of the others.
//!
//! The CA and the claims are kept on disk. The registry is not: after a restart the sidecars announce themselves again.

pub mod dashboard;
pub mod kubernetes;
pub mod traces;

mod args;
mod authority;
mod claims;
mod commands;
mod directory;
mod grpc;
mod log_limit;
mod rules;
mod run;

#[cfg(test)]
mod tests;

pub use args::{Args, ReleaseArgs, StateArgs, TokenArgs};
pub use authority::{ca, join_token, network::Network};
pub use commands::{are_pinned_to, claims_kept, contests_kept, forget_contracts, grant_contracts, release, token};
pub use run::run;
