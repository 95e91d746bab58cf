//! The latest notifications.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use weft_contracts::shop::notifications::v1::Notification;

/// How many are kept at most; a new one then replaces the oldest.
pub(crate) const MAX_KEPT: usize = 10_000;

/// Notifications in the order in which they were sent.
#[derive(Default)]
pub(crate) struct Store {
    latest: Mutex<VecDeque<Notification>>,
}

impl Store {
    pub(crate) fn add(&self, notification: Notification) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == MAX_KEPT {
            latest.pop_front();
        }
        latest.push_back(notification);
    }

    /// At most `limit`, the newest first, of one user or of all.
    pub(crate) fn list(&self, user_id: Option<&str>, limit: usize) -> Vec<Notification> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.iter().rev().filter(|n| user_id.is_none_or(|user| n.user_id == user)).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_one_replaces_the_oldest() {
        let store = Store::default();
        for n in 0..=MAX_KEPT {
            let user_id = if n % 2 == 0 { "even" } else { "odd" };
            store.add(Notification { id: n.to_string(), user_id: user_id.to_owned(), ..Notification::default() });
        }
        let all = store.list(None, usize::MAX);
        assert_eq!(all.len(), MAX_KEPT);
        assert_eq!((all[0].id.as_str(), all[MAX_KEPT - 1].id.as_str()), ("10000", "1"));
        let even: Vec<_> = store.list(Some("even"), 2).into_iter().map(|n| n.id).collect();
        assert_eq!(even, ["10000", "9998"]);
    }
}
