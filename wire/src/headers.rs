//! The fields of a field block, as one flat list.
//!
//! A relay reads a handful of fields and passes all of them on, so there is no map: a field is a record of fixed size,
//! known names are small numbers, and all other text is in one buffer. A reused list allocates nothing.

use std::fmt;

pub(crate) mod name;
#[cfg(test)]
mod tests;

pub use name::Name;
use name::{Id, LAST_PSEUDO, OTHER, TEXTS};

/// The overhead that RFC 9113, section 6.5.2 and RFC 7541, section 4.1 add to the size of each field.
pub(crate) const FIELD_OVERHEAD: usize = 32;

/// The buffer sizes that [`Headers::shrink`] keeps.
const KEPT_TEXT_BYTES: usize = 1024;
const KEPT_FIELDS: usize = 32;

/// A header list: a flat list of fields in one reusable buffer. It includes the pseudo-headers, which are found without
/// a search.
///
/// The pseudo-headers come first: one that is set after other fields is moved in front of them. Names are in lower
/// case.
#[derive(Clone, Default)]
pub struct Headers {
    /// The values. A name that is not a known one is in front of its value.
    text: Vec<u8>,
    fields: Vec<Field>,
    /// For each pseudo-header: the index of the first such field in `fields`, plus one; 0 when there is none.
    pseudo: [u32; LAST_PSEUDO as usize],
    /// A bit for each name that is (or was) in the list, by [`bit`]: most look-ups are of names that are not there.
    present: u64,
    removed: usize,
    list_bytes: usize,
}

/// A field of a list; the bytes are in [`Headers::text`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    start: u32,
    /// 0 when the name is known.
    pub(crate) name_len: u32,
    value_len: u32,
    pub(crate) origin: Origin,
    pub(crate) id: Id,
    pub(crate) is_sensitive: bool,
    is_removed: bool,
}

/// The description of a field to add, except its text.
pub(crate) struct Record {
    pub(crate) id: Id,
    pub(crate) is_sensitive: bool,
    /// 0 when the name is known.
    pub(crate) name_len: u32,
    /// What it adds to the list's size.
    pub(crate) bytes: u32,
    pub(crate) origin: Origin,
}

/// What the decoder found out about a field, for the encoder that sends it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The hash of name and value; 0 when it is not known.
    pub(crate) hash: u32,
    /// The index of the whole field in the static table; 0 when it is not there, or not known.
    pub(crate) static_index: u8,
    /// It was received as an index into the dynamic table, so its sender repeats it.
    pub(crate) is_repeated: bool,
}

/// A field that is not a pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldRef<'a> {
    /// The name, in lower case.
    pub name: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// It is sent as a never-indexed literal, and must be so on every hop (RFC 7541, section 7.1.3).
    pub is_sensitive: bool,
}

impl Headers {
    /// An empty list, which has allocated nothing.
    pub fn new() -> Headers {
        Headers::default()
    }

    /// Empties the list and keeps its buffers.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
        self.pseudo = Default::default();
        self.present = 0;
        self.removed = 0;
        self.list_bytes = 0;
    }

    /// Whether there is no field, not even a pseudo-header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many fields there are, pseudo-headers included.
    pub fn len(&self) -> usize {
        self.fields.len() - self.removed
    }

    /// The list's size as RFC 9113, section 6.5.2 counts it: names, values, and 32 bytes for each field.
    pub fn list_bytes(&self) -> usize {
        self.list_bytes
    }

    /// The memory that it takes, in use or not.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.text.capacity() + self.fields.capacity() * size_of::<Field>()
    }

    /// `:method`
    pub fn method(&self) -> Option<&[u8]> {
        self.pseudo(Name::METHOD.id())
    }

    /// Whether the method is idempotent: to send the request twice has the effect of sending it once (RFC 9110, section
    /// 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method(), Some(b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE"))
    }

    /// `:scheme`
    pub fn scheme(&self) -> Option<&[u8]> {
        self.pseudo(Name::SCHEME.id())
    }

    /// `:authority`
    pub fn authority(&self) -> Option<&[u8]> {
        self.pseudo(Name::AUTHORITY.id())
    }

    /// `:path`
    pub fn path(&self) -> Option<&[u8]> {
        self.pseudo(Name::PATH.id())
    }

    /// `:protocol` (RFC 8441)
    pub fn protocol(&self) -> Option<&[u8]> {
        self.pseudo(Name::PROTOCOL.id())
    }

    /// `:status`, when it is there and has three digits.
    #[inline]
    pub fn status(&self) -> Option<u16> {
        match *self.pseudo(Name::STATUS.id())? {
            [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
            }
            _ => None,
        }
    }

    #[inline]
    fn pseudo(&self, id: Id) -> Option<&[u8]> {
        let at = self.pseudo[usize::from(id) - 1];
        (at != 0).then(|| self.value(&self.fields[at as usize - 1]))
    }

    /// The first value of the fields of this name.
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The value of the only field of this name; `None` when there is none or more than one.
    pub fn get_single(&self, name: Name) -> Option<&[u8]> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The values of the fields of this name, in order.
    pub fn all(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        let is_there = self.may_have(name);
        let fields: &[Field] = if is_there { &self.fields } else { &[] };
        fields.iter().filter(move |field| self.has_name(field, name)).map(|field| self.value(field))
    }

    /// Makes this the only value of the name. A field that was there keeps its place.
    pub fn set(&mut self, name: Name, value: &[u8]) {
        if !self.may_have(name) {
            return self.append(name, value);
        }
        let Some(at) = self.fields.iter().position(|field| self.has_name(field, name)) else {
            return self.append(name, value);
        };
        if self.len() > 1 {
            self.remove_from(at + 1, name);
        }
        self.replace(at, name, value);
    }

    fn replace(&mut self, at: usize, name: Name, value: &[u8]) {
        let old = self.fields[at];
        self.list_bytes = self.list_bytes - old.value_len as usize + value.len();
        let field = &mut self.fields[at];
        field.origin = Origin::default();
        field.value_len = length(value.len());
        if value.len() <= old.value_len as usize {
            let start = (old.start + old.name_len) as usize;
            self.text[start..start + value.len()].copy_from_slice(value);
            return;
        }
        field.start = length(self.text.len());
        if name.id() == OTHER {
            self.text.extend_from_slice(name.as_str().as_bytes());
        }
        self.text.extend_from_slice(value);
    }

    /// Adds a field; a pseudo-header is put in front of the other fields.
    pub fn append(&mut self, name: Name, value: &[u8]) {
        let text = if name.id() == OTHER { name.as_str().as_bytes() } else { &[] };
        self.add(name.id(), text, value, false);
    }

    /// Adds a field by the text of its name, which must be in lower case.
    pub fn append_bytes(&mut self, name: &[u8], value: &[u8]) {
        let id = name::find(name);
        self.add(id, if id == OTHER { name } else { &[] }, value, false);
    }

    /// Adds a field that is never put into a dynamic table, here or on a later hop (RFC 7541, section 7.1.3).
    pub fn append_sensitive(&mut self, name: &[u8], value: &[u8]) {
        let id = name::find(name);
        self.add(id, if id == OTHER { name } else { &[] }, value, true);
    }

    fn add(&mut self, id: Id, name: &[u8], value: &[u8], is_sensitive: bool) {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        let known_len = TEXTS[usize::from(id)].len();
        let bytes = length(known_len + name.len() + value.len() + FIELD_OVERHEAD);
        self.push(start, Record { id, is_sensitive, name_len: length(name.len()), bytes, origin: Origin::default() });
    }

    /// Adds a field. `text` is its value, preceded by its name if that is not a known one.
    #[inline(always)]
    pub(crate) fn add_decoded(&mut self, text: &[u8], record: Record) {
        let start = self.text.len();
        self.text.extend_from_slice(text);
        self.push(start, record);
    }

    /// Adds the field whose text begins at `start` and ends at the end of the buffer.
    #[inline(always)]
    fn push(&mut self, start: usize, record: Record) {
        let Record { id, is_sensitive, name_len, bytes, origin } = record;
        let end = length(self.text.len());
        self.present |= bit(id);
        self.list_bytes += bytes as usize;
        let at = self.fields.len();
        let (start, value_len) = (start as u32, end - start as u32 - name_len);
        self.fields.push(Field { start, name_len, value_len, origin, id, is_sensitive, is_removed: false });
        if is_pseudo(id) {
            self.place_pseudo(id, at);
        }
    }

    /// Records the position of the pseudo-header that was just added at the end, and moves it to the front if needed.
    #[inline(always)]
    fn place_pseudo(&mut self, id: Id, mut at: usize) {
        if at > 0 && !is_pseudo(self.fields[at - 1].id) {
            at = self.move_pseudo(at);
        }
        let slot = &mut self.pseudo[usize::from(id) - 1];
        if *slot == 0 {
            *slot = at as u32 + 1;
        }
    }

    #[cold]
    fn move_pseudo(&mut self, at: usize) -> usize {
        let at = self.fields.iter().position(|field| !is_pseudo(field.id)).unwrap_or(at);
        self.fields[at..].rotate_right(1);
        at
    }

    /// Removes all fields of this name, and returns whether there was one.
    pub fn remove(&mut self, name: Name) -> bool {
        self.may_have(name) && self.remove_from(0, name)
    }

    fn remove_from(&mut self, start: usize, name: Name) -> bool {
        let before = self.removed;
        for at in start..self.fields.len() {
            let field = self.fields[at];
            if !self.has_name(&field, name) {
                continue;
            }
            self.remove_at(at);
        }
        self.removed > before
    }

    fn remove_at(&mut self, at: usize) {
        let field = self.fields[at];
        self.fields[at].is_removed = true;
        self.removed += 1;
        self.list_bytes -= self.name(&field).len() + field.value_len as usize + FIELD_OVERHEAD;
        if is_pseudo(field.id) && self.pseudo[usize::from(field.id) - 1] as usize == at + 1 {
            self.pseudo[usize::from(field.id) - 1] = 0;
        }
    }

    /// Removes all fields with this name, given as text, ignoring case. Pseudo-headers stay.
    pub(crate) fn remove_text(&mut self, name: &[u8]) {
        for at in 0..self.fields.len() {
            let field = &self.fields[at];
            if !field.is_removed && !is_pseudo(field.id) && self.name(field).eq_ignore_ascii_case(name) {
                self.remove_at(at);
            }
        }
    }

    /// Whether there is a field of this name, or one that [`Self::remove_like`] would remove.
    #[inline]
    pub fn has_like(&self, name: Name) -> bool {
        self.get(name).is_some() || self.find_like(0, name).is_some()
    }

    /// Removes all fields of this name, and those that a program may take for it: their names differ only in characters
    /// that are no letters or digits, such as `x_own` for `x-own`. CGI passes both to a program as `X_OWN` (RFC 3875,
    /// section 4.1.18), and so do WSGI, Rack and PHP.
    #[inline]
    pub fn remove_like(&mut self, name: Name) {
        self.remove(name);
        let mut from = 0;
        while let Some(at) = self.find_like(from, name) {
            self.remove_at(at);
            from = at + 1;
        }
    }

    /// The first field at `from` or later whose name is not this one but may be taken for it.
    #[inline]
    fn find_like(&self, from: usize, name: Name) -> Option<usize> {
        // No known name is like another known name: a unit test of `name.rs` checks it.
        if self.present & bit(OTHER) == 0 { None } else { self.find_like_among(from, name) }
    }

    fn find_like_among(&self, from: usize, name: Name) -> Option<usize> {
        let (text, len) = (name.as_str().as_bytes(), name.as_str().len() as u32);
        let may_be = |field: &Field| {
            field.name_len == len && field.id == OTHER && !field.is_removed && is_like(self.name(field), text)
        };
        (from..self.fields.len()).find(|at| may_be(&self.fields[*at]))
    }

    /// All fields in order, pseudo-headers included, as name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.raw().map(|field| (self.name(field), self.value(field)))
    }

    /// The fields except the pseudo-headers, in order.
    pub fn fields(&self) -> impl Iterator<Item = FieldRef<'_>> {
        self.raw().filter(|field| !is_pseudo(field.id)).map(|field| FieldRef {
            name: self.name(field),
            value: self.value(field),
            is_sensitive: field.is_sensitive,
        })
    }

    /// Makes this a copy of `other`, in this list's buffers.
    pub fn copy_from(&mut self, other: &Headers) {
        self.text.clear();
        self.text.extend_from_slice(&other.text);
        self.fields.clear();
        self.fields.extend_from_slice(&other.fields);
        self.pseudo = other.pseudo;
        self.present = other.present;
        self.removed = other.removed;
        self.list_bytes = other.list_bytes;
    }

    /// Frees large buffers.
    pub fn shrink(&mut self) {
        self.text.shrink_to(KEPT_TEXT_BYTES);
        self.fields.shrink_to(KEPT_FIELDS);
    }

    /// The records of the fields, in order.
    pub(crate) fn raw(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| !field.is_removed)
    }

    pub(crate) fn name(&self, field: &Field) -> &[u8] {
        if field.id != OTHER {
            return TEXTS[usize::from(field.id)].as_bytes();
        }
        let start = field.start as usize;
        &self.text[start..start + field.name_len as usize]
    }

    pub(crate) fn value(&self, field: &Field) -> &[u8] {
        let start = (field.start + field.name_len) as usize;
        &self.text[start..start + field.value_len as usize]
    }

    /// Name and value, or only the value when the name is a known one.
    #[inline]
    pub(crate) fn text(&self, field: &Field) -> &[u8] {
        let start = field.start as usize;
        &self.text[start..start + (field.name_len + field.value_len) as usize]
    }

    /// Whether this pseudo-header may follow: it is not in the list, and neither is a field that is no pseudo-header.
    #[inline]
    pub(crate) fn takes_pseudo(&self, id: Id) -> bool {
        self.pseudo[usize::from(id) - 1] == 0 && self.fields.last().is_none_or(|last| is_pseudo(last.id))
    }

    pub(crate) fn has_pseudo(&self, id: Id) -> bool {
        self.pseudo[usize::from(id) - 1] != 0
    }

    /// Whether there may be a field of this name. A quick check: when there is no such field, it nearly always says so.
    #[inline]
    pub fn may_have(&self, name: Name) -> bool {
        self.present & bit(name.id()) != 0
    }

    fn has_name(&self, field: &Field, name: Name) -> bool {
        field.id == name.id()
            && !field.is_removed
            && (field.id != OTHER || self.name(field) == name.as_str().as_bytes())
    }
}

/// Whether one name may be taken for another of the same length.
fn is_like(name: &[u8], other: &[u8]) -> bool {
    let is_same =
        |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    name.len() == other.len() && std::iter::zip(name, other).all(is_same)
}

/// The name's bit in [`Headers::present`]. Some names share one.
#[inline]
fn bit(id: Id) -> u64 {
    1 << (id % 64)
}

/// Whether the id is that of a known pseudo-header.
#[inline]
pub(crate) fn is_pseudo(id: Id) -> bool {
    id.wrapping_sub(1) < LAST_PSEUDO
}

/// A length or an index in a list. The limits on header lists keep both far below 2^32.
#[inline]
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a header list is smaller than 4 GiB")
}

/// Equal lists have the same fields in the same order.
impl PartialEq for Headers {
    fn eq(&self, other: &Headers) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

/// Hides the values of sensitive fields, since this output ends up in logs.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self.raw().map(|field| {
            let value =
                if field.is_sensitive { "(sensitive)".into() } else { self.value(field).escape_ascii().to_string() };
            (self.name(field).escape_ascii().to_string(), value)
        });
        f.debug_map().entries(fields).finish()
    }
}
