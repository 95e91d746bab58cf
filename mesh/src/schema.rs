//! Users' schemas at run time: the services and messages that their descriptors define, and messages as JSON.
//!
//! The rest of Weft uses only [`Schema`]; a single module uses the library behind it. Descriptors come from outside:
//! [`Bounds`] limits what they may take in memory and time before anything decodes them, and malformed ones cause nothing worse
//! than an error.

mod bounds;
mod files;
mod json;
mod pool;

use std::sync::Arc;

pub use bounds::Bounds;
use bytes::Bytes;
use weft_contracts::weft::options::v1::{MethodOptions, ServiceOptions};

/// The definitions in a set of `.proto` files.
pub trait Schema: Send + Sync {
    /// Every protobuf service, in the order of their full names.
    fn services(&self) -> &[Service];

    /// The protobuf service with this full name: `shop.users.v1.Users`.
    fn service(&self, name: &str) -> Option<&Service> {
        let services = self.services();
        services.binary_search_by(|service| service.name.as_str().cmp(name)).ok().map(|at| &services[at])
    }

    /// The method of this service with this name: `("shop.users.v1.Users", "Create")`.
    fn method(&self, service: &str, method: &str) -> Option<&Method> {
        self.service(service)?.methods.iter().find(|candidate| candidate.name == method)
    }

    /// Whether a message with this full name is defined.
    fn has_message(&self, name: &str) -> bool;

    /// The most fields of one message, or values of one enum. To read or write JSON, all of them may be gone through for
    /// each value in it.
    fn widest(&self) -> usize;

    /// Encodes a message that is written in protobuf's JSON mapping. Unknown fields are an error, and so is text after
    /// the message.
    fn json_to_binary(&self, message: &str, json: &str) -> Result<Vec<u8>, SchemaError>;

    /// Writes an encoded message in protobuf's JSON mapping, on one line. Unknown fields are left out.
    fn binary_to_json(&self, message: &str, binary: &[u8]) -> Result<String, SchemaError> {
        self.binary_to_json_up_to(message, binary, usize::MAX)
    }

    /// As [`Self::binary_to_json`], but an error as soon as the text is longer than so many bytes: a few bytes of the binary
    /// form may stand for very long names.
    fn binary_to_json_up_to(&self, message: &str, binary: &[u8], most: usize) -> Result<String, SchemaError>;

    /// Writes the content of an `Any` in protobuf's JSON mapping: an object with `@type`.
    fn any_to_json(&self, any: &prost_types::Any) -> Result<String, SchemaError>;
}

/// Reads a serialized `google.protobuf.FileDescriptorSet` that contains all its imports.
pub fn from_descriptor_set(descriptor_set: &[u8]) -> Result<Arc<dyn Schema>, SchemaError> {
    from_files(files::split(descriptor_set)?)
}

/// Reads serialized `google.protobuf.FileDescriptorProto`s with all their imports, in any order.
///
/// A file may occur more than once if its content is the same. Of protobuf's own files, which each compiler adds in its
/// own version, the first is taken.
pub fn from_files(files: impl IntoIterator<Item = Bytes>) -> Result<Arc<dyn Schema>, SchemaError> {
    Ok(Arc::new(pool::PoolSchema::new(&files::merge(files)?)?))
}

/// Leaves the comments of the `.proto` files, and where each thing stands in them, out of a serialized
/// `google.protobuf.FileDescriptorSet`. All options stay.
pub fn without_comments(descriptor_set: &[u8]) -> Result<Vec<u8>, SchemaError> {
    files::without_comments(descriptor_set)
}

/// A protobuf service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its full name: `shop.users.v1.Users`.
    pub name: String,
    /// The file that defines it: `shop/users/v1/users.proto`.
    pub file: String,
    /// Its option `(weft.options.v1.service)`.
    pub options: Option<ServiceOptions>,
    /// Its methods, in the order of the file.
    pub methods: Vec<Method>,
}

/// A method of a protobuf service.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Its name without its service: `Create`.
    pub name: String,
    /// The full name of the message that the caller sends.
    pub input: String,
    /// The full name of the message that the service sends.
    pub output: String,
    /// Whether the caller sends any number of messages.
    pub client_streaming: bool,
    /// Whether the service sends any number of messages.
    pub server_streaming: bool,
    /// Its `idempotency_level`.
    pub idempotency: Idempotency,
    /// Its option `(weft.options.v1.method)`.
    pub options: Option<MethodOptions>,
}

/// Whether a call may be repeated, from the method's `idempotency_level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idempotency {
    /// Unknown: only a call that was certainly not processed may be retried.
    #[default]
    Unknown,
    /// Repeating a call has no further effect.
    Idempotent,
    /// A call has no side effects: it only reads.
    NoSideEffects,
}

impl Idempotency {
    /// Whether a call may be retried even if the service may have processed it.
    pub fn is_safe_to_repeat(self) -> bool {
        self != Self::Unknown
    }
}

/// What can be wrong with descriptors, or with a message that they define.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The descriptors are larger than Weft accepts.
    #[error("the descriptors have {found} bytes; allowed are {allowed}")]
    TooLarge {
        /// Their size.
        found: usize,
        /// [`crate::limits::DESCRIPTOR_SET_BYTES`]
        allowed: usize,
    },
    /// The descriptors would take more memory than Weft gives them.
    #[error("the descriptors would take more than {allowed} bytes of memory, up to this file: {file}")]
    TooMuchMemory {
        /// The first file that does not fit. Control characters are escaped.
        file: String,
        /// [`crate::limits::DESCRIPTOR_MEMORY_BYTES`]
        allowed: usize,
    },
    /// What the descriptors define would be compared with each other too often.
    #[error(
        "the descriptors would take more than {allowed} steps to read, up to this file: {file}; a message has too many \
         fields and messages in it, or there are too many extensions of a message with many ranges"
    )]
    TooManySteps {
        /// The first file that is too much. Control characters are escaped.
        file: String,
        /// [`crate::limits::DESCRIPTOR_STEPS`]
        allowed: usize,
    },
    /// A name is not as `.proto` files allow it.
    #[error(
        "{file}: `{name}` is not a valid name of a {kind}: that has letters, digits and `_`, and does not start with a \
         digit"
    )]
    BadName {
        /// The file that contains it. Control characters are escaped.
        file: String,
        /// What it names: `message`.
        kind: &'static str,
        /// The start of the name. Control characters are escaped.
        name: String,
    },
    /// The name of a file has characters that act on a terminal.
    #[error("the descriptors contain a file whose name has control characters: {file}")]
    BadFileName {
        /// Its name. Control characters are escaped.
        file: String,
    },
    /// A full name is too long.
    #[error("{file}: the full name of a {kind} has {found} bytes; allowed are {allowed}")]
    LongName {
        /// The file that contains it. Control characters are escaped.
        file: String,
        /// What it names: `message`.
        kind: &'static str,
        /// Its length.
        found: usize,
        /// [`crate::limits::DESCRIPTOR_NAME_BYTES`]
        allowed: usize,
    },
    /// The bytes are not descriptors, or the descriptors contradict themselves or lack an import.
    #[error("the descriptors are malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// A file has no name.
    #[error("the descriptors contain a file without a name")]
    NamelessFile,
    /// Two different files have the same name.
    #[error("the descriptors contain two different files named {file}")]
    FileConflict {
        /// Their name.
        file: String,
    },
    /// A service or a method has an option with the number of Weft's, but the set does not define that option.
    #[error(
        "{file}: {element} has an option with the number {number}, but the descriptors lack the file that defines it; \
         write the descriptor set with all imports (`protoc --include_imports`)"
    )]
    UndefinedOption {
        /// The file that contains the option.
        file: String,
        /// `service a.b.C` or `method a.b.C/D`.
        element: String,
        /// The option's field number.
        number: u32,
    },
    /// Weft's option does not decode.
    #[error("{file}: the weft option of {element} is malformed: {reason}")]
    MalformedOption {
        /// The file that contains the option.
        file: String,
        /// `service a.b.C` or `method a.b.C/D`.
        element: String,
        /// What is wrong.
        reason: String,
    },
    /// The message is not defined.
    #[error("the descriptors define no message `{message}`{}", closest.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?")))]
    UnknownMessage {
        /// What was asked for.
        message: String,
        /// The most similar name among the defined messages.
        closest: Option<String>,
    },
    /// The text is not JSON of the message.
    #[error("this is not JSON of `{message}`: {}{reason}", field.as_ref().map_or(String::new(), |field| format!("{field}: ")))]
    Json {
        /// The message.
        message: String,
        /// The path of the wrong field: `lines[2].quantity`.
        field: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are not an encoded message of this type.
    #[error("these bytes are not a `{message}`: {reason}")]
    Binary {
        /// The message.
        message: String,
        /// What is wrong.
        reason: String,
    },
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::Path;

    use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};

    /// Compiles sources, given as `(name, text)`, to a descriptor set with all imports.
    pub(crate) fn compile(sources: &[(&str, &str)]) -> Vec<u8> {
        struct Sources(Vec<(String, String)>);
        impl FileResolver for Sources {
            fn open_file(&self, name: &str) -> Result<File, protox::Error> {
                match self.0.iter().find(|(known, _)| known == name) {
                    Some((_, text)) => File::from_source(name, text),
                    None => Err(protox::Error::file_not_found(name)),
                }
            }
        }
        let mut resolver = ChainFileResolver::new();
        resolver.add(Sources(sources.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()));
        resolver.add(IncludeFileResolver::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto")));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(resolver);
        compiler.include_imports(true);
        for (name, _) in sources {
            compiler.open_file(name).unwrap_or_else(|error| panic!("{error:?}"));
        }
        compiler.encode_file_descriptor_set()
    }
}
