//! Attackers gain nothing: a compromised workload can misuse only its own rights, a hostile network can only delay, and
//! a slow, absent or wrong control plane does no harm. Each attack runs beside an honest client.

mod application;
mod breaker;
mod certificates;
mod claims;
mod clock;
mod expiry;
mod forged_identity;
mod greed;
mod half_open;
mod network;
mod probes;
mod strangers;
mod tls;
mod unread_log;
mod visibility;
