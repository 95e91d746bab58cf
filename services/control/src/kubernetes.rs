//! Weft on Kubernetes.
//!
//! - [`names`]: the labels, annotations and objects that Weft has on a cluster.
//! - [`inject`]: which pods get a sidecar, and what is added to them.
//! - [`install`]: the manifests of the control plane, as `weft install` prints them.

pub mod inject;
pub mod install;
pub mod names;
