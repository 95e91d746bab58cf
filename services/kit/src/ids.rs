//! Ids for what a service keeps.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// The length of an id, in characters.
pub const ID_LENGTH: usize = 28;

/// The time in the last id, in milliseconds times 2¹⁶.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A new id in hexadecimal: sixteen digits of time, then twelve random ones. Ids made by one process sort in the order
/// in which they were made; ids of several processes sort by the processes' clocks.
pub fn new_id() -> String {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let now = millis << 16;
    let next = |last: u64| Some(now.max(last + 1));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(0);
    format!("{:016x}{:012x}", now.max(last + 1), fastrand::u64(..1 << 48))
}

/// Whether a text has the form of an id.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_as_they_were_made() {
        let ids: Vec<_> = (0..10_000).map(|_| new_id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| is_id(id)));
        assert!(!is_id("../../etc/passwd"));
    }
}
