//! Compiles every file under `proto/` with protox, so that no `protoc` is needed.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut files = Vec::new();
    find_protos(Path::new("proto"), &mut files)?;
    files.sort();

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;

    // Not `file_descriptor_set()`: its types do not have custom options, so they would be lost.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    compiler.include_source_info(false);
    fs::write(out.join("descriptors.binpb"), compiler.encode_file_descriptor_set())?;

    compiler.include_source_info(true);
    let with_comments = prost_types_from(&compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().codec_path("crate::codec::SmallCodec").bytes(".").compile_fds(with_comments)?;
    Ok(())
}

fn prost_types_from(
    encoded: &[u8],
) -> Result<protox::prost_reflect::prost_types::FileDescriptorSet, prost::DecodeError> {
    Message::decode(encoded)
}

fn find_protos(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            find_protos(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
    Ok(())
}
