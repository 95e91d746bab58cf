//! Dishonest ones never win: a compromised workload can misuse its own rights and nothing else, a hostile network can delay
//! and nothing else, and a slow, absent or wrong control plane harms nobody. Each attack runs beside an honest client.

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
