//! The control plane: who is who, who runs where, and what they speak.
//!
//! A sidecar proves who it is with a join token ([`join_token`], signed with the `token_key`) and gets an SVID from the
//! certificate authority ([`ca`], over `identity`), or a new one after a long absence (`late`). With that it announces what it fronts (`announce`; `announcement` says what it must be, and
//! `hosts` where) and watches what its service calls (`discovery`); both end at the one `directory`, which holds the
//! `registry` of services and endpoints, the `claims` that say who is called by which name, the `descriptors` that say
//! what services speak (on the `shelf`, read in `turns`, asked for through `contracts`), and the `watchers`, one `watcher` for each
//! sidecar that is to be told of changes, as far as its `visibility` goes. All of this comes in over one port (`grpc`, with
//! the `admission` of connections, how long each `connection` may be idle, as its `activity` says, how much of its
//! `answers` may be `unread`, how many `streams` it may have and how large `messages` may be, how often an identity may ask
//! (`rates`), the `credentials` that the control plane itself shows and the `peer` that each connection has).
//!
//! For people there is the [`dashboard`], which also takes the spans that fill the trace store ([`traces`]).
//!
//! The CA and the claims are kept on disk (`state_dir`). What the registry knows its members announce again after a
//! restart.

pub mod ca;
pub mod dashboard;
pub mod join_token;
pub mod traces;

mod activity;
mod admission;
mod announce;
mod announcement;
mod answers;
mod args;
mod claims;
mod connection;
mod contracts;
mod credentials;
mod descriptors;
mod directory;
mod discovery;
mod grpc;
mod hints;
mod hosts;
mod identity;
mod late;
mod log_limit;
mod messages;
mod peer;
mod rates;
mod registry;
mod run;
mod shelf;
mod state_dir;
mod streams;
mod token_key;
mod turns;
mod unread;
mod visibility;
mod watcher;
mod watchers;

#[cfg(test)]
mod tests;

pub use args::{Args, ReleaseArgs, StateArgs, TokenArgs};
pub use hosts::Network;
pub use run::{claims_kept, contests_kept, release, run, token};
