//! How the encoder finds entries of its dynamic table.

use super::table::{Entry, Table};

/// How many slots a hash may be in.
const WAYS: usize = 4;
const LEAST_PLACES: usize = 4;

/// The numbers of table entries, by the hash of the whole field, or of the name if the static table does not have it.
///
/// It may forget entries: when all slots for a hash are taken, the oldest is overwritten. A forgotten field is sent as
/// a literal again, which costs only bytes. So evictions do not have to update the index, and colliding hashes cannot
/// break anything.
#[derive(Debug, Default)]
pub(crate) struct Index {
    slots: Box<[[Slot; WAYS]]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// 0 when the slot is free.
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
        // Some entries are in the index twice: by field and by name.
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

    /// Doubles the index. It starts small, because a server's responses to a client may have only a field or two, and
    /// there may be thousands of clients.
    #[cold]
    fn grow(&mut self) {
        let places = (2 * self.slots.len()).max(LEAST_PLACES);
        let old = std::mem::replace(&mut self.slots, vec![[Slot::default(); WAYS]; places].into_boxed_slice());
        for slot in old.iter().flatten().filter(|slot| slot.hash != 0) {
            // The slots of one place are divided between two, so there is room.
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

/// Hashes of fields that were sent recently: only a field that is sent again is worth an entry in the table.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// A ring.
    hashes: Box<[u32]>,
    next: u8,
}

/// Enough for about ten calls, since only fields that are not in the table are recorded.
const RECENT: usize = 64;

impl Recent {
    /// Records this hash, and returns whether it was recorded recently.
    pub(crate) fn note(&mut self, hash: u32) -> bool {
        if self.hashes.is_empty() {
            self.hashes = vec![0; RECENT].into_boxed_slice();
        }
        // The loop has no early exit, so that the compiler can vectorize it.
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
