//! Addresses that are known to be outside the mesh.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr};

use tokio::time::Instant;
use weft_mesh::limits;

/// The addresses that are outside the mesh, as the control plane has told this worker.
#[derive(Debug, Default)]
pub(crate) struct Outside(RefCell<HashMap<SocketAddr, Word>>);

#[derive(Clone, Copy, Debug)]
struct Word {
    said: Instant,
    /// When the control plane was last asked, whether or not it answered.
    asked: Instant,
}

impl Outside {
    /// Whether the address is known as outside, and the control plane was asked so recently that it is not asked again.
    pub(crate) fn is_fresh(&self, address: SocketAddr, now: Instant) -> bool {
        let known = self.0.borrow();
        known.get(&address).is_some_and(|word| now.saturating_duration_since(word.asked) < limits::OUTSIDE_MEMORY)
    }

    /// The control plane says now that the address is outside.
    pub(crate) fn note(&self, address: SocketAddr, now: Instant) {
        let mut known = self.0.borrow_mut();
        if known.len() >= limits::OUTSIDE_ADDRESSES && !known.contains_key(&address) {
            // The control plane has just answered, so it can be asked again for the address that is forgotten.
            let oldest = known.iter().min_by_key(|(_, word)| word.said).map(|(address, _)| *address);
            if let Some(oldest) = oldest {
                known.remove(&oldest);
            }
        }
        known.insert(address, Word { said: now, asked: now });
    }

    /// The control plane does not answer. Whether its last answer still holds: that the address is outside.
    pub(crate) fn holds_on(&self, address: SocketAddr, now: Instant) -> bool {
        let mut known = self.0.borrow_mut();
        let word = known.get_mut(&address);
        let word = word.filter(|word| now.saturating_duration_since(word.said) < limits::OUTSIDE_KEPT);
        word.map(|word| word.asked = now).is_some()
    }

    /// A service is at this address now.
    pub(crate) fn forget(&self, address: SocketAddr) {
        self.0.borrow_mut().remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 443);

    #[tokio::test(start_paused = true)]
    async fn the_control_plane_is_asked_again_after_a_while() {
        let outside = Outside::default();
        outside.note(ADDRESS, Instant::now());
        assert!(outside.is_fresh(ADDRESS, Instant::now()));
        tokio::time::advance(limits::OUTSIDE_MEMORY).await;
        assert!(!outside.is_fresh(ADDRESS, Instant::now()));
        assert!(outside.holds_on(ADDRESS, Instant::now()), "the last answer holds");
        assert!(outside.is_fresh(ADDRESS, Instant::now()), "the control plane was just asked again");
        outside.forget(ADDRESS);
        assert!(!outside.holds_on(ADDRESS, Instant::now()), "a service was there meanwhile");
        outside.note(ADDRESS, Instant::now());
        for _ in 0..2 {
            tokio::time::advance(limits::OUTSIDE_KEPT / 2 - Duration::from_secs(1)).await;
            assert!(outside.holds_on(ADDRESS, Instant::now()));
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!outside.holds_on(ADDRESS, Instant::now()), "questions without an answer do not make it last");
    }

    #[test]
    fn the_number_of_remembered_addresses_is_bounded() {
        let (outside, now) = (Outside::default(), Instant::now());
        let at = |port: usize| SocketAddr::new(ADDRESS.ip(), port as u16);
        for port in 0..=limits::OUTSIDE_ADDRESSES {
            outside.note(at(port), now + Duration::from_millis(port as u64));
        }
        assert_eq!(outside.0.borrow().len(), limits::OUTSIDE_ADDRESSES);
        assert!(!outside.0.borrow().contains_key(&at(0)), "the oldest was forgotten");
        assert!(outside.0.borrow().contains_key(&at(1)));
    }
}
