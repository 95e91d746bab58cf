//! The policies of one kind in one namespace, by age, as many as there is room for.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
};

use super::entry::{Entry, Says};

/// How many policies of a namespace hold.
pub(super) const MOST: usize = 200;
/// How many bytes of JSON their specs may have together.
pub(super) const MOST_BYTES: usize = 1024 * 1024;
/// How many are kept, so that each is told whether it holds.
pub(super) const KEPT: usize = 1_000;

/// Nobody outside can make two names alike.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// When a policy was made, and its name: the oldest first; of the same second, by name.
pub(super) type Age = (i64, String);

/// See the module.
#[derive(Debug)]
pub(super) struct Aged<T> {
    pub(super) by_age: BTreeMap<Age, Entry<T>>,
    pub(super) created: HashMap<String, i64>,
    /// Those that are not kept at all, as there are more than [`KEPT`]: hashes of their names.
    pub(super) beyond: HashSet<u64>,
}

impl<T> Default for Aged<T> {
    fn default() -> Self {
        Self { by_age: BTreeMap::new(), created: HashMap::new(), beyond: HashSet::new() }
    }
}

impl<T: Says> Aged<T> {
    pub(super) fn remove(&mut self, name: &str) -> Option<Entry<T>> {
        let Some(created) = self.created.remove(name) else {
            self.beyond.remove(&HASHER.hash_one(name));
            return None;
        };
        self.by_age.remove(&(created, name.to_owned()))
    }

    pub(super) fn entry(&mut self, name: &str) -> Option<&mut Entry<T>> {
        let created = *self.created.get(name)?;
        self.by_age.get_mut(&(created, name.to_owned()))
    }

    pub(super) fn put(&mut self, name: String, created: i64, entry: Entry<T>) {
        let age = (created, name.clone());
        self.created.insert(name, created);
        self.by_age.insert(age.clone(), entry);
        self.trim(&age);
    }

    /// Whether there is room to keep one of this name. If not, it counts only.
    pub(super) fn has_room(&mut self, name: &str) -> bool {
        let has_room = self.created.len() < KEPT || self.created.contains_key(name);
        let hash = HASHER.hash_one(name);
        if has_room {
            self.beyond.remove(&hash);
        } else {
            self.beyond.insert(hash);
        }
        has_room
    }

    /// Forgets those that only count, unless they have these names.
    pub(super) fn retain_beyond<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        if !self.beyond.is_empty() {
            let there: HashSet<u64> = names.map(|name| HASHER.hash_one(name)).collect();
            self.beyond.retain(|hash| there.contains(hash));
        }
    }

    /// Whether those that only count could be kept now.
    pub(super) fn lacks_some(&self) -> bool {
        !self.beyond.is_empty() && self.created.len() + self.beyond.len() <= KEPT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_age.is_empty() && self.beyond.is_empty()
    }

    /// How many of them there is room for.
    pub(super) fn most(&self) -> usize {
        let mut bytes = 0;
        let has_room = |entry: &&Entry<T>| {
            bytes += entry.bytes;
            bytes <= MOST_BYTES
        };
        self.by_age.values().take(MOST).take_while(has_room).count()
    }

    /// Forgets what the others say. One of them may be new, and those that had room before are next to the last that has.
    fn trim(&mut self, new: &Age) {
        let most = self.most();
        let beyond = self.by_age.values_mut().skip(most);
        beyond.take_while(|entry| !entry.is_left_out()).for_each(Entry::leave_out);
        let has_room = self.by_age.keys().take(most).any(|age| age == new);
        if let (false, Some(entry)) = (has_room, self.by_age.get_mut(new)) {
            entry.leave_out();
        }
    }

    /// Forgets what all those say that there is no room for. Says how many there is room for.
    pub(super) fn leave_out(&mut self) -> usize {
        let most = self.most();
        self.by_age.values_mut().skip(most).filter(|entry| !entry.is_left_out()).for_each(Entry::leave_out);
        most
    }
}
