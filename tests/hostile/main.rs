//! Peers that attack: each has a certificate of the mesh, or pretends to, and sends what it likes. None of them gets more
//! than its own rights, and honest clients beside it go on. Each subject is a module.

mod certificates;
mod expiry;
mod tls;
