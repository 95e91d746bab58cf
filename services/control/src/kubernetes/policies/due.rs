//! The statuses that are still to be written, as plain state.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use weft_mesh::limits::Rate;

use super::object::{Kind, Verdict};
use crate::{directory::rates::Buckets, kubernetes::workloads::Key};

/// How many are written at once.
const AT_ONCE: usize = 8;
/// How many are written for one namespace: at once, and then each second. Each is a write of the API server.
const OF_NAMESPACE: Rate = (50, 1, 0);

/// See the module.
#[derive(Debug)]
pub(crate) struct Due {
    /// By namespace, so that one with many does not keep others waiting.
    waiting: BTreeMap<String, BTreeMap<(Kind, String), Verdict>>,
    running: BTreeSet<(Kind, Key)>,
    /// The namespace of the last one.
    last: String,
    rates: Buckets<String>,
}

impl Default for Due {
    fn default() -> Self {
        let (waiting, running, last) = Default::default();
        Self { waiting, running, last, rates: Buckets::new(OF_NAMESPACE) }
    }
}

impl Due {
    /// An object's status has to say this.
    pub(crate) fn set(&mut self, kind: Kind, (namespace, name): Key, verdict: Verdict) {
        self.waiting.entry(namespace).or_default().insert((kind, name), verdict);
    }

    /// What to write next, if there is room: of each namespace in turn and not too often, and nothing twice at once.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Kind, Key, Verdict)> {
        if self.is_full() {
            return None;
        }
        let Self { waiting, running, last, rates } = self;
        let after = waiting.range::<String, _>((std::ops::Bound::Excluded(&*last), std::ops::Bound::Unbounded));
        let before = waiting.range::<String, _>(..=&*last);
        let mut free = |(namespace, of): (&String, &BTreeMap<(Kind, String), Verdict>)| {
            let is_free =
                |(kind, name): &&(Kind, String)| !running.contains(&(*kind, (namespace.clone(), name.clone())));
            let found = of.keys().find(is_free)?.clone();
            rates.take(namespace.as_str(), now).then(|| (namespace.clone(), found))
        };
        let (namespace, (kind, name)) = after.chain(before).find_map(&mut free)?;
        let of = waiting.get_mut(&namespace)?;
        let verdict = of.remove(&(kind, name.clone()))?;
        if of.is_empty() {
            waiting.remove(&namespace);
        }
        last.clone_from(&namespace);
        let key = (namespace, name);
        running.insert((kind, key.clone()));
        Some((kind, key, verdict))
    }

    /// Whether as many are written as may be at once.
    pub(crate) fn is_full(&self) -> bool {
        self.running.len() >= AT_ONCE
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
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
        due.next(Instant::now()).map(|(_, (namespace, name), verdict)| (format!("{namespace}/{name}"), verdict.message))
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

    /// Otherwise one namespace has the API server write without end.
    #[tokio::test(start_paused = true)]
    async fn a_namespace_has_only_so_many_written() {
        let mut due = Due::default();
        let written = |due: &mut Due| {
            let mut written = Vec::new();
            while let Some((kind, key, _)) = due.next(Instant::now()) {
                due.done(kind, &key);
                written.push(key.0);
            }
            written
        };
        for number in 0..200 {
            set(&mut due, "a", &format!("p{number:03}"), "x");
        }
        assert_eq!(written(&mut due).len(), 50);
        set(&mut due, "b", "one", "x");
        assert_eq!(written(&mut due), ["b"], "others go on");
        assert!(!due.is_empty() && !due.is_full());
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        assert_eq!(written(&mut due), ["a", "a"]);
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
