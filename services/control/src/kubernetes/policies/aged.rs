//! The policies of one kind in one namespace, by age, as many as there is room for.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
};

use super::{
    entry::{Content, Entry, Known, Says, Target},
    object::Object,
};

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

/// The policies of a kind, whatever they say.
pub(super) trait Kept {
    fn known(&mut self, name: &str) -> Option<Known<'_>>;
    fn forget(&mut self, name: &str);
    /// Forgets all but those with these names. Says whether something may be different then.
    fn retain(&mut self, there: &HashSet<&str>) -> bool;
}

impl<T: Says> Kept for Aged<T> {
    fn known(&mut self, name: &str) -> Option<Known<'_>> {
        let created = *self.created.get(name)?;
        self.by_age.get_mut(&(created, name.to_owned())).map(Known::of)
    }

    fn forget(&mut self, name: &str) {
        self.remove(name);
    }

    fn retain(&mut self, there: &HashSet<&str>) -> bool {
        let gone: Vec<String> = self.created.keys().filter(|name| !there.contains(name.as_str())).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        let had_beyond = !self.beyond.is_empty();
        if had_beyond {
            let there: HashSet<u64> = there.iter().map(|name| HASHER.hash_one(*name)).collect();
            self.beyond.retain(|hash| there.contains(hash));
        }
        had_beyond || !gone.is_empty()
    }
}

impl<T: Says> Aged<T> {
    fn remove(&mut self, name: &str) -> Option<Entry<T>> {
        let Some(created) = self.created.remove(name) else {
            self.beyond.remove(&HASHER.hash_one(name));
            return None;
        };
        self.by_age.remove(&(created, name.to_owned()))
    }

    /// Keeps an object, if there is room. `read` tells what it says, or else why it is wrong and what it is for.
    pub(super) fn set(
        &mut self,
        name: String,
        object: Object,
        read: impl FnOnce(&Object) -> Result<T, (String, Option<Target>)>,
    ) {
        if !self.has_room(&name) {
            return;
        }
        let before = self.remove(&name).filter(|before| before.uid == object.uid);
        let content = match read(&object) {
            Ok(says) => Content::Valid(says),
            Err((why, target)) => {
                Content::Invalid { why, target, last: before.and_then(|before| before.content.last()) }
            }
        };
        let age = (object.created, name.clone());
        self.created.insert(name, object.created);
        self.by_age.insert(age.clone(), Entry::new(object, content));
        self.trim(&age);
    }

    /// Whether there is room to keep one of this name. If not, it counts only.
    fn has_room(&mut self, name: &str) -> bool {
        let has_room = self.created.len() < KEPT || self.created.contains_key(name);
        let hash = HASHER.hash_one(name);
        if has_room {
            self.beyond.remove(&hash);
        } else {
            self.beyond.insert(hash);
        }
        has_room
    }

    /// Whether those that only count could be kept now.
    pub(super) fn lacks_some(&self) -> bool {
        !self.beyond.is_empty() && self.created.len() + self.beyond.len() <= KEPT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_age.is_empty() && self.beyond.is_empty()
    }

    /// How many of them there is room for.
    fn most(&self) -> usize {
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
