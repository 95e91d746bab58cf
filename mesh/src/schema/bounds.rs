//! What descriptors may take in memory and time, and how what they define may be named.

mod steps;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use buffa_descriptor::generated::descriptor as buffa_types;
use weft_contracts::weft::options::v1 as weft;

use self::steps::Steps;
use super::SchemaError;
use crate::{
    decoding::{
        Budget, Fields, Name,
        Part::{Message, Numbers, Perhaps, Texts},
        Refused, Shape, Value,
    },
    limits,
    names::{acts_on_terminal, shown},
};

/// Bounds for descriptors that are not decoded yet: what all of them together may take in memory and time, and the names
/// of what they define. Ask it before any decoder sees them.
#[derive(Debug)]
pub struct Bounds {
    budget: Budget,
    steps: Steps,
    memory_bytes: usize,
}

impl Default for Bounds {
    /// For one descriptor set: [`limits::DESCRIPTOR_MEMORY_BYTES`].
    fn default() -> Self {
        Self::new(limits::DESCRIPTOR_MEMORY_BYTES)
    }
}

impl Bounds {
    /// For descriptors that may take so many bytes of memory together.
    pub fn new(memory_bytes: usize) -> Self {
        Self { budget: Budget::new(memory_bytes), steps: Steps::default(), memory_bytes }
    }

    /// Checks a serialized `google.protobuf.FileDescriptorSet`.
    pub fn check_set(&mut self, descriptor_set: &[u8]) -> Result<(), SchemaError> {
        for field in Fields(descriptor_set) {
            if let (1, Value::Bytes(file)) = field.map_err(|refused| self.error("", refused))? {
                self.check_file(file)?;
            }
        }
        Ok(())
    }

    /// Checks a serialized `google.protobuf.FileDescriptorProto`.
    pub fn check_file(&mut self, file: &[u8]) -> Result<(), SchemaError> {
        let name = name_of(file).map_err(|refused| self.error("", refused))?;
        if name.is_empty() {
            return Err(SchemaError::NamelessFile);
        }
        // Paths may have blanks and letters of all languages.
        if name.chars().any(acts_on_terminal) {
            return Err(SchemaError::BadFileName { file: shown(&name) });
        }
        if name.len() > limits::DESCRIPTOR_NAME_BYTES {
            return Err(self.error(&name, Refused::LongName { kind: "file", found: name.len() }));
        }
        self.charge(file, name.len()).map_err(|refused| self.error(&name, refused))
    }

    fn charge(&mut self, file: &[u8], name_bytes: usize) -> Result<(), Refused> {
        self.budget.charge(&FILE, file)?;
        // Each service that is read keeps the name of its file.
        self.budget.take(count(file, SERVICES)? * name_bytes)?;
        self.steps.charge(file)
    }

    fn error(&self, file: &str, refused: Refused) -> SchemaError {
        let file = shown(file);
        match refused {
            Refused::Malformed(reason) => SchemaError::Malformed { reason: reason.to_owned() },
            Refused::Memory => SchemaError::TooMuchMemory { file, allowed: self.memory_bytes },
            Refused::Steps => SchemaError::TooManySteps { file, allowed: limits::DESCRIPTOR_STEPS },
            Refused::BadName { kind, name } => SchemaError::BadName { file, kind, name: shown(&name) },
            Refused::LongName { kind, found } => {
                SchemaError::LongName { file, kind, found, allowed: limits::DESCRIPTOR_NAME_BYTES }
            }
        }
    }
}

/// The name of a file. It may be anything.
fn name_of(file: &[u8]) -> Result<Cow<'_, str>, Refused> {
    let mut name: &[u8] = &[];
    for field in Fields(file) {
        if let (1, Value::Bytes(bytes)) = field? {
            name = bytes;
        }
    }
    Ok(String::from_utf8_lossy(name))
}

/// How many fields with this number a message has.
fn count(message: &[u8], number: u32) -> Result<usize, Refused> {
    Fields(message).try_fold(0, |found, field| Ok(found + usize::from(field?.0 == number)))
}

/// The struct of one library or of the other, whichever is larger: no two exist at once.
macro_rules! size {
    ($($name:ident)::+) => {{
        let (a, b) = (size_of::<prost_types::$($name)::+>(), size_of::<buffa_types::$($name)::+>());
        if a > b { a } else { b }
    }};
}

macro_rules! shape {
    ($shape:ident = $size:expr, $name:expr, $($number:literal: $part:expr),*) => {
        static $shape: Shape = Shape { size: $size, name: $name, fields: &[$(($number, $part)),*] };
    };
}

const fn name(kind: &'static str) -> Option<Name> {
    Some(Name { field: 1, kind, is_package: false })
}

// The fields are those of google/protobuf/descriptor.proto.
const SERVICES: u32 = 6;
const PACKAGE: Option<Name> = Some(Name { field: 2, kind: "package", is_package: true });

shape!(FILE = size!(FileDescriptorProto), PACKAGE,
    3: Texts, 10: Numbers(4), 11: Numbers(4), 15: Texts, 4: Message(&MESSAGE), 5: Message(&ENUM), 6: Message(&SERVICE),
    7: Message(&EXTENSION), 8: Message(&FILE_OPTIONS), 9: Message(&SOURCE_INFO));
shape!(MESSAGE = size!(DescriptorProto), name("message"),
    2: Message(&FIELD), 3: Message(&MESSAGE), 4: Message(&ENUM), 5: Message(&EXTENSION_RANGE), 6: Message(&EXTENSION),
    7: Message(&MESSAGE_OPTIONS), 8: Message(&ONEOF), 9: Message(&RESERVED_RANGE), 10: Texts);
shape!(EXTENSION_RANGE = size!(descriptor_proto::ExtensionRange), None, 3: Message(&EXTENSION_RANGE_OPTIONS));
shape!(RESERVED_RANGE = size!(descriptor_proto::ReservedRange), None,);
shape!(FIELD = size!(FieldDescriptorProto), name("field"), 8: Message(&FIELD_OPTIONS));
shape!(EXTENSION = size!(FieldDescriptorProto), name("extension"), 8: Message(&FIELD_OPTIONS));
shape!(ONEOF = size!(OneofDescriptorProto), name("oneof"), 2: Message(&ONEOF_OPTIONS));
shape!(ENUM = size!(EnumDescriptorProto), name("enum"),
    2: Message(&ENUM_VALUE), 3: Message(&ENUM_OPTIONS), 4: Message(&ENUM_RESERVED_RANGE), 5: Texts);
shape!(ENUM_RESERVED_RANGE = size!(enum_descriptor_proto::EnumReservedRange), None,);
shape!(ENUM_VALUE = size!(EnumValueDescriptorProto), name("enum value"), 3: Message(&ENUM_VALUE_OPTIONS));
shape!(SERVICE = size!(ServiceDescriptorProto), name("service"),
    2: Message(&METHOD), 3: Message(&SERVICE_OPTIONS));
shape!(METHOD = size!(MethodDescriptorProto), name("method"), 4: Message(&METHOD_OPTIONS));

shape!(FILE_OPTIONS = size!(FileOptions), None, 50: Message(&FEATURES), 999: Message(&UNINTERPRETED));
shape!(MESSAGE_OPTIONS = size!(MessageOptions), None, 12: Message(&FEATURES), 999: Message(&UNINTERPRETED));
shape!(FIELD_OPTIONS = size!(FieldOptions), None,
    19: Numbers(4), 20: Message(&EDITION_DEFAULT), 21: Message(&FEATURES), 22: Message(&FEATURE_SUPPORT),
    999: Message(&UNINTERPRETED));
shape!(ONEOF_OPTIONS = size!(OneofOptions), None, 1: Message(&FEATURES), 999: Message(&UNINTERPRETED));
shape!(ENUM_OPTIONS = size!(EnumOptions), None, 7: Message(&FEATURES), 999: Message(&UNINTERPRETED));
shape!(ENUM_VALUE_OPTIONS = size!(EnumValueOptions), None,
    2: Message(&FEATURES), 4: Message(&FEATURE_SUPPORT), 999: Message(&UNINTERPRETED));
shape!(EXTENSION_RANGE_OPTIONS = size!(ExtensionRangeOptions), None,
    2: Message(&DECLARATION), 50: Message(&FEATURES), 999: Message(&UNINTERPRETED));
shape!(SERVICE_OPTIONS = size!(ServiceOptions), None,
    34: Message(&FEATURES), 999: Message(&UNINTERPRETED), 50901: Perhaps(&WEFT_SERVICE));
shape!(METHOD_OPTIONS = size!(MethodOptions), None,
    35: Message(&FEATURES), 999: Message(&UNINTERPRETED), 50901: Perhaps(&WEFT_METHOD));

shape!(FEATURES = size_of::<buffa_types::FeatureSet>(), None,);
shape!(FEATURE_SUPPORT = size_of::<buffa_types::field_options::FeatureSupport>(), None,);
shape!(EDITION_DEFAULT = size_of::<buffa_types::field_options::EditionDefault>(), None,);
shape!(DECLARATION = size_of::<buffa_types::extension_range_options::Declaration>(), None,);
shape!(UNINTERPRETED = size!(UninterpretedOption), None, 2: Message(&NAME_PART));
shape!(NAME_PART = size!(uninterpreted_option::NamePart), None,);
shape!(SOURCE_INFO = size!(SourceCodeInfo), None, 1: Message(&LOCATION));
shape!(LOCATION = size!(source_code_info::Location), None, 1: Numbers(4), 2: Numbers(4), 6: Texts);

// The fields are those of weft/options/v1/options.proto.
shape!(WEFT_SERVICE = size_of::<weft::ServiceOptions>(), None, 2: Message(&WEFT_BREAKER), 4: Texts);
shape!(WEFT_BREAKER = size_of::<weft::Breaker>(), None, 7: Numbers(4));
shape!(WEFT_METHOD = size_of::<weft::MethodOptions>(), None,);
