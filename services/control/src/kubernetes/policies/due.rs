//! The statuses that are still to be written, as plain state.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use weft_mesh::limits::Rate;

use super::object::Kind;
use crate::{directory::rates::Buckets, kubernetes::workloads::Key};

/// See the module. A `T` is what a status has to say.
#[derive(Debug)]
pub(crate) struct Due<T> {
    /// By namespace, so that one with many does not keep others waiting.
    waiting: BTreeMap<String, BTreeMap<(Kind, String), T>>,
    running: BTreeSet<(Kind, Key)>,
    /// How many are written at once.
    at_once: usize,
    /// The namespace of the last one.
    last: String,
    rates: Buckets<String>,
}

impl<T> Due<T> {
    /// None yet. So many are written at once, and so often for each namespace.
    pub(crate) fn new(at_once: usize, of_namespace: Rate) -> Self {
        let (waiting, running, last) = Default::default();
        Self { waiting, running, at_once, last, rates: Buckets::new(of_namespace) }
    }

    /// An object's status has to say this.
    pub(crate) fn set(&mut self, kind: Kind, (namespace, name): Key, said: T) {
        self.waiting.entry(namespace).or_default().insert((kind, name), said);
    }

    /// What to write next, if there is room: of each namespace in turn and not too often, and nothing twice at once.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Kind, Key, T)> {
        if self.is_full() {
            return None;
        }
        let Self { waiting, running, last, rates, .. } = self;
        let after = waiting.range::<String, _>((std::ops::Bound::Excluded(&*last), std::ops::Bound::Unbounded));
        let before = waiting.range::<String, _>(..=&*last);
        let mut free = |(namespace, of): (&String, &BTreeMap<(Kind, String), T>)| {
            let is_free =
                |(kind, name): &&(Kind, String)| !running.contains(&(*kind, (namespace.clone(), name.clone())));
            let found = of.keys().find(is_free)?.clone();
            rates.take(namespace.as_str(), now).then(|| (namespace.clone(), found))
        };
        let (namespace, (kind, name)) = after.chain(before).find_map(&mut free)?;
        let of = waiting.get_mut(&namespace)?;
        let said = of.remove(&(kind, name.clone()))?;
        if of.is_empty() {
            waiting.remove(&namespace);
        }
        last.clone_from(&namespace);
        let key = (namespace, name);
        running.insert((kind, key.clone()));
        Some((kind, key, said))
    }

    /// Whether as many are written as may be at once.
    fn is_full(&self) -> bool {
        self.running.len() >= self.at_once
    }

    /// Whether some wait although there is room: they were written too often.
    pub(crate) fn is_held(&self) -> bool {
        !self.waiting.is_empty() && !self.is_full()
    }

    /// What [`Self::next`] has told is written, or was tried in vain.
    pub(crate) fn done(&mut self, kind: Kind, key: &Key) {
        self.running.remove(&(kind, key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::object::Verdict, *};

    const AT_ONCE: usize = 8;

    fn none() -> Due<Verdict> {
        Due::new(AT_ONCE, (50, 1, 0))
    }

    fn verdict(message: &str) -> Verdict {
        Verdict { generation: 1, is_accepted: true, reason: Verdict::ACCEPTED.into(), message: message.into() }
    }

    fn set(due: &mut Due<Verdict>, namespace: &str, name: &str, message: &str) {
        due.set(Kind::AccessPolicy, (namespace.into(), name.into()), verdict(message));
    }

    fn next(due: &mut Due<Verdict>) -> Option<(String, String)> {
        due.next(Instant::now()).map(|(_, (namespace, name), verdict)| (format!("{namespace}/{name}"), verdict.message))
    }

    #[test]
    fn a_namespace_with_many_does_not_keep_others_waiting() {
        let mut due = none();
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
        let mut due = none();
        let written = |due: &mut Due<Verdict>| {
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
        assert!(due.is_held());
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        assert_eq!(written(&mut due), ["a", "a"]);
    }

    #[test]
    fn the_newest_is_written_and_never_two_at_once() {
        let mut due = none();
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
