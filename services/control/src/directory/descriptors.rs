//! Descriptor sets as services announce them, with an index of the symbols that they define.
//!
//! The bytes of each file are kept as received: they may have custom options, which no type here knows and clients must
//! still get.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use weft_mesh::schema::{Bounds, SchemaError};

/// A `google.protobuf.FileDescriptorSet` whose files are not decoded.
#[derive(Clone, PartialEq, Message)]
struct RawSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// Why bytes are not a usable descriptor set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorError {
    #[error("not a serialized google.protobuf.FileDescriptorSet: {0}")]
    Malformed(String),
    #[error(transparent)]
    Refused(SchemaError),
    #[error("the descriptor set has no file")]
    Empty,
    #[error("the file `{0}` is there twice")]
    Twice(String),
    #[error("`{file}` imports `{import}`, which is not in the set: compile with imports included")]
    Import { file: String, import: String },
}

impl From<prost::DecodeError> for DescriptorError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<SchemaError> for DescriptorError {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Malformed { reason } => Self::Malformed(reason),
            other => Self::Refused(other),
        }
    }
}

#[derive(Debug)]
struct File {
    bytes: Bytes,
    imports: Vec<usize>,
}

/// What a hash map takes for a string with a number, besides the characters: twice, as half of it may be free, and with
/// what an allocator adds to a block.
const INDEXED_BYTES: usize = 2 * (size_of::<(String, usize)>() + 1) + 16;
/// The same for an extension, in a B-tree.
const EXTENSION_BYTES: usize = 2 * size_of::<((String, i32), usize)>() + 16;

/// The files of a service's contracts with all that they import.
#[derive(Debug)]
pub(crate) struct DescriptorSet {
    bytes: Bytes,
    /// Of the bytes and of all that is kept besides.
    memory_bytes: usize,
    files: Vec<File>,
    names: HashMap<String, usize>,
    /// Full names of services, methods, messages, enums and extensions.
    symbols: HashMap<String, usize>,
    /// By the extended message and the number of the field.
    extensions: BTreeMap<(String, i32), usize>,
}

impl DescriptorSet {
    /// Reads a serialized `google.protobuf.FileDescriptorSet`. Nothing is decoded before it is known what it takes in
    /// memory.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self, DescriptorError> {
        Bounds::default().check_set(&bytes)?;
        let raw = RawSet::decode(bytes.clone())?;
        let files: Vec<FileDescriptorProto> =
            raw.file.iter().map(|file| FileDescriptorProto::decode(file.clone())).collect::<Result<_, _>>()?;
        if files.is_empty() {
            return Err(DescriptorError::Empty);
        }
        let mut names = HashMap::with_capacity(files.len());
        for (index, file) in files.iter().enumerate() {
            if names.insert(file.name().to_owned(), index).is_some() {
                return Err(DescriptorError::Twice(file.name().to_owned()));
            }
        }
        let memory_bytes = bytes.len();
        let (symbols, extensions) = (HashMap::new(), BTreeMap::new());
        let mut set = Self { bytes, memory_bytes, files: Vec::with_capacity(files.len()), names, symbols, extensions };
        for (index, (file, bytes)) in files.iter().zip(raw.file).enumerate() {
            let import = |import: &String| {
                set.names
                    .get(import)
                    .copied()
                    .ok_or_else(|| DescriptorError::Import { file: file.name().to_owned(), import: import.clone() })
            };
            let imports = file.dependency.iter().map(import).collect::<Result<Vec<_>, _>>()?;
            set.memory_bytes += size_of::<File>() + size_of_val(&imports[..]) + file.name().len() + INDEXED_BYTES;
            set.files.push(File { bytes, imports });
            set.index_file(index, file);
        }
        Ok(set)
    }

    /// The set as it was received.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it takes in memory: a small set may have long names, and each counts as often as something is defined within.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Every symbol.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = &str> {
        self.symbols.keys().map(String::as_str)
    }

    /// The file that defines a symbol, and what it imports.
    pub(crate) fn of_symbol(&self, symbol: &str) -> Option<Vec<Bytes>> {
        self.symbols.get(symbol).map(|file| self.with_imports(*file))
    }

    /// A file by its name, and what it imports.
    pub(crate) fn of_file(&self, name: &str) -> Option<Vec<Bytes>> {
        self.names.get(name).map(|file| self.with_imports(*file))
    }

    /// The file that defines an extension, and what it imports.
    pub(crate) fn of_extension(&self, extendee: &str, number: i32) -> Option<Vec<Bytes>> {
        self.extensions.get(&(extendee.to_owned(), number)).map(|file| self.with_imports(*file))
    }

    /// The numbers of a message's extensions; `None` if the message is not in the set.
    pub(crate) fn extension_numbers(&self, extendee: &str) -> Option<impl Iterator<Item = i32>> {
        self.symbols.get(extendee)?;
        let of = |number| (extendee.to_owned(), number);
        Some(self.extensions.range(of(i32::MIN)..=of(i32::MAX)).map(|((_, number), _)| *number))
    }

    /// The file, then all that it imports, each once.
    fn with_imports(&self, file: usize) -> Vec<Bytes> {
        let (mut order, mut seen) = (vec![file], BTreeSet::from([file]));
        let mut next = 0;
        while let Some(index) = order.get(next) {
            let imports = self.files[*index].imports.iter().filter(|import| seen.insert(**import));
            let imports: Vec<usize> = imports.copied().collect();
            order.extend(imports);
            next += 1;
        }
        order.into_iter().map(|index| self.files[index].bytes.clone()).collect()
    }

    fn index_file(&mut self, index: usize, file: &FileDescriptorProto) {
        let package = file.package();
        for message in &file.message_type {
            self.index_message(index, package, message);
        }
        self.index_enums(index, package, &file.enum_type);
        self.index_extensions(index, package, &file.extension);
        for service in &file.service {
            let name = join(package, service.name());
            for method in &service.method {
                self.index(join(&name, method.name()), index);
            }
            self.index(name, index);
        }
    }

    fn index(&mut self, symbol: String, file: usize) {
        self.memory_bytes += symbol.len() + INDEXED_BYTES;
        self.symbols.insert(symbol, file);
    }

    fn index_message(&mut self, index: usize, scope: &str, message: &DescriptorProto) {
        let name = join(scope, message.name());
        // The depth is bounded: prost does not decode messages nested deeper than 100.
        for nested in &message.nested_type {
            self.index_message(index, &name, nested);
        }
        self.index_enums(index, &name, &message.enum_type);
        self.index_extensions(index, &name, &message.extension);
        self.index(name, index);
    }

    fn index_enums(&mut self, index: usize, scope: &str, enums: &[EnumDescriptorProto]) {
        enums.iter().for_each(|e| self.index(join(scope, e.name()), index));
    }

    fn index_extensions(&mut self, index: usize, scope: &str, extensions: &[FieldDescriptorProto]) {
        for extension in extensions {
            let extendee = extension.extendee().trim_start_matches('.').to_owned();
            self.memory_bytes += extendee.len() + EXTENSION_BYTES;
            self.extensions.insert((extendee, extension.number()), index);
            self.index(join(scope, extension.name()), index);
        }
    }
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> DescriptorSet {
        DescriptorSet::parse(Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET)).unwrap()
    }

    fn file_names(files: &[Bytes]) -> Vec<String> {
        files.iter().map(|file| FileDescriptorProto::decode(file.clone()).unwrap().name().to_owned()).collect()
    }

    #[test]
    fn a_symbol_comes_with_the_imports_of_its_file_each_once() {
        let set = shop();
        for symbol in ["weft.discovery.v1.Discovery", "weft.discovery.v1.Discovery.Watch", "weft.discovery.v1.Health"] {
            let names = file_names(&set.of_symbol(symbol).unwrap());
            assert_eq!(names[0], "weft/discovery/v1/discovery.proto");
            assert!(names.contains(&"weft/policy/v1/policy.proto".to_owned()));
            assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len());
        }
        assert!(set.of_symbol("weft.discovery.v1.Nothing").is_none());
    }

    #[test]
    fn extensions_are_found_by_number_and_files_by_name() {
        let set = shop();
        let extended = "google.protobuf.MethodOptions";
        assert!(set.extension_numbers(extended).unwrap().any(|number| number == 50901));
        assert_eq!(file_names(&set.of_extension(extended, 50901).unwrap())[0], "weft/options/v1/options.proto");
        assert!(set.of_extension(extended, 1).is_none());
        assert!(set.extension_numbers("no.Such").is_none());
        assert!(set.of_file("weft/policy/v1/policy.proto").is_some());
    }

    #[test]
    fn files_keep_their_custom_options() {
        let raw = RawSet::decode(weft_contracts::FILE_DESCRIPTOR_SET).unwrap();
        let set = shop();
        for file in raw.file {
            let name = FileDescriptorProto::decode(file.clone()).unwrap().name().to_owned();
            assert_eq!(set.of_file(&name).unwrap()[0], file);
        }
    }

    #[test]
    fn sets_that_decode_to_much_more_than_they_weigh_are_refused() {
        let half = weft_mesh::limits::DESCRIPTOR_SET_BYTES / 2 - 16;
        let messages = [b"\x0a\x07t.proto".to_vec(), b"\x22\x03\x0a\x01a".repeat(half * 2 / 5)].concat();
        let messages = RawSet { file: vec![messages.into()] }.encode_to_vec();
        for set in [b"\x0a\x00".repeat(half), messages] {
            let refused = DescriptorSet::parse(Bytes::from(set)).unwrap_err();
            assert!(matches!(refused, DescriptorError::Refused(_)), "{refused}");
        }
    }

    #[test]
    fn incomplete_sets_are_refused_with_the_reason() {
        let parse = |bytes: Vec<u8>| DescriptorSet::parse(Bytes::from(bytes)).unwrap_err();
        assert!(matches!(parse(b"\xff\xff nonsense".to_vec()), DescriptorError::Malformed(_)));
        assert!(matches!(parse(Vec::new()), DescriptorError::Empty));
        let mut raw = RawSet::decode(weft_contracts::FILE_DESCRIPTOR_SET).unwrap();
        let name = |file: &Bytes| FileDescriptorProto::decode(file.clone()).unwrap().name().to_owned();
        raw.file.retain(|file| name(file) != "google/protobuf/duration.proto");
        assert!(parse(raw.encode_to_vec()).to_string().contains("imports `google/protobuf/duration.proto`"));
        let twice = RawSet { file: vec![raw.file[0].clone(), raw.file[0].clone()] };
        assert!(matches!(parse(twice.encode_to_vec()), DescriptorError::Twice(_)));
    }
}
