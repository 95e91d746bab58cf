//! Weft on Kubernetes.
//!
//! - [`names`]: the labels, annotations and objects that Weft has on a cluster.
//! - [`inject`]: which pods get a sidecar, and what is added to them.
//! - [`install`]: the manifests of the control plane.
//! - [`contracts`]: which Services have which contracts, as their annotations say.
//! - `workloads`: which services a pod backs, as plain state; `accounts`: who a pod is, by the token of its service account;
//!   `policies`: the rules in the cluster's objects, as plain state; `reviews`: who may have the API server asked about one; `cluster`: what follows from both for announcements.
//! - `api` (with the cargo feature `kubernetes`): what the control plane reads from the API server and writes there.
//!
//! On Kubernetes a sidecar announces itself under its identity, which is its service account. The control plane makes it
//! an endpoint of each Service that its pod backs.

pub mod contracts;
pub mod inject;
pub mod install;
pub mod names;

pub(crate) mod accounts;
#[cfg(feature = "kubernetes")]
pub(crate) mod api;
pub(crate) mod cluster;
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only `api` fills it"))]
pub(crate) mod policies;
pub(crate) mod reviews;
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only `api` fills it"))]
pub(crate) mod workloads;
