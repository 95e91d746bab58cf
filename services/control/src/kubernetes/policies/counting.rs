//! Which objects have other numbers of sidecars to say.

use tokio::time::Instant;

use super::{
    Policies,
    entry::Entry,
    object::{DEFAULTS, Kind},
    programmed::{AGAIN, Programmed, Said, Subject},
};
use crate::{kubernetes::workloads::Key, rules::Reach};

impl Policies {
    /// Which objects have something else to say of the sidecars on which they hold. `reach` is `None` if that is not known.
    pub(crate) fn count(
        &mut self,
        reach: impl Fn(&Subject) -> Option<Reach>,
        now: Instant,
    ) -> Vec<(Kind, Key, Programmed)> {
        fn look<T>(
            entry: &mut Entry<T>,
            reach: impl Fn(&Subject) -> Option<Reach>,
            now: Instant,
        ) -> Option<Programmed> {
            entry.counted.look(entry.generation, reach, now)
        }
        let mut changed = Vec::new();
        for (namespace, of) in &mut self.namespaces {
            for ((_, name), entry) in &mut of.policies.by_age {
                let programmed = look(entry, &reach, now);
                changed.extend(programmed.map(|of| (Kind::AccessPolicy, (namespace.clone(), name.clone()), of)));
            }
        }
        for (namespace, of) in &mut self.methods {
            for ((_, name), entry) in &mut of.policies.by_age {
                let programmed = look(entry, &reach, now);
                changed.extend(programmed.map(|of| (Kind::MethodPolicy, (namespace.clone(), name.clone()), of)));
            }
        }
        let of_defaults = self.defaults.as_mut().and_then(|entry| look(entry, &reach, now));
        changed.extend(of_defaults.map(|of| (Kind::MeshDefaults, (String::new(), DEFAULTS.to_owned()), of)));
        changed
    }

    /// Since when the condition has been true, or not, as the status of an object says.
    pub(crate) fn programmed_since(&mut self, kind: Kind, key: &Key) -> Option<(bool, String)> {
        let said = self.known(kind, key)?.counted.said.as_ref();
        said.map(|said| (said.programmed.is_true(), said.since.clone()))
    }

    /// The numbers of an object were written, or could not be: `None`.
    pub(crate) fn counted(&mut self, kind: Kind, key: &Key, said: Option<Said>, now: Instant) {
        let Some(known) = self.known(kind, key) else { return };
        match said {
            Some(said) => known.counted.said = Some(said),
            None => known.counted.rests_until = Some(now + AGAIN),
        }
    }
}

#[cfg(test)]
mod tests;
