//! Finds the imports of a contract: in this program, in the folders of `proto_path`, among protobuf's own files.
//!
//! Weft's own files are part of this program, so a contract needs no copy of them. A project may keep one for protoc and
//! editors. The file in this program is always the one that is used, as it is the one that the mesh understands. A copy
//! may be older. A copy with any other difference is an error: other tools would read the contract differently.

mod copy;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};
use weft_contracts::sources::PUBLIC;
use weft_mesh::names::closest;

use self::copy::said_beyond;
use crate::project_file;

/// Finds the imports of contracts whose `proto_path` is `include`.
pub(super) fn resolver(include: &[PathBuf]) -> ChainFileResolver {
    let mut resolver = ChainFileResolver::new();
    resolver.add(Own { include: include.to_owned() });
    for root in include {
        resolver.add(Folder { root: root.clone(), files: IncludeFileResolver::new(root.clone()) });
    }
    resolver.add(GoogleFileResolver::new());
    resolver
}

/// What is added to the error of an import that is not found: the closest name, and what is allowed. `include_by` is what
/// sets the folders.
pub(super) fn hint(error: &protox::Error, include: &[PathBuf], include_by: &str) -> String {
    let text = error.to_string();
    let Some(name) = text.strip_prefix("import '").and_then(|text| text.strip_suffix("' not found")) else {
        return String::new();
    };
    let near = closest(name, PUBLIC.iter().map(|source| source.name));
    let near = near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
    let roots = include.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
    let built_in = if name.starts_with("google/") { "google/protobuf/..." } else { "weft/... and google/protobuf/..." };
    format!("{near}; allowed: a file under {roots} (`{include_by}`); weft itself has {built_in}")
}

/// A folder of `proto_path`.
struct Folder {
    root: PathBuf,
    files: IncludeFileResolver,
}

impl FileResolver for Folder {
    fn resolve_path(&self, path: &Path) -> Option<String> {
        self.files.resolve_path(path)
    }

    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        check_readable(&self.root.join(name))?;
        self.files.open_file(name)
    }
}

/// Refuses what may never end. The compiler reads a file to its end.
fn check_readable(path: &Path) -> Result<(), protox::Error> {
    // If there is none, the compiler says so.
    let refusal = path.metadata().ok().and_then(|metadata| project_file::refusal(&metadata));
    refusal.map_or(Ok(()), |why| Err(protox::Error::new(Refused(format!("{} can't be used: {why}", path.display())))))
}

/// Weft's own files.
struct Own {
    include: Vec<PathBuf>,
}

impl FileResolver for Own {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let Some(source) = PUBLIC.iter().find(|source| source.name == name) else {
            return Err(protox::Error::file_not_found(name));
        };
        let own = File::from_source(source.name, source.text)?;
        // Like protoc, only look at the first one.
        if let Some(root) = self.include.iter().find(|root| root.join(name).is_file()) {
            check_copy(&own, &root.join(name), root)?;
        }
        Ok(own)
    }
}

fn check_copy(own: &File, path: &Path, root: &Path) -> Result<(), protox::Error> {
    check_readable(path)?;
    let copy = File::open(own.name(), path)?;
    match said_beyond(own.file_descriptor_proto(), copy.file_descriptor_proto()) {
        None => Ok(()),
        Some(what) => Err(protox::Error::new(Refused(format!(
            "{} is not this weft's {}: {what} is unknown to weft {}; allowed: no such file, as weft has its own, or the \
             same or an older one (`weft proto export --force {}` replaces it)",
            path.display(),
            own.name(),
            env!("CARGO_PKG_VERSION"),
            root.display()
        )))),
    }
}

/// The error for a file that is not used: a copy that is neither the same nor older, or something that is no such file.
struct Refused(String);

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Like `Display`: the compiler's errors are shown in their `Debug` form.
impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
