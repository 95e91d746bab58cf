//! Those who mean harm: a member of the mesh that holds a valid certificate and sends any bytes, a service, an application
//! on the host of its own sidecar, a network. Each does what it can beside an honest client that keeps working; it can misuse
//! its own rights, and nothing else.

mod forged_identity;
mod greed;
