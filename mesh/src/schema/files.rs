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

/// Makes one descriptor set with each file once.
pub(super) fn merge(files: impl IntoIterator<Item = Bytes>) -> Result<Vec<u8>, SchemaError> {
    let mut by_name: BTreeMap<String, Bytes> = BTreeMap::new();
    let (mut total_bytes, mut bounds) = (0, Bounds::default());
    for file in files {
        bounds.check_file(&file)?;
        let Named { name } = Named::decode(file.clone()).map_err(malformed)?;
        match by_name.entry(name) {
            Entry::Vacant(free) => {
                total_bytes += file.len();
                check_size(total_bytes)?;
                free.insert(file);
            }
            Entry::Occupied(known) if known.get() == &file || known.key().starts_with("google/protobuf/") => {}
            Entry::Occupied(known) => {
                if without_source_info(known.get())? != without_source_info(&file)? {
                    return Err(SchemaError::FileConflict { file: known.key().clone() });
                }
            }
        }
    }
    Ok(RawSet { file: by_name.into_values().collect() }.encode_to_vec())
}

/// A file without comments and positions: they depend on the compiler's options and do not change what the file
/// defines.
fn without_source_info(file: &Bytes) -> Result<FileDescriptorProto, SchemaError> {
    let mut file: FileDescriptorProto = buffa::DecodeOptions::new()
        .with_element_memory_limit(limits::DESCRIPTOR_MEMORY_BYTES)
        .decode_from_slice(file)
        .map_err(malformed)?;
    file.source_code_info = Default::default();
    // Encoded again, so that the layout of the bytes does not matter.
    FileDescriptorProto::decode_from_slice(&file.encode_to_vec()).map_err(malformed)
}

fn check_size(found: usize) -> Result<(), SchemaError> {
    let allowed = limits::DESCRIPTOR_SET_BYTES;
    if found > allowed { Err(SchemaError::TooLarge { found, allowed }) } else { Ok(()) }
}

pub(super) fn malformed(error: impl std::fmt::Display) -> SchemaError {
    SchemaError::Malformed { reason: error.to_string() }
}
