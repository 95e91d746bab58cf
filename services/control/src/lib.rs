//! The control plane: who is who, who runs where, and what they speak.
//!
//! A sidecar proves who it is with a join token ([`join_token`]) and gets an SVID from the certificate authority
//! ([`ca`], over `identity`). With that it announces what it fronts (`announce`) and watches what its service calls
//! (`discovery`); both end at the one `directory`, which holds the `registry` of services and endpoints, the
//! `descriptors` that say what services speak (asked for through `contracts`), and a `watcher` for each sidecar that
//! is to be told of changes. All of this comes in over one port (`grpc`, with the `credentials` that the control
//! plane itself shows and the `peer` that each connection has).
//!
//! For people there is the [`dashboard`], which also takes the spans that fill the trace store ([`traces`]).
//!
//! Only the CA is kept on disk (`state_dir`). What the registry knows its members announce again after a restart.

pub mod ca;
pub mod dashboard;
pub mod join_token;
pub mod traces;

mod announce;
mod args;
mod contracts;
mod credentials;
mod descriptors;
mod directory;
mod discovery;
mod grpc;
mod identity;
mod peer;
mod registry;
mod run;
mod state_dir;
mod watcher;

#[cfg(test)]
mod tests;

pub use args::{Args, TokenArgs};
pub use run::{run, token};
