//! What a protobuf message takes in memory when it is decoded, counted before anything is decoded.
//!
//! On the wire, an empty message within another has two bytes. Decoded, it may have some hundred, so a limit for the
//! bytes of a message does not limit its memory. [`Budget::charge`] goes through the bytes, allocates nothing, and stops
//! at the limit. Only then a decoder may see them.

use crate::{limits, names::is_identifier};

/// A type of message: what is charged for one of it.
#[derive(Debug)]
pub struct Shape {
    /// The size of the decoded struct, in bytes.
    pub size: usize,
    /// The field that has its name, if it is something that a `.proto` file defines.
    pub name: Option<Name>,
    /// Its fields that are messages or that repeat, by number. Other fields are part of the struct, or take about as
    /// much as they have on the wire.
    pub fields: &'static [(u32, Part)],
}

/// A field that is charged.
#[derive(Debug)]
pub enum Part {
    /// A message. Each occurrence is charged, also of a field that does not repeat.
    Message(&'static Shape),
    /// A message, unless somebody else uses the same field for something else: its bytes may be anything.
    Perhaps(&'static Shape),
    /// Repeated strings or bytes.
    Texts,
    /// Repeated numbers that are varints on the wire, packed or not, with their size in memory.
    Numbers(usize),
}

/// The name of something that a `.proto` file defines. It is part of the names of all that is defined within, and
/// decoders keep these as full names: so a long one may take far more memory than it has bytes.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    /// The number of the field.
    pub field: u32,
    /// For people: `message`.
    pub kind: &'static str,
    /// Whether it is a package: that may be empty, and may have several parts.
    pub is_package: bool,
}

/// Why a message must not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No decoder accepts it.
    #[error("{0}")]
    Malformed(&'static str),
    /// It does not fit the budget.
    #[error("it would take too much memory")]
    Memory,
    /// Its parts would be compared with each other too often.
    #[error("it would take too long")]
    Steps,
    /// A name has other characters than `.proto` files allow.
    #[error("{name:?} is not a valid name of a {kind}")]
    BadName {
        /// What it is a name of: `message`.
        kind: &'static str,
        /// Its start, which may have any characters.
        name: String,
    },
    /// A full name is longer than [`limits::DESCRIPTOR_NAME_BYTES`].
    #[error("the full name of a {kind} has {found} bytes")]
    LongName {
        /// What it is a name of: `message`.
        kind: &'static str,
        /// How long it is.
        found: usize,
    },
}

/// Messages within each other: decoders accept no more.
const DEPTH: usize = 100;

/// What an allocator adds to a small block of memory.
const BLOCK_BYTES: usize = 16;

/// How much of a wrong name is kept for the error.
const NAME_SHOWN_BYTES: usize = 100;

/// The memory that decoded messages may take.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { left: bytes }
    }

    /// Takes what a message costs when it is decoded, for its structs and full names. Vectors have up to twice the room
    /// that they need.
    pub fn charge(&mut self, shape: &Shape, message: &[u8]) -> Result<(), Refused> {
        self.walk(shape, message, 0, DEPTH)
    }

    /// Takes so many bytes.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Refused> {
        self.left = self.left.checked_sub(bytes).ok_or(Refused::Memory)?;
        Ok(())
    }

    /// `scope` is the length of the name that the message's name follows.
    fn walk(&mut self, shape: &Shape, message: &[u8], mut scope: usize, depth: usize) -> Result<(), Refused> {
        let depth = depth.checked_sub(1).ok_or(Refused::Malformed("messages are nested too deeply"))?;
        self.take(shape.size)?;
        if let Some(name) = shape.name {
            scope = name.full_bytes(message, scope)?;
            self.take(scope)?;
        }
        for field in Fields(message) {
            let (number, value) = field?;
            let Some((_, part)) = shape.fields.iter().find(|(known, _)| *known == number) else { continue };
            match (part, value) {
                (Part::Message(inner), Value::Bytes(bytes)) => self.walk(inner, bytes, scope, depth)?,
                (Part::Perhaps(inner), Value::Bytes(bytes)) => match self.walk(inner, bytes, scope, depth) {
                    // A decoder stops there as well.
                    Err(Refused::Malformed(_)) => {}
                    walked => walked?,
                },
                (Part::Texts, Value::Bytes(bytes)) => {
                    let content = if bytes.is_empty() { 0 } else { bytes.len() + BLOCK_BYTES };
                    self.take(size_of::<String>() + content)?;
                }
                // The last byte of a varint has no high bit.
                (Part::Numbers(size), Value::Bytes(bytes)) => {
                    self.take(size * bytes.iter().filter(|byte| **byte < 0x80).count())?;
                }
                (Part::Numbers(size), Value::Number) => self.take(*size)?,
                // A decoder refuses a field of another type.
                (_, Value::Number | Value::Group) => {}
            }
        }
        Ok(())
    }
}

impl Name {
    /// Checks the name in a message, and returns the length of the full name. `scope` is the length of the name around.
    fn full_bytes(self, message: &[u8], scope: usize) -> Result<usize, Refused> {
        let mut name: &[u8] = &[];
        // Decoders take the last of several.
        for field in Fields(message) {
            if let (number, Value::Bytes(bytes)) = field?
                && number == self.field
            {
                name = bytes;
            }
        }
        let found = if scope == 0 { name.len() } else { scope + 1 + name.len() };
        if found > limits::DESCRIPTOR_NAME_BYTES {
            return Err(Refused::LongName { kind: self.kind, found });
        }
        let is_valid = std::str::from_utf8(name).is_ok_and(|name| match self.is_package {
            true => name.is_empty() || name.split('.').all(is_identifier),
            false => is_identifier(name),
        });
        match is_valid {
            true => Ok(found),
            false => {
                let name = String::from_utf8_lossy(&name[..name.len().min(NAME_SHOWN_BYTES)]).into_owned();
                Err(Refused::BadName { kind: self.kind, name })
            }
        }
    }
}

/// The fields of a message, from its bytes. Ends after the first error.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

/// The value of a field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number of any size.
    Number,
    /// A message, a string, bytes, or packed numbers.
    Bytes(&'a [u8]),
    /// A group: no type that is decoded here has one.
    Group,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Value<'a>), Refused> {
        let (number, wire_type) = self.key()?;
        let value = match wire_type {
            START_GROUP => self.group()?,
            END_GROUP => return Err(Refused::Malformed("a group ends that has not started")),
            other => self.value(other)?,
        };
        Ok((number, value))
    }

    /// The rest of a group. Groups in it are counted, so that their depth takes no stack.
    fn group(&mut self) -> Result<Value<'a>, Refused> {
        let mut open = 1_usize;
        // Each round takes at least the byte of a key.
        while open > 0 {
            match self.key()?.1 {
                START_GROUP => open += 1,
                END_GROUP => open -= 1,
                other => {
                    self.value(other)?;
                }
            }
        }
        Ok(Value::Group)
    }

    fn key(&mut self) -> Result<(u32, u8), Refused> {
        let key =
            u32::try_from(self.varint()?).map_err(|_| Refused::Malformed("a field has a number that is too large"))?;
        match key >> 3 {
            0 => Err(Refused::Malformed("a field has the number 0")),
            number => Ok((number, (key & 7) as u8)),
        }
    }

    fn value(&mut self, wire_type: u8) -> Result<Value<'a>, Refused> {
        match wire_type {
            0 => self.varint().map(|_| Value::Number),
            1 => self.bytes(8).map(|_| Value::Number),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| CUT)?;
                self.bytes(length).map(Value::Bytes)
            }
            5 => self.bytes(4).map(|_| Value::Number),
            _ => Err(Refused::Malformed("a field has an unknown wire type")),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Refused> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Refused> {
        let mut number = 0;
        for at in 0..10 {
            let (byte, rest) = self.0.split_first().ok_or(CUT)?;
            self.0 = rest;
            // The tenth byte has the 64th bit only.
            if at == 9 && *byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Refused::Malformed("a number has more than 64 bits"))
    }
}

// Protobuf's encoding guide, "Message Structure".
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const CUT: Refused = Refused::Malformed("it ends within a field");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    static TREE: Shape = Shape {
        size: 100,
        name: None,
        fields: &[(1, Part::Message(&TREE)), (2, Part::Texts), (3, Part::Numbers(4)), (4, Part::Perhaps(&TREE))],
    };

    /// The same as [`TREE`], for the decoder.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Tree {
        #[prost(message, repeated, tag = "1")]
        inner: Vec<Tree>,
        #[prost(string, repeated, tag = "2")]
        texts: Vec<String>,
        #[prost(int32, repeated, tag = "3")]
        numbers: Vec<i32>,
    }

    fn cost(message: &[u8]) -> Result<usize, Refused> {
        let mut budget = Budget::new(1_000_000);
        budget.charge(&TREE, message).map(|()| 1_000_000 - budget.left)
    }

    #[test]
    fn each_part_costs_what_it_takes() {
        assert_eq!(cost(b""), Ok(100));
        assert_eq!(cost(b"\x0a\x00\x0a\x02\x0a\x00"), Ok(400), "messages in messages");
        assert_eq!(cost(b"\x12\x00\x12\x01a"), Ok(100 + 24 + 24 + 17), "texts");
        assert_eq!(cost(b"\x1a\x03\x01\x80\x01\x18\x05"), Ok(100 + 3 * 4), "numbers, packed and not");
        assert_eq!(cost(b"\x2b\x0a\x00\x33\x34\x2c\x28\x01\x31aaaaaaaa\x35aaaa"), Ok(100), "unknown fields");
        assert_eq!(cost(b"\x22\x02\x0a\x00\x22\x01\xff"), Ok(100 + 200 + 100), "perhaps a message");
    }

    #[test]
    fn counting_stops_at_the_budget() {
        let many = b"\x0a\x00".repeat(1_000);
        let mut budget = Budget::new(100 * 1_001);
        budget.charge(&TREE, &many).unwrap();
        assert_eq!(budget.charge(&TREE, b""), Err(Refused::Memory), "messages share a budget");
        assert_eq!(Budget::new(100 * 1_000).charge(&TREE, &many), Err(Refused::Memory));
    }

    #[test]
    fn malformed_messages_are_refused() {
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x02\x0a",
            b"\x00",
            b"\x0b",
            b"\x0c",
            b"\x0e",
            b"\x0d\x00",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
        ] {
            assert!(matches!(cost(bytes), Err(Refused::Malformed(_))), "{bytes:x?}");
        }
        let mut deep = Tree::default();
        for _ in 0..DEPTH {
            deep = Tree { inner: vec![deep], ..Tree::default() };
        }
        assert_eq!(cost(&deep.encode_to_vec()), Err(Refused::Malformed("messages are nested too deeply")));
        let groups = [b"\x2b".repeat(100_000), b"\x2c".repeat(100_000)].concat();
        assert_eq!(cost(&groups), Ok(100), "the depth of groups takes no stack");
    }

    proptest! {
        /// What the decoder accepts was counted whole: nothing hides from the count.
        #[test]
        fn whatever_is_decoded_was_counted(bytes in prop::collection::vec(prop_oneof![0u8..0x40, any::<u8>()], 0..64)) {
            fn least(tree: &Tree) -> usize {
                let numbers_and_texts = tree.numbers.len() * 4 + tree.texts.len() * 24;
                100 + numbers_and_texts + tree.inner.iter().map(least).sum::<usize>()
            }
            if let Ok(tree) = Tree::decode(&bytes[..]) {
                prop_assert!(cost(&bytes).is_ok_and(|cost| cost >= least(&tree)), "{:?}", cost(&bytes));
            }
        }
    }
}
