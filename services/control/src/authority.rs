//! Identities, and how they are proven.
//!
//! The certificate authority ([`ca`]) signs the identities of the mesh. A sidecar proves its first one with a join
//! token ([`join_token`], signed with the `token_key`), which may also name networks for its endpoints (`network`).
//! After an absence longer than its SVID's life it shows the expired SVID (`late`). The control plane's own SVID and
//! roots are in `credentials`. The keys are kept in the `state_dir`.

pub mod ca;
pub(crate) mod credentials;
#[cfg(feature = "kubernetes")]
pub(crate) mod files;
pub mod join_token;
pub(crate) mod late;
pub(crate) mod network;
pub(crate) mod state_dir;
mod token_key;
