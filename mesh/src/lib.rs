//! What every part of Weft shares.
//!
//! Identities and their names ([`names`], [`identity`]), how they are proven ([`tls`]), the rules for calls
//! ([`policy`], read from a service's descriptors through [`schema`]), how calls are traced and logged
//! ([`trace_context`], [`telemetry`]), and the two tables that everything refers to: the failures that the mesh itself
//! makes ([`errors`]) and its limits ([`limits`]). [`seats`] and [`networks`] limit connections on ports that strangers
//! can reach, and [`shares`] divides scarce resources among members. [`file_watch`] notices changed files. With the feature `config`: how configuration files
//! are read (`config`).

#[cfg(feature = "config")]
pub mod config;
pub mod errors;
pub mod file_watch;
pub mod identity;
pub mod limits;
pub mod names;
pub mod networks;
pub mod policy;
pub mod schema;
pub mod seats;
pub mod shares;
pub mod telemetry;
pub mod tls;
pub mod trace_context;
