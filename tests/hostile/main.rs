//! Attacks on a running mesh, each beside honest clients that keep working.

mod claims;
mod probes;
