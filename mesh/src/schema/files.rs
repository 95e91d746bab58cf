//! Descriptor sets as files of raw bytes: splits sets, and merges the files of several sets.

use std::collections::{BTreeMap, btree_map::Entry};

use buffa::Message as _;
use buffa_descriptor::generated::descriptor::FileDescriptorProto;
use bytes::Bytes;
use prost::Message as _;

use super::{Bounds, SchemaError};
use crate::limits;

/// A `google.protobuf.FileDescriptorSet` whose files are not decoded.
#[derive(Clone, PartialEq, prost::Message)]
struct RawSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// The one field of a `google.protobuf.FileDescriptorProto` that tells files apart.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

pub(super) fn split(descriptor_set: &[u8]) -> Result<Vec<Bytes>, SchemaError> {
    check_size(descriptor_set.len())?;
    Bounds::default().check_set(descriptor_set)?;
    let set = RawSet::decode(descriptor_set).map_err(malformed)?;
    Ok(set.file)
}

/// A file that other files of its name are compared with.
struct Known {
    file: Bytes,
    /// What it defines, if a file with other bytes was compared with it: it is decoded once, however many those are.
    content: Option<FileDescriptorProto>,
}

impl Known {
    fn new(file: Bytes) -> Self {
        Self { file, content: None }
    }

    fn defines_the_same(&mut self, other: &Bytes) -> Result<bool, SchemaError> {
        let content = match self.content.take() {
            Some(content) => content,
            None => without_source_info(&self.file)?,
        };
        Ok(*self.content.insert(content) == without_source_info(other)?)
    }
}

/// Makes one descriptor set with each file once.
pub(super) fn merge(files: impl IntoIterator<Item = Bytes>) -> Result<Vec<u8>, SchemaError> {
    let mut by_name: BTreeMap<String, Known> = BTreeMap::new();
    let (mut total_bytes, mut bounds) = (0, Bounds::default());
    for file in files {
        bounds.check_file(&file)?;
        let Named { name } = Named::decode(file.clone()).map_err(malformed)?;
        match by_name.entry(name) {
            Entry::Vacant(free) => {
                total_bytes += file.len();
                check_size(total_bytes)?;
                free.insert(Known::new(file));
            }
            Entry::Occupied(known) if known.get().file == file || known.key().starts_with("google/protobuf/") => {}
            Entry::Occupied(mut known) => {
                if !known.get_mut().defines_the_same(&file)? {
                    return Err(SchemaError::FileConflict { file: known.key().clone() });
                }
            }
        }
    }
    Ok(RawSet { file: by_name.into_values().map(|known| known.file).collect() }.encode_to_vec())
}

pub(super) fn without_comments(descriptor_set: &[u8]) -> Result<Vec<u8>, SchemaError> {
    let files = split(descriptor_set)?;
    let file = files.iter().map(|file| encoded_without_source_info(file).map(Bytes::from));
    Ok(RawSet { file: file.collect::<Result<_, _>>()? }.encode_to_vec())
}

/// A file without comments and positions: they depend on the compiler's options and do not change what the file
/// defines.
fn without_source_info(file: &Bytes) -> Result<FileDescriptorProto, SchemaError> {
    #[cfg(test)]
    tests::DECODED_BYTES.with(|bytes| bytes.set(bytes.get() + file.len()));
    // Encoded again, so that the layout of the bytes does not matter.
    FileDescriptorProto::decode_from_slice(&encoded_without_source_info(file)?).map_err(malformed)
}

fn encoded_without_source_info(file: &[u8]) -> Result<Vec<u8>, SchemaError> {
    let mut file: FileDescriptorProto = buffa::DecodeOptions::new()
        .with_element_memory_limit(limits::DESCRIPTOR_MEMORY_BYTES)
        .decode_from_slice(file)
        .map_err(malformed)?;
    file.source_code_info = Default::default();
    Ok(file.encode_to_vec())
}

fn check_size(found: usize) -> Result<(), SchemaError> {
    let allowed = limits::DESCRIPTOR_SET_BYTES;
    if found > allowed { Err(SchemaError::TooLarge { found, allowed }) } else { Ok(()) }
}

pub(super) fn malformed(error: impl std::fmt::Display) -> SchemaError {
    SchemaError::Malformed { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use prost_types::{FileDescriptorProto, SourceCodeInfo, source_code_info::Location};

    use super::*;
    use crate::schema::testing::compile;

    thread_local! {
        /// The bytes of all files that were decoded to be compared.
        pub(super) static DECODED_BYTES: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn without_comments_a_set_says_the_same() {
        let source = r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
            message M {}
            service S {
                rpc Do(M) returns (M) { option (weft.options.v1.method) = { timeout: { seconds: 3 } }; }
            }"#;
        let mut commented = RawSet::decode(&*compile(&[("t.proto", source)])).unwrap();
        let comment = "A very long comment.";
        let location = Location { leading_comments: Some(comment.to_owned()), ..Location::default() };
        let info = prost::Message::encode_to_vec(&SourceCodeInfo { location: vec![location] });
        for file in &mut commented.file {
            let mut bytes = file.to_vec();
            prost::encoding::bytes::encode(9, &info, &mut bytes);
            *file = bytes.into();
        }
        let commented = prost::Message::encode_to_vec(&commented);
        let has_comment = |set: &[u8]| set.windows(comment.len()).any(|bytes| bytes == comment.as_bytes());
        let stripped = without_comments(&commented).unwrap();
        assert_eq!((has_comment(&commented), has_comment(&stripped)), (true, false));
        let of = |set: &[u8]| crate::policy::ServicePolicy::from_descriptors(set, None).unwrap();
        assert_eq!(of(&stripped), of(&commented));
        assert!(of(&stripped).method("t.S", "Do").unwrap().timeout.is_some());
        assert!(without_comments(b"{}").is_err());
    }

    /// Otherwise a member keeps a thread of the control plane busy for hours, with a large file and many small ones.
    #[test]
    fn a_file_is_decoded_once_however_often_its_name_comes_again() {
        let commented = |comment: String| {
            let location = Location { leading_comments: Some(comment), ..Location::default() };
            let source_code_info = Some(SourceCodeInfo { location: vec![location] });
            let file = FileDescriptorProto { name: Some("t.proto".into()), source_code_info, ..Default::default() };
            Bytes::from(prost::Message::encode_to_vec(&file))
        };
        let large = commented("x".repeat(100_000));
        let small: Vec<Bytes> = (0..1_000).map(|number| commented(number.to_string())).collect();
        let given_bytes = large.len() + small.iter().map(Bytes::len).sum::<usize>();
        DECODED_BYTES.set(0);
        merge([large].into_iter().chain(small)).unwrap();
        assert_eq!(DECODED_BYTES.get(), given_bytes);
    }
}
