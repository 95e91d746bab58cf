//! The statuses that are still to be written, as plain state.

use std::collections::{BTreeMap, BTreeSet};

use super::object::{Kind, Verdict};
use crate::kubernetes::workloads::Key;

/// How many are written at once.
const AT_ONCE: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// By namespace, so that one with many does not keep others waiting.
    waiting: BTreeMap<String, BTreeMap<(Kind, String), Verdict>>,
    running: BTreeSet<(Kind, Key)>,
    /// The namespace of the last one.
    last: String,
}

impl Due {
    /// An object's status has to say this.
    pub(crate) fn set(&mut self, kind: Kind, (namespace, name): Key, verdict: Verdict) {
        self.waiting.entry(namespace).or_default().insert((kind, name), verdict);
    }

    /// What to write next, if there is room: of each namespace in turn, and nothing twice at once.
    pub(crate) fn next(&mut self) -> Option<(Kind, Key, Verdict)> {
        if self.running.len() >= AT_ONCE {
            return None;
        }
        let after =
            self.waiting.range::<String, _>((std::ops::Bound::Excluded(&self.last), std::ops::Bound::Unbounded));
        let before = self.waiting.range::<String, _>(..=&self.last);
        let is_free = |namespace: &String, of: &BTreeMap<(Kind, String), Verdict>| {
            let free =
                |(kind, name): &&(Kind, String)| !self.running.contains(&(*kind, (namespace.clone(), name.clone())));
            of.keys().find(free).cloned()
        };
        let (namespace, (kind, name)) =
            after.chain(before).find_map(|(namespace, of)| Some((namespace.clone(), is_free(namespace, of)?)))?;
        let of = self.waiting.get_mut(&namespace)?;
        let verdict = of.remove(&(kind, name.clone()))?;
        if of.is_empty() {
            self.waiting.remove(&namespace);
        }
        self.last.clone_from(&namespace);
        let key = (namespace, name);
        self.running.insert((kind, key.clone()));
        Some((kind, key, verdict))
    }

    /// What [`Self::next`] has told is written, or was tried in vain.
    pub(crate) fn done(&mut self, kind: Kind, key: &Key) {
        self.running.remove(&(kind, key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(message: &str) -> Verdict {
        Verdict { generation: 1, is_accepted: true, reason: Verdict::ACCEPTED.into(), message: message.into() }
    }

    fn set(due: &mut Due, namespace: &str, name: &str, message: &str) {
        due.set(Kind::AccessPolicy, (namespace.into(), name.into()), verdict(message));
    }

    fn next(due: &mut Due) -> Option<(String, String)> {
        due.next().map(|(_, (namespace, name), verdict)| (format!("{namespace}/{name}"), verdict.message))
    }

    #[test]
    fn a_namespace_with_many_does_not_keep_others_waiting() {
        let mut due = Due::default();
        for number in 0..100 {
            set(&mut due, "a", &format!("p{number:03}"), "x");
        }
        set(&mut due, "b", "one", "x");
        due.set(Kind::MeshDefaults, (String::new(), "default".into()), verdict("x"));
        let mut first = Vec::new();
        while let Some((name, _)) = next(&mut due) {
            first.push(name);
        }
        assert_eq!(first[..4], ["a/p000", "b/one", "/default", "a/p001"]);
        assert_eq!(first.len(), AT_ONCE);
    }

    #[test]
    fn the_newest_is_written_and_never_two_at_once() {
        let mut due = Due::default();
        set(&mut due, "a", "one", "first");
        assert_eq!(next(&mut due).unwrap().1, "first");
        set(&mut due, "a", "one", "second");
        set(&mut due, "a", "one", "third");
        assert_eq!(next(&mut due), None);
        due.done(Kind::AccessPolicy, &("a".into(), "one".into()));
        assert_eq!(next(&mut due).unwrap().1, "third");
        due.done(Kind::AccessPolicy, &("a".into(), "one".into()));
        assert_eq!(next(&mut due), None);
    }
}
