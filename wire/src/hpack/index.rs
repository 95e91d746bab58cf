//! How the encoder finds what is in its table.

use super::table::{Entry, Table};

/// Places in which a hash may be.
const WAYS: usize = 4;
const LEAST_PLACES: usize = 4;

/// The numbers of table entries by hash: of whole fields, and of names that the static table hasn't.
///
/// It forgets: when the places for a hash are taken, the oldest goes. A field that is forgotten is sent in full again,
/// which costs no more than bytes, so there is nothing to keep in step with evictions and nothing that colliding hashes
/// can break.
#[derive(Debug, Default)]
pub(crate) struct Index {
    slots: Box<[[Slot; WAYS]]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// 0 when it is free.
    hash: u32,
    number: u32,
}

impl Index {
    /// The position of the entry with this hash that `is_it`.
    #[inline]
    pub(crate) fn find(&self, hash: u32, table: &Table, is_it: impl Fn(&Entry) -> bool) -> Option<usize> {
        for slot in self.slots.get(self.place(hash))? {
            if slot.hash != hash {
                continue;
            }
            if let Some((position, entry)) = table.numbered(slot.number)
                && is_it(entry)
            {
                return Some(position);
            }
        }
        None
    }

    /// Remembers the newest entry of the table.
    pub(crate) fn insert(&mut self, hash: u32, table: &Table) {
        // Some are in here twice.
        if 2 * table.len() > self.slots.len() * WAYS {
            self.grow();
        }
        let place = self.place(hash);
        let age = |slot: &Slot| match slot.hash {
            0 => usize::MAX,
            taken if taken == hash => usize::MAX,
            _ => table.position(slot.number).unwrap_or(usize::MAX),
        };
        if let Some(oldest) = self.slots[place].iter_mut().max_by_key(|slot| age(slot)) {
            *oldest = Slot { hash, number: table.newest() };
        }
    }

    /// From small beginnings: what a server answers a client with is but a field or two, and there may be thousands of
    /// clients.
    #[cold]
    fn grow(&mut self) {
        let places = (2 * self.slots.len()).max(LEAST_PLACES);
        let old = std::mem::replace(&mut self.slots, vec![[Slot::default(); WAYS]; places].into_boxed_slice());
        for slot in old.iter().flatten().filter(|slot| slot.hash != 0) {
            // What was in one place goes to two, so there is room.
            let place = self.place(slot.hash);
            if let Some(free) = self.slots[place].iter_mut().find(|slot| slot.hash == 0) {
                *free = *slot;
            }
        }
    }

    fn place(&self, hash: u32) -> usize {
        hash as usize & self.slots.len().wrapping_sub(1)
    }

    pub(crate) fn clear(&mut self) {
        self.slots = Box::default();
    }
}

/// Fields that were sent not long ago: only what comes again is worth a place in the table.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// A ring.
    hashes: Box<[u32]>,
    next: u8,
}

/// Those of some ten calls, as of each only the fields that are not in the table are noted.
const RECENT: usize = 64;

impl Recent {
    /// Whether this hash was noted not long ago; it is now.
    pub(crate) fn note(&mut self, hash: u32) -> bool {
        if self.hashes.is_empty() {
            self.hashes = vec![0; RECENT].into_boxed_slice();
        }
        // Without a way out of the loop, so that it takes many at once.
        if self.hashes.iter().fold(false, |is_there, &noted| is_there | (noted == hash)) {
            return true;
        }
        self.hashes[usize::from(self.next)] = hash;
        self.next = (self.next + 1) % RECENT as u8;
        false
    }

    pub(crate) fn clear(&mut self) {
        *self = Recent::default();
    }
}
