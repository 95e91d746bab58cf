//! What every part of Weft shares.
//!
//! Identities and their names ([`names`], [`identity`]), how they are proven ([`tls`]), the rules for calls
//! ([`policy`], read from a service's descriptors through [`schema`]), how calls are traced and logged
//! ([`trace_context`], [`telemetry`]), and the two tables that everything refers to: the failures that the mesh itself
//! makes ([`errors`]) and its limits ([`limits`]). [`networks`] says which addresses count as one host where connections
//! of strangers are limited, and [`shares`] divides scarce resources among members. [`ranges`] reads ports and networks.
//! [`decoding`] counts what a message takes in memory before it is decoded. [`file_watch`] notices changed files. With the
//! feature `config`: how configuration files are read (`config`). With the feature `http-server`: the server of pages and
//! probes (`http_server`). With the feature `reflection`: the client of server reflection (`reflection`).

#[cfg(feature = "config")]
pub mod config;
pub mod decoding;
pub mod errors;
pub mod file_watch;
#[cfg(feature = "http-server")]
pub mod http_server;
pub mod identity;
pub mod limits;
pub mod names;
pub mod networks;
pub mod policy;
pub mod ranges;
#[cfg(feature = "reflection")]
pub mod reflection;
pub mod schema;
pub mod shares;
pub mod telemetry;
pub mod tls;
pub mod trace_context;
