//! What a decoder of descriptors does besides reading them: it finds some parts by comparing all that it has, one after
//! the other. So the time grows with the product of two numbers, which a small set can make very large.

use crate::{
    decoding::{Fields, Refused, Value},
    limits,
};

/// The steps of all files so far. One is a comparison of two parts.
#[derive(Debug, Default)]
pub(super) struct Steps {
    taken: usize,
    extensions: usize,
    /// The most extension ranges of one message.
    ranges: usize,
}

// The fields of google.protobuf.FileDescriptorProto.
const MESSAGES: u32 = 4;
const EXTENSIONS: u32 = 7;

// The fields of google.protobuf.DescriptorProto.
const FIELDS: u32 = 2;
const NESTED: u32 = 3;
const RANGES: u32 = 5;
const NESTED_EXTENSIONS: u32 = 6;
const OPTIONS: u32 = 7;

/// The field of google.protobuf.MessageOptions.
const MAP_ENTRY: u32 = 7;

/// How often the fields of a map's entry are gone through for each field that has it: for the key, for the value, and for
/// the value's enum.
const LOOKS_AT_ENTRY: usize = 3;

impl Steps {
    /// Takes what a file costs. The depth of its messages must be bounded.
    pub(super) fn charge(&mut self, file: &[u8]) -> Result<(), Refused> {
        for field in Fields(file) {
            match field? {
                (MESSAGES, Value::Bytes(message)) => drop(self.message(message)?),
                (EXTENSIONS, Value::Bytes(_)) => self.extensions += 1,
                _ => {}
            }
        }
        // Each extension may extend the message with the most ranges, in whichever file that is.
        let all = self.taken.saturating_add(self.extensions.saturating_mul(self.ranges));
        if all > limits::DESCRIPTOR_STEPS { Err(Refused::Steps) } else { Ok(()) }
    }

    /// Returns how many fields the message has if it is the entry of a map, and otherwise 0.
    fn message(&mut self, message: &[u8]) -> Result<usize, Refused> {
        let (mut fields, mut nested, mut ranges) = (0_usize, 0_usize, 0_usize);
        let (mut entry_fields, mut is_entry) = (0_usize, false);
        for field in Fields(message) {
            match field? {
                (FIELDS, Value::Bytes(_)) => fields += 1,
                (NESTED, Value::Bytes(inner)) => {
                    nested += 1;
                    entry_fields = entry_fields.max(self.message(inner)?);
                }
                (NESTED_EXTENSIONS, Value::Bytes(_)) => self.extensions += 1,
                (RANGES, Value::Bytes(_)) => ranges += 1,
                (OPTIONS, Value::Bytes(options)) => is_entry |= super::count(options, MAP_ENTRY)? > 0,
                _ => {}
            }
        }
        self.ranges = self.ranges.max(ranges);
        // The message of a field is looked for among the nested ones, and may be an entry.
        let each = nested.saturating_add(entry_fields.saturating_mul(LOOKS_AT_ENTRY));
        self.taken = self.taken.saturating_add(fields.saturating_mul(each));
        Ok(if is_entry { fields } else { 0 })
    }
}
