//! What every part of Weft shares.
//!
//! Who someone is ([`names`], [`identity`]), how that is proven ([`tls`]), what holds for a call ([`policy`], read
//! from a service's descriptors through [`schema`]), how it is followed ([`trace_context`], [`telemetry`]), and the
//! two tables that everything refers to: the failures that the mesh itself makes ([`errors`]) and the bounds of what
//! it takes ([`limits`]). How many connections a port has that strangers reach
//! is kept by [`seats`], and whose they are by [`networks`]; how members share what there is little of is in [`shares`]. With the feature `config`: how configuration files are read (`config`).

#[cfg(feature = "config")]
pub mod config;
pub mod errors;
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
