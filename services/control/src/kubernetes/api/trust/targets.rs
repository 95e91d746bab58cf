//! What the trust bundle is still to be written to, as plain state.

use std::collections::BTreeSet;

/// How many namespaces are kept: as many as Kubernetes itself is made for.
const NAMESPACES: usize = 10_000;
/// How many are written at once. One that takes long takes one of these places, and the others go on.
pub(super) const AT_ONCE: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Webhook,
    Namespace(String),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Targets {
    labelled: BTreeSet<String>,
    /// Those with a pod that has the label itself. They stay until they are gone.
    with_pod: BTreeSet<String>,
    due: BTreeSet<Target>,
    running: BTreeSet<Target>,
}

impl Targets {
    /// A namespace has the label, or not any more.
    pub(super) fn set_labelled(&mut self, namespace: String, is_labelled: bool) {
        if !is_labelled {
            self.labelled.remove(&namespace);
        } else if self.has_room_for(&namespace) && self.labelled.insert(namespace.clone()) {
            self.due.insert(Target::Namespace(namespace));
        }
    }

    /// A namespace has a pod with the label.
    pub(super) fn has_pod(&mut self, namespace: String) {
        if self.has_room_for(&namespace) && self.with_pod.insert(namespace.clone()) {
            self.due.insert(Target::Namespace(namespace));
        }
    }

    fn has_room_for(&self, namespace: &str) -> bool {
        let is_known = self.labelled.contains(namespace) || self.with_pod.contains(namespace);
        let has_room = is_known || self.labelled.len() + self.with_pod.len() < NAMESPACES;
        if !has_room {
            tracing::debug!(namespace, limit = NAMESPACES, "too many namespaces: it gets no trust bundle");
        }
        has_room
    }

    /// Everything is to be written anew.
    pub(super) fn all_are_due(&mut self) {
        self.due.insert(Target::Webhook);
        self.due.extend(self.labelled.iter().chain(&self.with_pod).cloned().map(Target::Namespace));
    }

    /// What to write next, if there is room: nothing twice at once, so that the newest content is written last.
    pub(super) fn next(&mut self) -> Option<Target> {
        if self.running.len() >= AT_ONCE {
            return None;
        }
        let next = self.due.iter().find(|target| !self.running.contains(*target)).cloned()?;
        self.due.remove(&next);
        self.running.insert(next.clone());
        Some(next)
    }

    /// What [`Self::next`] has told is written, or was tried in vain. `is_gone`: there is no such namespace.
    pub(super) fn done(&mut self, target: Target, is_gone: bool) {
        self.running.remove(&target);
        if let (Target::Namespace(namespace), true) = (&target, is_gone) {
            self.labelled.remove(namespace);
            self.with_pod.remove(namespace);
            self.due.remove(&target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> Target {
        Target::Namespace(name.to_owned())
    }

    fn all(targets: &mut Targets) -> Vec<Target> {
        std::iter::from_fn(|| targets.next()).collect()
    }

    #[test]
    fn each_is_written_once_and_again_if_it_became_due_meanwhile() {
        let mut targets = Targets::default();
        targets.all_are_due();
        for _ in 0..2 {
            targets.set_labelled("shop".into(), true);
            targets.has_pod("till".into());
        }
        assert_eq!(all(&mut targets), [Target::Webhook, namespace("shop"), namespace("till")]);
        targets.all_are_due();
        assert_eq!(targets.next(), None, "all three are being written");
        targets.done(namespace("shop"), false);
        assert_eq!(all(&mut targets), [namespace("shop")]);
        targets.done(namespace("till"), true);
        targets.set_labelled("shop".into(), false);
        targets.done(namespace("shop"), false);
        targets.done(Target::Webhook, false);
        targets.all_are_due();
        assert_eq!(all(&mut targets), [Target::Webhook], "one is gone, and one has no label any more");
    }

    #[test]
    fn only_so_many_are_written_at_once_and_kept() {
        let mut targets = Targets::default();
        for number in 0..NAMESPACES + 100 {
            targets.has_pod(format!("n{number}"));
        }
        assert_eq!((targets.with_pod.len(), targets.due.len()), (NAMESPACES, NAMESPACES));
        assert_eq!(all(&mut targets).len(), AT_ONCE);
    }
}
